//! Models by name: `openai/gpt-oss-20b` instead of a folder. What is missing is downloaded from the
//! Hugging Face Hub into the cache that Python's tools share.
//!
//! ```no_run
//! use gpt_oss_mlx::hub::{HubOptions, HubProgress, ModelRef};
//! use gpt_oss_mlx::{LoadOptions, TextModel};
//!
//! # fn main() -> gpt_oss_mlx::Result<()> {
//! let model = ModelRef::parse("openai/gpt-oss-20b")?;
//! let folder = model.resolve(&HubOptions::from_env()?, |event| {
//!     if let HubProgress::File { name, done, total } = event {
//!         eprintln!("{name}: {done} of {total} bytes");
//!     }
//! })?;
//! let model = TextModel::load(folder, &LoadOptions::default())?;
//! # Ok(())
//! # }
//! ```
//!
//! Only what the model needs is taken, each file is checked against the repository's checksum before
//! it gets its name, and what a broken download left is gone on with. `docs/hub.md` has the details.

mod cache;
mod checksum;
mod download;
mod error;
mod http;
mod listing;
mod name;
mod options;

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ureq::http::HeaderMap;
use ureq::http::header::{CONTENT_LENGTH, ETAG};

pub use self::error::{HubError, HubProblem};
pub use self::name::Repo;
pub use self::options::{HubOptions, HubToken};

use self::cache::{Cache, has};
use self::checksum::Checksum;
use self::download::{Wanted, of_file};
use self::error::{Attempt, Fault};
use self::http::{Ask, Client, reason_of};
use self::listing::{CONFIG, File, Listing, malformed};
use crate::config::Config;
use crate::error::Result;

/// The longest list of files that is read: 16 MiB.
const MAX_LISTING_BYTES: u64 = 16 << 20;

/// Most attempts after a first one that failed, before anything was downloaded.
const LIST_RETRIES: u32 = 2;

/// What a part of an address is made of; everything else is escaped.
const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Where a model is: in a folder, or on the Hub.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelRef {
    /// A folder with a model's files.
    Folder(PathBuf),
    /// A repository of the Hub.
    Repo(Repo),
}

/// What happens while a model is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HubProgress<'a> {
    /// It is known what is missing. Config and index may have been downloaded before.
    Missing {
        /// Files to be downloaded.
        files: usize,
        /// Their bytes that are not here yet.
        bytes: u64,
    },
    /// A file's bytes are here: what an earlier try left, and after each chunk. `done` goes back
    /// where what was here turns out to be of no use.
    File {
        /// The file's name.
        name: &'a str,
        /// Bytes that are here.
        done: u64,
        /// All its bytes.
        total: u64,
    },
    /// Something went wrong that may go right the next time, or another process is at it.
    Waiting {
        /// Until the next attempt.
        wait: Duration,
        /// What went wrong.
        reason: &'a str,
    },
    /// The Hub does not answer; what the cache has is used.
    Cached {
        /// Why.
        reason: &'a str,
    },
}

impl ModelRef {
    /// Reads what a user calls a model: a folder that exists, or else `OWNER/NAME` or
    /// `OWNER/NAME@REVISION`, where the revision is a branch, a tag or a commit.
    ///
    /// # Errors
    /// [`Error::Hub`](crate::Error::Hub) with [`HubProblem::Name`] for what is neither.
    pub fn parse(text: &str) -> Result<Self> {
        // A file is no model, but its error is better from who reads it.
        if Path::new(text).exists() {
            return Ok(Self::Folder(text.into()));
        }
        Repo::parse(text).map(Self::Repo).map_err(|problem| Fault::from(problem).of(text))
    }

    /// The same repository at another branch, tag or commit.
    ///
    /// # Errors
    /// [`Error::Hub`](crate::Error::Hub) with [`HubProblem::Name`] for what cannot be a revision;
    /// [`Error::Argument`](crate::Error::Argument) for a folder, which has none.
    pub fn at(self, revision: &str) -> Result<Self> {
        match self {
            Self::Folder(folder) => {
                let reason = format!("{} is a folder, which has no revisions", folder.display());
                Err(crate::Error::argument("revision", reason))
            }
            Self::Repo(repo) => {
                let named = format!("{}@{revision}", repo.name());
                repo.at(revision).map(Self::Repo).map_err(|e| Fault::from(e).of(&named))
            }
        }
    }

