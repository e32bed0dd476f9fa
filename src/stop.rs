//! Stop strings over streamed text.
//!
//! Text arrives in pieces that end anywhere, and a stop string may begin in one and end in
//! another. The matcher holds back exactly the text that may still turn out to be the start of a
//! stop string. It runs one Knuth-Morris-Pratt automaton for each stop string over the bytes, so
//! the work is linear in the text however it is cut.

use crate::error::{Error, Result};

/// Finds the first of several stop strings in a stream of text.
///
/// The match that ends first wins; of several that end at the same place, the one that begins
/// first, which is the longest; of equal strings, the first in the list. This is what can be
/// decided without waiting for more text, and it does not depend on how the text is cut.
#[derive(Debug, Clone, Default)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    /// Text seen and not yet given out: the longest suffix that begins some stop string.
    held: String,
    stopped: Option<usize>,
}

#[derive(Debug, Clone)]
struct Pattern {
    bytes: Vec<u8>,
    /// For each prefix, by its length less one, the length of its longest proper suffix that is a
    /// prefix too.
    failure: Vec<usize>,
    /// Bytes matched so far; always less than `bytes.len()` between calls.
    matched: usize,
}

impl StopMatcher {
    /// A matcher for `stops`; an empty list never stops.
    ///
    /// # Errors
    /// [`Error::Argument`] when a stop string is empty: it would match everywhere.
    pub fn new(stops: Vec<String>) -> Result<Self> {
        if let Some(i) = stops.iter().position(String::is_empty) {
            return Err(Error::argument("stop", format!("stop string {} is empty", i + 1)));
        }
        let patterns = stops.into_iter().map(|stop| Pattern::new(stop.into_bytes())).collect();
        Ok(Self { patterns, held: String::new(), stopped: None })
    }

    /// Takes the next piece of text. Returns what may be shown now and, when a stop string is
    /// complete, its index in the list given to [`StopMatcher::new`]. Of the text before a stop
    /// string everything is shown, of the stop string and what follows nothing. After a match
    /// every further call returns no text and the same index.
    pub fn push(&mut self, text: &str) -> (String, Option<usize>) {
        if self.stopped.is_some() {
            return (String::new(), self.stopped);
        }
        if self.patterns.is_empty() {
            return (text.to_owned(), None);
        }
        let before = self.held.len();
        self.held.push_str(text);
        for (i, byte) in text.bytes().enumerate() {
            let mut found: Option<(usize, usize)> = None;
            for (index, pattern) in self.patterns.iter_mut().enumerate() {
                let length = pattern.bytes.len();
                if pattern.advance(byte) && found.is_none_or(|(longest, _)| length > longest) {
                    found = Some((length, index));
                }
            }
            if let Some((length, index)) = found {
                let end = before + i + 1;
                self.stopped = Some(index);
                let held = std::mem::take(&mut self.held);
                // Both ends of a match are character borders, since both texts are UTF-8.
                let shown = end.checked_sub(length).and_then(|start| held.get(..start));
                return (shown.unwrap_or_default().to_owned(), self.stopped);
            }
        }
        let keep = self.patterns.iter().map(|pattern| pattern.matched).max().unwrap_or(0);
        (self.release(keep), None)
    }

    /// The text held back, at the end of a stream that did not stop.
    pub fn finish(&mut self) -> String {
        for pattern in &mut self.patterns {
            pattern.matched = 0;
        }
        self.release(0)
    }

    /// The stop string that was found, as an index into the list.
    pub fn stopped(&self) -> Option<usize> {
        self.stopped
    }

    /// Gives out all but the last `keep` bytes of the held text.
    fn release(&mut self, keep: usize) -> String {
        let shown = self.held.len().saturating_sub(keep);
        let (Some(out), Some(rest)) = (self.held.get(..shown), self.held.get(shown..)) else {
            return String::new();
        };
        let (out, rest) = (out.to_owned(), rest.to_owned());
        self.held = rest;
        out
    }
}

impl Pattern {
    /// `bytes` must not be empty.
    fn new(bytes: Vec<u8>) -> Self {
        let mut pattern = Self { failure: Vec::with_capacity(bytes.len()), bytes, matched: 0 };
        pattern.failure.push(0);
        for i in 1..pattern.bytes.len() {
            let Some(&byte) = pattern.bytes.get(i) else { break };
            pattern.step(byte);
            pattern.failure.push(pattern.matched);
        }
        pattern.matched = 0;
        pattern
    }

    /// Follows the automaton by one byte; `matched` may reach the whole length.
    fn step(&mut self, byte: u8) {
        while self.bytes.get(self.matched) != Some(&byte) {
            let Some(last) = self.matched.checked_sub(1) else { return };
            self.matched = self.failure.get(last).copied().unwrap_or(0);
        }
        self.matched += 1;
    }

    /// Follows the automaton by one byte; true when the pattern is complete.
    fn advance(&mut self, byte: u8) -> bool {
        self.step(byte);
        self.matched == self.bytes.len()
    }
}
