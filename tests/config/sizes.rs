//! Sizes, kinds and token ids: the published models, and what is refused.

use gpt_oss_mlx::config::{Config, LayerType};
use serde_json::{Value, json};

use super::{accepted, bundled, published, refused, transformers_5, with, without};

#[test]
fn the_published_configs_are_read_in_full() {
    for (layers, experts) in [(24, 32), (36, 128)] {
        let config = accepted(&published(layers, experts));
        assert_eq!(config.num_hidden_layers, layers);
        assert_eq!(config.num_local_experts, experts);
        assert_eq!(config.hidden_size, 2880);
        assert_eq!(config.intermediate_size, 2880);
        assert_eq!(config.num_attention_heads, 64);
        assert_eq!(config.num_key_value_heads, 8);
        assert_eq!(config.head_dim, 64);
        assert_eq!(config.num_experts_per_tok, 4);
        assert_eq!(config.vocab_size, 201_088);
        assert_eq!(config.sliding_window, 128);
        assert_eq!(config.max_position_embeddings, 131_072);
        assert_eq!(config.rms_norm_eps, 1e-5);
        assert_eq!(config.rope_theta, 150_000.0);
        assert_eq!(config.swiglu_limit, 7.0);
        assert_eq!(config.eos_token_id, [200_002]);
        assert_eq!(config.pad_token_id, Some(199_999));
        assert!(config.attention_bias);
        assert!(!config.tie_word_embeddings);
        assert!(config.packed_mxfp4);
        assert_eq!(config.quantization, None);
        assert_eq!(config.layer_types, alternating(layers));
    }
}

#[test]
fn both_generations_of_transformers_describe_the_same_model() {
    assert_eq!(accepted(&transformers_5()), accepted(&published(24, 32)));
}

#[test]
fn the_bundled_config_is_read() {
    let config = accepted(&bundled());
    assert_eq!((config.num_hidden_layers, config.hidden_size), (4, 192));
    assert_eq!((config.num_attention_heads, config.num_key_value_heads), (4, 2));
    assert_eq!((config.num_local_experts, config.num_experts_per_tok), (8, 2));
    assert_eq!((config.intermediate_size, config.vocab_size), (128, 2048));
    assert_eq!(config.sliding_window, 64);
    assert_eq!(config.eos_token_id, [2041, 2040, 2047]);
    assert!(!config.packed_mxfp4);
}

#[test]
fn every_missing_or_null_required_field_is_named() {
    let required = [
        "model_type",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "num_local_experts",
        "vocab_size",
        "sliding_window",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
    ];
    for field in required {
        let pointer = format!("/{field}");
        assert_eq!(refused(&without(&bundled(), &pointer), field), "is missing");
        let null = with(&bundled(), &pointer, Value::Null);
        assert_eq!(refused(&null, field), "is required, but null");
    }
}

#[test]
fn sizes_have_bounds_and_are_integers() {
    let bounds = [
        ("hidden_size", 65_536),
        ("intermediate_size", 65_536),
        ("num_hidden_layers", 1024),
        ("num_attention_heads", 1024),
        ("num_key_value_heads", 1024),
        ("head_dim", 1024),
        ("num_local_experts", 4096),
        ("num_experts_per_tok", 4096),
        ("vocab_size", 4_194_304),
        ("sliding_window", 16_777_216),
        ("max_position_embeddings", 16_777_216),
    ];
    let wrong = |max: u64| {
        [
            json!(0),
            json!(-1),
            json!(max + 1),
            json!(u64::MAX),
            json!(i64::MIN),
            json!(2.0),
            json!(2.5),
            json!(1e30),
            json!(true),
            json!("64"),
            json!([64]),
            json!({}),
        ]
    };
    for (field, max) in bounds {
        for value in wrong(max) {
            let reason = refused(&with(&bundled(), &format!("/{field}"), value), field);
            let expected = format!("must be an integer from 1 to {max}, not ");
            assert!(reason.starts_with(&expected), "{field}: {reason}");
        }
    }
}

