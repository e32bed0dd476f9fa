//! MLX's limits as options of loading.
//!
//! The only test of its program, since the limits are the process's.

use gpt_oss_mlx::{Device, Error, LoadOptions, MemoryLimits, Model};
use mlx_rs::memory;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");

fn load(change: impl FnOnce(&mut MemoryLimits)) -> gpt_oss_mlx::Result<Model> {
    let mut options = LoadOptions::default();
    options.device = Device::Cpu;
    change(&mut options.limits);
    Model::load(TINY, &options)
}

/// MLX tells the cache's limit only by setting another.
fn cache_limit() -> usize {
    let limit = memory::set_cache_limit(0).unwrap();
    memory::set_cache_limit(limit).unwrap();
    limit
}

#[test]
fn limits_are_set_only_when_given_and_never_silently_lost() {
    assert_eq!(LoadOptions::default().limits, MemoryLimits::default());
    load(|_| ()).unwrap();
    let (limit, cache) = (memory::memory_limit().unwrap(), cache_limit());
    load(|_| ()).unwrap();
    assert_eq!((memory::memory_limit().unwrap(), cache_limit()), (limit, cache));

    // Only Metal wires memory. The others must not have been set before that was seen.
    if cfg!(all(target_os = "linux", not(feature = "cuda"))) {
        let error = load(|limits| {
            limits.memory = Some(1 << 30);
            limits.cache = Some(1 << 20);
            limits.wired = Some(1 << 20);
        });
        let error = error.unwrap_err();
        assert!(matches!(error, Error::Argument { name: "limits.wired", .. }), "{error:?}");
        assert!(error.to_string().contains("only Metal"), "{error}");
        assert_eq!((memory::memory_limit().unwrap(), cache_limit()), (limit, cache));
    }

    load(|limits| limits.memory = Some(3 << 30)).unwrap();
    assert_eq!((memory::memory_limit().unwrap(), cache_limit()), (3 << 30, cache));
    load(|limits| limits.cache = Some(0)).unwrap();
    assert_eq!((memory::memory_limit().unwrap(), cache_limit()), (3 << 30, 0));
    load(|limits| limits.cache = Some(1 << 20)).unwrap();
    assert_eq!(cache_limit(), 1 << 20);
}
