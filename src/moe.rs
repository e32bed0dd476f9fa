//! The mixture of experts: `MLPBlock` of OpenAI's `gpt_oss/torch/model.py`.

use mlx_rs::{Array, Dtype, ops};

use crate::config::{Config, SWIGLU_ALPHA};
use crate::error::{Error, Result};
use crate::linear::{ExpertLinear, Linear};
use crate::mlx::{self, Compiled, GatherIndices, PureFn};

/// Rows (tokens times experts per token) from which they are sorted by expert, so that each
/// expert's weights are read once. mlx-lm sorts from the same number on.
const SORT_FROM: i32 = 64;

/// The experts' projections into their inner width.
#[derive(Debug)]
pub(crate) enum GateUp {
    /// One projection, gate rows first.
    Halves(ExpertLinear),
    /// One projection, gate rows even and up rows odd: OpenAI's layout.
    Interleaved(ExpertLinear),
    /// Two projections.
    Apart { gate: ExpertLinear, up: ExpertLinear },
}

impl GateUp {
    /// [..., 1, hidden] → gate and up, each [..., 1, width].
    fn forward(&self, x: &Array, indices: &GatherIndices<'_>) -> Result<(Array, Array)> {
        match self {
            Self::Halves(both) => halves(&both.forward(x, indices)?),
            Self::Interleaved(both) => {
                let y = both.forward(x, indices)?;
                let mut pairs = y.shape().to_vec();
                let width = pairs.pop().unwrap_or(0) / 2;
                pairs.extend([width, 2]);
                let (gate, up) = halves(&y.reshape(&pairs)?)?;
                Ok((gate.squeeze_axes(&[-1])?, up.squeeze_axes(&[-1])?))
            }
            Self::Apart { gate, up } => Ok((gate.forward(x, indices)?, up.forward(x, indices)?)),
        }
    }
}

/// The two halves of the last axis, as views.
fn halves(array: &Array) -> Result<(Array, Array)> {
    let mut stop = array.shape().to_vec();
    let mut start = vec![0; stop.len()];
    let (Some(first), Some(last)) = (start.last_mut(), stop.last_mut()) else {
        return Err(Error::Mlx { op: "halves", message: "a scalar".into() });
    };
    let (middle, end) = (*last / 2, *last);
    *last = middle;
    let low = mlx::slice(array, &vec![0; array.ndim()], &stop)?;
    *first = middle;
    if let Some(last) = stop.last_mut() {
        *last = end;
    }
    Ok((low, mlx::slice(array, &start, &stop)?))
}

/// `gate · σ(α · gate) · (up + 1)` with gate clamped from above and up from both sides.
pub(crate) struct SwiGlu {
    /// Scalars of the activations' type: limit, −limit, α, 1. A plain f32 would turn the whole
    /// residual stream into f32.
    constants: [Array; 4],
    /// Fused into one kernel on a GPU. Not on the CPU, where MLX would run a C++ compiler.
    compiled: Option<Compiled<SwiGluFn>>,
}

struct SwiGluFn;

impl PureFn for SwiGluFn {
    fn call(inputs: &[Array]) -> Result<Vec<Array>> {
        let [gate, up, limit, low, alpha, one] = inputs else {
            return Err(Error::Mlx { op: "swiglu", message: "number of inputs".into() });
        };
        Ok(vec![swiglu(gate, up, [limit, low, alpha, one])?])
    }
}

fn swiglu(gate: &Array, up: &Array, constants: [&Array; 4]) -> Result<Array> {
    let [limit, low, alpha, one] = constants;
    let gate = ops::minimum(gate, limit)?;
    let up = ops::maximum(ops::minimum(up, limit)?, low)?;
    let gate = gate.multiply(ops::sigmoid(gate.multiply(alpha)?)?)?;
    Ok(gate.multiply(up.add(one)?)?)
}

impl SwiGlu {
    /// For activations of type `dtype`; `compile` fuses it into one kernel.
    pub(crate) fn new(limit: f32, dtype: Dtype, compile: bool) -> Result<Self> {
        // Computed here: a lazy array belongs to the thread that made it.
        let constant = |value: f32| -> Result<Array> {
            let constant = Array::from_f32(value).as_dtype(dtype)?;
            constant.eval()?;
            Ok(constant)
        };
        let constants =
            [constant(limit)?, constant(-limit)?, constant(SWIGLU_ALPHA)?, constant(1.0)?];
        Ok(Self { constants, compiled: compile.then(Compiled::new).transpose()? })
    }

    /// Element by element, the shape of `gate` and `up`.
    pub(crate) fn forward(&self, gate: &Array, up: &Array) -> Result<Array> {
        let [limit, low, alpha, one] = &self.constants;
        let Some(compiled) = &self.compiled else {
            return swiglu(gate, up, [limit, low, alpha, one]);
        };
        let mut outputs = compiled.call(&[gate, up, limit, low, alpha, one])?;
        outputs.pop().ok_or_else(|| Error::Mlx { op: "swiglu", message: "no output".into() })
    }
}

/// The experts of one layer.
#[derive(Debug)]
pub(crate) struct Moe {
    pub(crate) router: Linear,
    pub(crate) gate_up: GateUp,
    pub(crate) down_proj: ExpertLinear,
}

/// What all layers' experts share.
pub(crate) struct MoeShared {
    experts: i32,
    top_k: i32,
    swiglu: SwiGlu,
    /// For one token: the row of the input for each of its experts (always 0) and of their
    /// outputs (0, 1, …), u32 [top_k]. Given explicitly they spare MLX making them at each step.
    same_row: Array,
    own_row: Array,
}

