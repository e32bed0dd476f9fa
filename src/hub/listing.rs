//! Which of a repository's files a model needs.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::checksum::Checksum;
use super::error::{Checked, HubProblem};
use super::name::is_commit;
use crate::checkpoint::{INDEX_FILE, SINGLE_FILE, printable};

/// The config, by which a model of another kind is refused before its weights are downloaded.
pub(super) const CONFIG: &str = "config.json";

/// The tokenizer.
pub(super) const TOKENIZER: &str = "tokenizer.json";

/// What is taken beside the weights, where the repository has it.
const SMALL: [&str; 7] = [
    CONFIG,
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
];

/// No small file of a model comes near this size: 256 MiB.
const MAX_SMALL_BYTES: u64 = 256 << 20;

/// The same for the index, of which all is held in memory: 16 MiB.
const MAX_INDEX_BYTES: u64 = 16 << 20;

/// A repository at a revision.
#[derive(Debug)]
pub(super) struct Listing {
    /// The commit's hash.
    pub(super) commit: String,
    files: BTreeMap<String, File>,
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    /// Its name, a path within the repository.
    pub(super) name: String,
    /// Bytes, where the list says so.
    pub(super) size: Option<u64>,
    /// What its content must hash to, where the list says so.
    pub(super) checksum: Option<Checksum>,
}

