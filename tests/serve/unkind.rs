//! Clients that vanish, stall, flood or talk nonsense.

use std::io::{Read, Write};

use serde_json::json;

use crate::client::{Server, endless, parse, question, read_reply, until, with};
use crate::example::known_answer;

const CHAT: &str = "/v1/chat/completions";

/// Reads until the text has come.
fn read_until(stream: &mut impl Read, text: &str) -> String {
    let (mut all, mut buffer) = (Vec::new(), [0; 1024]);
    loop {
        let n = stream.read(&mut buffer).unwrap();
        assert!(n > 0, "the server hung up after {}", String::from_utf8_lossy(&all));
        all.extend(&buffer[..n]);
        if String::from_utf8_lossy(&all).contains(text) {
            return String::from_utf8_lossy(&all).into_owned();
        }
    }
}

fn answers_right(server: &Server) {
    let whole = server.chat(&question("Explain Macros."));
    assert_eq!(whole["choices"][0]["message"]["content"], known_answer("Macros"));
}

#[test]
fn a_client_that_goes_away_cancels_its_request() {
    let server = Server::start(&["--max-running", "1"]);
    for (n, (path, body)) in [
        (CHAT, with(endless(), &json!({"stream": true}))),
        (CHAT, endless()),
        (
            "/v1/completions",
            json!({"prompt": "fn main", "max_tokens": 100_000, "stream": true,
                "logit_bias": {"2040": -100, "2041": -100, "2047": -100}}),
        ),
        (
            "/v1/responses",
            json!({"input": "Explain Macros.", "stream": true, "max_output_tokens": 100_000,
                "logit_bias": {"2040": -100, "2041": -100, "2047": -100}}),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let mut stream = server.begin(path, &body);
        if body.get("stream").is_some() {
            read_until(&mut stream, "data: {");
        }
        server.await_metric("gpt_oss_requests_running", |n| n == 1);
        drop(stream);
        server.await_metric("gpt_oss_requests_running", |n| n == 0);
        let cancelled = u64::try_from(n).unwrap() + 1;
        server.await_metric("gpt_oss_requests_total{end=\"cancelled\"}", |n| n == cancelled);
        assert_eq!(server.metric("gpt_oss_clients_gone_total"), cancelled);
    }
    answers_right(&server);
}

#[test]
fn a_waiting_client_that_goes_away_is_not_waited_for() {
    let server = Server::start(&["--max-running", "1"]);
    let mut first = server.begin(CHAT, &with(endless(), &json!({"stream": true})));
    read_until(&mut first, "data: {");
    let second = server.begin(CHAT, &question("Explain Macros."));
    server.await_metric("gpt_oss_requests_waiting", |n| n == 1);
    drop(second);
    server.await_metric("gpt_oss_requests_waiting", |n| n == 0);
    drop(first);
    answers_right(&server);
}

#[test]
fn a_full_queue_says_when_to_come_again() {
    let server = Server::start(&["--max-running", "1", "--max-waiting", "1"]);
    let mut first = server.begin(CHAT, &with(endless(), &json!({"stream": true})));
    read_until(&mut first, "data: {");
    server.await_metric("gpt_oss_requests_running", |n| n == 1);
    let second = server.begin(CHAT, &question("Explain Macros."));
    server.await_metric("gpt_oss_requests_waiting", |n| n == 1);
    for path in [CHAT, "/v1/completions", "/v1/responses"] {
        let body = match path {
            CHAT => question("Hello."),
            "/v1/completions" => json!({"prompt": "a"}),
            _ => json!({"input": "Hello."}),
        };
        let reply = server.post(path, &body);
        assert_eq!(reply.status, 429, "{reply:?}");
        assert_eq!(reply.header("retry-after"), Some("1"));
        assert_eq!(reply.json()["error"]["code"], "rate_limit_exceeded");
    }
    // Whoever was let in is served.
    drop(first);
    let reply = read_reply(second).json();
    assert_eq!(reply["choices"][0]["message"]["content"], known_answer("Macros"));
}

#[test]
fn a_request_that_takes_too_long_ends() {
    let server = Server::start(&["--timeout", "0.5"]);
    let reply = server.post(CHAT, &endless());
    assert_eq!(reply.status, 408, "{reply:?}");
    assert_eq!(reply.json()["error"]["type"], "timeout_error");
    assert_eq!(reply.header("x-should-retry"), Some("false"));

    let reply = server.post(CHAT, &with(endless(), &json!({"stream": true})));
    assert_eq!(reply.status, 200);
    let events = reply.events();
    assert!(events.len() > 5 && !events.contains(&"[DONE]"), "{reply:?}");
    let last: serde_json::Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "timeout");

    let body = json!({"input": "Explain Macros.", "stream": true, "max_output_tokens": 100_000,
        "logit_bias": {"2040": -100, "2041": -100, "2047": -100}});
    let reply = server.post("/v1/responses", &body);
    let last: serde_json::Value = serde_json::from_str(reply.events().last().unwrap()).unwrap();
    assert_eq!(
        (&last["type"], &last["response"]["status"]),
        (&json!("response.failed"), &json!("failed"))
    );
    assert_eq!(last["response"]["error"]["code"], "server_error");
}

