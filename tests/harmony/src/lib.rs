//! GPT-OSS's real vocabulary, for openai-harmony and for this project, and the sources of this
//! project that are compared with openai-harmony.

#![allow(dead_code, unreachable_pub)]

use std::path::Path;
use std::sync::OnceLock;

use openai_harmony::{HarmonyEncoding, HarmonyEncodingName, load_harmony_encoding};

#[path = "../../../src/chat/mod.rs"]
pub mod chat;
#[path = "../../../src/error.rs"]
mod error;
#[path = "../../../src/stop.rs"]
pub mod stop;
#[path = "../../../src/tokenizer.rs"]
pub mod tokenizer;

pub use error::{Error, Result};
pub use stop::StopMatcher;
pub use tokenizer::Tokenizer;

/// Where the build script wrote `o200k_base.tiktoken` and `tokenizer.json`.
const VOCABULARY: &str = env!("TIKTOKEN_ENCODINGS_BASE");

/// The official encoding.
pub fn harmony() -> &'static HarmonyEncoding {
    static ENCODING: OnceLock<HarmonyEncoding> = OnceLock::new();
    ENCODING.get_or_init(|| {
        let set = std::env::var("TIKTOKEN_ENCODINGS_BASE");
        assert_eq!(set.as_deref(), Ok(VOCABULARY), "run the tests by cargo, which sets this");
        load_harmony_encoding(HarmonyEncodingName::HarmonyGptOss).unwrap()
    })
}

/// This project's tokenizer, with the same ids.
pub fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| Tokenizer::from_dir(Path::new(VOCABULARY)).unwrap())
}
