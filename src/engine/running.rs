//! A request that is computed.

use std::time::{Duration, Instant};

use super::events::{EngineEvent, Usage};
use super::output::Output;
use super::prepare::Head;
use crate::chat::events::Part;
use crate::error::{Error, Result};
use crate::generate::{FinishReason, Steps, Token, TokenSource};
use crate::session::Decoder;

/// A request with its place in the batch.
pub(super) struct Running<'a> {
    pub(super) head: Head,
    pub(super) steps: Steps,
    pub(super) decoder: Decoder<'a>,
    output: Output,
    /// Bytes set aside for its cache.
    pub(super) reserved: u64,
    /// When its prompt, and it in a step, had its last turn.
    pub(super) fed: u64,
    pub(super) stepped: u64,
    /// Tokens of reasoning so far.
    reasoning: usize,
    /// When its computation began.
    started: Option<Instant>,
    /// What went wrong.
    pub(super) error: Option<Error>,
}

impl<'a> Running<'a> {
    pub(super) fn new(
        head: Head,
        steps: Steps,
        decoder: Decoder<'a>,
        output: Output,
        reserved: u64,
    ) -> Self {
        Self {
            head,
            steps,
            decoder,
            output,
            reserved,
            fed: 0,
            stepped: 0,
            reasoning: 0,
            started: None,
            error: None,
        }
    }

    /// True when nothing more is to be computed.
    pub(super) fn is_over(&self) -> bool {
        self.error.is_some() || self.steps.finish_reason().is_some()
    }

    /// True when it goes on only after its reader has made room.
    pub(super) fn is_paused(&self) -> bool {
        !self.is_over() && !self.head.outlet.has_room()
    }

    /// True when part of its prompt can be computed.
    pub(super) fn can_prefill(&self) -> bool {
        !self.is_over() && !self.steps.is_fed() && self.head.outlet.has_room()
    }

    /// True when its next token can be computed.
    pub(super) fn can_decode(&self) -> bool {
        !self.is_over() && self.steps.is_fed() && self.head.outlet.has_room()
    }

    /// Notes that nobody waits for it any more, or that its time is over.
    pub(super) fn look_around(&mut self, now: Instant) {
        if self.is_over() {
            return;
        }
        if self.head.outlet.is_cancelled() {
            self.steps.cancel();
        } else if !self.steps.ended_by_cancel() {
            self.error = self.head.late(now);
        }
    }

    /// Computes a chunk of the prompt.
    pub(super) fn prefill(&mut self) {
        self.started.get_or_insert_with(Instant::now);
        match self.steps.feed(&mut self.decoder) {
            Ok(()) if self.steps.finish_reason().is_none() => {
                let (done, total) = self.steps.progress();
                self.head.outlet.send(EngineEvent::Prefill { done, total });
            }
            Ok(()) => {}
            Err(error) => self.error = Some(error),
        }
    }

    /// Reads the token at a position and gives out what it makes known.
    pub(super) fn read(&mut self, position: usize) {
        let token = match self.steps.read(position) {
            Ok(Some(token)) => token,
            Ok(None) => return,
            Err(error) => {
                self.error = Some(error);
                return;
            }
        };
        if let Err(error) = self.give(token) {
            self.error = Some(error);
        }
    }

    fn give(&mut self, token: Token) -> Result<()> {
        let stops = self.steps.finish_reason() == Some(FinishReason::Stop);
        let mut events = Vec::new();
        let (part, stopped) = self.output.push(token, stops, &mut events)?;
        if stopped {
            self.steps.stop();
        }
        if part == Part::Analysis {
            self.reasoning = self.reasoning.saturating_add(1);
        }
        events.into_iter().for_each(|event| self.head.outlet.send(event));
        Ok(())
    }

