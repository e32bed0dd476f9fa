//! Wire formats without an engine: requests as the library takes them, and events as they are
//! written.

use std::time::Duration;

use gpt_oss_mlx::chat::events::{ChatEvent, Defect, EndReason};
use gpt_oss_mlx::chat::{AssistantMessage, Message, ReasoningEffort, ToolCall};
use gpt_oss_mlx::constrain::{Enforce, ResponseFormat, ToolChoice};
use gpt_oss_mlx::engine::{EngineEvent, Prompt, Usage};
use gpt_oss_mlx::{FinishReason, Visible};
use serde_json::{Value, json};

use crate::chat::Named;
use crate::chat::request::ChatCompletionRequest;
use crate::chat::response::Answer;
use crate::chat::stream::ChatStream;
use crate::completions::request::CompletionRequest;
use crate::completions::response::{Answer as Text, CompletionStream};
use crate::errors::ApiError;
use crate::generate::Streaming;
use crate::metrics::Metrics;
use crate::responses::request::ResponsesRequest;
use crate::responses::response::Response;
use crate::responses::stream::ResponseStream;
use crate::sse::{Encoder, Frame};

fn named() -> Named {
    Named {
        id: "id-1".into(),
        object: "chat.completion",
        created: 7,
        model: "m".into(),
        system_fingerprint: "fp",
    }
}

fn chat(event: ChatEvent) -> EngineEvent {
    EngineEvent::Chat(event)
}

fn message_end() -> EngineEvent {
    chat(ChatEvent::MessageEnd {
        channel: None,
        recipient: None,
        content_type: None,
        header: String::new(),
        defect: None,
    })
}

fn finished(reason: FinishReason) -> EngineEvent {
    let mut usage = Usage::default();
    (usage.prompt_tokens, usage.cached_tokens) = (10, 4);
    (usage.completion_tokens, usage.reasoning_tokens) = (5, 2);
    EngineEvent::Finished { reason, usage }
}

fn analysis(text: &str) -> EngineEvent {
    chat(ChatEvent::AnalysisDelta { text: text.into() })
}

fn answer(text: &str) -> EngineEvent {
    chat(ChatEvent::FinalDelta { text: text.into() })
}

fn turn_end(reason: EndReason) -> EngineEvent {
    chat(ChatEvent::TurnEnd { reason })
}

/// A turn that reasons twice and answers.
fn plain_turn() -> Vec<EngineEvent> {
    vec![
        EngineEvent::Queued { prompt_tokens: 10, ahead: 0 },
        EngineEvent::Prefill { done: 10, total: 10 },
        analysis("One"),
        analysis(" two."),
        message_end(),
        analysis("Three."),
        message_end(),
        answer("Hi"),
        answer("!"),
        message_end(),
        turn_end(EndReason::Stop),
        finished(FinishReason::Stop),
    ]
}

/// A turn that says what it is about to do, and calls two tools.
fn calling_turn(end: EndReason) -> Vec<EngineEvent> {
    let started = |index, name: &str| {
        chat(ChatEvent::ToolCallStarted { index, name: name.into(), known: true })
    };
    let arguments =
        |index, text: &str| chat(ChatEvent::ArgumentsDelta { index, text: text.into() });
    vec![
        analysis("Hm."),
        message_end(),
        chat(ChatEvent::CommentaryDelta { text: "Let me look.".into() }),
        message_end(),
        started(0, "f"),
        arguments(0, "{\"a\""),
        arguments(0, ":1}"),
        message_end(),
        started(1, "g"),
        arguments(1, "{}"),
        message_end(),
        turn_end(end),
        finished(FinishReason::Stop),
    ]
}

fn frames(encoder: &mut impl Encoder, events: Vec<EngineEvent>) -> Vec<Frame> {
    let mut frames = encoder.start();
    frames.extend(events.into_iter().flat_map(|event| encoder.push(event)));
    frames
}

/// The data of frames; random names become their kinds.
fn values(frames: &[Frame]) -> Vec<Value> {
    let value = |frame: &Frame| match frame.data.as_str() {
        "[DONE]" => "[DONE]".into(),
        data => plain(serde_json::from_str(data).unwrap()),
    };
    frames.iter().map(value).collect()
}

