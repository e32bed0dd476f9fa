//! MLX's error text, and the one helper through which every direct call goes.
//!
//! mlx-rs installs an error handler of its own at its first operation and keeps the message in a
//! place that only it can read. Ours is chained in front: it keeps a copy for our direct calls and
//! passes the message on, so that mlx-rs's own errors stay whole.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Once;

use mlx_rs::{Array, Stream};

use crate::error::{Error, Result};

thread_local! {
    static LAST_MESSAGE: RefCell<Option<String>> = const { RefCell::new(None) };
}

static HANDLER: Once = Once::new();

unsafe extern "C" {
    /// mlx-rs's handler, exported under this name by mlx-rs 0.33.
    fn default_mlx_error_handler(message: *const c_char, data: *mut c_void);
}

unsafe extern "C" fn keep_message(message: *const c_char, data: *mut c_void) {
    if message.is_null() {
        return;
    }
    // SAFETY: MLX passes a NUL-terminated string that lives for the duration of this call.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    // `try_with`: an error while the thread is being torn down has nobody left to read it.
    let _ = LAST_MESSAGE.try_with(|last| last.replace(Some(text)));
    // SAFETY: same arguments, same lifetime; mlx-rs copies the message.
    unsafe { default_mlx_error_handler(message, data) };
}

/// Puts our handler in front of mlx-rs's and tells MLX where its kernels are, once in a process.
pub(super) fn install_handler() {
    HANDLER.call_once(|| {
        super::metallib::locate();
        // mlx-rs installs its handler at its first operation: let that happen before ours.
        let _ = mlx_rs::memory::active_memory();
        let _ = Array::from_int(0).add(Array::from_int(0));
        // SAFETY: the handler is a plain function without data, valid for the whole process.
        unsafe { mlx_sys::mlx_set_error_handler(Some(keep_message), std::ptr::null_mut(), None) };
    });
}

/// Runs a fallible C call that writes one new array, on this thread's stream.
///
/// `f` gets the place for the result and the stream, and returns MLX's status.
pub(super) fn call(
    op: &'static str,
    f: impl FnOnce(*mut mlx_sys::mlx_array, mlx_sys::mlx_stream) -> c_int,
) -> Result<Array> {
    install_handler();
    let stream = Stream::thread_local_or_default();
    // SAFETY: creates an empty handle (a null pointer inside); it owns nothing yet.
    let mut handle = unsafe { mlx_sys::mlx_array_new() };
    let status = f(&mut handle, stream.as_ptr());
    // SAFETY: the handle is ours alone, empty or filled by the call; `Array` frees it on drop.
    let array = unsafe { Array::from_ptr(handle) };
    check(op, status)?;
    Ok(array)
}

/// Turns MLX's status into a result, with the message that its handler kept.
pub(super) fn check(op: &'static str, status: c_int) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    let message = LAST_MESSAGE.with(|last| last.take());
    let message = message.as_deref().map_or_else(|| format!("status {status}"), clean);
    Err(Error::Mlx { op, message })
}

/// Cuts the source position off MLX's message: a path of the machine that built it.
fn clean(message: &str) -> String {
    let end = message.rfind(" at /").unwrap_or(message.len());
    message.get(..end).unwrap_or(message).trim().to_owned()
}

impl From<mlx_rs::error::Exception> for Error {
    fn from(exception: mlx_rs::error::Exception) -> Self {
        Self::Mlx { op: "operation", message: clean(exception.what()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direct_calls_and_mlx_rs_both_keep_their_message() {
        let a = Array::from_slice(&[1.0f32, 2.0, 3.0], &[3]);
        let b = Array::from_slice(&[1.0f32, 2.0], &[2]);
        for _ in 0..2 {
            let direct = super::super::slice(&a, &[0, 0], &[1, 1]).unwrap_err().to_string();
            assert!(direct.contains("slice"), "{direct}");
            let wrapped = Error::from(a.add(&b).unwrap_err()).to_string();
            assert!(wrapped.contains("cannot be broadcast"), "{wrapped}");
            assert!(!wrapped.contains(".cpp"), "{wrapped}");
        }
    }

    #[test]
    fn the_build_machines_path_is_cut_off() {
        assert_eq!(clean("[slice] bad at /tmp/x/ops.cpp:17"), "[slice] bad");
        assert_eq!(clean("no path"), "no path");
    }
}
