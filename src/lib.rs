//! GPT-OSS in-process on Apple's MLX: load a model folder, generate tokens, no Python.
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
pub mod checkpoint;
mod completion;
pub mod config;
mod error;
mod generate;
mod linear;
#[allow(unsafe_code)]
mod mlx;
mod model;
mod moe;
pub mod rope;
pub mod sampler;
pub mod stop;
pub mod tokenizer;
pub mod weights;

pub use cache::Cache;
pub use completion::{Completion, CompletionOptions, Piece, TextModel, Visible};
pub use config::Config;
pub use error::{Error, Result, Source, TensorMismatch};
pub use generate::{
    CancelToken, FinishReason, GenerateOptions, Generation, Timings, Token, TokenLogprob,
    TokenSource,
};
pub use mlx::Device;
pub use model::{Decoder, LoadOptions, Model};
pub use sampler::Sampling;
pub use stop::StopMatcher;
pub use tokenizer::Tokenizer;
