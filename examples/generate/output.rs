//! What is printed: the answer's JSON object, figures, failures.

use std::io::{self, Write};
use std::time::Duration;

use gpt_oss_mlx::chat::events::EndReason;
use gpt_oss_mlx::{FinishReason, Model, Piece, Session, Timings, TokenLogprob};
use serde::Serialize;

use crate::args::Args;
use crate::turn::{Done, Said};

/// Prints a line to stderr. Unlike `eprintln!` it does not panic when nobody reads there.
macro_rules! say {
    ($($message:tt)*) => {{
        let _ = writeln!(io::stderr(), $($message)*);
    }};
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    model: String,
    prompt_tokens: &'a [u32],
    tokens: &'a [u32],
    text: &'a str,
    finish_reason: &'static str,
    /// With the chat template: what the answer consists of.
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<&'a [Said]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<Vec<Logprob>>>,
    timings: Figures,
    kv: Kv,
}

/// The cache at the end.
#[derive(Debug, Serialize)]
pub struct Kv {
    /// All that it holds: rows allocated ahead and snapshots included.
    bytes: usize,
    /// What each further token adds.
    bytes_per_token: u64,
    cached_prompt_tokens: usize,
    /// With `--prompt-cache`: seconds that the file saved.
    #[serde(skip_serializing_if = "Option::is_none")]
    saved_s: Option<f64>,
}

impl Kv {
    /// The figures of a session that has been used.
    pub fn new(
        model: &Model,
        session: &Session,
        timings: &Timings,
        saved: Option<Duration>,
    ) -> Self {
        let policy = session.cache().policy();
        Self {
            bytes: session.cache().nbytes(),
            bytes_per_token: policy.bytes_per_token(model.config(), model.activation_bytes()),
            cached_prompt_tokens: timings.cached_prompt_tokens,
            saved_s: saved.map(|saved| saved.as_secs_f64()),
        }
    }
}

#[derive(Debug, Serialize)]
struct Logprob {
    id: u32,
    logprob: f32,
}

#[derive(Debug, Serialize)]
struct Figures {
    load_s: f64,
    prefill_s: f64,
    prefill_tokens_per_s: f64,
    decode_s: f64,
    decode_tokens_per_s: f64,
    time_to_first_token_s: f64,
    peak_memory_bytes: usize,
}

/// Collects what is printed at the end.
#[derive(Debug)]
pub struct Report<'a> {
    args: &'a Args,
    prompt: &'a [u32],
    load_time: Duration,
    tokens: Vec<u32>,
    logprobs: Vec<Vec<TokenLogprob>>,
    text: String,
}

impl<'a> Report<'a> {
    /// A report of an answer that has not begun.
    pub fn new(args: &'a Args, prompt: &'a [u32], load_time: Duration) -> Self {
        let (tokens, logprobs, text) = Default::default();
        Self { args, prompt, load_time, tokens, logprobs, text }
    }

    /// Notes what came.
    pub fn add(&mut self, piece: &Piece) {
        self.text.push_str(&piece.text);
        if let Some(token) = &piece.token {
            self.tokens.push(token.id);
            self.logprobs.push(token.logprobs.clone());
        }
    }

    /// Prints the object to stdout, or the line's end after the text; figures to stderr.
    pub fn finish(
        &self,
        finish_reason: FinishReason,
        turn: Option<Done>,
        timings: Timings,
        kv: Kv,
        stdout: &mut impl Write,
    ) -> io::Result<()> {
        let figures = self.figures(&timings);
        let details = self.details(&timings, &kv);
        let stats = self.args.stats || !self.args.json;
        let reason = turn.as_ref().map_or(finish_reason.as_str(), |turn| turn.reason.as_str());
        let line = figures.line(&timings, reason, &kv);
        if self.args.json {
            let answer = Answer {
                model: self.args.model.clone(),
                prompt_tokens: self.prompt,
                tokens: &self.tokens,
                text: &self.text,
                // A call is among the messages; the reason stays one of the three documented.
                finish_reason: finish_reason.as_str(),
                messages: turn.as_ref().map(|turn| turn.messages.as_slice()),
                logprobs: self.args.logprobs.map(|_| self.logprobs()),
                timings: figures,
                kv,
            };
            serde_json::to_writer(&mut *stdout, &answer)?;
        } else {
            self.print_logprobs();
        }
        let called = reason == EndReason::ToolCalls.as_str();
        if self.args.json || !(self.text.ends_with('\n') || called && self.text.is_empty()) {
            writeln!(stdout)?;
        }
        stdout.flush()?;
        if self.text.is_empty() && finish_reason == FinishReason::Length {
            say!("no answer yet after {} tokens: raise --max-tokens", self.tokens.len());
        }
        if stats {
            say!("{line}");
        }
        if self.args.stats {
            say!("{details}");
        }
        Ok(())
    }

    fn logprobs(&self) -> Vec<Vec<Logprob>> {
        let plain = |&TokenLogprob { id, logprob, .. }: &TokenLogprob| Logprob { id, logprob };
        self.logprobs.iter().map(|top| top.iter().map(plain).collect()).collect()
    }

    /// Without `--json`, log-probabilities go to stderr, a line for each token.
    fn print_logprobs(&self) {
        for (id, top) in self.tokens.iter().zip(&self.logprobs) {
            if !top.is_empty() {
                let top = top.iter().map(|t| format!("{} {:.4}", t.id, t.logprob));
                say!("{id}: {}", top.collect::<Vec<_>>().join(", "));
            }
        }
    }

    fn figures(&self, timings: &Timings) -> Figures {
        Figures {
            load_s: self.load_time.as_secs_f64(),
            prefill_s: timings.prefill.as_secs_f64(),
            prefill_tokens_per_s: timings.prefill_tokens_per_second(),
            decode_s: timings.decode.as_secs_f64(),
            decode_tokens_per_s: timings.decode_tokens_per_second(),
            time_to_first_token_s: timings.time_to_first_token.as_secs_f64(),
            peak_memory_bytes: timings.peak_memory,
        }
    }

    fn details(&self, timings: &Timings, kv: &Kv) -> String {
        let seconds = |time: Duration| format!("{:9.3} s", time.as_secs_f64());
        [
            format!("load                {}", seconds(self.load_time)),
            format!("prefill             {}", seconds(timings.prefill)),
            format!("time to first token {}", seconds(timings.time_to_first_token)),
            format!("decode              {}", seconds(timings.decode)),
            format!("peak memory         {:9} bytes", timings.peak_memory),
            format!("cache               {:9} bytes, {} per token", kv.bytes, kv.bytes_per_token),
        ]
        .join("\n")
    }
}

impl Figures {
    fn line(&self, timings: &Timings, finish_reason: &str, kv: &Kv) -> String {
        let cached = match kv.saved_s {
            None => String::new(),
            Some(saved) => {
                format!(", {} of them cached, {saved:.3} s saved", kv.cached_prompt_tokens)
            }
        };
        format!(
            "prompt {} tokens{cached}, {:.1} tok/s | generated {} tokens, {:.1} tok/s | first token {:.3} s \
             | peak {:.1} MB | {}",
            timings.prompt_tokens,
            self.prefill_tokens_per_s,
            timings.generated_tokens,
            self.decode_tokens_per_s,
            self.time_to_first_token_s,
            self.peak_memory_bytes as f64 / 1e6,
            finish_reason,
        )
    }
}

/// Something that the user should know and that stops nothing.
pub fn print_warning(message: &str) {
    say!("warning: {message}");
}

/// An explanation, which is whole.
pub fn print_failure(explanation: &str) {
    say!("{explanation}");
}