impl MoeShared {
    pub(crate) fn new(config: &Config, dtype: Dtype, compile: bool) -> Result<Self> {
        let size =
            |field, n: usize| i32::try_from(n).map_err(|_| Error::argument(field, "too large"));
        let top_k = size("num_experts_per_tok", config.num_experts_per_tok)?;
        let rows: Vec<u32> = (0..top_k.unsigned_abs()).collect();
        Ok(Self {
            experts: size("num_local_experts", config.num_local_experts)?,
            top_k,
            swiglu: SwiGlu::new(config.swiglu_limit, dtype, compile)?,
            same_row: Array::from_slice(&vec![0u32; rows.len()], &[top_k]),
            own_row: Array::from_slice(&rows, &[top_k]),
        })
    }
}

impl Moe {
    /// [batch, length, hidden] → the same.
    pub(crate) fn forward(&self, x: &Array, shared: &MoeShared) -> Result<Array> {
        let &[batch, length, hidden] = x.shape() else {
            return Err(Error::Mlx { op: "experts", message: format!("shape {:?}", x.shape()) });
        };
        let tokens = batch.saturating_mul(length);
        if tokens == 1 {
            return self.one_token(x, shared);
        }
        let x = x.reshape(&[tokens, hidden])?;
        let (experts, weights) = self.route(&x, shared)?; // both [tokens, top_k]
        let outputs = if tokens.saturating_mul(shared.top_k) >= SORT_FROM {
            self.sorted(&x, &experts, shared)?
        } else {
            self.unsorted(&x, &experts, shared)?
        }; // [tokens, top_k, hidden]
        let y = outputs.multiply(weights.expand_dims(-1)?)?.sum_axis(1, false)?;
        Ok(y.reshape(&[batch, length, hidden])?)
    }

    /// Picks the top k experts of each token, in no order, and weighs them by a softmax over the
    /// k. `x` [..., hidden] → experts u32 and weights, each [..., top_k].
    fn route(&self, x: &Array, shared: &MoeShared) -> Result<(Array, Array)> {
        let logits = self.router.forward(x)?; // [..., experts]
        let first = shared.experts - shared.top_k;
        let order = ops::argpartition_axis(&logits, first, -1)?;
        let (mut start, stop) = (vec![0; order.ndim()], order.shape());
        if let Some(start) = start.last_mut() {
            *start = first;
        }
        let experts = mlx::slice(&order, &start, stop)?;
        let chosen = logits.take_along_axis(&experts, -1)?;
        Ok((experts, ops::softmax_axis(chosen, -1, true)?))
    }

    /// Decoding: as few operations as there can be, since each costs host time at every layer.
    /// [1, 1, hidden] → the same.
    fn one_token(&self, x: &Array, shared: &MoeShared) -> Result<Array> {
        let (experts, weights) = self.route(x, shared)?; // both [1, 1, top_k]
        let experts = experts.reshape(&[shared.top_k])?;
        let rows = |lhs| GatherIndices { lhs: Some(lhs), rhs: &experts, sorted: false };
        let (gate, up) = self.gate_up.forward(x, &rows(&shared.same_row))?;
        let inner = shared.swiglu.forward(&gate, &up)?; // [top_k, 1, width]
        let y = self.down_proj.forward(&inner, &rows(&shared.own_row))?; // [top_k, 1, hidden]
        Ok(weights.matmul(y.transpose_axes(&[1, 0, 2])?)?)
    }

    fn unsorted(&self, x: &Array, experts: &Array, shared: &MoeShared) -> Result<Array> {
        let indices = GatherIndices { lhs: None, rhs: experts, sorted: false };
        let x = x.expand_dims_axes(&[-2, -3])?; // [tokens, 1, 1, hidden]
        let (gate, up) = self.gate_up.forward(&x, &indices)?;
        let inner = shared.swiglu.forward(&gate, &up)?; // [tokens, top_k, 1, width]
        let y = self.down_proj.forward(&inner, &indices)?; // [tokens, top_k, 1, hidden]
        Ok(y.squeeze_axes(&[-2])?)
    }

    fn sorted(&self, x: &Array, experts: &Array, shared: &MoeShared) -> Result<Array> {
        let &[tokens, hidden] = x.shape() else {
            return Err(Error::Mlx { op: "experts", message: "rank".into() });
        };
        let flat = experts.reshape(&[-1])?; // [tokens · top_k]
        let order = ops::argsort_axis(&flat, 0)?;
        let top_k = Array::from_slice(&[shared.top_k.unsigned_abs()], &[1]);
        let token = ops::floor_divide(&order, &top_k)?;
        let sorted = flat.take_axis(&order, 0)?;
        let indices = GatherIndices { lhs: None, rhs: &sorted, sorted: true };
        let x = x.take_axis(&token, 0)?.expand_dims(-2)?; // [tokens · top_k, 1, hidden]
        let (gate, up) = self.gate_up.forward(&x, &indices)?;
        let inner = shared.swiglu.forward(&gate, &up)?; // [tokens · top_k, 1, width]
        let y = self.down_proj.forward(&inner, &indices)?; // [tokens · top_k, 1, hidden]
        let back = ops::argsort_axis(&order, 0)?;
        Ok(y.take_axis(&back, 0)?.reshape(&[tokens, shared.top_k, hidden])?)
    }
}
