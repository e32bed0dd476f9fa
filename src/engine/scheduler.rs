//! The engine's loop: requests join and leave between steps.
//!
//! Each round takes what the handles have sent, lets in what fits, computes one chunk of one prompt,
//! or several short ones, and one token of every request whose prompt is through. A long prompt so
//! holds up the others for one chunk at a time. Requests are let in in the order in which they came,
//! and prompts take turns. One that pauses for its reader leaves its place in the batch to another,
//! but keeps its cache.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use super::events::EngineEvent;
use super::options::{EngineOptions, Shutdown};
use super::output::Output;
use super::prepare::{Head, Prepared};
use super::running::{Outcome, Running, decode};
use super::shared::{Command, Early, Shared};
use super::stats::EngineStats;
use crate::error::{Error, Result};
use crate::generate::{FinishReason, GenerateOptions, Steps};
use crate::mlx;
use crate::model::Model;
use crate::session::{Decoder, PrefixStore};

/// How often requests that can go no further are looked at: a cancellation by a token wakes nobody.
const LOOK: Duration = Duration::from_millis(20);

const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A request whose turn has not come.
struct Waiting {
    head: Head,
    steps: Steps,
    branch_points: Vec<usize>,
    output: Output,
    /// Bytes that its cache may come to.
    bytes: u64,
}

pub(super) struct Scheduler<'a> {
    model: &'a Model,
    commands: Receiver<Command>,
    shared: Arc<Shared>,
    max_running: usize,
    /// Most requests that may pause beside those that run.
    max_paused: usize,
    prefill_chunk: usize,
    cache_bytes: u64,
    prefixes: PrefixStore,
    waiting: VecDeque<Waiting>,
    running: Vec<Running<'a>>,
    /// Turns given so far.
    turns: u64,
    /// When what is left is cancelled; set once the engine is to end.
    end: Option<Instant>,
    stats: EngineStats,
}

impl<'a> Scheduler<'a> {
    pub(super) fn new(
        model: &'a Model,
        options: &EngineOptions,
        commands: Receiver<Command>,
        shared: Arc<Shared>,
    ) -> Self {
        // Whoever loads a model that does not fit has decided against limits of memory.
        let estimate = model.memory_estimate().filter(|estimate| estimate.fits());
        let left = estimate.and_then(|estimate| {
            let others = estimate.weights.saturating_add(estimate.working);
            estimate.available.map(|available| available.saturating_sub(others))
        });
        let cache_bytes = options.cache_bytes.or(left).unwrap_or(u64::MAX);
        let prefix_bytes = usize::try_from(options.prefix_bytes.min(cache_bytes));
        Self {
            model,
            commands,
            shared,
            max_running: options.max_running,
            max_paused: options.max_waiting,
            prefill_chunk: options.prefill_chunk,
            cache_bytes,
            prefixes: PrefixStore::new(prefix_bytes.unwrap_or(usize::MAX)),
            waiting: VecDeque::new(),
            running: Vec::new(),
            turns: 0,
            end: None,
            stats: EngineStats::default(),
        }
    }

    /// Works until it is told to end, or nobody is left who could ask.
    pub(super) fn run(mut self, working: &mut mlx::Working) {
        // For those who ask before anything was to be done.
        self.report();
        while self.take_commands(working) {
            if mlx::is_exiting() {
                self.running.iter_mut().for_each(|running| running.steps.wait());
                working.pause(|| ());
            }
            self.look_around();
            self.admit();
            self.prefill();
            self.decode();
            self.sweep();
            self.report();
        }
        // Those whose readers went away with the last handle: nothing may be computed any more when
        // the model goes.
        self.running.iter_mut().for_each(|running| running.steps.wait());
    }

    /// Takes what the handles have sent; waits for it when there is nothing to compute. False when
    /// the engine is to end.
    fn take_commands(&mut self, working: &mut mlx::Working) -> bool {
        loop {
            let idle = self.waiting.is_empty() && self.running.is_empty();
            // A request that is still being prepared was known before the end was asked for.
            if idle && self.end.is_some() && self.shared.waiting() == 0 {
                return false;
            }
            let command = if self.can_work() {
                match self.commands.try_recv() {
                    Err(TryRecvError::Empty) => return true,
                    command => command.ok(),
                }
            } else if idle && self.end.is_none() {
                working.pause(|| self.commands.recv()).ok()
            } else {
                match self.commands.recv_timeout(LOOK) {
                    Err(RecvTimeoutError::Timeout) => return true,
                    command => command.ok(),
                }
            };
            match command {
                Some(Command::Request(request)) => self.take(*request),
                Some(Command::Ended(head, how)) => {
                    drop(head);
                    self.count(match how {
                        Early::Cancelled => Ok(FinishReason::Cancelled),
                        Early::TimedOut => Err(true),
                        Early::Failed => Err(false),
                    });
                    // It may be long until the next step.
                    self.report();
                }
                // Else nothing of what it is about would be looked at.
                Some(Command::Wake) if !self.can_work() => return true,
                Some(Command::Wake) => {}
                Some(Command::Shutdown(how)) => self.end_within(match how {
                    Shutdown::Cancel => Duration::ZERO,
                    Shutdown::Finish { within } => within,
                }),
                #[cfg(test)]
                Some(Command::Die) => panic!("told to"),
                // No handle is left, nor a stream whose request would be answered.
                None => return false,
            }
        }
    }

