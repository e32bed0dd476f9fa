//! A model's chat template: from messages to a prompt.
//!
//! Templates are Jinja as transformers runs it: blocks trimmed, loop controls, `raise_exception`,
//! `strftime_now`, a `tojson` that is Python's `json.dumps`, and Python's methods on strings and
//! mappings. They come with the model, from whoever published it, so their work and memory are
//! limited (see `limits`) and they reach nothing but the conversation.
//!
//! Known differences from Jinja: a mapping's methods are found by call only, so that
//! `schema["items"]` of a schema without items is undefined and not a method; a macro's default
//! argument cannot name an earlier argument; there is no sign `+`; floats print their exponent as
//! Rust does outside of `tojson`; integers next to `*` may not exceed 4096; a namespace cannot hold
//! a namespace.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind, State};
use serde_json::Map;

use super::json::Marks;
use super::protect::{self, Protection};
use super::{filters, guard, json, limits};
use crate::error::{Error, Result};
use crate::tokenizer::{Tokenizer, read_text};

/// The file that holds a template, newer style.
const TEMPLATE_FILE: &str = "chat_template.jinja";
/// The file that holds a template, older style, and the names of the special tokens.
const CONFIG_FILE: &str = "tokenizer_config.json";
/// Bytes of a file that are read at most; OpenAI's template has 16 kB.
const FILE_LIMIT: u64 = 16 << 20;
/// The template that is rendered, and the one for conversations with tools where there are two.
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";
/// Variables of tokenizer_config.json that templates may use.
const TOKENS: [&str; 4] = ["bos_token", "eos_token", "pad_token", "unk_token"];

/// What a template is rendered with, as plain JSON. [`Conversation`](super::Conversation) makes
/// one that GPT-OSS's templates take; made by hand, it renders as transformers would.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct TemplateInput {
    /// The conversation so far. Fields that are null are left out, so that a template may ask
    /// whether a field is there.
    pub messages: Vec<serde_json::Value>,
    /// The tools on offer, each as `{"type": "function", "function": {…}}`; with none, the
    /// template sees no tools at all.
    pub tools: Vec<serde_json::Value>,
    /// Whether the prompt ends where the model's answer begins.
    pub add_generation_prompt: bool,
    /// The time that `strftime_now` tells, `2025-08-05` or `2025-08-05T17:30:00`, taken as UTC.
    /// Without it, the present in the local time zone.
    pub now: Option<String>,
    /// Further variables: `reasoning_effort`, `model_identity`, `builtin_tools` and the like.
    pub variables: Map<String, serde_json::Value>,
    /// Whether `tojson` leaves the arguments of calls and the results of tools as they stand:
    /// the first are JSON already, the second are whatever the tool returned. Harmony has no
    /// quotation marks around either.
    pub(super) verbatim: bool,
}

impl TemplateInput {
    /// A prompt that asks for an answer to `messages`.
    pub fn new(messages: Vec<serde_json::Value>) -> Self {
        Self { messages, add_generation_prompt: true, ..Self::default() }
    }

