//! The model against the plain-Rust oracle: every layout, shapes other than the published ones,
//! chunks of any size, sequences several times as long as the window.

mod common;

use std::path::Path;

use common::block::Block;
use common::layouts::{Packing, SMALL, Shape, mxfp4_q, mxfp4_q_config};
use common::rng::Rng;
use common::safetensors::Spec;
use common::{random_model, reference};
use gpt_oss_mlx::{Cache, LoadOptions, Model};
use safetensors::Dtype;
use serde_json::{Value, json};

/// Largest difference of two logits, relative to their root mean square, that rounding in f32
/// explains.
const TOLERANCE: f64 = 1e-4;

fn load(dir: &Path) -> Model {
    Model::load(dir, &LoadOptions::default()).unwrap()
}

/// The logits of `ids`, fed in chunks of the given size.
fn logits(model: &Model, cache: &mut Cache, ids: &[u32], chunk: usize) -> Vec<Vec<f64>> {
    let mut rows = Vec::new();
    for ids in ids.chunks(chunk) {
        let array = model.forward(ids, cache).unwrap();
        array.eval().unwrap();
        assert_eq!(array.shape()[0] as usize, ids.len());
        let width = array.shape()[1] as usize;
        rows.extend(
            array
                .as_slice::<f32>()
                .chunks(width)
                .map(|row| row.iter().map(|&v| f64::from(v)).collect()),
        );
    }
    rows
}

/// The largest difference, relative to the root mean square of what is expected.
fn difference(got: &[Vec<f64>], want: &[Vec<f64>]) -> f64 {
    assert_eq!(got.len(), want.len());
    let (mut largest, mut squares, mut count) = (0f64, 0.0, 0.0);
    for (got, want) in got.iter().zip(want) {
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!(got.is_finite());
            largest = largest.max((got - want).abs());
            squares += want * want;
            count += 1.0;
        }
    }
    largest / f64::sqrt(squares / count)
}

fn random_ids(vocab: usize, len: usize) -> Vec<u32> {
    let mut rng = Rng::new(99);
    (0..len).map(|_| rng.below(vocab) as u32).collect()
}

/// Holds the model in `dir` against its oracle, all at once and in chunks.
fn assert_matches(what: &str, dir: &Path, ids: &[u32], chunks: &[usize]) {
    let want = reference::load(dir).forward(ids);
    let model = load(dir);
    for &chunk in chunks {
        let mut cache = model.new_cache();
        let difference = difference(&logits(&model, &mut cache, ids, chunk), &want);
        println!("{what}, chunks of {chunk}: {difference:.1e}");
        assert!(difference < TOLERANCE, "{what}, chunks of {chunk}: off by {difference:.1e}");
        assert_eq!(cache.len(), ids.len());
    }
}

/// Holds one of the trained models against its oracle for more than two windows of 64.
fn assert_fixture_matches(dir: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
    assert_matches(dir, &path, &random_ids(2048, 135), &[135, 64, 7, 1]);
}

#[test]
fn the_bundled_model() {
    assert_fixture_matches("assets/gpt-oss-tiny");
}

#[test]
fn the_fixture_in_f32() {
    assert_fixture_matches("tests/fixtures/gpt-oss-tiny-f32");
}

#[test]
fn the_fixture_in_openais_layout() {
    assert_fixture_matches("tests/fixtures/gpt-oss-tiny-openai");
}

struct Case {
    what: &'static str,
    shape: Shape,
    config: Value,
    specs: Vec<Spec>,
    packing: Box<dyn Fn(&str) -> Packing>,
}

/// `config` on top of what the small shapes have in common.
fn case(
    what: &'static str,
    shape: Shape,
    config: Value,
    specs: Vec<Spec>,
    packing: impl Fn(&str) -> Packing + 'static,
) -> Case {
    let mut all = json!({"sliding_window": 7});
    all.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
    Case { what, shape, config: all, specs, packing: Box::new(packing) }
}

fn floats(_: &str) -> Packing {
    Packing::Float
}

fn affine(bits: usize) -> impl Fn(&str) -> Packing {
    move |_| Packing::Affine { bits, group: 64 }
}

fn scaling(truncate: bool) -> Value {
    json!({
        "rope_type": "yarn", "factor": 8.0, "beta_fast": 16.0, "beta_slow": 2.0,
        "truncate": truncate, "original_max_position_embeddings": 512
    })
}

/// Which of the cases differs from the published models in every size and constant.
const ODD: usize = 1;

