//! The `tojson` filter as transformers defines it: Python's `json.dumps` with
//! `ensure_ascii=False`, without the escapes for HTML that Jinja's own filter adds. Models were
//! trained on that form, separators included.

use std::sync::Arc;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

use super::limits;

/// Nesting depth at which writing stops; Python's own limit is of this order.
const DEPTH_LIMIT: usize = 200;

/// Characters with a meaning in one rendering.
#[derive(Debug, Clone, Default)]
pub(super) struct Marks {
    /// Stand for protected text and have to come out as they are.
    pub(super) protected: Arc<[char]>,
    /// At the start of a string: the rest is written as it stands, without quotation marks.
    pub(super) verbatim: Option<char>,
}

/// `value | tojson(ensure_ascii, indent, separators, sort_keys)`.
pub(super) fn tojson(
    state: &mut State,
    value: Value,
    options: Kwargs,
    marks: &Marks,
) -> Result<String, Error> {
    let separators: Option<(String, String)> = match options.get::<Option<Value>>("separators")? {
        Some(pair) if !pair.is_none() => {
            Some((pair.get_item_by_index(0)?.to_string(), pair.get_item_by_index(1)?.to_string()))
        }
        _ => None,
    };
    let indent = match options.get::<Option<Value>>("indent")? {
        Some(indent) if indent.kind() == ValueKind::Number => {
            let width = usize::try_from(i64::try_from(indent)?.max(0)).unwrap_or(0);
            limits::width(width)?;
            Some(" ".repeat(width))
        }
        Some(indent) if indent.as_str().is_some() => indent.as_str().map(str::to_owned),
        _ => None,
    };
    let (item, key) = separators
        .unwrap_or_else(|| (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()));
    let mut writer = Writer {
        out: String::new(),
        limit: limits::remaining(state),
        item,
        key,
        indent,
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        marks,
    };
    options.assert_all_used()?;
    writer.value(&value, 0)?;
    limits::charge(state, writer.out.len())?;
    Ok(writer.out)
}

struct Writer<'a> {
    out: String,
    limit: usize,
    item: String,
    key: String,
    indent: Option<String>,
    ensure_ascii: bool,
    sort_keys: bool,
    marks: &'a Marks,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEPTH_LIMIT {
            return Err(failed("the value is nested too deeply for tojson"));
        }
        if self.out.len() > self.limit {
            return Err(limits::too_large());
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => self.out.push_str(&value.to_string()),
            ValueKind::Number => self.out.push_str(&float(f64::try_from(value.clone())?)),
            ValueKind::String => {
                let text = value.as_str().unwrap_or_default();
                match self.marks.verbatim.and_then(|mark| text.strip_prefix(mark)) {
                    Some(text) => self.out.push_str(text),
                    None => self.string(text),
                }
            }
            ValueKind::Seq | ValueKind::Iterable => {
                self.out.push('[');
                let mut empty = true;
                for element in value.try_iter()? {
                    self.separate(empty, depth + 1);
                    self.value(&element, depth + 1)?;
                    empty = false;
                }
                self.close(empty, depth, ']');
            }
            ValueKind::Map => {
                let mut keys = value.try_iter()?.collect::<Vec<_>>();
                if self.sort_keys {
                    keys.sort();
                }
                self.out.push('{');
                let mut empty = true;
                for key in keys {
                    self.separate(empty, depth + 1);
                    self.name(&key)?;
                    let separator = self.key.clone();
                    self.out.push_str(&separator);
                    self.value(&value.get_item(&key)?, depth + 1)?;
                    empty = false;
                }
                self.close(empty, depth, '}');
            }
            kind => return Err(failed(format!("a value of type {kind} has no JSON form"))),
        }
        Ok(())
    }

    /// A mapping's key; Python turns the simple values that are not strings into strings.
    fn name(&mut self, key: &Value) -> Result<(), Error> {
        let text = match key.kind() {
            ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
            ValueKind::None => "null".to_owned(),
            ValueKind::Bool if key.is_true() => "true".to_owned(),
            ValueKind::Bool => "false".to_owned(),
            ValueKind::Number if key.is_integer() => key.to_string(),
            ValueKind::Number => float(f64::try_from(key.clone())?),
            kind => return Err(failed(format!("a {kind} cannot be a key in JSON"))),
        };
        self.string(&text);
        Ok(())
    }

    fn separate(&mut self, first: bool, depth: usize) {
        if !first {
            let separator = self.item.clone();
            self.out.push_str(&separator);
        }
        self.newline(depth);
    }

    fn close(&mut self, empty: bool, depth: usize, bracket: char) {
        if !empty {
            self.newline(depth);
        }
        self.out.push(bracket);
    }

    fn newline(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str(indent);
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if u32::from(c) < 0x20 => self.escape(c),
                c if self.ensure_ascii && !c.is_ascii() && !self.marks.protected.contains(&c) => {
                    self.escape(c);
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    fn escape(&mut self, c: char) {
        for unit in c.encode_utf16(&mut [0; 2]) {
            self.out.push_str(&format!("\\u{unit:04x}"));
        }
    }
}

/// Python's `repr` of a float: the shortest digits that read back the same, with an exponent below
/// 1e-4 and from 1e16 on.
fn float(x: f64) -> String {
    if x.is_nan() {
        return "NaN".to_owned();
    }
    if x.is_infinite() {
        return if x > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    if x == 0.0 || (1e-4..1e16).contains(&x.abs()) {
        return format!("{x:?}");
    }
    let text = format!("{x:e}");
    match text.split_once('e') {
        Some((digits, exponent)) => match exponent.strip_prefix('-') {
            Some(exponent) => format!("{digits}e-{exponent:0>2}"),
            None => format!("{digits}e+{exponent:0>2}"),
        },
        None => text,
    }
}

fn failed(reason: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}
