//! Whether a model fits is known before it is loaded: from config.json and headers alone, here of
//! the published models' true shapes, in files that hold no data.

mod common;

use std::path::Path;

use common::layouts::{GPT_OSS_20B, GPT_OSS_120B, Packing, Shape, mxfp4_q, mxfp4_q_config};
use common::safetensors::{Spec, place, write_sparse};
use gpt_oss_mlx::{
    Config, Device, Error, GenerateOptions, KvBits, KvPolicy, LoadOptions, MemoryCheck,
    MemoryEstimate, Model,
};
use proptest::prelude::*;
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");

fn folder(shape: &Shape, extra: Value, specs: &[Spec]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), shape.config(extra)).unwrap();
    write_sparse(&dir.path().join("model.safetensors"), &place(specs));
    dir
}

fn openai(shape: &Shape) -> TempDir {
    let extra = json!({"quantization_config": {"quant_method": "mxfp4"}});
    folder(shape, extra, &shape.openai(Dtype::BF16))
}

fn mlx_q8(shape: &Shape) -> TempDir {
    folder(shape, mxfp4_q_config(shape, 8), &shape.mlx(Dtype::BF16, mxfp4_q(8)))
}

fn on_gpu(dir: &Path, kv: KvPolicy) -> MemoryEstimate {
    let mut options = LoadOptions::default();
    options.kv = kv;
    Model::estimate_memory_on_gpu(dir, &options, None).unwrap()
}

fn on_cpu(change: impl FnOnce(&mut LoadOptions)) -> LoadOptions {
    let mut options = LoadOptions::default();
    options.device = Device::Cpu;
    change(&mut options);
    options
}

fn policies() -> [KvPolicy; 3] {
    [KvPolicy::default(), KvPolicy::quantized(KvBits::Eight), KvPolicy::quantized(KvBits::Four)]
}

// What a model takes.

#[test]
fn weights_on_a_gpu_are_as_large_as_the_published_files() {
    let q8_120b = place(&GPT_OSS_120B.mlx(Dtype::BF16, mxfp4_q(8))).last().unwrap().end;
    for (dir, bytes) in [
        (mlx_q8(&GPT_OSS_20B), 12_076_119_168),
        (mlx_q8(&GPT_OSS_120B), q8_120b),
        (openai(&GPT_OSS_20B), 13_761_264_768),
        (openai(&GPT_OSS_120B), 65_248_815_744),
    ] {
        let estimate = on_gpu(dir.path(), KvPolicy::default());
        assert_eq!((estimate.weights, estimate.load_peak), (bytes, bytes));
    }
}

/// The table of docs/memory.md.
#[test]
fn the_documented_table_is_what_is_computed() {
    let documented = include_str!("../docs/memory.md");
    let shown = |bytes: u64| format!("{:.2}", bytes as f64 / 1e9);
    let mut table = String::new();
    for (name, shape) in [("20b", GPT_OSS_20B), ("120b", GPT_OSS_120B)] {
        let dir = mlx_q8(&shape);
        for (policy, kv) in policies().into_iter().zip(["float", "8 bits", "4 bits"]) {
            let estimate = on_gpu(dir.path(), policy);
            let first = match kv {
                "float" => format!("{name}, weights {} GB", shown(estimate.weights)),
                _ => String::new(),
            };
            let rows = [4, 8, 32, 128].map(|k| estimate.at(k << 10).row());
            let [cache, total] =
                [rows.map(|row| shown(row.cache)), rows.map(|row| shown(row.total))];
            let first = if first.is_empty() { String::from("| ") } else { format!("| {first} ") };
            table += &format!("{first}| {kv} | cache | {} |\n", cache.join(" | "));
            table += &format!("| | | total | {} |\n", total.join(" | "));
        }
    }
    assert!(documented.contains(&table), "docs/memory.md should have\n{table}");
}

/// Within 5 % of 12.1 GB and the cache.
#[test]
fn the_20b_takes_its_weights_its_cache_and_little_more() {
    let dir = mlx_q8(&GPT_OSS_20B);
    let config = Config::from_dir(dir.path()).unwrap();
    for policy in policies() {
        let estimate = on_gpu(dir.path(), policy);
        for context in [4096, 8192] {
            let at = estimate.at(context);
            assert_eq!(at.cache, policy.bytes(&config, context, 2));
            let wanted = 12_100_000_000 + at.cache.total();
            assert!(at.total().abs_diff(wanted) <= wanted / 20, "{policy:?}: {at}");
        }
    }
}