    fn end_within(&mut self, within: Duration) {
        self.shared.stop("it was shut down");
        // Some time that nobody will see stands for one that cannot be told.
        let now = Instant::now();
        let end = now.checked_add(within).or(now.checked_add(FOREVER)).unwrap_or(now);
        self.end = Some(self.end.map_or(end, |before| before.min(end)));
    }

    /// True when there is something to compute, or to let in.
    fn can_work(&mut self) -> bool {
        let now = Instant::now();
        let due = |running: &mut Running<'_>| {
            running.look_around(now);
            running.is_over() || running.can_prefill() || running.can_decode()
        };
        self.running.iter_mut().any(due) || self.fits()
    }

    /// Checks a request and puts it at the end of the queue.
    fn take(&mut self, request: Prepared) {
        let Prepared { mut head, prompt, branch_points, generate, output } = request;
        match self.check(&prompt, &generate) {
            Ok((steps, bytes)) => {
                let ahead = self.waiting.len();
                head.outlet.send(EngineEvent::Queued { prompt_tokens: prompt.len(), ahead });
                self.waiting.push_back(Waiting { head, steps, branch_points, output, bytes });
            }
            Err(error) => {
                self.count(Err(false));
                head.fail(error);
                self.report();
            }
        }
    }

    /// Counts a request by how it ended: why, or whether it was for its time that it failed.
    fn count(&mut self, reason: std::result::Result<FinishReason, bool>) {
        let stats = &mut self.stats;
        let count = match reason {
            Ok(FinishReason::Stop) => &mut stats.stopped,
            Ok(FinishReason::Length) => &mut stats.at_length,
            Ok(FinishReason::Cancelled) => &mut stats.cancelled,
            Err(true) => &mut stats.timed_out,
            Err(false) => &mut stats.failed,
        };
        *count = count.saturating_add(1);
    }

    fn check(&self, prompt: &[u32], generate: &GenerateOptions) -> Result<(Steps, u64)> {
        let mut generate = generate.clone();
        generate.prefill_chunk = generate.prefill_chunk.min(self.prefill_chunk);
        let steps = Steps::new(&self.model.decoder(), prompt, &generate)?;
        let tokens = prompt.len().saturating_add(steps.max_tokens());
        let bytes = self.cache_bytes_of(tokens);
        if bytes > self.cache_bytes {
            let limit = self.cache_bytes;
            let reason = format!(
                "a cache of {tokens} tokens, the prompt's included, takes {bytes} bytes, and the \
                 engine has {limit}"
            );
            return Err(Error::argument("max_tokens", reason));
        }
        Ok((steps, bytes))
    }

    /// Bytes that the cache of a request comes to, with a snapshot every so many tokens and those
    /// where its prompt ends and where others may branch off.
    fn cache_bytes_of(&self, tokens: usize) -> u64 {
        let (config, item_size) = (self.model.config(), self.model.activation_bytes());
        let policy = self.model.kv_policy();
        let bytes = policy.bytes(config, tokens, item_size);
        let regular = tokens.checked_div(policy.snapshot_every).unwrap_or(0);
        let count = u64::try_from(regular.saturating_add(4)).unwrap_or(u64::MAX);
        let snapshots = policy.one_snapshot(config, tokens, item_size).saturating_mul(count);
        bytes.full.saturating_add(bytes.sliding).saturating_add(snapshots.min(bytes.snapshots))
    }

    fn reserved(&self) -> u64 {
        self.running.iter().fold(0, |sum, running| running.reserved.saturating_add(sum))
    }

    /// Whether the request that waits longest can begin. Kept prefixes give way to it.
    fn fits(&self) -> bool {
        let fits = |next: &Waiting| self.reserved().saturating_add(next.bytes) <= self.cache_bytes;
        let paused = self.running.iter().filter(|running| running.is_paused()).count();
        // More may be there once those that paused go on; they then take turns.
        self.running.len() < self.max_running.saturating_add(paused.min(self.max_paused))
            && self.waiting.front().is_some_and(fits)
    }

    /// Ends what was cancelled or is late.
    fn look_around(&mut self) {
        let now = Instant::now();
        if self.end.is_some_and(|end| now >= end) {
            self.shared.abandon();
            self.running.iter_mut().for_each(|running| running.steps.cancel());
            self.waiting.iter_mut().for_each(|waiting| waiting.steps.cancel());
        }
        self.running.iter_mut().for_each(|running| running.look_around(now));
        let mut at = 0;
        while let Some(waiting) = self.waiting.get_mut(at) {
            let gone = waiting.head.outlet.is_cancelled() || waiting.steps.ended_by_cancel();
            if !gone && waiting.head.late(now).is_none() {
                at = at.saturating_add(1);
            } else if let Some(waiting) = self.waiting.remove(at) {
                self.end_waiting(waiting, now);
            }
        }
    }

    /// Ends a request that has not begun.
    fn end_waiting(&mut self, waiting: Waiting, now: Instant) {
        let Waiting { head, steps, output, .. } = waiting;
        let mut running = Running::new(head, steps, self.model.decoder(), output, 0);
        running.look_around(now);
        self.end_request(running);
    }

    /// Lets in what fits, in order.
    fn admit(&mut self) {
        while self.fits() {
            let Some(waiting) = self.waiting.pop_front() else { return };
            let Waiting { mut head, steps, branch_points, output, bytes } = waiting;
            head.leave_queue();
            let mut session = self.prefixes.session_for(self.model, steps.prompt());
            session.set_branch_points(branch_points);
            let left = self.cache_bytes.saturating_sub(self.reserved()).saturating_sub(bytes);
            self.prefixes.shrink_to(usize::try_from(left).unwrap_or(usize::MAX));
            let decoder = Decoder::of(self.model, session);
            let mut running = Running::new(head, steps, decoder, output, bytes);
            running.fed = self.next_turn();
            self.running.push(running);
        }
    }

    fn next_turn(&mut self) -> u64 {
        self.turns = self.turns.saturating_add(1);
        self.turns
    }

    /// Computes a chunk of one prompt: of the one that has waited longest since its last, or since it
    /// was let in. Nobody who comes later can keep it waiting. Short prompts go together, as many as
    /// a chunk has tokens: those who run wait no longer for them, and share steps with them sooner.
    fn prefill(&mut self) {
        let turn = self.next_turn();
        let mut room = self.prefill_chunk;
        loop {
            let prompts = self.running.iter_mut().filter(|running| running.can_prefill());
            let next = prompts.min_by_key(|running| running.fed);
            let Some(next) = next.filter(|next| next.fed < turn) else { return };
            let tokens = next.steps.next_chunk();
            if tokens > room && room < self.prefill_chunk {
                return;
            }
            room = room.saturating_sub(tokens);
            next.fed = turn;
            // An error is noted where it belongs; this one is of finding the device.
            let done = self.model.device().run(|| {
                next.prefill();
                Ok(())
            });
            if let Err(error) = done {
                next.error = Some(error);
            }
        }
    }

    /// Computes a token of each, or of those that have waited longest when there are more than may
    /// run.
    fn decode(&mut self) {
        let turn = self.next_turn();
        let mut rows: Vec<_> = self.running.iter_mut().filter(|r| r.can_decode()).collect();
        if rows.len() > self.max_running {
            rows.sort_by_key(|running| running.stepped);
            rows.truncate(self.max_running);
        }
        if !rows.is_empty() {
            rows.iter_mut().for_each(|running| running.stepped = turn);
            decode(&mut rows);
            if self.stats.steps == 0 {
                // It has made what MLX keeps for the steps to come.
                mlx::hold_exit();
            }
            self.stats.steps = self.stats.steps.saturating_add(1);
        }
    }

    /// Takes out what is over.
    fn sweep(&mut self) {
        let mut at = 0;
        while let Some(running) = self.running.get(at) {
            if !running.is_over() {
                at = at.saturating_add(1);
                continue;
            }
            let running = self.running.remove(at);
            self.end_request(running);
        }
        if self.running.is_empty() && self.waiting.is_empty() {
            // What MLX keeps for reuse; it is not for the engine to hold on to while it is idle.
            mlx::clear_cache().ok();
        }
    }

    fn end_request(&mut self, running: Running<'a>) {
        let device = self.model.device();
        let (decoder, Outcome { reason, usage, begun }) = running.finish();
        self.count(reason);
        let stats = &mut self.stats;
        let counts = [
            (&mut stats.prompt_tokens, if begun { usage.prompt_tokens } else { 0 }),
            (&mut stats.cached_tokens, usage.cached_tokens),
            (&mut stats.generated_tokens, usage.completion_tokens),
        ];
        for (sum, n) in counts {
            *sum = sum.saturating_add(u64::try_from(n).unwrap_or(u64::MAX));
        }
        if reason != Err(false)
            && let Some(session) = decoder.into_session()
        {
            // A session that cannot be kept is no loss but of time.
            device.run(|| Ok(self.prefixes.keep(&session))).ok();
            let left = self.cache_bytes.saturating_sub(self.reserved());
            self.prefixes.shrink_to(usize::try_from(left).unwrap_or(usize::MAX));
        }
    }

    fn report(&mut self) {
        let mut stats = self.stats.clone();
        stats.running = self.running.len();
        stats.prefilling = self.running.iter().filter(|r| !r.steps.is_fed()).count();
        stats.paused = self.running.iter().filter(|running| running.is_paused()).count();
        stats.reserved_bytes = self.reserved();
        stats.prefixes = self.prefixes.stats();
        stats.active_memory = mlx::held_memory().map(|(active, _)| active).unwrap_or(0);
        self.shared.set_stats(stats);
    }
}

impl Drop for Scheduler<'_> {
    fn drop(&mut self) {
        // Before the streams see that they are left alone.
        if thread::panicking() {
            self.shared.stop("its thread panicked");
        }
    }
}
