//! Reads a checkpoint into the plain-Rust [`Model`], on its own terms: nothing here is shared with
//! the library, so that a mistake in one shows against the other. One file, any layout.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::attention::Attention;
use super::block::{Block, Linear, Model};
use super::moe::Moe;
use super::yarn::Yarn;
use super::{affine, mxfp4};

/// Reads `config.json` and `model.safetensors`.
pub fn load(dir: impl AsRef<Path>) -> Model {
    let dir = dir.as_ref();
    let text = std::fs::read_to_string(dir.join("config.json")).expect("config.json");
    let config: Value = serde_json::from_str(&text).expect("JSON");
    let bytes = std::fs::read(dir.join("model.safetensors")).expect("model.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    Reader { config: &config, tensors: &tensors }.model()
}

struct Reader<'a> {
    config: &'a Value,
    tensors: &'a SafeTensors<'a>,
}

impl Reader<'_> {
    fn model(&self) -> Model {
        let layers = self.count("num_hidden_layers");
        let embedding = self.linear("model.embed_tokens");
        let tied = self.config["tie_word_embeddings"] == true;
        Model {
            blocks: (0..layers).map(|i| self.block(i)).collect(),
            norm: self.floats("model.norm.weight"),
            head: if tied { embedding.clone() } else { self.linear("lm_head") },
            embedding: embedding.weight,
        }
    }

    fn block(&self, layer: usize) -> Block {
        let path = format!("model.layers.{layer}");
        let sliding = match &self.config["layer_types"][layer] {
            Value::String(kind) => kind == "sliding_attention",
            _ => layer.is_multiple_of(2),
        };
        let head_dim = self.count("head_dim");
        Block {
            input_norm: self.floats(&format!("{path}.input_layernorm.weight")),
            q: self.linear(&format!("{path}.self_attn.q_proj")),
            k: self.linear(&format!("{path}.self_attn.k_proj")),
            v: self.linear(&format!("{path}.self_attn.v_proj")),
            o: self.linear(&format!("{path}.self_attn.o_proj")),
            sinks: self.floats(&format!("{path}.self_attn.sinks")),
            post_norm: self.floats(&format!("{path}.post_attention_layernorm.weight")),
            moe: self.moe(&format!("{path}.mlp")),
            attention: Attention {
                heads: self.count("num_attention_heads"),
                kv_heads: self.count("num_key_value_heads"),
                head_dim,
                window: sliding.then(|| self.count("sliding_window")),
                scale: (head_dim as f64).powf(-0.5),
            },
            yarn: self.yarn(head_dim),
            eps: self.number(self.config, "rms_norm_eps"),
        }
    }

    fn yarn(&self, head_dim: usize) -> Yarn {
        let scaling = &self.config["rope_scaling"];
        Yarn {
            head_dim,
            base: self.number(self.config, "rope_theta"),
            factor: self.number(scaling, "factor"),
            beta_fast: self.number(scaling, "beta_fast"),
            beta_slow: self.number(scaling, "beta_slow"),
            original: self.number(scaling, "original_max_position_embeddings") as usize,
            truncate: scaling["truncate"].as_bool().expect("truncate"),
        }
    }

    fn moe(&self, path: &str) -> Moe {
        let experts = format!("{path}.experts");
        let (gate, up) = if self.has(&format!("{experts}.gate_proj.weight")) {
            (self.experts(&experts, "gate_proj"), self.experts(&experts, "up_proj"))
        } else {
            // Outputs alternate: gate, up, gate, up.
            let both = self.experts(&experts, "gate_up_proj");
            let every_other = |first| both.iter().map(|both| every_other(both, first)).collect();
            (every_other(0), every_other(1))
        };
        Moe {
            router: self.linear(&format!("{path}.router")),
            gate,
            up,
            down: self.experts(&experts, "down_proj"),
            top_k: self.count("num_experts_per_tok"),
            limit: self.number(self.config, "swiglu_limit"),
        }
    }

    /// One projection, split by expert.
    fn experts(&self, path: &str, projection: &str) -> Vec<Linear> {
        let name = format!("{path}.{projection}");
        let count = self.count("num_local_experts");
        let packed = [format!("{name}_blocks"), format!("{name}_scales")];
        let (weight, bias) = if self.has(&packed[0]) {
            let weight = mxfp4::dequantize(self.raw(&packed[0]), self.raw(&packed[1]));
            (weight, format!("{name}_bias"))
        } else if self.has(&name) {
            // [expert, in, out]
            let bias = format!("{name}_bias");
            let (weight, outputs) = (self.floats(&name), self.floats(&bias).len() / count);
            let size = weight.len() / count;
            (weight.chunks(size).flat_map(|matrix| transposed(matrix, outputs)).collect(), bias)
        } else {
            (self.weight(&name), format!("{name}.bias"))
        };
        let bias = self.floats(&bias);
        let (rows, size) = (bias.len() / count, weight.len() / count);
        (weight.chunks(size).zip(bias.chunks(rows)))
            .map(|(weight, bias)| Linear {
                weight: weight.to_vec(),
                bias: Some(bias.to_vec()),
                inputs: size / rows,
            })
            .collect()
    }

    fn linear(&self, path: &str) -> Linear {
        let weight = self.weight(path);
        let rows = self.tensors.tensor(&format!("{path}.weight")).expect(path).shape()[0];
        let bias = format!("{path}.bias");
        let bias = self.has(&bias).then(|| self.floats(&bias));
        Linear { inputs: weight.len() / rows, weight, bias }
    }

    /// The numbers of `path.weight`, however they are stored.
    fn weight(&self, path: &str) -> Vec<f32> {
        let name = format!("{path}.weight");
        let scales = format!("{path}.scales");
        if !self.has(&scales) {
            return self.floats(&name);
        }
        if self.tensors.tensor(&scales).expect("scales").dtype() == Dtype::U8 {
            return mxfp4::dequantize(self.raw(&name), self.raw(&scales));
        }
        let quantization = &self.config["quantization"];
        let entry = match &quantization[path] {
            Value::Null => quantization,
            entry => entry,
        };
        let words: Vec<u32> = (self.raw(&name).chunks_exact(4))
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        affine::dequantize(
            &words,
            &self.floats(&scales),
            &self.floats(&format!("{path}.biases")),
            self.number(entry, "bits") as usize,
            self.number(entry, "group_size") as usize,
        )
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.tensor(name).is_ok()
    }

    fn raw(&self, name: &str) -> &[u8] {
        self.tensors.tensor(name).expect(name).data()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let tensor = self.tensors.tensor(name).expect(name);
        let halves = || tensor.data().chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        match tensor.dtype() {
            Dtype::F32 => (tensor.data().chunks_exact(4))
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
            Dtype::BF16 => halves().map(|bits| f32::from_bits(u32::from(bits) << 16)).collect(),
            Dtype::F16 => halves().map(from_f16).collect(),
            other => panic!("{name} is {other:?}"),
        }
    }

    fn count(&self, field: &str) -> usize {
        self.number(self.config, field) as usize
    }

    fn number(&self, object: &Value, field: &str) -> f64 {
        object[field].as_f64().expect(field)
    }
}

/// IEEE 754 half precision: sign, five bits of exponent, ten of mantissa.
pub fn from_f16(bits: u16) -> f32 {
    let sign = if bits >> 15 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023) / 1024.0);
    match exponent {
        0 => sign * mantissa * 2f32.powi(-14),
        31 => panic!("infinities and NaN have no place in a checkpoint"),
        _ => sign * (1.0 + mantissa) * 2f32.powi(exponent - 15),
    }
}

fn every_other(linear: &Linear, first: usize) -> Linear {
    let rows = linear.weight.chunks(linear.inputs).skip(first).step_by(2);
    let bias = linear.bias.iter().flatten().skip(first).step_by(2);
    Linear {
        weight: rows.flatten().copied().collect(),
        bias: Some(bias.copied().collect()),
        inputs: linear.inputs,
    }
}

/// [in, out] to [out, in].
fn transposed(matrix: &[f32], outputs: usize) -> Vec<f32> {
    (0..outputs).flat_map(|o| matrix.iter().skip(o).step_by(outputs).copied()).collect()
}
