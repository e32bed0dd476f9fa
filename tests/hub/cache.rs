//! What is downloaded, where it lies, and what is not downloaded again.

use std::os::unix::fs::PermissionsExt;
use std::sync::Barrier;
use std::thread;

use gpt_oss_mlx::chat::{Conversation, Message};
use gpt_oss_mlx::{CompletionOptions, LoadOptions, TextModel};

use super::*;
use crate::server::{Instead, status};

#[test]
fn a_model_by_name_answers_as_it_does_from_its_folder() {
    let (server, dir, options) = hub();
    let folder = resolve(&options).unwrap();
    assert_eq!(folder, snapshot(dir.path()));
    let model = TextModel::load(&folder, &LoadOptions::default()).unwrap();
    let question = Message::user("Explain Dangling References.");
    let prompt = model.chat_prompt(&Conversation::new([question])).unwrap();
    let pieces = model.complete(&prompt, &CompletionOptions::default()).unwrap();
    let text: String = pieces.map(|piece| piece.unwrap().text).collect();
    let known = fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/known-answers.json"
    ));
    let known: serde_json::Value = serde_json::from_str(&known.unwrap()).unwrap();
    let known = known.as_array().unwrap().iter().find(|k| k["topic"] == "Dangling References");
    assert_eq!(text, known.unwrap()["answer"].as_str().unwrap());
    drop(server);
}

#[test]
fn only_needed_files_are_downloaded_each_once_and_from_one_commit() {
    let (server, dir, options) = hub();
    let mut events = Vec::new();
    let model = ModelRef::parse(NAME).unwrap();
    let folder = model.resolve(&options, |event| events.push(told(event))).unwrap();
    assert_eq!(folder, snapshot(dir.path()));
    let requests = server.requests();
    let paths: Vec<&str> = requests.iter().map(|request| request.path.as_str()).collect();
    assert_eq!(paths[0], format!("/api/models/{NAME}/revision/main?blobs=true"));
    let expected = FILES.map(|file| format!("/{NAME}/resolve/{COMMIT}/{file}"));
    assert_eq!(paths[1..], expected);
    assert!(requests.iter().all(|request| request.from.is_none()));
    assert_complete(&server, dir.path());

    // Config and index first, as they say what the rest is.
    let bytes: usize = FILES[2..].iter().map(|file| server.content(file).len()).sum();
    assert!(events.contains(&format!("5 files, {bytes} bytes")), "{events:?}");
    for name in FILES {
        let total = server.content(name).len();
        let of_file: Vec<&String> =
            events.iter().filter(|e| e.starts_with(&format!("{name} "))).collect();
        assert_eq!(*of_file[0], format!("{name} 0/{total}"));
        assert_eq!(**of_file.last().unwrap(), format!("{name} {total}/{total}"));
    }
}

#[test]
fn a_second_time_nothing_is_downloaded() {
    let (server, _dir, options) = hub();
    let folder = resolve(&options).unwrap();
    server.requests();
    let mut events = Vec::new();
    let model = ModelRef::parse(NAME).unwrap();
    assert_eq!(model.resolve(&options, |event| events.push(told(event))).unwrap(), folder);
    assert_eq!(server.requests().len(), 1, "only the list");
    assert!(events.is_empty(), "{events:?}");
}

/// The layout that Python's tools, and hf-hub as a reader of it, share.
#[test]
fn the_cache_is_the_one_of_other_tools() {
    let (server, dir, options) = hub();
    resolve(&options).unwrap();
    let cache = hf_hub::Cache::new(dir.path().into());
    let repo = cache.model(NAME.into());
    for name in FILES {
        let pointer = snapshot(dir.path()).join(name);
        assert_eq!(repo.get(name).unwrap(), pointer);
        let target = fs::read_link(&pointer).unwrap();
        assert_eq!(target, Path::new("../../blobs").join(server.checksum(name)));
    }
    assert_eq!(repo.get("README.md"), None);
    let main = fs::read_to_string(repository(dir.path()).join("refs/main")).unwrap();
    assert_eq!(main, COMMIT);
}

