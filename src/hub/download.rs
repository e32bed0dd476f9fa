//! One file, from the server to its name in `blobs`.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::PathBuf;

use ureq::Body;
use ureq::http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use ureq::http::{Response, StatusCode};

use super::HubProgress;
use super::cache::{Cache, has};
use super::checksum::{Checksum, Hasher};
use super::error::{Attempt, Checked, Fault, HubProblem};
use super::http::{Ask, Client, is_beyond_end, reason_of};
use super::listing::malformed;
use crate::error::{Error, Result, WRITE};

/// Bytes that are read, hashed and written at once.
const CHUNK: usize = 256 << 10;

/// An attempt that brought this much was worth it.
const WORTH: u64 = 1 << 20;

/// A file that is to be downloaded.
pub(super) struct Wanted<'a> {
    pub(super) name: &'a str,
    pub(super) url: String,
    pub(super) size: u64,
    pub(super) checksum: &'a Checksum,
}

impl Wanted<'_> {
    /// Downloads what is missing of the file, checks it, and gives it its name.
    pub(super) fn download(
        &self,
        cache: &Cache,
        client: &Client<'_>,
        retries: u32,
        progress: &mut dyn FnMut(HubProgress<'_>),
    ) -> Attempt<()> {
        let blob = cache.blob(self.checksum);
        let _lock = cache.lock(self.name, self.checksum, client, progress)?;
        if has(&blob, self.size) {
            return Ok(());
        }
        let mut partial = Partial::open(cache.partial(self.checksum), self, client)?;
        // What is here already may have been left by another program.
        let mut found = partial.len > 0;
        let mut furthest = partial.len;
        loop {
            client.persist(progress, retries, |progress, patience| {
                let done = self.receive(&mut partial, client, progress);
                // Not what was here before: a server could go on like that for ever.
                if partial.len.saturating_sub(furthest) >= WORTH {
                    furthest = partial.len;
                    patience.renew();
                }
                done
            })?;
            let got = partial.hasher.result();
            if got == self.checksum.as_str() {
                partial.file.sync_all().map_err(Error::io(WRITE, &partial.path))?;
                fs::rename(&partial.path, &blob).map_err(Error::io(WRITE, &blob))?;
                return Ok(());
            }
            partial.restart(self)?;
            if !std::mem::take(&mut found) {
                fs::remove_file(&partial.path).map_err(Error::io("remove", &partial.path))?;
                let (file, expected) = (self.name.to_owned(), self.checksum.as_str().to_owned());
                return Err(HubProblem::Checksum { file, expected, got }.into());
            }
        }
    }

    /// One request for the rest of the file.
    fn receive(
        &self,
        partial: &mut Partial,
        client: &Client<'_>,
        progress: &mut dyn FnMut(HubProgress<'_>),
    ) -> Attempt<()> {
        let mut tell =
            |done| progress(HubProgress::File { name: self.name, done, total: self.size });
        tell(partial.len);
        if partial.len == self.size {
            return Ok(());
        }
        let answer = client
            .send(&self.url, Ask::Content(partial.len))
            .map_err(|fault| of_file(fault, self.name))?;
        if is_beyond_end(&answer) {
            partial.restart(self)?;
            return Err(self.interrupted(partial, "the server refuses to go on from here"));
        }
        self.check_range(&answer, partial)?;
        if answer.status() == StatusCode::OK && partial.len > 0 {
            // A server that sends all of it again.
            partial.restart(self)?;
        }
        self.check_length(&answer, partial)?;
        let mut body = answer.into_body().into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; CHUNK];
        loop {
            client.check_cancelled()?;
            let read = body.read(&mut buffer).map_err(|error| {
                self.interrupted(partial, &reason_of(&ureq::Error::from(error)))
            })?;
            let chunk = buffer.get(..read).unwrap_or_default();
            if chunk.is_empty() {
                break;
            }
            let got = partial.len.saturating_add(length(chunk));
            if got > self.size {
                return Err(self.wrong_length(got).into());
            }
            partial.append(chunk)?;
            tell(partial.len);
        }
        match partial.len == self.size {
            true => Ok(()),
            false => Err(self.interrupted(partial, "it ended too early")),
        }
    }

    /// A part must be the one that was asked for.
    fn check_range(&self, answer: &Response<Body>, partial: &Partial) -> Checked<()> {
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            return Ok(());
        }
        let wrong = || malformed(format!("it sends another part of {}", self.name));
        let range = answer.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
        let range = range.and_then(|range| range.strip_prefix("bytes ")).ok_or_else(wrong)?;
        let (part, total) = range.split_once('/').ok_or_else(wrong)?;
        let (start, _) = part.split_once('-').ok_or_else(wrong)?;
        if start.parse() != Ok(partial.len) {
            return Err(wrong());
        }
        match total.parse() {
            Ok(total) if total != self.size => Err(self.wrong_length(total)),
            _ => Ok(()),
        }
    }

    /// What the server is about to send must be what is missing.
    fn check_length(&self, answer: &Response<Body>, partial: &Partial) -> Checked<()> {
        let length = answer.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        match length.and_then(|length| length.parse::<u64>().ok()) {
            Some(length) if partial.len.checked_add(length) != Some(self.size) => {
                Err(self.wrong_length(partial.len.saturating_add(length)))
            }
            _ => Ok(()),
        }
    }

    fn wrong_length(&self, got: u64) -> HubProblem {
        HubProblem::Length { file: self.name.into(), expected: self.size, got }
    }

    fn interrupted(&self, partial: &Partial, reason: &str) -> Fault {
        let (file, reason) = (self.name.to_owned(), reason.to_owned());
        let problem = HubProblem::Interrupted { file, done: partial.len, total: self.size, reason };
        Fault::Retry(problem, None)
    }
}