fn plain(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                let text = value.as_str().unwrap_or_default();
                if let Some(end) = text.find('_').filter(|_| name.ends_with("id")) {
                    assert_eq!(text.len(), end + 33, "{text}");
                    *value = text[..end].into();
                } else {
                    *value = plain(value.take());
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = plain(item.take())),
        _ => {}
    }
    value
}

fn collected(events: Vec<EngineEvent>) -> Value {
    let mut answer = Answer::new(None);
    events.into_iter().for_each(|event| answer.push(event));
    plain(serde_json::to_value(answer.completion(&named())).unwrap())
}

#[test]
fn a_chat_completion_has_all_that_the_turn_said() {
    let usage = json!({
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2}
    });
    let whole = json!({
        "id": "id-1",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "system_fingerprint": "fp",
        "choices": [{
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Hi!",
                "reasoning_content": "One two.\n\nThree.",
                "refusal": null
            },
            "logprobs": null,
            "finish_reason": "stop"
        }],
        "usage": usage
    });
    assert_eq!(collected(plain_turn()), whole);

    let calls = json!({
        "role": "assistant",
        "content": "Let me look.",
        "reasoning_content": "Hm.",
        "refusal": null,
        "tool_calls": [
            {"id": "call", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}},
            {"id": "call", "type": "function", "function": {"name": "g", "arguments": "{}"}}
        ]
    });
    let whole = collected(calling_turn(EndReason::ToolCalls));
    assert_eq!(whole["choices"][0]["message"], calls);
    assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls");
    // Cut off before the model waits for results.
    let cut = collected(calling_turn(EndReason::Length));
    assert_eq!(cut["choices"][0]["message"].get("tool_calls"), None);
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
    assert_eq!(collected(calling_turn(EndReason::Cancelled)), Value::Null);
}

#[test]
fn chunks_of_a_chat_completion_are_deltas() {
    let chunk = |delta: Value, reason: Value| {
        json!({
            "id": "id-1",
            "object": "chat.completion.chunk",
            "created": 7,
            "model": "m",
            "system_fingerprint": "fp",
            "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason}]
        })
    };
    let plain = |delta| chunk(delta, Value::Null);
    let stream = |include_usage, events| {
        let streaming = Streaming { on: true, include_usage };
        values(&frames(&mut ChatStream::new(named(), streaming, None), events))
    };
    let expected = vec![
        plain(json!({"role": "assistant", "content": ""})),
        plain(json!({"reasoning_content": "One"})),
        plain(json!({"reasoning_content": " two."})),
        plain(json!({"reasoning_content": "\n\nThree."})),
        plain(json!({"content": "Hi"})),
        plain(json!({"content": "!"})),
        chunk(json!({}), "stop".into()),
        "[DONE]".into(),
    ];
    assert_eq!(stream(false, plain_turn()), expected);

    let with_usage = stream(true, plain_turn());
    assert_eq!(with_usage.len(), expected.len() + 1);
    assert!(with_usage[..7].iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)));
    assert_eq!(with_usage[7]["choices"], json!([]));
    assert_eq!(with_usage[7]["usage"]["total_tokens"], 15);

    let call = |call: Value| plain(json!({"tool_calls": [call]}));
    let begun = |index: usize, name: &str| {
        call(json!({"index": index, "id": "call", "type": "function",
            "function": {"name": name, "arguments": ""}}))
    };
    let more =
        |index: usize, text: &str| call(json!({"index": index, "function": {"arguments": text}}));
    let expected = vec![
        plain(json!({"role": "assistant", "content": ""})),
        plain(json!({"reasoning_content": "Hm."})),
        plain(json!({"content": "Let me look."})),
        begun(0, "f"),
        more(0, "{\"a\""),
        more(0, ":1}"),
        begun(1, "g"),
        more(1, "{}"),
        chunk(json!({}), "tool_calls".into()),
        "[DONE]".into(),
    ];
    assert_eq!(stream(false, calling_turn(EndReason::ToolCalls)), expected);
}