/// The largest of everything at once is accepted, and none of a model's dimensions leaves `i32`.
#[test]
fn the_upper_bounds_multiply_without_overflow() {
    let mut config = without(&published(24, 32), "/layer_types");
    for (field, value) in [
        ("hidden_size", 65_536),
        ("intermediate_size", 65_536),
        ("num_hidden_layers", 1024),
        ("num_attention_heads", 1024),
        ("num_key_value_heads", 1024),
        ("head_dim", 1024),
        ("num_local_experts", 4096),
        ("num_experts_per_tok", 4096),
        ("experts_per_token", 4096),
        ("vocab_size", 4_194_304),
        ("sliding_window", 16_777_216),
        ("max_position_embeddings", 16_777_216),
    ] {
        config = with(&config, &format!("/{field}"), value);
    }
    let c = accepted(&config);
    let qkv = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim;
    for dimension in [qkv, 2 * c.intermediate_size, c.vocab_size, c.max_position_embeddings] {
        i32::try_from(dimension).expect("MLX can count it");
    }
    let experts =
        [c.num_hidden_layers, c.num_local_experts, 2 * c.intermediate_size, c.hidden_size];
    let bytes = experts.iter().try_fold(4_usize, |product, size| product.checked_mul(*size));
    bytes.expect("all experts in f32 can be counted in bytes");
}

#[test]
fn sizes_must_fit_each_other() {
    let check = |pointer: &str, value: i32, field: &str, expected: &str| {
        assert_eq!(refused(&with(&bundled(), pointer, value), field), expected);
    };
    let heads = "num_attention_heads";
    check("/num_key_value_heads", 3, heads, "must be a multiple of num_key_value_heads (3), not 4");
    check("/num_key_value_heads", 8, heads, "must be a multiple of num_key_value_heads (8), not 4");
    check("/head_dim", 63, "head_dim", "must be even, not 63");
    let used = "num_experts_per_tok";
    check("/num_local_experts", 1, used, "must be at most num_local_experts (1), not 2");
}

#[test]
fn another_model_is_refused_by_its_type() {
    let reason = refused(&with(&bundled(), "/model_type", "llama"), "model_type");
    assert_eq!(reason, "must be `gpt_oss`, not \"llama\"");
    // Even where nothing else fits.
    let reason = refused(&json!({"model_type": "bert", "hidden_size": -3}), "model_type");
    assert_eq!(reason, "must be `gpt_oss`, not \"bert\"");
}

#[test]
fn what_the_library_does_not_compute_is_refused() {
    let check = |field: &str, value: Value, expected: &str| {
        let reason = refused(&with(&bundled(), &format!("/{field}"), value), field);
        assert!(reason.contains(expected), "{field}: {reason}");
    };
    check("hidden_act", json!("gelu"), "must be `silu`, not \"gelu\"");
    check("attention_bias", json!(false), "must be true");
    check("attention_bias", json!(1), "must be true or false, not 1");
    check("swiglu_alpha", json!(1.0), "1.702");
    check("tie_word_embeddings", json!("no"), "must be true or false, not \"no\"");
}

#[test]
fn floats_are_finite_and_in_range() {
    let check =
        |field: &str, value: Value| refused(&with(&bundled(), &format!("/{field}"), value), field);
    // 1e-50 is zero and 1e39 infinite in the f32 that the model computes with.
    for value in [json!(0), json!(0.0), json!(-1e-5), json!(1), json!(1e-50), json!(1e39)] {
        assert!(check("rms_norm_eps", value).starts_with("must be a number between 0 and 1, not"));
    }
    for value in [json!(0), json!(-7.0), json!(1e39), json!("7"), json!([])] {
        assert!(check("swiglu_limit", value).starts_with("must be a number above 0, not"));
    }
    for value in [json!(1), json!(0), json!(-150_000), json!(1e13), json!(1e39), json!("1e5")] {
        assert!(check("rope_theta", value).starts_with("must be a number above 1 and at most"));
    }
}

