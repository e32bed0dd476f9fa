//! What the handles, the streams and the threads of an engine share.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::options::Shutdown;
use super::prepare::Prepared;
use super::stats::EngineStats;
use crate::error::{Error, Result};

/// What the engine's thread is told.
pub(super) enum Command {
    Request(Box<Prepared>),
    /// A request was cancelled, or its reader has made room.
    Wake,
    Shutdown(Shutdown),
    /// For tests of what a dying thread leaves behind.
    #[cfg(test)]
    Die,
}

#[derive(Debug)]
pub(super) struct Shared {
    /// Why no request is taken any more.
    stop: Mutex<Option<String>>,
    /// Requests that were taken and are not running yet.
    waiting: AtomicUsize,
    max_waiting: usize,
    /// Requests that could not be prepared.
    refused: AtomicU64,
    stats: Mutex<EngineStats>,
    /// True when the thread has given back all it had.
    pub(super) done: watch::Sender<bool>,
}

impl Shared {
    pub(super) fn new(max_waiting: usize) -> Self {
        Self {
            stop: Mutex::default(),
            waiting: AtomicUsize::new(0),
            max_waiting,
            refused: AtomicU64::new(0),
            stats: Mutex::default(),
            done: watch::Sender::new(false),
        }
    }

    /// A place in the queue.
    pub(super) fn ticket(self: &Arc<Self>) -> Result<Ticket> {
        if lock(&self.stop).is_some() {
            return Err(self.stopped());
        }
        let next = |n: usize| n.checked_add(1).filter(|&n| n <= self.max_waiting);
        let taken = self.waiting.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next);
        match taken {
            Ok(_) => Ok(Ticket(Arc::clone(self))),
            Err(_) => Err(Error::QueueFull { limit: self.max_waiting }),
        }
    }

    /// From now on nothing is taken. The first reason stays.
    pub(super) fn stop(&self, reason: &str) {
        lock(&self.stop).get_or_insert_with(|| reason.to_owned());
    }

    pub(super) fn stopped(&self) -> Error {
        let reason = lock(&self.stop).clone();
        Error::EngineStopped { reason: reason.unwrap_or_else(|| "its thread has ended".into()) }
    }

    pub(super) fn set_stats(&self, stats: EngineStats) {
        *lock(&self.stats) = stats;
    }

    pub(super) fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    pub(super) fn stats(&self) -> EngineStats {
        let mut stats = lock(&self.stats).clone();
        stats.waiting = self.waiting();
        stats.failed = stats.failed.saturating_add(self.refused.load(Ordering::SeqCst));
        stats
    }
}

/// A lock whose holder panicked guards plain data still.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place in the queue, given back when dropped.
#[derive(Debug)]
pub(super) struct Ticket(Arc<Shared>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}
