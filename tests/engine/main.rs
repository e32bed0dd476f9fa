//! The engine: many requests at once on the bundled model.

mod ends;
mod limits;
mod random;
#[path = "../common/rng.rs"]
#[allow(dead_code)]
mod rng;
mod runtimes;
mod turns;

use std::path::PathBuf;

use gpt_oss_mlx::chat::events::ChatEvent;
use gpt_oss_mlx::chat::{Conversation, Message};
use gpt_oss_mlx::engine::{
    ChatRequest, CompletionRequest, Engine, EngineEvent, EngineOptions, EngineStream, Usage,
};
use gpt_oss_mlx::{ChatOptions, CompletionOptions, Error, FinishReason, Result, Visible};

/// In f32, so that rows of a batch agree with single runs to float error.
fn dir() -> PathBuf {
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gpt-oss-tiny-f32").into()
}

fn start(change: impl FnOnce(&mut EngineOptions)) -> Engine {
    let mut options = EngineOptions::new(dir());
    change(&mut options);
    Engine::start(options).wait().unwrap()
}

fn ask(text: &str) -> Conversation {
    Conversation::new([Message::user(text)])
}

fn chat(text: &str, change: impl FnOnce(&mut ChatOptions)) -> ChatRequest {
    let mut options = ChatOptions::default();
    change(&mut options);
    ChatRequest::new(ask(text), options)
}

/// A request for so many tokens, which nothing ends before.
fn endless(prompt: &[u32], tokens: usize) -> CompletionRequest {
    let mut options = CompletionOptions::default();
    options.visible = Visible::Everything;
    options.generate.max_tokens = tokens;
    options.generate.stop_ids = Some(Vec::new());
    CompletionRequest::new(prompt.to_vec(), options)
}

/// A request's events, and how it ended.
#[derive(Debug)]
struct Done {
    events: Vec<EngineEvent>,
    end: Result<(FinishReason, Usage)>,
}

impl Done {
    /// The answer of a chat, or the text of a completion.
    fn text(&self) -> String {
        let text = |event: &EngineEvent| match event {
            EngineEvent::Chat(ChatEvent::FinalDelta { text }) | EngineEvent::Text(text) => {
                Some(text.clone())
            }
            _ => None,
        };
        self.events.iter().filter_map(text).collect()
    }

    fn reason(&self) -> FinishReason {
        self.end.as_ref().unwrap().0
    }

    fn usage(&self) -> Usage {
        self.end.as_ref().unwrap().1
    }

    fn error(self) -> Error {
        self.end.unwrap_err()
    }
}

/// Reads a stream to its end.
fn read(mut stream: EngineStream) -> Done {
    let mut events = Vec::new();
    let end = loop {
        match stream.blocking_next().expect("a last event") {
            Ok(EngineEvent::Finished { reason, usage }) => break Ok((reason, usage)),
            Ok(event) => events.push(event),
            Err(error) => break Err(error),
        }
    };
    assert!(stream.blocking_next().is_none(), "something after the end");
    Done { events, end }
}
