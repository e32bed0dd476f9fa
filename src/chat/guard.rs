//! Rewrites a template so that its operators check their operands.
//!
//! minijinja lets filters and output be replaced, but not `~`, `+`, `*` and `in`. A filter binds
//! tighter than any of them, so a filter after each operand sees every value that they join:
//! `a ~ b.c` becomes `a|_text ~ b.c|_text`. In the same way the value in `{% set a.b = c %}` is
//! checked. The filters pass their value on unchanged and are defined in `limits`. Only tags are touched, and no line breaks are added, so that errors keep
//! their line. On the way the one tag of transformers that minijinja lacks is taken out.

/// Filter after the operands of `~`.
pub(super) const TEXT: &str = "_text";
/// Filter after the operands of `+`.
pub(super) const TERM: &str = "_term";
/// Filter after the operands of `*`.
pub(super) const FACTOR: &str = "_factor";
/// Filter after the left operand of `in`.
pub(super) const MEMBER: &str = "_member";

/// Filter on the values of attributes that are set.
pub(super) const STORED: &str = "_stored";

/// Operators, brackets and keywords in one tag. The compiler calls itself for each, unguarded for
/// most: some thousand fill the stack of a thread. The longest tag of OpenAI's template has 20.
const TAG_LIMIT: usize = 400;
/// Branches by `elif`, likewise.
const ELIF_LIMIT: usize = 300;

/// A template with guarded operators.
pub(super) struct Guarded {
    /// The rewritten source.
    pub source: String,
    /// Bytes of the longest text between two tags.
    pub longest_raw: usize,
}

/// Rewrites `source`. What is not valid Jinja is passed on for the compiler to refuse.
///
/// # Errors
/// The reason, when compiling would take too much stack.
pub(super) fn guarded(source: &str) -> Result<Guarded, &'static str> {
    let mut out = Guarded { source: String::with_capacity(source.len()), longest_raw: 0 };
    let mut rest = source;
    let mut elifs = 0;
    while let Some(at) = find_tag(rest) {
        let (raw, tag) = rest.split_at(at);
        out.raw(raw);
        let end = if tag.starts_with("{#") {
            tag.get(2..).and_then(|rest| rest.find("#}")).map_or(tag.len(), |i| i + 4)
        } else if is_named(tag, "raw") {
            let end = end_of_raw(tag);
            out.longest_raw = out.longest_raw.max(end);
            end
        } else {
            let tokens = tokens(tag);
            if tokens.iter().filter(|token| token.nests()).count() > TAG_LIMIT {
                return Err("a tag has too many operators");
            }
            elifs += usize::from(tokens.get(1).is_some_and(|token| token.text == "elif"));
            if elifs > ELIF_LIMIT {
                return Err("there are too many `elif` branches");
            }
            let end = tokens.last().map_or(tag.len(), |last| last.end);
            out.source.push_str(&rewrite(tag.get(..end).unwrap_or(tag), &tokens));
            rest = tag.get(end..).unwrap_or_default();
            continue;
        };
        let (whole, after) = tag.split_at(end);
        out.source.push_str(whole);
        rest = after;
    }
    out.raw(rest);
    Ok(out)
}

impl Guarded {
    fn raw(&mut self, text: &str) {
        self.longest_raw = self.longest_raw.max(text.len());
        self.source.push_str(text);
    }
}

/// The next `{{`, `{%` or `{#`.
fn find_tag(text: &str) -> Option<usize> {
    let opens =
        |at: &usize| text.get(at + 1..).is_some_and(|inside| inside.starts_with(['{', '%', '#']));
    text.match_indices('{').map(|(at, _)| at).find(opens)
}

/// True for the block tag `{% name %}` without arguments.
fn is_named(tag: &str, name: &str) -> bool {
    let Some(inside) = tag.strip_prefix("{%") else { return false };
    let inside = inside.strip_prefix(['-', '+']).unwrap_or(inside).trim_ascii_start();
    let Some(after) = inside.strip_prefix(name) else { return false };
    let after = after.trim_ascii_start();
    after.strip_prefix(['-', '+']).unwrap_or(after).starts_with("%}")
}

