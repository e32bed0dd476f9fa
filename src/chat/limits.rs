//! Bounds on what a template may do, since it comes from whoever published the model.
//!
//! Steps are counted by minijinja itself (fuel), and so is recursion. Neither bounds memory: forty
//! steps of `{% set s = s ~ s %}` make a terabyte. So everything that makes text, that is the
//! operators (see `guard`), output, and the filters and methods that can make much from little,
//! draws on one budget for each rendering, and checks it before the text is made.
//!
//! Not bounded is the time of single steps that make no text, such as comparing large values.

use std::fmt::{self, Write};
use std::{io, thread};

use minijinja::value::{Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, filters};
use minijinja_contrib::pycompat;

use super::guard;

/// Bytes of text that one rendering may make, intermediate texts included.
const BUDGET: usize = 32 << 20;
/// Bytes of a finished prompt. A full context of 131,072 tokens has well under 1 MB.
const OUTPUT_LIMIT: usize = 16 << 20;
/// Steps of one rendering, apart from those that its input adds.
const FUEL: usize = 100_000;
/// Steps that each string, number, list and so on of the input adds. OpenAI's template takes up to
/// 100 for a message and up to 60 for a tool's parameter.
const FUEL_PER_VALUE: usize = 200;
/// Steps that each pair of messages adds; OpenAI's template takes 6 for each pair of tool calls.
const FUEL_PER_PAIR: usize = 16;
/// Stack of the thread that renders. Without steps to count, nested values are taken apart by
/// recursion, some 3 kB for each level in a debug build; a step adds one level at most. The
/// system provides only what is used.
const STACK: usize = 512 << 20;
/// Bytes that the template's own text between tags may add up to over all steps.
const RAW_BUDGET: usize = 256 << 20;
/// Largest width of padding and indentation, and largest factor of a repetition.
const WIDTH_LIMIT: usize = 4096;

/// What an element of a sequence counts for.
const ELEMENT: usize = 32;

/// Depth of the values that a namespace may hold.
const NESTING: usize = 64;

/// What is left of one rendering's budget.
struct Budget(usize);

/// Replaces what could make unbounded text by versions that check first.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_formatter(|out, state, value| {
        if value.is_undefined() {
            return Ok(());
        }
        let text = bounded_text(state, value)?;
        charge(state, text.len())?;
        out.write_str(&text).map_err(Error::from)
    });
    environment.set_unknown_method_callback(|state, value, method, args| {
        match method {
            "join" => joined(state, args.first(), Some(value))?,
            "replace" => replaced(state, value, args.first(), args.get(1))?,
            "format" => formatted(value, args)?,
            _ => {}
        }
        let made = pycompat::unknown_method_callback(state, value, method, args)?;
        charge_made(state, made)
    });
    // Prints the whole state; of no use in a prompt.
    environment.remove_global("debug");

    for (name, filter) in [
        ("upper", Value::from_function(filters::upper)),
        ("lower", Value::from_function(filters::lower)),
        ("title", Value::from_function(filters::title)),
        ("capitalize", Value::from_function(filters::capitalize)),
        ("trim", Value::from_function(filters::trim)),
        ("escape", Value::from_function(filters::escape)),
        ("e", Value::from_function(filters::escape)),
        ("safe", Value::from_function(filters::safe)),
        ("string", Value::from_function(filters::string)),
        ("pprint", Value::from_function(filters::pprint)),
        ("split", Value::from_function(filters::split)),
        ("lines", Value::from_function(filters::lines)),
        ("reverse", Value::from_function(filters::reverse)),
        ("list", Value::from_function(filters::list)),
        ("sort", Value::from_function(filters::sort)),
        ("unique", Value::from_function(filters::unique)),
    ] {
        checked(environment, name, filter, |state, args| match args.first() {
            Some(value) => text_length(value, remaining(state)).map(drop),
            None => Ok(()),
        });
    }
    checked(environment, "join", Value::from_function(filters::join), |state, args| {
        joined(state, args.first(), args.get(1))
    });
    checked(
        environment,
        "replace",
        Value::from_function(filters::replace),
        |state, args| match args.first() {
            Some(value) => replaced(state, value, args.get(1), args.get(2)),
            None => Ok(()),
        },
    );
    checked(environment, "format", Value::from_function(filters::format), |_, args| {
        match args.split_first() {
            Some((value, args)) => formatted(value, args),
            None => Ok(()),
        }
    });
    for (name, filter) in [
        ("batch", Value::from_function(filters::batch)),
        ("slice", Value::from_function(filters::slice)),
    ] {
        checked(environment, name, filter, |_, args| {
            args.get(1).and_then(number).map_or(Ok(()), |count| width(count).map(drop))
        });
    }
    environment.add_filter(guard::TEXT, |state: &mut State, value: Value| {
        if matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
            let text = bounded_text(state, &value)?;
            charge(state, text.len())?;
            return Ok(Value::from(text));
        }
        charge_made(state, value)
    });
    environment
        .add_filter(guard::TERM, |state: &mut State, value: Value| charge_made(state, value));
    environment.add_filter(guard::FACTOR, |state: &mut State, value: Value| {
        if let Some(factor) = number(&value) {
            width(factor)?;
        } else if value.kind() != ValueKind::Number {
            charge(state, value.len().unwrap_or(0).saturating_mul(WIDTH_LIMIT))?;
        }
        Ok::<_, Error>(value)
    });
    environment.add_filter(guard::STORED, |state: &mut State, value: Value| {
        let mut left = remaining(state);
        storable(&value, NESTING, &mut left)?;
        charge(state, remaining(state).saturating_sub(left))?;
        Ok::<_, Error>(value)
    });
    environment.add_filter(guard::MEMBER, |state: &mut State, value: Value| {
        text_length(&value, remaining(state))?;
        Ok::<_, Error>(value)
    });
}

