//! From sources to a grammar, within limits.

use std::fmt::Display;
use std::sync::Arc;
use std::thread;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::{ParserFactory, TokenParser};
use serde_json::{Value, json};

use super::Constraint;
use super::turn::{FORMAT, Part, Source, Turn, with_options};
use crate::error::{Error, Result};

/// Characters of white space at most between two parts of a constrained JSON text.
pub const MAX_SPACE: usize = 64;
/// Bytes of a source at most. It bounds how deep llguidance's compiler can recurse.
const JSON_LIMIT: usize = 512 << 10;
const LARK_LIMIT: usize = 64 << 10;
/// Levels of nesting in a source at most.
const DEPTH_LIMIT: usize = 128;
/// Stack of the thread that compiles. Only what is used of it takes memory.
const STACK: usize = 512 << 20;

/// Compiles a turn, and finds out which part is to blame when that fails.
pub(super) fn compile(factory: &ParserFactory, turn: &Turn<'_>) -> Result<Constraint> {
    turn.parts.iter().try_for_each(check)?;
    let Turn { lark, parts } = turn;
    // Rules may refer to rules in a long chain, which llguidance follows by recursion.
    let parser = thread::scope(|scope| {
        let compile = || compile_all(factory, lark, parts);
        let thread = thread::Builder::new().name("grammar".into()).stack_size(STACK);
        let thread = thread.spawn_scoped(scope, compile).map_err(|e| fail(FORMAT, &e))?;
        thread.join().unwrap_or_else(|_| Err(fail(FORMAT, "llguidance panicked")))
    })?;
    Ok(Constraint { parser: Arc::new(parser) })
}

fn compile_all(factory: &ParserFactory, lark: &str, parts: &[Part<'_>]) -> Result<TokenParser> {
    for part in parts {
        let parser = parser(factory, &part.title, vec![grammar(part)])?;
        let lexer = parser.parser.grammar().lexer_spec();
        if !lexer.token_range_lexemes(&lexer.all_lexemes()).is_empty() {
            // One of them could end the message in the middle of the answer.
            let reason = "a grammar cannot name control tokens or token ids";
            return Err(fail(&part.title, reason));
        }
    }
    let mut whole = vec![GrammarWithLexer::from_lark(lark.to_owned())];
    whole.extend(parts.iter().map(grammar));
    parser(factory, FORMAT, whole)
}

fn parser(
    factory: &ParserFactory,
    part: &str,
    grammars: Vec<GrammarWithLexer>,
) -> Result<TokenParser> {
    let grammar = TopLevelGrammar { grammars, max_tokens: None };
    factory.create_parser(grammar).map_err(|e| fail(part, &e))
}

fn grammar(part: &Part<'_>) -> GrammarWithLexer {
    let mut grammar = match &part.source {
        Source::JsonSchema(schema) => {
            let space = format!(r"[\x20\x0A\x0D\x09]{{1,{MAX_SPACE}}}");
            let options = json!({ "whitespace_pattern": space });
            GrammarWithLexer::from_json_schema(with_options(schema, options))
        }
        Source::Regex(regex) => GrammarWithLexer::from_regex(regex),
        Source::Lark(lark) => GrammarWithLexer::from_lark((*lark).to_owned()),
    };
    grammar.name = Some(part.name.clone());
    grammar
}

/// Refuses sources that are too large or too deep to be compiled on a stack of known size.
fn check(part: &Part<'_>) -> Result<()> {
    let (size, limit, depth) = match &part.source {
        Source::JsonSchema(schema) => {
            let depth = depth_of(schema);
            // Writing recurses as well.
            let size = if depth > DEPTH_LIMIT { 0 } else { schema.to_string().len() };
            (size, JSON_LIMIT, depth)
        }
        Source::Regex(text) | Source::Lark(text) => (text.len(), LARK_LIMIT, brackets(text)),
    };
    if size > limit {
        return Err(fail(&part.title, &format!("{size} bytes are more than {limit}")));
    }
    if let Source::JsonSchema(schema) = &part.source
        && depth <= DEPTH_LIMIT
        && !multiples_fit(schema)
    {
        return Err(fail(&part.title, "`multipleOf` has too many digits"));
    }
    if depth > DEPTH_LIMIT {
        return Err(fail(&part.title, &format!("it is nested deeper than {DEPTH_LIMIT} levels")));
    }
    Ok(())
}

/// Whether llguidance's 32-bit arithmetic can hold all values of `multipleOf` in a schema, and
/// their least common multiple, as integers of one unit. It does not look itself.
fn multiples_fit(schema: &Value) -> bool {
    let mut values = Vec::new();
    let mut left = vec![schema];
    while let Some(value) = left.pop() {
        match value {
            Value::Array(items) => left.extend(items),
            Value::Object(fields) => {
                values.extend(fields.get("multipleOf").and_then(Value::as_f64));
                left.extend(fields.values());
            }
            _ => {}
        }
    }
    let whole = |unit: f64| values.iter().all(|value| (value * unit).fract() == 0.0);
    let Some(unit) = (0..=9).map(|digits| 10f64.powi(digits)).find(|&unit| whole(unit)) else {
        return false;
    };
    let limit = f64::from(u32::MAX);
    let (mut least_common, mut greatest) = (1.0, 0f64);
    for value in values.iter().map(|value| value * unit).filter(|&value| value > 0.0) {
        greatest = greatest.max(value);
        if greatest > limit {
            return false;
        }
        least_common *= value / gcd(least_common, value);
        // Also what is computed on the way: a product, or another digit appended to a remainder.
        if least_common * greatest > limit || least_common * 10.0 + unit * 10.0 > limit {
            return false;
        }
    }
    true
}

/// Of whole numbers that a float holds exactly.
fn gcd(a: f64, b: f64) -> f64 {
    if b == 0.0 { a } else { gcd(b, a % b) }
}

/// How deep a value is nested, without recursion.
fn depth_of(value: &Value) -> usize {
    let mut deepest = 0;
    let mut left = vec![(value, 1)];
    while let Some((value, depth)) = left.pop() {
        deepest = deepest.max(depth);
        match value {
            Value::Array(items) => left.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(fields) => left.extend(fields.values().map(|item| (item, depth + 1))),
            _ => {}
        }
    }
    deepest
}

/// How many brackets are open at once at most, those in quotes counted like others, or how many
/// times something is negated in a row.
fn brackets(text: &str) -> usize {
    let (mut open, mut negated, mut deepest) = (0usize, 0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        match byte {
            b'~' => negated += 1,
            byte if byte.is_ascii_whitespace() => {}
            _ => negated = 0,
        }
        deepest = deepest.max(open).max(negated);
    }
    deepest
}

fn fail(part: &str, message: &(impl Display + ?Sized)) -> Error {
    Error::Grammar { part: part.into(), message: clean(&format!("{message:#}")) }
}

/// llguidance's message without its own state and backtraces.
pub(super) fn clean(message: &str) -> String {
    let end = ["\n<state>", "\n<non-verbose/>", "\n<backtrace>"];
    let end = end.iter().filter_map(|mark| message.find(mark)).min();
    message.get(..end.unwrap_or(message.len())).unwrap_or(message).trim().to_owned()
}
