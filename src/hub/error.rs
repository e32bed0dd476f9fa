//! What can go wrong with a model's name.

use std::time::Duration;

use crate::error::readable;

/// A model could not be had by its name.
#[derive(Debug, thiserror::Error)]
#[error("{model}: {problem}")]
#[non_exhaustive]
pub struct HubError {
    /// The name as it was given.
    pub model: String,
    /// What is wrong.
    pub problem: HubProblem,
}

impl HubError {
    /// The next step for whoever sees this error, in one sentence.
    pub fn hint(&self) -> String {
        self.problem.hint()
    }
}

/// Why a model could not be had. No text here holds a token or a signed address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HubProblem {
    /// It is no folder, and it cannot be the name of a repository.
    #[error("there is no such folder, and it is no repository's name either: {reason}")]
    Name {
        /// Which rule of names it breaks.
        reason: String,
    },
    /// Nobody knows a repository of this name, or it is private.
    #[error(
        "there is no such folder, and the Hub shows no repository of this name{}",
        if *with_token { " to the owner of this token" } else { " to someone without a token" }
    )]
    NotFound {
        /// Whether a token was sent.
        with_token: bool,
    },
    /// The repository has no such branch, tag or commit.
    #[error("the repository has no revision {revision}")]
    Revision {
        /// The branch, tag or commit that was asked for.
        revision: String,
    },
    /// The repository's owner gives access only to those who ask for it.
    #[error(
        "access is restricted by its owner{}",
        if *with_token { ", and this token has none" } else { ", and no token was given" }
    )]
    Gated {
        /// Whether a token was sent.
        with_token: bool,
    },
    /// The Hub refuses, for another reason.
    #[error("the Hub refuses access with status {status}")]
    Refused {
        /// 401 or 403.
        status: u16,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// The Hub cannot be reached.
    #[error("{host} cannot be reached: {reason}")]
    Network {
        /// Whom the request was for.
        host: String,
        /// What failed.
        reason: String,
    },
    /// A connection ended in the middle of a file, again and again.
    #[error(
        "the connection broke after {} of {} of {file}: {reason}",
        readable(*done),
        readable(*total)
    )]
    Interrupted {
        /// The file.
        file: String,
        /// Its bytes that are here.
        done: u64,
        /// All its bytes.
        total: u64,
        /// What failed.
        reason: String,
    },
    /// Too many requests.
    #[error("{host} wants fewer requests{}", .retry_after.map_or_else(String::new, in_seconds))]
    RateLimited {
        /// Who says so.
        host: String,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
    /// The server has a problem of its own.
    #[error("{host} answered with status {status}")]
    Server {
        /// The server.
        host: String,
        /// The HTTP status.
        status: u16,
    },
    /// There is too little space for the files.
    #[error(
        "{} are to be downloaded, and the disk has {} left",
        readable(*needed),
        readable(*available)
    )]
    NoSpace {
        /// Bytes still to be downloaded.
        needed: u64,
        /// Bytes that are free.
        available: u64,
    },
    /// A file is longer or shorter than the repository says.
    #[error("{file} has {got} bytes on the server, and {expected} by the repository's list")]
    Length {
        /// The file.
        file: String,
        /// Bytes by the list.
        expected: u64,
        /// Bytes that the server has.
        got: u64,
    },
    /// A file's content is not what the repository says.
    #[error("{file} has the checksum {got} instead of {expected}")]
    Checksum {
        /// The file.
        file: String,
        /// By the repository's list, in hexadecimal.
        expected: String,
        /// Of what came.
        got: String,
    },
    /// What the server says makes no sense, or is unsafe to follow.
    #[error("the server's answer is of no use: {reason}")]
    Malformed {
        /// What is wrong with it.
        reason: String,
    },
    /// The repository holds no model that can be loaded.
    #[error("the repository holds no model for this library: {reason}")]
    Unsuitable {
        /// What is missing.
        reason: String,
    },
    /// Offline, and the cache does not have all of it.
    #[error("{reason}, and the cache lacks {}", missing.join(", "))]
    NotCached {
        /// Why only the cache was looked at.
        reason: String,
        /// The files, or the revision, that are missing.
        missing: Vec<String>,
    },
    /// The caller's [`CancelToken`](crate::CancelToken) said so.
    #[error("the download was cancelled")]
    Cancelled,
}

