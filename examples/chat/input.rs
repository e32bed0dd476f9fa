//! Where lines come from: a terminal with editing and history, or a pipe.

use std::io::{self, BufRead, IsTerminal, StdinLock};

use rustyline::error::ReadlineError;
use rustyline::{Config, DefaultEditor};

use crate::failure::Failure;

/// Where lines come from.
pub enum Input {
    Terminal(Box<DefaultEditor>),
    Pipe(StdinLock<'static>),
}

/// What came.
#[derive(Debug, PartialEq)]
pub enum Entry {
    Line(String),
    /// Bytes that are no text.
    NotText,
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-D, or the end of the pipe.
    End,
}

impl Input {
    /// The terminal, where both sides are one.
    pub fn new() -> Result<Self, Failure> {
        Ok(match io::stdin().is_terminal() && io::stdout().is_terminal() {
            true => {
                let config = Config::builder().auto_add_history(true).build();
                Self::Terminal(Box::new(DefaultEditor::with_config(config)?))
            }
            false => Self::Pipe(io::stdin().lock()),
        })
    }

    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// The next line.
    pub fn next(&mut self) -> Result<Entry, Failure> {
        match self {
            Self::Terminal(editor) => match editor.readline("> ") {
                Ok(line) => Ok(Entry::Line(line)),
                Err(ReadlineError::Interrupted) => Ok(Entry::Interrupted),
                Err(ReadlineError::Eof) => Ok(Entry::End),
                Err(error) => Err(error.into()),
            },
            Self::Pipe(stdin) => {
                let mut line = Vec::new();
                let read = stdin.read_until(b'\n', &mut line);
                if read.map_err(|e| format!("cannot read from stdin: {e}"))? == 0 {
                    return Ok(Entry::End);
                }
                Ok(String::from_utf8(line).map_or(Entry::NotText, Entry::Line))
            }
        }
    }
}