    /// The folder for [`TextModel::load`](crate::TextModel::load): the one that was named, or the
    /// repository's in the cache, after what is missing there was downloaded. Blocks until then;
    /// [`HubOptions::cancel`] ends it. May be called by several threads and processes at once.
    ///
    /// # Errors
    /// [`Error::Hub`](crate::Error::Hub) with what is wrong; [`Error::Io`](crate::Error::Io) when
    /// the cache cannot be written; [`Error::Config`](crate::Error::Config) for a model of another
    /// kind, before its weights are downloaded.
    pub fn resolve(
        &self,
        options: &HubOptions,
        mut progress: impl FnMut(HubProgress<'_>),
    ) -> Result<PathBuf> {
        match self {
            Self::Folder(folder) => Ok(folder.clone()),
            Self::Repo(repo) => {
                resolve(repo, options, &mut progress).map_err(|fault| fault.of(&repo.to_string()))
            }
        }
    }
}

/// As it is parsed.
impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            Self::Repo(repo) => repo.fmt(f),
        }
    }
}

fn resolve(
    repo: &Repo,
    options: &HubOptions,
    progress: &mut dyn FnMut(HubProgress<'_>),
) -> Attempt<PathBuf> {
    let cache = Cache::new(&options.cache, repo);
    let cached = cache.commit(repo.revision());
    let missing = match &cached {
        Some(commit) => cache.missing(commit),
        None => vec![format!("revision {}", repo.revision())],
    };
    let complete = cached.filter(|_| missing.is_empty()).map(|commit| cache.snapshot(&commit));
    if options.offline {
        let reason = "offline mode is on".to_owned();
        return complete.ok_or_else(|| HubProblem::NotCached { reason, missing }.into());
    }

    let client = Client::new(options)?;
    // Who is offline should not wait long to hear it, least of all who has everything already.
    let retries = if complete.is_some() { 0 } else { options.retries.min(LIST_RETRIES) };
    let listing = client.persist(progress, retries, |_, _| list(&client, repo, options));
    let listing = match (listing, complete) {
        (Err(Fault::Problem(problem)), Some(folder)) if is_outage(&problem) => {
            progress(HubProgress::Cached { reason: &problem.to_string() });
            return Ok(folder);
        }
        (listing, _) => listing?,
    };
    Snapshot { repo, options, client, cache, commit: listing.commit.clone() }
        .complete(&listing, progress)
}

/// Whether the Hub is not to be had at the moment, rather than against it.
fn is_outage(problem: &HubProblem) -> bool {
    use HubProblem::{Network, RateLimited, Server};
    matches!(problem, Network { .. } | Server { .. } | RateLimited { .. })
}

/// Asks what there is.
fn list(client: &Client<'_>, repo: &Repo, options: &HubOptions) -> Attempt<Listing> {
    let (endpoint, name, revision) = (&options.endpoint, repo.name(), repo.revision());
    let revision = utf8_percent_encode(revision, PART);
    let url = format!("{endpoint}/api/models/{name}/revision/{revision}?blobs=true");
    let answer = client.send(&url, Ask::Content(0)).map_err(|fault| match fault {
        Fault::Problem(HubProblem::Revision { .. }) => {
            HubProblem::Revision { revision: repo.revision().into() }.into()
        }
        other => other,
    })?;
    let mut json = Vec::new();
    let body = answer.into_body().into_with_config().limit(u64::MAX).reader();
    body.take(MAX_LISTING_BYTES + 1).read_to_end(&mut json).map_err(|error| {
        let reason = reason_of(&ureq::Error::from(error));
        Fault::Retry(HubProblem::Network { host: client.host().into(), reason }, None)
    })?;
    if u64::try_from(json.len()).is_ok_and(|len| len > MAX_LISTING_BYTES) {
        return Err(malformed("the list of files has no end").into());
    }
    Ok(Listing::parse(&json)?)
}

/// One commit of a repository on its way into the cache.
struct Snapshot<'a> {
    repo: &'a Repo,
    options: &'a HubOptions,
    client: Client<'a>,
    cache: Cache,
    commit: String,
}

