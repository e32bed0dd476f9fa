//! This project's stream parser beside openai-harmony's, token by token: the same messages, and
//! the same text at the same token.
//!
//! Known differences, each with a test below:
//!
//! | what | openai-harmony | here | why |
//! |---|---|---|---|
//! | the content type after `<|constrain|>` | `<|constrain|>json` | `json` | no control token reaches the app |
//! | `<|channel|>analysis code` without a recipient | recipient `code` | content type `code` | the recipient comes after `to=` |
//! | the last half of a character | only in the message | a delta too, at the end of the message | deltas, joined, are the text |
//! | a character broken off by another | U+FFFD, the other one token later | both at once | nothing is held longer than needed |
//! | a channel's name with characters such as `?` | the channel | text | it is more often text than a header |

use gpt_oss_mlx_harmony::chat::events::{ChatEvent, EndReason};
use gpt_oss_mlx_harmony::chat::harmony::HarmonyParser;
use gpt_oss_mlx_harmony::{harmony, tokenizer};
use openai_harmony::StreamableParser;
use openai_harmony::chat::{Content, Message, Role};

/// A message: channel, recipient, content type, text.
type Parsed = (Option<String>, Option<String>, Option<String>, String);

/// What a parser says: the messages, and what text each token brought.
#[derive(Debug, PartialEq)]
struct Said {
    messages: Vec<Parsed>,
    deltas: Vec<String>,
}

fn theirs(ids: &[u32]) -> Result<Said, String> {
    let mut parser = StreamableParser::new(harmony().clone(), Some(Role::Assistant)).unwrap();
    let mut deltas = Vec::new();
    for &id in ids {
        parser.process(id).map_err(|e| e.to_string())?;
        deltas.push(parser.last_content_delta().unwrap().unwrap_or_default());
    }
    parser.process_eos().map_err(|e| e.to_string())?;
    let message = |message: &Message| {
        let [Content::Text(text)] = &message.content[..] else { panic!("{message:?}") };
        let content_type = message.content_type.as_deref();
        let content_type = content_type.map(|t| t.trim_start_matches("<|constrain|>").to_owned());
        (message.channel.clone(), message.recipient.clone(), content_type, text.text.clone())
    };
    Ok(Said { messages: parser.messages().iter().map(message).collect(), deltas })
}

fn ours(ids: &[u32]) -> Said {
    let mut parser = HarmonyParser::new(tokenizer()).unwrap();
    let (mut messages, mut deltas, mut text) = (Vec::new(), Vec::new(), String::new());
    let mut take = |events: Vec<ChatEvent>| {
        let mut delta = String::new();
        for event in events {
            match event {
                ChatEvent::AnalysisDelta { text: t }
                | ChatEvent::CommentaryDelta { text: t }
                | ChatEvent::FinalDelta { text: t }
                | ChatEvent::ArgumentsDelta { text: t, .. } => {
                    text.push_str(&t);
                    delta.push_str(&t);
                }
                ChatEvent::MessageEnd { channel, recipient, content_type, .. } => {
                    messages.push((channel, recipient, content_type, std::mem::take(&mut text)));
                }
                _ => {}
            }
        }
        delta
    };
    for &id in ids {
        deltas.push(take(parser.push(id).unwrap()));
    }
    take(parser.finish(EndReason::Stop));
    Said { messages, deltas }
}

fn same(turn: &str) {
    let ids = harmony().tokenizer().encode_with_special_tokens(turn);
    assert_eq!(tokenizer().encode(turn, true).unwrap(), ids);
    assert_eq!(ours(&ids), theirs(&ids).unwrap(), "{turn}");
}