/// What is wrong with a file is not wrong with its repository, which has just been listed.
pub(super) fn of_file(fault: Fault, name: &str) -> Fault {
    match fault {
        Fault::Problem(HubProblem::NotFound { .. } | HubProblem::Revision { .. }) => {
            malformed(format!("it lists {name}, which is not there")).into()
        }
        other => other,
    }
}

/// A file that is not complete.
struct Partial {
    file: File,
    path: PathBuf,
    len: u64,
    hasher: Hasher,
}

impl Partial {
    /// Opens what an earlier try left, or begins.
    fn open(path: PathBuf, wanted: &Wanted<'_>, client: &Client<'_>) -> Attempt<Self> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(Error::io(WRITE, &path))?;
        let left = file.metadata().map_err(Error::io("read", &path))?.len();
        let hasher = wanted.checksum.hasher(wanted.size);
        let mut partial = Self { file, path, len: 0, hasher };
        if left > wanted.size {
            partial.restart(wanted)?;
            return Ok(partial);
        }
        let mut buffer = vec![0; CHUNK];
        loop {
            client.check_cancelled()?;
            let read = partial.file.read(&mut buffer).map_err(Error::io("read", &partial.path))?;
            let chunk = buffer.get(..read).unwrap_or_default();
            if chunk.is_empty() {
                return Ok(partial);
            }
            partial.hasher.update(chunk);
            partial.len = partial.len.saturating_add(length(chunk));
        }
    }

    /// Throws away what is here.
    fn restart(&mut self, wanted: &Wanted<'_>) -> Result<()> {
        self.file.set_len(0).map_err(Error::io(WRITE, &self.path))?;
        self.file.rewind().map_err(Error::io(WRITE, &self.path))?;
        self.len = 0;
        self.hasher = wanted.checksum.hasher(wanted.size);
        Ok(())
    }

    fn append(&mut self, chunk: &[u8]) -> Result<()> {
        self.file.write_all(chunk).map_err(Error::io(WRITE, &self.path))?;
        self.hasher.update(chunk);
        self.len = self.len.saturating_add(length(chunk));
        Ok(())
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
