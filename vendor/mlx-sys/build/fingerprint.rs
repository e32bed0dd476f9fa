//! Short names for contents: FNV-1a, 64 bits. It tells builds apart, it does
//! not protect; downloads are checked by pip, cargo and git with theirs.

use std::io;
use std::path::{Path, PathBuf};

/// A hash that is fed piece by piece; the borders of the pieces count.
pub struct Fingerprint(u64);

impl Fingerprint {
    pub fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub fn add(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().copied().chain((bytes.len() as u64).to_le_bytes()) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub fn hex(&self) -> String {
        format!("{:016x}", self.0)
    }
}

/// The public headers of mlx-c under `root`, sorted by name.
pub fn mlx_c_headers(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut headers = Vec::new();
    for entry in std::fs::read_dir(root.join("mlx/c"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "h") {
            headers.push(path);
        }
    }
    headers.sort();
    Ok(headers)
}

/// What the bindings were generated from: names and contents of the headers.
pub fn of_headers(root: &Path) -> io::Result<String> {
    let mut fingerprint = Fingerprint::new();
    for header in mlx_c_headers(root)? {
        if let Some(name) = header.file_name() {
            fingerprint.add(name.as_encoded_bytes());
        }
        fingerprint.add(&std::fs::read(&header)?);
    }
    Ok(fingerprint.hex())
}
