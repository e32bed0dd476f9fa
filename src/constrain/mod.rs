//! Structure that cannot be wrong: which tokens may come next, by a grammar.
//!
//! A [`Constraint`] is a grammar over the model's whole turn, the Harmony format included: at each
//! step every token that would leave it is banned, whatever the sampler does. The turn begins
//! behind `<|start|>assistant`, where [`TextModel::chat_prompt`](crate::TextModel::chat_prompt)
//! ends. It consists of
//!
//! - any number of messages in the `analysis` channel, and of preambles in `commentary` where tools
//!   may be called, with any text but no control tokens, each ended by `<|end|>`;
//! - then either one call of an offered tool, with `to=` before or after the channel, its arguments
//!   valid by the tool's schema, ended by `<|call|>`;
//! - or one message in the `final` channel that keeps to the response format, ended by
//!   `<|return|>`.
//!
//! The generation ends with the grammar, also where `stop_ids` names other tokens. The length of a
//! turn is no part of a grammar: `max_tokens` may cut the turn off anywhere, and
//! [`FinishReason::Length`](crate::FinishReason::Length) then says that what there is may not be
//! valid.
//!
//! In a conversation, [`ChatOptions`](crate::ChatOptions) say what is asked for, and the tools are
//! those of the conversation:
//!
//! ```
//! use gpt_oss_mlx::chat::{Conversation, Message};
//! use gpt_oss_mlx::constrain::ResponseFormat;
//! use gpt_oss_mlx::{ChatOptions, LoadOptions, Session, TextModel};
//! use serde_json::json;
//!
//! # fn main() -> gpt_oss_mlx::Result<()> {
//! let model = TextModel::load("assets/gpt-oss-tiny", &LoadOptions::default())?;
//! let schema = json!({"enum": ["yes", "no"]});
//! // What the model is told, and what it is held to.
//! let told = Message::response_format("answer", None, &schema);
//! let conversation = Conversation::new([told, Message::user("Is Rust fast?")]);
//! let mut options = ChatOptions::default();
//! options.response_format = Some(ResponseFormat::JsonSchema(schema));
//!
//! let mut session = Session::new(model.model());
//! let mut chat = model.chat(&mut session, &conversation, &options)?;
//! for event in &mut chat {
//!     event?;
//! }
//! assert!([r#""yes""#, r#""no""#].contains(&chat.into_turn().answer.as_str()));
//! # Ok(())
//! # }
//! ```
//!
//! For prompts of one's own a [`ConstraintSpec`] is compiled by
//! [`TextModel::constraint`](crate::TextModel::constraint) or a [`Vocabulary`], and goes into
//! [`GenerateOptions::constraint`](crate::GenerateOptions::constraint).
//!
//! # JSON Schema
//! Grammars are compiled by [llguidance](https://github.com/guidance-ai/llguidance); what of JSON
//! Schema it can guarantee is its own documentation's matter. A keyword that it cannot is an error
//! and not ignored; so is `oneOf` with alternatives that overlap, and `$ref` to anything but
//! `#/…`. Between the parts of a JSON text at most [`MAX_SPACE`] characters of white space are
//! allowed, since a model can get lost in them. A number may have more digits than a float can
//! hold, unless the schema gives bounds.
//!
//! # Hostile grammars
//! Sizes and depths of sources are limited before, and work and memory by llguidance while a
//! grammar is compiled and used; what goes beyond them is [`Error::Grammar`](crate::Error::Grammar)
//! or [`Error::Constraint`](crate::Error::Constraint). llguidance reports some limits by a panic
//! that it catches itself: a program built with `panic = "abort"` should not take grammars from
//! strangers.

mod compile;
mod guide;
mod recent;
mod spec;
mod turn;
mod vocabulary;

pub use compile::MAX_SPACE;
pub use guide::Guide;
pub(crate) use recent::Recent;
pub use spec::{ConstraintSpec, Enforce, ResponseFormat, ToolChoice};
pub use vocabulary::Vocabulary;

use llguidance::TokenParser;
use std::fmt;
use std::sync::Arc;

/// A compiled grammar for one turn of the model. Cloning is cheap, and each generation follows it
/// from its beginning.
#[derive(Clone)]
pub struct Constraint {
    /// Never used itself, so that what one generation computes is not kept for all others.
    parser: Arc<TokenParser>,
}

impl Constraint {
    /// The beginning of a turn, for a decoding loop of one's own.
    pub fn begin(&self) -> Guide {
        Guide::new(self.parser.deep_clone())
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").finish_non_exhaustive()
    }
}