#[test]
fn a_stream_that_fails_ends_with_the_error() {
    let streaming = Streaming { on: true, include_usage: false };
    let error = ApiError::stopping();
    let expected = json!({"error": {"message": "the server is shutting down",
        "type": "server_error", "param": null, "code": "shutting_down"}});
    let mut encoder = ChatStream::new(named(), streaming, None);
    assert_eq!(values(&encoder.fail(&error)).first(), Some(&expected));
    let cancelled =
        vec![answer("Hi"), turn_end(EndReason::Cancelled), finished(FinishReason::Cancelled)];
    assert_eq!(values(&frames(&mut encoder, cancelled)).last(), Some(&expected));
    let mut encoder = CompletionStream::new(Text::new(named(), None), streaming);
    let cancelled = vec![EngineEvent::Text("a".into()), finished(FinishReason::Cancelled)];
    assert_eq!(values(&frames(&mut encoder, cancelled)).last(), Some(&expected));
}

#[test]
fn a_completion_is_text() {
    let events = || {
        ["fn", " main"]
            .map(|text| EngineEvent::Text(text.into()))
            .into_iter()
            .chain([finished(FinishReason::Length)])
    };
    let mut whole = Text::new(named(), None);
    events().for_each(|event| whole.push(event));
    let whole: Value = serde_json::from_str(&whole.completion().unwrap()).unwrap();
    let choice = |text: &str, reason: Value| json!([{"index": 0, "text": text, "logprobs": null, "finish_reason": reason}]);
    assert_eq!(whole["choices"], choice("fn main", "length".into()));
    assert_eq!(whole["usage"]["total_tokens"], 15);
    let streaming = Streaming { on: true, include_usage: true };
    let mut stream = CompletionStream::new(Text::new(named(), None), streaming);
    let chunks = values(&frames(&mut stream, events().collect()));
    let choices: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"]).collect();
    let expected = [
        choice("fn", Value::Null),
        choice(" main", Value::Null),
        choice("", "length".into()),
        json!([]),
        Value::Null,
    ];
    assert_eq!(choices, expected.iter().collect::<Vec<_>>());
    assert_eq!(chunks[3]["usage"]["total_tokens"], 15);
}

fn response_stream(body: &Value) -> ResponseStream {
    let request = ResponsesRequest::read(body, "m", 100).unwrap();
    ResponseStream::new(Response::new(format!("resp_{:032}", 1), 7, "m".into(), request.echo), None)
}

/// Of each event its type and what it is about.
fn outline(frames: &[Frame]) -> Vec<String> {
    let values = frames.iter().map(|frame| serde_json::from_str::<Value>(&frame.data).unwrap());
    let line = |(i, (frame, event)): (usize, (&Frame, Value))| {
        assert_eq!(event["sequence_number"], i);
        assert_eq!(event["type"], frame.event.unwrap());
        let field = |name: &str| event[name].as_str().map(|text| format!(" {text:?}"));
        let about = ["delta", "text", "arguments"].into_iter().find_map(field);
        let item = event["item"]["type"].as_str().map(|kind| format!(" {kind}"));
        let part = event["part"]["type"].as_str().map(|kind| format!(" {kind}"));
        let index = event["output_index"].as_u64().map(|i| format!(" [{i}]"));
        let parts = [index, item, part, about].into_iter().flatten().collect::<String>();
        format!("{}{parts}", event["type"].as_str().unwrap().trim_start_matches("response."))
    };
    frames.iter().zip(values).enumerate().map(line).collect()
}

