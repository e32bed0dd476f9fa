//! What is shown where: what the model says to the user on stdout, everything else on stderr.

use std::io::{self, IsTerminal, Write};

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";
const WIPE: &str = "\r\x1b[K";

/// Stdout and stderr, which may be one terminal.
#[derive(Debug)]
pub struct Screen {
    stdout_is_terminal: bool,
    stderr_is_terminal: bool,
    /// Escape codes for colours may be used on stderr.
    colours: bool,
    /// A line that shows how far something is may be written and wiped.
    can_wipe: bool,
    /// What the last text was, as long as its line is not ended.
    open: Option<Part>,
    /// The status line that is shown.
    status: Option<String>,
}

/// Texts that begin on a line of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Answer,
    Aside,
}

impl Screen {
    pub fn new() -> Self {
        let (stdout, stderr) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let codes = stderr && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self {
            stdout_is_terminal: stdout,
            stderr_is_terminal: stderr,
            // https://no-color.org
            colours: codes && !set("NO_COLOR"),
            can_wipe: codes && stdout,
            open: None,
            status: None,
        }
    }

    /// More of what the model says to the user.
    pub fn answer(&mut self, text: &str) -> io::Result<()> {
        self.begin(Part::Answer)?;
        let mut stdout = io::stdout().lock();
        stdout.write_all(shown(text, self.stdout_is_terminal).as_bytes())?;
        stdout.flush()?;
        self.ended_by(text, Part::Answer);
        Ok(())
    }

    /// More of what the model says to itself and to tools.
    pub fn aside(&mut self, text: &str) -> io::Result<()> {
        self.begin(Part::Aside)?;
        let text = shown(text, self.stderr_is_terminal);
        match self.colours {
            true => self.stderr(&[DIM, &text, PLAIN]),
            false => self.stderr(&[&text]),
        }
        self.ended_by(&text, Part::Aside);
        Ok(())
    }

    /// Ends the line that is open.
    pub fn end_line(&mut self) -> io::Result<()> {
        self.wipe();
        match self.open.take() {
            Some(Part::Answer) => writeln!(io::stdout())?,
            Some(Part::Aside) => self.stderr(&["\n"]),
            None => {}
        }
        Ok(())
    }

    /// A line from the program to the user.
    pub fn say(&mut self, text: &str) -> io::Result<()> {
        self.end_line()?;
        self.stderr(&[&shown(text, self.stderr_is_terminal), "\n"]);
        Ok(())
    }

    /// What the program is doing, until something else is shown.
    pub fn status(&mut self, text: &str) {
        let shown = self.status.as_deref() == Some(text);
        if self.can_wipe && self.open.is_none() && !shown {
            match self.colours {
                true => self.stderr(&[WIPE, DIM, text, PLAIN]),
                false => self.stderr(&[WIPE, text]),
            }
            self.status = Some(text.to_owned());
        }
    }

    fn wipe(&mut self) {
        if self.status.take().is_some() {
            self.stderr(&[WIPE]);
        }
    }

    fn begin(&mut self, part: Part) -> io::Result<()> {
        self.wipe();
        match self.open {
            Some(open) if open != part => self.end_line(),
            _ => Ok(()),
        }
    }

    fn ended_by(&mut self, text: &str, part: Part) {
        self.open = (!text.ends_with('\n')).then_some(part);
    }

    /// Unlike `eprint!` this does not panic when nobody reads there.
    fn stderr(&self, texts: &[&str]) {
        let _ = io::stderr().write_all(texts.concat().as_bytes());
    }
}

/// A text as it is shown: a terminal would obey control characters, and the model's words, a tool's
/// or a file's are not for it to obey.
fn shown(text: &str, on_terminal: bool) -> String {
    let harmless = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    match on_terminal {
        true => text.chars().map(|c| if harmless(c) { c } else { '\u{fffd}' }).collect(),
        false => text.to_owned(),
    }
}