impl Snapshot<'_> {
    /// Downloads what is missing: first what says whether the rest is wanted at all.
    fn complete(
        &self,
        listing: &Listing,
        progress: &mut dyn FnMut(HubProgress<'_>),
    ) -> Attempt<PathBuf> {
        let folder = self.cache.snapshot(&self.commit);
        self.cache.prepare()?;
        let (mut small, index) = (listing.small()?, listing.index()?);
        for file in small.extract_if(.., |file| file.name == CONFIG) {
            self.fetch(&self.described(file, progress)?, progress)?;
        }
        Config::from_dir(&folder)?;
        let index = match index {
            None => None,
            Some(file) => {
                self.fetch(&self.described(file, progress)?, progress)?;
                Some(self.cache.read_index(&self.commit)?)
            }
        };
        small.extend(listing.weights(index.as_ref())?);

        let mut missing = Vec::new();
        let mut bytes = 0_u64;
        for file in small {
            let file = self.described(file, progress)?;
            if !has(&folder.join(file.name), file.size) {
                let left = self.cache.bytes_left(&file.checksum, file.size);
                bytes = bytes.saturating_add(left);
                missing.push(file);
            }
        }
        if !missing.is_empty() {
            progress(HubProgress::Missing { files: missing.len(), bytes });
        }
        match self.cache.available_space() {
            Some(available) if available < bytes => {
                return Err(HubProblem::NoSpace { needed: bytes, available }.into());
            }
            _ => {}
        }
        for file in &missing {
            self.fetch(file, progress)?;
        }
        // Last, so that what a branch leads to is complete.
        self.cache.set_commit(self.repo.revision(), &self.commit)?;
        Ok(folder)
    }

    /// A file with its size and checksum. A mirror's list may lack them; then its headers have them.
    fn described<'a>(
        &self,
        file: &'a File,
        progress: &mut dyn FnMut(HubProgress<'_>),
    ) -> Attempt<Described<'a>> {
        let name = file.name.as_str();
        if let (Some(size), Some(checksum)) = (file.size, file.checksum.clone()) {
            return Ok(Described { name, size, checksum });
        }
        let answer = self.client.persist(progress, self.options.retries, |_, _| {
            let answer = self.client.send(&self.url(name), Ask::Headers);
            answer.map_err(|fault| of_file(fault, name))
        })?;
        let headers = answer.headers();
        // Those of the large file itself are named `linked`, where the answer leads elsewhere.
        let size = header(headers, "x-linked-size").or_else(|| match answer.status().as_u16() {
            200 => header(headers, CONTENT_LENGTH.as_str()),
            _ => None,
        });
        let checksum = header(headers, "x-linked-etag").or_else(|| header(headers, ETAG.as_str()));
        let checksum = checksum.map(|tag| tag.trim_start_matches("W/").trim_matches('"'));
        match (size.and_then(|size| size.parse().ok()), checksum.and_then(Checksum::parse)) {
            (Some(size), Some(checksum)) => Ok(Described { name, size, checksum }),
            _ => Err(malformed(format!("it gives no size and checksum for {name}")).into()),
        }
    }

    /// Makes sure that a file is in the snapshot.
    fn fetch(
        &self,
        file: &Described<'_>,
        progress: &mut dyn FnMut(HubProgress<'_>),
    ) -> Attempt<()> {
        let Described { name, size, ref checksum } = *file;
        if has(&self.cache.snapshot(&self.commit).join(name), size) {
            return Ok(());
        }
        let wanted = Wanted { name, url: self.url(name), size, checksum };
        wanted.download(&self.cache, &self.client, self.options.retries, progress)?;
        Ok(self.cache.link(&self.commit, name, checksum)?)
    }

    /// Of the commit, so that all files are of one, whatever happens to the branch meanwhile.
    fn url(&self, file: &str) -> String {
        let (endpoint, repo) = (&self.options.endpoint, self.repo.name());
        format!("{endpoint}/{repo}/resolve/{}/{}", self.commit, utf8_percent_encode(file, PART))
    }
}

/// A file of which everything is known.
struct Described<'a> {
    name: &'a str,
    size: u64,
    checksum: Checksum,
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
