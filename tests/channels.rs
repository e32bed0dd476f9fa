//! Which part of an answer each token belongs to.

use std::path::Path;
use std::sync::OnceLock;

use gpt_oss_mlx::chat::channels::{Channel, ChannelSplitter, Part};
use gpt_oss_mlx::tokenizer::Tokenizer;
use proptest::prelude::*;

use Channel::{Analysis, Commentary, Final};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");

fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| Tokenizer::from_dir(Path::new(MODEL)).unwrap())
}

/// Every id with its part, in order.
fn split(ids: &[u32]) -> Vec<(u32, Part)> {
    let mut splitter = ChannelSplitter::new(tokenizer()).unwrap();
    let mut parts: Vec<_> = ids.iter().flat_map(|&id| splitter.push(id).unwrap()).collect();
    parts.extend(splitter.finish());
    parts
}

/// The text of each run of equal parts, without the control tokens.
fn runs(answer: &str) -> Vec<(Part, String)> {
    let mut runs: Vec<(Part, Vec<u32>)> = Vec::new();
    for (id, part) in split(&tokenizer().encode(answer, true).unwrap()) {
        match runs.last_mut() {
            Some((last, ids)) if *last == part => ids.push(id),
            _ => runs.push((part, vec![id])),
        }
    }
    runs.retain(|(part, _)| *part != Part::Control);
    runs.into_iter().map(|(part, ids)| (part, tokenizer().decode(&ids, false).unwrap())).collect()
}

/// The bodies alone.
fn bodies(answer: &str) -> Vec<(Channel, String)> {
    let body = |(part, text)| match part {
        Part::Body(channel) => Some((channel, text)),
        _ => None,
    };
    runs(answer).into_iter().filter_map(body).collect()
}

fn body(channel: Channel, text: &str) -> (Channel, String) {
    (channel, text.to_owned())
}

#[test]
fn a_whole_turn() {
    let answer = "<|channel|>analysis<|message|>Let me see.<|end|>\
                  <|start|>assistant<|channel|>final<|message|>It is so.<|return|>";
    let expected = [
        (Part::Header, "analysis"),
        (Part::Body(Analysis), "Let me see."),
        (Part::Header, "assistant"),
        (Part::Header, "final"),
        (Part::Body(Final), "It is so."),
    ];
    assert_eq!(runs(answer), expected.map(|(part, text)| (part, text.to_owned())));
}

#[test]
fn a_tool_call_in_every_order() {
    for header in [
        "<|channel|>commentary to=functions.get_weather <|constrain|>json",
        "<|channel|>commentary to=functions.get_weather<|constrain|>json",
        "<|channel|>commentary to=functions.get_weather json",
        "<|channel|>commentary<|constrain|>json to=functions.get_weather",
        " to=functions.get_weather<|channel|>commentary json",
        " to=functions.get_weather<|channel|>commentary <|constrain|>json",
        "<|start|>assistant to=functions.get_weather<|channel|>commentary",
        "<|start|>assistant<|channel|>commentary to=functions.get_weather ",
        // Without a channel a message for a tool is still not the answer.
        " to=functions.get_weather ",
    ] {
        let ids = tokenizer().encode(&format!("{header}<|message|>{{}}<|call|>"), true).unwrap();
        let mut splitter = ChannelSplitter::new(tokenizer()).unwrap();
        let parts: Vec<_> = ids.iter().flat_map(|&id| splitter.push(id).unwrap()).collect();
        assert_eq!(splitter.recipient().as_deref(), Some("functions.get_weather"), "{header}");
        let text: Vec<u32> =
            parts.iter().filter(|(_, p)| *p == Part::Body(Commentary)).map(|p| p.0).collect();
        assert_eq!(tokenizer().decode(&text, false).unwrap(), "{}", "{header}");
        assert!(parts.iter().all(|(_, part)| *part != Part::Body(Final)), "{header}");
    }
}

#[test]
fn a_recipient_belongs_to_its_message() {
    for header in
        [" to=functions.now<|channel|>commentary", "<|channel|>commentary to=functions.now"]
    {
        let answer = format!(
            "{header}<|message|>{{}}<|call|><|start|>assistant<|channel|>final<|message|>Noon."
        );
        let mut splitter = ChannelSplitter::new(tokenizer()).unwrap();
        for id in tokenizer().encode(&answer, true).unwrap() {
            splitter.push(id).unwrap();
        }
        assert_eq!(splitter.recipient(), None, "{header}");
    }
}

