//! The libraries of NVIDIA that MLX's CUDA build needs. They are large and
//! belong to the system's driver and toolkit, so they are looked for, never
//! fetched.

use std::path::{Path, PathBuf};

use crate::env;
use crate::plan::Cuda;

/// Folders in which libraries of NVIDIA may lie.
pub struct Search {
    /// Named by the user: libmlxc gets them as rpath.
    named: Vec<PathBuf>,
    /// Searched by the dynamic linker anyway.
    standard: Vec<PathBuf>,
}

impl Search {
    pub fn new() -> Self {
        let mut named = Vec::new();
        let list = env::path("MLX_CUDA_LIBRARY_PATH").unwrap_or_default();
        for folder in std::env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()) {
            // `site-packages/nvidia` has one folder for each library.
            let nested = std::fs::read_dir(&folder).into_iter().flatten().flatten();
            named.extend(nested.map(|entry| entry.path().join("lib")).filter(|path| path.is_dir()));
            named.push(folder);
        }
        for name in ["CUDA_PATH", "CUDA_HOME"] {
            named.extend(env::path(name).map(|root| root.join("lib64")));
        }
        named.push(PathBuf::from("/usr/local/cuda/lib64"));
        let standard = [
            "/usr/lib/x86_64-linux-gnu",
            "/usr/lib/aarch64-linux-gnu",
            "/usr/lib64",
            "/usr/lib",
            "/usr/lib/wsl/lib",
        ];
        let mut standard: Vec<PathBuf> = standard.into_iter().map(PathBuf::from).collect();
        let more = env::path("LD_LIBRARY_PATH").unwrap_or_default();
        standard.extend(std::env::split_paths(&more));
        Self { named, standard }
    }

    fn folder_of(&self, library: &str) -> Option<&Path> {
        let holds = |folder: &&PathBuf| folder.join(library).exists();
        self.standard.iter().chain(&self.named).find(holds).map(PathBuf::as_path)
    }

    /// Whether the toolkit's libraries of this major version are here.
    pub fn has(&self, cuda: Cuda) -> bool {
        let [_, cublas, ..] = cuda.libraries();
        self.folder_of(cublas).is_some()
    }

    /// The folders that libmlxc must name for `libmlx.so` to find its
    /// libraries, with a warning for what is nowhere: a machine that only
    /// compiles, and links with lld, does without.
    pub fn rpath(&self, cuda: Cuda) -> Vec<String> {
        let mut rpath = Vec::new();
        let mut missing = Vec::new();
        for library in cuda.libraries() {
            match self.folder_of(library) {
                Some(folder) if self.named.iter().any(|named| named == folder) => {
                    let folder = folder.display().to_string();
                    if !rpath.contains(&folder) {
                        rpath.push(folder);
                    }
                }
                Some(_) => {}
                None => missing.push(library),
            }
        }
        if !missing.is_empty() {
            let major = match cuda {
                Cuda::V12 => 12,
                Cuda::V13 => 13,
            };
            println!(
                "cargo::warning=MLX's CUDA {major} build needs {}, which the library folders do \
                 not have. Before running (or linking with GNU ld), install NVIDIA's driver, CUDA {major}, cuDNN 9 and NCCL \
                 2, or build with MLX_CUDA_LIBRARY_PATH set to the folders that hold them (the \
                 folder `nvidia` of Python's site-packages will do); MLX_CUDA=12 or 13 chooses the \
                 version.",
                missing.join(", ")
            );
        }
        rpath
    }
}
