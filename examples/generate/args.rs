//! The command line.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Parser};
use gpt_oss_mlx::chat::{Conversation, Message, ReasoningEffort, Tool};
use gpt_oss_mlx::{
    CompletionOptions, GenerateOptions, KvBits, KvPolicy, LoadOptions, MemoryCheck, Sampling,
    Visible,
};
use serde_json::{Value, json};

use crate::failure::Failure;

/// The model that comes with the library.
const BUNDLED_MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");

/// What is asked when nothing else is: the bundled model has read the Rust book.
const DEFAULT_QUESTION: &str = "Explain Dangling References.";

/// Generate text with a GPT-OSS model.
///
/// Without options it asks the bundled model a question about Rust. The answer goes to stdout as
/// it comes, figures go to stderr.
#[derive(Debug, Parser)]
#[command(
    name = "generate",
    group = ArgGroup::new("source").args(["prompt", "prompt_ids", "prompt_file"]),
    group = ArgGroup::new("conversation")
        .args(["system", "effort", "tools", "show_analysis"])
        .multiple(true),
    group = ArgGroup::new("kv").args(["kv_bits", "kv_key_bits", "kv_value_bits"]).multiple(true),
)]
pub struct Args {
    /// A model's folder, or OWNER/NAME[@REVISION] on the Hugging Face Hub, which is downloaded once
    #[arg(long, value_name = "NAME_OR_DIR", default_value = BUNDLED_MODEL)]
    pub model: String,
    /// The user's message
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Token ids to start from, without a template
    #[arg(long, value_name = "1,2,3", value_delimiter = ',', conflicts_with = "conversation")]
    prompt_ids: Option<Vec<u32>>,
    /// A file with the user's message
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// Take the prompt as it is, without the chat template, and show everything that comes
    #[arg(long, conflicts_with = "conversation")]
    raw: bool,
    /// The system message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// How much to reason before the answer [default: the chat template's]
    #[arg(long, value_name = "low|medium|high")]
    effort: Option<ReasoningEffort>,
    /// A JSON file with a list of tools, as in OpenAI's API; a call of one ends the answer and is
    /// shown on stderr
    #[arg(long, value_name = "FILE")]
    pub tools: Option<PathBuf>,
    /// A file with a JSON Schema, alone or as in OpenAI's API: the answer is JSON that is valid by it
    #[cfg(feature = "constrain")]
    #[arg(long, value_name = "FILE", group = "conversation")]
    pub schema: Option<PathBuf>,
    /// Which of the tools may or must be called [default: any may, unchecked]
    #[cfg(feature = "constrain")]
    #[arg(
        long,
        value_name = "auto|none|required|NAME",
        group = "conversation",
        requires = "tools"
    )]
    pub tool_choice: Option<String>,
    /// Print the reasoning to stderr as it comes
    #[arg(long)]
    pub show_analysis: bool,
    /// Most tokens to generate
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_tokens: usize,
    /// 0 takes the likeliest token; 1 samples from the model's distribution
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Sample from the likeliest tokens that make up this probability; 1 = all
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Sample from the K likeliest tokens; 0 = all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Sample from tokens at least this probable, relative to the likeliest; 0 = all
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Seed of the random numbers; without one, every run differs
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// End the answer before this text (may be repeated)
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Prompt tokens fed at once
    #[arg(long, value_name = "N", default_value_t = 512)]
    prefill_chunk: usize,
    /// Keep keys and values of full layers in this many bits
    #[arg(long, value_name = "4|8|float")]
    kv_bits: Option<KvBits>,
    /// The same for keys alone
    #[arg(long, value_name = "4|8|float")]
    kv_key_bits: Option<KvBits>,
    /// The same for values alone
    #[arg(long, value_name = "4|8|float")]
    kv_value_bits: Option<KvBits>,
    /// Numbers of a head that share a scale: 32, 64 or 128 [default: 64]
    #[arg(long, value_name = "N", requires = "kv")]
    kv_group_size: Option<usize>,
    /// Read the first N tokens' keys and values as floats [default: 0]
    #[arg(long, value_name = "N", requires = "kv")]
    kv_start: Option<usize>,
    /// Keep the cache in this file for prompts that begin alike: made when missing, used and brought
    /// up to date when present
    #[arg(long, value_name = "FILE")]
    pub prompt_cache: Option<PathBuf>,
    /// Most tokens of prompt and answer together [default: the model's limit]
    #[arg(long, value_name = "N")]
    max_context: Option<usize>,
    /// Print what contexts of different lengths need, and what there is, without loading the model
    #[arg(long)]
    pub memory: bool,
    /// Load the model although there is too little memory for it
    #[arg(long)]
    force: bool,
    /// Report the N likeliest tokens at each step
    #[arg(long, value_name = "N")]
    pub logprobs: Option<usize>,
    /// Print all figures
    #[arg(long)]
    pub stats: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// What to start from.
