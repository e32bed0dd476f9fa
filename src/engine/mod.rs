//! Many requests at once: one thread that owns a model, and handles to it for everybody else.
//!
//! MLX's arrays and streams belong to threads, so that the model, the caches and all computation
//! stay in one. An [`Engine`] is what the rest of a program holds: it can be cloned, kept in the
//! state of a Tauri app or of a server, and used in any thread, inside an async runtime or without
//! one. Requests go to the engine as plain data, and their events come back through an
//! [`EngineStream`].
//!
//! Requests that run at the same time share each forward pass (continuous batching): they join and
//! leave between steps, and each keeps its own sampler, stop strings and constraint. Prompts that
//! begin like earlier ones are computed from where they differ.
//!
//! ```no_run
//! use gpt_oss_mlx::chat::{Conversation, Message, events::ChatEvent};
//! use gpt_oss_mlx::engine::{ChatRequest, Engine, EngineEvent, EngineOptions, Shutdown};
//! use gpt_oss_mlx::ChatOptions;
//!
//! # async fn example() -> gpt_oss_mlx::Result<()> {
//! let engine = Engine::start(EngineOptions::new("assets/gpt-oss-tiny")).await?;
//! let conversation = Conversation::new([Message::user("What is ownership?")]);
//! let mut stream = engine.chat(ChatRequest::new(conversation, ChatOptions::default()))?;
//! while let Some(event) = stream.next().await {
//!     if let EngineEvent::Chat(ChatEvent::FinalDelta { text }) = event? {
//!         print!("{text}");
//!     }
//! }
//! engine.shutdown(Shutdown::Cancel).await;
//! # Ok(())
//! # }
//! ```
//!
//! # Ends
//! A request ends by its last event, by an error of its own, or by cancellation: dropping its stream
//! is enough. When the last handle and the last stream are gone the thread ends by itself;
//! [`Engine::shutdown`] ends it before that, and waits until it has given back its memory. Should
//! the thread die, every stream and every later call says so.

mod block;
mod channel;
mod events;
mod options;
mod output;
mod prepare;
mod running;
mod scheduler;
mod shared;
mod start;
mod stats;
mod stream;

use std::path::PathBuf;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

pub use events::{EngineEvent, TokenEvent, Usage};
pub use options::{ChatRequest, CompletionRequest, EngineOptions, Prompt, Shutdown};
pub use start::{LoadProgress, StartingEngine};
pub use stats::EngineStats;
pub use stream::EngineStream;

use block::block_on;
use channel::lock;
use prepare::{Head, Submission, Work};
use shared::{Command, Shared};
use stream::Outlet;

use crate::error::Result;
use crate::memory::MemoryEstimate;
use crate::prompter::Prompter;
use crate::tokenizer::Tokenizer;

