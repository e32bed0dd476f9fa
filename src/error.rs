//! The one error type of the library. Every variant names the file, field, tensor, operation or
//! argument that is wrong, and [`Error::hint`] says what to do next.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The library's result type.
pub type Result<T> = std::result::Result<T, Error>;

/// What another library reported, kept whole as the source of an [`Error`].
pub type Source = Box<dyn StdError + Send + Sync + 'static>;

/// The [`Error::Io::action`] of writing a file.
pub(crate) const WRITE: &str = "write";

/// Everything that can go wrong, from reading a model's files to sampling a token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done, as a verb: "open", "read", "map".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's own error.
        source: io::Error,
    },
    /// A JSON file could not be parsed.
    #[error("{} is not valid JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why the parser stopped.
        source: serde_json::Error,
    },
    /// A field of config.json or generation_config.json is missing, unknown or out of range.
    #[error("{}: field `{field}`: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The field's name, dotted where it is nested (`rope_scaling.factor`).
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A safetensors file or its index is damaged or unsafe to read.
    #[error("{}: {reason}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file with a session's cache is damaged, or is not for this model and policy.
    #[error("{}: {reason}", path.display())]
    CacheFile {
        /// The file.
        path: PathBuf,
        /// Which check failed.
        reason: String,
    },
    /// The checkpoint's tensors are not the ones that the config asks for.
    #[error(transparent)]
    Tensors(#[from] TensorMismatch),
    /// A model could not be had by its name.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(#[from] crate::hub::HubError),
    /// An MLX operation failed.
    #[error("MLX {op} failed: {message}")]
    Mlx {
        /// The operation, as MLX calls it.
        op: &'static str,
        /// MLX's own message, without paths of the machine that built it.
        message: String,
    },
    /// The tokenizer could not be loaded or used.
    #[error("tokenizer {}: {reason}", path.display())]
    Tokenizer {
        /// tokenizer.json.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// The tokenizer library's error, where there is one.
        source: Option<Source>,
    },
    /// The chat template could not be compiled or rendered.
    #[error("chat template {}: {reason}", path.display())]
    ChatTemplate {
        /// The file that holds the template.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// The template engine's error, where there is one.
        source: Option<Source>,
    },
    /// A message, a tool or another part of a conversation is wrong.
    #[error("conversation: `{field}` {reason}")]
    Conversation {
        /// Where it is, such as `messages[2].tool_calls[0].function.name`.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An option or argument given by the caller is out of its range.
    #[error("argument `{name}`: {reason}")]
    Argument {
        /// The argument's name, as it is spelled in the API.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The prompt and the requested tokens do not fit into the model's context.
    #[error("{tokens} tokens do not fit into the model's context of {limit}")]
    ContextFull {
        /// Tokens asked for.
        tokens: usize,
        /// Tokens that fit.
        limit: usize,
    },
    /// The model does not fit into the memory that there is.
    #[error(
        "the model needs {} of memory with a context of {context} tokens, and {} are available",
        readable(*needed),
        readable(*available)
    )]
    OutOfMemory {
        /// Bytes needed.
        needed: u64,
        /// Bytes that the device has for it.
        available: u64,
        /// Tokens of context that were asked for.
        context: usize,
        /// The longest context that would fit; 0 when none does.
        largest_context: usize,
    },
    /// A cache no longer holds what going back to this length needs.
    #[error("the cache cannot go back from {from} tokens to {to}")]
    CannotGoBack {
        /// Tokens in the cache.
        from: usize,
        /// Tokens that were to be left.
        to: usize,
    },
    /// The model's output at this position is not a number.
    #[error("the logits at position {position} are not finite")]
    NotFinite {
        /// Position in the sequence, counted from 0.
        position: usize,
    },
    /// Biases and constraints left no token to choose from.
    #[error("every token is banned at position {position}")]
    AllBanned {
        /// Position in the sequence, counted from 0.
        position: usize,
    },
    /// A part of a constraint cannot be made into a grammar.
    #[error("{part}: {message}")]
    Grammar {
        /// The part: `response_format`, `tool_choice`, or a tool by its name.
        part: String,
        /// What is wrong with it.
        message: String,
    },
    /// An engine has as many waiting requests as it may have.
    #[error("{limit} requests wait already, which is the engine's limit")]
    QueueFull {
        /// The limit, `max_waiting` of the engine's options.
        limit: usize,
    },
    /// The engine has ended, or takes no new requests since it is about to.
    #[error("the engine has stopped: {reason}")]
    EngineStopped {
        /// Why.
        reason: String,
    },
    /// A request was not done within its time.
    #[error("the request was not done within {limit:?}")]
    TimedOut {
        /// The request's `timeout`.
        limit: Duration,
    },
    /// A generation cannot go on within its grammar.
    #[error("the grammar cannot be continued at token {index}: {message}")]
    Constraint {
        /// Token of the generation, counted from 0.
        index: usize,
        /// Why.
        message: String,
    },
}

