//! A time-out for a future that needs no runtime's timer.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

/// The future's output, or None when it takes longer than `limit`. A future that is not ready at
/// once costs a thread that sleeps; it ends with the future, or when this one is dropped.
///
/// # Errors
/// The operating system's, when it gives no thread; the future is then not waited for.
pub(super) async fn within<T>(
    limit: Duration,
    future: impl Future<Output = T>,
) -> io::Result<Option<T>> {
    // A limit that no clock reaches is none.
    let Some(deadline) = Instant::now().checked_add(limit) else {
        return Ok(Some(future.await));
    };
    let mut future = pin!(future);
    let waker = Arc::new(Mutex::new(None));
    let mut timer: Option<mpsc::Sender<()>> = None;
    poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Ok(Some(output)));
        }
        // Stored before the clock is read: a timer that missed it has rung after the deadline.
        *locked(&waker) = Some(context.waker().clone());
        if Instant::now() >= deadline {
            return Poll::Ready(Ok(None));
        }
        if timer.is_none() {
            match ring(deadline, Arc::clone(&waker)) {
                Ok(started) => timer = Some(started),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Pending
    })
    .await
}

/// Starts a thread that wakes at the deadline, unless what is returned is dropped before.
fn ring(deadline: Instant, waker: Arc<Mutex<Option<Waker>>>) -> io::Result<mpsc::Sender<()>> {
    let (timer, dropped) = mpsc::channel();
    thread::Builder::new().name("tool time-out".into()).spawn(move || {
        let rest = deadline.saturating_duration_since(Instant::now());
        if dropped.recv_timeout(rest) == Err(RecvTimeoutError::Timeout)
            && let Some(waker) = locked(&waker).take()
        {
            waker.wake();
        }
    })?;
    Ok(timer)
}

fn locked(waker: &Mutex<Option<Waker>>) -> MutexGuard<'_, Option<Waker>> {
    waker.lock().unwrap_or_else(PoisonError::into_inner)
}