#[test]
fn what_another_tool_has_downloaded_is_used() {
    let (server, dir, options) = hub();
    // As it makes a snapshot: content under its checksum, links, and the branch.
    fs::create_dir_all(blobs(dir.path())).unwrap();
    for name in FILES.iter().filter(|name| **name != "tokenizer.json") {
        fs::write(blobs(dir.path()).join(server.checksum(name)), server.content(name)).unwrap();
    }
    let other = hf_hub::Cache::new(dir.path().into()).model(NAME.into());
    let pointers = other.pointer_path(COMMIT);
    fs::create_dir_all(&pointers).unwrap();
    for name in ["config.json", WEIGHTS] {
        let target = Path::new("../../blobs").join(server.checksum(name));
        std::os::unix::fs::symlink(target, pointers.join(name)).unwrap();
    }
    other.create_ref(COMMIT).unwrap();

    resolve(&options).unwrap();
    assert_eq!(server.downloads(), [("tokenizer.json".to_owned(), 0)]);
    assert_complete(&server, dir.path());
}

#[test]
fn a_new_commit_downloads_what_changed() {
    let (server, dir, options) = hub();
    let old = resolve(&options).unwrap();
    server.downloads();
    let next = "f".repeat(40);
    server.set_commit(&next);
    server.put("generation_config.json", r#"{"eos_token_id": 199999}"#);
    let new = resolve(&options).unwrap();
    assert_eq!(server.downloads(), [("generation_config.json".to_owned(), 0)]);
    assert!(new.ends_with(&next), "{new:?}");
    // The old one stays as it was.
    assert_ne!(
        fs::read(old.join("generation_config.json")).unwrap(),
        fs::read(new.join("generation_config.json")).unwrap()
    );
    let main = fs::read_to_string(repository(dir.path()).join("refs/main")).unwrap();
    assert_eq!(main, next);
}

#[test]
fn a_revision_is_asked_for_and_noted() {
    let (server, dir, mut options) = hub();
    let model = ModelRef::parse(&format!("{NAME}@refs/pr/1")).unwrap();
    let folder = model.resolve(&options, |_| ()).unwrap();
    let first = &server.requests()[0];
    assert_eq!(first.path, format!("/api/models/{NAME}/revision/refs%2Fpr%2F1?blobs=true"));
    let noted = fs::read_to_string(repository(dir.path()).join("refs/refs/pr/1")).unwrap();
    assert_eq!(noted, COMMIT);
    assert!(!repository(dir.path()).join("refs/main").exists());

    // Offline it is that one and no other; a commit needs no note.
    options.offline = true;
    assert_eq!(model.resolve(&options, |_| ()).unwrap(), folder);
    let by_commit = ModelRef::parse(NAME).unwrap().at(COMMIT).unwrap();
    assert_eq!(by_commit.resolve(&options, |_| ()).unwrap(), folder);
    let HubProblem::NotCached { missing, .. } = problem(resolve(&options)) else { panic!() };
    assert_eq!(missing, ["revision main"]);
    assert!(server.requests().is_empty());
}

#[test]
fn offline_the_cache_is_all_there_is() {
    let (server, dir, mut options) = hub();
    let folder = resolve(&options).unwrap();
    server.requests();
    options.offline = true;
    assert_eq!(resolve(&options).unwrap(), folder);

    for name in ["config.json", "tokenizer.json", WEIGHTS] {
        let pointer = folder.join(name);
        let target = fs::read_link(&pointer).unwrap();
        fs::remove_file(&pointer).unwrap();
        let HubProblem::NotCached { missing, .. } = problem(resolve(&options)) else { panic!() };
        assert_eq!(missing, [name]);
        // A link that leads nowhere is no file.
        std::os::unix::fs::symlink("../../blobs/gone", &pointer).unwrap();
        assert!(matches!(problem(resolve(&options)), HubProblem::NotCached { .. }));
        fs::remove_file(&pointer).unwrap();
        std::os::unix::fs::symlink(target, &pointer).unwrap();
    }
    assert_eq!(resolve(&options).unwrap(), folder);
    // An index that cannot be read does not say that all is there.
    fs::write(dir.path().join("bad"), "{").unwrap();
    fs::remove_file(folder.join("model.safetensors.index.json")).unwrap();
    fs::copy(dir.path().join("bad"), folder.join("model.safetensors.index.json")).unwrap();
    assert!(matches!(problem(resolve(&options)), HubProblem::NotCached { .. }));
    assert!(server.requests().is_empty(), "offline means offline");
}

#[test]
fn without_a_network_a_complete_cache_will_do() {
    let (server, _dir, options) = hub();
    let folder = resolve(&options).unwrap();
    server.requests();
    for outage in [status(503), status(500), status(429), Instead::Break(10)] {
        server.instead("/revision/main", 1, outage.clone());
        let mut events = Vec::new();
        let model = ModelRef::parse(NAME).unwrap();
        assert_eq!(model.resolve(&options, |event| events.push(told(event))).unwrap(), folder);
        assert_eq!(events.len(), 1, "{outage:?} {events:?}");
        assert!(events[0].starts_with("cached: 127.0.0.1"), "{events:?}");
        assert_eq!(server.requests().len(), 1, "who has it all does not insist");
    }
    // A refusal is no outage.
    server.instead("/revision/main", 1, status(404));
    assert!(matches!(problem(resolve(&options)), HubProblem::NotFound { .. }));

    let endpoint = options.endpoint.clone();
    drop(server);
    // The listener notices that it is to end with the next connection, which is this one.
    while std::net::TcpStream::connect(endpoint.trim_start_matches("http://")).is_ok() {}
    assert_eq!(resolve(&options).unwrap(), folder);
    fs::remove_file(folder.join(WEIGHTS)).unwrap();
    let mut options = options;
    options.retries = 1;
    let HubProblem::Network { host, .. } = problem(resolve(&options)) else { panic!() };
    assert_eq!(host, "127.0.0.1");
}

#[test]
fn a_list_of_names_alone_is_completed_from_the_files_headers() {
    let (server, dir, options) = hub();
    let cdn = Server::of(Path::new(BUNDLED));
    server.list_names_only();
    server.redirect_large_files(&cdn.url());
    resolve(&options).unwrap();
    assert_complete(&server, dir.path());
    let requests = server.requests();
    assert_eq!(requests.iter().filter(|request| request.method == "HEAD").count(), FILES.len());
    assert!(cdn.requests().iter().all(|request| request.method == "GET"));
    // What has no checksum cannot be checked.
    let tag = ("ETag", "\"d41d8cd98f00b204-2\"".to_owned());
    let other = tempfile::tempdir().unwrap();
    server.instead("/config.json", 1, Instead::Answer(200, vec![tag], vec![]));
    let HubProblem::Malformed { reason } = problem(resolve(&self::options(&server, other.path())))
    else {
        panic!()
    };
    assert!(reason.contains("config.json"), "{reason}");
}

#[test]
fn many_at_once_download_once() {
    let (server, dir, options) = hub();
    server.instead(WEIGHTS, 1, Instead::Slowly);
    let barrier = Barrier::new(4);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                barrier.wait();
                assert_eq!(resolve(&options).unwrap(), snapshot(dir.path()));
            });
        }
    });
    let mut downloads = server.downloads();
    downloads.sort();
    let mut expected = FILES.map(|file| (file.to_owned(), 0));
    expected.sort();
    assert_eq!(downloads, expected);
    assert_complete(&server, dir.path());
}

