//! GPT-OSS in-process on Apple's MLX: no Python, no subprocess.
//!
//! ```
//! use gpt_oss_mlx::chat::{Conversation, Message};
//! use gpt_oss_mlx::{CompletionOptions, LoadOptions, TextModel};
//!
//! # fn main() -> gpt_oss_mlx::Result<()> {
//! let model = TextModel::load("assets/gpt-oss-tiny", &LoadOptions::default())?;
//! let question = Message::user("Explain Dangling References.");
//! let prompt = model.chat_prompt(&Conversation::new([question]))?;
//! for piece in model.complete(&prompt, &CompletionOptions::default())? {
//!     print!("{}", piece?.text);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`TextModel`] takes text and gives text. [`Model`] below it takes and gives token ids:
//! [`Model::generate`] is an iterator of [`Token`]s over the [`TokenSource`] trait, and
//! [`Model::forward`] one step of it. Everything that can go wrong is an [`Error`] that names what
//! is wrong; [`Error::hint`] says what to do.
//!
//! Data flows one way through the modules: `hub` finds a model's folder, [`config`] and
//! [`checkpoint`] read its files, [`weights`] maps tensors to parameters, the model turns token ids
//! into logits, [`sampler`] turns logits into a token, [`tokenizer`], [`chat`] and [`stop`] turn
//! tokens into text and back.

#![cfg_attr(doctest, doc = include_str!("../README.md"))]
#![cfg_attr(doctest, doc = include_str!("../docs/engine.md"))]
#![cfg_attr(doctest, doc = include_str!("../docs/harmony.md"))]
#![cfg_attr(all(doctest, feature = "constrain"), doc = include_str!("../docs/constrained.md"))]
#![cfg_attr(all(doctest, feature = "hub"), doc = include_str!("../docs/hub.md"))]
#![deny(missing_docs, unsafe_code, unreachable_pub)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::unreachable,
    clippy::todo,
    clippy::unimplemented
)]
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

mod attention;
mod cache;
pub mod chat;
mod chat_completion;
pub mod checkpoint;
mod completion;
pub mod config;
#[cfg(feature = "constrain")]
pub mod constrain;
pub mod engine;
mod error;
mod fingerprint;
mod generate;
#[cfg(feature = "hub")]
pub mod hub;
mod linear;
mod memory;
#[allow(unsafe_code)]
mod mlx;
mod model;
mod moe;
mod prompter;
pub mod rope;
pub mod sampler;
mod session;
pub mod stop;
pub mod tokenizer;
mod visible;
pub mod weights;

pub use cache::{Cache, KvBits, KvBytes, KvPolicy};
pub use chat_completion::{Chat, ChatOptions};
pub use completion::{Completion, CompletionOptions, Piece, TextModel};
pub use config::Config;
pub use error::{Error, Result, Source, TensorMismatch};
pub use generate::{
    CancelToken, FinishReason, GenerateOptions, Generation, Timings, Token, TokenLogprob,
    TokenSource,
};
pub use memory::{MemoryCheck, MemoryEstimate, MemoryLimits, MemoryRow};
pub use mlx::Device;
pub use model::{LoadOptions, Model};
pub use sampler::Sampling;
pub use session::{Decoder, PrefixStats, PrefixStore, Session};
pub use stop::StopMatcher;
pub use tokenizer::Tokenizer;
pub use visible::Visible;
