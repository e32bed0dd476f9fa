//! What crosses from the engine's thread to those who wait for it, in any async runtime or none.
//!
//! Not tokio's channels: in a task of its runtime they count as cooperative, and give nothing any
//! more until the task yields. A task that blocks its thread never does.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// A lock whose holder panicked guards plain data still.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<T>,
    reader: Option<Waker>,
    /// The sender found it full.
    stalled: bool,
    sender_gone: bool,
    receiver_gone: bool,
}

/// Both ends of a way for items. It has no bound of its own: the sender asks for
/// [room](Sender::has_room) before it makes more.
pub(super) fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let state = State {
        items: VecDeque::new(),
        reader: None,
        stalled: false,
        sender_gone: false,
        receiver_gone: false,
    };
    let state = Arc::new(Mutex::new(state));
    (Sender(Arc::clone(&state)), Receiver(state))
}

#[derive(Debug)]
pub(super) struct Sender<T>(Arc<Mutex<State<T>>>);

impl<T> Sender<T> {
    /// Drops the item when nobody reads any more.
    pub(super) fn send(&self, item: T) {
        let mut state = lock(&self.0);
        if state.receiver_gone {
            // Not while the lock is held.
            drop(state);
            return drop(item);
        }
        state.items.push_back(item);
        wake(state);
    }

    /// True when fewer than so many items are unread, or nobody reads any more. Otherwise the next
    /// item that is read is [told](Receiver::poll) to make room.
    pub(super) fn has_room(&self, limit: usize) -> bool {
        let mut state = lock(&self.0);
        let room = state.items.len() < limit || state.receiver_gone;
        state.stalled = !room;
        room
    }

    pub(super) fn is_closed(&self) -> bool {
        lock(&self.0).receiver_gone
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        state.sender_gone = true;
        wake(state);
    }
}

fn wake<T>(mut state: MutexGuard<'_, State<T>>) {
    let reader = state.reader.take();
    drop(state);
    reader.into_iter().for_each(Waker::wake);
}

#[derive(Debug)]
pub(super) struct Receiver<T>(Arc<Mutex<State<T>>>);

impl<T> Receiver<T> {
    /// The next item, and whether the sender waits for the room that it leaves. None when the
    /// sender is gone and everything is read.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<(T, bool)>> {
        let mut state = lock(&self.0);
        if let Some(item) = state.items.pop_front() {
            let stalled = std::mem::take(&mut state.stalled);
            return Poll::Ready(Some((item, stalled)));
        }
        if state.sender_gone {
            return Poll::Ready(None);
        }
        state.reader = Some(context.waker().clone());
        Poll::Pending
    }

    /// Reads no more.
    pub(super) fn close(&mut self) {
        let mut state = lock(&self.0);
        state.receiver_gone = true;
        state.reader = None;
        let items = std::mem::take(&mut state.items);
        drop(state);
        drop(items);
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.close();
    }
}

/// Something that happens once, for which anybody may wait.
#[derive(Debug, Default)]
pub(super) struct Once(Mutex<(bool, Vec<Waker>)>);

impl Once {
    pub(super) fn set(&self) {
        let mut state = lock(&self.0);
        state.0 = true;
        let waiting = std::mem::take(&mut state.1);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }

    pub(super) fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = lock(&self.0);
        if state.0 {
            return Poll::Ready(());
        }
        if !state.1.iter().any(|waker| waker.will_wake(context.waker())) {
            state.1.push(context.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::super::block::block_on;
    use super::*;

    fn next<T>(receiver: &mut Receiver<T>) -> Option<(T, bool)> {
        block_on(std::future::poll_fn(|context| receiver.poll(context)))
    }

    #[test]
    fn a_sender_that_found_no_room_is_told_of_the_next_item_read() {
        let (sender, mut receiver) = channel();
        assert!(sender.has_room(2));
        (0..3).for_each(|i| sender.send(i));
        assert!(!sender.has_room(2));
        assert_eq!(next(&mut receiver), Some((0, true)));
        assert_eq!(next(&mut receiver), Some((1, false)));
        assert!(sender.has_room(2));
        drop(sender);
        assert_eq!(next(&mut receiver), Some((2, false)));
        assert_eq!(next(&mut receiver), None);
    }

    #[test]
    fn nothing_is_held_for_a_reader_that_is_gone() {
        let (sender, receiver) = channel();
        let item = Arc::new(());
        sender.send(Arc::clone(&item));
        assert!(!sender.has_room(1) && !sender.is_closed());
        drop(receiver);
        assert!(sender.has_room(1) && sender.is_closed());
        sender.send(Arc::clone(&item));
        assert_eq!(Arc::strong_count(&item), 1);
    }

    #[test]
    fn no_item_and_no_end_is_missed_by_a_reader_that_sleeps() {
        for _ in 0..200 {
            let (sender, mut receiver) = channel();
            let reader = thread::spawn(move || {
                std::iter::from_fn(|| next(&mut receiver)).map(|(i, _)| i).collect::<Vec<_>>()
            });
            (0..5).for_each(|i| sender.send(i));
            drop(sender);
            assert_eq!(reader.join().unwrap(), [0, 1, 2, 3, 4]);
        }
    }

    #[test]
    fn everybody_who_waits_for_an_event_is_woken() {
        let once = Arc::new(Once::default());
        let wait = |once: Arc<Once>| move || block_on(std::future::poll_fn(|c| once.poll(c)));
        let waiting: Vec<_> = (0..4).map(|_| thread::spawn(wait(Arc::clone(&once)))).collect();
        once.set();
        waiting.into_iter().for_each(|thread| thread.join().unwrap());
        wait(once)();
    }
}