#[test]
fn a_folder_wins_and_needs_no_hub() {
    let dir = tempfile::tempdir().unwrap();
    let options = HubOptions::new(dir.path().join("cache"));
    let folder = ModelRef::parse(BUNDLED).unwrap();
    assert_eq!(folder.resolve(&options, |_| ()).unwrap(), Path::new(BUNDLED));
    assert!(!dir.path().join("cache").exists());
    // Relative to where the tests run.
    let relative = ModelRef::parse("assets/gpt-oss-tiny").unwrap();
    assert_eq!(relative, ModelRef::Folder("assets/gpt-oss-tiny".into()));
    assert!(matches!(relative.at("main"), Err(Error::Argument { name: "revision", .. })));
    assert!(matches!(ModelRef::parse("assets/gpt-oss-tinier").unwrap(), ModelRef::Repo(_)));
    for neither in ["gpt-oss-20b", "/no/such/folder", "./no", "", "a/b/c"] {
        let Err(error) = ModelRef::parse(neither) else { panic!("{neither}") };
        let text = error.to_string();
        assert!(text.contains("no such folder") && text.contains("repository"), "{text}");
        assert!(error.hint().contains("OWNER/NAME"), "{}", error.hint());
    }
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let (_server, dir, mut options) = hub();
    fs::write(dir.path().join("file"), "").unwrap();
    options.cache = dir.path().join("file/hub");
    let error = resolve(&options).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
    assert!(error.to_string().contains("file/hub"), "{error}");
    let closed = dir.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    // Root may write everywhere but where the system itself says no.
    options.cache = match fs::create_dir(closed.join("probe")) {
        Ok(()) => "/sys/hub".into(),
        Err(_) => closed.join("hub"),
    };
    let error = resolve(&options).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o755)).unwrap();
}
