//! Answers by a JSON Schema, and which tools may be called.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{BUNDLED, ids, json as answer, run, str, tokenizer};

const WEATHER: &str = "What is the weather in Paris?";

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "topic": {"type": "string", "maxLength": 30},
            "level": {"enum": ["easy", "schwierig", null]},
            "pages": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 500}, "maxItems": 3},
        },
        "required": ["topic", "level"],
        "additionalProperties": false,
    })
}

fn tools(parameters: &Value) -> Value {
    json!([{"type": "function", "function": {
        "name": "get_weather",
        "description": "Gets the current weather in a location.",
        "parameters": parameters,
    }}])
}

fn location(key: &str) -> Value {
    json!({"type": "object", "properties": {key: {"type": "string"}}, "required": [key]})
}

fn file(dir: &TempDir, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, content).unwrap();
    path
}

#[track_caller]
fn assert_valid(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{text:?}: {e}"));
    let validator = jsonschema::validator_for(&schema()).unwrap();
    assert!(validator.is_valid(&value), "{text}");
}

#[test]
fn the_answer_is_valid_by_the_schema_and_the_model_was_told_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let alone = file(&dir, "alone.json", schema().to_string());
    let wrapped = json!({"type": "json_schema", "json_schema": {
        "name": "lesson", "description": "What to read.", "strict": true, "schema": schema(),
    }});
    let wrapped = file(&dir, "wrapped.json", wrapped.to_string());
    let free = answer(&["--temperature", "1", "--seed", "1"]);
    assert!(serde_json::from_str::<Value>(free["text"].as_str().unwrap()).is_err());
    for (path, told) in [
        (&alone, "# Response Formats\n\n## answer\n\n{\"type\":\"object\","),
        (&wrapped, "# Response Formats\n\n## lesson\n\n// What to read.\n{\"type\":\"object\","),
    ] {
        for seed in ["1", "2", "3"] {
            let said = answer(&["--schema", str(path), "--temperature", "1", "--seed", seed]);
            assert_valid(said["text"].as_str().unwrap());
            let asked = tokenizer().decode(&ids(&said, "prompt_tokens"), false).unwrap();
            assert!(asked.contains(told), "{asked}");
        }
    }
    // It goes behind other instructions, and text alone is on stdout.
    let args = ["--schema", str(&alone), "--system", "Be brief."];
    let output = run(&args);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_valid(&output.stdout);
    let asked = tokenizer().decode(&ids(&answer(&args), "prompt_tokens"), false).unwrap();
    assert!(asked.contains("Be brief.\n\n# Response Formats"), "{asked}");
}

#[test]
fn tools_are_called_or_not_as_the_choice_says() {
    let dir = tempfile::tempdir().unwrap();
    let schema = file(&dir, "schema.json", schema().to_string());
    // The model knows its tool by another argument.
    let tools = file(&dir, "tools.json", tools(&location("city")).to_string());
    let said = |extra: &[&str]| {
        let args = ["--tools", str(&tools), "--prompt", WEATHER];
        answer(&[&args, extra].concat())
    };
    let call = |said: &Value| {
        let last = said["messages"].as_array().unwrap().last().unwrap().clone();
        (last["recipient"] == "functions.get_weather").then(|| {
            assert_eq!(said["text"], "");
            serde_json::from_str::<Value>(last["content"].as_str().unwrap()).unwrap()
        })
    };
    assert!(call(&said(&[])).unwrap()["location"].is_string(), "free");
    for extra in [
        &["--tool-choice", "auto"] as &[_],
        &["--tool-choice", "required"],
        &["--tool-choice", "get_weather"],
        &["--tool-choice", "required", "--schema", str(&schema)],
    ] {
        let arguments = call(&said(extra)).expect("a call");
        assert!(arguments["city"].is_string(), "{extra:?}: {arguments}");
    }
    let answered = said(&["--tool-choice", "none", "--schema", str(&schema)]);
    assert_eq!(call(&answered), None);
    assert_valid(answered["text"].as_str().unwrap());
    let answered = said(&["--tool-choice", "none"]);
    assert_eq!(call(&answered), None);
}

