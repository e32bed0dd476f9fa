//! Effort, tools, and the messages of which an answer consists.

use std::fs;

use serde_json::{Value, json};

use super::{ids, json as answer, known_answer, run, str, tokenizer};

const WEATHER: &str = "What is the weather in Paris?";
const THOUGHT: &str = "The user asks about Dangling References. I will answer from the book.";

fn weather_tool() -> Value {
    json!({"type": "function", "function": {
        "name": "get_weather",
        "description": "Gets the current weather in a location.",
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string"}},
            "required": ["location"],
        },
    }})
}

#[test]
fn the_messages_are_listed() {
    let said = answer(&[]);
    let expected = json!([
        {"channel": "analysis", "recipient": null, "content": THOUGHT},
        {"channel": "final", "recipient": null, "content": known_answer("Dangling References")},
    ]);
    assert_eq!(said["messages"], expected);
    assert_eq!(said["messages"][1]["content"], said["text"]);

    // Cut off, or ended by a text that is not shown: what there is.
    let cut = answer(&["--max-tokens", "10"]);
    let [thought] = &cut["messages"].as_array().unwrap()[..] else { panic!("{cut}") };
    assert!(THOUGHT.starts_with(thought["content"].as_str().unwrap()), "{cut}");
    assert_eq!(cut["finish_reason"], "length");
    let stopped = answer(&["--stop", "easy"]);
    assert_eq!(stopped["messages"][1]["content"], stopped["text"]);
    assert_eq!(stopped["finish_reason"], "stop");
    assert_eq!(answer(&["--max-tokens", "0"])["messages"], json!([]));
}

#[test]
fn the_analysis_goes_to_stderr_when_asked_for() {
    let output = run(&["--show-analysis"]);
    assert_eq!(output.stdout, known_answer("Dangling References") + "\n");
    let lines: Vec<&str> = output.stderr.lines().collect();
    let [thought, figures] = lines[..] else { panic!("{output:?}") };
    assert_eq!(thought, THOUGHT);
    assert!(figures.contains("tok/s"), "{output:?}");
    let output = run(&["--show-analysis", "--json"]);
    assert_eq!(output.stderr, format!("{THOUGHT}\n"));
}

#[test]
fn a_call_ends_the_answer_and_is_on_stderr_or_in_the_json() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tools.json");
    fs::write(&file, json!([weather_tool()]).to_string()).unwrap();
    let args = ["--tools", str(&file), "--prompt", WEATHER];
    let output = run(&args);
    assert_eq!((output.code, output.stdout.as_str()), (Some(0), ""), "{output:?}");
    let lines: Vec<&str> = output.stderr.lines().collect();
    let [call, figures] = lines[..] else { panic!("{output:?}") };
    assert_eq!(call, "call get_weather {\"location\":\"Paris\"}");
    assert!(figures.ends_with("tool_calls"), "{output:?}");

    let said = answer(&args);
    assert_eq!((&said["text"], &said["finish_reason"]), (&json!(""), &json!("stop")));
    let call = json!({
        "channel": "commentary",
        "recipient": "functions.get_weather",
        "content": "{\"location\":\"Paris\"}",
    });
    assert_eq!(said["messages"][1], call);
    let asked = tokenizer().decode(&ids(&said, "prompt_tokens"), false).unwrap();
    assert!(asked.contains("// Gets the current weather in a location."), "{asked}");
}

#[test]
fn the_effort_reaches_the_prompt() {
    for level in ["low", "medium", "high"] {
        let said = answer(&["--effort", level, "--max-tokens", "1"]);
        let asked = tokenizer().decode(&ids(&said, "prompt_tokens"), false).unwrap();
        assert!(asked.contains(&format!("Reasoning: {level}\n")), "{asked}");
    }
}

#[test]
fn tools_that_are_none_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tools.json");
    let twice = json!([weather_tool(), weather_tool()]).to_string();
    let cases = [
        ("", "EOF"),
        ("[", "EOF"),
        ("{}", "tools"),
        ("[1]", "tools[0]"),
        ("[{\"type\": \"function\", \"function\": {}}]", "tools[0].function.name"),
        (&twice, "tools[1].function.name"),
    ];
    for (text, named) in cases {
        fs::write(&file, text).unwrap();
        let output = run(&["--tools", str(&file)]);
        assert_eq!((output.code, output.stdout.as_str()), (Some(1), ""), "{output:?}");
        assert!(output.stderr.starts_with("error: cannot read the tools from "), "{output:?}");
        assert!(output.stderr.contains(str(&file)), "{output:?}");
        assert!(output.stderr.contains(named), "{named}: {output:?}");
    }
    assert_eq!(run(&["--tools", str(&dir.path().join("missing"))]).code, Some(1));
    fs::write(&file, "[]").unwrap();
    assert_eq!(run(&["--tools", str(&file)]).stdout, known_answer("Dangling References") + "\n");
}
