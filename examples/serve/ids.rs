//! Names of requests and their parts.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::{SystemTime, UNIX_EPOCH};

/// A number that no one can guess and that hardly comes twice.
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// `prefix` and 32 hexadecimal digits.
pub fn id(prefix: &str) -> String {
    format!("{prefix}{:016x}{:016x}", random(), random())
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
