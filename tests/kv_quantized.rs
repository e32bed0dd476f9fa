//! The quantized cache against the plain-Rust oracle, in which keys and values of full layers go
//! through quantization and back: any bits, groups, chunks, sinks, and across the length from which
//! a cache is quantized.
//!
//! A number that lies between two codes may be rounded either way after other roundings in f32. Where
//! a tight bound is to hold, tokens are chosen whose keys and values lie well inside their codes:
//! the only full layer is then the first, so that they depend on the token and its position alone.

mod common;

use std::path::{Path, PathBuf};

use common::block::{Kv, Model as Oracle};
use common::layouts::{Packing, SMALL, Shape, mxfp4_q, mxfp4_q_config};
use common::logits::{difference, in_chunks};
use common::rng::Rng;
use common::safetensors::Spec;
use common::{affine, random_model, reference};
use gpt_oss_mlx::KvBits::{self, Eight, Float, Four};
use gpt_oss_mlx::{Error, KvPolicy, LoadOptions, Model, Tokenizer};
use mlx_rs::{Array, ops};
use safetensors::Dtype;
use serde_json::{Value, json};

/// Largest difference of two logits, relative to their root mean square, that rounding in f32
/// explains.
const TOLERANCE: f64 = 1e-4;
/// Numbers that are chosen to be rounded in one way only are at least this far from the next code,
/// in steps; f32 is off by less than 1e-4 of them.
const MARGIN: f64 = 1e-3;

/// Keys and values in these bits.
const POLICIES: [(KvBits, KvBits); 5] =
    [(Eight, Eight), (Four, Four), (Eight, Four), (Float, Four), (Eight, Float)];

/// A policy, and what it means to the oracle.
fn kv((keys, values): (KvBits, KvBits), group_size: usize, quantize_from: usize) -> (KvPolicy, Kv) {
    let mut policy = KvPolicy::default();
    policy.key_bits = keys;
    policy.value_bits = values;
    policy.group_size = group_size;
    policy.quantize_from = quantize_from;
    let (key_bits, value_bits) = (keys.bits(), values.bits());
    (policy, Kv { key_bits, value_bits, group_size, quantize_from })
}

fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/gpt-oss-tiny")
}

fn load(dir: &Path) -> Model {
    Model::load(dir, &LoadOptions::default()).unwrap()
}

/// A random model in its folder: a full layer, then a sliding one.
struct Case {
    what: &'static str,
    shape: Shape,
    groups: &'static [usize],
    dir: tempfile::TempDir,
}

fn case(
    what: &'static str,
    shape: Shape,
    groups: &'static [usize],
    (config, specs): (Value, Vec<Spec>),
    packing: impl Fn(&str) -> Packing,
) -> Case {
    let dir = tempfile::tempdir().unwrap();
    let mut all = json!({
        "sliding_window": 7,
        "layer_types": ["full_attention", "sliding_attention"]
    });
    all.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
    random_model::write(dir.path(), &shape.config(all), &specs, &packing, 3);
    Case { what, shape, groups, dir }
}

fn floats(_: &str) -> Packing {
    Packing::Float
}

/// Query heads that share their keys: 3, 4, 8 and 1.
fn cases() -> Vec<Case> {
    let openai = || json!({"quantization_config": {"quant_method": "mxfp4"}});
    let wide = Shape { heads: 4, kv_heads: 1, head_dim: 128, ..SMALL };
    let eight = Shape { heads: 8, kv_heads: 1, ..SMALL };
    let alone = Shape { heads: 4, kv_heads: 4, head_dim: 32, ..SMALL };
    let sinks = case(
        "sinks of 30 and -30",
        eight,
        &[64],
        (json!({}), eight.mlx(Dtype::F32, floats)),
        floats,
    );
    random_model::set_sinks(sinks.dir.path(), |head| if head % 3 == 0 { 30.0 } else { -30.0 });
    vec![
        case(
            "MXFP4-Q8",
            SMALL,
            &[32, 64],
            (mxfp4_q_config(&SMALL, 8), SMALL.mlx(Dtype::F32, mxfp4_q(8))),
            mxfp4_q(8),
        ),
        case("heads of 128", wide, &[32, 64, 128], (openai(), wide.openai(Dtype::BF16)), floats),
        case("heads of 32", alone, &[32], (openai(), alone.openai(Dtype::F32)), floats),
        sinks,
    ]
}

/// Tokens whose keys and values in the first layer, the full one, are rounded in one way only.
fn ids_well_inside_their_codes(oracle: &Oracle, kv: &Kv, vocab: usize, len: usize) -> Vec<u32> {
    let mut rng = Rng::new(99);
    let mut draw = |position: usize| {
        for _ in 0..1000 {
            let id = rng.below(vocab) as u32;
            let x = oracle.embedded(id);
            if oracle.blocks[0].rounding_margin(&x, position, kv) > MARGIN {
                return id;
            }
        }
        panic!("no token at {position} will do");
    };
    (0..len).map(&mut draw).collect()
}

