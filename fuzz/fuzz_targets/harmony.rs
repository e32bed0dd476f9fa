//! A turn of the model, two ways: the input is text in which the names of control tokens are
//! control tokens; it is token ids, so that characters are cut anywhere. Whatever comes, no text is
//! lost, doubled or moved, and how the text is cut into tokens does not matter.

#![no_main]
#![allow(dead_code)]

#[path = "."]
mod chat {
    #[path = "../../src/chat/events.rs"]
    pub mod events;
    #[path = "../../src/chat/harmony.rs"]
    pub mod harmony;
    #[path = "../../src/chat/header.rs"]
    mod header;
}
#[path = "../../src/error.rs"]
mod error;
#[path = "../../src/stop.rs"]
mod stop;
#[path = "../../src/tokenizer.rs"]
mod tokenizer;

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

use chat::events::{ChatEvent, EndReason};
use chat::harmony::HarmonyParser;
use tokenizer::Tokenizer;

const TOKENIZER: &str = include_str!("../../assets/gpt-oss-tiny/tokenizer.json");

fn tokenizer() -> &'static Tokenizer {
    static ONE: OnceLock<Tokenizer> = OnceLock::new();
    ONE.get_or_init(|| Tokenizer::from_json(Path::new("tokenizer.json"), TOKENIZER).unwrap())
}

fuzz_target!(|input: &[u8]| {
    check(&tokenizer().encode(&String::from_utf8_lossy(input), true).unwrap());
    let (pairs, _) = input.as_chunks::<2>();
    let ids: Vec<u32> = pairs.iter().map(|&pair| id(u16::from_le_bytes(pair))).collect();
    check(&ids);
});

/// Every second number is a control token, of which there are few.
fn id(number: u16) -> u32 {
    let specials = tokenizer().special_tokens();
    let number = usize::from(number);
    if number % 2 == 0 {
        specials[number / 2 % specials.len()].1
    } else {
        u32::try_from(number / 2 % tokenizer().vocab_size()).unwrap()
    }
}

fn check(ids: &[u32]) {
    let (written, calls) = parse(ids);
    assert_eq!(written, expected(ids));
    let bytewise: Vec<u32> = ids.iter().flat_map(|&id| bytes(id)).collect();
    assert_eq!(parse(&bytewise), (written, calls));
}

/// The same text in tokens of one byte.
fn bytes(id: u32) -> Vec<u32> {
    static IDS: OnceLock<Vec<u32>> = OnceLock::new();
    let ids = IDS.get_or_init(|| {
        let spells = |id: u32, byte| tokenizer().token_bytes(id).unwrap() == [byte];
        (u8::MIN..=u8::MAX).map(|byte| (0..).find(|&id| spells(id, byte)).unwrap()).collect()
    });
    if tokenizer().is_special(id) {
        return vec![id];
    }
    tokenizer().token_bytes(id).unwrap().iter().map(|&byte| ids[usize::from(byte)]).collect()
}

/// The text without control tokens, those that begin or end a message separating characters.
fn expected(ids: &[u32]) -> String {
    let inside = ["<|message|>", "<|constrain|>", "<|startoftext|>"];
    let inside = inside.map(|name| tokenizer().token_id(name).unwrap());
    let separates = |id: &u32| tokenizer().is_special(*id) && !inside.contains(id);
    ids.split(separates).map(|ids| tokenizer().decode(ids, true).unwrap()).collect()
}

/// Headers and texts of all messages, joined, and what calls there were.
fn parse(ids: &[u32]) -> (String, Vec<ChatEvent>) {
    let mut parser = HarmonyParser::new(tokenizer()).unwrap();
    let mut events: Vec<_> = ids.iter().flat_map(|&id| parser.push(id).unwrap()).collect();
    events.extend(parser.finish(EndReason::Length));
    assert!(matches!(events.pop(), Some(ChatEvent::TurnEnd { reason: EndReason::Length })));
    let (mut written, mut text, mut calls) = (String::new(), String::new(), Vec::new());
    for event in events {
        match event {
            ChatEvent::AnalysisDelta { text: t }
            | ChatEvent::CommentaryDelta { text: t }
            | ChatEvent::FinalDelta { text: t }
            | ChatEvent::ArgumentsDelta { text: t, .. } => {
                assert!(!t.is_empty());
                text.push_str(&t);
            }
            ChatEvent::MessageEnd { header, .. } => {
                written.push_str(&header);
                written.push_str(&std::mem::take(&mut text));
            }
            ChatEvent::ToolCallFinished { ref arguments, .. } => {
                assert_eq!(*arguments, text);
                calls.push(event);
            }
            ChatEvent::ToolCallStarted { .. } => calls.push(event),
            ChatEvent::TurnEnd { .. } => panic!("the turn ends twice"),
        }
    }
    assert_eq!(text, "");
    (written, calls)
}
