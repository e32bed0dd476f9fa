//! `generate --model OWNER/NAME`, as the environment says.

use std::process::{Output, Stdio};

use serde_json::Value;

use super::*;
use crate::server::{Instead, status};

const SECRET: &str = "hf_secretsecretsecret";

/// The example, without what the environment of these tests may say about Hubs.
fn generate(server: &Server, home: &Path, variables: &[(&str, &str)]) -> Output {
    let mut command = example::example("generate");
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("HF_") || name.starts_with("XDG_")) {
            command.env_remove(name);
        }
    }
    command.env("HF_HOME", home).env("HF_ENDPOINT", server.url()).envs(variables.iter().copied());
    command.args(["--model", NAME, "--json", "--max-tokens", "5"]).stdin(Stdio::null());
    let output = command.output().unwrap();
    let (stdout, stderr) = texts(&output);
    assert!(!format!("{stdout}{stderr}").contains(SECRET), "{stderr}");
    output
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn an_example_downloads_a_model_once() {
    let (server, dir, _options) = hub();
    server.require(SECRET);
    fs::write(dir.path().join("token"), SECRET).unwrap();
    let first = generate(&server, dir.path(), &[]);
    let (stdout, stderr) = texts(&first);
    assert!(first.status.success(), "{stderr}");
    let answer: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(answer["model"], NAME);
    // Without a terminal, a line for each file instead of bars.
    for name in FILES {
        let lines = stderr.lines().filter(|l| l.starts_with(&format!("downloading {name},")));
        assert_eq!(lines.count(), 1, "{stderr}");
    }
    assert_complete(&server, &dir.path().join("hub"));

    server.requests();
    let second = generate(&server, dir.path(), &[]);
    assert!(!texts(&second).1.contains("download"), "{second:?}");
    assert!(server.downloads().is_empty());
    let offline = generate(&server, dir.path(), &[("HF_HUB_OFFLINE", "1")]);
    assert!(offline.status.success() && server.requests().is_empty());
    let elsewhere = dir.path().join("elsewhere");
    let variables = [("HF_HUB_CACHE", elsewhere.to_str().unwrap()), ("HF_TOKEN", SECRET)];
    assert!(generate(&server, Path::new("/nowhere"), &variables).status.success());
    assert_complete(&server, &elsewhere);
}

#[test]
fn an_example_says_what_is_wrong_and_what_to_do() {
    let (server, dir, _options) = hub();
    let gated = Instead::Answer(403, vec![("X-Error-Code", "GatedRepo".into())], vec![]);
    for (answer, message, hint) in [
        (status(404), "no such folder", "spelling"),
        (gated, "restricted", "accept the conditions"),
        (status(418), "status 418", "later"),
    ] {
        server.instead("/revision/main", 1, answer);
        let output = generate(&server, dir.path(), &[("HF_TOKEN", SECRET)]);
        let (stdout, stderr) = texts(&output);
        assert_eq!((output.status.code(), stdout.as_str()), (Some(1), ""), "{stderr}");
        let lines: Vec<&str> = stderr.lines().collect();
        assert!(lines[0].starts_with(&format!("error: {NAME}: ")), "{stderr}");
        assert!(lines[0].contains(message), "{stderr}");
        assert!(lines[1].starts_with("hint: ") && lines[1].contains(hint), "{stderr}");
        assert_eq!(lines.len(), 2, "{stderr}");
    }
    let offline = generate(&server, dir.path(), &[("HF_HUB_OFFLINE", "1")]);
    assert!(texts(&offline).1.contains("the cache lacks revision main"), "{offline:?}");
}
