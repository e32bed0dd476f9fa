//! From a checkpoint's headers to a plan: every layout, the true shapes of the published models,
//! and one list of all that is wrong when tensors and config do not fit.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::layouts::{GPT_OSS_20B, GPT_OSS_120B, Packing, SMALL, Shape, mxfp4_q, mxfp4_q_config};
use common::safetensors::{Spec, place, spec, write_index, write_sparse};
use gpt_oss_mlx::checkpoint::Checkpoint;
use gpt_oss_mlx::config::{Config, Mode, QuantizationParams};
use gpt_oss_mlx::weights::plan::{GateUpPlan, Layout, LinearPlan, Plan, WeightForm, plan};
use gpt_oss_mlx::{Error, TensorMismatch};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

const MXFP4: QuantizationParams = QuantizationParams { group_size: 32, bits: 4, mode: Mode::Mxfp4 };

fn affine(bits: usize, group_size: usize) -> QuantizationParams {
    QuantizationParams { group_size, bits, mode: Mode::Affine }
}

fn config(shape: &Shape, extra: Value) -> Config {
    Config::from_json(Path::new("config.json"), &shape.config(extra)).unwrap()
}

fn openai_extra() -> Value {
    json!({"quantization_config": {"quant_method": "mxfp4"}})
}

/// An opened checkpoint whose files are headers only.
fn checkpoint(specs: &[Spec]) -> (TempDir, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    write_sparse(&dir.path().join("model.safetensors"), &place(specs));
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

/// Plans, and checks the accounts: the plan uses exactly the tensors of the checkpoint, once each.
#[track_caller]
fn planned(config: &Config, checkpoint: &Checkpoint) -> Plan {
    let plan = plan(config, checkpoint).unwrap();
    let mut uses = BTreeMap::new();
    for name in plan.tensor_names() {
        *uses.entry(name).or_insert(0) += 1;
    }
    let once: BTreeMap<&str, i32> = checkpoint.tensors().map(|(name, _)| (name, 1)).collect();
    assert_eq!(uses, once);
    plan
}

#[track_caller]
fn planned_from(config: &Config, specs: &[Spec]) -> Plan {
    planned(config, &checkpoint(specs).1)
}

#[track_caller]
fn mismatch(config: &Config, specs: &[Spec]) -> TensorMismatch {
    match plan(config, &checkpoint(specs).1) {
        Err(Error::Tensors(mismatch)) => mismatch,
        other => panic!("expected a mismatch, got {other:?}"),
    }
}

/// Size of a linear layer: experts, outputs, inputs.
fn size(linear: &LinearPlan) -> (Option<usize>, usize, usize) {
    (linear.experts, linear.outputs, linear.inputs)
}

fn interleaved(plan: &GateUpPlan) -> &LinearPlan {
    match plan {
        GateUpPlan::Interleaved(both) => both,
        other => panic!("not interleaved: {other:?}"),
    }
}

// The published models.

/// The layouts are as large as the `total_size` that the published indexes give.
#[test]
fn the_tables_add_up_to_the_published_sizes() {
    let bytes = |specs: &[Spec]| place(specs).last().unwrap().end;
    assert_eq!(bytes(&GPT_OSS_20B.openai(Dtype::BF16)), 13_761_264_768);
    assert_eq!(bytes(&GPT_OSS_120B.openai(Dtype::BF16)), 65_248_815_744);
    assert_eq!(bytes(&GPT_OSS_20B.mlx(Dtype::BF16, mxfp4_q(8))), 12_076_119_168);
}

#[test]
fn openai_layout_of_20b_and_120b() {
    for (shape, tensors) in [(GPT_OSS_20B, 459), (GPT_OSS_120B, 687)] {
        let specs = shape.openai(Dtype::BF16);
        assert_eq!(specs.len(), tensors);
        let (_dir, checkpoint) = checkpoint(&specs);
        let plan = planned(&config(&shape, openai_extra()), &checkpoint);
        assert_eq!((plan.layout, plan.dtype), (Layout::OpenAi, Dtype::BF16));
        assert_eq!(plan.layers.len(), shape.layers);
        assert_eq!(size(&plan.embed_tokens), (None, 201_088, 2880));
        for layer in &plan.layers {
            assert!(layer.qkv.joinable);
            assert_eq!(size(&layer.qkv.q), (None, 4096, 2880));
            assert_eq!(size(&layer.qkv.k), (None, 512, 2880));
            assert_eq!(size(&layer.o_proj), (None, 2880, 4096));
            let gate_up = interleaved(&layer.gate_up);
            assert_eq!(size(gate_up), (Some(shape.experts), 5760, 2880));
            assert_eq!((gate_up.form, gate_up.quantization), (WeightForm::Blocks, Some(MXFP4)));
            assert_eq!(layer.down_proj.form, WeightForm::Blocks);
            let blocks = checkpoint.info(&gate_up.weight).unwrap();
            assert_eq!(
                (blocks.dtype, &*blocks.shape),
                (Dtype::U8, &[shape.experts, 5760, 90, 16][..])
            );
        }
    }
}

#[test]
fn mxfp4_q8_and_q4_of_20b_and_120b() {
    for (shape, tensors) in [(GPT_OSS_20B, 775), (GPT_OSS_120B, 1159)] {
        for bits in [8, 4] {
            let specs = shape.mlx(Dtype::BF16, mxfp4_q(bits));
            assert_eq!(specs.len(), tensors);
            let plan = planned_from(&config(&shape, mxfp4_q_config(&shape, bits)), &specs);
            assert_eq!((plan.layout, plan.dtype), (Layout::Mlx, Dtype::BF16));
            assert_eq!(plan.lm_head.unwrap().quantization, Some(affine(bits, 64)));
            for layer in &plan.layers {
                assert!(layer.qkv.joinable);
                assert_eq!(layer.qkv.v.quantization, Some(affine(bits, 64)));
                assert_eq!(layer.router.quantization, Some(affine(8, 64)));
                assert_eq!(layer.down_proj.quantization, Some(MXFP4));
                assert_eq!(layer.down_proj.form, WeightForm::Rows);
                let GateUpPlan::Split { gate, up, joinable } = &layer.gate_up else { panic!() };
                assert!(joinable);
                assert_eq!(size(gate), (Some(shape.experts), 2880, 2880));
                assert_eq!(gate.quantization, Some(MXFP4));
                assert_eq!(up.biases, None);
            }
        }
    }
}

#[test]
fn a_model_in_shards_plans_as_one_in_a_single_file() {
    let specs = GPT_OSS_20B.openai(Dtype::BF16);
    let config = config(&GPT_OSS_20B, openai_extra());
    let dir = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for (i, part) in specs.chunks(200).enumerate() {
        let file = format!("model-{i:05}-of-00002.safetensors");
        write_sparse(&dir.path().join(&file), &place(part));
        files.extend(part.iter().map(|(name, ..)| (name.clone(), file.clone())));
    }
    write_index(dir.path(), files.iter().map(|(name, file)| (name.as_str(), file.as_str())));
    let sharded = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(sharded.file_count(), 3);
    assert_eq!(sharded.total_bytes(), 13_761_264_768);
    assert_eq!(planned(&config, &sharded), planned_from(&config, &specs));
}

#[test]
fn the_bundled_models() {
    for (model, layout, dtype, tensors) in [
        ("assets/gpt-oss-tiny", Layout::Mlx, Dtype::BF16, 135),
        ("tests/fixtures/gpt-oss-tiny-f32", Layout::Mlx, Dtype::F32, 135),
        ("tests/fixtures/gpt-oss-tiny-openai", Layout::OpenAi, Dtype::BF16, 79),
    ] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(model);
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let plan = planned(&Config::from_dir(&dir).unwrap(), &checkpoint);
        assert_eq!((plan.layout, plan.dtype), (layout, dtype), "{model}");
        assert_eq!(plan.tensor_names().len(), tensors, "{model}");
        assert!(plan.layers.iter().all(|layer| layer.qkv.joinable), "{model}");
    }
}