impl Listing {
    /// Reads the Hub's description of a repository.
    pub(super) fn parse(json: &[u8]) -> Checked<Self> {
        #[derive(Deserialize)]
        struct Repository {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Sibling {
            rfilename: String,
            size: Option<u64>,
            blob_id: Option<String>,
            lfs: Option<Lfs>,
        }
        #[derive(Deserialize)]
        struct Lfs {
            sha256: Option<String>,
            size: Option<u64>,
        }
        let Repository { sha, siblings } = serde_json::from_slice(json).map_err(|error| {
            malformed(format!("the list of files is damaged: {}", printable(&error.to_string())))
        })?;
        if !is_commit(&sha) {
            return Err(malformed(format!("{:?} is no commit", printable(&sha))));
        }
        let mut files = BTreeMap::new();
        for Sibling { rfilename: name, size, blob_id, lfs } in siblings {
            if !is_relative(&name) {
                return Err(malformed(format!("{:?} is no file's name", printable(&name))));
            }
            // `blobId` of a large file is that of a small text that stands for it.
            let (size, checksum) = match lfs {
                Some(lfs) => (lfs.size.or(size), lfs.sha256),
                None => (size, blob_id),
            };
            let checksum = checksum.as_deref().and_then(Checksum::parse);
            files.insert(name.clone(), File { name, size, checksum });
        }
        Ok(Self { commit: sha, files })
    }

    /// What is needed beside the weights, the config first.
    pub(super) fn small(&self) -> Checked<Vec<&File>> {
        for needed in [CONFIG, TOKENIZER] {
            if !self.files.contains_key(needed) {
                return Err(unsuitable(format!("it has no {needed}")));
            }
        }
        SMALL
            .iter()
            .filter_map(|name| self.files.get(*name))
            .map(|file| at_most(file, MAX_SMALL_BYTES))
            .collect()
    }

    /// The index of the weights, if there is one.
    pub(super) fn index(&self) -> Checked<Option<&File>> {
        self.files.get(INDEX_FILE).map(|file| at_most(file, MAX_INDEX_BYTES)).transpose()
    }

    /// The weights: the files that the index names, or the single one.
    pub(super) fn weights(&self, index: Option<&BTreeMap<String, String>>) -> Checked<Vec<&File>> {
        let Some(index) = index else {
            return match self.files.get(SINGLE_FILE) {
                Some(single) => Ok(vec![single]),
                None => Err(unsuitable(format!("it has neither {INDEX_FILE} nor {SINGLE_FILE}"))),
            };
        };
        let shards: BTreeSet<&String> = index.values().collect();
        shards
            .into_iter()
            .map(|shard| {
                let missing = || malformed(format!("the index names {shard}, which is not there"));
                self.files.get(shard).ok_or_else(missing)
            })
            .collect()
    }
}

fn at_most(file: &File, limit: u64) -> Checked<&File> {
    match file.size {
        Some(size) if size > limit => Err(malformed(format!(
            "{} has {size} bytes, and {limit} are the most that such a file may have",
            file.name
        ))),
        _ => Ok(file),
    }
}

/// Whether a name stays below the folder that it is relative to.
fn is_relative(name: &str) -> bool {
    let parts_are_plain = name.split(['/', '\\']).all(|part| !matches!(part, "" | "." | ".."));
    parts_are_plain && !name.contains(|c: char| c.is_control())
}

pub(super) fn malformed(reason: impl Into<String>) -> HubProblem {
    HubProblem::Malformed { reason: reason.into() }
}

fn unsuitable(reason: String) -> HubProblem {
    HubProblem::Unsuitable { reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const COMMIT: &str = "6cee5e81ee83917806bbde320786a8fb61efebee";

    fn sibling(name: &str, size: u64, large: bool) -> Value {
        let blob = format!("{:040x}", size);
        match large {
            false => json!({"rfilename": name, "blobId": blob, "size": size}),
            true => json!({
                "rfilename": name, "blobId": blob, "size": size,
                "lfs": {"sha256": format!("{:064x}", size), "size": size, "pointerSize": 135},
            }),
        }
    }

    fn listing(siblings: &[Value]) -> Checked<Listing> {
        // With some of the fields that are of no interest here.
        let json = json!({
            "_id": "0", "id": "a/b", "private": false, "gated": false, "downloads": 1,
            "tags": ["safetensors"], "sha": COMMIT, "siblings": siblings, "usedStorage": 1,
        });
        Listing::parse(&serde_json::to_vec(&json).unwrap())
    }

    /// As the list of openai/gpt-oss-20b is made.
    fn openai() -> Vec<Value> {
        let small = |name, size| sibling(name, size, false);
        let large = |name, size| sibling(name, size, true);
        vec![
            small(".gitattributes", 1_570),
            small("LICENSE", 11_357),
            small("README.md", 7_095),
            small("USAGE_POLICY", 200),
            small("chat_template.jinja", 16_738),
            small("config.json", 1_806),
            small("generation_config.json", 177),
            large("metal/model.bin", 13_750_886_400),
            large("model-00000-of-00002.safetensors", 4_792_272_488),
            large("model-00001-of-00002.safetensors", 4_798_702_184),
            large("model-00002-of-00002.safetensors", 4_170_342_232),
            small("model.safetensors.index.json", 36_355),
            small("original/config.json", 376),
            small("original/dtypes.json", 13_082),
            large("original/model.safetensors", 13_761_300_984),
            small("special_tokens_map.json", 98),
            large("tokenizer.json", 27_868_174),
            small("tokenizer_config.json", 4_200),
        ]
    }

    fn names<'a>(files: &[&'a File]) -> Vec<&'a str> {
        files.iter().map(|file| file.name.as_str()).collect()
    }

    fn index(shards: &[&str]) -> BTreeMap<String, String> {
        shards.iter().enumerate().map(|(i, shard)| (format!("t{i}"), (*shard).into())).collect()
    }

    #[test]
    fn of_openai_s_repository_one_of_three_copies_is_taken() {
        let listing = listing(&openai()).unwrap();
        assert_eq!(listing.commit, COMMIT);
        assert_eq!(
            names(&listing.small().unwrap()),
            [
                "config.json",
                "generation_config.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "chat_template.jinja",
                "special_tokens_map.json"
            ]
        );
        assert_eq!(listing.index().unwrap().unwrap().name, "model.safetensors.index.json");
        let shards = [
            "model-00000-of-00002.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ];
        // Each of many tensors names its shard.
        let index = index(&[shards[2], shards[0], shards[1], shards[0], shards[2]]);
        let weights = listing.weights(Some(&index)).unwrap();
        assert_eq!(names(&weights), shards);
        let bytes: u64 = weights.iter().map(|file| file.size.unwrap()).sum();
        assert_eq!(bytes, 13_761_316_904);
        // Large files by SHA-256, small ones by git's hash.
        assert!(matches!(weights[0].checksum, Some(Checksum::Sha256(_))));
        assert!(matches!(listing.small().unwrap()[0].checksum, Some(Checksum::Git(_))));
    }

    #[test]
    fn of_a_conversion_in_one_file_that_one_is_taken() {
        let files = [
            sibling("README.md", 900, false),
            sibling("config.json", 50_000, false),
            sibling("model.safetensors", 7 << 30, true),
            sibling("tokenizer.json", 27_868_174, true),
            sibling("adapters.safetensors", 5, true),
            sibling("pytorch_model.bin", 5, true),
        ];
        let listing = listing(&files).unwrap();
        assert_eq!(listing.index(), Ok(None));
        assert_eq!(names(&listing.weights(None).unwrap()), ["model.safetensors"]);
        assert_eq!(names(&listing.small().unwrap()), ["config.json", "tokenizer.json"]);
    }

    #[test]
    fn a_repository_without_a_model_is_unsuitable() {
        let without = |name: &str| {
            let files: Vec<Value> =
                openai().into_iter().filter(|file| file["rfilename"] != name).collect();
            listing(&files).unwrap()
        };
        for name in ["config.json", "tokenizer.json"] {
            let problem = without(name).small().unwrap_err();
            assert!(problem.to_string().contains(name), "{problem}");
        }
        // A file of another layout in a folder of its own does not count.
        let problem = without("model.safetensors.index.json").weights(None).unwrap_err();
        assert!(matches!(problem, HubProblem::Unsuitable { .. }), "{problem}");
        let index = index(&["model-00001-of-00002.safetensors", "missing.safetensors"]);
        let problem = listing(&openai()).unwrap().weights(Some(&index)).unwrap_err();
        assert!(problem.to_string().contains("missing.safetensors"), "{problem}");
    }

    #[test]
    fn names_that_leave_the_folder_and_other_nonsense_are_refused() {
        for name in
            ["../x", "/etc/passwd", "a/../../b", "a\\..\\b", "", "a//b", "a/", "./a", "a\nb"]
        {
            let problem = listing(&[sibling(name, 1, false)]).unwrap_err();
            assert!(matches!(problem, HubProblem::Malformed { .. }), "{name:?}: {problem}");
            assert!(!problem.to_string().contains('\n'));
        }
        for json in [
            json!({}),
            json!([]),
            json!({"sha": "main", "siblings": []}),
            json!({"sha": "../../../../../../../../../../../etc/pass", "siblings": []}),
            json!({"sha": COMMIT, "siblings": [{"rfilename": "a", "size": -1}]}),
            json!({"sha": COMMIT, "siblings": [{"size": 1}]}),
        ] {
            let problem = Listing::parse(&serde_json::to_vec(&json).unwrap()).unwrap_err();
            assert!(matches!(problem, HubProblem::Malformed { .. }), "{json}: {problem}");
        }
        assert!(Listing::parse(b"<html>").is_err());
    }

    #[test]
    fn a_text_of_gigabytes_is_refused() {
        for name in ["config.json", "tokenizer.json", "model.safetensors.index.json"] {
            let mut files = openai();
            files.retain(|file| file["rfilename"] != name);
            files.push(sibling(name, 1 << 30, true));
            let listing = listing(&files).unwrap();
            let problem = listing.small().map(drop).and(listing.index().map(drop)).unwrap_err();
            assert!(problem.to_string().contains(name), "{problem}");
        }
    }

    #[test]
    fn a_checksum_that_is_none_is_not_used_as_a_name() {
        let mut file = sibling("config.json", 5, false);
        file["blobId"] = json!("../../../../../../../../../../../etc/pass");
        let listing = listing(&[file, sibling("tokenizer.json", 5, false)]).unwrap();
        assert_eq!(listing.small().unwrap()[0].checksum, None);
    }
}
