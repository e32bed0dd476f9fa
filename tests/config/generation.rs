//! generation_config.json.

use std::fs;
use std::path::Path;

use gpt_oss_mlx::config::GenerationConfig;
use gpt_oss_mlx::{Error, Result};
use serde_json::{Value, json};

const PATH: &str = "some/model/generation_config.json";

fn parse(config: &Value) -> Result<GenerationConfig> {
    GenerationConfig::from_json(Path::new(PATH), &config.to_string())
}

#[test]
fn the_bundled_file_is_read() {
    let dir = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny"));
    let config = GenerationConfig::from_dir(dir).expect("it is valid").expect("it is there");
    assert_eq!(config.eos_token_id, [2041, 2040, 2047]);
    assert_eq!((config.bos_token_id, config.pad_token_id), (Some(2039), Some(2040)));
    assert_eq!((config.temperature, config.do_sample), (Some(1.0), Some(true)));
    assert_eq!((config.top_p, config.top_k), (None, None));
    config.check_vocabulary(Path::new(PATH), 2048).expect("the ids fit");
}

#[test]
fn the_published_file_is_read() {
    let config = parse(&json!({
        "bos_token_id": 199998,
        "do_sample": true,
        "eos_token_id": [200002, 199999, 200012],
        "pad_token_id": 199999,
        "transformers_version": "4.55.0.dev0"
    }))
    .expect("it is valid");
    assert_eq!(config.eos_token_id, [200_002, 199_999, 200_012]);
    assert_eq!((config.bos_token_id, config.pad_token_id), (Some(199_998), Some(199_999)));
    assert_eq!((config.temperature, config.do_sample), (None, Some(true)));
}

#[test]
fn every_field_is_optional() {
    assert_eq!(parse(&json!({})).expect("it is valid"), GenerationConfig::default());
    let nulls = json!({
        "eos_token_id": null, "bos_token_id": null, "pad_token_id": null,
        "temperature": null, "top_p": null, "top_k": null, "do_sample": null
    });
    assert_eq!(parse(&nulls).expect("it is valid"), GenerationConfig::default());
}

#[test]
fn all_fields_are_read_at_their_limits() {
    let config = parse(&json!({
        "eos_token_id": 7, "temperature": 0, "top_p": 0, "top_k": 0, "do_sample": false
    }))
    .expect("it is valid");
    assert_eq!(config.eos_token_id, [7]);
    assert_eq!((config.temperature, config.top_p), (Some(0.0), Some(0.0)));
    assert_eq!((config.top_k, config.do_sample), (Some(0), Some(false)));
    let config = parse(&json!({"top_p": 1, "top_k": 50})).expect("it is valid");
    assert_eq!((config.top_p, config.top_k), (Some(1.0), Some(50)));
}

#[test]
fn wrong_values_are_refused_by_name() {
    let wrong = [
        (
            "eos_token_id",
            vec![json!(-1), json!(1.5), json!("2"), json!([2, -1]), json!(1_u64 << 40)],
        ),
        ("bos_token_id", vec![json!(-1), json!([1]), json!(true), json!(u32::MAX)]),
        ("pad_token_id", vec![json!(-1), json!({})]),
        ("temperature", vec![json!(-0.1), json!(1e39), json!("1"), json!([])]),
        ("top_p", vec![json!(-0.1), json!(1.01), json!(false)]),
        ("top_k", vec![json!(-1), json!(0.5), json!(50.0), json!(1_u64 << 40)]),
        ("do_sample", vec![json!(1), json!("true")]),
    ];
    for (field, values) in wrong {
        for value in values {
            let error = parse(&json!({field: value})).expect_err("the value is wrong");
            super::reason(error, Path::new(PATH), field);
        }
    }
}

#[test]
fn ids_are_checked_against_the_vocabulary() {
    let path = Path::new(PATH);
    for field in ["eos_token_id", "bos_token_id", "pad_token_id"] {
        let config = parse(&json!({field: 2048})).expect("some model has the id");
        let error = config.check_vocabulary(path, 2048).expect_err("this one does not");
        let reason = super::reason(error, path, field);
        assert_eq!(reason, "2048 is not below the model's vocab_size (2048)");
        config.check_vocabulary(path, 2049).expect("the id is the last");
    }
}

#[test]
fn an_absent_file_is_none_and_a_bad_one_an_error() {
    let dir = tempfile::tempdir().expect("a folder");
    assert_eq!(GenerationConfig::from_dir(dir.path()).expect("no file is fine"), None);

    let path = dir.path().join("generation_config.json");
    fs::write(&path, r#"{"top_p": 2}"#).expect("written");
    let error = GenerationConfig::from_dir(dir.path()).expect_err("top_p is wrong");
    super::reason(error, &path, "top_p");

    fs::write(&path, "{").expect("written");
    let error = GenerationConfig::from_dir(dir.path()).expect_err("it is cut off");
    assert!(matches!(error, Error::Json { path: p, .. } if p == path));
}

#[cfg(unix)]
#[test]
fn a_link_to_nowhere_is_not_an_absent_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("generation_config.json");
    std::os::unix::fs::symlink("nowhere", &path).expect("linked");
    let error = GenerationConfig::from_dir(dir.path()).expect_err("the link is broken");
    assert!(matches!(error, Error::Io { path: p, .. } if p == path));
}
