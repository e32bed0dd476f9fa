//! The command line.

use std::env;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::HeaderValue;
use clap::Parser;
use gpt_oss_mlx::engine::EngineOptions;
use gpt_oss_mlx::{KvBits, KvPolicy, LoadOptions};
use tracing::level_filters::LevelFilter;

use crate::failure::Failure;
use crate::state::Settings;

/// The model that comes with the library.
const BUNDLED_MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");
/// Where a key is looked for that is not to be seen in the list of processes.
const KEY_VARIABLE: &str = "GPT_OSS_API_KEY";

/// Serve a GPT-OSS model to clients of OpenAI's API.
///
/// Prints the address to stdout once it is ready; the log goes to stderr. There is a page to chat
/// with at the address itself.
#[derive(Debug, Parser)]
#[command(name = "serve")]
pub struct Args {
    /// A model's folder, or OWNER/NAME[@REVISION] on the Hugging Face Hub, which is downloaded once
    #[arg(long, value_name = "NAME_OR_DIR", default_value = BUNDLED_MODEL)]
    pub model: String,
    /// The model's name for clients [default: its own, or the folder's]
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,
    /// Address to listen at; without an API key only this machine should reach it
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub host: IpAddr,
    /// Port to listen at; 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = 8080)]
    pub port: u16,
    /// Key that clients have to show [default: the environment variable GPT_OSS_API_KEY]
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Let web pages of this origin ask, such as http://localhost:5173, or * for all; repeatable
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Vec<HeaderValue>,
    /// Most bytes of a request
    #[arg(long, value_name = "N", default_value_t = 8 << 20)]
    max_body: usize,
    /// Most tokens of a request and its answer together [default: the model's limit]
    #[arg(long, value_name = "N")]
    max_context: Option<usize>,
    /// Tokens of an answer, reasoning included, when a request does not say how many
    #[arg(long, value_name = "N", default_value_t = 4096)]
    max_tokens: usize,
    /// Most requests that are computed at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    max_running: usize,
    /// Most requests that wait; one more is refused with status 429
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_waiting: usize,
    /// Most seconds for a request
    #[arg(long, value_name = "S", default_value_t = 600.0, value_parser = seconds)]
    timeout: f64,
    /// Most seconds for a client to send a request, and to leave a connection unused
    #[arg(long, value_name = "S", default_value_t = 30.0, value_parser = seconds)]
    read_timeout: f64,
    /// Most seconds for running requests to finish after SIGTERM or Ctrl-C
    #[arg(long, value_name = "S", default_value_t = 30.0, value_parser = seconds)]
    grace: f64,
    /// Keep keys and values of full layers in this many bits
    #[arg(long, value_name = "4|8|float")]
    kv_bits: Option<KvBits>,
    /// How much to log: off, error, warn, info, debug or trace; never what is asked or answered
    #[arg(long, value_name = "LEVEL", default_value_t = LevelFilter::INFO)]
    pub log: LevelFilter,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "is not a number".to_owned())?;
    match (0.0..=1e9).contains(&seconds) {
        true => Ok(seconds),
        false => Err("is not between 0 and a thousand million".into()),
    }
}

impl Args {
    /// How the engine is started with the model in a folder.
    pub fn engine_options(&self, folder: PathBuf) -> EngineOptions {
        let mut load = LoadOptions::default();
        load.kv = self.kv_bits.map_or_else(KvPolicy::default, KvPolicy::quantized);
        load.max_context = self.max_context;
        let mut options = EngineOptions::new(folder);
        options.load = load;
        options.max_running = self.max_running;
        options.max_waiting = self.max_waiting;
        options
    }

    /// How the server is to behave.
    pub fn settings(&self) -> Result<Settings, Failure> {
        let api_key = self.api_key.clone().or_else(|| env::var(KEY_VARIABLE).ok());
        if api_key.as_ref().is_some_and(String::is_empty) {
            return Err("the API key is empty".into());
        }
        // A key keeps strangers out by itself, and an address that is not this machine's own is
        // known by names that cannot be guessed here.
        let any_host = api_key.is_some() || !self.host.is_loopback();
        let hosts = match any_host {
            true => Vec::new(),
            false => ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned).into(),
        };
        Ok(Settings {
            model: self.model_name()?,
            api_key,
            cors_origins: self.cors_origin.clone(),
            max_body: self.max_body,
            max_tokens: self.max_tokens,
            timeout: Duration::from_secs_f64(self.timeout),
            read_timeout: Duration::from_secs_f64(self.read_timeout),
            hosts,
        })
    }

    fn model_name(&self) -> Result<String, Failure> {
        if let Some(name) = &self.model_name {
            return Ok(name.clone());
        }
        // A path such as `.` has its name elsewhere.
        let Ok(folder) = Path::new(&self.model).canonicalize() else {
            let (name, _revision) = self.model.split_once('@').unwrap_or((&self.model, ""));
            return Ok(name.to_owned());
        };
        let name = folder.file_name().and_then(|name| name.to_str());
        Ok(name.ok_or("the model's folder has no name: give one with --model-name")?.to_owned())
    }

    /// How long requests may go on after the server was told to stop.
    pub fn grace(&self) -> Duration {
        Duration::from_secs_f64(self.grace)
    }
}