    /// The same input with one more variable.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<serde_json::Value>) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    path: PathBuf,
    /// The sources by their names, which are those in the environment.
    sources: BTreeMap<String, String>,
    /// Bytes of the longest text between two tags.
    longest_raw: usize,
    /// Special tokens by their variable's name, such as `eos_token`.
    tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Reads the template in a model folder: `chat_template.jinja`, else `chat_template` in
    /// `tokenizer_config.json`, which is one template or a list of named ones. `None` when the
    /// folder has neither.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Json`] for files that cannot be read, [`Error::ChatTemplate`]
    /// for a template that does not compile or a list without one called `default`.
    pub fn from_dir(dir: &Path) -> Result<Option<Self>> {
        let config_path = dir.join(CONFIG_FILE);
        let config: Map<String, serde_json::Value> = match read_optional(&config_path)? {
            Some(text) => serde_json::from_str(&text)
                .map_err(|source| Error::Json { path: config_path.clone(), source })?,
            None => Map::new(),
        };
        let template_path = dir.join(TEMPLATE_FILE);
        let mut template = match read_optional(&template_path)? {
            Some(source) => Self::compile(&template_path, &[(DEFAULT, &source)])?,
            None => match config.get("chat_template") {
                None | Some(serde_json::Value::Null) => return Ok(None),
                Some(value) => Self::compile(&config_path, &named_templates(&config_path, value)?)?,
            },
        };
        for name in TOKENS {
            let token =
                config.get(name).and_then(|t| t.as_str().or_else(|| t.get("content")?.as_str()));
            if let Some(token) = token {
                template.tokens.insert(name.to_owned(), token.to_owned());
            }
        }
        Ok(Some(template))
    }

    /// Compiles the text of a template; `path` only names it in errors.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] when it is not valid Jinja.
    pub fn new(source: &str, path: &Path) -> Result<Self> {
        Self::compile(path, &[(DEFAULT, source)])
    }

    /// The same template with a special token as a variable, such as `bos_token`.
    #[must_use]
    pub fn with_token(mut self, name: impl Into<String>, token: impl Into<String>) -> Self {
        self.tokens.insert(name.into(), token.into());
        self
    }