/// A folder that no model can be loaded from: what is wrong with a schema is said before.
fn tokenizer_alone() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let name = "tokenizer.json";
    fs::copy(Path::new(BUNDLED).join(name), dir.path().join(name)).unwrap();
    dir
}

#[track_caller]
fn assert_refused(args: &[&str], named: &[&str]) {
    let model = tokenizer_alone();
    let output = run(&[&["--model", str(model.path())], args].concat());
    assert_eq!((output.code, output.stdout.as_str()), (Some(1), ""), "{output:?}");
    assert!(output.stderr.starts_with("error: "), "{output:?}");
    for named in named {
        assert!(output.stderr.contains(named), "{named}: {output:?}");
    }
}

#[test]
fn a_schema_that_cannot_be_used_is_named_before_the_model_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let deep = "{\"items\":".repeat(120) + "{}" + &"}".repeat(120);
    let deeper = "{\"items\":".repeat(100_000);
    let inner = json!({"properties": {"hue": {"type": "colour"}}});
    let wrapped = |format| json!({"type": "json_schema", "json_schema": format}).to_string();
    for (text, part) in [
        ("", "EOF"),
        ("{", "EOF"),
        ("{} {}", "trailing"),
        (deeper.as_str(), "recursion limit"),
        (&wrapped(json!({"name": "a"})), "`json_schema.schema` is missing"),
        (&json!({"type": "json_schema"}).to_string(), "`json_schema.schema` is missing"),
        (&wrapped(json!([1])), "`json_schema.schema` is missing"),
        ("3", "response_format"),
        ("false", "response_format"),
        (&inner.to_string(), "colour"),
        (&wrapped(json!({"schema": inner})), "response_format"),
        (r#"{"not": {"type": "string"}}"#, "not"),
        (r##"{"$ref": "#/$defs/none"}"##, "none"),
    ] {
        let path = file(&dir, "schema.json", text);
        assert_refused(&["--schema", str(&path)], &[str(&path), part]);
    }
    let path = file(&dir, "latin1.json", b"\"caf\xe9\"");
    assert_refused(&["--schema", str(&path)], &[str(&path), "UTF-8"]);
    for path in [dir.path().join("missing.json"), dir.path().to_owned()] {
        assert_refused(&["--schema", str(&path)], &["cannot read the schema from", str(&path)]);
    }
    // As deep as can be read: an answer.
    let path = file(&dir, "deep.json", deep);
    let output = run(&["--schema", str(&path), "--max-tokens", "5"]);
    assert_eq!(output.code, Some(0), "{output:?}");
}

#[test]
fn a_tool_that_cannot_be_enforced_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let schema = file(&dir, "schema.json", schema().to_string());
    let bad = json!({"type": "object", "properties": {"hue": {"type": "colour"}}});
    let bad = file(&dir, "bad.json", tools(&bad).to_string());
    for extra in [["--schema", str(&schema)], ["--tool-choice", "required"]] {
        let args = [&["--tools", str(&bad)], &extra as &[_]].concat();
        assert_refused(&args, &[str(&bad), "tool `get_weather`", "colour"]);
    }
    let good = file(&dir, "good.json", tools(&location("city")).to_string());
    let args = ["--tools", str(&good), "--tool-choice", "paint"];
    assert_refused(&args, &["tool_choice", "`paint`", "hint: offer the tool"]);
    let none = file(&dir, "none.json", "[]");
    let args = ["--tools", str(&none), "--tool-choice", "required"];
    assert_refused(&args, &["tool_choice", "no tool"]);
}

#[test]
fn a_schema_needs_the_template_and_a_choice_needs_tools() {
    for args in [
        &["--raw", "--schema", "a"] as &[_],
        &["--prompt-ids", "1", "--schema", "a"],
        &["--raw", "--tools", "a", "--tool-choice", "none"],
        &["--tool-choice", "none"],
    ] {
        let output = run(args);
        assert_eq!((output.code, output.stdout.as_str()), (Some(2), ""), "{args:?}: {output:?}");
    }
}