#[test]
fn a_response_is_a_sequence_of_items() {
    let mut stream = response_stream(&json!({"input": "Hi."}));
    let outline = outline(&frames(&mut stream, calling_turn(EndReason::ToolCalls)));
    let expected = [
        "created",
        "in_progress",
        "output_item.added [0] reasoning",
        "content_part.added [0] reasoning_text",
        "reasoning_text.delta [0] \"Hm.\"",
        "reasoning_text.done [0] \"Hm.\"",
        "content_part.done [0] reasoning_text",
        "output_item.done [0] reasoning",
        "output_item.added [1] message",
        "content_part.added [1] output_text",
        "output_text.delta [1] \"Let me look.\"",
        "output_text.done [1] \"Let me look.\"",
        "content_part.done [1] output_text",
        "output_item.done [1] message",
        "output_item.added [2] function_call",
        "function_call_arguments.delta [2] \"{\\\"a\\\"\"",
        "function_call_arguments.delta [2] \":1}\"",
        "function_call_arguments.done [2] \"{\\\"a\\\":1}\"",
        "output_item.done [2] function_call",
        "output_item.added [3] function_call",
        "function_call_arguments.delta [3] \"{}\"",
        "function_call_arguments.done [3] \"{}\"",
        "output_item.done [3] function_call",
        "completed",
    ];
    assert_eq!(outline, expected);
    let response = plain(serde_json::to_value(stream.into_response().unwrap()).unwrap());
    let items = json!([
        {"type": "reasoning", "id": "rs", "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm."}], "status": "completed"},
        {"type": "message", "id": "msg", "role": "assistant", "content":
            [{"type": "output_text", "text": "Let me look.", "annotations": [], "logprobs": []}],
            "status": "completed"},
        {"type": "function_call", "id": "fc", "call_id": "call", "name": "f",
            "arguments": "{\"a\":1}", "status": "completed"},
        {"type": "function_call", "id": "fc", "call_id": "call", "name": "g",
            "arguments": "{}", "status": "completed"}
    ]);
    assert_eq!(response["output"], items);
    assert_eq!(
        response["usage"],
        json!({
            "input_tokens": 10,
            "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 2},
            "total_tokens": 15
        })
    );
}

#[test]
fn reasoning_is_a_summary_where_one_is_asked_for() {
    let mut stream = response_stream(&json!({"input": "Hi.", "reasoning": {"summary": "auto"}}));
    let events = vec![
        analysis("Hm."),
        message_end(),
        answer("Hi"),
        turn_end(EndReason::Stop),
        finished(FinishReason::Stop),
    ];
    let outline = outline(&frames(&mut stream, events));
    let expected = [
        "output_item.added [0] reasoning",
        "reasoning_summary_part.added [0] summary_text",
        "reasoning_summary_text.delta [0] \"Hm.\"",
        "reasoning_summary_text.done [0] \"Hm.\"",
        "reasoning_summary_part.done [0] summary_text",
        "output_item.done [0] reasoning",
    ];
    assert_eq!(outline[2..8], expected);
    let response = serde_json::to_value(stream.into_response().unwrap()).unwrap();
    assert_eq!(response["output"][0]["summary"], json!([{"type": "summary_text", "text": "Hm."}]));
    assert_eq!(response["output"][0].get("content"), None);
}

#[test]
fn a_response_that_is_cut_off_has_an_incomplete_item() {
    let mut stream = response_stream(&json!({"input": "Hi."}));
    let end = chat(ChatEvent::MessageEnd {
        channel: None,
        recipient: None,
        content_type: None,
        header: String::new(),
        defect: Some(Defect::NotEnded),
    });
    let events =
        vec![answer("Hi"), end, turn_end(EndReason::Length), finished(FinishReason::Length)];
    let frames = frames(&mut stream, events);
    assert_eq!(frames.last().unwrap().event, Some("response.incomplete"));
    let response = serde_json::to_value(stream.into_response().unwrap()).unwrap();
    assert_eq!(response["output"][0]["status"], "incomplete");
    assert_eq!(response["incomplete_details"], json!({"reason": "max_output_tokens"}));

    let mut stream = response_stream(&json!({"input": "Hi."}));
    stream.start();
    stream.push(answer("Hi"));
    let failed = stream.fail(&ApiError::stopping());
    assert_eq!(failed.last().unwrap().event, Some("response.failed"));
    let response: Value = serde_json::from_str(&failed.last().unwrap().data).unwrap();
    assert_eq!(response["response"]["status"], "failed");
    assert_eq!(response["response"]["output"][0]["status"], "incomplete");
    assert!(stream.into_response().is_none());
}

