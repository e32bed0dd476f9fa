//! `quantization` (MLX) and `quantization_config` (OpenAI, or a copy of the former).

use gpt_oss_mlx::config::{Mode, Quantization, QuantizationParams};
use serde_json::{Value, json};

use super::{accepted, bundled, published, refused, tiny_openai, with, without};

const MXFP4: QuantizationParams = QuantizationParams { group_size: 32, bits: 4, mode: Mode::Mxfp4 };
const AFFINE_8: QuantizationParams =
    QuantizationParams { group_size: 64, bits: 8, mode: Mode::Affine };

/// The bundled config with another `quantization` and no copy of it.
fn quantized(block: Value) -> Value {
    without(&with(&bundled(), "/quantization", block), "/quantization_config")
}

#[track_caller]
fn quantization(config: &Value) -> Quantization {
    accepted(config).quantization.expect("the config is quantized")
}

#[test]
fn the_bundled_model_has_a_default_and_overrides() {
    let found = quantization(&bundled());
    assert_eq!(found.default, MXFP4);
    assert_eq!(found.modules.len(), 4 * 5 + 2);
    for path in ["model.embed_tokens", "lm_head", "model.layers.3.self_attn.o_proj"] {
        assert_eq!(found.for_module(path), Some(AFFINE_8));
    }
    assert_eq!(found.for_module("model.layers.0.mlp.experts.up_proj"), Some(MXFP4));
}

#[test]
fn no_mode_means_affine_everywhere() {
    // The router's entry names no mode, and the top level says mxfp4.
    let found = quantization(&bundled());
    assert_eq!(found.for_module("model.layers.0.mlp.router"), Some(AFFINE_8));

    let plain = quantization(&quantized(json!({"group_size": 64, "bits": 4})));
    let expected = QuantizationParams { group_size: 64, bits: 4, mode: Mode::Affine };
    assert_eq!((plain.default, plain.modules.len()), (expected, 0));
}

#[test]
fn modules_can_be_switched_off_and_on() {
    let found = quantization(&quantized(json!({
        "group_size": 32, "bits": 4, "mode": "mxfp4", "lm_head": false, "model.embed_tokens": true
    })));
    assert_eq!(found.for_module("lm_head"), None);
    assert_eq!(found.for_module("model.embed_tokens"), Some(MXFP4));
}

#[test]
fn every_supported_combination_is_accepted() {
    let mut modes = vec![("mxfp4", 32, 4)];
    for group_size in [32, 64, 128] {
        modes.extend([2, 3, 4, 5, 6, 8].map(|bits| ("affine", group_size, bits)));
    }
    for (mode, group_size, bits) in modes {
        let block = json!({"group_size": group_size, "bits": bits, "mode": mode});
        let found = quantization(&quantized(block)).default;
        assert_eq!((found.mode.as_str(), found.group_size, found.bits), (mode, group_size, bits));
    }
}

#[test]
fn every_setting_is_checked_at_the_top_and_in_a_module() {
    let good = json!({"group_size": 64, "bits": 8, "mode": "affine"});
    let check = |key: &str, value: Value, field: &str, expected: &str| {
        let bad = with(&good, &format!("/{key}"), value);
        let reason = refused(&quantized(bad.clone()), &format!("quantization.{field}"));
        assert!(reason.contains(expected), "{field}: {reason}");
        let module = quantized(with(&good, "/lm_head", bad));
        let reason = refused(&module, &format!("quantization.lm_head.{field}"));
        assert!(reason.contains(expected), "lm_head.{field}: {reason}");
    };
    for value in [json!(0), json!(1), json!(7), json!(16), json!(-4), json!(4.0), json!("4")] {
        check("bits", value, "bits", "must be 2 or 3 or 4 or 5 or 6 or 8 in mode affine, not ");
    }
    for value in [json!(0), json!(16), json!(48), json!(-64), json!(64.0), json!(u64::MAX)] {
        check("group_size", value, "group_size", "must be 32 or 64 or 128 in mode affine, not ");
    }
    check("bits", json!(null), "bits", "is required, but null");
    check("group_size", json!(null), "group_size", "is required, but null");
    check("mode", json!("mxfp8"), "mode", "must be `affine` or `mxfp4`, not \"mxfp8\"");
    check("mode", json!(4), "mode", "must be `affine` or `mxfp4`, not 4");
    check("mode", json!("mxfp4"), "group_size", "must be 32 in mode mxfp4, not 64");

    let mxfp8 = json!({"group_size": 32, "bits": 8, "mode": "mxfp4"});
    assert_eq!(refused(&quantized(mxfp8), "quantization.bits"), "must be 4 in mode mxfp4, not 8");
    assert_eq!(refused(&quantized(json!({"bits": 4})), "quantization.group_size"), "is missing");
    let reason = refused(&quantized(json!([])), "quantization");
    assert_eq!(reason, "must be an object, not a list");
}

