//! Every field set to nasty values, alone and in pairs, and damaged text: never a panic, and either
//! a config that keeps its promises or an error that names the field.

use gpt_oss_mlx::Error;
use gpt_oss_mlx::config::{Config, Mode};
use serde_json::{Value, json};

use super::{bundled, parse, path, published, tiny_openai, transformers_5, with, without};

/// Values that parsers and arithmetic trip over.
fn nasty() -> Vec<Value> {
    let mut deep = json!(1);
    for _ in 0..100 {
        deep = json!([deep]);
    }
    vec![
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(1),
        json!(2),
        json!(3),
        json!(-1),
        json!(i32::MAX),
        json!(1_u64 << 31),
        json!(1_u64 << 32),
        json!(1_u64 << 53),
        json!(i64::MIN),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(-0.0),
        json!(0.5),
        json!(2.0),
        json!(1e-50),
        json!(f64::MIN_POSITIVE),
        json!(1e38),
        json!(1e39),
        json!(f64::MAX),
        json!(f64::MIN),
        json!(""),
        json!("affine"),
        json!("NaN"),
        json!("\u{0}\u{202e}🦀"),
        json!("x".repeat(10_000)),
        json!([]),
        json!([null]),
        json!([[]]),
        json!([-1, 1e39]),
        json!(vec![1; 10_000]),
        json!({}),
        json!({"": {}}),
        json!({"group_size": 64, "bits": 4}),
        deep,
    ]
}

/// JSON pointers to all values below `value`, escaped keys included.
fn pointers(value: &Value, prefix: &str, found: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(object) => object.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Value::Array(list) => {
            list.iter().enumerate().map(|(i, value)| (i.to_string(), value)).collect()
        }
        _ => return,
    };
    for (key, value) in children {
        let pointer = format!("{prefix}/{key}");
        pointers(value, &pointer, found);
        found.push(pointer);
    }
}

fn all_pointers(config: &Value) -> Vec<String> {
    let mut found = Vec::new();
    pointers(config, "", &mut found);
    found
}

fn originals() -> [Value; 4] {
    [bundled_first_layer(), tiny_openai(), published(3, 8), transformers_5()]
}

/// The bundled config without the quantization of layers 1 to 3, which is that of layer 0 again.
fn bundled_first_layer() -> Value {
    let mut config = bundled();
    for block in ["quantization", "quantization_config"] {
        let block = config[block].as_object_mut().expect("an object");
        block.retain(|key, _| !key.starts_with("model.layers.") || key.contains(".0."));
    }
    config
}