// Other ways to store the same model.

#[test]
fn names_of_one_layer_in_each_layout() {
    let plan = planned_from(&config(&SMALL, openai_extra()), &SMALL.openai(Dtype::BF16));
    let layer = &plan.layers[1];
    assert_eq!(layer.input_layernorm, "model.layers.1.input_layernorm.weight");
    assert_eq!(layer.sinks, "model.layers.1.self_attn.sinks");
    assert_eq!(layer.qkv.k.path, "model.layers.1.self_attn.k_proj");
    assert_eq!(
        layer.qkv.k.tensor_names(),
        ["model.layers.1.self_attn.k_proj.weight", "model.layers.1.self_attn.k_proj.bias"]
    );
    let experts = "model.layers.1.mlp.experts";
    assert_eq!(
        interleaved(&layer.gate_up).tensor_names(),
        ["blocks", "scales", "bias"].map(|part| format!("{experts}.gate_up_proj_{part}"))
    );

    let extra = mxfp4_q_config(&SMALL, 8);
    let plan = planned_from(&config(&SMALL, extra), &SMALL.mlx(Dtype::BF16, mxfp4_q(8)));
    let layer = &plan.layers[1];
    assert_eq!(
        layer.qkv.k.tensor_names(),
        ["weight", "scales", "biases", "bias"]
            .map(|part| format!("model.layers.1.self_attn.k_proj.{part}"))
    );
    let parts = layer.gate_up.parts();
    assert_eq!(
        parts[1].tensor_names(),
        ["weight", "scales", "bias"].map(|part| format!("{experts}.up_proj.{part}"))
    );
}

