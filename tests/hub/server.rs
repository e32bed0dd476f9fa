//! A Hub of one repository, on this machine, that misbehaves on demand.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, sleep};
use std::time::Duration;

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use serde_json::{Value, json};

/// The commit that the repository is at.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The repository.
pub const NAME: &str = "someone/a-model";

/// What a server does instead of answering as it should.
#[derive(Debug, Clone)]
pub enum Instead {
    /// Ends the connection after so many bytes of the body.
    Break(usize),
    /// The same, after it has claimed a body of this length.
    Claim(u64, usize),
    /// Answers with a status, headers and this body.
    Answer(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// Sends other bytes as the file.
    Content(Vec<u8>),
    /// Sends the file from its start, whatever was asked for.
    IgnoreRange,
    /// Sends so many bytes and then nothing, until the client has gone.
    Stall(usize),
    /// Sends the content in chunks, without saying how much it is.
    Chunked,
    /// Sends a piece of the file every few milliseconds.
    Slowly,
}

/// A status without anything else.
pub fn status(status: u16) -> Instead {
    Instead::Answer(status, vec![], vec![])
}

/// What a request was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// The first byte that was asked for.
    pub from: Option<u64>,
    pub authorization: Option<String>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// Fields of the list that replace the true ones.
    listed: BTreeMap<String, Value>,
    commit: String,
    rules: Vec<(String, usize, Instead)>,
    requests: Vec<Request>,
    /// What a client must send to be let in.
    token: Option<String>,
    /// Without what `blobs=true` asks for, as some mirrors.
    bare_list: bool,
    /// Where large files are, if elsewhere.
    elsewhere: Option<String>,
}

pub struct Server {
    port: u16,
    state: Arc<Mutex<State>>,
    over: Arc<AtomicBool>,
}

impl Server {
    /// A repository with no file.
    pub fn empty() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = State { commit: COMMIT.into(), ..State::default() };
        let (state, over) = (Arc::new(Mutex::new(state)), Arc::new(AtomicBool::new(false)));
        let (shared, end) = (Arc::clone(&state), Arc::clone(&over));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                let (state, over) = (Arc::clone(&shared), Arc::clone(&end));
                // A client may go at any moment.
                thread::spawn(move || drop(answer(stream.unwrap(), &state, &over)));
            }
        });
        Self { port, state, over }
    }

    /// A repository with a folder's files, and some that nobody needs.
    pub fn of(folder: &Path) -> Self {
        let server = Self::empty();
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            server.put(&name, std::fs::read(entry.path()).unwrap());
        }
        let unwanted =
            [".gitattributes", "README.md", "original/model.safetensors", "metal/model.bin"];
        for name in unwanted {
            server.put(name, b"nobody needs this".to_vec());
        }
        server
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn put(&self, name: &str, content: impl Into<Vec<u8>>) {
        self.state().files.insert(name.into(), content.into());
    }

    pub fn remove(&self, name: &str) {
        self.state().files.remove(name).unwrap();
    }

    pub fn content(&self, name: &str) -> Vec<u8> {
        self.state().files[name].clone()
    }

    /// The name of a file's content in the cache.
    pub fn checksum(&self, name: &str) -> String {
        let state = self.state();
        checksum(name, &state.files[name])
    }

    pub fn set_commit(&self, commit: &str) {
        self.state().commit = commit.into();
    }

    /// Replaces a file's entry in the list.
    pub fn list(&self, name: &str, entry: Value) {
        self.state().listed.insert(name.into(), entry);
    }

    pub fn require(&self, token: &str) {
        self.state().token = Some(format!("Bearer {token}"));
    }

    pub fn list_names_only(&self) {
        self.state().bare_list = true;
    }

    /// Has large files at another server.
    pub fn redirect_large_files(&self, to: &str) {
        self.state().elsewhere = Some(to.into());
    }

    /// For the next `times` requests whose path ends like this.
    pub fn instead(&self, path: &str, times: usize, what: Instead) {
        self.state().rules.push((path.into(), times, what));
    }

    /// All requests since the last time.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().requests)
    }

    /// Those for a file's content: its name, and the first byte that was asked for.
    pub fn downloads(&self) -> Vec<(String, u64)> {
        let download = |request: &Request| {
            let (_, name) = request.path.split_once("/resolve/")?.1.split_once('/')?;
            (request.method == "GET").then(|| (name.to_owned(), request.from.unwrap_or(0)))
        };
        self.requests().iter().filter_map(download).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Wakes the listener.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name == "tokenizer.json" || name.ends_with(".bin")
}