#[test]
fn a_modules_groups_must_divide_its_input() {
    let check = |path: &str, expected: Option<&str>| {
        // hidden 192, heads 4 x 48 = 192, experts 128 wide.
        let config = with(&bundled(), "/head_dim", 48);
        let group = json!({"group_size": 128, "bits": 4});
        let block = json!({"group_size": 64, "bits": 4, path: group});
        let config = with(&without(&config, "/quantization_config"), "/quantization", block);
        match expected {
            Some(fields) => {
                let reason = refused(&config, &format!("quantization.{path}"));
                let wanted = "has groups of 128, which do not divide the module's input width 192";
                assert_eq!(reason, format!("{wanted} ({fields})"));
            }
            None => assert_eq!(quantization(&config).modules.len(), 1),
        }
    };
    for path in ["model.embed_tokens", "lm_head"] {
        check(path, Some("hidden_size"));
    }
    let inputs = [
        ("self_attn.q_proj", Some("hidden_size")),
        ("self_attn.k_proj", Some("hidden_size")),
        ("self_attn.v_proj", Some("hidden_size")),
        ("self_attn.o_proj", Some("num_attention_heads times head_dim")),
        ("mlp.router", Some("hidden_size")),
        ("mlp.experts.gate_proj", Some("hidden_size")),
        ("mlp.experts.up_proj", Some("hidden_size")),
        ("mlp.experts.gate_up_proj", Some("hidden_size")),
        ("mlp.experts.down_proj", None),
    ];
    for (name, expected) in inputs {
        check(&format!("model.layers.3.{name}"), expected);
    }
}

#[test]
fn entries_that_name_no_module_are_refused() {
    let unknown = [
        "model.layers.4.mlp.router",
        "model.layers.-1.mlp.router",
        "model.layers.+1.mlp.router",
        "model.layers.01.mlp.router",
        "model.layers.99999999999999999999.mlp.router",
        "model.layers.0",
        "model.layers.",
        "model.layers.0.",
        "model.layers.0.lm_head",
        "model.layers.0.mlp.gate",
        "model.norm",
        "self_attn.q_proj",
        "linear_class",
        "",
    ];
    for path in unknown {
        for entry in [json!({"group_size": 64, "bits": 8}), json!(false), json!("x")] {
            let config = with(&bundled(), "/quantization", {
                json!({"group_size": 64, "bits": 4, path: entry})
            });
            let reason = refused(&config, &format!("quantization.{path}"));
            assert_eq!(reason, "is neither a setting nor a module of this model");
        }
    }
}

#[test]
fn a_modules_entry_is_an_object_or_a_boolean() {
    for entry in [json!(8), json!("affine"), json!([8]), json!(null)] {
        let block = json!({"group_size": 64, "bits": 4, "lm_head": entry});
        refused(&quantized(block), "quantization.lm_head");
    }
    let entry = json!({"group_size": 64, "bits": 8, "quantize_input": true});
    let block = json!({"group_size": 64, "bits": 4, "lm_head": entry});
    let reason = refused(&quantized(block), "quantization.lm_head.quantize_input");
    assert_eq!(reason, "is not a setting that this library knows");
}

#[test]
fn the_copy_must_agree_and_may_stand_alone() {
    let alone = without(&bundled(), "/quantization");
    assert_eq!(accepted(&alone), accepted(&bundled()));

    for (pointer, value) in [
        ("/quantization/lm_head/bits", json!(4)),
        ("/quantization_config/lm_head/bits", json!(4)),
        ("/quantization_config/lm_head", json!(false)),
    ] {
        let reason = refused(&with(&bundled(), pointer, value), "quantization_config");
        assert_eq!(reason, "disagrees with `quantization`");
    }
    // The copy is checked by its own name.
    let copy = with(&bundled(), "/quantization_config/bits", 7);
    refused(&copy, "quantization_config.bits");
}

#[test]
fn openais_block_is_recognized_by_its_method() {
    let config = accepted(&tiny_openai());
    assert!(config.packed_mxfp4);
    assert_eq!(config.quantization, None);

    for (method, shown) in [(json!("gptq"), "\"gptq\""), (json!(4), "4"), (json!([]), "a list")] {
        let config = with(&published(24, 32), "/quantization_config/quant_method", method);
        let reason = refused(&config, "quantization_config.quant_method");
        assert_eq!(reason, format!("must be `mxfp4`, not {shown}"));
    }
    let null = with(&published(24, 32), "/quantization_config/quant_method", Value::Null);
    assert_eq!(refused(&null, "quantization_config.quant_method"), "is required, but null");
    let modules = with(&published(24, 32), "/quantization_config/modules_to_not_convert/0", 1);
    let reason = refused(&modules, "quantization_config.modules_to_not_convert");
    assert_eq!(reason, "entry 0 must be a string, not 1");
}

#[test]
fn packed_experts_need_whole_groups() {
    for field in ["hidden_size", "intermediate_size"] {
        let config = with(&published(24, 32), &format!("/{field}"), 2896);
        assert_eq!(refused(&config, field), "must be a multiple of 32 for MXFP4, not 2896");
        // Without MXFP4 any width will do.
        accepted(&without(&config, "/quantization_config"));
    }
}

#[test]
fn mlxs_block_wins_over_openais() {
    let both =
        with(&bundled(), "/quantization_config", published(24, 32)["quantization_config"].clone());
    assert_eq!(accepted(&both), accepted(&bundled()));
    let unknown = with(&both, "/quantization_config/quant_method", "awq");
    refused(&unknown, "quantization_config.quant_method");
}

#[test]
fn no_block_means_no_quantization() {
    let plain = without(&published(24, 32), "/quantization_config");
    let null = with(&published(24, 32), "/quantization_config", Value::Null);
    for config in [accepted(&plain), accepted(&null)] {
        assert_eq!((config.quantization, config.packed_mxfp4), (None, false));
    }
}
