//! Pipes, signals and devices.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{endless, finished, ids, known_answer, program, str, tokenizer};

/// Far more than can be generated while a test waits.
const FOREVER: [&str; 4] = ["--prompt-ids", "1", "--max-tokens", "100000"];

fn start(dir: &Path, args: &[&str]) -> Child {
    let mut command = program();
    command.args(["--model", str(dir)]).args(FOREVER).args(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn interrupt(child: &Child) {
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(status.unwrap().success());
}

fn first_byte(child: &mut Child) -> char {
    let mut byte = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut byte).expect("text while it is generated");
    char::from(byte[0])
}

#[test]
fn a_closed_pipe_ends_it_quietly() {
    let dir = endless();
    let mut child = start(dir.path(), &[]);
    first_byte(&mut child);
    drop(child.stdout.take());
    let output = finished(child);
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));

    // The object is written at once, to nobody.
    let mut child = program().arg("--json").stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_answer_survives_a_closed_stderr() {
    let mut command = program();
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stderr.take());
    let output = finished(child);
    assert_eq!(output.code, Some(0));
    assert_eq!(output.stdout, known_answer("Dangling References") + "\n");
    let mut child = command.args(["--top-p", "7"]).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(finished(child).code, Some(1), "the error cannot be told, its code can");
}

#[test]
fn ctrl_c_ends_it_with_what_there_is() {
    let dir = endless();
    let mut child = start(dir.path(), &[]);
    let first = first_byte(&mut child);
    interrupt(&child);
    let interrupted = Instant::now();
    let output = finished(child);
    assert!(interrupted.elapsed() < Duration::from_secs(20), "{:?}", interrupted.elapsed());
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(!first.is_control() && output.stdout.ends_with('\n'), "{output:?}");
    assert!(output.stderr.trim_end().ends_with("cancelled"), "{output:?}");
}

#[test]
fn ctrl_c_leaves_the_json_whole() {
    const INTERRUPTED_WHILE_LOADING: i32 = 130;
    let dir = endless();
    // Nothing shows when generating begins: wait longer where loading takes longer.
    let answer: Value = [500, 2_000, 10_000, 40_000]
        .into_iter()
        .find_map(|wait| {
            let child = start(dir.path(), &["--json", "--logprobs", "1"]);
            std::thread::sleep(Duration::from_millis(wait));
            interrupt(&child);
            let output = finished(child);
            if output.code == Some(INTERRUPTED_WHILE_LOADING) {
                return None;
            }
            assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
            let answer: Value = serde_json::from_str(&output.stdout).unwrap();
            (!ids(&answer, "tokens").is_empty()).then_some(answer)
        })
        .expect("a first token within 40 seconds");
    assert_eq!(answer["finish_reason"], "cancelled");
    let tokens = ids(&answer, "tokens");
    assert_eq!(answer["logprobs"].as_array().unwrap().len(), tokens.len());
    assert_eq!(answer["text"], tokenizer().decode(&tokens, false).unwrap());
}

#[test]
fn the_answer_comes_as_it_is_generated() {
    let mut command = program();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut bytes = [0; 4096];
    // Held back until the line ends, it would come whole.
    let first = child.stdout.as_mut().unwrap().read(&mut bytes).unwrap();
    let whole = known_answer("Dangling References") + "\n";
    assert!(0 < first && first < whole.len(), "{first} bytes at first");
    assert!(whole.as_bytes().starts_with(&bytes[..first]));
    assert_eq!(finished(child).stdout.len(), whole.len() - first);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    for args in [&[] as &[_], &["--json"]] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let child = program().args(args).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
        let output = finished(child);
        assert_eq!(output.code, Some(1));
        assert!(output.stderr.contains("error: cannot write the answer to stdout"), "{output:?}");
    }
}