    fn compile(path: &Path, sources: &[(&str, &str)]) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|source| Error::ChatTemplate {
            path: path.to_path_buf(),
            reason: "cannot set up the template language".into(),
            source: Some(source.into()),
        })?);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.add_function("raise_exception", raise_exception);
        filters::install(&mut environment);
        limits::install(&mut environment);
        let mut template = Self {
            environment,
            path: path.to_path_buf(),
            sources: BTreeMap::new(),
            longest_raw: 0,
            tokens: BTreeMap::new(),
        };
        for (name, source) in sources {
            // As Jinja does.
            let source = source.replace("\r\n", "\n").replace('\r', "\n");
            let guarded = guard::guarded(&source).map_err(|reason| Error::ChatTemplate {
                path: path.to_path_buf(),
                reason: reason.into(),
                source: None,
            })?;
            template.longest_raw = template.longest_raw.max(guarded.longest_raw);
            template.sources.insert((*name).to_owned(), source);
            template
                .environment
                .add_template_owned((*name).to_owned(), guarded.source)
                .map_err(|e| template.error(&e))?;
        }
        Ok(template)
    }

    /// The prompt as a string. Special tokens that a message spells out look like the template's
    /// own in it: to show a prompt this is right, to run one use [`ChatTemplate::render_ids`].
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] when the template refuses the conversation, fails, or exceeds its
    /// limits; [`Error::Argument`] when [`TemplateInput::now`] is not a date.
    pub fn render(&self, input: &TemplateInput) -> Result<String> {
        let mut messages = messages(input);
        let mut marks = Marks::default();
        if input.verbatim {
            let mark = self.unused(input, &messages).next().ok_or_else(|| self.no_marks())?;
            mark_verbatim(&mut messages, mark);
            marks.verbatim = Some(mark);
        }
        let verbatim = marks.verbatim;
        let text = self.render_values(input, &messages, &input.tools, &input.variables, marks)?;
        Ok(match verbatim {
            Some(mark) => text.replace(mark, ""),
            None => text,
        })
    }

    /// The prompt as token ids, in which control tokens come from the template only: whatever a
    /// message, tool or variable spells out remains text.
    ///
    /// # Errors
    /// As for [`ChatTemplate::render`], and [`Error::Tokenizer`]; [`Error::ChatTemplate`] also when
    /// the conversation uses every character of Unicode's private planes.
    pub fn render_ids(&self, input: &TemplateInput, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let messages = messages(input);
        let unused = self.unused(input, &messages);
        let protection = Protection::new(tokenizer, unused).map_err(|_| self.no_marks())?;
        let mut messages: Vec<_> = messages.iter().map(|m| protection.value(m)).collect();
        let tools: Vec<_> = input.tools.iter().map(|t| protection.value(t)).collect();
        let variables = protection.map(&input.variables);
        let mut marks = Marks { protected: protection.marks().into(), verbatim: None };
        if input.verbatim {
            mark_verbatim(&mut messages, protection.verbatim());
            marks.verbatim = Some(protection.verbatim());
        }
        let rendered = self.render_values(input, &messages, &tools, &variables, marks);
        let rendered = rendered.map_err(|error| match error {
            Error::ChatTemplate { path, reason, source } => {
                Error::ChatTemplate { path, reason: protection.restore(&reason), source }
            }
            other => other,
        })?;
        protection.encode(&rendered)
    }

    /// Characters that neither the template nor its input uses.
    fn unused(
        &self,
        input: &TemplateInput,
        messages: &[serde_json::Value],
    ) -> Box<dyn Iterator<Item = char>> {
        let variables = serde_json::Value::Object(input.variables.clone());
        let values: Vec<_> =
            messages.iter().chain(&input.tools).chain(std::iter::once(&variables)).collect();
        protect::unused(self.sources.values().map(String::as_str), &values)
    }

    fn no_marks(&self) -> Error {
        Error::ChatTemplate {
            path: self.path.clone(),
            reason: "the conversation uses all of Unicode's private characters".into(),
            source: None,
        }
    }

    fn error(&self, error: &minijinja::Error) -> Error {
        // The innermost error knows best; the outer ones say which macro or block it was in.
        let mut inner = error;
        while let Some(next) = std::error::Error::source(inner).and_then(|e| e.downcast_ref()) {
            inner = next;
        }
        let cause = std::error::Error::source(inner);
        let detail = match (cause.and_then(|e| e.downcast_ref::<io::Error>()), inner.detail()) {
            (Some(output), _) => output.to_string(),
            (None, Some(detail)) => detail.to_owned(),
            (None, None) if inner.kind() == ErrorKind::OutOfFuel => {
                "the template takes more steps than are allowed".to_owned()
            }
            (None, None) => inner.kind().to_string(),
        };
        let mut reason = detail.clone();
        let refused = cause.is_some_and(|e| e.is::<Refused>());
        let source = inner.name().and_then(|name| self.sources.get(name));
        if let (Some(number), Some(source), false) = (inner.line(), source, refused) {
            let line = source.lines().nth(number.saturating_sub(1)).unwrap_or_default();
            reason.push_str(&format!(" (line {number}: `{}`)", line.trim()));
        }
        // A new error, since the engine's own may hold the template's values, however deep.
        let source = minijinja::Error::new(inner.kind(), detail);
        Error::ChatTemplate { path: self.path.clone(), reason, source: Some(Box::new(source)) }
    }

    fn render_values(
        &self,
        input: &TemplateInput,
        messages: &[serde_json::Value],
        tools: &[serde_json::Value],
        variables: &Map<String, serde_json::Value>,
        marks: Marks,
    ) -> Result<String> {
        let now = clock(input.now.as_deref())?;
        let strftime_now = move |format: &str| {
            jiff::fmt::strtime::format(format, &now).map_err(|e| {
                minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}"))
            })
        };
        let has_tool_use = self.sources.contains_key(TOOL_USE);
        let name = if has_tool_use && !tools.is_empty() { TOOL_USE } else { DEFAULT };
        let values = messages.iter().chain(tools).chain(variables.values());
        let mut environment = self.environment.clone();
        environment.add_filter(
            "tojson",
            move |state: &mut State, value: Value, options: Kwargs| {
                json::tojson(state, value, options, &marks)
            },
        );
        environment.set_fuel(Some(limits::fuel(values, messages.len(), self.longest_raw)));

        limits::with_stack(move || {
            let mut context: BTreeMap<&str, Value> = BTreeMap::new();
            context.extend(self.tokens.iter().map(|(name, token)| (name.as_str(), token.into())));
            context
                .extend(variables.iter().map(|(name, v)| (name.as_str(), Value::from(Serde(v)))));
            context.insert("messages", Value::from(Serde(messages)));
            context.insert("tools", Value::from(()));
            if !tools.is_empty() {
                context.insert("tools", Value::from(Serde(tools)));
            }
            context.insert("documents", Value::from(()));
            context.insert("add_generation_prompt", input.add_generation_prompt.into());
            context.insert("strftime_now", Value::from_function(strftime_now));
            let mut output = limits::Output::default();
            environment
                .get_template(name)
                .and_then(|t| t.render_captured_to(Value::from(context), &mut output).map(drop))
                .map_err(|e| self.error(&e))?;
            Ok(output.into_text())
        })
        .map_err(|e| self.error(&e))?
    }
}