/// Steps for a rendering of these `values`, among them `messages` messages; fewer where the
/// template's own text is long, since a loop may repeat that text.
pub(super) fn fuel<'a>(
    values: impl Iterator<Item = &'a serde_json::Value>,
    messages: usize,
    longest_raw: usize,
) -> u64 {
    let values = values.map(count).fold(0, usize::saturating_add);
    let pairs = messages.saturating_mul(messages);
    let steps = FUEL
        .saturating_add(values.saturating_mul(FUEL_PER_VALUE))
        .saturating_add(pairs.saturating_mul(FUEL_PER_PAIR))
        .min(RAW_BUDGET / longest_raw.max(1));
    u64::try_from(steps).unwrap_or(u64::MAX)
}

/// A value and all that is in it.
fn count(value: &serde_json::Value) -> usize {
    let inside: usize = match value {
        serde_json::Value::Array(items) => items.iter().map(count).sum(),
        serde_json::Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    };
    inside.saturating_add(1)
}

/// Runs `render` on a thread with a large stack.
pub(super) fn with_stack<T: Send>(render: impl FnOnce() -> T + Send) -> Result<T, Error> {
    let failed = |reason| Error::new(ErrorKind::InvalidOperation, reason);
    thread::scope(|scope| {
        thread::Builder::new()
            .name("chat template".into())
            .stack_size(STACK)
            .spawn_scoped(scope, render)
            .map_err(|e| failed("no thread to render in").with_source(e))?
            .join()
            .map_err(|_| failed("the template engine failed"))
    })
}

/// Adds `filter` under `name`, with a check of its arguments before and of its result after.
fn checked(
    environment: &mut Environment<'static>,
    name: &'static str,
    filter: Value,
    before: impl Fn(&mut State, &[Value]) -> Result<(), Error> + Send + Sync + 'static,
) {
    environment.add_filter(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
        let args = args.into_values();
        before(state, &args)?;
        let made = filter.call(state, &args)?;
        charge_made(state, made)
    });
}

/// Bytes that may still be made.
pub(super) fn remaining(state: &State) -> usize {
    state.get_extension::<Budget>().map_or(BUDGET, |budget| budget.0)
}

/// Takes `bytes` from the budget.
pub(super) fn charge(state: &mut State, bytes: usize) -> Result<(), Error> {
    let budget = state.get_or_insert_extension(Budget(BUDGET));
    budget.0 = budget.0.checked_sub(bytes).ok_or_else(too_large)?;
    Ok(())
}

/// Checks a width, an indentation or a number of repetitions.
pub(super) fn width(width: usize) -> Result<usize, Error> {
    if width <= WIDTH_LIMIT {
        return Ok(width);
    }
    let reason = format!("the number {width} is above the limit of {WIDTH_LIMIT} for this use");
    Err(Error::new(ErrorKind::InvalidOperation, reason))
}

/// The error of a template that makes too much text.
pub(super) fn too_large() -> Error {
    Error::new(ErrorKind::InvalidOperation, "the template makes more text than is allowed")
}

fn fits(state: &State, bytes: usize) -> Result<(), Error> {
    if bytes <= remaining(state) { Ok(()) } else { Err(too_large()) }
}

/// Charges for a value that is made or copied: a text by its bytes, a sequence by its elements.
fn charge_made(state: &mut State, value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => charge(state, value.as_str().map_or(0, str::len))?,
        ValueKind::Seq | ValueKind::Iterable => {
            charge(state, value.len().unwrap_or(0).saturating_mul(ELEMENT))?;
        }
        _ => {}
    }
    Ok(value)
}

