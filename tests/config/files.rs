//! The file around the fields: what cannot be read or is not a JSON object.

use std::error::Error as _;
use std::fs;
use std::path::Path;

use gpt_oss_mlx::Error;
use gpt_oss_mlx::config::Config;

use super::{bundled, path, published};

/// The message and its source, after checking that both name what they should.
#[track_caller]
fn not_json(text: &str) -> String {
    let error = Config::from_json(path(), text).expect_err("the text is wrong");
    assert!(matches!(error, Error::Json { .. }), "{error}");
    assert_eq!(error.to_string(), format!("{} is not valid JSON", path().display()));
    error.source().expect("the parser says why").to_string()
}

#[track_caller]
fn unreadable(dir: &Path) -> String {
    let error = Config::from_dir(dir).expect_err("there is nothing to read");
    let Error::Io { path, source, .. } = error else { panic!("not about a file: {error}") };
    assert_eq!(path, dir.join("config.json"));
    source.to_string()
}

#[test]
fn the_folders_of_the_tests_are_read() {
    for dir in [
        "assets/gpt-oss-tiny",
        "tests/fixtures/gpt-oss-tiny-f32",
        "tests/fixtures/gpt-oss-tiny-openai",
    ] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
        let config = Config::from_dir(&dir).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(config.num_hidden_layers, 4);
    }
}

#[test]
fn text_that_is_not_an_object_is_refused() {
    assert!(not_json("").contains("EOF"));
    assert!(not_json("{").contains("EOF"));
    assert!(not_json("{\"model_type\": \"gpt_oss\"").contains("EOF"));
    assert!(not_json("{} {}").contains("trailing characters"));
    assert!(not_json("[1]").contains("invalid type: sequence"));
    assert!(not_json("null").contains("invalid type: null"));
    assert!(not_json("\"gpt_oss\"").contains("invalid type: string"));
    assert!(not_json("\u{feff}{}").contains("byte-order mark"));
    assert!(not_json("{\"rms_norm_eps\": NaN}").contains("line 1"));
    assert!(not_json("{\"rope_theta\": 1e999}").contains("out of range"));
    assert!(not_json("{\"a\": \"\\ud800\"}").contains("line 1"));
    assert!(not_json("{\"a\": 01}").contains("line 1"));
    assert!(not_json("// gpt_oss\n{}").contains("line 1"));
}

#[test]
fn deep_nesting_is_refused_before_the_stack_runs_out() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let text = format!("{{\"a\": {}1{}}}", open.repeat(100_000), close.repeat(100_000));
        assert!(not_json(&text).contains("recursion limit"));
    }
}

#[test]
fn duplicate_keys_are_refused_by_name() {
    let check = |text: &str, field: &str| {
        let error = Config::from_json(path(), text).expect_err("a key occurs twice");
        assert_eq!(super::reason(error, path(), field), "occurs twice");
    };
    let config = bundled().to_string();
    let twice = config.replacen('{', "{\"vocab_size\": 2048,", 1);
    check(&twice, "vocab_size");
    let nested = config.replacen("\"factor\"", "\"truncate\": false, \"factor\"", 1);
    check(&nested, "rope_scaling.truncate");
    // In fields that nothing reads, in lists and under escapes as well.
    check(r#"{"x": [1, {"y": {"z": 1, "z": 2}}]}"#, "x.y.z");
    check(r#"{"ab": 1, "a\u0062": 2}"#, "ab");
    // The same key in two objects is no duplicate.
    let config = published(24, 32).to_string().replacen('{', r#"{"x": [{"y": 1}, {"y": 1}],"#, 1);
    Config::from_json(path(), &config).expect("all keys differ");
}

#[test]
fn hostile_text_is_cut_and_escaped_in_errors() {
    let mut config = bundled();
    config["model_type"] = "\u{1b}[31m".repeat(50_000).into();
    let reason = super::refused(&config, "model_type");
    assert!(reason.len() < 600 && !reason.contains('\u{1b}'), "{reason}");

    let name = "x".repeat(50_000);
    let mut config = bundled();
    config["quantization"][&name] = true.into();
    let error = super::parse(&config).expect_err("there is no such module").to_string();
    assert!(error.len() < 600, "{error}");
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let dir = tempfile::tempdir().expect("a folder");
    assert!(!unreadable(dir.path()).is_empty());

    fs::write(dir.path().join("config.json"), b"{\"a\": \"\xff\"}").expect("written");
    assert!(unreadable(dir.path()).contains("UTF-8"));

    fs::remove_file(dir.path().join("config.json")).expect("removed");
    fs::create_dir(dir.path().join("config.json")).expect("created");
    assert_eq!(unreadable(dir.path()), "not a regular file");
    // A file where a folder belongs.
    let file = dir.path().join("file");
    fs::write(&file, "{}").expect("written");
    unreadable(&file);
}

#[test]
fn a_file_that_is_too_long_is_not_read() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("config.json");
    let config = bundled().to_string();
    let limit = 16 << 20;

    fs::write(&path, format!("{config}{}", " ".repeat(limit - config.len()))).expect("written");
    Config::from_dir(dir.path()).expect("16 MiB are allowed");
    fs::write(&path, format!("{config}{}", " ".repeat(limit - config.len() + 1))).expect("written");
    assert_eq!(unreadable(dir.path()), "longer than 16777216 bytes");
    // A sparse terabyte.
    let file = fs::File::create(&path).expect("created");
    if file.set_len(1 << 40).is_ok() {
        assert_eq!(unreadable(dir.path()), "longer than 16777216 bytes");
    }
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_devices_are_not_read() {
    use std::os::unix::fs::symlink;

    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("config.json");
    let check = |target: &str| {
        symlink(target, &path).expect("linked");
        let outcome = unreadable(dir.path());
        fs::remove_file(&path).expect("removed");
        outcome
    };
    assert!(!check("config.json").is_empty(), "a link to itself");
    assert!(!check("nowhere").is_empty());
    assert_eq!(check("/dev/zero"), "not a regular file");

    fs::write(dir.path().join("blob"), bundled().to_string()).expect("written");
    symlink("blob", &path).expect("linked");
    Config::from_dir(dir.path()).expect("a link to a good file is good");
}
