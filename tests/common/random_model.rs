//! Random checkpoints of any shape and layout, with numbers of a size that keeps every part of the
//! model at work: attention that is neither flat nor on one token, gates on both sides of zero.

use std::path::Path;

use safetensors::Dtype;

use super::layouts::Packing;
use super::rng::Rng;
use super::safetensors::{Spec, Tensor, place, write_with};

/// Writes `config.json` and `model.safetensors` into `dir`. `packing` is the one that `specs` were
/// made with, in MLX's layout.
pub fn write(
    dir: &Path,
    config: &str,
    specs: &[Spec],
    packing: &dyn Fn(&str) -> Packing,
    seed: u64,
) {
    std::fs::write(dir.join("config.json"), config).unwrap();
    let mut rng = Rng::new(seed);
    write_with(&dir.join("model.safetensors"), &place(specs), |tensor, bytes| {
        fill(tensor, bytes, packing, &mut rng);
    });
}

/// Replaces the sinks of all layers by `sink(head)`; for checkpoints in f32.
pub fn set_sinks(dir: &Path, sink: impl Fn(usize) -> f32) {
    let path = dir.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut places = Vec::new();
    for (name, tensor) in tensors.iter() {
        if name.ends_with(".sinks") {
            assert_eq!(tensor.dtype(), Dtype::F32);
            let start = tensor.data().as_ptr() as usize - bytes.as_ptr() as usize;
            places.push(start..start + tensor.data().len());
        }
    }
    for place in places {
        for (head, bytes) in bytes[place].chunks_exact_mut(4).enumerate() {
            bytes.copy_from_slice(&sink(head).to_le_bytes());
        }
    }
    std::fs::write(path, bytes).unwrap();
}

fn fill(tensor: &Tensor, bytes: &mut [u8], packing: &dyn Fn(&str) -> Packing, rng: &mut Rng) {
    let name = tensor.name.as_str();
    match tensor.dtype {
        // Scales of MXFP4: 2^-7 to 2^-5, so that weights are about 0.05.
        Dtype::U8 if name.ends_with("scales") => {
            bytes.iter_mut().for_each(|b| *b = 120 + rng.below(3) as u8);
        }
        // Packed codes: all are valid.
        Dtype::U8 | Dtype::U32 => bytes.iter_mut().for_each(|b| *b = rng.bits() as u8),
        Dtype::F32 => {
            for bytes in bytes.chunks_exact_mut(4) {
                bytes.copy_from_slice(&(number(tensor, packing, rng) as f32).to_le_bytes());
            }
        }
        Dtype::BF16 => {
            for bytes in bytes.chunks_exact_mut(2) {
                let bits = (number(tensor, packing, rng) as f32).to_bits();
                bytes.copy_from_slice(&((bits >> 16) as u16).to_le_bytes());
            }
        }
        Dtype::F16 => {
            for bytes in bytes.chunks_exact_mut(2) {
                let bits = to_f16(number(tensor, packing, rng));
                bytes.copy_from_slice(&bits.to_le_bytes());
            }
        }
        other => panic!("{name} is {other:?}"),
    }
}

/// One float of this tensor.
fn number(tensor: &Tensor, packing: &dyn Fn(&str) -> Packing, rng: &mut Rng) -> f64 {
    let name = tensor.name.as_str();
    if let Some((path, part)) = name.rsplit_once('.')
        && (part == "scales" || part == "biases")
        && let Packing::Affine { bits, .. } = packing(path)
    {
        // Codes from 0 upwards spread over -0.15 to 0.15.
        return if part == "scales" { 0.3 / f64::from(1u32 << bits) } else { -0.15 };
    }
    if name.ends_with("norm.weight") {
        1.0 + 0.3 * rng.normal()
    } else if name.ends_with("bias") {
        0.3 * rng.normal()
    } else if name.ends_with("sinks") {
        rng.normal()
    } else if name.contains("embed_tokens") {
        0.5 * rng.normal()
    } else {
        0.09 * rng.normal()
    }
}

/// The half-precision number at or next below in magnitude; 0 below the normal ones.
fn to_f16(value: f64) -> u16 {
    let bits = (value as f32).to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let exponent = (bits >> 23 & 255) as i32 - 127 + 15;
    assert!(exponent < 31, "{value} is too large");
    if exponent <= 0 { sign } else { sign | (exponent as u16) << 10 | (bits >> 13 & 1023) as u16 }
}