/// Before `separator.join(values)`.
fn joined(state: &State, values: Option<&Value>, separator: Option<&Value>) -> Result<(), Error> {
    let Some(values) = values else { return Ok(()) };
    let limit = remaining(state);
    let separator = separator.map_or(Ok(0), |s| text_length(s, limit))?;
    let mut total = 0_usize;
    for value in values.try_iter()? {
        total = total.saturating_add(text_length(&value, limit)?).saturating_add(separator);
        fits(state, total)?;
    }
    Ok(())
}

/// Before `value.replace(old, new)`.
fn replaced(
    state: &State,
    value: &Value,
    old: Option<&Value>,
    new: Option<&Value>,
) -> Result<(), Error> {
    let limit = remaining(state);
    let length = text_length(value, limit)?;
    let new = new.map_or(Ok(0), |new| text_length(new, limit))?;
    let count = match (value.as_str(), old.and_then(Value::as_str)) {
        (Some(text), Some(old)) => text.matches(old).count(),
        _ => length,
    };
    fits(state, length.saturating_add(count.saturating_mul(new)))
}

/// Before formatting: a field's width is written in the format or, for `*`, given as an argument.
fn formatted(format: &Value, args: &[Value]) -> Result<(), Error> {
    let text = format.as_str().unwrap_or_default();
    for digits in text.split(|c: char| !c.is_ascii_digit()).filter(|d| !d.is_empty()) {
        width(digits.parse().unwrap_or(usize::MAX))?;
    }
    if text.contains('*') {
        args.iter().filter_map(number).try_for_each(|n| width(n).map(drop))?;
    }
    Ok(())
}

/// Refuses what a namespace must not hold: a namespace, since one that held itself could not be
/// printed or compared, and values nested more than `depth` deep. Takes one from `left` for each
/// value looked at.
fn storable(value: &Value, depth: usize, left: &mut usize) -> Result<(), Error> {
    *left = left.checked_sub(1).ok_or_else(too_large)?;
    let refused = |reason| Err(Error::new(ErrorKind::InvalidOperation, reason));
    let Some(object) = value.as_object() else { return Ok(()) };
    // The type is private to the engine.
    if object.type_name().ends_with("::Namespace") {
        return refused("a namespace cannot hold a namespace");
    }
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
        return Ok(());
    }
    let Some(depth) = depth.checked_sub(1) else {
        return refused("the value is nested too deeply for a namespace");
    };
    for item in value.try_iter()? {
        if value.kind() == ValueKind::Map {
            storable(&value.get_item(&item)?, depth, left)?;
        } else {
            storable(&item, depth, left)?;
        }
    }
    Ok(())
}

/// The absolute value of an integer.
fn number(value: &Value) -> Option<usize> {
    if !value.is_integer() {
        return None;
    }
    let number = i64::try_from(value.clone()).map(i64::unsigned_abs).unwrap_or(u64::MAX);
    Some(usize::try_from(number).unwrap_or(usize::MAX))
}

/// The bytes of a value's text.
fn text_length(value: &Value, limit: usize) -> Result<usize, Error> {
    match value.as_str() {
        Some(text) => Ok(text.len()),
        None if is_short(value) => Ok(0),
        None => {
            let mut counter = Limited { text: None, length: 0, limit };
            write!(counter, "{value}").map_err(|_| too_large())?;
            Ok(counter.length)
        }
    }
}

/// The text of a value, unless that is larger than the budget.
fn bounded_text(state: &State, value: &Value) -> Result<String, Error> {
    let limit = remaining(state);
    let mut writer = Limited { text: Some(String::new()), length: 0, limit };
    write!(writer, "{value}").map_err(|_| too_large())?;
    Ok(writer.text.unwrap_or_default())
}

fn is_short(value: &Value) -> bool {
    use ValueKind::{Bool, None, Number, Undefined};
    matches!(value.kind(), Undefined | None | Bool | Number)
}

/// Counts text, and keeps it if asked to, up to a limit.
struct Limited {
    text: Option<String>,
    length: usize,
    limit: usize,
}

impl Write for Limited {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.length = self.length.saturating_add(text.len());
        if self.length > self.limit {
            return Err(fmt::Error);
        }
        if let Some(kept) = &mut self.text {
            kept.push_str(text);
        }
        Ok(())
    }
}

/// Where the finished prompt is written.
#[derive(Default)]
pub(super) struct Output(Vec<u8>);

impl Output {
    pub(super) fn into_text(self) -> String {
        String::from_utf8(self.0).unwrap_or_default()
    }
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len().saturating_add(bytes.len()) > OUTPUT_LIMIT {
            let reason = format!("the prompt is longer than {OUTPUT_LIMIT} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