#[test]
fn a_chat_request_says_how_to_generate() {
    let body = json!({
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi."}]}
        ],
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "seed": -1,
        "presence_penalty": 1, "frequency_penalty": -1, "repetition_penalty": 1.5,
        "logit_bias": {"5": -100, "6": 3}, "stop": ["a", "b"], "max_completion_tokens": 9,
        "logprobs": true, "top_logprobs": 2, "reasoning_effort": "low",
        "stream": true, "stream_options": {"include_usage": true, "include_obfuscation": false},
        "tools": [{"type": "function", "function": {"name": "f", "strict": true}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}}, "user": "u"
    });
    let request = ChatCompletionRequest::read(&body, "m", 100).unwrap();
    assert_eq!(request.streaming, Streaming { on: true, include_usage: true });
    assert_eq!(request.conversation.reasoning_effort, Some(ReasoningEffort::Low));
    assert_eq!(request.conversation.messages, [Message::system("Be brief."), Message::user("Hi.")]);
    let options = request.options;
    assert_eq!(options.stop, ["a", "b"]);
    assert_eq!(options.tool_choice, ToolChoice::Function("f".into()));
    assert_eq!((options.generate.max_tokens, options.generate.logprobs), (9, Some(2)));
    let sampling = options.generate.sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k), (0.5, 0.9, 40));
    assert_eq!((sampling.min_p, sampling.seed), (0.1, u64::MAX));
    assert_eq!((sampling.presence_penalty, sampling.frequency_penalty), (1.0, -1.0));
    assert_eq!(sampling.repetition_penalty, 1.5);
    assert_eq!(sampling.logit_bias, [(5, -100.0), (6, 3.0)].into());

    let hi = json!({"messages": [{"role": "user", "content": "Hi."}]});
    let plain = ChatCompletionRequest::read(&hi, "m", 100).unwrap();
    let options = plain.options;
    assert_eq!(options.generate.sampling.temperature, 1.0);
    assert_eq!((options.generate.max_tokens, options.generate.logprobs), (100, None));
    assert_eq!((options.response_format, options.enforce), (None, None));
    // Without a seed no two requests are alike.
    let again = ChatCompletionRequest::read(&hi, "m", 100).unwrap();
    assert_ne!(again.options.generate.sampling.seed, options.generate.sampling.seed);
}

#[test]
fn strict_tools_are_enforced_and_others_are_not() {
    let read = |strict: Value| {
        let body = json!({"messages": [{"role": "user", "content": "Hi."}],
            "tools": [{"type": "function", "function": {"name": "f", "strict": strict}}]});
        ChatCompletionRequest::read(&body, "m", 100).unwrap().options.enforce
    };
    assert_eq!(read(true.into()), Some(Enforce::Tools));
    assert_eq!(read(false.into()), None);
    assert_eq!(read(Value::Null), None);
}

#[test]
fn the_model_is_told_of_a_schema_behind_the_instructions() {
    let schema = json!({"type": "object"});
    let format = json!({"type": "json_schema", "json_schema":
        {"name": "book", "description": "A book.", "schema": schema}});
    let body = json!({"messages": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}
    ], "response_format": format});
    let request = ChatCompletionRequest::read(&body, "m", 100).unwrap();
    assert_eq!(
        request.conversation.messages,
        [
            Message::system("Be brief."),
            Message::response_format("book", Some("A book."), &schema),
            Message::user("Hi."),
        ]
    );
    assert_eq!(request.options.response_format, Some(ResponseFormat::JsonSchema(schema)));
}

#[test]
fn a_completion_request_takes_text_or_ids() {
    let prompt =
        |value: Value| CompletionRequest::read(&json!({"prompt": value}), "m").unwrap().prompt;
    assert_eq!(prompt("a".into()), Prompt::Text("a".into()));
    assert_eq!(prompt(json!(["a"])), Prompt::Text("a".into()));
    assert_eq!(prompt(json!([1, 2])), Prompt::Ids(vec![1, 2]));
    assert_eq!(prompt(json!([[1, 2]])), Prompt::Ids(vec![1, 2]));
    let request = CompletionRequest::read(&json!({"prompt": "a"}), "m").unwrap();
    assert_eq!(request.options.generate.max_tokens, 16);
    assert_eq!(request.options.visible, Visible::Everything);
}

