//! The limits that MLX's allocator offers.

use mlx_rs::memory;

use crate::error::{Error, Result};

/// Limits of MLX's allocator, in bytes. None, the default, leaves what MLX has.
///
/// They hold for the whole process, every model and every thread in it, from the next load on, and
/// are not taken back when the model goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct MemoryLimits {
    /// Above this MLX waits for work under way to end, and on a GPU gives back what it keeps for
    /// reuse, before it allocates more. It is no hard limit: an array that is needed is allocated
    /// all the same. Risk: set below what a model needs, every step waits, and decoding is slow.
    pub memory: Option<u64>,
    /// Most that MLX keeps for reuse after it was freed; 0 keeps nothing. Risk: set too low, every
    /// step asks the system for memory anew.
    pub cache: Option<u64>,
    /// Memory that macOS keeps resident for the GPU: the first token after a pause comes sooner.
    /// Metal on macOS 15 or later only; on older ones MLX takes it and does nothing, anywhere else
    /// it is an error. Risk: wired memory is lost to all other programs, and large values have been
    /// tied to kernel panics (ml-explore/mlx#3186, ml-explore/mlx-lm#1666).
    pub wired: Option<u64>,
}

impl MemoryLimits {
    /// Sets the limits that are given.
    ///
    /// # Errors
    /// [`Error::Argument`] for one that MLX refuses or that has no effect on this platform; nothing
    /// was changed then.
    pub(crate) fn apply(&self) -> Result<()> {
        let size = |name, bytes: Option<u64>| {
            let size = bytes.map(usize::try_from).transpose();
            size.map_err(|_| Error::argument(name, "more than this machine can address"))
        };
        let wired = size("limits.wired", self.wired)?;
        let limit = size("limits.memory", self.memory)?;
        let cache = size("limits.cache", self.cache)?;
        // First the one that MLX may refuse.
        if let Some(wired) = wired {
            let refused = |e: mlx_rs::error::Exception| {
                let reason = Error::from(e).to_string();
                Error::argument("limits.wired", reason)
            };
            memory::set_wired_limit(wired).map_err(refused)?;
            // MLX answers with the limit before: where there is none it forgets what was set.
            if memory::set_wired_limit(wired).map_err(refused)? != wired {
                let reason = "only Metal has a wired limit, and this build does not run on it";
                return Err(Error::argument("limits.wired", reason));
            }
        }
        if let Some(limit) = limit {
            memory::set_memory_limit(limit)?;
        }
        if let Some(cache) = cache {
            memory::set_cache_limit(cache)?;
        }
        Ok(())
    }
}