#[test]
fn the_oracle_packs_as_mlx_does() {
    let mut rng = Rng::new(7);
    let mut rows = rng.normals(40 * 128, 1.0);
    // Groups with nothing on one side of zero, with one number, with zeros only, and tiny ones.
    rows[..128].iter_mut().for_each(|v| *v = v.abs() + 3.0);
    rows[128..256].iter_mut().for_each(|v| *v = -v.abs() - 0.5);
    rows[256..384].fill(-1.25);
    rows[384..512].fill(0.0);
    rows[512..640].iter_mut().for_each(|v| *v *= 1e-6);
    rows[640..768].iter_mut().for_each(|v| *v *= 1e4);
    rows[768] = 100.0;
    let array = Array::from_slice(&rows, &[40, 128]);
    for bits in [4, 8] {
        for group_size in [32, 64, 128] {
            let (words, scales, biases) =
                ops::quantize(&array, group_size as i32, bits as i32).unwrap();
            let want = affine::quantize_as_mlx(&rows, bits, group_size);
            assert_eq!(words.as_slice::<u32>(), want.0, "codes, {bits} bits by {group_size}");
            assert_eq!(scales.as_slice::<f32>(), want.1, "scales, {bits} bits by {group_size}");
            assert_eq!(biases.as_slice::<f32>(), want.2, "biases, {bits} bits by {group_size}");
        }
    }
}

/// One query (the packed path without a mask), up to eight (with one), more (the unpacked path).
#[test]
fn random_models_agree_with_the_oracle() {
    let mut largest = 0f64;
    for Case { what, shape, groups, dir } in cases() {
        let oracle = reference::load(dir.path());
        let model = load(dir.path());
        for (i, bits) in POLICIES.into_iter().enumerate() {
            for (j, &group_size) in groups.iter().enumerate() {
                let (policy, rule) = kv(bits, group_size, [0, 16][(i + j) % 2]);
                let ids = ids_well_inside_their_codes(&oracle, &rule, shape.vocab, 30);
                let want = oracle.forward_with(&ids, &rule);
                if j == 0 {
                    let floats = difference(&oracle.forward(&ids), &want).largest;
                    assert!(floats > 10.0 * TOLERANCE, "{what}, {policy:?}: floats would pass");
                }
                for chunk in [1, 7, 8, 9, 30] {
                    let mut cache = model.new_cache_with(&policy).unwrap();
                    let got = in_chunks(&model, &mut cache, &ids, chunk);
                    let off = difference(&got, &want).largest;
                    println!("{what}, {bits:?} by {group_size}, chunks of {chunk}: {off:.1e}");
                    assert!(off < TOLERANCE, "{what}, {policy:?}, chunks of {chunk}: {off:.1e}");
                    assert_eq!(cache.len(), ids.len());
                    largest = largest.max(off);
                }
            }
        }
    }
    println!("largest: {largest:.1e}");
}

/// The trained model, whose full layers are the second and the fourth: what depends on roundings
/// that may go either way is bounded on the whole.
#[test]
fn the_bundled_model_agrees_with_the_oracle() {
    const TYPICAL: f64 = 5e-4;
    let oracle = reference::load(bundled());
    let model = load(&bundled());
    let ids = text();
    let ids = &ids[..70];
    for (i, bits) in POLICIES.into_iter().enumerate() {
        let (policy, rule) = kv(bits, [64, 32][i % 2], [0, 50][i / 2 % 2]);
        let want = oracle.forward_with(ids, &rule);
        for chunk in [1, 8, 70] {
            let mut cache = model.new_cache_with(&policy).unwrap();
            let off = difference(&in_chunks(&model, &mut cache, ids, chunk), &want);
            println!("{bits:?}, chunks of {chunk}: {off:?}");
            assert!(off.typical < TYPICAL, "{policy:?}, chunks of {chunk}: {off:?}");
        }
    }
}

/// Four of the answers that the bundled model knows, about 190 tokens.
fn text() -> Vec<u32> {
    let tokenizer = Tokenizer::from_dir(&bundled()).unwrap();
    let known = include_str!("fixtures/known-answers.json");
    let known: Value = serde_json::from_str(known).unwrap();
    let sentences: Vec<&str> =
        (known.as_array().unwrap().iter().take(4)).map(|k| k["answer"].as_str().unwrap()).collect();
    tokenizer.encode(&sentences.join(" "), false).unwrap()
}

/// However a prompt is cut: each query from `quantize_from` on sees quantized keys and values of all
/// positions, each before it sees floats.
#[test]
fn chunks_do_not_change_what_is_seen() {
    let Case { shape, dir, .. } = cases().swap_remove(0);
    let oracle = reference::load(dir.path());
    let model = load(dir.path());
    for bits in POLICIES {
        for quantize_from in [0, 1, 50, 64] {
            let (policy, rule) = kv(bits, 64, quantize_from);
            let ids = ids_well_inside_their_codes(&oracle, &rule, shape.vocab, 130);
            let fed = |chunk: usize| {
                let mut cache = model.new_cache_with(&policy).unwrap();
                in_chunks(&model, &mut cache, &ids, chunk)
            };
            let one_by_one = fed(1);
            for chunk in [7, 8, 9, 64, 130] {
                let off = difference(&fed(chunk), &one_by_one).largest;
                println!("{bits:?} from {quantize_from}, chunks of {chunk}: {off:.1e}");
                assert!(off < TOLERANCE / 4.0, "{policy:?}, chunks of {chunk}: {off:.1e}");
            }
        }
    }
}

