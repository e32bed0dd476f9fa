//! Carries a [`Plan`](super::plan::Plan) out: reads each tensor once, casts floats to the
//! activations' type, and joins what is multiplied by the same input.

use mlx_rs::{Array, Dtype, ops};
use safetensors::Dtype as FileDtype;

use super::plan::{GateUpPlan, LinearPlan, QkvPlan, WeightForm};
use crate::attention::Qkv;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::linear::{Embedding, ExpertLinear, Linear, Weight};
use crate::mlx;
use crate::moe::GateUp;

/// Rows from which unpacking a weight costs less on the CPU than what it saves.
const CPU_UNPACK_FROM: usize = 32;

/// Reads parameters from a checkpoint, and lets go of each file after its last tensor.
pub(crate) struct Loader<'a> {
    checkpoint: Checkpoint,
    /// Type of all floats once loaded.
    dtype: Dtype,
    on_gpu: bool,
    /// Use the mapped file itself where nothing has to be cast or joined.
    wrap: bool,
    /// Join split gate and up projections.
    fuse_gate_up: bool,
    /// Tensors not read yet, for each file.
    unread: Vec<usize>,
    read_bytes: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl<'a> Loader<'a> {
    /// `progress` is called after each tensor with the bytes read and their total.
    pub(crate) fn new(
        checkpoint: Checkpoint,
        dtype: Dtype,
        on_gpu: bool,
        fuse_gate_up: bool,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> Self {
        let mut unread = vec![0; checkpoint.file_count()];
        for (_, info) in checkpoint.tensors() {
            if let Some(count) = unread.get_mut(info.file) {
                *count += 1;
            }
        }
        let wrap = on_gpu && mlx::wraps_maps();
        Self { checkpoint, dtype, on_gpu, wrap, fuse_gate_up, unread, read_bytes: 0, progress }
    }

    /// A float tensor of the given shape, in the activations' type.
    pub(crate) fn float(&mut self, name: &str, shape: &[usize]) -> Result<Array> {
        let array = self.read(&[name], shape, 1)?;
        self.cast(array)
    }

    pub(crate) fn embedding(&mut self, plan: &LinearPlan) -> Result<Embedding> {
        Ok(Embedding { weight: self.packed_or_rows(&[plan])?, dtype: self.dtype })
    }

    pub(crate) fn linear(&mut self, plan: &LinearPlan) -> Result<Linear> {
        self.joined(&[plan])
    }

    pub(crate) fn qkv(&mut self, plan: &QkvPlan) -> Result<Qkv> {
        if plan.joinable {
            return Ok(Qkv::Joined(self.joined(&plan.parts())?));
        }
        let [q, k, v] = plan.parts();
        Ok(Qkv::Apart([self.linear(q)?, self.linear(k)?, self.linear(v)?]))
    }

    pub(crate) fn experts(&mut self, plan: &LinearPlan) -> Result<ExpertLinear> {
        self.joined_experts(&[plan])
    }

    pub(crate) fn gate_up(&mut self, plan: &GateUpPlan) -> Result<GateUp> {
        Ok(match plan {
            GateUpPlan::Interleaved(both) => GateUp::Interleaved(self.experts(both)?),
            GateUpPlan::Split { gate, up, joinable: true } if self.fuse_gate_up => {
                GateUp::Halves(self.joined_experts(&[gate, up])?)
            }
            GateUpPlan::Split { gate, up, .. } => {
                GateUp::Apart { gate: self.experts(gate)?, up: self.experts(up)? }
            }
        })
    }

    fn joined(&mut self, parts: &[&LinearPlan]) -> Result<Linear> {
        let weight = for_products(self.packed_or_rows(parts)?)?;
        let unpack_from = if self.on_gpu { usize::MAX } else { CPU_UNPACK_FROM };
        Ok(Linear { weight, bias: self.bias(parts)?, unpack_from })
    }

    fn joined_experts(&mut self, parts: &[&LinearPlan]) -> Result<ExpertLinear> {
        let weight = self.packed_or_rows(parts)?;
        let in_columns = parts.iter().all(|part| part.form == WeightForm::Columns);
        let weight = if in_columns { weight } else { for_products(weight)? };
        let bias = self.bias(parts)?.map(|bias| evaluated(bias.expand_dims(1)?)).transpose()?;
        Ok(ExpertLinear { weight, bias })
    }

    /// The numbers of one weight, or of several stored alike joined along their outputs; floats in
    /// the arrangement of the file.
    fn packed_or_rows(&mut self, parts: &[&LinearPlan]) -> Result<Weight> {
        let Some(first) = parts.first() else {
            return Err(Error::Mlx { op: "load", message: "no parts".into() });
        };
        let names: Vec<&str> = parts.iter().map(|part| part.weight.as_str()).collect();
        let Some(params) = first.quantization else {
            let last = match first.form {
                WeightForm::Columns => [first.inputs, outputs(parts)],
                WeightForm::Rows | WeightForm::Blocks => [outputs(parts), first.inputs],
            };
            let array = self.read(&names, &shape(first, &last), blocks(first))?;
            return Ok(Weight::Float(self.cast(array)?));
        };
        let words = first.inputs * params.bits / 32;
        let groups = shape(first, &[outputs(parts), first.inputs / params.group_size.max(1)]);
        let packed = shape(first, &[outputs(parts), words]);
        // OpenAI's blocks are the same bytes under another shape and type.
        let weight = self.read_as(&names, &packed, blocks(first), Dtype::Uint32)?;
        let scales = self.joined_extra(parts, |part| part.scales.as_deref(), &groups)?;
        let scales = scales
            .ok_or_else(|| Error::Mlx { op: "load", message: "scales not planned".into() })?;
        let biases = self.joined_extra(parts, |part| part.biases.as_deref(), &groups)?;
        Ok(Weight::Quantized { weight, scales, biases, params })
    }

    fn bias(&mut self, parts: &[&LinearPlan]) -> Result<Option<Array>> {
        let Some(first) = parts.first() else { return Ok(None) };
        let shape = shape(first, &[outputs(parts)]);
        self.joined_extra(parts, |part| part.bias.as_deref(), &shape)
    }

    /// A tensor that goes with a weight, joined like it.
    fn joined_extra(
        &mut self,
        parts: &[&LinearPlan],
        name: impl Fn(&LinearPlan) -> Option<&str>,
        shape: &[usize],
    ) -> Result<Option<Array>> {
        let names: Vec<&str> = parts.iter().filter_map(|part| name(part)).collect();
        let Some(first) = parts.first().filter(|_| names.len() == parts.len()) else {
            return Ok(None);
        };
        let array = self.read(&names, shape, blocks(first))?;
        self.cast(array).map(Some)
    }

    /// Floats in the activations' type; everything else as it is.
    fn cast(&self, array: Array) -> Result<Array> {
        let is_float = matches!(array.dtype(), Dtype::Bfloat16 | Dtype::Float16 | Dtype::Float32);
        if !is_float || array.dtype() == self.dtype {
            return Ok(array);
        }
        evaluated(array.as_dtype(self.dtype)?)
    }

    fn read(&mut self, names: &[&str], shape: &[usize], blocks: usize) -> Result<Array> {
        let dtype = names.first().and_then(|name| self.checkpoint.info(name)).map(|i| i.dtype);
        let dtype = match dtype {
            Some(FileDtype::BF16) => Dtype::Bfloat16,
            Some(FileDtype::F16) => Dtype::Float16,
            Some(FileDtype::F32) => Dtype::Float32,
            Some(FileDtype::U32) => Dtype::Uint32,
            Some(FileDtype::U8) => Dtype::Uint8,
            other => {
                let message = format!("{names:?} of type {other:?}");
                return Err(Error::Mlx { op: "load", message });
            }
        };
        self.read_as(names, shape, blocks, dtype)
    }

    /// Reads tensors joined along an axis that is behind `blocks` equal blocks: one block for
    /// rows, one for each expert for the experts' rows.
    fn read_as(
        &mut self,
        names: &[&str],
        shape: &[usize],
        blocks: usize,
        dtype: Dtype,
    ) -> Result<Array> {
        let too_large = |_| Error::Mlx { op: "load", message: format!("{names:?} is too large") };
        let shape: Vec<i32> =
            shape.iter().map(|&n| i32::try_from(n).map_err(too_large)).collect::<Result<_>>()?;
        let array = match names {
            [name] if self.wrap => {
                let (map, range) = self.checkpoint.map(name).ok_or_else(|| unread(name))?;
                evaluated(mlx::array_from_map(&map, range, &shape, dtype)?)?
            }
            _ => {
                let tensors = names
                    .iter()
                    .map(|name| self.checkpoint.data(name))
                    .collect::<Result<Vec<_>>>()?;
                // What is not joined needs no cutting.
                let blocks = if tensors.len() == 1 { 1 } else { blocks };
                let mut parts = Vec::with_capacity(tensors.len() * blocks);
                for block in 0..blocks {
                    for tensor in &tensors {
                        let size = tensor.len() / blocks.max(1);
                        let part = tensor.get(block * size..(block + 1) * size);
                        parts.push(part.unwrap_or_default());
                    }
                }
                mlx::array_from_parts(&shape, dtype, &parts)?
            }
        };
        for name in names {
            self.note_read(name);
        }
        Ok(array)
    }

    /// Counts a tensor as read, reports progress, and lets go of a file that is done.
    fn note_read(&mut self, name: &str) {
        let Some(info) = self.checkpoint.info(name) else { return };
        let (file, bytes) = (info.file, info.nbytes as u64);
        self.read_bytes = self.read_bytes.saturating_add(bytes);
        (self.progress)(self.read_bytes, self.checkpoint.total_bytes());
        if let Some(unread) = self.unread.get_mut(file) {
            *unread = unread.saturating_sub(1);
            if *unread == 0 {
                self.checkpoint.release(file);
            }
        }
    }
}

/// Computes an array now. A lazy one would keep the file's own numbers alive, and could be computed
/// by the loading thread only: MLX's streams belong to threads.
fn evaluated(array: Array) -> Result<Array> {
    array.eval()?;
    Ok(array)
}

fn unread(name: &str) -> Error {
    Error::Mlx { op: "load", message: format!("{name} is not in the checkpoint") }
}

fn outputs(parts: &[&LinearPlan]) -> usize {
    parts.iter().map(|part| part.outputs).sum()
}

/// `last` behind the expert axis, where there is one.
fn shape(plan: &LinearPlan, last: &[usize]) -> Vec<usize> {
    plan.experts.iter().chain(last).copied().collect()
}

fn blocks(plan: &LinearPlan) -> usize {
    plan.experts.unwrap_or(1)
}

/// Floats by rows, turned for products from the left. A view: nothing is copied.
fn for_products(weight: Weight) -> Result<Weight> {
    Ok(match weight {
        Weight::Float(rows) => Weight::Float(evaluated(ops::swap_axes(&rows, -1, -2)?)?),
        packed => packed,
    })
}
