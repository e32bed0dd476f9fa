//! Ctrl-C.

use std::sync::{Arc, Mutex, PoisonError};

use gpt_oss_mlx::CancelToken;

use crate::failure::Failure;

/// What a shell reports for a program that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// What Ctrl-C does at the moment.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<Mutex<Action>>);

#[derive(Debug, Clone, Default)]
enum Action {
    /// It ends the program: there is nothing to lose yet, or nobody to go on.
    #[default]
    Exit,
    /// It ends the answer.
    Cancel(CancelToken),
    /// Nothing: an answer has just ended, and the line editor takes the next one.
    Ignore,
}

impl Interrupt {
    pub fn install() -> Result<Self, Failure> {
        let interrupt = Self::default();
        let handler = interrupt.clone();
        ctrlc::set_handler(move || match &*handler.lock() {
            Action::Exit => std::process::exit(INTERRUPTED),
            Action::Cancel(answer) => answer.cancel(),
            Action::Ignore => {}
        })?;
        Ok(interrupt)
    }

    /// From now on it ends an answer.
    pub fn cancels(&self, answer: CancelToken) {
        *self.lock() = Action::Cancel(answer);
    }

    /// From now on it ends the program, unless there is a line editor to ask.
    pub fn idle(&self, editor: bool) {
        *self.lock() = if editor { Action::Ignore } else { Action::Exit };
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Action> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
