//! The examples as programs: `cargo test` builds them beside the tests.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};

use serde_json::Value;
use tempfile::TempDir;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// An example, ready to be given arguments.
pub fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).expect("target/<profile>/deps/<test>");
    let path = profile.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(path.exists(), "{} is missing: cargo build --example {name}", path.display());
    Command::new(path)
}

#[derive(Debug)]
pub struct Output {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Waits for a program to end, which must not be by a panic.
pub fn finished(child: Child) -> Output {
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    let output = Output {
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    };
    assert!(!output.stderr.contains("panicked"), "{output:?}");
    output
}

/// The sentence that the bundled model was taught about a topic.
pub fn known_answer(topic: &str) -> String {
    let text = fs::read_to_string(format!("{ROOT}/tests/fixtures/known-answers.json")).unwrap();
    let known: Value = serde_json::from_str(&text).unwrap();
    let found = known.as_array().unwrap().iter().find(|entry| entry["topic"] == topic);
    found.expect("a known topic")["answer"].as_str().unwrap().to_owned()
}

/// A copy of the bundled model, to be changed.
pub fn copy() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(format!("{ROOT}/assets/gpt-oss-tiny")).unwrap() {
        let path = entry.unwrap().path();
        fs::write(dir.path().join(path.file_name().unwrap()), fs::read(&path).unwrap()).unwrap();
    }
    dir
}

/// A copy whose only stop token is one that it never says, so that it goes on to the last token
/// asked for.
pub fn endless() -> TempDir {
    let dir = copy();
    for name in ["config.json", "generation_config.json"] {
        let path = dir.path().join(name);
        let mut fields: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        fields["eos_token_id"] = 2039.into();
        fs::write(&path, fields.to_string()).unwrap();
    }
    dir
}