/// The end of a raw block that begins with this tag.
fn end_of_raw(tag: &str) -> usize {
    let mut from = 2;
    while let Some(at) = tag.get(from..).and_then(|rest| rest.find("{%")) {
        let at = from + at;
        let rest = tag.get(at..).unwrap_or_default();
        if is_named(rest, "endraw") {
            return rest.find("%}").map_or(tag.len(), |i| at + i + 2);
        }
        from = at + 2;
    }
    tag.len()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Name,
    Number,
    Text,
    Open,
    Close,
    Operator,
    /// The delimiters of the tag itself.
    Edge,
}

#[derive(Debug, Clone, Copy)]
struct Token<'a> {
    kind: Kind,
    text: &'a str,
    end: usize,
}

impl Token<'_> {
    /// True for what makes an expression deeper.
    fn nests(&self) -> bool {
        match self.kind {
            Kind::Open => true,
            Kind::Operator => !",:=".contains(self.text),
            Kind::Name => ["and", "or", "not", "in", "is", "if", "else"].contains(&self.text),
            Kind::Number | Kind::Text | Kind::Close | Kind::Edge => false,
        }
    }
}

/// The tokens of the tag that `text` begins with, delimiters included, by the rules of
/// minijinja's own lexer.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let close = if text.starts_with("{{") { "}}" } else { "%}" };
    let mut tokens = Vec::new();
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let first = rest.chars().next().unwrap_or_default();
        let unsigned = rest.strip_prefix(['-', '+']).unwrap_or(rest);
        let (kind, length) = if at == 0 {
            let signed = text.get(2..).is_some_and(|inner| inner.starts_with(['-', '+']));
            (Kind::Edge, if signed { 3 } else { 2 })
        } else if depth == 0 && unsigned.starts_with(close) {
            (Kind::Edge, rest.len() - unsigned.len() + close.len())
        } else if first.is_ascii_whitespace() {
            at += 1;
            continue;
        } else if first == '"' || first == '\'' {
            (Kind::Text, text_length(rest, first))
        } else if first.is_ascii_digit() {
            (Kind::Number, number_length(rest))
        } else if first.is_alphanumeric() || first == '_' {
            (
                Kind::Name,
                rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len()),
            )
        } else if ["//", "**", "==", "!=", ">=", "<="].iter().any(|op| rest.starts_with(op)) {
            (Kind::Operator, 2)
        } else if "([{".contains(first) {
            depth += 1;
            (Kind::Open, 1)
        } else if ")]}".contains(first) {
            depth = depth.saturating_sub(1);
            (Kind::Close, 1)
        } else {
            (Kind::Operator, first.len_utf8())
        };
        let end = (at + length).min(text.len());
        tokens.push(Token { kind, text: text.get(at..end).unwrap_or_default(), end });
        if kind == Kind::Edge && at > 0 {
            break;
        }
        at = end;
    }
    tokens
}

/// The length of a string literal, quotes included.
fn text_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return i + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of a number: digits, with a radix, a fraction or an exponent.
fn number_length(text: &str) -> usize {
    let radix = ["0x", "0X", "0o", "0O", "0b", "0B"].iter().any(|radix| text.starts_with(radix));
    let mut before = ' ';
    let mut has_exponent = false;
    for (i, c) in text.char_indices() {
        let next = text.get(i + 1..).and_then(|rest| rest.chars().next());
        let belongs = match c {
            '0'..='9' | '_' => true,
            _ if radix => i == 1 || c.is_ascii_hexdigit(),
            'e' | 'E' => !std::mem::replace(&mut has_exponent, true),
            '+' | '-' => before == 'e' || before == 'E',
            // Else it is the dot of an attribute.
            '.' => !next.is_some_and(|c| c.is_alphabetic() || c == '_'),
            _ => false,
        };
        if !belongs {
            return i;
        }
        before = c;
    }
    text.len()
}

