//! The tensors that checkpoints of GPT-OSS hold, as tables of names, types and shapes, for every
//! layout that the library reads. The sizes of the published models are in the tests that use them.

use safetensors::Dtype;
use serde_json::{Value, json};

use super::safetensors::{Spec, spec};

/// What sets one GPT-OSS apart from another.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub layers: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub width: usize,
    pub experts: usize,
    pub vocab: usize,
}

pub const GPT_OSS_20B: Shape = Shape {
    layers: 24,
    hidden: 2880,
    heads: 64,
    kv_heads: 8,
    head_dim: 64,
    width: 2880,
    experts: 32,
    vocab: 201_088,
};

pub const GPT_OSS_120B: Shape = Shape { layers: 36, experts: 128, ..GPT_OSS_20B };

/// No two sizes alike, so that no two axes can be mistaken for each other.
pub const SMALL: Shape = Shape {
    layers: 2,
    hidden: 192,
    heads: 6,
    kv_heads: 2,
    head_dim: 64,
    width: 128,
    experts: 5,
    vocab: 320,
};

/// How a module is quantized in MLX's layout.
#[derive(Clone, Copy, Debug)]
pub enum Packing {
    Float,
    Affine { bits: usize, group: usize },
    Mxfp4,
}

impl Shape {
    /// config.json, with the fields of `extra` on top.
    pub fn config(&self, extra: Value) -> String {
        let mut config = json!({
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.width,
            "num_local_experts": self.experts,
            "num_experts_per_tok": 4,
            "vocab_size": self.vocab,
            "sliding_window": 128,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 150_000,
            "rope_scaling": {
                "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
                "truncate": false, "original_max_position_embeddings": 4096
            },
            "swiglu_limit": 7.0,
            "attention_bias": true,
            "hidden_act": "silu",
            "tie_word_embeddings": false,
            "eos_token_id": 5,
            "pad_token_id": 4,
        });
        let fields = config.as_object_mut().unwrap();
        fields.extend(extra.as_object().unwrap().clone());
        config.to_string()
    }

    fn queries(&self) -> usize {
        self.heads * self.head_dim
    }

    fn keys(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// What is the same in all layouts but the experts, in floats.
    fn dense(&self, float: Dtype) -> Vec<Spec> {
        let Self { hidden, .. } = *self;
        let mut all = vec![
            spec("model.embed_tokens.weight", float, &[self.vocab, hidden]),
            spec("model.norm.weight", float, &[hidden]),
            spec("lm_head.weight", float, &[self.vocab, hidden]),
        ];
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: &[usize]| {
                all.push(spec(&format!("model.layers.{layer}.{name}"), float, shape));
            };
            add("input_layernorm.weight", &[hidden]);
            add("post_attention_layernorm.weight", &[hidden]);
            add("self_attn.sinks", &[self.heads]);
            add("self_attn.q_proj.weight", &[self.queries(), hidden]);
            add("self_attn.q_proj.bias", &[self.queries()]);
            add("self_attn.k_proj.weight", &[self.keys(), hidden]);
            add("self_attn.k_proj.bias", &[self.keys()]);
            add("self_attn.v_proj.weight", &[self.keys(), hidden]);
            add("self_attn.v_proj.bias", &[self.keys()]);
            add("self_attn.o_proj.weight", &[hidden, self.queries()]);
            add("self_attn.o_proj.bias", &[hidden]);
            add("mlp.router.weight", &[self.experts, hidden]);
            add("mlp.router.bias", &[self.experts]);
        }
        all
    }

    /// OpenAI's layout, as published: MXFP4 experts, the rest in `float`.
    pub fn openai(&self, float: Dtype) -> Vec<Spec> {
        let Self { hidden, width, experts, .. } = *self;
        let mut all = self.dense(float);
        for layer in 0..self.layers {
            let mut add = |name: &str, dtype: Dtype, shape: &[usize]| {
                all.push(spec(&format!("model.layers.{layer}.mlp.experts.{name}"), dtype, shape));
            };
            add("gate_up_proj_blocks", Dtype::U8, &[experts, 2 * width, hidden / 32, 16]);
            add("gate_up_proj_scales", Dtype::U8, &[experts, 2 * width, hidden / 32]);
            add("gate_up_proj_bias", float, &[experts, 2 * width]);
            add("down_proj_blocks", Dtype::U8, &[experts, hidden, width / 32, 16]);
            add("down_proj_scales", Dtype::U8, &[experts, hidden, width / 32]);
            add("down_proj_bias", float, &[experts, hidden]);
        }
        all
    }

