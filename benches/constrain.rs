//! What a constraint costs per token: the time to take the token that was read and to work out
//! which may come next, on the CPU while the device works on the step.
//! `cargo bench --bench constrain`.
//!
//! On the bundled vocabulary, and on one of 201,088 tokens. The latter is the bundled one, extended
//! by joined pairs of its tokens: byte strings of the lengths and the shared beginnings that a
//! trained vocabulary has, but not GPT-OSS's own; CONSTRAIN_TOKENIZER names a folder whose
//! tokenizer.json is taken instead.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gpt_oss_mlx::Tokenizer;
use gpt_oss_mlx::chat::Tool;
use gpt_oss_mlx::constrain::{Constraint, ConstraintSpec, ResponseFormat, Vocabulary};
use serde_json::{Value, json};

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");
const LARGE: usize = 201_088;
/// Each turn is gone through so many times, after once that is not counted.
const ROUNDS: usize = 20;

fn main() {
    let bundled = Tokenizer::from_dir(Path::new(DIR)).expect("the bundled tokenizer");
    report("bundled", &bundled);
    let large = match std::env::var_os("CONSTRAIN_TOKENIZER").map(PathBuf::from) {
        Some(dir) => Tokenizer::from_dir(&dir).expect("a tokenizer"),
        None => extended(),
    };
    report("large", &large);
}

/// The bundled tokenizer with joined pairs of its tokens as additional ones.
fn extended() -> Tokenizer {
    let path = Path::new(DIR).join("tokenizer.json");
    let text = std::fs::read_to_string(&path).expect("the bundled tokenizer");
    let mut description: Value = serde_json::from_str(&text).expect("JSON");
    let vocabulary = description["model"]["vocab"].as_object_mut().expect("a vocabulary");
    let words: Vec<String> = vocabulary.keys().cloned().collect();
    let special = 9;
    let mut pairs = words.iter().flat_map(|a| words.iter().map(move |b| format!("{a}{b}")));
    while vocabulary.len() < LARGE - special {
        let pair = pairs.next().expect("enough pairs");
        let id = vocabulary.len();
        // A space inside a word, `Ġ`, is rare in trained vocabularies.
        if !pair.chars().skip(1).any(|c| c == 'Ġ') && !vocabulary.contains_key(&pair) {
            vocabulary.insert(pair, id.into());
        }
    }
    for (i, token) in
        description["added_tokens"].as_array_mut().expect("a list").iter_mut().enumerate()
    {
        token["id"] = (LARGE - special + i).into();
    }
    Tokenizer::from_json(&path, &description.to_string()).expect("a tokenizer")
}

fn report(name: &str, tokenizer: &Tokenizer) {
    let started = Instant::now();
    let vocabulary = Vocabulary::new(tokenizer).expect("a vocabulary");
    println!("{name}: {} tokens, taken in {:.0?}", tokenizer.vocab_size(), started.elapsed());
    let mut spec = ConstraintSpec::default();
    spec.tools = vec![
        Tool::new("book", "", schema()),
        Tool::new(
            "weather",
            "",
            json!({"type": "object", "properties": {"city": {"type": "string"}}}),
        ),
    ];
    spec.response_format = Some(ResponseFormat::JsonSchema(schema()));
    let started = Instant::now();
    let constraint = vocabulary.compile(&spec).expect("a grammar").expect("a constraint");
    println!("  compiled in {:.1?}", started.elapsed());
    let thoughts = "The user wants to book a seat; which class, and when? ".repeat(4);
    let arguments = r#"{"passenger": {"name": "Zoë \"Z\" Müller", "size": 1.75}, "class": "头等舱", "seats": [3, 17, 42], "note": "A window seat, please, and as far from the engines as there is."}"#;
    let turns = [
        (
            "analysis, then an answer",
            format!(
                "<|channel|>analysis<|message|>{thoughts}<|end|><|start|>assistant<|channel|>final<|message|>{arguments}<|return|>"
            ),
        ),
        (
            "a tool's call",
            format!(
                "<|channel|>commentary to=functions.book <|constrain|>json<|message|>{arguments}<|call|>"
            ),
        ),
    ];
    for (what, turn) in turns {
        let ids = tokenizer.encode(&turn, true).expect("ids");
        let mut times = Vec::new();
        for round in 0..=ROUNDS {
            let walked = walk(&constraint, tokenizer.vocab_size(), &ids);
            if round > 0 {
                times.extend(walked);
            } else {
                line(&format!("{what}, {} tokens, first time", ids.len()), walked);
            }
        }
        line(&format!("{what}, again"), times);
    }
}

/// The time of each step of one turn.
fn walk(constraint: &Constraint, vocab_size: usize, ids: &[u32]) -> Vec<Duration> {
    let mut guide = constraint.begin();
    let mut times = Vec::new();
    for &id in ids {
        let started = Instant::now();
        let allowed = guide.allowed(vocab_size).expect("a mask");
        let time = started.elapsed();
        assert!(allowed[id as usize], "the turn keeps to the grammar");
        let started = Instant::now();
        guide.push(id).expect("an allowed token");
        times.push(time + started.elapsed());
    }
    times
}

fn line(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let mean = times.iter().sum::<Duration>() / u32::try_from(times.len()).expect("few steps");
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!(
        "  {what}: mean {mean:.1?}, median {:.1?}, 95% {:.1?}, max {:.1?} per token",
        at(0.5),
        at(0.95),
        at(1.0)
    );
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "passenger": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "size": {"type": "number"}},
                "required": ["name"],
            },
            "class": {"enum": ["économique", "business", "头等舱"]},
            "seats": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 60}},
            "note": {"type": "string"},
        },
        "required": ["passenger", "class"],
        "additionalProperties": false,
    })
}