    /// Gives the last event. Returns what is left of the request: its sequence.
    pub(super) fn finish(mut self) -> (Decoder<'a>, Outcome) {
        self.steps.wait();
        self.head.leave_queue();
        let (usage, begun) = (self.usage(), self.started.is_some());
        let reason = match (self.error, self.steps.finish_reason()) {
            (None, reason) => {
                let mut events = Vec::new();
                let reason = reason.unwrap_or(FinishReason::Cancelled);
                let reason = self.output.finish(reason, &mut events);
                events.push(EngineEvent::Finished { reason, usage });
                events.into_iter().for_each(|event| self.head.outlet.send(event));
                Ok(reason)
            }
            (Some(error), _) => {
                let timed_out = matches!(error, Error::TimedOut { .. });
                self.head.fail(error);
                Err(timed_out)
            }
        };
        (self.decoder, Outcome { reason, usage, begun })
    }

    fn usage(&self) -> Usage {
        let timings = self.steps.timings();
        let started = self.started.unwrap_or_else(Instant::now);
        let queued = started.saturating_duration_since(self.head.submitted);
        let to_first = match timings.generated_tokens {
            0 => Duration::ZERO,
            _ => queued.saturating_add(timings.time_to_first_token),
        };
        Usage {
            prompt_tokens: timings.prompt_tokens,
            cached_tokens: timings.cached_prompt_tokens,
            completion_tokens: timings.generated_tokens,
            reasoning_tokens: self.reasoning,
            queued,
            prefill: timings.prefill,
            decode: timings.decode,
            time_to_first_token: to_first,
        }
    }
}

/// How a request ended.
pub(super) struct Outcome {
    /// Why, or whether it was for its time that it failed.
    pub(super) reason: std::result::Result<FinishReason, bool>,
    pub(super) usage: Usage,
    /// Whether anything was computed for it.
    pub(super) begun: bool,
}

/// One decoding step of several requests: one forward pass for all of them, after which each reads
/// its token. What goes wrong with one is noted there, and what goes wrong with all at each.
pub(super) fn decode(rows: &mut [&mut Running<'_>]) {
    let Some(device) = rows.first().map(|row| row.decoder.device()) else { return };
    let positions: Vec<usize> = rows.iter().map(|row| row.decoder.position()).collect();
    let queued = device.run(|| queue(rows));
    if let Err(error) = queued {
        for row in rows.iter_mut().filter(|row| row.error.is_none()) {
            row.error = Some(again(&error));
        }
        return;
    }
    let read = device.run(|| {
        for (row, position) in rows.iter_mut().zip(positions) {
            if row.error.is_none() {
                row.read(position);
            }
        }
        Ok(())
    });
    if let Err(error) = read {
        rows.iter_mut().for_each(|row| row.error = Some(again(&error)));
    }
}

/// Queues the step after the tokens that are about to be read.
fn queue(rows: &mut [&mut Running<'_>]) -> Result<()> {
    let mut going = Vec::new();
    let mut batch = Vec::new();
    for Running { steps, decoder, error, .. } in rows.iter_mut().map(|row| &mut **row) {
        let Some(token) = steps.input().cloned() else { continue };
        match decoder.check_step() {
            Ok(()) => {
                batch.push((decoder, token));
                going.push((steps, error));
            }
            Err(refused) => *error = Some(refused),
        }
    }
    if batch.is_empty() {
        return Ok(());
    }
    let logits = Decoder::step_many(&mut batch)?;
    for ((steps, error), logits) in going.iter_mut().zip(logits) {
        if let Err(failed) = steps.give(logits) {
            **error = Some(failed);
        }
    }
    Ok(mlx_rs::transforms::async_eval(going.iter().flat_map(|(steps, _)| steps.queued()))?)
}

/// An error that several requests share.
fn again(error: &Error) -> Error {
    match error {
        Error::Mlx { op, message } => Error::Mlx { op, message: message.clone() },
        other => Error::Mlx { op: "step", message: other.to_string() },
    }
}
