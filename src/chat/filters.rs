//! Filters of Jinja that minijinja defines with other arguments.

use minijinja::value::{Kwargs, Rest, Value, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, State};

use super::limits;

/// Adds the filters to an environment.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("indent", indent);
}

/// `value | default(default_value='', boolean=false)`: also for what is false when `boolean`.
fn default(
    value: Value,
    other: Option<Value>,
    boolean: Option<bool>,
    options: Kwargs,
) -> Result<Value, Error> {
    let other = other.or(options.get("default_value")?);
    let boolean = boolean.or(options.get("boolean")?).unwrap_or(false);
    options.assert_all_used()?;
    let missing = value.is_undefined() || (boolean && !value.is_true());
    Ok(if missing { other.unwrap_or_else(|| Value::from("")) } else { value })
}

/// `value | indent(width=4, first=false, blank=false)`: lines after the first are indented, the
/// first too when `first`, empty ones when `blank`. The width may be a string to indent with.
fn indent(state: &mut State, text: String, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let args = args.into_values();
    let (width, first, blank, options) =
        from_args::<(Option<Value>, Option<bool>, Option<bool>, Kwargs)>(&args)?;
    let width = width.or(options.get("width")?).unwrap_or_else(|| Value::from(4));
    let first = first.or(options.get("first")?).unwrap_or(false);
    let blank = blank.or(options.get("blank")?).unwrap_or(false);
    options.assert_all_used()?;
    let indent = match width.kind() {
        // Python's true is one.
        ValueKind::Number | ValueKind::Bool => {
            let spaces = usize::try_from(i64::try_from(width)?.max(0)).unwrap_or(usize::MAX);
            " ".repeat(limits::width(spaces)?)
        }
        _ => width.to_string(),
    };
    let lines = text.matches('\n').count().saturating_add(1);
    limits::charge(state, lines.saturating_mul(indent.len()).saturating_add(text.len()))?;
    let mut out = String::new();
    for (i, line) in text.split('\n').enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if (i == 0 && first) || (i > 0 && (blank || !line.is_empty())) {
            out.push_str(&indent);
        }
        out.push_str(line);
    }
    Ok(out)
}