const HEADERS: [&str; 13] = [
    "<|channel|>analysis",
    "<|channel|>final",
    "<|channel|>commentary",
    "<|channel|>commentary to=functions.get_weather",
    "<|channel|>commentary to=functions.get_weather json",
    "<|channel|>commentary to=functions.get_weather <|constrain|>json",
    "<|channel|>commentary to=functions.get_weather<|constrain|>json",
    "<|channel|>analysis to=browser.search code",
    "<|channel|>analysis to=python code",
    " to=functions.get_weather<|channel|>commentary",
    " to=functions.get_weather<|channel|>commentary json",
    " to=functions.get_weather<|channel|>commentary <|constrain|>json",
    " to=python<|channel|>analysis  code ",
];

const TEXTS: [&str; 9] = [
    "",
    "It is sunny in Paris, at 21 degrees.",
    "{\"city\": \"Zürich\", \"days\": [1, 2]}",
    "   spaces\n\n\ttabs   ",
    "to=functions.f <|not a token|> <| |>",
    "你好，世界 🙂👩‍👩‍👧 naïve",
    "assistant",
    "<",
    "𒀀𒁀𒂀 🇫🇷 ｅ́",
];

const ENDS: [&str; 3] = ["<|end|>", "<|call|>", "<|return|>"];

#[test]
fn every_header_with_every_text_and_end() {
    for header in HEADERS {
        for text in TEXTS {
            for end in ENDS {
                same(&format!("{header}<|message|>{text}{end}"));
            }
            // Cut off by the end of the stream.
            same(&format!("{header}<|message|>{text}"));
        }
    }
}

/// Turns of several messages, drawn by a fixed sequence of numbers.
#[test]
fn turns_of_several_messages() {
    let mut state = 1_u64;
    let mut draw = |n: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % n
    };
    for _ in 0..300 {
        let mut turn = String::new();
        for i in 0..1 + draw(5) {
            if i > 0 {
                turn += "<|start|>assistant";
            }
            let header = HEADERS[draw(HEADERS.len())];
            turn += &format!("{header}<|message|>{}{}", TEXTS[draw(TEXTS.len())], ENDS[draw(3)]);
        }
        same(&turn);
    }
}

/// What openai-harmony writes, this project's parser reads.
#[test]
fn what_harmony_renders_is_read_back() {
    let message = |text: &str| Message::from_role_and_content(Role::Assistant, text);
    let messages = [
        message("Let me see.").with_channel("analysis"),
        message("I will look it up.").with_channel("commentary"),
        message("{\"city\":\"Zürich\"}")
            .with_channel("commentary")
            .with_recipient("functions.get_weather")
            .with_content_type("<|constrain|>json"),
        message("import math")
            .with_channel("analysis")
            .with_recipient("python")
            .with_content_type("code"),
        message("{\"query\":\"rust\"}").with_channel("analysis").with_recipient("browser.search"),
        message("It is sunny. <|end|> 🙂").with_channel("final"),
    ];
    let mut ids = harmony().render_conversation(&messages, None).unwrap();
    // A prompt ends in the first `<|start|>assistant`.
    let header = harmony().tokenizer().encode_with_special_tokens("<|start|>assistant");
    assert_eq!(ids[..header.len()], header);
    ids.drain(..header.len());
    let expected = [
        ("analysis", None, None, "Let me see."),
        ("commentary", None, None, "I will look it up."),
        ("commentary", Some("functions.get_weather"), Some("json"), "{\"city\":\"Zürich\"}"),
        ("analysis", Some("python"), Some("code"), "import math"),
        ("analysis", Some("browser.search"), None, "{\"query\":\"rust\"}"),
        ("final", None, None, "It is sunny. <|end|> 🙂"),
    ]
    .map(|(channel, recipient, content_type, text)| {
        let owned = |text: &str| text.to_owned();
        (Some(owned(channel)), recipient.map(owned), content_type.map(owned), owned(text))
    });
    assert_eq!(ours(&ids).messages, expected);
    assert_eq!(theirs(&ids).unwrap().messages, expected);
}

