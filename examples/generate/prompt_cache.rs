//! `--prompt-cache`: the session in a file, and what that saves.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use gpt_oss_mlx::{Model, Session, Timings};

use crate::failure::Failure;

/// What a file held, and what reading it took.
#[derive(Debug)]
pub struct Stored {
    tokens: usize,
    /// What computing those tokens takes.
    prefill: Duration,
    load: Duration,
}

/// The session that goes on: the file's where there is one, else an empty one.
pub fn open(model: &Model, path: Option<&Path>) -> Result<(Session, Option<Stored>), Failure> {
    let Some(path) = path else { return Ok((Session::new(model), None)) };
    let started = Instant::now();
    let session = match Session::load(model, path) {
        Err(gpt_oss_mlx::Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Session::new(model)
        }
        session => session?,
    };
    let (tokens, prefill) = (session.ids().len(), session.prefill_time());
    Ok((session, Some(Stored { tokens, prefill, load: started.elapsed() })))
}

impl Stored {
    /// The time that reusing the file saved: what the reused tokens would have taken, less reading
    /// it. Notes in the session what its tokens take now.
    pub fn used(self, session: &mut Session, timings: &Timings) -> Duration {
        let computed = timings.prompt_tokens - timings.cached_prompt_tokens;
        let share = |time: Duration, part: usize, of: usize| match of {
            0 => Duration::ZERO,
            of => time.mul_f64(part as f64 / of as f64),
        };
        // Of the two measurements the one over more tokens.
        let tokens = session.ids().len();
        session.set_prefill_time(match computed >= self.tokens {
            true => share(timings.prefill, tokens, computed),
            false => share(self.prefill, tokens, self.tokens),
        });
        let reused = share(self.prefill, timings.cached_prompt_tokens, self.tokens);
        match timings.cached_prompt_tokens {
            0 => Duration::ZERO,
            _ => reused.saturating_sub(self.load),
        }
    }
}
