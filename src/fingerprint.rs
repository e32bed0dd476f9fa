//! What tells one model from another, without reading it all: a saved cache is of use only to the
//! model that made it.

use mlx_rs::Dtype;
use twox_hash::xxhash3_128::Hasher;

use crate::checkpoint::Checkpoint;
use crate::config::{Config, LayerType, Quantization, QuantizationParams, RopeScaling};
use crate::error::Result;

/// Places in a tensor at which bytes are read, the first at its start and the last at its end.
const SAMPLES: usize = 4;
/// Bytes read at each; a tensor of no more than all of them together is read whole.
const SAMPLE_BYTES: usize = 1024;

/// A model's computation and weights, hashed with XXH3. Two models that were trained or converted
/// in different ways have different ones; a number changed by hand in the middle of a large tensor
/// can go unnoticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    /// The fields of config.json that say what is computed.
    pub(crate) config: u128,
    /// The tensors: their names, types, shapes and samples of their bytes.
    pub(crate) weights: u128,
    /// Type of the activations, and so of keys and values: another one on a GPU.
    pub(crate) dtype: Dtype,
}

impl Fingerprint {
    /// The fingerprint of a model whose files are still there.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) when a file was released.
    pub(crate) fn new(config: &Config, checkpoint: &Checkpoint, dtype: Dtype) -> Result<Self> {
        Ok(Self { config: of_config(config), weights: of_weights(checkpoint)?, dtype })
    }
}

/// The same on every platform: the file's own bytes are little-endian.
fn of_weights(checkpoint: &Checkpoint) -> Result<u128> {
    let mut hash = Fields::default();
    // In the order of their names.
    for (name, info) in checkpoint.tensors() {
        let data = checkpoint.data(name)?;
        hash.bytes(name.as_bytes());
        hash.bytes(info.dtype.to_string().as_bytes());
        hash.list(&info.shape, |hash, &axis| hash.size(axis));
        hash.size(data.len());
        samples(data).for_each(|sample| hash.bytes(sample));
    }
    Ok(hash.0.finish_128())
}

/// Bytes spread evenly over a tensor.
fn samples(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (count, size) = match data.len() <= SAMPLES * SAMPLE_BYTES {
        true => (1, data.len()),
        false => (SAMPLES, SAMPLE_BYTES),
    };
    // Rounded down; the last one is at the end all the same.
    let last = data.len() - size;
    let apart = last / (SAMPLES - 1);
    (0..count).filter_map(move |i| {
        let start = if i + 1 == count { last } else { i * apart };
        data.get(start..)?.get(..size)
    })
}

/// Every field is named, so that a new one is not forgotten here.
fn of_config(config: &Config) -> u128 {
    let &Config {
        hidden_size,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        intermediate_size,
        num_local_experts,
        num_experts_per_tok,
        vocab_size,
        sliding_window,
        // A limit, which changes no number.
        max_position_embeddings: _,
        rms_norm_eps,
        rope_theta,
        swiglu_limit,
        rope_scaling,
        ref layer_types,
        tie_word_embeddings,
        attention_bias,
        ref quantization,
        packed_mxfp4,
        // What ends an answer or fills a batch, not what an answer is.
        eos_token_id: _,
        pad_token_id: _,
    } = config;
    let mut hash = Fields::default();
    for size in [
        hidden_size,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        intermediate_size,
        num_local_experts,
        num_experts_per_tok,
        vocab_size,
        sliding_window,
    ] {
        hash.size(size);
    }
    for number in [rms_norm_eps, rope_theta, swiglu_limit] {
        hash.number(number);
    }
    hash.list(rope_scaling.as_slice(), |hash, scaling| {
        let &RopeScaling {
            factor,
            beta_fast,
            beta_slow,
            original_max_position_embeddings,
            truncate,
        } = scaling;
        [factor, beta_fast, beta_slow].into_iter().for_each(|number| hash.number(number));
        hash.size(original_max_position_embeddings);
        hash.flag(truncate);
    });
    hash.list(layer_types, |hash, &kind| hash.flag(kind == LayerType::FullAttention));
    [tie_word_embeddings, attention_bias, packed_mxfp4].into_iter().for_each(|f| hash.flag(f));
    hash.list(quantization.as_slice(), |hash, Quantization { default, modules }| {
        hash.packing(default);
        hash.size(modules.len());
        for (module, params) in modules {
            hash.bytes(module.as_bytes());
            hash.list(params.as_slice(), Fields::packing);
        }
    });
    hash.0.finish_128()
}

/// Hashes values one behind the other so that no two sequences of values look alike.
#[derive(Default)]
struct Fields(Hasher);