/// A handle to an engine. Clones are handles to the same one.
#[derive(Debug, Clone)]
pub struct Engine(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    submissions: mpsc::Sender<Submission>,
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    prompter: Arc<Prompter>,
    info: ModelInfo,
    event_buffer: usize,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The model that an engine runs.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ModelInfo {
    /// The folder that it was loaded from.
    pub dir: PathBuf,
    /// Most tokens of a sequence.
    pub context_limit: usize,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// How long loading took.
    pub load_time: Duration,
    /// The memory estimated before loading; None when the check was off.
    pub memory: Option<MemoryEstimate>,
}

impl Engine {
    /// Starts an engine: its thread loads the model. What comes back is a future of the engine,
    /// which also tells how far loading has come.
    pub fn start(options: EngineOptions) -> StartingEngine {
        start::start(options)
    }

    /// Asks for the model's turn in a conversation. Returns at once; what is wrong with the request
    /// is the stream's first item.
    ///
    /// # Errors
    /// [`Error::QueueFull`](crate::Error::QueueFull), and
    /// [`Error::EngineStopped`](crate::Error::EngineStopped) when the engine has ended or is about
    /// to.
    pub fn chat(&self, request: ChatRequest) -> Result<EngineStream> {
        let timeout = request.timeout;
        self.submit(Work::Chat(Box::new(request)), timeout)
    }

    /// Asks for the continuation of a text, as [`Engine::chat`] does for a turn.
    ///
    /// # Errors
    /// As [`Engine::chat`].
    pub fn complete(&self, request: CompletionRequest) -> Result<EngineStream> {
        let timeout = request.timeout;
        self.submit(Work::Completion(Box::new(request)), timeout)
    }

    fn submit(&self, work: Work, timeout: Option<Duration>) -> Result<EngineStream> {
        let Handle { shared, commands, submissions, event_buffer, .. } = &*self.0;
        let ticket = shared.ticket()?;
        let (outlet, stream) = Outlet::new(*event_buffer, commands.clone(), Arc::clone(shared));
        let head = Head::new(outlet, ticket, timeout);
        submissions.send(Submission { work, head }).map_err(|_| shared.stopped())?;
        Ok(stream)
    }

    /// How the engine is doing, as of its last step.
    pub fn stats(&self) -> EngineStats {
        self.0.shared.stats()
    }

    /// The model.
    pub fn model(&self) -> &ModelInfo {
        &self.0.info
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        self.0.prompter.tokenizer()
    }

    /// Ends the engine, and waits until its thread has ended and its memory is given back. From now
    /// on no request is taken. Other handles may call it too, for example to shorten the time.
    pub async fn shutdown(&self, how: Shutdown) {
        let Handle { shared, commands, thread, .. } = &*self.0;
        shared.stop("it was shut down");
        // One that has ended needs no telling.
        commands.send(Command::Shutdown(how)).ok();
        std::future::poll_fn(|context| shared.done.poll(context)).await;
        let thread = lock(thread).take();
        if let Some(thread) = thread {
            // It has nothing more to do, so that this waits for moments. Whether it panicked was
            // told to all who had to know.
            thread.join().ok();
        }
    }

    /// [`Engine::shutdown`] that blocks this thread.
    pub fn shutdown_blocking(&self, how: Shutdown) {
        block_on(self.shutdown(how));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::{CompletionOptions, GenerateOptions};

    #[test]
    fn a_thread_that_dies_leaves_nobody_waiting() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");
        let options = EngineOptions { max_running: 1, ..EngineOptions::new(dir) };
        let engine = Engine::start(options).wait().unwrap();
        let ask = || {
            let generate = GenerateOptions {
                max_tokens: 100_000,
                stop_ids: Some(Vec::new()),
                ..GenerateOptions::default()
            };
            let options = CompletionOptions { generate, ..CompletionOptions::default() };
            engine.complete(CompletionRequest::new(vec![1, 2], options))
        };
        let mut running = ask().unwrap();
        while !matches!(running.blocking_next(), Some(Ok(EngineEvent::Text(_)))) {}
        let mut waiting = ask().unwrap();
        engine.0.commands.send(Command::Die).unwrap();
        for stream in [&mut running, &mut waiting] {
            let error = std::iter::from_fn(|| stream.blocking_next()).last().unwrap().unwrap_err();
            assert_eq!(error.to_string(), "the engine has stopped: its thread panicked");
            assert!(stream.blocking_next().is_none());
        }
        engine.shutdown_blocking(Shutdown::Cancel);
        assert!(matches!(ask(), Err(Error::EngineStopped { .. })));
        assert_eq!(engine.stats().waiting, 0);
    }

    #[test]
    fn a_request_that_makes_its_preparation_panic_fails_alone() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");
        let engine = Engine::start(EngineOptions::new(dir)).wait().unwrap();
        let mut stream = engine.submit(Work::Panic, None).unwrap();
        let error = stream.blocking_next().unwrap().unwrap_err();
        assert!(matches!(error, Error::Argument { name: "request", .. }), "{error}");
        let generate = GenerateOptions { max_tokens: 1, ..GenerateOptions::default() };
        let options = CompletionOptions { generate, ..CompletionOptions::default() };
        let mut next = engine.complete(CompletionRequest::new(vec![1, 2], options)).unwrap();
        let last = std::iter::from_fn(|| next.blocking_next()).last();
        assert!(matches!(last, Some(Ok(EngineEvent::Finished { .. }))), "{last:?}");
        let stats = engine.stats();
        assert_eq!((stats.failed, stats.waiting), (1, 0));
    }
}
