//! config.json and generation_config.json: what is accepted, what is refused, and how it is said.

mod files;
mod generation;
mod mutations;
mod quantization;
mod rope;
mod sizes;

use std::path::Path;

use gpt_oss_mlx::config::Config;
use gpt_oss_mlx::{Error, Result};
use serde_json::{Value, json};

/// The bundled model's config.json: MLX's layout.
fn bundled() -> Value {
    let text = include_str!("../../assets/gpt-oss-tiny/config.json");
    serde_json::from_str(text).expect("the bundled config is JSON")
}

/// The same model in OpenAI's layout.
fn tiny_openai() -> Value {
    let text = include_str!("../fixtures/gpt-oss-tiny-openai/config.json");
    serde_json::from_str(text).expect("the fixture is JSON")
}

/// The config that OpenAI published with gpt-oss-20b (24 layers, 32 experts) and gpt-oss-120b (36
/// layers, 128 experts).
fn published(layers: usize, experts: usize) -> Value {
    let types = ["sliding_attention", "full_attention"];
    let layer_types: Vec<_> = types.into_iter().cycle().take(layers).collect();
    json!({
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": true,
        "attention_dropout": 0.0,
        "eos_token_id": 200002,
        "experts_per_token": 4,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2880,
        "initial_context_length": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 2880,
        "layer_types": layer_types,
        "max_position_embeddings": 131072,
        "model_type": "gpt_oss",
        "num_attention_heads": 64,
        "num_experts_per_tok": 4,
        "num_hidden_layers": layers,
        "num_key_value_heads": 8,
        "num_local_experts": experts,
        "output_router_logits": false,
        "pad_token_id": 199999,
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head"
            ],
            "quant_method": "mxfp4"
        },
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": false
        },
        "rope_theta": 150000,
        "router_aux_loss_coef": 0.9,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": false,
        "transformers_version": "4.55.0.dev0",
        "use_cache": true,
        "vocab_size": 201088
    })
}

/// The 20b's config as transformers 5 saves it: `rope_parameters` with the base inside, and
/// `swiglu_alpha`.
fn transformers_5() -> Value {
    let mut config = published(24, 32);
    let mut rope = remove(&mut config, "/rope_scaling");
    rope["rope_theta"] = remove(&mut config, "/rope_theta");
    config["rope_parameters"] = rope;
    config["swiglu_alpha"] = json!(1.702);
    config["bos_token_id"] = Value::Null;
    remove(&mut config, "/experts_per_token");
    config
}

/// Where the tests say that a config stands.
fn path() -> &'static Path {
    Path::new("some/model/config.json")
}

fn parse(config: &Value) -> Result<Config> {
    Config::from_json(path(), &config.to_string())
}

#[track_caller]
fn accepted(config: &Value) -> Config {
    parse(config).unwrap_or_else(|error| panic!("refused: {error}"))
}

/// The reason why a config is refused, after checking that file and field are named.
#[track_caller]
fn refused(config: &Value, expected_field: &str) -> String {
    let error = parse(config).expect_err("the config is wrong");
    reason(error, path(), expected_field)
}

/// The reason in a config error for `expected_field` of the file `expected_path`.
#[track_caller]
fn reason(error: Error, expected_path: &Path, expected_field: &str) -> String {
    let message = error.to_string();
    let Error::Config { path, field, reason } = error else { panic!("not about a field: {error}") };
    assert_eq!(path, expected_path);
    assert_eq!(field, expected_field, "{message}");
    assert_eq!(message, format!("{}: field `{field}`: {reason}", path.display()));
    reason
}

/// A copy with the value at a JSON pointer set; the pointer's parent must exist.
#[track_caller]
fn with(config: &Value, pointer: &str, value: impl Into<Value>) -> Value {
    let mut copy = config.clone();
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer starts with a slash");
    match copy.pointer_mut(parent).expect("the parent exists") {
        Value::Array(list) => list[key.parse::<usize>().expect("an index")] = value.into(),
        object => object[key] = value.into(),
    }
    copy
}

/// A copy without the field at a JSON pointer.
#[track_caller]
fn without(config: &Value, pointer: &str) -> Value {
    let mut copy = config.clone();
    remove(&mut copy, pointer);
    copy
}

#[track_caller]
fn remove(config: &mut Value, pointer: &str) -> Value {
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer starts with a slash");
    let object = config.pointer_mut(parent).and_then(Value::as_object_mut);
    object.and_then(|object| object.shift_remove(key)).expect("the field exists")
}
