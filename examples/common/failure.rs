//! Failures of the examples, for whoever runs them.
#![allow(dead_code, reason = "each example uses a part")]

use std::error::Error as StdError;
use std::io;

use gpt_oss_mlx::Error;

/// A failure that has a user to read it.
pub type Failure = Box<dyn StdError>;

/// True when whoever read our output has had enough: nothing to report, and nobody to report it to.
pub fn is_closed_pipe(failure: &(dyn StdError + 'static)) -> bool {
    failure.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// What happened, what caused it, and what to do next.
pub fn explain(failure: &(dyn StdError + 'static)) -> String {
    let mut message = format!("error: {failure}");
    let mut cause = failure.source();
    while let Some(error) = cause {
        message.push_str(&format!(": {error}"));
        cause = error.source();
    }
    if let Some(error) = failure.downcast_ref::<Error>() {
        message.push_str(&format!("\nhint: {}", error.hint()));
    }
    message
}

/// [`explain`] for an example whose output is an answer: the library's errors and those of the
/// prompt name their file, so that a plain one is of stdout.
pub fn explain_answer(failure: &(dyn StdError + 'static)) -> String {
    match failure.is::<io::Error>() {
        true => format!("error: cannot write the answer to stdout: {failure}"),
        false => explain(failure),
    }
}
