//! Bad requests, each with the status and the field that its error names.

use std::io::Write;

use serde_json::{Value, json};

use crate::client::{Reply, Server, endless, question, read_reply, weather_tool, with};

/// Checks the shape of an error; returns its field.
fn error(reply: &Reply, status: u16, what: &str) -> Value {
    assert_eq!(reply.status, status, "{what}: {reply:?}");
    assert_eq!(reply.header("content-type"), Some("application/json"), "{what}");
    assert!(reply.header("x-request-id").is_some_and(|id| id.starts_with("req_")), "{what}");
    let body = reply.json();
    let error = body["error"].as_object().unwrap();
    assert_eq!(error.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"], "{what}");
    assert!(error["message"].as_str().is_some_and(|text| text.len() > 10), "{what}: {body}");
    let kind = match status {
        408 => "timeout_error",
        429 => "rate_limit_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    };
    assert_eq!(error["type"], kind, "{what}");
    assert!(error["code"].is_string(), "{what}: {body}");
    error["param"].clone()
}

/// Sends `fields` beside those of `good`; expects status 400, or 404 for a model, and the field.
fn refuse(server: &Server, path: &str, good: &Value, cases: &[(Value, &str)]) {
    for (fields, param) in cases {
        let reply = server.post(path, &with(good.clone(), fields));
        let status = if *param == "model" && fields["model"].is_string() { 404 } else { 400 };
        assert_eq!(error(&reply, status, &fields.to_string()), *param, "{fields}: {reply:?}");
    }
}

#[test]
fn chat_completions_name_the_field_that_is_wrong() {
    let server = Server::start(&[]);
    let tool = |fields: Value| json!({"tools": [{"type": "function", "function": fields}]});
    let message = |message: Value| json!({"messages": [message]});
    let schema =
        |fields: Value| json!({"response_format": {"type": "json_schema", "json_schema": fields}});
    let cases = [
        // Fields that are unknown, or known and not to be had.
        (json!({"temprature": 1}), "temprature"),
        (json!({"audio": {"voice": "x"}}), "audio"),
        (json!({"functions": []}), "functions"),
        (json!({"function_call": "auto"}), "function_call"),
        (json!({"web_search_options": {}}), "web_search_options"),
        (json!({"verbosity": "low"}), "verbosity"),
        (json!({"modalities": ["text", "audio"]}), "modalities"),
        (json!({"store": true}), "store"),
        (json!({"n": 2}), "n"),
        // Types.
        (json!({"model": 5}), "model"),
        (json!({"model": "gpt-4o"}), "model"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stream": 1}), "stream"),
        (json!({"seed": 1.5}), "seed"),
        (json!({"seed": "1"}), "seed"),
        (json!({"n": "1"}), "n"),
        (json!({"max_tokens": 1.5}), "max_tokens"),
        (json!({"parallel_tool_calls": "no"}), "parallel_tool_calls"),
        (json!({"logprobs": 3}), "logprobs"),
        (json!({"stop": 5}), "stop"),
        (json!({"stop": ["a", 1]}), "stop[1]"),
        (json!({"tools": {}}), "tools"),
        (json!({"logit_bias": []}), "logit_bias"),
        // Ranges.
        (json!({"temperature": -0.1}), "temperature"),
        (json!({"temperature": 2.1}), "temperature"),
        (json!({"top_p": 1.1}), "top_p"),
        (json!({"presence_penalty": 3}), "presence_penalty"),
        (json!({"frequency_penalty": -3}), "frequency_penalty"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_completion_tokens": -1}), "max_completion_tokens"),
        (json!({"max_completion_tokens": 5, "max_tokens": 6}), "max_tokens"),
        (json!({"top_logprobs": 5}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop"),
        (json!({"stop": ""}), "stop"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias.x"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias.1"),
        (json!({"logit_bias": {"1": "a"}}), "logit_bias.1"),
        (json!({"logit_bias": {"99999999": 1}}), "logit_bias"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"stream": true, "stream_options": {"x": 1}}), "stream_options.x"),
        (json!({"stream": true, "stream_options": 1}), "stream_options"),
        (json!({"reasoning_effort": "minimal"}), "reasoning_effort"),
        (json!({"reasoning_effort": 3}), "reasoning_effort"),
        // Messages.
        (json!({"messages": null}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": "hi"}), "messages"),
        (message(json!("hi")), "messages[0]"),
        (message(json!({"content": "hi"})), "messages[0].role"),
        (message(json!({"role": "bot", "content": "hi"})), "messages[0].role"),
        (message(json!({"role": "user", "content": 5})), "messages[0].content"),
        (
            message(json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]})),
            "messages[0].content[0].type",
        ),
        (message(json!({"role": "tool", "content": "5"})), "messages[0].tool_call_id"),
        (
            message(json!({"role": "assistant", "function_call": {"name": "f"}})),
            "messages[0].function_call",
        ),
        // Tools.
        (json!({"tools": [{"type": "custom", "custom": {"name": "x"}}]}), "tools[0].type"),
        (tool(json!({})), "tools[0].function.name"),
        (tool(json!({"name": "a b"})), "tools[0].function.name"),
        (tool(json!({"name": "f", "parameters": 5})), "tools[0].function.parameters"),
        (
            tool(json!({"name": "f", "strict": true, "parameters":
                {"type": "object", "properties": {"a": {"type": "string", "format": "nonsense"}},
                 "uniqueItems": true, "if": {}}})),
            "tools",
        ),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tool_choice": "sometimes"}), "tool_choice"),
        (json!({"tool_choice": 1}), "tool_choice"),
        (json!({"tool_choice": {"type": "allowed_tools"}}), "tool_choice.type"),
        (json!({"tool_choice": {"type": "function"}}), "tool_choice.function"),
        (
            json!({"tools": [weather_tool()], "tool_choice":
                {"type": "function", "function": {"name": "get_time"}}}),
            "tool_choice",
        ),
        // Formats.
        (json!({"response_format": "json"}), "response_format"),
        (json!({"response_format": {}}), "response_format.type"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
        (schema(json!({"schema": {}})), "response_format.json_schema.name"),
        (schema(json!({"name": "a b", "schema": {}})), "response_format.json_schema.name"),
        (schema(json!({"name": "a"})), "response_format.json_schema.schema"),
        (schema(json!({"name": "a", "schema": 5})), "response_format.json_schema.schema"),
        (schema(json!({"name": "a", "schema": {"type": "nothing"}})), "response_format"),
    ];
    refuse(&server, "/v1/chat/completions", &question("Hello."), &cases);
    // And none of it has done any harm.
    server.chat(&with(question("Hello."), &json!({"max_tokens": 1})));
}

#[test]
fn completions_name_the_field_that_is_wrong() {
    let server = Server::start(&[]);
    let cases = [
        (json!({"prompt": null}), "prompt"),
        (json!({"prompt": 5}), "prompt"),
        (json!({"prompt": ""}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": ["a", "b"]}), "prompt"),
        (json!({"prompt": [[1], [2]]}), "prompt"),
        (json!({"prompt": [1, "a"]}), "prompt"),
        (json!({"prompt": [-1]}), "prompt"),
        (json!({"prompt": [99_999_999]}), "prompt"),
        (json!({"echo": true}), "echo"),
        (json!({"suffix": "end"}), "suffix"),
        (json!({"best_of": 3}), "best_of"),
        (json!({"logprobs": 6}), "logprobs"),
        (json!({"logprobs": true}), "logprobs"),
        (json!({"messages": []}), "messages"),
        (json!({"max_tokens": "many"}), "max_tokens"),
    ];
    refuse(&server, "/v1/completions", &json!({"prompt": "fn main"}), &cases);
}

#[test]
fn responses_name_the_field_that_is_wrong() {
    let server = Server::start(&[]);
    let item = |item: Value| json!({"input": [item]});
    let format = |format: Value| json!({"text": {"format": format}});
    let cases = [
        (json!({"input": null}), "input"),
        (json!({"input": 5}), "input"),
        (json!({"input": []}), "input"),
        (item(json!("hi")), "input[0]"),
        (item(json!({"content": "hi"})), "input[0].role"),
        (item(json!({"role": "user"})), "input[0].content"),
        (item(json!({"role": "tool", "content": "hi"})), "input[0].role"),
        (
            item(json!({"role": "user", "content": [{"type": "input_image"}]})),
            "input[0].content[0].type",
        ),
        (item(json!({"type": "item_reference", "id": "x"})), "input[0].type"),
        (item(json!({"type": "function_call", "call_id": "a", "name": "f"})), "input[0].arguments"),
        (
            item(json!({"type": "function_call_output", "call_id": "a", "output": "x"})),
            "input[0].call_id",
        ),
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"prompt": {"id": "x"}}), "prompt"),
        (json!({"background": true}), "background"),
        (json!({"store": true}), "store"),
        (json!({"truncation": "auto"}), "truncation"),
        (json!({"include": ["file_search_call.results"]}), "include[0]"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"reasoning": {"effort": "minimal"}}), "reasoning.effort"),
        (json!({"reasoning": {"summary": "long"}}), "reasoning.summary"),
        (json!({"reasoning": "high"}), "reasoning"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].name"),
        (json!({"tools": [{"type": "function", "name": "a b"}]}), "tools[0].name"),
        (json!({"tool_choice": {"type": "function"}}), "tool_choice.name"),
        (json!({"tool_choice": {"type": "file_search"}}), "tool_choice.type"),
        (json!({"text": {"verbosity": "low"}}), "text.verbosity"),
        (format(json!({"type": "yaml"})), "text.format.type"),
        (format(json!({"type": "json_schema", "name": "a"})), "text.format.schema"),
        (
            format(json!({"type": "json_schema", "name": "a", "schema": {"type": "nothing"}})),
            "text.format",
        ),
        (json!({"messages": []}), "messages"),
        (json!({"top_logprobs": 21}), "top_logprobs"),
    ];
    refuse(&server, "/v1/responses", &json!({"input": "Hello."}), &cases);
}

#[test]
fn requests_that_are_no_json_for_this_path_are_refused() {
    let server = Server::start(&["--max-body", "2000", "--max-context", "200"]);
    let path = "/v1/chat/completions";
    let json_type = "Content-Type: application/json";
    let good = question("Hello.").to_string();
    let long = question(&"x".repeat(3000)).to_string();
    let deep = format!("{{\"messages\": {}{}}}", "[".repeat(500), "]".repeat(500));
    for (what, headers, body, status, code) in [
        ("no content type", &[][..], good.as_str(), 415, "unsupported_media_type"),
        ("text", &["Content-Type: text/plain"], &good, 415, "unsupported_media_type"),
        (
            "a form",
            &["Content-Type: application/x-www-form-urlencoded"],
            "a=b",
            415,
            "unsupported_media_type",
        ),
        (
            "compressed",
            &[json_type, "Content-Encoding: gzip"],
            &good,
            415,
            "unsupported_media_type",
        ),
        ("nothing", &[json_type], "", 400, "invalid_json"),
        ("no JSON", &[json_type], "hello", 400, "invalid_json"),
        ("half of it", &[json_type], &good[..20], 400, "invalid_json"),
        ("two of it", &[json_type], &good.repeat(2), 400, "invalid_json"),
        ("a list", &[json_type], "[]", 400, "invalid_json"),
        ("a string", &[json_type], "\"hi\"", 400, "invalid_json"),
        ("too deep", &[json_type], &deep, 400, "invalid_json"),
        ("too long", &[json_type], &long, 413, "request_too_large"),
        ("another host", &[json_type, "Host: example.com"], &good, 403, "wrong_host"),
    ] {
        let reply = server.request("POST", path, headers, body);
        error(&reply, status, what);
        assert_eq!(reply.json()["error"]["code"], code, "{what}");
    }
    // A length that is not known beforehand.
    let chunk = format!("{:x}\r\n{long}\r\n0\r\n\r\n", long.len());
    let chunked =
        ["Content-Type: application/json", "Transfer-Encoding: chunked", "Content-Length:"];
    let text = server.head("POST", path, &chunked, &chunk).replace("Content-Length:\r\n", "");
    error(&server.raw(text.as_bytes()), 413, "too long, in chunks");
    // Not UTF-8.
    let mut text = server.head("POST", path, &[json_type, "Content-Length: 9"], "").into_bytes();
    text.extend(b"{\"a\":\"\xff\"}"[..9].iter());
    error(&server.raw(&text), 400, "not UTF-8");

    for (method, path, status) in [
        ("GET", "/v1/chat/completions", 405),
        ("PUT", "/v1/completions", 405),
        ("DELETE", "/v1/models/gpt-oss-tiny", 405),
        ("POST", "/v1/models", 405),
        ("POST", "/health", 405),
        ("OPTIONS", "/v1/chat/completions", 405),
        ("GET", "/v1/", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/models/gpt-4o", 404),
        ("GET", "/v1/responses/resp_1", 404),
        ("GET", "/../etc/passwd", 404),
    ] {
        let reply = server.request(method, path, &[json_type], "");
        error(&reply, status, &format!("{method} {path}"));
        assert_eq!(reply.header("allow").is_some(), status == 405, "{reply:?}");
    }

    let reply = server.post(path, &question(&"a b c ".repeat(200)));
    assert_eq!(error(&reply, 400, "too many tokens"), "messages");
    assert_eq!(reply.json()["error"]["code"], "context_length_exceeded");
}

#[test]
fn a_body_that_does_not_arrive_is_not_waited_for() {
    let server = Server::start(&["--read-timeout", "0.3"]);
    let headers = ["Content-Type: application/json", "Content-Length: 100"];
    let mut stream = server.connect();
    let text = server.head("POST", "/v1/completions", &headers, "{\"prompt\"");
    stream.write_all(text.as_bytes()).unwrap();
    error(&read_reply(stream), 408, "half a body");
    // A head that does not arrive gets no answer, since it is not known to what.
    let mut stream = server.connect();
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: lo").unwrap();
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut rest).unwrap();
    assert_eq!(rest, b"");
    // An answer may take longer than a request.
    let fields = json!({"stream": true, "max_tokens": 1000});
    let chunks = server.post("/v1/chat/completions", &with(endless(), &fields)).chunks();
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
}

#[test]
fn without_the_key_nobody_comes_in() {
    let server = Server::start(&["--api-key", "key-1"]);
    let body = question("Hello.").to_string();
    for (what, authorization) in [
        ("none", None),
        ("empty", Some("Authorization:")),
        ("no scheme", Some("Authorization: key-1")),
        ("another scheme", Some("Authorization: Basic key-1")),
        ("wrong", Some("Authorization: Bearer key-2")),
        ("shorter", Some("Authorization: Bearer key-")),
        ("longer", Some("Authorization: Bearer key-11")),
        ("other case", Some("Authorization: Bearer KEY-1")),
        ("nothing", Some("Authorization: Bearer ")),
    ] {
        for (method, path) in [
            ("POST", "/v1/chat/completions"),
            ("POST", "/v1/completions"),
            ("POST", "/v1/responses"),
            ("GET", "/v1/models"),
            ("GET", "/metrics"),
            ("GET", "/nothing"),
        ] {
            let headers: Vec<&str> =
                ["Content-Type: application/json"].into_iter().chain(authorization).collect();
            let reply = server.request(method, path, &headers, &body);
            error(&reply, 401, what);
            assert_eq!(reply.json()["error"]["code"], "invalid_api_key");
            assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
        }
    }
    for path in ["/", "/health"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    let right = ["Authorization: bearer key-1"];
    assert_eq!(server.request("GET", "/v1/models", &right, "").status, 200);
    // With a key, names do not matter.
    let elsewhere = ["Authorization: Bearer key-1", "Host: example.com"];
    assert_eq!(server.request("GET", "/v1/models", &elsewhere, "").status, 200);
}
