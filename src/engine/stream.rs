//! The events of one request on their way from the engine to its reader.
//!
//! The way has room for so many events. When it is full the engine keeps the few that one step
//! makes, and computes nothing more for the request until the reader has taken one.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, Receiver, Sender};

use super::block::block_on;
use super::events::EngineEvent;
use super::shared::{Command, Shared};
use crate::error::{Error, Result};
use crate::generate::CancelToken;

type Item = Result<EngineEvent>;

/// The events of a request. The last item is [`EngineEvent::Finished`] or an error.
///
/// Dropping it cancels the request. Reading works in any async runtime and, by
/// [`blocking_next`](Self::blocking_next), without one.
#[derive(Debug)]
pub struct EngineStream {
    events: Receiver<Item>,
    /// The engine waits for room.
    stalled: Arc<AtomicBool>,
    cancel: CancelToken,
    commands: std::sync::mpsc::Sender<Command>,
    shared: Arc<Shared>,
    ended: bool,
}

impl EngineStream {
    /// The next event; None after the last.
    pub async fn next(&mut self) -> Option<Item> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    /// The next event, for which this thread waits; None after the last.
    pub fn blocking_next(&mut self) -> Option<Item> {
        block_on(self.next())
    }

    /// Cancels the request: it ends with [`FinishReason::Cancelled`](crate::FinishReason::Cancelled)
    /// after what was generated so far.
    pub fn cancel(&self) {
        self.cancel.cancel();
        self.wake();
    }

    /// For cancelling from elsewhere.
    pub fn cancel_token(&self) -> CancelToken {
        self.cancel.clone()
    }

    fn wake(&self) {
        // An engine that has ended needs no waking.
        self.commands.send(Command::Wake).ok();
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let item = match self.events.poll_recv(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(item)) => item,
            // The engine's end of the way is gone without a last event.
            Poll::Ready(None) => Err(self.shared.stopped()),
        };
        if self.stalled.swap(false, Ordering::SeqCst) {
            self.wake();
        }
        self.ended = matches!(item, Err(_) | Ok(EngineEvent::Finished { .. }));
        Poll::Ready(Some(item))
    }
}

impl Stream for EngineStream {
    type Item = Item;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Item>> {
        self.get_mut().poll(context)
    }
}

impl Drop for EngineStream {
    fn drop(&mut self) {
        if !self.ended {
            self.events.close();
            self.cancel();
        }
    }
}

/// The engine's end of a stream.
#[derive(Debug)]
pub(super) struct Outlet {
    events: Sender<Item>,
    /// What there was no room for.
    held: VecDeque<Item>,
    stalled: Arc<AtomicBool>,
}

impl Outlet {
    /// Both ends of a stream with room for `room` events.
    pub(super) fn new(
        room: usize,
        cancel: CancelToken,
        commands: std::sync::mpsc::Sender<Command>,
        shared: Arc<Shared>,
    ) -> (Self, EngineStream) {
        let (sender, events) = mpsc::channel(room);
        let stalled = Arc::new(AtomicBool::new(false));
        let outlet = Self { events: sender, held: VecDeque::new(), stalled: Arc::clone(&stalled) };
        (outlet, EngineStream { events, stalled, cancel, commands, shared, ended: false })
    }

    pub(super) fn send(&mut self, event: EngineEvent) {
        self.held.push_back(Ok(event));
        self.flush();
    }

    /// The last item.
    pub(super) fn fail(&mut self, error: Error) {
        self.held.push_back(Err(error));
        self.flush();
    }

    /// Gives what there is room for. True when nothing is left.
    pub(super) fn flush(&mut self) -> bool {
        if !self.give() {
            // The reader may have made room before it could see that it is waited for.
            self.stalled.store(true, Ordering::SeqCst);
            self.give();
        }
        self.held.is_empty()
    }

    fn give(&mut self) -> bool {
        while let Some(item) = self.held.pop_front() {
            match self.events.try_send(item) {
                Ok(()) => {}
                Err(TrySendError::Full(item)) => {
                    self.held.push_front(item);
                    return false;
                }
                Err(TrySendError::Closed(_)) => {
                    self.held.clear();
                    return true;
                }
            }
        }
        true
    }

    /// True when nobody reads any more.
    pub(super) fn is_closed(&self) -> bool {
        self.events.is_closed()
    }
}
