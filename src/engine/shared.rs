//! What the handles, the streams and the threads of an engine share.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::channel::{Once, lock};
use super::options::Shutdown;
use super::prepare::{Head, Prepared};
use super::stats::EngineStats;
use crate::error::{Error, Result};

/// What the engine's thread is told.
pub(super) enum Command {
    Request(Box<Prepared>),
    /// A request ended while it was prepared: how, for the counts. Its reader knows already.
    Ended(Head, Early),
    /// A request was cancelled, or its reader has made room.
    Wake,
    Shutdown(Shutdown),
    /// For tests of what a dying thread leaves behind.
    #[cfg(test)]
    Die,
}

/// How a request ended before the engine's thread saw it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Early {
    Cancelled,
    TimedOut,
    Failed,
}

#[derive(Debug)]
pub(super) struct Shared {
    /// Why no request is taken any more.
    stop: Mutex<Option<String>>,
    /// Requests that were taken and are not running yet.
    waiting: AtomicUsize,
    max_waiting: usize,
    /// What is not running yet is not worth preparing any more.
    abandoned: AtomicBool,
    stats: Mutex<EngineStats>,
    /// When the thread has given back all it had.
    pub(super) done: Once,
}

impl Shared {
    pub(super) fn new(max_waiting: usize) -> Self {
        Self {
            stop: Mutex::default(),
            waiting: AtomicUsize::new(0),
            max_waiting,
            abandoned: AtomicBool::new(false),
            stats: Mutex::default(),
            done: Once::default(),
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

    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::SeqCst)
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    pub(super) fn stats(&self) -> EngineStats {
        let mut stats = lock(&self.stats).clone();
        stats.waiting = self.waiting();
        stats
    }
}

/// A place in the queue, given back when dropped.
#[derive(Debug)]
pub(super) struct Ticket(Arc<Shared>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}