impl Error {
    /// The next step for whoever sees this error, in one sentence.
    pub fn hint(&self) -> String {
        match self {
            Self::Io { action: WRITE, path, source } => match source.kind() {
                io::ErrorKind::NotFound => {
                    format!("make the folder for {} first", path.display())
                }
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    format!("make the folder of {} writable for this user", path.display())
                }
                io::ErrorKind::StorageFull
                | io::ErrorKind::QuotaExceeded
                | io::ErrorKind::FileTooLarge => {
                    format!("free some space for {}; what was there is as it was", path.display())
                }
                _ => format!("check that {} can be a file on a working disk", path.display()),
            },
            Self::Io { path, source, .. } => match source.kind() {
                io::ErrorKind::NotFound => format!(
                    "check the path {}; a model folder holds config.json, tokenizer.json and \
                     model.safetensors or its shards",
                    path.display()
                ),
                io::ErrorKind::PermissionDenied => {
                    format!("make {} readable for this user", path.display())
                }
                io::ErrorKind::NotADirectory => {
                    format!("give the folder that holds the model, not {}", path.display())
                }
                _ => format!("check that {} is a readable file on a working disk", path.display()),
            },
            Self::Json { path, .. } => format!("download {} again", path.display()),
            Self::Config { field, .. } => format!(
                "compare `{field}` with the config of openai/gpt-oss-20b; only `model_type: gpt_oss` \
                 is supported"
            ),
            Self::Checkpoint { path, .. } => {
                format!("the file is damaged or incomplete: download {} again", path.display())
            }
            Self::CacheFile { path, .. } => format!(
                "use the model and the kv options that the file was made with, or delete {}: it \
                 can be made anew",
                path.display()
            ),
            Self::Tensors(_) => "config.json and the safetensors files must come from the same \
                                 conversion of a GPT-OSS model; download the folder again"
                .into(),
            #[cfg(feature = "hub")]
            Self::Hub(error) => error.hint(),
            Self::Mlx { message, .. } if message.to_ascii_lowercase().contains("alloc") => {
                "the device ran out of memory: close other programs, shorten the context or take \
                 a smaller model"
                    .into()
            }
            Self::Mlx { .. } => "this is likely a bug in gpt-oss-mlx: please report it with the \
                                 message and the model's config.json"
                .into(),
            Self::Tokenizer { path, .. } => {
                format!("{} must be the file that was published with the model", path.display())
            }
            Self::ChatTemplate { .. } => "check the messages' roles and fields, or use the \
                                          template that was published with the model"
                .into(),
            Self::Conversation { field, .. } => {
                format!("change `{field}`; the shape is that of OpenAI's chat completions API")
            }
            Self::Argument { name, .. } => format!("change `{name}`"),
            Self::ContextFull { limit, .. } => {
                format!("shorten the prompt or ask for fewer tokens, {limit} in all at most")
            }
            Self::OutOfMemory { largest_context: 0, .. } => {
                "close other programs or take a smaller model: there is no room for this one's \
                 weights and the shortest context"
                    .into()
            }
            Self::OutOfMemory { largest_context, .. } => format!(
                "set `max_context` to {largest_context} tokens or fewer, keep the cache in 8 or 4 \
                 bits, or close other programs"
            ),
            Self::CannotGoBack { from, to } if to > from => {
                format!("a cache of {from} tokens can only become shorter")
            }
            Self::CannotGoBack { .. } => "use `rewind`, which goes back as far as is needed, or \
                                          give the policy more `slack`"
                .into(),
            Self::NotFinite { .. } => "the weights are damaged or of an unsupported type: check \
                                       the files' checksums"
                .into(),
            Self::AllBanned { .. } => "allow at least one token: loosen the logit bias".into(),
            Self::QueueFull { .. } => "try again in a while, or raise the engine's `max_waiting` \
                                       or `max_running`"
                .into(),
            Self::EngineStopped { .. } => "start a new engine".into(),
            Self::TimedOut { .. } => "ask for fewer tokens, or give the request more time".into(),
            Self::Grammar { part, .. } if part == "tool_choice" => {
                "offer the tool, or choose among those that are offered".into()
            }
            Self::Grammar { part, .. } => {
                format!("simplify {part}, or enforce less and check the output")
            }
            Self::Constraint { .. } => "simplify the grammar: it leads where no token fits, or \
                                        needs more work per token than is allowed"
                .into(),
        }
    }

    /// Wraps an operating-system error with what was being done to which file.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// An error about a part of a conversation.
    pub(crate) fn conversation(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Conversation { field: field.into(), reason: reason.into() }
    }

    /// An error about a caller's argument.
    pub(crate) fn argument(name: &'static str, reason: impl Into<String>) -> Self {
        Self::Argument { name, reason: reason.into() }
    }
}

/// Bytes as people read them, in powers of ten: "12.1 GB".
pub(crate) fn readable(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        1_000_000_000..1_000_000_000_000 => format!("{:.1} GB", bytes as f64 / 1e9),
        _ => format!("{:.1} TB", bytes as f64 / 1e12),
    }
}

/// Which tensors of a checkpoint are missing, unexpected or of the wrong shape or type.
#[derive(Debug, Clone, Default, PartialEq, Eq, thiserror::Error)]
pub struct TensorMismatch {
    /// Names that the config asks for and no file has.
    pub missing: Vec<String>,
    /// Names that a file has and nothing uses.
    pub unexpected: Vec<String>,
    /// One sentence for each tensor of the wrong shape or type.
    pub misshapen: Vec<String>,
}

impl TensorMismatch {
    /// True when there is nothing to report.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshapen.is_empty()
    }
}

impl fmt::Display for TensorMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Names shown of each list; the rest is counted.
        const SHOWN: usize = 8;
        f.write_str("the checkpoint does not fit its config:")?;
        let lists = [
            ("missing", &self.missing),
            ("unexpected", &self.unexpected),
            ("misshapen", &self.misshapen),
        ];
        for (what, names) in lists.into_iter().filter(|(_, names)| !names.is_empty()) {
            write!(f, " {} {what} (", names.len())?;
            for (i, name) in names.iter().take(SHOWN).enumerate() {
                write!(f, "{}{name}", if i == 0 { "" } else { ", " })?;
            }
            if names.len() > SHOWN {
                write!(f, ", and {} more", names.len() - SHOWN)?;
            }
            f.write_str(")")?;
        }
        Ok(())
    }
}