#[test]
fn transformers_without_quantization() {
    for float in [Dtype::BF16, Dtype::F16, Dtype::F32] {
        let plan = planned_from(&config(&SMALL, json!({})), &SMALL.transformers(float));
        assert_eq!((plan.layout, plan.dtype), (Layout::Transformers, float));
        let gate_up = interleaved(&plan.layers[0].gate_up);
        assert_eq!(size(gate_up), (Some(5), 256, 192));
        assert_eq!((gate_up.form, gate_up.quantization), (WeightForm::Columns, None));
        assert_eq!(size(&plan.layers[0].down_proj), (Some(5), 192, 128));
    }
}

#[test]
fn mlx_without_quantization() {
    for float in [Dtype::BF16, Dtype::F16, Dtype::F32] {
        let specs = SMALL.mlx(float, |_| Packing::Float);
        let plan = planned_from(&config(&SMALL, json!({})), &specs);
        assert_eq!((plan.layout, plan.dtype), (Layout::Mlx, float));
        let GateUpPlan::Split { gate, joinable, .. } = &plan.layers[0].gate_up else { panic!() };
        assert!(joinable);
        assert_eq!((gate.form, gate.quantization), (WeightForm::Rows, None));
    }
}

#[test]
fn one_quantization_for_all_modules() {
    for (bits, group) in [(8, 64), (4, 64), (4, 32), (6, 32), (3, 64), (5, 32), (2, 64)] {
        let specs = SMALL.mlx(Dtype::F16, |_| Packing::Affine { bits, group });
        let extra = json!({"quantization": {"group_size": group, "bits": bits}});
        let plan = planned_from(&config(&SMALL, extra), &specs);
        let expected = Some(affine(bits, group));
        assert_eq!(plan.dtype, Dtype::F16);
        assert_eq!(plan.embed_tokens.quantization, expected);
        assert_eq!(plan.layers[0].down_proj.quantization, expected);
        assert!(plan.layers[0].down_proj.biases.is_some());
    }
    let extra = json!({"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}});
    let specs = SMALL.mlx(Dtype::F16, |_| Packing::Mxfp4);
    let plan = planned_from(&config(&SMALL, extra), &specs);
    assert_eq!(plan.layers[1].qkv.q.quantization, Some(MXFP4));
    // No float in the embedding: its type is that of the norms.
    assert_eq!((plan.embed_tokens.quantization, plan.dtype), (Some(MXFP4), Dtype::F16));
}

#[test]
fn a_tied_head_has_no_tensors() {
    let mut specs = SMALL.openai(Dtype::BF16);
    let mut extra = openai_extra();
    extra["tie_word_embeddings"] = json!(true);
    let config = config(&SMALL, extra);
    assert_eq!(mismatch(&config, &specs).unexpected, ["lm_head.weight"]);
    specs.retain(|(name, ..)| name != "lm_head.weight");
    assert_eq!(planned_from(&config, &specs).lm_head, None);
}

#[test]
fn the_layout_shows_in_the_names_not_in_the_config() {
    // OpenAI's blocks although the config says nothing, and MLX's names under OpenAI's config.
    let plan = planned_from(&config(&SMALL, json!({})), &SMALL.openai(Dtype::BF16));
    assert_eq!(plan.layout, Layout::OpenAi);
    let packing =
        |path: &str| if path.contains(".experts.") { Packing::Mxfp4 } else { Packing::Float };
    let plan = planned_from(&config(&SMALL, openai_extra()), &SMALL.mlx(Dtype::BF16, packing));
    assert_eq!(plan.layout, Layout::Mlx);
    assert_eq!(plan.layers[0].down_proj.quantization, Some(MXFP4));
    assert_eq!(plan.layers[0].o_proj.quantization, None);
}

#[test]
fn a_module_that_mlx_left_in_floats() {
    // Not named, since mlx-lm does not say when it skips one; or named with `false`.
    let router_float = |path: &str| match path.ends_with(".router") {
        true => Packing::Float,
        false => Packing::Affine { bits: 4, group: 64 },
    };
    let specs = SMALL.mlx(Dtype::BF16, router_float);
    let silent = json!({"quantization": {"group_size": 64, "bits": 4}});
    let plan = planned_from(&config(&SMALL, silent), &specs);
    assert_eq!(plan.layers[0].router.quantization, None);
    assert_eq!(plan.layers[0].o_proj.quantization, Some(affine(4, 64)));

    let router = |layer| format!("model.layers.{layer}.mlp.router");
    let said = json!({"quantization": {
        "group_size": 64, "bits": 4, router(0): false, router(1): false,
    }});
    assert_eq!(planned_from(&config(&SMALL, said), &specs), plan);

    // Named as quantized, it has to be.
    let named = json!({"quantization": {
        "group_size": 64, "bits": 4, router(0): {"group_size": 64, "bits": 8},
    }});
    let found = mismatch(&config(&SMALL, named), &specs);
    assert_eq!(found.missing, [format!("{}.scales", router(0)), format!("{}.biases", router(0))]);
    assert_eq!(found.misshapen.len(), 1);

    // And named as not quantized, it must not be.
    let specs = SMALL.mlx(Dtype::BF16, |_| Packing::Affine { bits: 4, group: 64 });
    let said = json!({"quantization": {"group_size": 64, "bits": 4, router(0): false}});
    let found = mismatch(&config(&SMALL, said), &specs);
    assert_eq!(
        found.unexpected,
        [format!("{}.biases", router(0)), format!("{}.scales", router(0))]
    );
    assert_eq!(
        found.misshapen,
        [format!("{}.weight: is U32 [5, 24], should be BF16, F16 or F32 [5, 192]", router(0))]
    );
}

#[test]
fn projections_stored_differently_are_not_joined() {
    let base = |path: &str| match path {
        "model.layers.1.self_attn.v_proj" => Packing::Affine { bits: 8, group: 64 },
        "model.layers.0.mlp.experts.up_proj" => Packing::Affine { bits: 4, group: 32 },
        _ => Packing::Affine { bits: 4, group: 64 },
    };
    let mut specs = SMALL.mlx(Dtype::BF16, base);
    let config = config(
        &SMALL,
        json!({"quantization": {
            "group_size": 64, "bits": 4,
            "model.layers.1.self_attn.v_proj": {"group_size": 64, "bits": 8},
            "model.layers.0.mlp.experts.up_proj": {"group_size": 32, "bits": 4},
        }}),
    );
    let joinable = |plan: &Plan| {
        let of = |layer: usize| {
            let layer = &plan.layers[layer];
            let GateUpPlan::Split { joinable, .. } = layer.gate_up else { panic!() };
            (layer.qkv.joinable, joinable)
        };
        [of(0), of(1)]
    };
    assert_eq!(joinable(&planned_from(&config, &specs)), [(true, false), (false, true)]);
    // A bias of another float type is a difference too: joining would round one of them.
    for (name, dtype, _) in &mut specs {
        if name == "model.layers.0.self_attn.k_proj.bias" {
            *dtype = Dtype::F32;
        }
    }
    assert_eq!(joinable(&planned_from(&config, &specs)), [(false, false), (false, true)]);
}

// What does not fit.

/// The small model in OpenAI's layout, changed by `change`.
fn changed(change: impl FnOnce(&mut Vec<Spec>)) -> TensorMismatch {
    let mut specs = SMALL.openai(Dtype::BF16);
    change(&mut specs);
    mismatch(&config(&SMALL, openai_extra()), &specs)
}

fn find<'a>(specs: &'a mut [Spec], name: &str) -> &'a mut Spec {
    specs.iter_mut().find(|(other, ..)| other == name).unwrap()
}

