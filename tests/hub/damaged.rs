//! Content and lists that are not what they should be.

use serde_json::json;

use super::*;
use crate::server::Instead;

#[test]
fn a_wrong_byte_is_found_and_nothing_of_it_stays() {
    for name in FILES {
        let (server, dir, options) = hub();
        let mut content = server.content(name);
        let middle = content.len() / 2;
        content[middle] ^= 1;
        server.instead(&format!("/{name}"), 1, Instead::Content(content));
        let HubProblem::Checksum { file, expected, got } = problem(resolve(&options)) else {
            panic!()
        };
        assert_eq!((file.as_str(), expected.as_str()), (name, server.checksum(name).as_str()));
        assert_ne!(expected, got);
        assert!(!blobs(dir.path()).join(&expected).exists());
        assert!(!blobs(dir.path()).join(&got).exists());
        assert!(!snapshot(dir.path()).join(name).exists());
        assert!(left_over(dir.path()).is_empty());
        resolve(&options).unwrap();
        assert_complete(&server, dir.path());
    }
}

#[test]
fn a_wrong_length_is_refused_before_it_is_downloaded() {
    let (server, dir, options) = hub();
    let content = server.content(WEIGHTS);
    let longer = [&content[..], b"more"].concat();
    for (instead, expected) in [
        (Instead::Claim(1_000, 1_000), 1_000),
        (Instead::Claim(u64::MAX, 1_000), u64::MAX),
        (Instead::Content(longer), 2_774_208),
        (Instead::Content(b"<html>Sign in</html>".to_vec()), 20),
    ] {
        server.instead(WEIGHTS, 1, instead);
        let HubProblem::Length { file, expected: listed, got } = problem(resolve(&options)) else {
            panic!()
        };
        assert_eq!((file.as_str(), listed, got), (WEIGHTS, 2_774_204, expected));
        assert!(!snapshot(dir.path()).join(WEIGHTS).exists());
    }
    // The same for a part.
    server.instead(WEIGHTS, 1, Instead::Break(1_000_000));
    let range = vec![("Content-Range", "bytes 1000000-2774207/2774208".to_owned())];
    server.instead(WEIGHTS, 1, Instead::Answer(206, range, vec![0; 1_774_208]));
    assert!(matches!(problem(resolve(&options)), HubProblem::Length { got: 2_774_208, .. }));
    resolve(&options).unwrap();
    assert_complete(&server, dir.path());
}

#[test]
fn a_body_without_end_is_not_taken_to_its_end() {
    let (server, dir, options) = hub();
    let listed = server.content("generation_config.json").len();
    let sum = server.checksum("generation_config.json");
    server.list(
        "generation_config.json",
        json!({"rfilename": "generation_config.json", "size": listed, "blobId": sum}),
    );
    server.put("generation_config.json", vec![b' '; 4 << 20]);
    server.instead("/generation_config.json", usize::MAX, Instead::Chunked);
    let HubProblem::Length { got, .. } = problem(resolve(&options)) else { panic!() };
    assert!(got < 1 << 20, "{got}");
    assert!(
        tree(dir.path()).iter().all(|path| fs::metadata(path).is_ok_and(|m| m.len() < 4 << 20))
    );
}

#[test]
fn a_file_that_is_listed_and_not_there_is_named() {
    for names_only in [false, true] {
        let (server, _dir, options) = hub();
        if names_only {
            server.list_names_only();
        }
        server.instead("/tokenizer.json", usize::MAX, crate::server::status(404));
        let HubProblem::Malformed { reason } = problem(resolve(&options)) else { panic!() };
        assert!(reason.contains("tokenizer.json"), "{reason}");
    }
}

#[test]
fn a_damaged_file_in_the_cache_is_downloaded_again() {
    let (server, dir, options) = hub();
    resolve(&options).unwrap();
    server.requests();
    let blob = blobs(dir.path()).join(server.checksum("tokenizer.json"));
    fs::write(&blob, "short").unwrap();
    resolve(&options).unwrap();
    assert_eq!(server.downloads(), [("tokenizer.json".to_owned(), 0)]);
    assert_complete(&server, dir.path());
}