/// The messages without fields that are null.
fn messages(input: &TemplateInput) -> Vec<serde_json::Value> {
    let mut messages = input.messages.clone();
    for fields in messages.iter_mut().filter_map(serde_json::Value::as_object_mut) {
        fields.retain(|_, value| !value.is_null());
    }
    messages
}

/// Puts `mark` before the arguments of calls and the results of tools that are strings.
fn mark_verbatim(messages: &mut [serde_json::Value], mark: char) {
    let put = |value: Option<&mut serde_json::Value>| {
        if let Some(serde_json::Value::String(text)) = value {
            text.insert(0, mark);
        }
    };
    for message in messages {
        let calls = message.get_mut("tool_calls").and_then(serde_json::Value::as_array_mut);
        for call in calls.into_iter().flatten() {
            put(call.pointer_mut("/function/arguments"));
        }
        if message.get("role").is_some_and(|role| role == "tool") {
            put(message.get_mut("content"));
        }
    }
}

/// Reads a file if it is there.
fn read_optional(path: &Path) -> Result<Option<String>> {
    match read_text(path, FILE_LIMIT) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path)(e)),
    }
}

/// The value of `chat_template`: a template, or a list of `{"name", "template"}`.
fn named_templates<'a>(
    path: &Path,
    value: &'a serde_json::Value,
) -> Result<Vec<(&'a str, &'a str)>> {
    let fail = |reason: &str| Error::ChatTemplate {
        path: path.to_path_buf(),
        reason: format!("`chat_template` {reason}"),
        source: None,
    };
    let templates = match value {
        serde_json::Value::String(source) => vec![(DEFAULT, source.as_str())],
        serde_json::Value::Array(list) => list
            .iter()
            .map(|entry| Some((entry.get("name")?.as_str()?, entry.get("template")?.as_str()?)))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| fail("has an entry without `name` and `template`"))?,
        _ => return Err(fail("is neither a string nor a list")),
    };
    if templates.iter().any(|(name, _)| *name == DEFAULT) {
        Ok(templates)
    } else {
        Err(fail("has no template named `default`"))
    }
}

/// The time given, or the present.
fn clock(now: Option<&str>) -> Result<Zoned> {
    let fail = |e: jiff::Error| Error::argument("now", e.to_string());
    match now {
        Some(text) => {
            text.parse::<DateTime>().and_then(|t| t.to_zoned(TimeZone::UTC)).map_err(fail)
        }
        None => {
            Ok(Timestamp::try_from(SystemTime::now()).map_err(fail)?.to_zoned(TimeZone::system()))
        }
    }
}

/// `raise_exception(message)`: how a template refuses a conversation.
fn raise_exception(message: String) -> std::result::Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message).with_source(Refused))
}

/// Marks the error of a template that refuses on purpose; its message is for the user.
#[derive(Debug, thiserror::Error)]
#[error("the template called raise_exception")]
struct Refused;
