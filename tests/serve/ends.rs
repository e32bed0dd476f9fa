//! Starting and stopping.

#[cfg(unix)]
use serde_json::json;

use crate::client::{Server, program};
#[cfg(unix)]
use crate::client::{endless, question, read_reply, until, with};

#[cfg(unix)]
const CHAT: &str = "/v1/chat/completions";

#[cfg(unix)]
#[test]
fn a_stopping_server_finishes_what_runs_and_takes_nothing_new() {
    let mut server = Server::start(&["--grace", "100"]);
    let long =
        json!({"max_tokens": 3000, "stream": true, "stream_options": {"include_usage": true}});
    let running = server.begin(CHAT, &with(endless(), &long));
    server.await_metric("gpt_oss_requests_running", |n| n == 1);
    server.signal("-TERM");
    until(|| server.get("/health").status == 503, || server.log());
    assert_eq!(server.get("/health").json()["status"], "stopping");
    let reply = server.post(CHAT, &question("Hello."));
    assert_eq!(reply.status, 503, "{reply:?}");
    assert_eq!(reply.json()["error"]["code"], "shutting_down");
    assert_eq!(server.get("/metrics").status, 200);

    let chunks = read_reply(running).chunks();
    assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens"], 3000);
    assert!(server.ended().success(), "{}", server.log());
    assert!(server.log().contains("stopped"), "{}", server.log());
}

#[cfg(unix)]
#[test]
fn what_is_not_done_in_time_is_told_so() {
    for (args, signals) in [
        (["--grace", "0.3"], &["-TERM"][..]),
        // Whoever asks twice means it.
        (["--grace", "1000"], &["-INT", "-INT"]),
    ] {
        let mut server = Server::start(&args);
        let streamed = server.begin(CHAT, &with(endless(), &json!({"stream": true})));
        let whole = server.begin(CHAT, &endless());
        server.await_metric("gpt_oss_requests_running", |n| n == 2);
        for (i, name) in signals.iter().enumerate() {
            server.signal(name);
            if i == 0 {
                until(|| server.log().contains("stopping"), || server.log());
            }
        }
        let reply = read_reply(streamed);
        let events = reply.events();
        let last: serde_json::Value = serde_json::from_str(events.last().unwrap()).unwrap();
        assert_eq!(last["error"]["code"], "shutting_down", "{reply:?}");
        let reply = read_reply(whole);
        assert_eq!(reply.status, 503, "{reply:?}");
        assert!(server.ended().success(), "{}", server.log());
    }
}

#[test]
fn what_cannot_be_served_is_said_at_once() {
    let server = Server::start(&[]);
    let port = server.address.port().to_string();
    for (args, said) in [
        (&["--port", &port][..], "cannot listen at"),
        (&["--port", "0", "--model", "/nowhere"], "there is no such folder"),
        (&["--port", "0", "--api-key", ""], "the API key is empty"),
        (&["--port", "0", "--timeout=-1"], "--timeout"),
        (&["--port", "0", "--max-running", "0"], "max_running"),
    ] {
        let output = program().args(args).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && stderr.contains(said), "{args:?}: {stderr}");
        assert_eq!(output.stdout, b"", "{args:?}");
    }
}

#[test]
fn the_key_can_come_from_the_environment() {
    let output = program().args(["--port", "0"]).env("GPT_OSS_API_KEY", "").output();
    let stderr = String::from_utf8(output.unwrap().stderr).unwrap();
    assert!(stderr.contains("the API key is empty"), "{stderr}");
}
