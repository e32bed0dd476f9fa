//! The events of one request on their way from the engine to its reader.
//!
//! The way has room for so many events. When it is full the engine computes nothing more for the
//! request until the reader has taken one; the few events that a step makes are given either way.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;

use super::block::block_on;
use super::channel::{Receiver, Sender, channel};
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
    cancel: CancelToken,
    /// None once the last event was read: an engine need not live for it.
    commands: Option<std::sync::mpsc::Sender<Command>>,
    shared: Arc<Shared>,
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

    /// For cancelling this request from elsewhere. The token of its options does so too, as it does
    /// for all requests that were given it.
    pub fn cancel_token(&self) -> CancelToken {
        self.cancel.clone()
    }

    fn wake(&self) {
        if let Some(commands) = &self.commands {
            // An engine that has ended needs no waking.
            commands.send(Command::Wake).ok();
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Item>> {
        if self.commands.is_none() {
            return Poll::Ready(None);
        }
        let (item, stalled) = match self.events.poll(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(next)) => next,
            // The engine's end of the way is gone without a last event.
            Poll::Ready(None) => (Err(self.shared.stopped()), false),
        };
        if stalled {
            self.wake();
        }
        if matches!(item, Err(_) | Ok(EngineEvent::Finished { .. })) {
            self.commands = None;
        }
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
        self.events.close();
        self.wake();
    }
}

/// The engine's end of a stream.
#[derive(Debug)]
pub(super) struct Outlet {
    events: Sender<Item>,
    room: usize,
    cancel: CancelToken,
}

impl Outlet {
    /// Both ends of a stream with room for `room` events.
    pub(super) fn new(
        room: usize,
        commands: std::sync::mpsc::Sender<Command>,
        shared: Arc<Shared>,
    ) -> (Self, EngineStream) {
        let (sender, events) = channel();
        // The stream's own: that of the options may be shared by many requests.
        let cancel = CancelToken::default();
        let outlet = Self { events: sender, room, cancel: cancel.clone() };
        (outlet, EngineStream { events, cancel, commands: Some(commands), shared })
    }

    pub(super) fn send(&self, event: EngineEvent) {
        self.events.send(Ok(event));
    }

    /// The last item.
    pub(super) fn fail(&self, error: Error) {
        self.events.send(Err(error));
    }

    /// False when the reader has to read first: it then wakes the engine.
    pub(super) fn has_room(&self) -> bool {
        self.events.has_room(self.room)
    }

    /// True when nobody reads any more.
    pub(super) fn is_closed(&self) -> bool {
        self.events.is_closed()
    }

    /// True when the request was cancelled by its stream, dropped or not.
    pub(super) fn is_cancelled(&self) -> bool {
        self.is_closed() || self.cancel.is_cancelled()
    }
}
