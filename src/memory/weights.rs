//! What the weights take in memory, from the headers.

use safetensors::Dtype as FileDtype;

use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::weights::plan::{GateUpPlan, LinearPlan, Plan};

/// Bytes of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WeightBytes {
    /// Once loaded: packed numbers as they are, floats in the activations' type.
    pub(super) loaded: u64,
    /// The most while loading: floats that are cast are there in the file's type as well.
    pub(super) peak: u64,
}

/// Follows `weights/load.rs` and the order in `model.rs`. `dtype` is the type of floats once loaded,
/// and has `item_size` bytes.
pub(super) fn weight_bytes(
    plan: &Plan,
    checkpoint: &Checkpoint,
    dtype: FileDtype,
    item_size: u64,
    fuse_gate_up: bool,
) -> WeightBytes {
    let loaded_size = |info: &TensorInfo| match is_float(info.dtype) {
        true => (bytes(info.nbytes) / item_bytes(info.dtype)).saturating_mul(item_size),
        false => bytes(info.nbytes),
    };
    let sum = |sizes: &mut dyn Iterator<Item = u64>| sizes.fold(0, u64::saturating_add);
    let loaded = sum(&mut checkpoint.tensors().map(|(_, info)| loaded_size(info)));

    let (mut so_far, mut peak) = (0u64, 0u64);
    // Tensors that are joined are read together.
    let mut read = |parts: &[&LinearPlan]| {
        let kinds: [fn(&LinearPlan) -> Option<&String>; 4] = [
            |part| Some(&part.weight),
            |part| part.scales.as_ref(),
            |part| part.biases.as_ref(),
            |part| part.bias.as_ref(),
        ];
        for kind in kinds {
            let infos = || parts.iter().filter_map(|part| checkpoint.info(kind(part)?));
            let cast = |info: &&TensorInfo| is_float(info.dtype) && info.dtype != dtype;
            let in_files = sum(&mut infos().filter(cast).map(|info| bytes(info.nbytes)));
            so_far = so_far.saturating_add(sum(&mut infos().map(loaded_size)));
            peak = peak.max(so_far.saturating_add(in_files));
        }
    };
    read(&[&plan.embed_tokens]);
    for layer in &plan.layers {
        read(&layer.qkv.parts());
        read(&[&layer.o_proj]);
        read(&[&layer.router]);
        match &layer.gate_up {
            GateUpPlan::Split { gate, up, joinable } if !joinable || !fuse_gate_up => {
                read(&[gate]);
                read(&[up]);
            }
            both => read(&both.parts()),
        }
        read(&[&layer.down_proj]);
    }
    if let Some(head) = &plan.lm_head {
        read(&[head]);
    }
    // Norms and sinks, which are small, as if they had been there from the start.
    let small = loaded.saturating_sub(so_far);
    WeightBytes { loaded, peak: peak.saturating_add(small) }
}

fn is_float(dtype: FileDtype) -> bool {
    matches!(dtype, FileDtype::BF16 | FileDtype::F16 | FileDtype::F32)
}

fn item_bytes(dtype: FileDtype) -> u64 {
    match dtype {
        FileDtype::F32 => 4,
        _ => 2,
    }
}

fn bytes(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
