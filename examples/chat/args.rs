//! The command line.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use clap::Parser;
use gpt_oss_mlx::chat::ReasoningEffort;
use gpt_oss_mlx::{ChatOptions, KvBits, KvPolicy, LoadOptions, Sampling};

use crate::failure::Failure;

/// The model that comes with the library.
const BUNDLED_MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");

/// Talk with a GPT-OSS model.
///
/// The answers go to stdout, everything else to stderr. Without a terminal each line of stdin is a
/// message or a command. /help lists the commands.
#[derive(Debug, Parser)]
#[command(name = "chat")]
pub struct Args {
    /// A model's folder, or OWNER/NAME[@REVISION] on the Hugging Face Hub, which is downloaded once
    #[arg(long, value_name = "NAME_OR_DIR", default_value = BUNDLED_MODEL)]
    pub model: String,
    /// The system message
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// How much to reason before an answer [default: the chat template's]
    #[arg(long, value_name = "low|medium|high")]
    pub effort: Option<ReasoningEffort>,
    /// Show the reasoning
    #[arg(long)]
    pub show_analysis: bool,
    /// Most tokens of an answer, reasoning included; in a turn with tools, of each of its parts
    #[arg(long, value_name = "N", default_value_t = 4096)]
    max_tokens: usize,
    /// 0 takes the likeliest token; 1 samples from the model's distribution
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Sample from the likeliest tokens that make up this probability; 1 = all
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Seed of the random numbers, counted up from answer to answer; without one, every run differs
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Keep keys and values of full layers in this many bits
    #[arg(long, value_name = "4|8|float")]
    kv_bits: Option<KvBits>,
    /// Most tokens of the conversation [default: the model's limit]
    #[arg(long, value_name = "N")]
    max_context: Option<usize>,
}

impl Args {
    /// How the model is loaded.
    pub fn load_options(&self) -> LoadOptions {
        let mut options = LoadOptions::default();
        options.kv = self.kv_bits.map_or_else(KvPolicy::default, KvPolicy::quantized);
        options.max_context = self.max_context;
        options
    }

    /// How an answer is generated.
    pub fn chat_options(&self) -> Result<ChatOptions, Failure> {
        let mut options = ChatOptions::default();
        options.generate.max_tokens = self.max_tokens;
        options.generate.sampling = Sampling {
            temperature: self.temperature,
            top_p: self.top_p,
            seed: self.seed.unwrap_or_else(|| RandomState::new().build_hasher().finish()),
            ..Sampling::default()
        };
        options.generate.sampling.validate()?;
        Ok(options)
    }
}
