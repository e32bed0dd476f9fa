//! The program as a child, and a client that can be made to misbehave.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::example;

/// Longer than anything here takes: what hangs fails.
const LIMIT: Duration = Duration::from_secs(120);

/// A running server; it is killed when dropped.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

/// A whole response.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        let header = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        header.map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The data of server-sent events.
    pub fn events(&self) -> Vec<&str> {
        assert_eq!(self.header("content-type"), Some("text/event-stream"), "{self:?}");
        self.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect()
    }

    /// The events as JSON, but for `[DONE]`, which must be the last.
    pub fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop(), Some("[DONE]"), "{self:?}");
        events.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }
}

/// The program, ready to be given arguments.
pub fn program() -> Command {
    let mut command = example::example("serve");
    command.env_remove("GPT_OSS_API_KEY");
    command
}

impl Server {
    /// The bundled model, at a free port.
    pub fn start(args: &[&str]) -> Self {
        let mut command = program();
        command.args(["--port", "0"]).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (stderr, kept) = (child.stderr.take().unwrap(), Arc::clone(&log));
        let reader = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                *kept.lock().unwrap() += &(line + "\n");
            }
        });
        let address = line.trim().strip_prefix("http://").and_then(|rest| rest.strip_suffix('/'));
        let Some(address) = address else {
            reader.join().unwrap();
            panic!("{line:?}, {}", log.lock().unwrap());
        };
        Self { child, address: address.parse().unwrap(), log, reader: Some(reader) }
    }

    /// A connection on which nothing was said yet.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// Sends bytes; returns what comes until the server hangs up.
    pub fn raw(&self, bytes: &[u8]) -> Reply {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        read_reply(stream)
    }

    pub fn request(&self, method: &str, path: &str, headers: &[&str], body: &str) -> Reply {
        self.raw(self.head(method, path, headers, body).as_bytes())
    }

    /// The text of a request.
    pub fn head(&self, method: &str, path: &str, headers: &[&str], body: &str) -> String {
        let mut text = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|header| header.starts_with("Host:")) {
            text += &format!("Host: {}\r\n", self.address);
        }
        for header in headers {
            text += &format!("{header}\r\n");
        }
        if !body.is_empty() && !headers.iter().any(|header| header.starts_with("Content-Length:")) {
            text += &format!("Content-Length: {}\r\n", body.len());
        }
        text + "\r\n" + body
    }

    pub fn get(&self, path: &str) -> Reply {
        self.request("GET", path, &[], "")
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.request("POST", path, &["Content-Type: application/json"], &body.to_string())
    }

    /// A chat completion.
    pub fn chat(&self, body: &Value) -> Value {
        let reply = self.post("/v1/chat/completions", body);
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()
    }

    /// Sends a request and leaves the answer to be read.
    pub fn begin(&self, path: &str, body: &Value) -> TcpStream {
        let mut stream = self.connect();
        let head = self.head("POST", path, &["Content-Type: application/json"], &body.to_string());
        stream.write_all(head.as_bytes()).unwrap();
        stream
    }

    /// One of the numbers of `/metrics`.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// Waits until a number of `/metrics` is as it should be.
    pub fn await_metric(&self, name: &str, wanted: impl Fn(u64) -> bool) {
        until(|| wanted(self.metric(name)), || format!("{name} is {}", self.metric(name)));
    }

    #[cfg(unix)]
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    /// Waits until it has ended by itself.
    pub fn ended(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < LIMIT, "the server goes on: {}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The whole log, once it has ended.
    pub fn whole_log(mut self) -> String {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.reader.take().unwrap().join().unwrap();
        self.log()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let (Some(reader), false) = (self.reader.take(), thread::panicking()) {
            reader.join().unwrap();
            assert!(!self.log().contains("panicked"), "{}", self.log());
        }
    }
}

pub fn until(done: impl Fn() -> bool, state: impl Fn() -> String) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < LIMIT, "{}", state());
        thread::sleep(Duration::from_millis(20));
    }
}

/// Reads a response until the server hangs up.
pub fn read_reply(mut stream: TcpStream) -> Reply {
    let mut bytes = Vec::new();
    // What was read before a reset counts.
    let _ = stream.read_to_end(&mut bytes);
    parse(&bytes)
}

pub fn parse(bytes: &[u8]) -> Reply {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {text:?}"));
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap().parse().unwrap();
    let header = |line: &str| line.split_once(": ").map(|(a, b)| (a.to_owned(), b.to_owned()));
    let mut reply =
        Reply { status, headers: lines.filter_map(header).collect(), body: body.to_owned() };
    if reply.header("transfer-encoding") == Some("chunked") {
        let (start, mut rest) = (head.len() + 4, String::new());
        let mut at = &bytes[start..];
        // Without its last chunk a body is kept as far as it came.
        while let Some(end) = at.windows(2).position(|pair| pair == b"\r\n") {
            let length = std::str::from_utf8(&at[..end]).unwrap();
            let length = usize::from_str_radix(length, 16).unwrap();
            let Some(chunk) = at.get(end + 2..end + 2 + length) else { break };
            rest += std::str::from_utf8(chunk).unwrap();
            at = at.get(end + 2 + length + 2..).unwrap_or_default();
        }
        reply.body = rest;
    }
    reply
}

/// A chat with one question.
pub fn question(text: &str) -> Value {
    json!({"messages": [{"role": "user", "content": text}], "temperature": 0})
}

/// The same object with other fields.
pub fn with(mut object: Value, fields: &Value) -> Value {
    for (name, value) in fields.as_object().unwrap() {
        object[name] = value.clone();
    }
    object
}

/// A chat that goes on until somebody ends it.
pub fn endless() -> Value {
    // The tokens with which the bundled model ends a turn.
    let bias = json!({"2040": -100, "2041": -100, "2047": -100});
    with(question("Explain Macros."), &json!({"logit_bias": bias, "max_tokens": 100_000}))
}

/// A function that the bundled model was taught to call.
pub fn weather_tool() -> Value {
    json!({
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city.",
            "strict": true,
            "parameters": {
                "type": "object",
                "properties": {"location": {"type": "string"}},
                "required": ["location"],
                "additionalProperties": false
            }
        }
    })
}