fn cases() -> Vec<Case> {
    let openai = json!({"quantization_config": {"quant_method": "mxfp4"}});
    let plain = |bits| json!({"quantization": {"group_size": 64, "bits": bits, "mode": "affine"}});
    let with = |mut a: Value, b: Value| {
        a.as_object_mut().unwrap().extend(b.as_object().unwrap().clone());
        a
    };
    let odd = Shape {
        layers: 3,
        hidden: 128,
        heads: 5,
        kv_heads: 1,
        head_dim: 32,
        width: 96,
        experts: 3,
        vocab: 77,
    };
    let tied = |specs: Vec<Spec>| specs.into_iter().filter(|s| s.0 != "lm_head.weight").collect();
    vec![
        case("OpenAI's, bf16", SMALL, openai.clone(), SMALL.openai(Dtype::BF16), floats),
        case(
            "OpenAI's, f32, other sizes",
            odd,
            with(
                openai.clone(),
                json!({
                    "num_experts_per_tok": 1,
                    "swiglu_limit": 0.4,
                    "rms_norm_eps": 0.5,
                    "rope_theta": 1000,
                    "rope_scaling": scaling(true),
                    "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]
                }),
            ),
            odd.openai(Dtype::F32),
            floats,
        ),
        case(
            "every expert, window 1, head shared with the embedding",
            odd,
            with(
                openai,
                json!({
                    "num_experts_per_tok": 3,
                    "sliding_window": 1,
                    "rope_scaling": scaling(false),
                    "tie_word_embeddings": true
                }),
            ),
            tied(odd.openai(Dtype::F32)),
            floats,
        ),
        case(
            "MXFP4-Q8",
            SMALL,
            mxfp4_q_config(&SMALL, 8),
            SMALL.mlx(Dtype::F32, mxfp4_q(8)),
            mxfp4_q(8),
        ),
        case(
            "MXFP4-Q4",
            SMALL,
            mxfp4_q_config(&SMALL, 4),
            SMALL.mlx(Dtype::BF16, mxfp4_q(4)),
            mxfp4_q(4),
        ),
        case("affine, 4 bits", SMALL, plain(4), SMALL.mlx(Dtype::BF16, affine(4)), affine(4)),
        case("affine, 8 bits", SMALL, plain(8), SMALL.mlx(Dtype::F16, affine(8)), affine(8)),
        case("floats of mlx-lm", SMALL, json!({}), SMALL.mlx(Dtype::F32, floats), floats),
        case("transformers', bf16", SMALL, json!({}), SMALL.transformers(Dtype::BF16), floats),
        case("transformers', f16", SMALL, json!({}), SMALL.transformers(Dtype::F16), floats),
    ]
}

#[test]
fn random_models_of_every_layout() {
    for (seed, case) in cases().into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let config = case.shape.config(case.config);
        random_model::write(dir.path(), &config, &case.specs, &*case.packing, seed as u64);
        let ids = random_ids(case.shape.vocab, 30);
        assert_matches(case.what, dir.path(), &ids, &[30, 7, 1]);
    }
}

#[test]
fn gate_and_up_apart_are_the_same_as_fused() {
    let dir = tempfile::tempdir().unwrap();
    let config = SMALL.config(mxfp4_q_config(&SMALL, 8));
    random_model::write(dir.path(), &config, &SMALL.mlx(Dtype::F32, mxfp4_q(8)), &mxfp4_q(8), 5);
    let ids = random_ids(SMALL.vocab, 20);
    let mut apart = LoadOptions::default();
    apart.fuse_gate_up = false;
    let [fused, apart] = [LoadOptions::default(), apart].map(|options| {
        let model = Model::load(dir.path(), &options).unwrap();
        logits(&model, &mut model.new_cache(), &ids, 20)
    });
    assert!(difference(&apart, &fused) < 1e-6);
}

/// What the comparison would say of a model with one mistake.
#[test]
fn every_likely_mistake_would_show() {
    type Mistake = fn(&mut Block);
    let mistakes: [(&str, Mistake); 12] = [
        ("a window one too long", |b| b.attention.window = b.attention.window.map(|w| w + 1)),
        ("a window one too short", |b| b.attention.window = b.attention.window.map(|w| w - 1)),
        ("no sinks", |b| b.sinks.fill(f32::NEG_INFINITY)),
        ("sinks of the wrong heads", |b| b.sinks.rotate_left(1)),
        ("the range not rounded", |b| b.yarn.truncate = false),
        ("another factor", |b| b.yarn.factor *= 1.01),
        ("another epsilon", |b| b.eps *= 1.01),
        ("another clamp", |b| b.moe.limit *= 1.01),
        ("one expert more", |b| b.moe.top_k += 1),
        ("gate and up exchanged", |b| std::mem::swap(&mut b.moe.gate, &mut b.moe.up)),
        ("keys as values", |b| b.v = b.k.clone()),
        ("no bias on the output", |b| b.o.bias = None),
    ];
    let dir = tempfile::tempdir().unwrap();
    let case = cases().swap_remove(ODD);
    let config = case.shape.config(case.config);
    random_model::write(dir.path(), &config, &case.specs, &*case.packing, 1);
    let ids = random_ids(case.shape.vocab, 20);
    let oracle = reference::load(dir.path());
    let right = oracle.forward(&ids);
    for (what, mistake) in mistakes {
        let mut wrong = oracle.clone();
        wrong.blocks.iter_mut().for_each(mistake);
        let difference = difference(&wrong.forward(&ids), &right);
        println!("{what}: {difference:.1e}");
        assert!(difference > 5.0 * TOLERANCE, "{what} would not show: {difference:.1e}");
    }
}
