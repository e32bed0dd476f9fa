//! Starting an engine: its threads, and the load.

use std::pin::Pin;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::Duration;

use tokio::sync::watch;

use super::block::block_on;
use super::channel::{Receiver, channel};
use super::options::EngineOptions;
use super::prepare;
use super::scheduler::Scheduler;
use super::shared::{Command, Shared};
use super::{Engine, Handle, ModelInfo};
use crate::completion::TextModel;
use crate::error::{Error, Result};
use crate::mlx;
use crate::prompter::Prompter;

/// How far loading has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct LoadProgress {
    /// Bytes of weights read.
    pub done: u64,
    /// Bytes of weights in all; 0 until the files were looked at.
    pub total: u64,
}

/// An engine that is being started: a future of it.
///
/// Dropping it lets the load come to its end, after which the thread ends.
#[derive(Debug)]
#[must_use = "the engine comes by `.await` or `wait()`"]
pub struct StartingEngine {
    progress: watch::Receiver<LoadProgress>,
    engine: Receiver<Result<Engine>>,
    shared: Arc<Shared>,
}

impl StartingEngine {
    /// How far loading has come, when that has changed; None once there is nothing more to read.
    pub async fn progress(&mut self) -> Option<LoadProgress> {
        self.progress.changed().await.ok()?;
        Some(*self.progress.borrow_and_update())
    }

    /// Blocks this thread until the engine has started.
    ///
    /// # Errors
    /// Those of [`TextModel::load`], and [`Error::Argument`] for an option out of range.
    pub fn wait(self) -> Result<Engine> {
        block_on(self)
    }
}

impl Future for StartingEngine {
    type Output = Result<Engine>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let engine = ready!(this.engine.poll(context)).map(|(engine, _)| engine);
        Poll::Ready(engine.unwrap_or_else(|| Err(this.shared.stopped())))
    }
}

/// Says that the engine has ended once all that its thread had is given back.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.stop(if thread::panicking() { "it could not be loaded" } else { "it has ended" });
        self.0.done.set();
    }
}

pub(super) fn start(options: EngineOptions) -> StartingEngine {
    let shared = Arc::new(Shared::new(options.max_waiting));
    let (progress_sender, progress) = watch::channel(LoadProgress::default());
    let (engine_sender, engine) = channel();
    let starting = StartingEngine { progress, engine, shared: Arc::clone(&shared) };
    if let Err(error) = options.validate() {
        engine_sender.send(Err(error));
        return starting;
    }
    let (commands, received) = mpsc::channel();
    let (join_sender, join) = mpsc::channel();
    let work = move || {
        let ended = Ended(Arc::clone(&shared));
        mlx::hold_exit();
        let mut working = mlx::Working::begin();
        let progress = |done, total| {
            progress_sender.send_replace(LoadProgress { done, total });
            // A process may end in the middle of a long load.
            working.pause(|| ());
        };
        let loaded = TextModel::load_with_progress(&options.dir, &options.load, progress);
        drop(progress_sender);
        mlx::hold_exit();
        let begun = loaded.and_then(|text| {
            let engine = handle(&text, &options, commands, &shared, &join)?;
            Ok((text, engine))
        });
        match begun {
            Ok((text, engine)) => {
                // Nobody waits for it: it is dropped, and the loop below ends at once.
                engine_sender.send(Ok(engine));
                let shared = Arc::clone(&shared);
                Scheduler::new(text.model(), &options, received, shared).run(&mut working);
                drop(text);
            }
            Err(error) => engine_sender.send(Err(error)),
        }
        drop(working);
        drop(ended);
    };
    match thread::Builder::new().name("gpt-oss-mlx".into()).spawn(work) {
        Ok(thread) => drop(join_sender.send(thread)),
        Err(source) => starting.shared.stop(&format!("no thread could be started: {source}")),
    }
    starting
}

/// The first handle, and the thread that prepares requests.
fn handle(
    text: &TextModel,
    options: &EngineOptions,
    commands: mpsc::Sender<Command>,
    shared: &Arc<Shared>,
    join: &mpsc::Receiver<thread::JoinHandle<()>>,
) -> Result<Engine> {
    let model = text.model();
    let info = ModelInfo {
        dir: model.dir().into(),
        context_limit: model.context_limit(),
        vocab_size: model.config().vocab_size,
        load_time: model.load_time(),
        memory: model.memory_estimate().cloned(),
    };
    let (submissions, received) = mpsc::channel();
    let prompter: Arc<Prompter> = Arc::clone(text.prompter());
    let (theirs, their_commands, their_shared) =
        (Arc::clone(&prompter), commands.clone(), Arc::clone(shared));
    thread::Builder::new()
        .name("gpt-oss-mlx-prompts".into())
        .spawn(move || prepare::run(&theirs, &received, &their_commands, &their_shared))
        .map_err(|source| Error::EngineStopped {
            reason: format!("no thread could be started: {source}"),
        })?;
    // Sent right after this thread was started.
    let thread = join.recv_timeout(Duration::from_secs(10)).ok();
    Ok(Engine(Arc::new(Handle {
        submissions,
        commands,
        shared: Arc::clone(shared),
        prompter,
        info,
        event_buffer: options.event_buffer,
        thread: Mutex::new(thread),
    })))
}