/// Nothing is written anywhere but in the cache, whatever the list says.
#[test]
fn a_hostile_list_leads_nowhere() {
    let entry = |name: &str| json!({"rfilename": name, "size": 5, "blobId": "a".repeat(40)});
    let sum = "../../../../../../../../../../../../../../../../../../../tmp/x/y";
    assert_eq!(sum.len(), 64);
    let cases = [
        ("../../../escape", entry("../../../escape")),
        ("absolute", entry("/tmp/escape")),
        ("backslash", entry("..\\escape")),
        ("commit", json!({"rfilename": "x", "size": -5})),
    ];
    for (name, entry) in cases {
        let (server, dir, options) = hub();
        server.put("x", "");
        server.list("x", entry);
        let problem = problem(resolve(&options));
        assert!(matches!(problem, HubProblem::Malformed { .. }), "{name}: {problem}");
        assert_eq!(tree(dir.path()).len(), 0, "{name}");
    }
    // A checksum is a file's name in the cache; what is none is not used, the headers' is.
    let (server, dir, options) = hub();
    let size = server.content(WEIGHTS).len();
    let lfs = json!({"sha256": sum, "size": size, "pointerSize": 1});
    server.list(WEIGHTS, json!({"rfilename": WEIGHTS, "size": size, "lfs": lfs}));
    resolve(&options).unwrap();
    assert_complete(&server, dir.path());

    let (server, dir, options) = hub();
    server.set_commit("../../../../../../../../../../../../../x");
    assert!(matches!(problem(resolve(&options)), HubProblem::Malformed { .. }));
    assert_eq!(tree(dir.path()).len(), 0);
}

#[test]
fn a_hostile_index_leads_nowhere() {
    for shard in [
        "../../escape.safetensors",
        "/tmp/escape.safetensors",
        "original/model.safetensors",
        "x.bin",
    ] {
        let (server, _dir, options) = hub();
        let index = json!({"weight_map": {"a": shard}}).to_string();
        server.put("model.safetensors.index.json", index);
        let error = resolve(&options).unwrap_err();
        assert!(matches!(error, Error::Checkpoint { .. }), "{error:?}");
        assert_eq!(server.downloads().len(), 2, "config and index");
    }
    let (server, _dir, options) = hub();
    server.put(
        "model.safetensors.index.json",
        json!({"weight_map": {"a": "missing.safetensors"}}).to_string(),
    );
    let HubProblem::Malformed { reason } = problem(resolve(&options)) else { panic!() };
    assert!(reason.contains("missing.safetensors"), "{reason}");
}

#[test]
fn lists_and_texts_without_end_are_refused() {
    let (server, dir, options) = hub();
    let endless = Instead::Answer(200, vec![], vec![b' '; 17 << 20]);
    server.instead("/revision/main", 1, endless);
    assert!(matches!(problem(resolve(&options)), HubProblem::Malformed { .. }));
    server.instead("/revision/main", 1, Instead::Answer(200, vec![], b"<html>".to_vec()));
    assert!(matches!(problem(resolve(&options)), HubProblem::Malformed { .. }));
    assert_eq!(tree(dir.path()).len(), 0);
    for name in ["config.json", "model.safetensors.index.json"] {
        let huge = json!({"rfilename": name, "size": 1_u64 << 40, "blobId": "a".repeat(40)});
        server.list(name, huge);
        assert!(matches!(problem(resolve(&options)), HubProblem::Malformed { .. }));
        assert!(server.downloads().is_empty());
        server.list(name, json!({
            "rfilename": name, "size": server.content(name).len(), "blobId": server.checksum(name),
        }));
    }
    resolve(&options).unwrap();
}

#[test]
fn a_file_that_no_disk_holds_is_refused_with_what_it_needs() {
    let (server, dir, options) = hub();
    let size = 1_u64 << 60;
    let lfs = json!({"sha256": "a".repeat(64), "size": size, "pointerSize": 135});
    server.list(WEIGHTS, json!({"rfilename": WEIGHTS, "size": size, "lfs": lfs}));
    let error = resolve(&options).unwrap_err();
    assert!(error.hint().contains("HF_HOME"), "{}", error.hint());
    let HubProblem::NoSpace { needed, available } = problem(Err(error)) else { panic!() };
    assert!(needed > size && available < size);
    assert!(!server.downloads().iter().any(|(name, _)| name == WEIGHTS));
    assert!(!snapshot(dir.path()).join(WEIGHTS).exists());
    // Nor does a sum that is too large for a number become a small one.
    let other = "tokenizer_config.json";
    server.list(other, json!({"rfilename": other, "size": u64::MAX, "blobId": "b".repeat(40)}));
    assert!(resolve(&options).is_err());
}