#[derive(Debug)]
pub enum Prompt {
    /// Token ids.
    Ids(Vec<u32>),
    /// Text without a template.
    Raw(String),
    /// A conversation.
    Chat(Conversation),
}

impl Args {
    /// What to start from, and how to go on.
    pub fn prompt_and_options(&self) -> Result<(Prompt, CompletionOptions), Failure> {
        let prompt = self.prompt()?;
        let options = self.completion_options(&prompt)?;
        Ok((prompt, options))
    }

    /// What to start from, read from its file where it is one.
    fn prompt(&self) -> Result<Prompt, Failure> {
        if let Some(ids) = &self.prompt_ids {
            return Ok(Prompt::Ids(ids.clone()));
        }
        let text = match (&self.prompt, &self.prompt_file) {
            (Some(text), _) => text.clone(),
            (None, Some(path)) => fs::read_to_string(path)
                .map_err(|e| format!("cannot read the prompt from {}: {e}", path.display()))?,
            (None, None) => DEFAULT_QUESTION.into(),
        };
        if self.raw {
            return Ok(Prompt::Raw(text));
        }
        let system = self.system.clone().map(Message::system).into_iter();
        let mut conversation = Conversation::new(system.chain([Message::user(text)]));
        conversation.reasoning_effort = self.effort;
        if let Some(path) = &self.tools {
            conversation.tools = tools(path)?;
        }
        Ok(Prompt::Chat(conversation))
    }

    /// How the model is loaded.
    pub fn load_options(&self) -> LoadOptions {
        let mut kv = KvPolicy::default();
        let both = self.kv_bits.unwrap_or_default();
        kv.key_bits = self.kv_key_bits.unwrap_or(both);
        kv.value_bits = self.kv_value_bits.unwrap_or(both);
        kv.group_size = self.kv_group_size.unwrap_or(kv.group_size);
        kv.quantize_from = self.kv_start.unwrap_or(kv.quantize_from);
        let mut options = LoadOptions::default();
        options.kv = kv;
        options.max_context = self.max_context;
        if self.force {
            options.memory = MemoryCheck::Report;
        }
        options
    }

    /// The library's options.
    fn completion_options(&self, prompt: &Prompt) -> Result<CompletionOptions, Failure> {
        let sampling = Sampling {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            seed: self.seed.unwrap_or_else(|| RandomState::new().build_hasher().finish()),
            ..Sampling::default()
        };
        sampling.validate()?;
        let mut generate = GenerateOptions::default();
        generate.max_tokens = self.max_tokens;
        generate.prefill_chunk = self.prefill_chunk;
        generate.logprobs = self.logprobs;
        generate.sampling = sampling;
        let mut options = CompletionOptions::default();
        options.generate = generate;
        options.stop = self.stop.clone();
        options.visible = match prompt {
            Prompt::Chat(_) => Visible::Final,
            Prompt::Ids(_) | Prompt::Raw(_) => Visible::Everything,
        };
        Ok(options)
    }
}

/// The tools in a file.
fn tools(path: &Path) -> Result<Vec<Tool>, Failure> {
    let failed = |e: &dyn std::fmt::Display| {
        Failure::from(format!("cannot read the tools from {}: {e}", path.display()))
    };
    let text = fs::read_to_string(path).map_err(|e| failed(&e))?;
    let list: Value = serde_json::from_str(&text).map_err(|e| failed(&e))?;
    // As part of a conversation, so that errors name the place.
    let conversation = json!({"messages": [{"role": "user", "content": ""}], "tools": list});
    Ok(Conversation::from_json(&conversation).map_err(|e| failed(&e))?.tools)
}
