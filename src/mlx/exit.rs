//! The end of the process. It destroys what MLX keeps in static variables while other threads run
//! on, and one that computes then uses memory that is gone: the program ends by a crash.

use std::ffi::c_int;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{RwLock, RwLockReadGuard, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

unsafe extern "C" {
    fn atexit(callback: extern "C" fn()) -> c_int;
}

/// Read by all that compute, and written to by the end of the process.
static WORKING: RwLock<()> = RwLock::new(());
static EXITING: AtomicBool = AtomicBool::new(false);
/// Longer than a chunk of a prompt; a program that should end does, whatever happens.
const PATIENCE: Duration = Duration::from_secs(10);

/// Held by a thread that uses MLX on its own behalf: the process does not end meanwhile.
#[derive(Debug)]
pub(crate) struct Working(Option<RwLockReadGuard<'static, ()>>);

impl Working {
    pub(crate) fn begin() -> Self {
        Self(Some(begin()))
    }

    /// Waits for something, and lets the process end meanwhile. Nothing may be being computed.
    pub(crate) fn pause<T>(&mut self, wait: impl FnOnce() -> T) -> T {
        self.0 = None;
        let waited = wait();
        self.0 = Some(begin());
        waited
    }
}

fn begin() -> RwLockReadGuard<'static, ()> {
    let working = WORKING.read().unwrap_or_else(|poisoned| poisoned.into_inner());
    if is_exiting() {
        drop(working);
        // Until the process is gone.
        loop {
            thread::park();
        }
    }
    working
}

/// True when the process waits for all that is [working](Working) to pause.
pub(crate) fn is_exiting() -> bool {
    EXITING.load(Ordering::SeqCst)
}

/// Makes the end of the process wait. What MLX has made by now is still whole then; what it makes
/// later may not be, so that this is to be called again once more of it was used.
pub(crate) fn hold_exit() {
    // SAFETY: the callback has C's calling convention, lives as long as the program and does not
    // unwind. Without room for it the process ends as it would have.
    let _ = unsafe { atexit(wait_for_work) };
}

extern "C" fn wait_for_work() {
    if EXITING.swap(true, Ordering::SeqCst) {
        return;
    }
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        match WORKING.try_write() {
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(1)),
            // Nobody begins any more.
            paused => return mem::forget(paused),
        }
    }
}