#[test]
fn items_of_a_turn_become_one_message() {
    let body = json!({
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [],
                "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "message", "role": "assistant", "content":
                [{"type": "output_text", "text": "Let me look."}]},
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "b", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": "sunny"},
            {"type": "function_call_output", "call_id": "b",
                "output": [{"type": "input_text", "text": "rain"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "So."}]},
            {"role": "assistant", "content": "Both."},
            {"role": "user", "content": "Thanks."}
        ],
        "tools": [{"type": "function", "name": "f", "description": "F.", "parameters": null}],
        "reasoning": {"effort": "high", "summary": "detailed"},
        "max_output_tokens": 9, "include": ["reasoning.encrypted_content"],
        "text": {"format": {"type": "json_object"}}
    });
    let request = ResponsesRequest::read(&body, "m", 100).unwrap();
    let called = AssistantMessage::new("Let me look.")
        .with_analysis("Hm.")
        .with_call(ToolCall::new("a", "f", "{}"))
        .with_call(ToolCall::new("b", "f", "{}"));
    let expected = [
        Message::system("Be brief."),
        Message::user("Weather?"),
        called.into(),
        Message::tool_result("a", "sunny"),
        Message::tool_result("b", "rain"),
        AssistantMessage::new("Both.").with_analysis("So.").into(),
        Message::user("Thanks."),
    ];
    assert_eq!(request.conversation.messages, expected);
    assert_eq!(request.conversation.reasoning_effort, Some(ReasoningEffort::High));
    assert_eq!(request.conversation.tools[0].description.as_deref(), Some("F."));
    assert_eq!(request.options.generate.max_tokens, 9);
    assert!(request.options.response_format.is_some());
    let echo = serde_json::to_value(&request.echo).unwrap();
    assert_eq!(echo["reasoning"], json!({"effort": "high", "summary": "detailed"}));
    assert_eq!(echo["text"], json!({"format": {"type": "json_object"}}));
}

#[test]
fn fields_of_the_conversation_are_named_as_the_request_names_them() {
    let param = |body: Value| ResponsesRequest::read(&body, "m", 100).unwrap_err().param.unwrap();
    let call = json!({"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"});
    let user = json!({"role": "user", "content": "Hi."});
    let output = |id: &str| json!({"type": "function_call_output", "call_id": id, "output": "x"});
    // Two items are one message.
    let reasoning =
        json!({"type": "reasoning", "summary": [{"type": "summary_text", "text": "a"}]});
    let items = json!([user, reasoning, call, output("b")]);
    assert_eq!(param(json!({"input": items})), "input[3].call_id");
    // Instructions are a message and no item.
    let body = json!({"instructions": "Be brief.", "input": [user, output("b")]});
    assert_eq!(param(body), "input[1].call_id");
    let tool =
        |parameters: Value| json!([{"type": "function", "name": "f", "parameters": parameters}]);
    let body = json!({"input": "Hi.", "tools": tool(json!({"type": "string"}))});
    assert_eq!(param(body), "tools[0].parameters.type");
}

#[test]
fn numbers_are_written_for_prometheus() {
    let metrics = Metrics::default();
    metrics.responded("/v1/models", 200);
    metrics.responded("/v1/models", 200);
    metrics.responded("/v1/models", 401);
    metrics.abandoned();
    let mut usage = Usage::default();
    usage.time_to_first_token = Duration::from_millis(300);
    usage.queued = Duration::from_secs(500);
    metrics.finished(&usage);
    let text = metrics.render(&Default::default());
    for line in [
        "gpt_oss_http_responses_total{endpoint=\"/v1/models\",status=\"200\"} 2",
        "gpt_oss_http_responses_total{endpoint=\"/v1/models\",status=\"401\"} 1",
        "gpt_oss_clients_gone_total 1",
        "gpt_oss_time_to_first_token_seconds_bucket{le=\"0.25\"} 0",
        "gpt_oss_time_to_first_token_seconds_bucket{le=\"0.5\"} 1",
        "gpt_oss_time_to_first_token_seconds_bucket{le=\"+Inf\"} 1",
        "gpt_oss_time_to_first_token_seconds_sum 0.3",
        "gpt_oss_queue_seconds_bucket{le=\"120\"} 0",
        "gpt_oss_queue_seconds_bucket{le=\"+Inf\"} 1",
        "gpt_oss_requests_running 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    // Each number has a kind, once.
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .filter(|family| family.ends_with("seconds"))
            .unwrap_or(name);
        let kind = format!("# TYPE {family} ");
        assert_eq!(text.matches(&kind).count(), 1, "{line}");
    }
}