/// The tag with a filter after each operand of a guarded operator.
fn rewrite(tag: &str, tokens: &[Token<'_>]) -> String {
    if let [open, name, close] = tokens {
        // transformers' mark for what counts in training; here only what it encloses matters.
        let plain = match name.text {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => "",
        };
        if open.text.starts_with("{%") && !plain.is_empty() {
            return format!("{} {plain} {}", open.text, close.text);
        }
    }
    // What to insert after which byte.
    let mut inserts: Vec<(usize, String)> = Vec::new();
    let is_for = tokens.get(1).is_some_and(|token| token.text == "for");
    let mut for_in = is_for;
    for (i, token) in tokens.iter().enumerate() {
        let filter = match (token.kind, token.text) {
            (Kind::Operator, "~") => TEXT,
            (Kind::Operator, "+") => TERM,
            (Kind::Operator, "*") => FACTOR,
            // The first one of a loop parts its variable from what it runs over.
            (Kind::Name, "in") if for_in => {
                for_in = false;
                continue;
            }
            (Kind::Name, "in") => MEMBER,
            _ => continue,
        };
        let before = i.checked_sub(1).and_then(|i| tokens.get(i));
        let left = match before {
            Some(not) if filter == MEMBER && not.text == "not" => {
                i.checked_sub(2).and_then(|i| tokens.get(i))
            }
            before => before,
        };
        // Else it is a sign, or the star of an argument list.
        let Some(left) = left.filter(|token| ends_operand(token)) else { continue };
        inserts.push((left.end, format!("|{filter} ")));
        if filter == MEMBER {
            continue;
        }
        if let Some(end) = operand_end(tokens, i + 1) {
            inserts.push((end, format!("|{filter} ")));
        }
    }
    if let Some((from, to)) = attribute_value(tokens) {
        inserts.push((from, "(".into()));
        inserts.push((to, format!(")|{STORED} ")));
    }
    // Stable: a filter of the last operand goes before the bracket.
    inserts.sort_by_key(|&(at, _)| at);
    let mut out = String::with_capacity(tag.len() + inserts.len() * 8);
    let mut from = 0;
    for (at, inserted) in inserts {
        out.push_str(tag.get(from..at).unwrap_or_default());
        out.push_str(&inserted);
        from = at;
    }
    out.push_str(tag.get(from..).unwrap_or_default());
    out
}

/// Where the value begins and ends that a tag sets an attribute to, as in `{% set ns.a = 1 %}`.
fn attribute_value(tokens: &[Token<'_>]) -> Option<(usize, usize)> {
    let [_, set, rest @ .., last, _] = tokens else { return None };
    let equals = rest.iter().position(|token| token.text == "=")?;
    let has_dot = rest.iter().take(equals).any(|token| token.text == ".");
    (set.text == "set" && has_dot).then_some((rest.get(equals)?.end, last.end))
}

fn ends_operand(token: &Token<'_>) -> bool {
    match token.kind {
        Kind::Number | Kind::Text | Kind::Close => true,
        Kind::Name => !["and", "or", "not", "in", "is", "if", "else", "elif"].contains(&token.text),
        _ => false,
    }
}

/// Where the operand that begins at token `i` ends: signs, a name, literal or bracket, then
/// attributes, subscripts, calls and filters.
fn operand_end(tokens: &[Token<'_>], mut i: usize) -> Option<usize> {
    while tokens.get(i).is_some_and(|token| token.text == "-") {
        i += 1;
    }
    i = match tokens.get(i)?.kind {
        Kind::Open => after_bracket(tokens, i)?,
        Kind::Text => {
            // Literals side by side are one.
            let more = tokens.get(i..)?.iter().take_while(|token| token.kind == Kind::Text);
            i + more.count()
        }
        Kind::Name | Kind::Number => i + 1,
        _ => return None,
    };
    loop {
        let token = tokens.get(i)?;
        i = match (token.kind, token.text) {
            (Kind::Operator, "." | "|") => i + 2,
            (Kind::Open, "(" | "[") => after_bracket(tokens, i)?,
            _ => break,
        };
    }
    Some(tokens.get(i.checked_sub(1)?)?.end)
}

/// The token after the bracket that matches the one at `i`.
fn after_bracket(tokens: &[Token<'_>], i: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (offset, token) in tokens.get(i..)?.iter().enumerate() {
        match token.kind {
            Kind::Open => depth += 1,
            Kind::Close => depth = depth.checked_sub(1)?,
            _ => {}
        }
        if depth == 0 {
            return Some(i + offset + 1);
        }
    }
    None
}