impl Fields {
    fn size(&mut self, size: usize) {
        // A `usize` has 64 bits at most.
        self.0.write(&(size as u64).to_le_bytes());
    }

    fn number(&mut self, number: f32) {
        self.0.write(&number.to_bits().to_le_bytes());
    }

    fn flag(&mut self, flag: bool) {
        self.0.write(&[u8::from(flag)]);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.size(bytes.len());
        self.0.write(bytes);
    }

    fn list<T>(&mut self, list: &[T], mut each: impl FnMut(&mut Self, &T)) {
        self.size(list.len());
        list.iter().for_each(|item| each(self, item));
    }

    fn packing(&mut self, params: &QuantizationParams) {
        let &QuantizationParams { group_size, bits, mode } = params;
        self.size(group_size);
        self.size(bits);
        self.bytes(mode.as_str().as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");

    fn of(config: &str, dir: &Path) -> Fingerprint {
        let config = Config::from_json(Path::new("config.json"), config).unwrap();
        Fingerprint::new(&config, &Checkpoint::open(dir).unwrap(), Dtype::Float32).unwrap()
    }

    fn config_json() -> String {
        std::fs::read_to_string(format!("{DIR}/config.json")).unwrap()
    }

    /// Files saved on one platform are read on another, and by later versions.
    #[test]
    fn the_bundled_models_is_the_same_everywhere() {
        let found = of(&config_json(), Path::new(DIR));
        assert_eq!(format!("{:032x}", found.config), "3943224509b7174b2cf0cff973f7c896");
        assert_eq!(format!("{:032x}", found.weights), "e6025ea1cdccfbc97eb14ea9a0f022fd");
    }

    #[test]
    fn it_depends_on_what_is_computed_and_on_nothing_else() {
        let text = config_json();
        let usual = of(&text, Path::new(DIR));
        let with = |from: &str, to: &str| {
            assert!(text.contains(from), "{from}");
            of(&text.replacen(from, to, 1), Path::new(DIR)).config
        };
        for (from, to) in [
            ("\"sliding_window\": 64", "\"sliding_window\": 65"),
            ("\"rope_theta\": 150000", "\"rope_theta\": 150001"),
            ("\"truncate\": true", "\"truncate\": false"),
            ("\"factor\": 32.0", "\"factor\": 31.0"),
            ("\"sliding_attention\"", "\"full_attention\""),
            ("\"swiglu_limit\": 7.0", "\"swiglu_limit\": 7.5"),
            ("\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": 1e-06"),
        ] {
            assert_ne!(with(from, to), usual.config, "{to}");
        }
        for (from, to) in [
            ("\"max_position_embeddings\": 131072", "\"max_position_embeddings\": 4096"),
            ("\"pad_token_id\": 2040", "\"pad_token_id\": 2041"),
            ("\"use_cache\": true", "\"use_cache\": false"),
        ] {
            assert_eq!(with(from, to), usual.config, "{to}");
        }
    }

    #[test]
    fn samples_cover_a_small_tensor_and_both_ends_of_a_large_one() {
        let data: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
        for len in [0, 1, 3, 4095, 4096] {
            let read: Vec<&[u8]> = samples(&data[..len]).collect();
            assert_eq!(read, [&data[..len]]);
        }
        for len in [4097, 5000, 100_000] {
            let read: Vec<&[u8]> = samples(&data[..len]).collect();
            assert_eq!(read.len(), SAMPLES);
            assert!(read.iter().all(|sample| sample.len() == SAMPLE_BYTES));
            assert_eq!(read[0], &data[..SAMPLE_BYTES]);
            assert_eq!(read[SAMPLES - 1], &data[len - SAMPLE_BYTES..len]);
        }
    }

    #[test]
    fn a_change_in_any_tensor_changes_it() {
        let usual = of(&config_json(), Path::new(DIR));
        let dir = tempfile::tempdir().unwrap();
        for file in ["model.safetensors", "model.safetensors.index.json"] {
            std::fs::copy(format!("{DIR}/{file}"), dir.path().join(file)).unwrap();
        }
        assert_eq!(of(&config_json(), dir.path()), usual);
        let path = dir.path().join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let checkpoint = Checkpoint::open(Path::new(DIR)).unwrap();
        // One bit of the last byte.
        for (name, info) in checkpoint.tensors() {
            let mut changed = bytes.clone();
            changed[info.range().end - 1] ^= 1;
            std::fs::write(&path, changed).unwrap();
            assert_ne!(of(&config_json(), dir.path()).weights, usual.weights, "{name}");
        }
    }
}