#[test]
fn nonsense_and_stalled_clients_harm_nobody() {
    let server = Server::start(&[]);
    // Some say half of something and wait.
    let stalled: Vec<_> = (0..100)
        .map(|i| {
            let mut stream = server.connect();
            let text = "POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\n\
                        Content-Length: 1000\r\n\r\n{\"messages\"";
            stream.write_all(&text.as_bytes()[..i % text.len()]).unwrap();
            stream
        })
        .collect();
    // Some talk nonsense.
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n\r\n\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        &[b'x'; 100_000],
    ] {
        let mut stream = server.connect();
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        if !answer.is_empty() {
            let status = parse(&answer).status;
            assert!(
                (400..500).contains(&status),
                "{status}: {:?}",
                &garbage[..20.min(garbage.len())]
            );
        }
    }
    // Some ask and never read: what they do not read does not pile up.
    let deaf: Vec<_> =
        (0..4).map(|_| server.begin(CHAT, &with(endless(), &json!({"stream": true})))).collect();
    answers_right(&server);
    drop((stalled, deaf));
    server.await_metric("gpt_oss_requests_running", |n| n == 0);
    answers_right(&server);
}

#[test]
fn neither_questions_nor_answers_are_logged() {
    let server = Server::start(&["--log", "trace", "--api-key", "canary-key"]);
    let headers = ["Content-Type: application/json", "Authorization: Bearer canary-key"];
    let chat =
        |body: &serde_json::Value| server.request("POST", CHAT, &headers, &body.to_string()).status;
    assert_eq!(chat(&question("Explain Macros. canary-question")), 200);
    assert_eq!(
        chat(&with(question("canary-question"), &json!({"stream": true, "max_tokens": 5}))),
        200
    );
    assert_eq!(chat(&with(question("canary-question"), &json!({"canary-field": 1}))), 400);
    assert_eq!(chat(&with(question("a"), &json!({"model": "canary-model"}))), 404);
    assert_eq!(chat(&with(question("a"), &json!({"reasoning_effort": "canary-effort"}))), 400);
    assert_eq!(
        chat(&with(question("a"), &json!({"logit_bias": {"9999999": 1}, "stop": "canary-stop"}))),
        400
    );
    // One that the engine refuses, with a message that names the tool.
    let tool = json!([{"type": "function", "function":
        {"name": "canary-tool", "strict": true, "parameters": {"type": "object", "if": {}}}}]);
    assert_eq!(chat(&with(question("a"), &json!({"tools": tool}))), 400);
    server.request("POST", "/v1/canary-path?canary-query", &headers, "canary-body");
    server.request("GET", "/v1/models/canary-model", &headers, "");
    until(|| server.log().matches("finished").count() == 2, || server.log());
    let log = server.whole_log();
    assert!(!log.contains("canary"), "{log}");
    let said = log.contains("declarative") || log.contains("The user asks");
    assert!(!said, "{log}");
    // What it is for.
    assert!(log.contains("prompt_tokens="), "{log}");
    assert!(log.contains("status=404"), "{log}");
}
