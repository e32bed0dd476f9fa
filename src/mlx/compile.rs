//! MLX's graph compiler, for functions that capture nothing.
//!
//! Arrays captured by a closure that MLX keeps have crashed and leaked elsewhere (mlx-rs #286,
//! #305). Here the type system rules them out: a compiled function is an associated function of a
//! type, so that there is no `self` in which it could keep anything.

use std::ffi::c_int;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};

use mlx_rs::Array;

use super::error::{check, install_handler};
use crate::error::{Error, Result};

/// A function of arrays to arrays without state; every array that it needs is in `inputs`.
pub(crate) trait PureFn: 'static {
    /// Builds the graph of the outputs. Called when MLX traces, not at every use.
    fn call(inputs: &[Array]) -> Result<Vec<Array>>;
}

/// `F` after MLX's compiler: element-wise parts become one kernel, for any shape.
pub(crate) struct Compiled<F: PureFn> {
    closure: mlx_sys::mlx_closure,
    function: PhantomData<F>,
}

// SAFETY: the closure holds a plain function pointer and MLX's id of its compiled form; nothing in
// it belongs to a thread, and `Compiled` is not `Sync`, so that it is used by one at a time.
unsafe impl<F: PureFn> Send for Compiled<F> {}

impl<F: PureFn> Compiled<F> {
    const STATELESS: () = assert!(size_of::<F>() == 0, "a compiled function must not hold state");

    /// Prepares `F` for compilation; MLX compiles at the first call.
    pub(crate) fn new() -> Result<Self> {
        () = Self::STATELESS;
        install_handler();
        // SAFETY: creates a handle that owns a plain function pointer.
        let plain = unsafe { mlx_sys::mlx_closure_new_func(Some(trampoline::<F>)) };
        // SAFETY: creates an empty handle.
        let mut closure = unsafe { mlx_sys::mlx_closure_new() };
        // SAFETY: both handles are live and ours; `plain` is copied by MLX and freed once.
        let status = unsafe {
            let status = mlx_sys::mlx_compile(&mut closure, plain, true);
            mlx_sys::mlx_closure_free(plain);
            status
        };
        let compiled = Self { closure, function: PhantomData };
        check("compile", status)?;
        Ok(compiled)
    }

    /// The outputs of `F` for `inputs`.
    pub(crate) fn call(&self, inputs: &[&Array]) -> Result<Vec<Array>> {
        let handles: Vec<_> = inputs.iter().map(|array| array.as_ptr()).collect();
        // SAFETY: the handles are borrowed from live arrays, and MLX copies them; both vectors
        // are freed once, by the guards.
        let (arguments, mut results) = unsafe {
            (
                Vector(mlx_sys::mlx_vector_array_new_data(handles.as_ptr(), handles.len())),
                Vector(mlx_sys::mlx_vector_array_new()),
            )
        };
        // SAFETY: all three handles are live for the duration of the call.
        let status =
            unsafe { mlx_sys::mlx_closure_apply(&mut results.0, self.closure, arguments.0) };
        check("compiled function", status)?;
        results.arrays()
    }
}

impl<F: PureFn> Drop for Compiled<F> {
    fn drop(&mut self) {
        // SAFETY: the handle is ours and freed once.
        unsafe { mlx_sys::mlx_closure_free(self.closure) };
    }
}

/// A vector of arrays that is freed when it goes out of scope.
struct Vector(mlx_sys::mlx_vector_array);

impl Drop for Vector {
    fn drop(&mut self) {
        // SAFETY: the handle is ours and freed once.
        unsafe { mlx_sys::mlx_vector_array_free(self.0) };
    }
}

impl Vector {
    fn arrays(&self) -> Result<Vec<Array>> {
        arrays_of(self.0)
    }
}

/// Handles of our own on the arrays of a vector that is only borrowed.
fn arrays_of(vector: mlx_sys::mlx_vector_array) -> Result<Vec<Array>> {
    // SAFETY: the vector is live for the duration of this call.
    let len = unsafe { mlx_sys::mlx_vector_array_size(vector) };
    (0..len)
        .map(|index| {
            // SAFETY: an empty handle, filled by the next call with one more reference.
            let mut handle = unsafe { mlx_sys::mlx_array_new() };
            // SAFETY: `index` is below the vector's length, and the vector is live.
            let status = unsafe { mlx_sys::mlx_vector_array_get(&mut handle, vector, index) };
            // SAFETY: the handle is ours, empty or filled.
            let array = unsafe { Array::from_ptr(handle) };
            check("vector", status).map(|()| array)
        })
        .collect()
}

/// What MLX calls to trace `F`. Neither an error nor a panic crosses into C++: both become a
/// status, which MLX turns into its own error.
unsafe extern "C" fn trampoline<F: PureFn>(
    results: *mut mlx_sys::mlx_vector_array,
    inputs: mlx_sys::mlx_vector_array,
) -> c_int {
    let outputs = catch_unwind(AssertUnwindSafe(|| F::call(&arrays_of(inputs)?)))
        .unwrap_or_else(|_| Err(Error::Mlx { op: "compile", message: "panic".into() }));
    let Ok(outputs) = outputs else { return 1 };
    let handles: Vec<_> = outputs.iter().map(Array::as_ptr).collect();
    // SAFETY: `results` points to MLX's own vector for the outputs; the handles are borrowed from
    // live arrays, and MLX copies them.
    unsafe { mlx_sys::mlx_vector_array_set_data(results, handles.as_ptr(), handles.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sum;
    impl PureFn for Sum {
        fn call(inputs: &[Array]) -> Result<Vec<Array>> {
            let [a, b] = inputs else { panic!("two inputs") };
            Ok(vec![a.add(b)?, a.multiply(b)?])
        }
    }

    struct Failing;
    impl PureFn for Failing {
        fn call(_: &[Array]) -> Result<Vec<Array>> {
            Err(Error::Mlx { op: "failing", message: "as told".into() })
        }
    }

    #[test]
    fn compiles_and_runs_for_any_shape() {
        let sum = Compiled::<Sum>::new().unwrap();
        for n in [1, 3, 70] {
            let a = Array::from_slice(&vec![2.0f32; n], &[n as i32]);
            let outputs = sum.call(&[&a, &a]).unwrap();
            assert_eq!(outputs[0].as_slice::<f32>(), vec![4.0; n]);
            assert_eq!(outputs[1].as_slice::<f32>(), vec![4.0; n]);
        }
    }

    #[test]
    fn a_compiled_function_moves_to_another_thread() {
        let a = [2.0f32];
        let run = |sum: &Compiled<Sum>| {
            let a = Array::from_slice(&a, &[1]);
            assert_eq!(sum.call(&[&a, &a]).unwrap()[0].as_slice::<f32>(), [4.0]);
        };
        let sum = std::thread::spawn(|| Compiled::<Sum>::new().unwrap()).join().unwrap();
        run(&sum);
        let sum = std::thread::scope(|scope| {
            let moved = scope.spawn(move || {
                run(&sum);
                sum
            });
            moved.join().unwrap()
        });
        run(&sum);
    }

    #[test]
    fn an_error_inside_comes_back_as_an_error() {
        let failing = Compiled::<Failing>::new().unwrap();
        assert!(failing.call(&[&Array::from_int(1)]).is_err());
        let sum = Compiled::<Sum>::new().unwrap();
        assert!(sum.call(&[&Array::from_int(1)]).is_err(), "a panic inside");
    }
}