impl HubProblem {
    fn hint(&self) -> String {
        match self {
            Self::Name { .. } => {
                "give a model's folder, or OWNER/NAME as on the Hub, such as openai/gpt-oss-20b"
                    .into()
            }
            Self::NotFound { with_token: false } => {
                "check the spelling of OWNER/NAME; for a private repository set HF_TOKEN".into()
            }
            Self::NotFound { with_token: true } => {
                "check the spelling of OWNER/NAME, and that the token may read this repository"
                    .into()
            }
            Self::Revision { .. } => {
                "check the branch, tag or commit on the repository's page".into()
            }
            Self::Gated { with_token: false } => "accept the conditions on the repository's page, \
                                                  and set HF_TOKEN or run `hf auth login`"
                .into(),
            Self::Gated { with_token: true } => "accept the conditions on the repository's page \
                                                 with the account of this token, which must be \
                                                 allowed to read gated repositories"
                .into(),
            Self::Refused { with_token: false, .. } => "set HF_TOKEN or run `hf auth login`".into(),
            Self::Refused { with_token: true, .. } => {
                "make a new token that may read this repository, and set HF_TOKEN".into()
            }
            Self::Network { .. } => "check the connection and the proxy, and HF_ENDPOINT where a \
                                     mirror is used; the next try goes on where this one ended"
                .into(),
            Self::Interrupted { .. } => "try again: what is here is kept, and only the rest is \
                                         downloaded"
                .into(),
            Self::RateLimited { retry_after, .. } => format!(
                "try again{}; a token raises the limit",
                retry_after.map_or_else(|| " later".into(), in_seconds)
            ),
            Self::Server { .. } => "try again later; what is here is kept".into(),
            Self::NoSpace { needed, available } => format!(
                "free {}, or set HF_HOME to a folder on a larger disk",
                readable(needed.saturating_sub(*available))
            ),
            Self::Length { .. } => {
                "try again later; where a mirror or a proxy is used, it may be out of date".into()
            }
            Self::Checksum { .. } => "what came was thrown away: try again; where a mirror or a \
                                      proxy is used, it may change files"
                .into(),
            Self::Malformed { .. } => {
                "check HF_ENDPOINT, and whether a proxy answers in the Hub's place".into()
            }
            Self::Unsuitable { .. } => "take a repository with GPT-OSS in safetensors, such as \
                                        openai/gpt-oss-20b or mlx-community/gpt-oss-20b-MXFP4-Q8"
                .into(),
            Self::NotCached { .. } => {
                "go online once without HF_HUB_OFFLINE, so that it is downloaded".into()
            }
            Self::Cancelled => "the next try goes on where this one ended".into(),
        }
    }
}

fn in_seconds(wait: Duration) -> String {
    format!(" in {} s", wait.as_secs())
}

/// What is right, or what is wrong with it.
pub(super) type Checked<T> = std::result::Result<T, HubProblem>;

/// What one attempt came to.
pub(super) type Attempt<T> = std::result::Result<T, Fault>;

/// Why one attempt failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// Another attempt may help, after as long as the server says.
    Retry(HubProblem, Option<Duration>),
    /// Another attempt would not help.
    Problem(HubProblem),
    /// The same, with an error that names its file.
    Other(crate::Error),
}

impl From<HubProblem> for Fault {
    fn from(problem: HubProblem) -> Self {
        Self::Problem(problem)
    }
}

impl From<crate::Error> for Fault {
    fn from(error: crate::Error) -> Self {
        Self::Other(error)
    }
}

impl Fault {
    /// The error for the caller.
    pub(super) fn of(self, model: &str) -> crate::Error {
        match self {
            Self::Retry(problem, _) | Self::Problem(problem) => {
                HubError { model: model.into(), problem }.into()
            }
            Self::Other(error) => error,
        }
    }
}