/// On the CPU all floats become f32, also the scales and biases of packed weights.
#[test]
fn weights_on_the_cpu_are_counted_as_f32() {
    let packing = mxfp4_q(8);
    for (dir, specs) in [
        (mlx_q8(&GPT_OSS_20B), GPT_OSS_20B.mlx(Dtype::BF16, packing)),
        (openai(&GPT_OSS_20B), GPT_OSS_20B.openai(Dtype::BF16)),
    ] {
        let size = |specs: &[Spec]| place(specs).last().unwrap().end;
        let floats: Vec<Spec> =
            specs.iter().filter(|(_, dtype, _)| *dtype == Dtype::BF16).cloned().collect();
        let estimate = Model::estimate_memory(dir.path(), &on_cpu(|_| ())).unwrap();
        assert_eq!(estimate.weights, size(&specs) + size(&floats));
        assert!(estimate.load_peak > estimate.weights);
    }
    // The last float tensor read is the head; its bf16 numbers are still there when it is cast.
    let estimate = Model::estimate_memory(openai(&GPT_OSS_20B).path(), &on_cpu(|_| ())).unwrap();
    assert_eq!(estimate.load_peak, estimate.weights + 201_088 * 2880 * 2);
}

#[test]
fn nothing_is_cast_where_the_types_agree() {
    let shape = common::layouts::SMALL;
    let dir = folder(&shape, json!({}), &shape.mlx(Dtype::F32, |_| Packing::Float));
    let estimate = Model::estimate_memory(dir.path(), &on_cpu(|_| ())).unwrap();
    assert_eq!(estimate.load_peak, estimate.weights);
}

/// Longer contexts, larger chunks and more bits never take less.
#[test]
fn the_estimate_grows_with_context_chunk_and_bits() {
    let dir = mlx_q8(&GPT_OSS_20B);
    let [float, eight, four] = policies().map(|policy| on_gpu(dir.path(), policy));
    for context in [1, 255, 256, 4096, 131_072] {
        let cache = |estimate: &MemoryEstimate| estimate.at(context).cache.full;
        assert!(cache(&four) < cache(&eight) && cache(&eight) < cache(&float));
        let with = |chunk| float.at(context).with_prefill_chunk(chunk).working;
        assert!(with(64) <= with(512) && with(512) <= with(4096), "{context}");
    }
    let mut later = KvPolicy::quantized(KvBits::Four);
    later.quantize_from = 8192;
    // Just after it was packed a cache is smaller than it was; the estimate keeps the larger.
    let later = on_gpu(dir.path(), later);
    assert_eq!(later.at(9000).cache.full, float.at(8192).cache.full);
    assert!(later.at(131_072).cache.full < float.at(131_072).cache.full);
}

#[test]
fn absurd_contexts_and_chunks_do_not_overflow() {
    let dir = mlx_q8(&GPT_OSS_20B);
    for policy in policies() {
        let estimate = on_gpu(dir.path(), policy).with_available(Some(u64::MAX));
        let absurd = estimate.at(usize::MAX).with_prefill_chunk(usize::MAX);
        assert!(absurd.total() > estimate.at(131_072).total());
        let nothing = estimate.with_prefill_chunk(0).at(0);
        assert_eq!((nothing.cache.total(), nothing.context), (0, 0));
        assert!(nothing.total() >= nothing.weights);
    }
}

// What fits.

#[test]
fn the_largest_context_fits_and_the_next_does_not() {
    let dir = mlx_q8(&GPT_OSS_20B);
    let estimates = policies().map(|policy| on_gpu(dir.path(), policy));
    let weights = estimates[0].weights;
    let cases = ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() };
    let range = (0u64..8_000_000_000, 0usize..3, 1usize..2048);
    proptest!(cases, |((extra, policy, chunk) in range)| {
        let estimate = estimates[policy].with_prefill_chunk(chunk);
        let estimate = estimate.with_available(Some(weights - 100_000_000 + extra));
        let largest = estimate.largest_context();
        if largest > 0 {
            prop_assert!(estimate.at(largest).fits());
        }
        if largest < 131_072 {
            prop_assert!(!estimate.at(largest + 256).fits());
            prop_assert_eq!(largest % 256, 0);
        }
        prop_assert!(estimate.with_available(Some(weights)).largest_context() <= largest
            || extra < 100_000_000);
    });
    let without = &estimates[0].with_available(Some(weights - 1));
    assert_eq!((without.fits(), without.largest_context()), (false, 0));
    assert_eq!(estimates[0].with_available(Some(u64::MAX)).largest_context(), 131_072);
}

