//! Ctrl-C, closed pipes, full disks.

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command};

use serde_json::Value;

use super::example::endless;
use super::{ASK, contents, finished, known_answer, program};

fn interrupt(child: &Child) {
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(status.unwrap().success());
}

fn say(child: &mut Child, line: &str) {
    writeln!(child.stdin.as_mut().unwrap(), "{line}").unwrap();
}

fn first_byte(child: &mut Child) {
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).expect("text while it is generated");
}

#[test]
fn ctrl_c_stops_the_answer_and_keeps_the_conversation() {
    let model = endless();
    let path = model.path().join("saved");
    let args = ["--model", model.path().to_str().unwrap(), "--max-tokens", "100000"];
    let mut child = program().args(args).spawn().unwrap();
    for _ in 0..2 {
        say(&mut child, ASK);
        first_byte(&mut child);
        interrupt(&child);
        // Answered once the first has ended, so that the next first byte is the next answer's.
        say(&mut child, &format!("/save {}", path.display()));
        while !path.exists() {
            assert!(child.try_wait().unwrap().is_none(), "it left");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let saved: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        fs::remove_file(&path).unwrap();
        let said = contents(&saved);
        let [.., (user, asked), (assistant, answer)] = &said[..] else { panic!("{saved}") };
        assert_eq!([user, asked, assistant], ["user", ASK, "assistant"]);
        assert!(!answer.is_empty());
        let mut rest = vec![0; 1 << 20];
        let _ = child.stdout.as_mut().unwrap().read(&mut rest).unwrap();
    }
    let output = finished(child);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_eq!(output.stderr.matches("(stopped)").count(), 2, "{output:?}");
}

#[test]
fn ctrl_c_between_answers_leaves() {
    let mut child = program().spawn().unwrap();
    say(&mut child, ASK);
    say(&mut child, "/help");
    // The help comes after the answer has ended.
    child.stderr.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    interrupt(&child);
    let stdin = child.stdin.take();
    let output = finished(child);
    drop(stdin);
    assert_eq!(output.code, Some(130), "{output:?}");
}

#[test]
fn a_closed_stdout_ends_it_quietly() {
    let mut child = program().spawn().unwrap();
    drop(child.stdout.take());
    say(&mut child, ASK);
    let stdin = child.stdin.take();
    let output = finished(child);
    drop(stdin);
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
}

#[test]
fn answers_survive_a_closed_stderr() {
    let mut child = program().spawn().unwrap();
    drop(child.stderr.take());
    say(&mut child, "/unknown");
    say(&mut child, ASK);
    let output = finished(child);
    assert_eq!(output.code, Some(0));
    assert_eq!(output.stdout, known_answer("Dangling References") + "\n");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let mut child = program().stdout(full).spawn().unwrap();
    say(&mut child, ASK);
    let output = finished(child);
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains("error: cannot write the answer to stdout"), "{output:?}");
}
