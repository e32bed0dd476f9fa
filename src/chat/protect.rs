//! Keeps text from becoming control tokens.
//!
//! A chat template joins control tokens and the conversation's own text into one string, in which
//! `<|end|>` written by a user looks like the template's. Before rendering, every character of the
//! conversation that a special token could begin with (`<`) is therefore replaced by a Unicode
//! noncharacter that occurs nowhere else; in the rendered string only the template's own control
//! tokens are then spelled out. The text between them gets its characters back and is tokenized as
//! ordinary text.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::error::Result;
use crate::tokenizer::Tokenizer;

/// The noncharacters that Unicode sets aside for use inside a program.
const RESERVED: std::ops::RangeInclusive<char> = '\u{FDD0}'..='\u{FDEF}';

/// True for the characters that protected text is first of all marked with.
pub(super) fn is_reserved(c: char) -> bool {
    RESERVED.contains(&c)
}

/// The marks for one rendering.
pub(super) struct Protection<'a> {
    tokenizer: &'a Tokenizer,
    /// First characters of special tokens, and what stands in for each.
    marks: Vec<(char, char)>,
}

impl<'a> Protection<'a> {
    /// Chooses marks that occur neither in the `templates` nor in any of `values`.
    pub(super) fn new<'t>(
        tokenizer: &'a Tokenizer,
        templates: impl Iterator<Item = &'t str>,
        values: &[&Value],
    ) -> Self {
        let firsts: BTreeSet<char> =
            tokenizer.special_tokens().iter().filter_map(|(name, _)| name.chars().next()).collect();
        let mut used = BTreeSet::new();
        let mut note = |text: &str| used.extend(text.chars().filter(|&c| is_candidate(c)));
        templates.for_each(&mut note);
        for value in values {
            visit(value, &mut note);
        }
        let free = RESERVED.chain('\u{F0000}'..='\u{10FFFD}').filter(|c| !used.contains(c));
        Self { tokenizer, marks: firsts.into_iter().zip(free).collect() }
    }

    /// A copy of `value` in which no string can take part in a special token.
    pub(super) fn value(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(text)),
            Value::Array(items) => Value::Array(items.iter().map(|v| self.value(v)).collect()),
            Value::Object(map) => Value::Object(self.map(map)),
            simple => simple.clone(),
        }
    }

    /// As [`Protection::value`], for the names of a mapping too.
    pub(super) fn map(&self, map: &Map<String, Value>) -> Map<String, Value> {
        map.iter().map(|(name, value)| (self.text(name), self.value(value))).collect()
    }

    /// Every first character is marked, not only those in front of a whole special token: a
    /// template may join, cut and replace texts, and halves of a token may then meet.
    fn text(&self, text: &str) -> String {
        let mark = |c| self.marks.iter().find(|&&(first, _)| first == c).map(|&(_, mark)| mark);
        text.chars().map(|c| mark(c).unwrap_or(c)).collect()
    }

    /// Token ids of a string rendered from protected values: special tokens become control tokens,
    /// everything else is text.
    pub(super) fn encode(&self, rendered: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let mut begin = 0;
        let mut from = 0;
        while let Some((at, c)) = self.next_first(rendered, from) {
            let rest = rendered.get(at..).unwrap_or_default();
            let special =
                self.tokenizer.special_tokens().iter().find(|(name, _)| rest.starts_with(name));
            match special {
                Some((name, id)) => {
                    self.encode_text(rendered.get(begin..at).unwrap_or_default(), &mut ids)?;
                    ids.push(*id);
                    begin = at + name.len();
                    from = begin;
                }
                None => from = at + c.len_utf8(),
            }
        }
        self.encode_text(rendered.get(begin..).unwrap_or_default(), &mut ids)?;
        Ok(ids)
    }

    /// The next place from `from` on where a special token may begin.
    fn next_first(&self, text: &str, from: usize) -> Option<(usize, char)> {
        let rest = text.get(from..)?;
        let is_first = |c: char| self.marks.iter().any(|&(first, _)| first == c);
        let at = rest.find(is_first)?;
        Some((from + at, rest.get(at..)?.chars().next()?))
    }

    fn encode_text(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        if !text.is_empty() {
            ids.extend(self.tokenizer.encode(&self.restore(text), false)?);
        }
        Ok(())
    }

    /// The text with the original characters back in place of the marks.
    fn restore(&self, text: &str) -> String {
        let original = |c| self.marks.iter().find(|&&(_, mark)| mark == c).map(|&(first, _)| first);
        text.chars().map(|c| original(c).unwrap_or(c)).collect()
    }
}

fn is_candidate(c: char) -> bool {
    is_reserved(c) || c >= '\u{F0000}'
}

/// Calls `note` for every string in `value`, names included.
fn visit(value: &Value, note: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => note(text),
        Value::Array(items) => items.iter().for_each(|item| visit(item, note)),
        Value::Object(map) => {
            for (name, value) in map {
                note(name);
                visit(value, note);
            }
        }
        _ => {}
    }
}