#[test]
fn every_tensor_is_needed() {
    let cases = [
        (openai_extra(), SMALL.openai(Dtype::BF16)),
        (json!({}), SMALL.transformers(Dtype::BF16)),
        (mxfp4_q_config(&SMALL, 8), SMALL.mlx(Dtype::BF16, mxfp4_q(8))),
    ];
    for (extra, specs) in cases {
        let config = config(&SMALL, extra);
        for i in 0..specs.len() {
            let mut without = specs.clone();
            let (name, ..) = without.remove(i);
            let found = mismatch(&config, &without);
            assert_eq!(found.missing, [name.as_str()]);
            assert!(found.unexpected.is_empty() && found.misshapen.is_empty(), "{name}");
        }
    }
}

#[test]
fn every_shape_and_dtype_is_checked() {
    let cases = [
        (openai_extra(), SMALL.openai(Dtype::BF16)),
        (json!({}), SMALL.transformers(Dtype::BF16)),
        (mxfp4_q_config(&SMALL, 8), SMALL.mlx(Dtype::BF16, mxfp4_q(8))),
    ];
    for (extra, specs) in cases {
        let config = config(&SMALL, extra);
        for (i, (name, dtype, shape)) in specs.iter().enumerate() {
            let refused = |change: &dyn Fn(&mut Spec)| {
                let mut changed = specs.clone();
                change(&mut changed[i]);
                let found = mismatch(&config, &changed);
                assert!(found.unexpected.is_empty() && found.missing.is_empty(), "{name}");
                let about =
                    found.misshapen.iter().any(|line| line.starts_with(&format!("{name}: ")));
                assert!(about, "{name}: {:?}", found.misshapen);
            };
            for axis in 0..shape.len() {
                refused(&|spec| spec.2[axis] += 1);
            }
            refused(&|spec| spec.2.push(1));
            refused(&|spec| {
                spec.2.pop();
            });
            let other = if *dtype == Dtype::BF16 { Dtype::I16 } else { Dtype::I32 };
            refused(&|spec| spec.1 = other);
        }
    }
}