#[test]
fn text_without_a_header_is_the_answer() {
    assert_eq!(bodies("Just text."), [body(Final, "Just text.")]);
    assert_eq!(bodies("to"), [body(Final, "to")]);
    assert_eq!(bodies(" to= "), [body(Final, " to= ")]);
    assert_eq!(bodies("to be, or not to be"), [body(Final, "to be, or not to be")]);
    assert_eq!(bodies(" to<|return|>"), [body(Final, " to")]);
    assert_eq!(bodies("  \n<|return|>"), [body(Final, "  \n")]);
    assert_eq!(bodies(""), []);
    // Plain text ends where a header begins.
    let answer = "Text.<|channel|>analysis<|message|>Hm.<|end|>More.";
    let expected = [body(Final, "Text."), body(Analysis, "Hm."), body(Final, "More.")];
    assert_eq!(bodies(answer), expected);
}

/// Nothing is held once it is clear what it is.
#[test]
fn plain_text_is_not_held_back() {
    let mut splitter = ChannelSplitter::new(tokenizer()).unwrap();
    let ids = tokenizer().encode("Hello, world!", true).unwrap();
    for id in ids {
        assert_eq!(splitter.push(id).unwrap(), [(id, Part::Body(Final))]);
    }
    assert_eq!(splitter.finish(), []);
}

#[test]
fn malformed_headers() {
    // No channel, an unknown channel, an empty one: shown rather than lost.
    assert_eq!(bodies("<|message|>a"), [body(Final, "a")]);
    assert_eq!(bodies("<|start|>assistant<|message|>a"), [body(Final, "a")]);
    assert_eq!(bodies("<|channel|>thoughts<|message|>a"), [body(Final, "a")]);
    assert_eq!(bodies("<|channel|><|message|>a"), [body(Final, "a")]);
    assert_eq!(bodies("<|channel|> \n analysis <|message|>a"), [body(Analysis, "a")]);
    // The end of a message is missing.
    let answer = "<|channel|>analysis<|message|>a<|channel|>final<|message|>b";
    assert_eq!(bodies(answer), [body(Analysis, "a"), body(Final, "b")]);
    let answer = "<|channel|>analysis<|message|>a<|start|>assistant<|channel|>final<|message|>b";
    assert_eq!(bodies(answer), [body(Analysis, "a"), body(Final, "b")]);
    // The second channel counts.
    assert_eq!(bodies("<|channel|>analysis<|channel|>final<|message|>b"), [body(Final, "b")]);
    // Control tokens inside a body are not text and do not end it.
    let answer = "<|channel|>analysis<|message|>a<|message|>b<|constrain|>c";
    let expected = [body(Analysis, "a"), body(Analysis, "b"), body(Analysis, "c")];
    assert_eq!(bodies(answer), expected);
    // A header that is cut off has no body.
    assert_eq!(bodies("<|channel|>analysis<|return|>"), []);
}

#[test]
fn a_tokenizer_without_harmony_has_no_splitter() {
    let text = std::fs::read_to_string(Path::new(MODEL).join("tokenizer.json")).unwrap();
    for name in ["<|channel|>", "<|start|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"] {
        let other = text.replace(name, "<|other|>");
        let other = Tokenizer::from_json(Path::new("t"), &other).unwrap();
        assert!(ChannelSplitter::new(&other).is_none(), "{name}");
    }
    let other = text.replace("<|constrain|>", "<|other|>");
    let other = Tokenizer::from_json(Path::new("t"), &other).unwrap();
    assert!(ChannelSplitter::new(&other).is_some());
}

#[test]
fn an_id_outside_the_vocabulary_is_an_error() {
    let mut splitter = ChannelSplitter::new(tokenizer()).unwrap();
    assert!(splitter.push(5000).unwrap_err().to_string().contains("5000"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..Default::default() })]

    /// Whatever the model says, no token is lost, doubled or moved, and control tokens are
    /// control tokens.
    #[test]
    fn every_token_comes_out_once(
        ids in prop::collection::vec(
            prop_oneof![2039_u32..2048, 0_u32..2048, Just(220), Just(305)], 0..60
        ),
        recipient: bool,
    ) {
        let mut ids = ids;
        if recipient {
            ids.splice(0..0, tokenizer().encode(" to=functions", false).unwrap());
        }
        let parts = split(&ids);
        prop_assert_eq!(parts.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids);
        for (id, part) in parts {
            prop_assert_eq!(part == Part::Control, tokenizer().is_special(id));
        }
    }
}