/// Fields that the library does not read.
const UNUSED: [&str; 10] = [
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "initial_context_length",
    "initializer_range",
    "output_router_logits",
    "router_aux_loss_coef",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

/// What the type promises to the rest of the library.
#[track_caller]
fn assert_promises(config: &Config) {
    let sizes = [
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.intermediate_size,
        config.num_local_experts,
        config.num_experts_per_tok,
        config.vocab_size,
        config.sliding_window,
        config.max_position_embeddings,
    ];
    assert!(sizes.iter().all(|size| (1..=1 << 24).contains(size)), "{config:?}");
    let qkv = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim;
    assert!(i32::try_from(qkv.max(2 * config.intermediate_size)).is_ok());
    assert_eq!(config.num_attention_heads % config.num_key_value_heads, 0);
    assert_eq!(config.head_dim % 2, 0);
    assert!(config.num_experts_per_tok <= config.num_local_experts);
    assert_eq!(config.layer_types.len(), config.num_hidden_layers);
    assert!(config.rms_norm_eps > 0.0 && config.rms_norm_eps < 1.0);
    assert!(config.rope_theta > 1.0 && config.rope_theta.is_finite());
    assert!(config.swiglu_limit > 0.0 && config.swiglu_limit.is_finite());
    assert!(config.attention_bias);
    if let Some(yarn) = &config.rope_scaling {
        assert!(yarn.factor >= 1.0 && yarn.factor.is_finite());
        assert!(yarn.beta_slow > 0.0 && yarn.beta_fast > yarn.beta_slow);
        assert!(yarn.beta_fast.is_finite() && yarn.original_max_position_embeddings > 0);
    }
    let ids = config.eos_token_id.iter().chain(&config.pad_token_id);
    assert!(ids.into_iter().all(|id| (*id as usize) < config.vocab_size));
    assert!(!(config.packed_mxfp4 && config.quantization.is_some()));
    if let Some(quantization) = &config.quantization {
        let all = quantization.modules.values().flatten().chain([&quantization.default]);
        for params in all {
            match params.mode {
                Mode::Mxfp4 => assert_eq!((params.group_size, params.bits), (32, 4)),
                Mode::Affine => {
                    assert!([32, 64, 128].contains(&params.group_size));
                    assert!([2, 3, 4, 5, 6, 8].contains(&params.bits));
                }
                _ => panic!("{params:?}"),
            }
        }
    }
}

/// A config that keeps its promises, or an error that names the changed field: the field itself,
/// or where it breaks an agreement with another one, the block that it stands in.
#[track_caller]
fn assert_sound(mutant: &Value, pointer: &str) {
    match parse(mutant) {
        Ok(config) => assert_promises(&config),
        Err(error) => {
            assert!(matches!(error, Error::Config { .. }), "{pointer}: {error}");
            let message = error.to_string();
            assert!(message.starts_with("some/model/config.json: field `"), "{message}");
            let mut names = pointer.split('/').skip(1);
            let block = names.next().expect("a pointer has a name");
            let leaf = names.filter(|name| name.parse::<usize>().is_err()).last();
            let named = message.contains(block) || leaf.is_some_and(|leaf| message.contains(leaf));
            assert!(named, "`{pointer}` changed, but: {message}");
        }
    }
}

#[test]
fn any_field_set_to_any_value_is_accepted_or_named() {
    for original in originals() {
        assert_promises(&super::accepted(&original));
        for pointer in all_pointers(&original) {
            for value in nasty() {
                assert_sound(&with(&original, &pointer, value), &pointer);
            }
        }
    }
}

#[test]
fn any_field_removed_is_accepted_or_named() {
    for original in originals() {
        for pointer in all_pointers(&original) {
            let (parent, _) = pointer.rsplit_once('/').expect("a pointer has a slash");
            if original.pointer(parent).is_some_and(Value::is_object) {
                assert_sound(&without(&original, &pointer), &pointer);
            }
        }
    }
}

/// The other side of the coin: a used field matters. For each, some nasty value is refused.
#[test]
fn every_used_field_is_checked() {
    for original in originals() {
        for pointer in all_pointers(&original) {
            let unused = UNUSED.iter().any(|field| pointer[1..].starts_with(field));
            let refused =
                nasty().into_iter().any(|value| parse(&with(&original, &pointer, value)).is_err());
            assert_ne!(refused, unused, "{pointer}: refused is {refused}");
        }
    }
}

#[test]
fn several_fields_changed_at_once_never_panic() {
    let mut random = Random(0x5eed);
    let (originals, values) = (originals(), nasty());
    for round in 0..4000 {
        let original = &originals[round % originals.len()];
        let tops: Vec<_> = original.as_object().expect("an object").keys().cloned().collect();
        let mut mutant = original.clone();
        for _ in 0..=random.below(4) {
            let key = &tops[random.below(tops.len())];
            mutant[key] = values[random.below(values.len())].clone();
        }
        if let Ok(config) = parse(&mutant) {
            assert_promises(&config);
        }
    }
}

#[test]
fn damaged_text_never_panics() {
    let text = tiny_openai().to_string();
    for length in 0..text.len() {
        let cut = text.get(..length).expect("the text is ASCII");
        let error = Config::from_json(path(), cut).expect_err("it is cut off");
        assert!(matches!(error, Error::Json { .. }), "{error}");
    }
    let mut random = Random(0xdead);
    let alphabet = b"{}[]\",:0123456789.-+eEtrufalsn\\ \n\0x";
    for _ in 0..4000 {
        let mut bytes = text.clone().into_bytes();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len());
            bytes[at] = alphabet[random.below(alphabet.len())];
        }
        let damaged = String::from_utf8(bytes).expect("ASCII stays ASCII");
        if let Ok(config) = Config::from_json(path(), &damaged) {
            assert_promises(&config);
        }
    }
}

/// A small generator (xorshift, Marsaglia 2003): the same values on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}