#[test]
fn all_that_is_wrong_is_listed_at_once() {
    let found = changed(|specs| {
        specs.retain(|(name, ..)| {
            name != "model.norm.weight" && name != "model.layers.1.self_attn.sinks"
        });
        specs.push(spec("model.layers.2.input_layernorm.weight", Dtype::BF16, &[192]));
        specs.push(spec("extra", Dtype::BF16, &[1]));
        find(specs, "model.layers.0.self_attn.q_proj.weight").2 = vec![192, 384];
        find(specs, "lm_head.weight").1 = Dtype::U8;
    });
    assert_eq!(
        found,
        TensorMismatch {
            missing: vec!["model.layers.1.self_attn.sinks".into(), "model.norm.weight".into()],
            unexpected: vec!["extra".into(), "model.layers.2.input_layernorm.weight".into()],
            misshapen: vec![
                "model.layers.0.self_attn.q_proj.weight: is BF16 [192, 384], should be BF16, F16 \
                 or F32 [384, 192]"
                    .into(),
                "lm_head.weight: is U8 [320, 192], should be BF16, F16 or F32 [320, 192]".into(),
            ],
        }
    );
    let text = Error::from(found).to_string();
    for part in ["2 missing", "2 unexpected", "2 misshapen", "extra", "model.norm.weight"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn bias_and_biases_are_two_things() {
    let mut specs = SMALL.mlx(Dtype::BF16, mxfp4_q(8));
    let path = "model.layers.0.self_attn.q_proj";
    find(&mut specs, &format!("{path}.biases")).0 = "elsewhere".into();
    find(&mut specs, &format!("{path}.bias")).0 = format!("{path}.biases");
    find(&mut specs, "elsewhere").0 = format!("{path}.bias");
    let found = mismatch(&config(&SMALL, mxfp4_q_config(&SMALL, 8)), &specs);
    assert_eq!(
        found.misshapen,
        [
            format!("{path}.biases: is BF16 [384], should be BF16 [384, 3]"),
            format!("{path}.bias: is BF16 [384, 3], should be BF16, F16 or F32 [384]"),
        ]
    );
}

#[test]
fn scales_and_biases_have_one_type() {
    let mut specs = SMALL.mlx(Dtype::BF16, mxfp4_q(8));
    find(&mut specs, "lm_head.biases").1 = Dtype::F32;
    let found = mismatch(&config(&SMALL, mxfp4_q_config(&SMALL, 8)), &specs);
    assert_eq!(found.misshapen, ["lm_head.biases: is F32 [320, 3], should be BF16 [320, 3]"]);
}

#[test]
fn a_group_that_does_not_divide_the_width_is_named() {
    // The experts' width, 128 + 32, has no groups of 64; config.json names no module.
    let shape = Shape { width: 160, ..SMALL };
    let specs = shape.mlx(Dtype::BF16, |_| Packing::Affine { bits: 4, group: 64 });
    let extra = json!({"quantization": {"group_size": 64, "bits": 4}});
    let found = mismatch(&config(&shape, extra), &specs);
    assert_eq!(
        found.misshapen,
        [0, 1].map(|layer| format!(
            "model.layers.{layer}.mlp.experts.down_proj: its 160 inputs cannot be quantized to 4 \
             bits in groups of 64"
        ))
    );
    let shape = Shape { width: 144, ..SMALL };
    let found = mismatch(&config(&shape, json!({})), &shape.openai(Dtype::BF16));
    assert_eq!(
        found.misshapen[0],
        "model.layers.0.mlp.experts.down_proj: its 144 inputs cannot be quantized in groups of 32"
    );
}

#[test]
fn a_checkpoint_of_another_size_or_none_at_all() {
    // 20b's tensors with 120b's config: the first layers are misshapen, the last ones missing.
    let found = mismatch(&config(&GPT_OSS_120B, openai_extra()), &GPT_OSS_20B.openai(Dtype::BF16));
    assert_eq!(found.missing.len(), 12 * 19);
    assert_eq!(found.misshapen.len(), 24 * 8);
    assert!(found.unexpected.is_empty());
    // The names that are missed are those of the layout that the config means.
    let lacks = |extra, name: &str| {
        let found = mismatch(&config(&SMALL, extra), &[]);
        assert!(found.missing.iter().any(|missing| missing.ends_with(name)), "{name}");
    };
    lacks(openai_extra(), "experts.gate_up_proj_blocks");
    lacks(mxfp4_q_config(&SMALL, 8), "experts.gate_proj.scales");
    lacks(json!({}), "experts.gate_up_proj");
}
