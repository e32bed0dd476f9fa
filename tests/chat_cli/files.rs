//! `/save` and `/load`.

use std::fs;

use serde_json::{Value, json};

use super::{ASK, ASK_MORE, chat, chat_with, contents, known_answer, pair, saved_after};

#[test]
fn a_saved_conversation_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    // A name with spaces, and a file that is replaced.
    let path = dir.path().join("my chat.json");
    fs::write(&path, "what was there").unwrap();
    let [save, load] = ["save", "load"].map(|verb| format!("/{verb} {}", path.display()));
    let first = chat(&["/system Be brief.", "/effort low", ASK, &save]);
    assert!(first.stderr.ends_with(&format!("(saved in {})\n", path.display())), "{first:?}");
    let saved: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let answer = known_answer("Dangling References");
    let so_far = [pair("system", "Be brief."), pair("user", ASK), pair("assistant", &answer)];
    assert_eq!(contents(&saved), so_far);

    // The same as if it had never left, but for the reasoning of each turn alone.
    let whole = saved_after(&[], &["/system Be brief.", "/effort low", ASK, ASK_MORE]);
    let halves = saved_after(&["--system", "Lost."], &["Lost", &load, ASK_MORE]);
    assert_eq!(halves, whole);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no unfinished file is left");
}

#[test]
fn tools_and_calls_survive_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("saved");
    let [save, load] = ["save", "load"].map(|verb| format!("/{verb} {}", path.display()));
    chat(&["/tools demo", "What is the weather in Paris?", &save]);
    let saved: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(saved_after(&[], &[&load]), saved);
    let output = chat(&[&load, "/tools", "/regenerate"]);
    assert!(output.stderr.contains("(4 messages from "), "{output:?}");
    assert!(output.stderr.contains("(tools: get_weather, get_time)"), "{output:?}");
    assert!(output.stderr.contains("get_weather {\"location\":\"Paris\"}"), "{output:?}");
}

#[test]
fn a_tool_that_is_not_on_offer_is_an_error_for_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("conversation");
    let conversation = json!({
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [{"type": "function", "function": {
            "name": "get_climate",
            "parameters": {"type": "object", "properties": {"location": {"type": "string"}}},
        }}],
    });
    fs::write(&path, conversation.to_string()).unwrap();
    let load = format!("/load {}", path.display());
    let output = chat_with(&["--max-tokens", "100"], format!("{load}\n/regenerate\n").as_bytes());
    assert!(
        output.stderr.contains("get_weather failed: `get_weather` is not a tool; "),
        "{output:?}"
    );
    assert_eq!(output.code, Some(0));
}

#[test]
fn a_file_that_is_no_conversation_is_named_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let load = format!("/load {}", path.display());
    let deep = "[".repeat(100_000);
    let cases: &[(&[u8], &str)] = &[
        (b"", "EOF"),
        (b"{\"messages\": [", "EOF"),
        (b"not JSON", "line 1"),
        (b"\xff", "UTF-8"),
        (b"[]", "a list"),
        (b"{}", "messages"),
        (br#"{"messages": []}"#, "messages"),
        (br#"{"messages": [{"role": "king", "content": "a"}]}"#, "messages[0].role"),
        (br#"{"messages": [{"role": "tool", "content": "a"}]}"#, "messages[0].tool_call_id"),
        (br#"{"messages": [{"role": "user", "content": 1}]}"#, "messages[0].content"),
        (deep.as_bytes(), "recursion"),
    ];
    for (bytes, named) in cases {
        fs::write(&path, bytes).unwrap();
        assert_kept(&load, &[path.to_str().unwrap(), named]);
    }
    fs::remove_file(&path).unwrap();
    assert_kept(&load, &[path.to_str().unwrap()]);
    assert_kept(&format!("/load {}", dir.path().display()), &[dir.path().to_str().unwrap()]);
}

#[test]
fn a_file_that_cannot_be_written_is_named_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing").join("file");
    assert_kept(&format!("/save {}", missing.display()), &[missing.to_str().unwrap()]);
    assert_kept(&format!("/save {}", dir.path().display()), &[dir.path().to_str().unwrap()]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// The line is an error that names all of `named`, and the conversation is what it was.
#[track_caller]
fn assert_kept(line: &str, named: &[&str]) {
    let output = chat(&[ASK, line]);
    let error = output.stderr.strip_prefix("error: ").unwrap_or_else(|| panic!("{output:?}"));
    assert!(named.iter().all(|name| error.contains(name)), "{named:?}: {error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    let saved = saved_after(&[], &[ASK, line]);
    let answer = known_answer("Dangling References");
    assert_eq!(contents(&saved), [pair("user", ASK), pair("assistant", answer)]);
}
