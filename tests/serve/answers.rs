//! Right answers to right requests.

use serde_json::{Value, json};

use crate::client::{Server, question, weather_tool, with};
use crate::example::known_answer;

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";

/// The text that the deltas of chunks make.
fn joined(chunks: &[Value], field: &str) -> String {
    let deltas = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"][field]);
    deltas.filter_map(Value::as_str).collect()
}

fn object_schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "title": {"type": "string", "maxLength": 30},
            "pages": {"type": "integer", "minimum": 1, "maximum": 900},
            "safe": {"type": "boolean"}
        },
        "required": ["title", "pages", "safe"],
        "additionalProperties": false
    })
}

#[test]
fn a_question_is_answered_whole_and_in_chunks_alike() {
    let server = Server::start(&[]);
    for topic in ["Macros", "Variable Scope"] {
        let body = question(&format!("Explain {topic}."));
        let whole = server.chat(&body);
        let choice = &whole["choices"][0];
        let message = &choice["message"];
        assert_eq!(message["content"], known_answer(topic));
        assert!(message["reasoning_content"].as_str().unwrap().contains(topic), "{whole}");
        assert_eq!(choice["finish_reason"], "stop");
        assert_eq!(whole["object"], "chat.completion");
        assert_eq!(whole["model"], "gpt-oss-tiny");

        let stream = json!({"stream": true, "stream_options": {"include_usage": true}});
        let chunks = server.post(CHAT, &with(body, &stream)).chunks();
        let (usage, chunks) = chunks.split_last().unwrap();
        assert_eq!(joined(chunks, "content"), message["content"]);
        assert_eq!(joined(chunks, "reasoning_content"), message["reasoning_content"]);
        assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
        assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"]));
        assert!(chunks.iter().all(|chunk| chunk["usage"].is_null()));
        assert_eq!(usage["choices"], json!([]));
        assert_eq!(usage["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
        // The same prompt again is held already, but for its last token.
        let prompt = usage["usage"]["prompt_tokens"].as_u64().unwrap();
        assert_eq!(usage["usage"]["prompt_tokens_details"]["cached_tokens"], prompt - 1);
    }
}

#[test]
fn the_next_turn_of_a_conversation_costs_only_what_is_new() {
    let server = Server::start(&[]);
    let mut messages = vec![json!({"role": "user", "content": "Explain Macros."})];
    let first = server.chat(&json!({"messages": messages, "temperature": 0}));
    messages.push(first["choices"][0]["message"].clone());
    messages.push(json!({"role": "user", "content": "Explain Variable Scope."}));
    let second = server.chat(&json!({"messages": messages, "temperature": 0}));
    let cached = &second["usage"]["prompt_tokens_details"]["cached_tokens"];
    // All of the first prompt but the generation's start; reasoning is left out of the history.
    let before = first["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(cached.as_u64().unwrap() + 10 >= before, "{second}");
}

#[test]
fn a_tool_is_called_and_its_result_taken() {
    let server = Server::start(&[]);
    let body = with(
        question("What is the weather in Paris?"),
        &json!({"tools": [weather_tool()], "tool_choice": "required"}),
    );
    let first = server.chat(&body);
    let choice = &first["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{first}");
    let message = choice["message"].clone();
    let call = &message["tool_calls"][0];
    assert_eq!(
        (&call["type"], &call["function"]["name"]),
        (&json!("function"), &json!("get_weather"))
    );
    let arguments: Value =
        serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    assert!(arguments["location"].is_string(), "{first}");
    assert!(message["content"].is_null());

    // The same in chunks.
    let chunks = server.post(CHAT, &with(body.clone(), &json!({"stream": true}))).chunks();
    let calls: Vec<&Value> = chunks
        .iter()
        .map(|chunk| &chunk["choices"][0]["delta"]["tool_calls"][0])
        .filter(|call| !call.is_null())
        .collect();
    assert!(calls[0]["id"].as_str().unwrap().starts_with("call_"));
    assert_eq!(calls[0]["function"]["name"], "get_weather");
    assert!(calls[1..].iter().all(|call| call.get("id").is_none() && call["index"] == 0));
    let streamed: String =
        calls.iter().map(|call| call["function"]["arguments"].as_str().unwrap()).collect();
    assert_eq!(streamed, call["function"]["arguments"].as_str().unwrap());

    // What the server gave is taken back as it is.
    let messages = json!([
        {"role": "user", "content": "What is the weather in Paris?"},
        message,
        {"role": "tool", "tool_call_id": call["id"], "content": "sunny, 21 degrees"},
    ]);
    let body = json!({"messages": messages, "tools": [weather_tool()], "temperature": 0});
    let second = server.chat(&body);
    assert_ne!(second["choices"][0]["finish_reason"], "length");
    assert!(second["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 50);
}

#[test]
fn answers_keep_to_a_schema() {
    let server = Server::start(&[]);
    let validator = jsonschema::validator_for(&object_schema()).unwrap();
    let valid = |text: &str| {
        let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert!(validator.is_valid(&value), "{text}");
    };
    for seed in 0..3 {
        let format = json!({"type": "json_schema", "json_schema":
            {"name": "book", "strict": true, "schema": object_schema()}});
        let fields = json!({"response_format": format, "temperature": 1.0, "seed": seed});
        let whole = server.chat(&with(question("Explain Macros."), &fields));
        valid(whole["choices"][0]["message"]["content"].as_str().unwrap());
    }
    let format = json!({"type": "json_schema", "name": "book", "schema": object_schema()});
    let body = json!({"input": "Explain Macros.", "text": {"format": format}, "temperature": 0});
    let response = server.post(RESPONSES, &body).json();
    let output = response["output"].as_array().unwrap();
    valid(output.last().unwrap()["content"][0]["text"].as_str().unwrap());

    let fields = json!({"response_format": {"type": "json_object"}, "max_tokens": 300});
    let whole = server.chat(&with(question("Explain Macros."), &fields));
    if whole["choices"][0]["finish_reason"] == "stop" {
        let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
        assert!(serde_json::from_str::<Value>(text).unwrap().is_object());
    }
}

#[test]
fn log_probabilities_are_those_of_the_visible_text() {
    let server = Server::start(&[]);
    let body = with(question("Explain Macros."), &json!({"logprobs": true, "top_logprobs": 3}));
    let whole = server.chat(&body);
    let tokens = whole["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    let bytes = |tokens: &[Value]| {
        let bytes = tokens.iter().flat_map(|token| token["bytes"].as_array().unwrap());
        bytes.map(|byte| u8::try_from(byte.as_u64().unwrap()).unwrap()).collect::<Vec<u8>>()
    };
    assert_eq!(String::from_utf8(bytes(&tokens)).unwrap(), known_answer("Macros"));
    for token in &tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        // Greedy: the likeliest was taken.
        assert_eq!((&top[0]["token"], &top[0]["logprob"]), (&token["token"], &token["logprob"]));
        assert!(token["logprob"].as_f64().unwrap() <= 0.0);
    }
    let chunks = server.post(CHAT, &with(body, &json!({"stream": true}))).chunks();
    let streamed: Vec<Value> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .cloned()
        .collect();
    let names = |tokens: &[Value]| tokens.iter().map(|t| t["token"].clone()).collect::<Vec<_>>();
    assert_eq!(names(&streamed), names(&tokens));

    let body = json!({"input": "Explain Macros.", "temperature": 0, "top_logprobs": 1});
    let response = server.post(RESPONSES, &body).json();
    let part = &response["output"][1]["content"][0];
    assert_eq!(names(part["logprobs"].as_array().unwrap()), names(&tokens));
}

#[test]
fn seeds_stops_lengths_and_biases_are_honoured() {
    let server = Server::start(&[]);
    let text = |fields: Value| {
        let whole = server.chat(&with(question("Explain Macros."), &fields));
        let choice = &whole["choices"][0];
        let content = choice["message"]["content"].as_str().unwrap().to_owned();
        (content, choice["finish_reason"].as_str().unwrap().to_owned())
    };
    let warm = |seed: i64| text(json!({"seed": seed, "temperature": 1.5, "max_tokens": 80}));
    assert_eq!(warm(-7), warm(-7));
    assert_ne!(warm(1), warm(2));

    let answer = known_answer("Macros");
    let before = answer.split("macros").next().unwrap().to_owned();
    assert_eq!(text(json!({"stop": "macros"})), (before.clone(), "stop".into()));
    assert_eq!(text(json!({"stop": ["never", "macros"]})), (before, "stop".into()));
    for name in ["max_tokens", "max_completion_tokens"] {
        let (cut, reason) = text(json!({name: 40}));
        assert_eq!(reason, "length");
        assert!(!cut.is_empty() && cut.len() < answer.len() && answer.starts_with(&cut), "{cut}");
    }
    assert_ne!(text(json!({"reasoning_effort": "high", "frequency_penalty": 2})).0, "");
    // Fields that change nothing.
    let ignored = json!({
        "user": "u", "metadata": {"a": "b"}, "service_tier": "auto", "store": false, "n": 1,
        "parallel_tool_calls": true, "prediction": null, "safety_identifier": "s",
        "modalities": ["text"], "model": "gpt-oss-tiny", "prompt_cache_key": "k",
        "tool_choice": "none", "logprobs": false, "top_logprobs": 0, "stop": null
    });
    assert_eq!(text(ignored).0, answer);
}

#[test]
fn a_text_is_completed_whole_and_in_chunks_alike() {
    let server = Server::start(&[]);
    let body = json!({"prompt": "<|start|>user<|message|>Explain Macros.<|end|><|start|>assistant",
        "temperature": 0, "max_tokens": 60, "logprobs": 2});
    let reply = server.post("/v1/completions", &body);
    assert_eq!(reply.status, 200, "{reply:?}");
    let whole = reply.json();
    let choice = &whole["choices"][0];
    let text = choice["text"].as_str().unwrap();
    assert!(text.starts_with("<|channel|>"), "{whole}");
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(whole["usage"]["completion_tokens"], 60);
    let logprobs = &choice["logprobs"];
    let tokens: Vec<&str> =
        logprobs["tokens"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(tokens.len(), 60);
    assert_eq!(logprobs["token_logprobs"].as_array().unwrap().len(), 60);
    assert_eq!(logprobs["top_logprobs"][0].as_object().unwrap().len(), 2);
    assert_eq!(logprobs["text_offset"][1], tokens[0].chars().count());

    let stream = json!({"stream": true, "stream_options": {"include_usage": true}});
    let chunks = server.post("/v1/completions", &with(body, &stream)).chunks();
    let (usage, chunks) = chunks.split_last().unwrap();
    let streamed: String =
        chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(streamed, text);
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
    assert_eq!(usage["usage"]["completion_tokens"], 60);

    // OpenAI's default is short.
    let short = server.post("/v1/completions", &json!({"prompt": [5, 6, 7]})).json();
    assert!(short["usage"]["completion_tokens"].as_u64().unwrap() <= 16);
}

#[test]
fn a_response_and_its_events_agree() {
    let server = Server::start(&[]);
    let tool = json!({"type": "function", "name": "get_weather", "strict": true,
        "parameters": weather_tool()["function"]["parameters"]});
    for (body, kinds) in [
        (json!({"input": "Explain Macros."}), ["reasoning", "message"]),
        (
            json!({"input": "Explain Macros.", "reasoning": {"effort": "low", "summary": "auto"}}),
            ["reasoning", "message"],
        ),
        (
            json!({"input": [{"role": "user", "content": "What is the weather in Paris?"}],
                "tools": [tool], "tool_choice": "required"}),
            ["reasoning", "function_call"],
        ),
    ] {
        let body = with(body, &json!({"temperature": 0, "metadata": {"a": "b"}}));
        let reply = server.post(RESPONSES, &body);
        assert_eq!(reply.status, 200, "{reply:?}");
        let whole = reply.json();
        let items = |response: &Value| {
            let mut items = response["output"].as_array().unwrap().clone();
            for item in &mut items {
                item.as_object_mut().unwrap().retain(|name, _| !name.ends_with("id"));
            }
            items
        };
        let found: Vec<&Value> =
            whole["output"].as_array().unwrap().iter().map(|item| &item["type"]).collect();
        assert_eq!(found, kinds);
        assert_eq!(
            (&whole["status"], &whole["metadata"]),
            (&json!("completed"), &json!({"a": "b"}))
        );

        let reply = server.post(RESPONSES, &with(body, &json!({"stream": true})));
        let events: Vec<Value> =
            reply.events().iter().map(|event| serde_json::from_str(event).unwrap()).collect();
        let types: Vec<&str> =
            reply.body.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
        for (i, event) in events.iter().enumerate() {
            assert_eq!(event["sequence_number"], i);
            assert_eq!(event["type"], types[i]);
        }
        assert_eq!(types[..2], ["response.created", "response.in_progress"]);
        assert_eq!(types.last(), Some(&"response.completed"));
        let response = &events.last().unwrap()["response"];
        assert_eq!(items(response), items(&whole));
        assert_eq!(response["usage"]["output_tokens"], whole["usage"]["output_tokens"]);
        // Items as they end are those of the response, and their deltas are their texts.
        let done = events.iter().filter(|event| event["type"] == "response.output_item.done");
        let done: Vec<&Value> = done.map(|event| &event["item"]).collect();
        assert_eq!(json!(done), response["output"]);
        for (i, item) in done.iter().enumerate() {
            let deltas = events
                .iter()
                .filter(|event| event["output_index"] == i)
                .filter_map(|event| event["delta"].as_str());
            let text =
                [&item["arguments"], &item["summary"][0]["text"], &item["content"][0]["text"]];
            let text = text.into_iter().find_map(Value::as_str).unwrap();
            assert_eq!(deltas.collect::<String>(), text);
        }
    }
}

#[test]
fn what_a_response_gave_is_taken_back_as_input() {
    let server = Server::start(&[]);
    let parameters = &weather_tool()["function"]["parameters"];
    let tools = json!([{"type": "function", "name": "get_weather", "parameters": parameters}]);
    let question = json!({"role": "user", "content": "What is the weather in Paris?"});
    let body = json!({"input": [question], "tools": tools, "tool_choice":
        {"type": "function", "name": "get_weather"}, "temperature": 0});
    let first = server.post(RESPONSES, &body).json();
    let mut input = vec![question];
    input.extend(first["output"].as_array().unwrap().iter().cloned());
    let call_id = &input.last().unwrap()["call_id"];
    input.push(json!({"type": "function_call_output", "call_id": call_id, "output": "sunny"}));
    let body = json!({"input": input, "tools": tools, "temperature": 0,
        "instructions": "Be brief.", "max_output_tokens": 30});
    let reply = server.post(RESPONSES, &body);
    assert_eq!(reply.status, 200, "{reply:?}");
    let second = reply.json();
    assert_eq!(second["instructions"], "Be brief.");
    if second["usage"]["output_tokens"] == 30 {
        assert_eq!(second["status"], "incomplete");
        assert_eq!(second["incomplete_details"]["reason"], "max_output_tokens");
    }
}

#[test]
fn an_answer_that_is_cut_off_says_so() {
    let server = Server::start(&[]);
    let body = json!({"input": "Explain Macros.", "temperature": 0, "max_output_tokens": 40});
    let whole = server.post(RESPONSES, &body).json();
    assert_eq!(whole["status"], "incomplete");
    assert_eq!(whole["incomplete_details"]["reason"], "max_output_tokens");
    let statuses: Vec<&Value> =
        whole["output"].as_array().unwrap().iter().map(|item| &item["status"]).collect();
    assert_eq!(statuses, ["completed", "incomplete"]);
    let reply = server.post(RESPONSES, &with(body, &json!({"stream": true})));
    assert!(reply.body.contains("event: response.incomplete"), "{reply:?}");

    // In the middle of a call: it is none yet.
    let body = with(
        question("What is the weather in Paris?"),
        &json!({"tools": [weather_tool()], "tool_choice": "required", "max_tokens": 32}),
    );
    let whole = server.chat(&body);
    assert_eq!(whole["choices"][0]["finish_reason"], "length", "{whole}");
    assert!(whole["choices"][0]["message"].get("tool_calls").is_none(), "{whole}");
}

#[test]
fn the_model_is_listed() {
    let server = Server::start(&["--model-name", "org/tiny"]);
    let list = server.get("/v1/models").json();
    assert_eq!(list["data"][0]["id"], "org/tiny");
    assert_eq!(server.get("/v1/models/org/tiny").json(), list["data"][0]);
    let whole =
        server.chat(&with(question("Hello."), &json!({"model": "org/tiny", "max_tokens": 2})));
    assert_eq!(whole["model"], "org/tiny");
}

#[test]
fn the_page_allows_no_script_but_its_own() {
    let server = Server::start(&[]);
    let reply = server.get("/");
    assert_eq!(reply.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = reply.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'nonce-"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    let nonce = policy.split('\'').find_map(|part| part.strip_prefix("nonce-")).unwrap();
    assert_eq!(reply.body.matches(&format!("nonce=\"{nonce}\"")).count(), 2);
    assert_ne!(server.get("/").header("content-security-policy"), Some(policy));
    // Whatever the model says stays text.
    for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", " on"] {
        let script = reply.body.split("<script").nth(1).unwrap();
        assert!(way == " on" || !script.contains(way), "{way}");
    }
}

#[test]
fn other_origins_come_in_only_when_they_are_named() {
    let ask = |server: &Server, origin: &str| {
        let origin = format!("Origin: {origin}");
        let preflight = [
            origin.as_str(),
            "Access-Control-Request-Method: POST",
            "Access-Control-Request-Headers: content-type, authorization",
        ];
        let asked = server.request("OPTIONS", "/v1/chat/completions", &preflight, "");
        let got = server.request("GET", "/health", &[&origin], "");
        let allowed = got.header("access-control-allow-origin").map(str::to_owned);
        let before = asked.header("access-control-allow-origin").map(str::to_owned);
        assert_eq!(allowed, before);
        if allowed.is_some() {
            let headers = asked.header("access-control-allow-headers").unwrap();
            assert_eq!((asked.status, headers), (200, "content-type, authorization"));
        }
        allowed
    };
    let page = "http://localhost:5173";
    assert_eq!(ask(&Server::start(&[]), page), None);
    let named = Server::start(&["--cors-origin", page, "--api-key", "k"]);
    assert_eq!(ask(&named, page).as_deref(), Some(page));
    assert_eq!(ask(&named, "https://example.com"), None);
    assert_eq!(ask(&Server::start(&["--cors-origin", "*"]), page).as_deref(), Some("*"));
}