#[test]
fn layer_types_are_known_and_one_per_layer() {
    let field = "layer_types";
    let short = with(&bundled(), "/layer_types", json!(["full_attention"]));
    assert_eq!(refused(&short, field), "has 1 entries for 4 layers (num_hidden_layers)");
    let unknown = with(&bundled(), "/layer_types/2", "chunked_attention");
    assert_eq!(
        refused(&unknown, field),
        "entry 2 must be `sliding_attention` or `full_attention`, not \"chunked_attention\""
    );
    let number = with(&bundled(), "/layer_types", 4);
    assert_eq!(refused(&number, field), "must be a list, not 4");

    let full = with(&bundled(), "/layer_types", json!(vec!["full_attention"; 4]));
    assert_eq!(accepted(&full).layer_types, [LayerType::FullAttention; 4]);
}

#[test]
fn absent_fields_take_the_values_of_transformers() {
    let optional = [
        "/layer_types",
        "/tie_word_embeddings",
        "/attention_bias",
        "/hidden_act",
        "/swiglu_limit",
        "/eos_token_id",
        "/pad_token_id",
    ];
    let sparse = optional.iter().fold(bundled(), |config, pointer| without(&config, pointer));
    let nulls = optional.iter().fold(bundled(), |config, p| with(&config, p, Value::Null));
    let config = accepted(&sparse);
    assert_eq!(config, accepted(&nulls));
    assert_eq!(config.layer_types, alternating(4));
    assert!(config.attention_bias && !config.tie_word_embeddings);
    assert_eq!(config.swiglu_limit, 7.0);
    assert_eq!((config.eos_token_id.len(), config.pad_token_id), (0, None));
}

#[test]
fn experts_per_token_is_another_name() {
    let other_name = without(&bundled(), "/num_experts_per_tok");
    assert_eq!(accepted(&other_name).num_experts_per_tok, 2);
    let one_name = without(&bundled(), "/experts_per_token");
    assert_eq!(accepted(&one_name).num_experts_per_tok, 2);

    let reason = refused(&with(&bundled(), "/experts_per_token", 4), "experts_per_token");
    assert_eq!(reason, "is 4, but num_experts_per_tok is 2");
    let neither = without(&other_name, "/experts_per_token");
    assert_eq!(refused(&neither, "num_experts_per_tok"), "is missing");
}

#[test]
fn token_ids_are_below_the_vocabulary() {
    let with_eos = |value: Value| with(&bundled(), "/eos_token_id", value);
    let eos = |value| -> Vec<u32> { accepted(&with_eos(value)).eos_token_id };
    assert_eq!(eos(json!(2047)), [2047]);
    assert_eq!(eos(json!([0, 2047])), [0, 2047]);
    assert!(eos(json!([])).is_empty());

    let wrong =
        [json!(2048), json!(-1), json!(1.0), json!("2"), json!(u64::MAX), json!(1_u64 << 32)];
    for value in wrong {
        let expected = "must be a token id below vocab_size (2048), not ";
        let one = refused(&with_eos(value.clone()), "eos_token_id");
        assert!(one.starts_with(expected), "{one}");
        let second = refused(&with_eos(json!([1, value])), "eos_token_id");
        assert!(second.starts_with(&format!("entry 1 {expected}")), "{second}");
        let pad = refused(&with(&bundled(), "/pad_token_id", value), "pad_token_id");
        assert!(pad.starts_with(expected), "{pad}");
    }
    refused(&with_eos(json!([[1]])), "eos_token_id");
}

#[test]
fn fields_that_are_not_used_may_hold_anything() {
    let config: Config = accepted(&bundled());
    for field in ["use_cache", "torch_dtype", "attention_dropout", "architectures", "new_field"] {
        for value in [json!(null), json!(-1), json!({"a": [1]})] {
            assert_eq!(accepted(&with(&bundled(), &format!("/{field}"), value)), config);
        }
    }
}

fn alternating(layers: usize) -> Vec<LayerType> {
    (0..layers)
        .map(|layer| match layer % 2 {
            0 => LayerType::SlidingAttention,
            _ => LayerType::FullAttention,
        })
        .collect()
}
