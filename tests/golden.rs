//! The model's output beside mlx-lm's: the same prompt ids from the chat template, the same
//! tokens, log-probabilities within 1e-3.
//!
//! `tests/golden/make.py` wrote the prompts and, as insta's snapshots, what mlx-lm answered. A
//! log-probability within the tolerance is shown as mlx-lm's own, so a snapshot that fails shows
//! the real differences only. Do not accept new snapshots here: run the script again.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use gpt_oss_mlx::chat::template::{ChatTemplate, TemplateInput};
use gpt_oss_mlx::{Device, GenerateOptions, LoadOptions, Model, Token, Tokenizer};
use serde::Deserialize;
use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const TOLERANCE: f64 = 1e-3;
/// Tokens of every snapshot, and log-probabilities of each.
const TOKENS: usize = 64;
const TOP: usize = 5;
/// Side by side the models would only compete for the cores.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Models that share their prompts.
#[derive(Deserialize)]
struct Group {
    /// Folder of each, from the repository's root.
    models: BTreeMap<String, String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    /// Random ids where there is neither a conversation nor a text.
    prompt: Vec<u32>,
    messages: Option<Vec<Value>>,
    #[serde(default)]
    tools: Vec<Value>,
    text: Option<String>,
    /// Chunk of the prefill.
    prefill: Option<usize>,
}

fn groups() -> Vec<Group> {
    let text = std::fs::read_to_string(format!("{ROOT}/tests/golden/prompts.json"));
    serde_json::from_str(&text.expect("prompts.json")).expect("prompts.json")
}

/// A snapshot's text: what insta compares, without the lines that say where it comes from.
fn reference(name: &str) -> String {
    let path = format!("{ROOT}/tests/golden/snapshots/{name}.snap");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.splitn(3, "---\n").last().expect("a header").to_owned()
}

/// Ids and log-probabilities of each step of a snapshot, likeliest first.
fn reference_logprobs(text: &str) -> Vec<Vec<(u32, f64)>> {
    let pair = |pair: &str| {
        let (id, logprob) = pair.split_once(':').expect("id:logprob");
        (id.parse().expect("an id"), logprob.parse().expect("a number"))
    };
    let lines = text.lines().skip_while(|line| *line != "logprobs:").skip(1);
    lines.map(|line| line.split_whitespace().map(pair).collect()).collect()
}

/// One step's log-probabilities as the snapshot has them where they are within the tolerance, and
/// the largest difference. An id that is not among the reference's can only tie with the one of
/// its rank.
fn settle(ours: &Token, reference: &[(u32, f64)]) -> (String, f64) {
    let mut largest = 0.0;
    let mut line = Vec::new();
    for (rank, entry) in ours.logprobs.iter().enumerate() {
        let (id, logprob) = (entry.id, f64::from(entry.logprob));
        let Some(&of_rank) = reference.get(rank) else {
            line.push(format!("{id}:{logprob:.5}"));
            continue;
        };
        let same = reference.iter().find(|(other, _)| *other == id).copied().unwrap_or(of_rank);
        let difference = (logprob - same.1).abs();
        largest = f64::max(largest, if difference.is_nan() { f64::INFINITY } else { difference });
        let (id, logprob) = if difference <= TOLERANCE { of_rank } else { (id, logprob) };
        line.push(format!("{id}:{logprob:.5}"));
    }
    (line.join(" "), largest)
}

fn join(ids: impl IntoIterator<Item = u32>) -> String {
    ids.into_iter().map(|id| id.to_string()).collect::<Vec<_>>().join(" ")
}

fn run(model: &Model, case: &Case) -> Vec<Token> {
    let mut options = GenerateOptions::default();
    options.max_tokens = TOKENS;
    options.logprobs = Some(TOP);
    options.stop_ids = Some(Vec::new());
    options.prefill_chunk = case.prefill.unwrap_or(options.prefill_chunk);
    let tokens = model.generate(&case.prompt, &options).expect("a generation");
    tokens.collect::<Result<_, _>>().expect("tokens")
}

/// Every case of one model against its snapshot.
fn check(name: &str) {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let groups = groups();
    let group = groups.iter().find(|group| group.models.contains_key(name)).expect("a model");
    let dir = Path::new(ROOT).join(&group.models[name]);
    // The reference is in f32 on the CPU; so is this, whatever the machine has.
    let mut options = LoadOptions::default();
    options.device = Device::Cpu;
    let model = Model::load(&dir, &options).expect("the model loads");
    let tokenizer = dir.join("tokenizer.json").exists().then(|| tokenizer(&dir));

    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(PathBuf::from(ROOT).join("tests/golden/snapshots"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    for case in &group.cases {
        let tokens = run(&model, case);
        let snapshot = &format!("{name}__{}", case.name);
        let expected = reference_logprobs(&reference(snapshot));
        assert_eq!(expected.len(), TOKENS, "{snapshot}");

        let ids = || tokens.iter().map(|token| token.id);
        let mut lines = vec![format!("prompt: {}", join(case.prompt.iter().copied()))];
        lines.push(format!("tokens: {}", join(ids())));
        if let Some(tokenizer) = &tokenizer {
            let text = tokenizer.decode(&ids().collect::<Vec<_>>(), false).expect("text");
            lines.push(format!("text: {}", Value::from(text)));
        }
        lines.push("logprobs:".to_owned());
        let mut largest = 0.0;
        for (token, expected) in tokens.iter().zip(&expected) {
            assert_eq!(token.logprobs.len(), TOP, "{snapshot}");
            let (line, difference) = settle(token, expected);
            lines.push(line);
            largest = f64::max(largest, difference);
        }
        // Not through `println!`, which the test harness keeps to itself.
        let _ = writeln!(std::io::stderr(), "{snapshot}: largest difference {largest:.1e}");
        settings.bind(|| insta::assert_snapshot!(snapshot.as_str(), lines.join("\n")));
        assert!(largest <= TOLERANCE, "{snapshot}: {largest}");
    }
}

fn tokenizer(dir: &Path) -> Tokenizer {
    Tokenizer::from_dir(dir).expect("tokenizer.json")
}

#[test]
fn mxfp4_q8_answers_as_mlx_lm() {
    check("gpt-oss-tiny");
}

#[test]
fn mxfp4_q8_in_f32_answers_as_mlx_lm() {
    check("gpt-oss-tiny-f32");
}

#[test]
fn openai_layout_answers_as_mlx_lm() {
    check("gpt-oss-tiny-openai");
}

#[test]
fn mixed_quantization_answers_as_mlx_lm() {
    check("random-mixed");
}

#[test]
fn unquantized_f16_answers_as_mlx_lm() {
    check("random-float");
}

#[test]
fn prompts_get_the_ids_that_mlx_lm_gives_them() {
    let groups = groups();
    let (group, dir) = groups
        .iter()
        .find_map(|group| Some((group, Path::new(ROOT).join(group.models.get("gpt-oss-tiny")?))))
        .expect("the bundled model");
    let tokenizer = tokenizer(&dir);
    let template = ChatTemplate::from_dir(&dir).expect("a valid template").expect("a template");
    for case in &group.cases {
        let ids = match (&case.messages, &case.text) {
            (Some(messages), None) => {
                let mut input = TemplateInput::new(messages.clone());
                input.tools = case.tools.clone();
                template.render_ids(&input, &tokenizer)
            }
            (None, Some(text)) => tokenizer.encode(text, true),
            _ => panic!("{} has to have either messages or a text", case.name),
        };
        assert_eq!(ids.expect("ids"), case.prompt, "{}", case.name);
    }
}