fn checksum(name: &str, content: &[u8]) -> String {
    let digest = match is_large(name) {
        true => digest(&SHA256, content),
        false => {
            let blob = [format!("blob {}\0", content.len()).as_bytes(), content].concat();
            digest(&SHA1_FOR_LEGACY_USE_ONLY, &blob)
        }
    };
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn list(state: &State) -> Vec<u8> {
    let entry = |(name, content): (&String, &Vec<u8>)| {
        if let Some(entry) = state.listed.get(name) {
            return entry.clone();
        }
        let (size, sum) = (content.len(), checksum(name, content));
        if state.bare_list {
            json!({"rfilename": name})
        } else if is_large(name) {
            // The hash of the small text that stands for it.
            let blob = checksum("pointer", sum.as_bytes());
            let lfs = json!({"sha256": sum, "size": size, "pointerSize": 133});
            json!({"rfilename": name, "blobId": blob, "size": size, "lfs": lfs})
        } else {
            json!({"rfilename": name, "blobId": sum, "size": size})
        }
    };
    let siblings: Vec<Value> = state.files.iter().map(entry).collect();
    serde_json::to_vec(&json!({"id": NAME, "sha": state.commit, "siblings": siblings})).unwrap()
}

/// Takes one request.
fn answer(stream: TcpStream, state: &Mutex<State>, over: &AtomicBool) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let Some(first) = lines.next() else { return Ok(()) };
    let first = first?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let (mut from, mut authorization) = (None, None);
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let start = value.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
                from = Some(start.unwrap().parse().unwrap());
            }
            "authorization" => authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    let mut state = state.lock().unwrap();
    let request = Request { method, path: path.clone(), from, authorization };
    state.requests.push(request.clone());
    let plain = path.split('?').next().unwrap();
    let rule = state.rules.iter_mut().find(|(end, times, _)| plain.ends_with(&**end) && *times > 0);
    let instead = rule.map(|(_, times, what)| {
        *times -= 1;
        what.clone()
    });
    let allowed = state.token.is_none() || state.token == request.authorization;
    let name = plain.split_once("/resolve/").and_then(|(_, rest)| rest.split_once('/'));
    let is_list = plain.starts_with(&format!("/api/models/{NAME}/revision/"));
    let mut headers = vec![("X-Repo-Commit", state.commit.clone())];
    let body = match name {
        _ if let Some(Instead::Answer(..)) = instead => vec![],
        _ if !allowed => {
            let code = vec![("X-Error-Code", "GatedRepo".to_owned())];
            drop(state);
            return send(stream, &request, 401, &code, b"", None, over);
        }
        None if is_list => list(&state),
        Some((_, name)) if state.files.contains_key(name) => {
            let content = state.files[name].clone();
            let sum = checksum(name, &content);
            if let (true, Some(elsewhere)) = (is_large(name), &state.elsewhere) {
                headers.push(("Location", format!("{elsewhere}{plain}?signature=hush")));
                headers.push(("X-Linked-Size", content.len().to_string()));
                headers.push(("X-Linked-Etag", format!("\"{sum}\"")));
                drop(state);
                return send(stream, &request, 302, &headers, b"", None, over);
            }
            headers.push(("ETag", format!("\"{sum}\"")));
            content
        }
        _ => {
            let code = vec![("X-Error-Code", "RepoNotFound".to_owned())];
            drop(state);
            return send(stream, &request, 404, &code, b"Not here", None, over);
        }
    };
    drop(state);
    if let Some(Instead::Answer(status, headers, body)) = instead {
        return send(stream, &request, status, &headers, &body, None, over);
    }
    let body = match &instead {
        Some(Instead::Content(other)) => other.clone(),
        _ => body,
    };
    let start = match instead {
        Some(Instead::IgnoreRange) => 0,
        _ => usize::try_from(from.unwrap_or(0)).unwrap(),
    };
    if start > 0 && start >= body.len() {
        return send(stream, &request, 416, &headers, b"", None, over);
    }
    let status = if start > 0 { 206 } else { 200 };
    if start > 0 {
        let range = format!("bytes {start}-{}/{}", body.len() - 1, body.len());
        headers.push(("Content-Range", range));
    }
    send(stream, &request, status, &headers, &body[start..], instead, over)
}

fn send(
    mut stream: TcpStream,
    request: &Request,
    status: u16,
    headers: &[(&'static str, String)],
    body: &[u8],
    instead: Option<Instead>,
    over: &AtomicBool,
) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} Whatever\r\nConnection: close\r\n");
    match instead {
        Some(Instead::Chunked) => head.push_str("Transfer-Encoding: chunked\r\n"),
        Some(Instead::Claim(length, _)) => head.push_str(&format!("Content-Length: {length}\r\n")),
        _ => head.push_str(&format!("Content-Length: {}\r\n", body.len())),
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    match instead {
        Some(Instead::Break(bytes) | Instead::Claim(_, bytes)) => {
            stream.write_all(&body[..bytes.min(body.len())])
        }
        Some(Instead::Stall(bytes)) => {
            stream.write_all(&body[..bytes.min(body.len())])?;
            // Until the test is over, at the latest.
            while !over.load(Ordering::Relaxed) {
                sleep(Duration::from_millis(10));
            }
            Ok(())
        }
        Some(Instead::Chunked) => {
            for chunk in body.chunks(100_000) {
                stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes())?;
                stream.write_all(chunk)?;
                stream.write_all(b"\r\n")?;
            }
            stream.write_all(b"0\r\n\r\n")
        }
        Some(Instead::Slowly) => body.chunks(50_000).try_for_each(|chunk| {
            sleep(Duration::from_millis(40));
            stream.write_all(chunk)
        }),
        _ => stream.write_all(body),
    }
}