/// Positions before the switch are those of a float cache, bit by bit; behind it the logits differ
/// by little, at every position.
#[test]
fn eight_bits_change_little_at_every_position() {
    // Of the root mean square of a position's logits: the same of their differences, and the
    // largest of these.
    const TYPICAL: f64 = 0.01;
    const LARGEST: f64 = 0.05;
    let model = load(&bundled());
    let ids = text();
    let floats = in_chunks(&model, &mut model.new_cache(), &ids, 1);
    for quantize_from in [0, 50, 100] {
        let (policy, _) = kv((Eight, Eight), 64, quantize_from);
        for chunk in [1, 64] {
            let mut cache = model.new_cache_with(&policy).unwrap();
            let got = in_chunks(&model, &mut cache, &ids, chunk);
            let (mut typical, mut largest, mut changed) = (0f64, 0f64, 0);
            for (position, (got, want)) in got.iter().zip(&floats).enumerate() {
                if position < quantize_from && chunk == 1 {
                    assert_eq!(got, want, "position {position} before {quantize_from}");
                    continue;
                }
                let off = difference(std::slice::from_ref(got), std::slice::from_ref(want));
                typical = typical.max(off.typical);
                largest = largest.max(off.largest);
                changed += usize::from(off.largest > 1e-5);
                assert!(off.typical < TYPICAL, "{policy:?} at {position}: {off:?}");
                assert!(off.largest < LARGEST, "{policy:?} at {position}: {off:?}");
            }
            println!("from {quantize_from} by {chunk}: {typical:.4}, {largest:.4}, {changed}");
            assert!(changed + quantize_from >= ids.len() - 3, "{changed}: it is not quantized");
        }
    }
}

/// At loading and for a single cache.
#[test]
fn a_policy_that_cannot_be_honoured_is_an_error_that_says_why() {
    let policy = |change: fn(&mut KvPolicy)| {
        let mut policy = KvPolicy::quantized(Eight);
        change(&mut policy);
        policy
    };
    let narrow = Shape { head_dim: 32, ..SMALL };
    let odd = Shape { head_dim: 48, ..SMALL };
    let sliding = json!({"layer_types": ["sliding_attention", "sliding_attention"]});
    let refused = [
        (
            narrow,
            json!({}),
            policy(|_| ()),
            "kv.group_size",
            "64 does not divide the head_dim of 32",
        ),
        (odd, json!({}), policy(|p| p.group_size = 32), "kv.group_size", "head_dim of 48"),
        (SMALL, json!({}), policy(|p| p.group_size = 128), "kv.group_size", "head_dim of 64"),
        (
            SMALL,
            json!({}),
            policy(|p| p.group_size = 48),
            "kv.group_size",
            "48 is none of 32, 64, 128",
        ),
        (
            SMALL,
            json!({}),
            policy(|p| p.group_size = 0),
            "kv.group_size",
            "0 is none of 32, 64, 128",
        ),
        (
            SMALL,
            json!({}),
            policy(|p| p.growth_step = 0),
            "kv.growth_step",
            "0 is not between 1 and",
        ),
        (
            SMALL,
            json!({}),
            policy(|p| p.growth_step = usize::MAX),
            "kv.growth_step",
            "is not between 1 and",
        ),
        (SMALL, json!({}), policy(|p| p.slack = usize::MAX), "kv.slack", "is more than"),
        (SMALL, json!({}), policy(|p| p.slack = 65_537), "kv.slack", "65537 is more than 65536"),
        (SMALL, sliding.clone(), policy(|_| ()), "kv.key_bits", "no full layer"),
        (SMALL, sliding.clone(), policy(|p| p.key_bits = Float), "kv.value_bits", "no full layer"),
    ];
    for (shape, config, policy, field, reason) in refused {
        let dir = tempfile::tempdir().unwrap();
        let specs = shape.mlx(Dtype::F32, floats);
        random_model::write(dir.path(), &shape.config(config), &specs, &floats, 1);
        let at_load = {
            let mut options = LoadOptions::default();
            options.kv = policy;
            Model::load(dir.path(), &options).unwrap_err()
        };
        let for_a_cache = load(dir.path()).new_cache_with(&policy).unwrap_err();
        for error in [at_load, for_a_cache] {
            assert!(matches!(error, Error::Argument { name, .. } if name == field), "{error}");
            let said = error.to_string();
            assert!(said.contains(field) && said.contains(reason), "{said}");
        }
    }

    // In floats the group does not matter, and neither does a lack of full layers.
    let dir = tempfile::tempdir().unwrap();
    random_model::write(
        dir.path(),
        &SMALL.config(sliding),
        &SMALL.mlx(Dtype::F32, floats),
        &floats,
        1,
    );
    let mut options = LoadOptions::default();
    options.kv.group_size = 48;
    Model::load(dir.path(), &options).unwrap();
}
