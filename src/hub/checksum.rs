//! The two checksums of the Hub, which are also the names of the cache's files.

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use super::name::is_hex;

/// What a file's content must hash to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Checksum {
    /// Of a large file: SHA-256 of its content.
    Sha256(String),
    /// Of a small file: git's name of it, SHA-1 of a header and its content.
    Git(String),
}

impl Checksum {
    /// A checksum in hexadecimal; which one, its length tells.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text.len() {
            64 if is_hex(text) => Some(Self::Sha256(text.into())),
            40 if is_hex(text) => Some(Self::Git(text.into())),
            _ => None,
        }
    }

    /// In hexadecimal.
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Sha256(text) | Self::Git(text) => text,
        }
    }

    /// Begins to hash a file of `size` bytes.
    pub(super) fn hasher(&self, size: u64) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher(Context::new(&SHA256)),
            Self::Git(_) => {
                let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
                context.update(format!("blob {size}\0").as_bytes());
                Hasher(context)
            }
        }
    }
}

/// A checksum in the making.
pub(super) struct Hasher(Context);

impl Hasher {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum so far, in hexadecimal.
    pub(super) fn result(&self) -> String {
        self.0.clone().finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of `printf 'hello\n' | git hash-object --stdin` and `| sha256sum`.
    #[test]
    fn checksums_are_those_of_git_and_sha256sum() {
        for known in [
            "ce013625030ba8dba906f756967f9e9ca394464a",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        ] {
            let checksum = Checksum::parse(known).unwrap();
            let mut hasher = checksum.hasher(6);
            hasher.update(b"hel");
            hasher.update(b"lo\n");
            assert_eq!(hasher.result(), known);
            assert_eq!(checksum.as_str(), known);
        }
    }

    #[test]
    fn nothing_but_the_two_kinds_is_a_checksum() {
        let short = "a".repeat(39);
        let (upper, path) = ("A".repeat(64), format!("../{}", "a".repeat(37)));
        for text in ["", &short, &upper, &path, "\"abc-2\""] {
            assert_eq!(Checksum::parse(text), None, "{text}");
        }
    }
}