/// The search for the largest context halves: that is right only when nothing shrinks.
#[test]
fn a_longer_context_never_takes_less() {
    let dir = mlx_q8(&GPT_OSS_20B);
    let mut later = KvPolicy::quantized(KvBits::Eight);
    later.quantize_from = 3000;
    for device in ["gpu", "cpu"] {
        for policy in policies().into_iter().chain([later]) {
            let options = on_cpu(|options| options.kv = policy);
            let estimate = match device {
                "gpu" => on_gpu(dir.path(), policy),
                _ => Model::estimate_memory(dir.path(), &options).unwrap(),
            };
            for chunk in [1, 7, 64, 255, 512, 2048] {
                let estimate = estimate.with_prefill_chunk(chunk);
                let totals = (0..6000).step_by(37).map(|n| estimate.at(n).total());
                assert!(totals.is_sorted(), "{device}, {policy:?}, chunk {chunk}");
            }
        }
    }
}

#[test]
fn an_estimate_reads_as_a_sentence() {
    let estimate = on_gpu(mlx_q8(&GPT_OSS_20B).path(), KvPolicy::default());
    let text = estimate.at(131_072).to_string();
    let wanted = "16.4 GB for 131072 tokens: weights 12.1 GB, cache 3.3 GB, working memory ";
    assert!(text.starts_with(wanted) && !text.contains("available"), "{text}");
    let text = estimate.with_available(Some(950_000)).to_string();
    assert!(text.ends_with("; 950.0 kB available"), "{text}");
}

#[test]
fn where_nothing_is_known_everything_fits() {
    let estimate = on_gpu(openai(&GPT_OSS_120B).path(), KvPolicy::default());
    assert_eq!(estimate.available, None);
    assert!(estimate.fits());
    assert_eq!(estimate.largest_context(), 131_072);
    assert!(estimate.table().iter().all(|row| row.fits.is_none()));
}

#[test]
fn the_table_ends_at_the_longest_context() {
    let dir = mlx_q8(&GPT_OSS_20B);
    let contexts = |max_context: Option<usize>| -> Vec<usize> {
        let options = on_cpu(|options| options.max_context = max_context);
        let estimate = Model::estimate_memory(dir.path(), &options).unwrap();
        assert_eq!(estimate.context, max_context.unwrap_or(4096));
        estimate.table().iter().map(|row| row.context).collect()
    };
    assert_eq!(contexts(None), [4096, 8192, 32_768, 131_072]);
    assert_eq!(contexts(Some(131_072)), [4096, 8192, 32_768, 131_072]);
    assert_eq!(contexts(Some(8192)), [4096, 8192]);
    assert_eq!(contexts(Some(10_000)), [4096, 8192, 10_000]);
    assert_eq!(contexts(Some(100)), [100]);

    let estimate = on_gpu(dir.path(), KvPolicy::default()).with_available(Some(13_000_000_000));
    let rows = estimate.table();
    assert_eq!(rows.iter().map(|row| row.fits).collect::<Vec<_>>().first(), Some(&Some(true)));
    assert_eq!(rows.last().unwrap().fits, Some(false));
    let row = serde_json::to_value(rows[0]).unwrap();
    assert_eq!((&row["context"], &row["fits"]), (&json!(4096), &json!(true)));
    assert_eq!(row["weights"], json!(12_076_119_168u64));
}

// Loading.

/// Refused before anything is read: the files hold no data at all.
#[test]
fn a_model_that_cannot_fit_is_refused_with_the_reason() {
    // 36 × 4096 experts: 2 TB.
    let shape = Shape { experts: 4096, ..GPT_OSS_120B };
    let dir = openai(&shape);
    let error = Model::load(dir.path(), &on_cpu(|_| ())).unwrap_err();
    let Error::OutOfMemory { needed, available, context, largest_context } = error else {
        panic!("{error:?}");
    };
    assert!(needed > 1_900_000_000_000 && available < needed);
    assert_eq!((context, largest_context), (4096, 0));
    let text = error.to_string();
    assert!(text.contains(" TB of memory with a context of 4096 tokens"), "{text}");
    assert!(error.hint().contains("take a smaller model"), "{}", error.hint());
}

