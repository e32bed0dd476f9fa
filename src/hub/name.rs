//! Names of repositories and revisions. They become parts of paths and addresses, so that only what
//! is harmless in both passes.

use std::fmt;

use super::error::{Checked, HubProblem};

/// The branch that is taken where none is named.
const MAIN: &str = "main";

/// The longest owner or name: what the Hub allows.
const MAX_PART: usize = 96;

/// The longest revision: a file name's limit.
const MAX_REVISION: usize = 255;

/// A repository and a revision of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repo {
    name: String,
    revision: Option<String>,
}

impl Repo {
    /// Reads `OWNER/NAME` or `OWNER/NAME@REVISION`.
    pub(super) fn parse(text: &str) -> Checked<Self> {
        let (name, revision) = match text.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (text, None),
        };
        let Some((owner, model)) = name.split_once('/') else {
            return Err(wrong("a repository is named OWNER/NAME"));
        };
        part("owner", owner)?;
        part("name", model)?;
        let repo = Self { name: name.into(), revision: None };
        revision.map_or(Ok(repo.clone()), |revision| repo.at(revision))
    }

    /// The same repository at another revision.
    pub(super) fn at(mut self, revision: &str) -> Checked<Self> {
        let parts_are_plain = revision.split('/').all(|part| {
            !part.is_empty() && !part.starts_with('.') && !part.ends_with('.') && is_plain(part)
        });
        if !parts_are_plain || revision.contains("..") || revision.len() > MAX_REVISION {
            return Err(wrong("after @ comes a branch, a tag or a commit"));
        }
        self.revision = Some(revision.into());
        Ok(self)
    }

    /// `OWNER/NAME`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The branch, tag or commit; `main` where none was named.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }
}

/// As it is parsed.
impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.revision.as_ref().map_or(Ok(()), |revision| write!(f, "@{revision}"))
    }
}

/// Checks an owner or a name.
fn part(what: &str, text: &str) -> Checked<()> {
    if text.is_empty() || text.len() > MAX_PART {
        return Err(wrong(format!("the {what} has 1 to {MAX_PART} characters")));
    }
    if !is_plain(text) {
        return Err(wrong(format!("the {what} is made of letters, digits, `-`, `_` and `.`")));
    }
    // The cache's folders are told apart by "--".
    if text.starts_with(['-', '.']) || text.ends_with(['-', '.']) || has_double(text) {
        return Err(wrong(format!(
            "the {what} neither begins nor ends with `-` or `.`, and has neither `--` nor `..`"
        )));
    }
    Ok(())
}

fn has_double(text: &str) -> bool {
    text.contains("--") || text.contains("..")
}

fn is_plain(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// Whether this is a commit's full hash.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_hex(text)
}

/// Lower-case hexadecimal digits.
pub(super) fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn wrong(reason: impl Into<String>) -> HubProblem {
    HubProblem::Name { reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_and_without_a_revision() {
        for (text, name, revision) in [
            ("openai/gpt-oss-20b", "openai/gpt-oss-20b", "main"),
            (
                "mlx-community/gpt-oss-20b-MXFP4-Q8@main",
                "mlx-community/gpt-oss-20b-MXFP4-Q8",
                "main",
            ),
            ("a/b@refs/pr/1", "a/b", "refs/pr/1"),
            ("a_b/C.d@v1.0-rc_1", "a_b/C.d", "v1.0-rc_1"),
        ] {
            let repo = Repo::parse(text).unwrap();
            assert_eq!((repo.name(), repo.revision()), (name, revision));
            assert_eq!(repo.to_string(), text);
        }
    }

    #[test]
    fn what_would_leave_the_cache_or_the_address_is_no_name() {
        for text in [
            "",
            "/",
            "a",
            "a/",
            "/b",
            "/etc/passwd",
            "../x",
            "a/..",
            "./a",
            "a/b/c",
            "a/b@",
            "a/b@../x",
            "a/b@/x",
            "a/b@x/",
            "a/b@x//y",
            "a/b@.git",
            "a/b@x.",
            "a/b@x..y",
            "a/b?c",
            "a/b#c",
            "a/b c",
            "a/b%2e",
            "a\\b/c",
            "a/b\n",
            "a--b/c",
            "a/-b",
            "a/b-",
            "a/b@x y",
            "a/b@x?y",
            "a/b@x@y",
            "ä/b",
            "~/models/x",
            "a/b\0",
            "C:/x",
        ] {
            assert!(matches!(Repo::parse(text), Err(HubProblem::Name { .. })), "{text:?}");
        }
        let long = "x".repeat(97);
        assert!(Repo::parse(&format!("a/{long}")).is_err());
        assert!(Repo::parse(&format!("a/b@{}", "x".repeat(256))).is_err());
        assert!(Repo::parse(&format!("{}/{}", &long[1..], &long[1..])).is_ok());
    }
}
