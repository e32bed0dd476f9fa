//! From a request to tokens, in a thread of its own: a long prompt or a large grammar must not keep
//! the others from their next token.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use super::events::{EngineEvent, Usage};
use super::options::{ChatRequest, CompletionRequest, Prompt};
use super::output::Output;
use super::shared::{Command, Early, Shared, Ticket};
use super::stream::Outlet;
use crate::chat::events::{ChatEvent, EndReason};
use crate::error::{Error, Result};
use crate::generate::{FinishReason, GenerateOptions};
use crate::prompter::Prompter;

/// What was asked.
pub(super) enum Work {
    Chat(Box<ChatRequest>),
    Completion(Box<CompletionRequest>),
    /// For tests of what a panic leaves behind.
    #[cfg(test)]
    Panic,
}

impl Work {
    /// True when the token of its options was used.
    fn is_cancelled(&self) -> bool {
        match self {
            Self::Chat(request) => request.options.generate.cancel.is_cancelled(),
            Self::Completion(request) => request.options.generate.cancel.is_cancelled(),
            #[cfg(test)]
            Self::Panic => false,
        }
    }
}

/// A request that was taken.
pub(super) struct Submission {
    pub(super) work: Work,
    pub(super) head: Head,
}

/// What stays with a request from its beginning to its end.
pub(super) struct Head {
    pub(super) outlet: Outlet,
    ticket: Option<Ticket>,
    pub(super) submitted: Instant,
    pub(super) timeout: Option<Duration>,
}

impl Head {
    pub(super) fn new(outlet: Outlet, ticket: Ticket, timeout: Option<Duration>) -> Self {
        Self { outlet, ticket: Some(ticket), submitted: Instant::now(), timeout }
    }

    /// It waits no more. Before its last event: who reads that may ask again at once.
    pub(super) fn leave_queue(&mut self) {
        self.ticket = None;
    }

    /// Gives its last item.
    pub(super) fn fail(&mut self, error: Error) {
        self.leave_queue();
        self.outlet.fail(error);
    }

    /// When the request is to be done.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.timeout.and_then(|timeout| self.submitted.checked_add(timeout))
    }

    /// What a request fails with whose time is over.
    pub(super) fn late(&self, now: Instant) -> Option<Error> {
        let limit = self.timeout?;
        self.deadline().filter(|deadline| now >= *deadline).map(|_| Error::TimedOut { limit })
    }
}

/// A request that can be computed.
pub(super) struct Prepared {
    pub(super) head: Head,
    pub(super) prompt: Vec<u32>,
    /// Where other prompts may branch off.
    pub(super) branch_points: Vec<usize>,
    pub(super) generate: GenerateOptions,
    pub(super) output: Output,
}

/// Prepares one request after another until no handle is left.
pub(super) fn run(
    prompter: &Prompter,
    submissions: &Receiver<Submission>,
    commands: &Sender<Command>,
    shared: &Arc<Shared>,
) {
    for Submission { work, mut head } in submissions {
        let command = match begin(prompter, work, &mut head, shared) {
            Ok((prompt, generate, output)) => {
                let branch_points = prompter.user_turns(&prompt);
                let prepared = Prepared { head, prompt, branch_points, generate, output };
                Command::Request(Box::new(prepared))
            }
            Err(how) => Command::Ended(head, how),
        };
        // Without an engine the stream ends, and says that there is none.
        if commands.send(command).is_err() {
            shared.stop("its thread has ended");
        }
    }
}

/// A request's tokens, unless it ends here: many may be in line, and their time runs.
fn begin(
    prompter: &Prompter,
    work: Work,
    head: &mut Head,
    shared: &Shared,
) -> std::result::Result<(Vec<u32>, GenerateOptions, Output), Early> {
    if head.outlet.is_cancelled() || work.is_cancelled() || shared.is_abandoned() {
        head.leave_queue();
        if matches!(work, Work::Chat(_)) {
            let reason = EndReason::Cancelled;
            head.outlet.send(EngineEvent::Chat(ChatEvent::TurnEnd { reason }));
        }
        let usage = Usage { queued: head.submitted.elapsed(), ..Usage::default() };
        head.outlet.send(EngineEvent::Finished { reason: FinishReason::Cancelled, usage });
        return Err(Early::Cancelled);
    }
    if let Some(error) = head.late(Instant::now()) {
        head.fail(error);
        return Err(Early::TimedOut);
    }
    // Nothing outlives the call but what it returns. Without this one request that makes a library
    // panic would be the end of all.
    let prepared = catch_unwind(AssertUnwindSafe(|| prepare(prompter, work)));
    let panicked = || Error::argument("request", "preparing it panicked");
    prepared.unwrap_or_else(|_| Err(panicked())).map_err(|error| {
        head.fail(error);
        Early::Failed
    })
}

fn prepare(prompter: &Prompter, work: Work) -> Result<(Vec<u32>, GenerateOptions, Output)> {
    match work {
        Work::Chat(request) => {
            let ChatRequest { conversation, options, .. } = *request;
            let prompt = prompter.chat_prompt(&conversation.template_input()?)?;
            let generate = options.constrained(prompter, &conversation)?.into_owned();
            let tools = options.tools.unwrap_or_else(|| conversation.tool_names());
            let output = Output::chat(prompter.tokenizer(), options.stop, &tools)?;
            Ok((prompt, generate, output))
        }
        Work::Completion(request) => {
            let CompletionRequest { prompt, options, .. } = *request;
            let prompt = match prompt {
                Prompt::Text(text) => prompter.tokenizer().encode(&text, true)?,
                Prompt::Ids(ids) => ids,
            };
            if prompt.is_empty() {
                return Err(Error::argument("prompt", "it has no tokens"));
            }
            let output = Output::text(prompter.tokenizer(), options.visible, &options.stop)?;
            Ok((prompt, options.generate, output))
        }
        #[cfg(test)]
        Work::Panic => panic!("told to"),
    }
}
