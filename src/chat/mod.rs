//! Conversations: messages, the model's chat template, and the channels of its answer.
//!
//! GPT-OSS speaks the Harmony format: every message has a header (`<|start|>`, a role, and for
//! the model's own messages a channel) and a body, marked off by control tokens. [`Conversation`]
//! holds what was said, [`template`] writes it in that format, [`harmony`] takes the model's turn
//! apart into [`events`], and [`tool_loop`] lets it call tools.

mod conversation;
pub mod events;
mod filters;
mod guard;
pub mod harmony;
mod header;
mod json;
mod limits;
mod protect;
pub mod template;
mod timeout;
pub mod tool_loop;
mod tools;
mod turn;
mod wire;

pub use conversation::{
    AssistantMessage, BuiltinTool, Conversation, Message, ReasoningEffort, Role, ToolCall,
    ToolMessage,
};
pub use tools::Tool;
pub use turn::{Turn, TurnBuilder};
