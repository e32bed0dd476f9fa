//! From a request to tokens, in a thread of its own: a long prompt or a large grammar must not keep
//! the others from their next token.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use super::options::{ChatRequest, CompletionRequest, Prompt};
use super::output::Output;
use super::shared::{Command, Shared, Ticket};
use super::stream::Outlet;
use crate::error::{Error, Result};
use crate::generate::GenerateOptions;
use crate::prompter::Prompter;

/// What was asked.
pub(super) enum Work {
    Chat(Box<ChatRequest>),
    Completion(Box<CompletionRequest>),
}

/// A request that was taken.
pub(super) struct Submission {
    pub(super) work: Work,
    pub(super) head: Head,
}

/// What stays with a request from its beginning to its end.
pub(super) struct Head {
    pub(super) outlet: Outlet,
    pub(super) ticket: Option<Ticket>,
    pub(super) submitted: Instant,
    pub(super) timeout: Option<Duration>,
}

impl Head {
    /// When the request is to be done.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.timeout.and_then(|timeout| self.submitted.checked_add(timeout))
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
        if head.outlet.is_closed() {
            continue;
        }
        match prepare(prompter, work) {
            Ok((prompt, generate, output)) => {
                let branch_points = prompter.user_turns(&prompt);
                let prepared = Prepared { head, prompt, branch_points, generate, output };
                // Without an engine the stream ends, and says that there is none.
                if commands.send(Command::Request(Box::new(prepared))).is_err() {
                    shared.stop("its thread has ended");
                }
            }
            Err(error) => {
                shared.refuse();
                head.outlet.fail(error);
            }
        }
    }
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
    }
}