#[test]
fn a_context_that_cannot_fit_is_refused_and_one_that_can_is_named() {
    // Small weights, and a cache of 2048 heads: 4 TB for 16 million tokens.
    let shape =
        Shape { layers: 2, hidden: 64, heads: 1024, kv_heads: 1024, head_dim: 64, ..TINY_SHAPE };
    let extra = json!({"max_position_embeddings": 1 << 24});
    let dir = folder(&shape, extra, &shape.mlx(Dtype::F32, |_| Packing::Float));
    let load =
        |max_context| Model::load(dir.path(), &on_cpu(|options| options.max_context = max_context));
    let error = load(Some(1 << 24)).unwrap_err();
    let Error::OutOfMemory { context, largest_context, .. } = error else { panic!("{error:?}") };
    assert_eq!(context, 1 << 24);
    assert!(largest_context > 0 && largest_context < 1 << 24);
    let named = format!("set `max_context` to {largest_context} tokens or fewer");
    assert!(error.hint().contains(&named), "{}", error.hint());
}

const TINY_SHAPE: Shape = Shape {
    layers: 2,
    hidden: 64,
    heads: 2,
    kv_heads: 1,
    head_dim: 32,
    width: 32,
    experts: 4,
    vocab: 64,
};

#[test]
fn reporting_loads_all_the_same_and_off_does_not_look() {
    let loaded = |memory| Model::load(TINY, &on_cpu(|options| options.memory = memory)).unwrap();
    assert_eq!(MemoryCheck::default(), MemoryCheck::Refuse);
    let estimate = loaded(MemoryCheck::Refuse).memory_estimate().cloned().unwrap();
    assert!(estimate.fits() && estimate.weights > 0);
    assert_eq!(loaded(MemoryCheck::Report).memory_estimate().unwrap().weights, estimate.weights);
    assert!(loaded(MemoryCheck::Off).memory_estimate().is_none());

    // What does not fit can be asked about.
    let dir = openai(&Shape { experts: 4096, ..GPT_OSS_120B });
    let report = on_cpu(|options| options.memory = MemoryCheck::Report);
    assert!(!Model::estimate_memory(dir.path(), &report).unwrap().fits());
}

#[test]
fn max_context_bounds_the_model() {
    let load =
        |max_context| Model::load(TINY, &on_cpu(|options| options.max_context = max_context));
    let own = load(None).unwrap().config().max_position_embeddings;
    assert_eq!(load(None).unwrap().context_limit(), own);
    assert_eq!(load(Some(own)).unwrap().context_limit(), own);

    let model = load(Some(16)).unwrap();
    assert_eq!(model.context_limit(), 16);
    let full = model.generate(&[1; 16], &GenerateOptions::default()).unwrap_err();
    assert!(matches!(full, Error::ContextFull { tokens: 17, limit: 16 }), "{full:?}");
    let tokens = model.generate(&[1; 15], &GenerateOptions::default()).unwrap();
    assert_eq!(tokens.map(Result::unwrap).count(), 1);
    let full = model.forward(&[1; 17], &mut model.new_cache()).unwrap_err();
    assert!(matches!(full, Error::ContextFull { limit: 16, .. }), "{full:?}");

    for absurd in [0, own + 1, usize::MAX] {
        for error in [
            load(Some(absurd)).unwrap_err(),
            Model::estimate_memory(TINY, &on_cpu(|o| o.max_context = Some(absurd))).unwrap_err(),
        ] {
            assert!(matches!(error, Error::Argument { name: "max_context", .. }), "{error:?}");
            assert_eq!(error.hint(), "change `max_context`");
        }
    }
}

#[test]
fn estimating_reports_what_is_wrong_with_a_folder() {
    let options = LoadOptions::default();
    let gone = Model::estimate_memory("no/such/folder", &options).unwrap_err();
    assert!(matches!(gone, Error::Io { .. }), "{gone:?}");
    let dir = folder(&GPT_OSS_20B, json!({}), &GPT_OSS_120B.openai(Dtype::BF16)[..100]);
    let wrong = Model::estimate_memory_on_gpu(dir.path(), &options, None).unwrap_err();
    assert!(matches!(wrong, Error::Tensors(_)), "{wrong:?}");
}

#[test]
fn the_usual_chunk_is_that_of_generating() {
    let estimate = Model::estimate_memory(TINY, &on_cpu(|_| ())).unwrap();
    assert_eq!(estimate.prefill_chunk, GenerateOptions::default().prefill_chunk);
}