    /// What transformers writes for the same model without quantization.
    pub fn transformers(&self, float: Dtype) -> Vec<Spec> {
        let Self { hidden, width, experts, .. } = *self;
        let mut all = self.dense(float);
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: &[usize]| {
                all.push(spec(&format!("model.layers.{layer}.mlp.experts.{name}"), float, shape));
            };
            add("gate_up_proj", &[experts, hidden, 2 * width]);
            add("gate_up_proj_bias", &[experts, 2 * width]);
            add("down_proj", &[experts, width, hidden]);
            add("down_proj_bias", &[experts, hidden]);
        }
        all
    }

    /// mlx-lm's layout; `packing` says how the module at a path is stored.
    pub fn mlx(&self, float: Dtype, packing: impl Fn(&str) -> Packing) -> Vec<Spec> {
        let Self { hidden, width, experts, .. } = *self;
        let mut all = Vec::new();
        let mut module = |path: &str, rows: &[usize], inputs: usize| {
            let mut add = |name: &str, dtype: Dtype, columns: usize| {
                let shape = [rows, &[columns]].concat();
                all.push(spec(&format!("{path}.{name}"), dtype, &shape));
            };
            match packing(path) {
                Packing::Float => add("weight", float, inputs),
                Packing::Affine { bits, group } => {
                    add("weight", Dtype::U32, inputs * bits / 32);
                    add("scales", float, inputs / group);
                    add("biases", float, inputs / group);
                }
                Packing::Mxfp4 => {
                    add("weight", Dtype::U32, inputs / 8);
                    add("scales", Dtype::U8, inputs / 32);
                }
            }
        };
        module("model.embed_tokens", &[self.vocab], hidden);
        module("lm_head", &[self.vocab], hidden);
        for layer in 0..self.layers {
            let prefix = format!("model.layers.{layer}");
            module(&format!("{prefix}.self_attn.q_proj"), &[self.queries()], hidden);
            module(&format!("{prefix}.self_attn.k_proj"), &[self.keys()], hidden);
            module(&format!("{prefix}.self_attn.v_proj"), &[self.keys()], hidden);
            module(&format!("{prefix}.self_attn.o_proj"), &[hidden], self.queries());
            module(&format!("{prefix}.mlp.router"), &[experts], hidden);
            module(&format!("{prefix}.mlp.experts.gate_proj"), &[experts, width], hidden);
            module(&format!("{prefix}.mlp.experts.up_proj"), &[experts, width], hidden);
            module(&format!("{prefix}.mlp.experts.down_proj"), &[experts, hidden], width);
        }
        // Norms, sinks and biases are never quantized.
        all.extend(self.dense(float).into_iter().filter(|(name, ..)| {
            name.ends_with("norm.weight") || name.ends_with(".sinks") || name.ends_with(".bias")
        }));
        for layer in 0..self.layers {
            for (name, outputs) in [("gate_proj", width), ("up_proj", width), ("down_proj", hidden)]
            {
                let name = format!("model.layers.{layer}.mlp.experts.{name}.bias");
                all.push(spec(&name, float, &[experts, outputs]));
            }
        }
        all
    }
}

/// The packing of mlx-community's MXFP4-Q8 and MXFP4-Q4: MXFP4 experts, an affine router of 8 bits
/// and everything else affine with `bits`.
pub fn mxfp4_q(bits: usize) -> impl Fn(&str) -> Packing {
    move |path| {
        if path.contains(".experts.") {
            Packing::Mxfp4
        } else if path.ends_with(".router") {
            Packing::Affine { bits: 8, group: 64 }
        } else {
            Packing::Affine { bits, group: 64 }
        }
    }
}

/// The `quantization` block that mlx-lm writes for [`mxfp4_q`].
pub fn mxfp4_q_config(shape: &Shape, bits: usize) -> Value {
    let mut block = json!({"group_size": 32, "bits": 4, "mode": "mxfp4"});
    let modules = block.as_object_mut().unwrap();
    let affine = json!({"group_size": 64, "bits": bits, "mode": "affine"});
    modules.insert("model.embed_tokens".into(), affine.clone());
    modules.insert("lm_head".into(), affine.clone());
    for layer in 0..shape.layers {
        for projection in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            modules.insert(format!("model.layers.{layer}.self_attn.{projection}"), affine.clone());
        }
        // mlx-lm names no mode here: that means affine.
        let router = json!({"group_size": 64, "bits": 8});
        modules.insert(format!("model.layers.{layer}.mlp.router"), router);
    }
    json!({ "quantization": block })
}
