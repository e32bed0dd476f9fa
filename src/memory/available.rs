//! How much memory the machine has for a model.

use sysinfo::{MemoryRefreshKind, System};

use crate::error::Result;
use crate::mlx::{self, Device, GpuMemory};

/// Whose memory a model is kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The system's.
    Cpu,
    /// The system's, shared with the GPU.
    Metal,
    /// The GPU's own.
    Cuda,
}

/// What there is, in bytes, as far as it is known.
#[derive(Debug, Clone, Copy, Default)]
struct Facts {
    gpu: GpuMemory,
    /// What programs can have without swapping: free memory and what the system can drop.
    system: Option<u64>,
    /// What the control group that the process runs in may still take.
    group: Option<u64>,
    /// What MLX holds in this process for other arrays, such as another model.
    active: u64,
    /// What MLX keeps for reuse.
    cached: u64,
}

/// Bytes that a model can have on this device now; None when nothing says so.
///
/// # Errors
/// [`crate::Error::Mlx`] when MLX cannot ask the device.
pub(crate) fn available(device: Device) -> Result<Option<u64>> {
    let kind = match (device.is_gpu(), cfg!(target_os = "macos")) {
        (false, _) => Kind::Cpu,
        (true, true) => Kind::Metal,
        (true, false) => Kind::Cuda,
    };
    let (active, cached) = mlx::held_memory()?;
    let mut facts = Facts { active, cached, ..Facts::default() };
    match kind {
        Kind::Cpu => (facts.system, facts.group) = system_memory(),
        Kind::Metal | Kind::Cuda => facts.gpu = mlx::gpu_memory()?,
    }
    Ok(counted(kind, &facts))
}

/// Which of the numbers counts.
///
/// - Metal: the recommended working set, less what this process has on the GPU already. Not what is
///   free at the moment: macOS compresses and swaps what other programs do not use.
/// - CUDA: what is free. What others hold, nobody takes from them.
/// - CPU: what the system can give without swapping, since every weight is read again and again; in
///   a container, what that may still take.
fn counted(kind: Kind, facts: &Facts) -> Option<u64> {
    // A backend that does not know says 0.
    let known = |bytes: Option<u64>| bytes.filter(|&bytes| bytes > 0);
    match kind {
        Kind::Metal => known(facts.gpu.working_set).map(|all| all.saturating_sub(facts.active)),
        Kind::Cuda => known(facts.gpu.free).map(|free| free.saturating_add(facts.cached)),
        Kind::Cpu => {
            let system = known(facts.system)?;
            let free = facts.group.map_or(system, |group| group.min(system));
            Some(free.saturating_add(facts.cached))
        }
    }
}

/// What the system can give, and what the control group may still take.
fn system_memory() -> (Option<u64>, Option<u64>) {
    let mut system = System::new();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    // sysinfo wants to know the total before it looks at control groups.
    if system.total_memory() == 0 {
        return (None, None);
    }
    // Counted from what the group's programs hold: files that it has read lately, such as a model
    // just downloaded, are dropped when memory is needed.
    let group = system.cgroup_limits().map(|limits| limits.total_memory.saturating_sub(limits.rss));
    (Some(system.available_memory()), group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_that_counts_by_device() {
        let gpu = |working_set, free| GpuMemory { working_set, free };
        let base = Facts { active: 3, cached: 5, ..Facts::default() };
        let metal = |working_set| Facts { gpu: gpu(working_set, None), ..base };
        let cuda = |free| Facts { gpu: gpu(None, free), ..base };
        let cpu = |system, group| Facts { system, group, ..base };
        let table = [
            // Another model in this process takes its part of the working set.
            ("metal", Kind::Metal, metal(Some(100)), Some(97)),
            ("metal, all taken", Kind::Metal, metal(Some(2)), Some(0)),
            ("metal, unknown", Kind::Metal, metal(Some(0)), None),
            ("metal, no such key", Kind::Metal, metal(None), None),
            // What MLX keeps for reuse is not free, but can be had.
            ("cuda", Kind::Cuda, cuda(Some(100)), Some(105)),
            ("cuda, unknown", Kind::Cuda, cuda(None), None),
            ("cpu", Kind::Cpu, cpu(Some(100), None), Some(105)),
            ("cpu in a small container", Kind::Cpu, cpu(Some(100), Some(10)), Some(15)),
            ("cpu in a large container", Kind::Cpu, cpu(Some(100), Some(200)), Some(105)),
            ("cpu in a full container", Kind::Cpu, cpu(Some(100), Some(0)), Some(5)),
            ("cpu, unknown", Kind::Cpu, cpu(None, None), None),
            ("cpu, absurd", Kind::Cpu, cpu(Some(u64::MAX), None), Some(u64::MAX)),
            // Numbers of another device do not count.
            ("gpu's numbers on the cpu", Kind::Cpu, metal(Some(100)), None),
            ("the system's on cuda", Kind::Cuda, cpu(Some(100), Some(10)), None),
        ];
        for (what, kind, facts, wanted) in table {
            assert_eq!(counted(kind, &facts), wanted, "{what}");
        }
    }

    #[test]
    fn this_machine_has_some_memory() {
        let bytes = available(Device::Cpu).unwrap().unwrap();
        assert!((1 << 20..1 << 50).contains(&bytes), "{bytes}");
    }
}