/// Every character of several tokens, cut everywhere: the text comes at the same token.
#[test]
fn half_characters_come_at_the_same_token() {
    let byte =
        |byte: u8| (0..256).find(|&id| tokenizer().token_bytes(id).unwrap() == [byte]).unwrap();
    let control = |name: &str| tokenizer().token_id(name).unwrap();
    let mut ids = tokenizer().encode("<|channel|>final<|message|>", true).unwrap();
    ids.extend("aé€🙂ñ".bytes().map(byte));
    ids.push(control("<|return|>"));
    assert_eq!(ours(&ids), theirs(&ids).unwrap());
    // A message that ends in half a character: the same text, and here a delta with it.
    for cut in 1..4 {
        let mut ids = tokenizer().encode("<|channel|>final<|message|>a", true).unwrap();
        ids.extend("🙂".bytes().take(cut).map(byte));
        ids.push(control("<|return|>"));
        let (ours, theirs) = (ours(&ids), theirs(&ids).unwrap());
        assert_eq!(ours.messages, theirs.messages);
        assert_eq!(ours.deltas.concat(), "a\u{FFFD}");
        assert_eq!(theirs.deltas.concat(), "a");
    }
}

#[test]
fn a_character_broken_off_by_another() {
    let byte =
        |byte: u8| (0..256).find(|&id| tokenizer().token_bytes(id).unwrap() == [byte]).unwrap();
    let mut ids = tokenizer().encode("<|channel|>final<|message|>", true).unwrap();
    let before = ids.len();
    ids.extend([0xE2, b'a', b'b'].map(byte));
    let (ours, theirs) = (ours(&ids), theirs(&ids).unwrap());
    assert_eq!(ours.messages, theirs.messages);
    assert_eq!(ours.deltas[before..], ["", "\u{FFFD}a", "b"]);
    assert_eq!(theirs.deltas[before..], ["", "\u{FFFD}", "ab"]);
}

#[test]
fn a_channel_that_is_no_word() {
    let ids = tokenizer().encode("<|channel|>??<|message|>!<|end|>", true).unwrap();
    let (ours, theirs) = (ours(&ids).messages, theirs(&ids).unwrap().messages);
    assert_eq!(ours, [(None, None, None, "??!".into())]);
    assert_eq!(theirs, [(Some("??".into()), None, None, "!".into())]);
}

#[test]
fn a_content_type_without_a_recipient() {
    let parse = |turn: &str| {
        let ids = tokenizer().encode(turn, true).unwrap();
        (ours(&ids).messages, theirs(&ids).map(|said| said.messages))
    };
    let text = |text: &str| Some(text.to_owned());
    for (header, channel, kind) in [
        ("<|channel|>analysis code", "analysis", "code"),
        ("<|channel|>final <|constrain|>json", "final", "json"),
    ] {
        let (ours, theirs) = parse(&format!("{header}<|message|>x<|end|>"));
        assert_eq!(ours, [(text(channel), None, text(kind), "x".into())]);
        let theirs = theirs.unwrap();
        assert_eq!(theirs[0].0, text(channel));
        assert!(theirs[0].1.as_deref().unwrap().ends_with(kind));
        assert_eq!((&theirs[0].2, theirs[0].3.as_str()), (&None, "x"));
    }
}

/// What openai-harmony refuses is read here, without loss.
#[test]
fn what_harmony_refuses() {
    for (turn, text) in [
        ("Just text.<|return|>", "Just text."),
        ("<|channel|>final Yes, it is.<|return|>", "Yes, it is."),
        ("<|channel|>?? commentary to=x json<|message|>!<|end|>", "?? commentary to=x json!"),
        ("<|channel|>commentary to=assistant to=functions.f json<|message|>{}<|call|>", "{}"),
        ("<|channel|>analysis<|message|>a<|end|>b<|return|>", "ab"),
        ("<|channel|>analysis", ""),
    ] {
        let ids = tokenizer().encode(turn, true).unwrap();
        assert!(theirs(&ids).is_err(), "{turn}");
        let texts: Vec<String> = ours(&ids).messages.into_iter().map(|said| said.3).collect();
        assert_eq!(texts.concat(), text, "{turn}");
    }
}
