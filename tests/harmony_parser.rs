//! From tokens to events: what each well-formed and each malformed turn becomes.

use std::path::Path;
use std::sync::OnceLock;

use gpt_oss_mlx::chat::events::{ChatEvent, EndReason};
use gpt_oss_mlx::chat::harmony::HarmonyParser;
use gpt_oss_mlx::tokenizer::Tokenizer;
use proptest::prelude::*;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");

fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| Tokenizer::from_dir(Path::new(MODEL)).unwrap())
}

fn parser() -> HarmonyParser {
    let tools = ["get_weather", "browser.search", "python"];
    HarmonyParser::new(tokenizer()).unwrap().with_tools(tools)
}

fn ids(text: &str) -> Vec<u32> {
    tokenizer().encode(text, true).unwrap()
}

/// All events, in order.
fn parse_with(mut parser: HarmonyParser, ids: &[u32], reason: EndReason) -> Vec<ChatEvent> {
    let mut events: Vec<_> = ids.iter().flat_map(|&id| parser.push(id).unwrap()).collect();
    events.extend(parser.finish(reason));
    events
}

fn parse(text: &str) -> Vec<ChatEvent> {
    parse_with(parser(), &ids(text), EndReason::Stop)
}

/// The same events with the deltas of one text joined, one line each:
///
/// ```text
/// analysis: TEXT
/// call 0 NAME
/// args 0: TEXT
/// called 0 NAME: ARGUMENTS
/// end CHANNEL RECIPIENT TYPE [HEADER] DEFECT
/// ```
fn lines(events: &[ChatEvent]) -> Vec<String> {
    let mut lines: Vec<(String, String)> = Vec::new();
    for event in events {
        let (head, text) = match event.clone() {
            ChatEvent::AnalysisDelta { text } => ("analysis: ".into(), text),
            ChatEvent::CommentaryDelta { text } => ("commentary: ".into(), text),
            ChatEvent::FinalDelta { text } => ("final: ".into(), text),
            ChatEvent::ArgumentsDelta { index, text } => (format!("args {index}: "), text),
            ChatEvent::ToolCallStarted { index, name, known } => {
                (format!("call {index} {name}{}", if known { "" } else { " (unknown)" }), "".into())
            }
            ChatEvent::ToolCallFinished { index, name, arguments, valid_json } => {
                let json = if valid_json { "" } else { " (not JSON)" };
                (format!("called {index} {name}{json}: {arguments}"), String::new())
            }
            ChatEvent::MessageEnd { channel, recipient, content_type, header, defect } => {
                let mut line = "end".to_owned();
                for field in [channel, recipient, content_type] {
                    line += &format!(" {}", field.as_deref().unwrap_or("-"));
                }
                line += &format!(" [{header}]");
                if let Some(defect) = defect {
                    line += &format!(" {defect:?}");
                }
                (line, String::new())
            }
            ChatEvent::TurnEnd { reason } => (reason.as_str().to_owned(), String::new()),
            other => panic!("{other:?}"),
        };
        match lines.last_mut() {
            Some((last, joined)) if *last == head && !text.is_empty() => joined.push_str(&text),
            _ => lines.push((head, text)),
        }
    }
    lines.into_iter().map(|(head, text)| head + &text).collect()
}

#[track_caller]
fn check(turn: &str, expected: &[&str]) {
    assert_eq!(lines(&parse(turn)), expected, "{turn}");
}

/// A turn whose last line is not the usual "stop".
#[track_caller]
fn check_cut(turn: &str, expected: &[&str]) {
    let events = parse_with(parser(), &ids(turn), EndReason::Length);
    let (last, rest) = expected.split_last().unwrap();
    assert_eq!(*last, "length");
    let lines = lines(&events);
    assert_eq!(lines.split_last().unwrap(), (&"length".to_owned(), rest_of(rest).as_slice()));
}

fn rest_of(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|&line| line.to_owned()).collect()
}

#[test]
fn a_whole_turn() {
    check(
        "<|channel|>analysis<|message|>Let me see.<|end|>\
         <|start|>assistant<|channel|>final<|message|>It is so.<|return|>",
        &[
            "analysis: Let me see.",
            "end analysis - - [analysis]",
            "final: It is so.",
            "end final - - [assistantfinal]",
            "stop",
        ],
    );
}

#[test]
fn a_preamble_and_several_calls() {
    check(
        "<|channel|>analysis<|message|>Hm.<|end|>\
         <|start|>assistant<|channel|>commentary<|message|>I will look.<|end|>\
         <|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"a\":1}<|call|>\
         <|start|>assistant<|channel|>analysis to=browser.search code<|message|>{}<|call|>\
         <|start|>assistant to=python<|channel|>analysis<|message|>print(1)<|call|>",
        &[
            "analysis: Hm.",
            "end analysis - - [analysis]",
            "commentary: I will look.",
            "end commentary - - [assistantcommentary]",
            "call 0 get_weather",
            "args 0: {\"a\":1}",
            "called 0 get_weather: {\"a\":1}",
            "end commentary functions.get_weather json [assistantcommentary to=functions.get_weather json]",
            "call 1 browser.search",
            "args 1: {}",
            "called 1 browser.search: {}",
            "end analysis browser.search code [assistantanalysis to=browser.search code]",
            "call 2 python",
            "args 2: print(1)",
            "called 2 python (not JSON): print(1)",
            "end analysis python - [assistant to=pythonanalysis]",
            "tool_calls",
        ],
    );
}

#[test]
fn a_call_in_every_order() {
    for (header, content_type) in [
        ("<|channel|>commentary to=functions.get_weather <|constrain|>json", "json"),
        ("<|channel|>commentary to=functions.get_weather<|constrain|>json", "json"),
        ("<|channel|>commentary to=functions.get_weather <|constrain|> json ", "json"),
        ("<|channel|>commentary to=functions.get_weather json", "json"),
        ("<|channel|>commentary to=functions.get_weather", "-"),
        ("<|channel|>commentary  to=functions.get_weather \n", "-"),
        ("<|channel|>commentary to=get_weather", "-"),
        ("<|channel|>commentary to= functions.get_weather", "-"),
        ("<|channel|>commentary to= get_weather", "-"),
        ("<|channel|>commentary functions.get_weather json", "json"),
        ("<|channel|> commentary<|constrain|>json to=functions.get_weather", "json"),
        ("<|channel|>to=functions.get_weather commentary", "-"),
        (" to=functions.get_weather<|channel|>commentary", "-"),
        (" to=functions.get_weather<|channel|>commentary json", "json"),
        (" to=functions.get_weather<|channel|>commentary <|constrain|>json", "json"),
        (" to=functions.get_weather <|constrain|>json<|channel|>commentary", "json"),
        ("<|start|>assistant to=functions.get_weather<|channel|>commentary", "-"),
        ("<|start|>assistant<|channel|>commentary to=functions.get_weather ", "-"),
        ("assistant<|channel|>commentary to=functions.get_weather", "-"),
        ("assistant to=functions.get_weather<|channel|>commentary", "-"),
        // The control token before the channel is missing.
        ("commentary to=functions.get_weather json", "json"),
        ("<|start|>assistantcommentary to=functions.get_weather json", "json"),
        // An unknown word does no harm.
        ("<|channel|>commentary to=functions.get_weather xml", "xml"),
        ("<|channel|>commentary xml functions.get_weather", "xml"),
        ("<|channel|>commentary to=functions.get_weather <|constrain|>json schema", "json"),
        // The last recipient counts.
        ("<|channel|>commentary to=assistant to=functions.get_weather json", "json"),
    ] {
        let events = parse(&format!("{header}<|message|>{{\"a\":1}}<|call|>"));
        let found = lines(&events);
        assert_eq!(found.len(), 5, "{header}: {found:#?}");
        assert_eq!(found[0], "call 0 get_weather", "{header}");
        assert_eq!(found[1], "args 0: {\"a\":1}", "{header}");
        assert_eq!(found[2], "called 0 get_weather: {\"a\":1}", "{header}");
        let words = header.replace("<|channel|>", "").replace("<|constrain|>", "");
        let words = words.replace("<|start|>", "");
        let recipient =
            if header.contains("functions.") { "functions.get_weather" } else { "get_weather" };
        assert_eq!(
            found[3],
            format!("end commentary {recipient} {content_type} [{words}]"),
            "{header}"
        );
        assert_eq!(found[4], "tool_calls", "{header}");
    }
}

#[test]
fn what_is_no_tool() {
    check(
        "<|channel|>commentary to=user<|message|>a<|end|>",
        &["commentary: a", "end commentary user - [commentary to=user]", "stop"],
    );
    check(
        "<|channel|>commentary<|message|>{}<|call|>",
        &["commentary: {}", "end commentary - - [commentary] NoRecipient", "stop"],
    );
}

#[test]
fn a_tool_that_was_not_offered() {
    check(
        "<|channel|>commentary to=functions.get_time<|message|>{}<|call|>",
        &[
            "call 0 get_time (unknown)",
            "args 0: {}",
            "called 0 get_time: {}",
            "end commentary functions.get_time - [commentary to=functions.get_time]",
            "tool_calls",
        ],
    );
    let open = HarmonyParser::new(tokenizer()).unwrap();
    let turn = ids("<|channel|>commentary to=functions.get_time<|message|>{}<|call|>");
    assert_eq!(lines(&parse_with(open, &turn, EndReason::Stop))[0], "call 0 get_time");
    let offered = HarmonyParser::new(tokenizer()).unwrap().with_tools(["functions.get_time"]);
    assert_eq!(lines(&parse_with(offered, &turn, EndReason::Stop))[0], "call 0 get_time");
}

#[test]
fn arguments_that_are_not_json() {
    for arguments in ["{\"a\":", "{a: 1}", "Paris", "{} {}"] {
        let turn =
            format!("<|channel|>commentary to=functions.get_weather<|message|>{arguments}<|call|>");
        let expected = format!("called 0 get_weather (not JSON): {arguments}");
        assert_eq!(lines(&parse(&turn))[2], expected);
    }
    // None at all.
    check(
        "<|channel|>commentary to=functions.get_weather<|message|><|call|>",
        &[
            "call 0 get_weather",
            "called 0 get_weather (not JSON): ",
            "end commentary functions.get_weather - [commentary to=functions.get_weather]",
            "tool_calls",
        ],
    );
}

#[test]
fn text_without_a_header_is_the_answer() {
    for text in [
        "Just text.",
        "to",
        " to= ",
        "to be, or not to be",
        "  \n",
        "fin",
        "final answer: 4",
        "assistants",
        "assistant to be",
        "json",
        "code is art",
        "commentary to the text",
        "to=functions.f is how it is written",
        "Zürich",
    ] {
        let expected = [format!("final: {text}"), "end - - - [] NoHeader".into(), "stop".into()];
        assert_eq!(lines(&parse(&format!("{text}<|return|>"))), expected);
        let expected = [format!("final: {text}"), "end - - - [] NoHeader".into(), "length".into()];
        let open = lines(&parse_with(parser(), &ids(text), EndReason::Length));
        // Whether a message was ended is not asked of one that never began.
        assert_eq!(open, expected);
    }
    check("", &["stop"]);
    check("<|return|>", &["stop"]);
    check(
        "Text.<|channel|>analysis<|message|>Hm.<|end|>More.",
        &[
            "final: Text.",
            "end - - - [] NoHeader",
            "analysis: Hm.",
            "end analysis - - [analysis]",
            "final: More.",
            "end - - - [] NoHeader",
            "stop",
        ],
    );
}

#[test]
fn headers_without_a_channel_or_with_an_unknown_one() {
    check("<|message|>a<|end|>", &["final: a", "end - - - [] NoChannel", "stop"]);
    check(
        "<|start|>assistant<|message|>a<|end|>",
        &["final: a", "end - - - [assistant] NoChannel", "stop"],
    );
    check(
        " to=functions.get_weather<|message|>{}<|call|>",
        &[
            "call 0 get_weather",
            "args 0: {}",
            "called 0 get_weather: {}",
            "end - functions.get_weather - [ to=functions.get_weather] NoChannel",
            "tool_calls",
        ],
    );
    check(
        "<|channel|>thoughts<|message|>a<|end|>",
        &["final: a", "end thoughts - - [thoughts] UnknownChannel", "stop"],
    );
    check("<|channel|><|message|>a<|end|>", &["final: a", "end - - - [] NoChannel", "stop"]);
    check(
        "<|channel|> \n analysis <|message|>a<|end|>",
        &["analysis: a", "end analysis - - [ \n analysis ]", "stop"],
    );
    // Without the control token before it.
    check("analysis<|message|>a<|end|>", &["analysis: a", "end analysis - - [analysis]", "stop"]);
    check(
        "<|start|>assistantfinal<|message|>a<|end|>",
        &["final: a", "end final - - [assistantfinal]", "stop"],
    );
    check(
        "<|channel|>analysis<|channel|>final<|message|>b<|end|>",
        &["final: b", "end final - - [analysisfinal]", "stop"],
    );
}

#[test]
fn headers_that_run_into_their_text() {
    check(
        "<|channel|>final The answer is 4.<|return|>",
        &["final: The answer is 4.", "end final - - [final ] NoMessageToken", "stop"],
    );
    check(
        "<|channel|>analysis\n\nWe need to see.<|end|>\
         <|start|>assistant<|channel|>final<|message|>4<|return|>",
        &[
            "analysis: We need to see.",
            "end analysis - - [analysis\n\n] NoMessageToken",
            "final: 4",
            "end final - - [assistantfinal]",
            "stop",
        ],
    );
    check(
        "<|start|>assistant Hello, you.<|return|>",
        &["final: Hello, you.", "end - - - [assistant ] NoMessageToken", "stop"],
    );
    check(
        "<|start|>Hello you<|return|>",
        &["final: Hello you", "end - - - [] NoMessageToken", "stop"],
    );
    for arguments in ["{\"a\":1}", " {\"a\":1}", "json{\"a\":1}", " <|constrain|>json {\"a\":1}"] {
        let turn = format!("<|channel|>commentary to=functions.get_weather{arguments}<|call|>");
        let found = lines(&parse(&turn.replace("weatherjson", "weather json")));
        assert_eq!(
            found[..3],
            ["call 0 get_weather", "args 0: {\"a\":1}", "called 0 get_weather: {\"a\":1}",]
        );
        assert!(found[3].ends_with("NoMessageToken"), "{}", found[3]);
    }
    // Seen in the wild.
    for (header, text) in [("commentary 2?", "2?"), ("commentary?commentary?", "?commentary?")] {
        let found = lines(&parse(&format!("<|channel|>{header}<|end|>")));
        assert_eq!(found[0], format!("commentary: {text}"));
        assert_eq!(found.len(), 3);
    }
    check("<|channel|>??<|end|>", &["final: ??", "end - - - [] NoMessageToken", "stop"]);
    check(
        "<|channel|>commentary to=assistant<|channel|>commentary?<|end|>",
        &[
            "commentary: ?",
            "end commentary assistant - [commentary to=assistantcommentary] NoMessageToken",
            "stop",
        ],
    );
    // The text goes on behind a control token that comes late.
    check(
        "<|channel|>final The one<|message|> and only.<|return|>",
        &["final: The one and only.", "end final - - [final ] NoMessageToken", "stop"],
    );
}

#[test]
fn headers_that_are_cut_off() {
    for end in ["<|return|>", "<|end|>", "<|call|>", "<|endoftext|>"] {
        check(
            &format!("<|channel|>analysis{end}"),
            &["end analysis - - [analysis] CutHeader", "stop"],
        );
        check(&format!("<|channel|>{end}"), &["stop"]);
        check(
            &format!("<|channel|>commentary to=functions.get_weather json{end}"),
            &[
                "call 0 get_weather",
                "called 0 get_weather (not JSON): ",
                "end commentary functions.get_weather json [commentary to=functions.get_weather json] CutHeader",
                "tool_calls",
            ],
        );
        check(
            &format!("<|channel|>final Yes{end}"),
            &["final: Yes", "end final - - [final ] NoMessageToken", "stop"],
        );
        check(
            &format!("<|channel|>Yes{end}"),
            &["final: Yes", "end - - - [] NoMessageToken", "stop"],
        );
        check(
            &format!("<|start|>assistant<|channel|>fin{end}"),
            &["end fin - - [assistantfin] CutHeader", "stop"],
        );
    }
    check(
        " to=functions.get_weather<|call|>",
        &[
            "call 0 get_weather",
            "called 0 get_weather (not JSON): ",
            "end - functions.get_weather - [ to=functions.get_weather] CutHeader",
            "tool_calls",
        ],
    );
    check_cut(
        "<|channel|>commentary to=functions.get_wea",
        &[
            "end commentary functions.get_wea - [commentary to=functions.get_wea] CutHeader",
            "length",
        ],
    );
    check_cut(
        "<|channel|>final Yes",
        &["final: Yes", "end final - - [final ] NoMessageToken", "length"],
    );
    check_cut("<|start|>assis", &["end - - - [assis] CutHeader", "length"]);
    check_cut("<|start|>", &["length"]);
    check_cut(
        "<|channel|>final<|message|>Yes",
        &["final: Yes", "end final - - [final] NotEnded", "length"],
    );
    check_cut("<|channel|>final<|message|>", &["end final - - [final] NotEnded", "length"]);
    check_cut(
        "<|channel|>analysis to=python<|message|>1",
        &[
            "call 0 python",
            "args 0: 1",
            "called 0 python: 1",
            "end analysis python - [analysis to=python] NotEnded",
            "length",
        ],
    );
    check_cut(
        "<|channel|>final<|message|>Yes<|return|>",
        &["final: Yes", "end final - - [final]", "length"],
    );
}

#[test]
fn nested_and_repeated_starts() {
    let both = &[
        "analysis: a",
        "end analysis - - [analysis] NotEnded",
        "final: b",
        "end final - - [final]",
        "stop",
    ];
    check("<|channel|>analysis<|message|>a<|channel|>final<|message|>b<|return|>", both);
    check(
        "<|channel|>analysis<|message|>a<|start|>assistant<|channel|>final<|message|>b<|return|>",
        &[both[0], both[1], both[2], "end final - - [assistantfinal]", "stop"],
    );
    check(
        "<|start|><|start|> <|start|>assistant<|channel|>final<|message|>b<|return|>",
        &["final: b", "end final - - [ assistantfinal]", "stop"],
    );
    check(
        "<|start|>assistant<|start|>assistant<|channel|>final<|message|>b<|return|>",
        &["end - - - [assistant] CutHeader", "final: b", "end final - - [assistantfinal]", "stop"],
    );
    check(
        "assistant<|start|>assistant<|channel|>final<|message|>b<|end|>\n<|start|>",
        &[
            "end - - - [assistant] CutHeader",
            "final: b",
            "end final - - [assistantfinal]",
            "end - - - [\n] CutHeader",
            "stop",
        ],
    );
    // Other control tokens in a text are not text and end nothing.
    check(
        "<|channel|>analysis<|message|>a<|message|>b<|constrain|>c<|startoftext|>d<|end|>",
        &["analysis: abcd", "end analysis - - [analysis]", "stop"],
    );
}

#[test]
fn other_roles() {
    check(
        "<|channel|>final<|message|>Yes.<|end|><|start|>user<|message|>And you?<|end|>",
        &[
            "final: Yes.",
            "end final - - [final]",
            "analysis: And you?",
            "end - - - [user] OtherRole",
            "stop",
        ],
    );
    check(
        "<|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>{}<|end|>",
        &[
            "commentary: {}",
            "end commentary assistant - [functions.get_weather to=assistantcommentary] OtherRole",
            "stop",
        ],
    );
}

/// Nothing is held once it is clear what it is.
#[test]
fn text_is_not_held_back() {
    let body = |prefix: &str, text: &str| {
        let mut parser = parser();
        for id in ids(prefix) {
            assert_eq!(parser.push(id).unwrap(), [], "{prefix}");
        }
        for id in tokenizer().encode(text, false).unwrap() {
            let events = parser.push(id).unwrap();
            let text = tokenizer().decode(&[id], false).unwrap();
            assert!(
                matches!(&events[..], [ChatEvent::FinalDelta { text: shown }] if *shown == text),
                "{events:?}"
            );
        }
    };
    body("", "Hello, world!");
    body("<|channel|>final<|message|>", "to=functions.f, they said");
    body("<|message|>", " to=x");
    // Two unknown words settle it, whatever follows.
    let mut parser = parser();
    let turn = ids("<|channel|>final Hello you");
    let (&last, before) = turn.split_last().unwrap();
    let held: Vec<_> = before.iter().flat_map(|&id| parser.push(id).unwrap()).collect();
    let shown = parser.push(last).unwrap();
    let all: Vec<_> = held.into_iter().chain(shown).collect();
    assert_eq!(lines(&all), ["final: Hello you"]);
}

/// A header that never ends is text: memory and delay are bounded.
#[test]
fn an_endless_header_is_text() {
    for (piece, prefix) in [
        (" ", ""),
        ("a", "<|channel|>"),
        (" ", "<|channel|>final"),
        ("a", "to="),
        ("a", "<|channel|>commentary to="),
    ] {
        let mut parser = parser();
        let turn = ids(&format!("{prefix}{}", piece.repeat(3000)));
        let events: Vec<_> = turn.iter().flat_map(|&id| parser.push(id).unwrap()).collect();
        let texts = lines(&events);
        assert_eq!(texts.len(), 1, "{texts:?}");
        assert!(texts[0].len() > 1900, "{}", texts[0].len());
    }
}

#[test]
fn half_characters() {
    let byte = |byte: u8| {
        let spelled = |id: &u32| tokenizer().token_bytes(*id).unwrap() == [byte];
        (0..2048).find(spelled).unwrap()
    };
    let [first, second, third] = "€".as_bytes() else { panic!() };
    let mut parser = parser();
    for id in ids("<|channel|>final<|message|>") {
        parser.push(id).unwrap();
    }
    assert_eq!(parser.push(byte(*first)).unwrap(), []);
    assert_eq!(parser.push(byte(*second)).unwrap(), []);
    assert_eq!(lines(&parser.push(byte(*third)).unwrap()), ["final: €"]);
    assert_eq!(parser.push(byte(*first)).unwrap(), []);
    // The next message does not complete it.
    let end = parser.push(ids("<|end|>")[0]).unwrap();
    assert_eq!(lines(&end), ["final: \u{FFFD}", "end final - - [final]"]);
    let events = parser.push(byte(*second)).unwrap();
    assert_eq!(lines(&events), ["final: \u{FFFD}"]);
    // Nor is it lost at the end of the stream.
    parser.push(byte(*first)).unwrap();
    let end = parser.finish(EndReason::Length);
    assert_eq!(lines(&end), ["final: \u{FFFD}", "end - - - [] NoHeader", "length"]);
}

#[test]
fn stop_strings_apply_to_the_answer_alone() {
    let stops = || vec!["STOP".to_owned(), "\n\n".to_owned()];
    let parse = |text: &str| {
        let parser = parser().with_stop(stops()).unwrap();
        lines(&parse_with(parser, &ids(text), EndReason::Stop))
    };
    assert_eq!(
        parse(
            "<|channel|>analysis<|message|>a STOP b<|end|>\
             <|channel|>commentary<|message|>c STOP<|end|>\
             <|channel|>commentary to=python<|message|>\"STOP\"<|call|>\
             <|channel|>final<|message|>d STOP e<|end|><|channel|>final<|message|>f"
        ),
        [
            "analysis: a STOP b",
            "end analysis - - [analysis]",
            "commentary: c STOP",
            "end commentary - - [commentary]",
            "call 0 python",
            "args 0: \"STOP\"",
            "called 0 python: \"STOP\"",
            "end commentary python - [commentary to=python]",
            "final: d ",
            "end final - - [final]",
            "stop",
        ]
    );
    // Also where the answer has no header, or one that runs into it.
    assert_eq!(parse("Yes.\n\nNo."), ["final: Yes.", "end - - - [] NoHeader", "stop"]);
    assert_eq!(
        parse("<|channel|>final\n\nYes.STOPNo."),
        ["final: Yes.", "end final - - [final\n\n] NoMessageToken", "stop"]
    );
    // The beginning of a stop string comes when it is none.
    assert_eq!(
        parse("<|channel|>final<|message|>ST<|end|>OP<|return|>"),
        ["final: ST", "end final - - [final]", "final: OP", "end - - - [] NoHeader", "stop"]
    );
    // A stop string that is complete only when the text turns out to be no header.
    let turn = ids("to<|end|><|start|>assistant<|channel|>analysis<|message|>a<|end|>");
    let stopping = parser().with_stop(vec!["to".into()]).unwrap();
    let events = parse_with(stopping, &turn, EndReason::Stop);
    assert_eq!(lines(&events), ["end - - - [] NoHeader", "stop"]);
    let mut parser = parser().with_stop(stops()).unwrap();
    for id in ids("<|channel|>final<|message|>a STOP") {
        parser.push(id).unwrap();
    }
    assert_eq!(parser.stopped(), Some(0));
    assert_eq!(parser.push(ids("x")[0]).unwrap(), []);
    assert_eq!(parser.push(ids("<|start|>")[0]).unwrap(), []);
    let end = ChatEvent::TurnEnd { reason: EndReason::StopString };
    assert_eq!(parser.finish(EndReason::Stop), [end]);
    assert_eq!(parser.finish(EndReason::Stop), []);
    assert_eq!(parser.push(ids("x")[0]).unwrap(), []);
    assert!(HarmonyParser::new(tokenizer()).unwrap().with_stop(vec![String::new()]).is_err());
}

#[test]
fn events_as_json() {
    let events = parse("<|channel|>final<|message|>a<|return|>");
    assert_eq!(
        serde_json::to_string(&events).unwrap(),
        r#"[{"type":"final_delta","text":"a"},{"type":"message_end","channel":"final","recipient":null,"content_type":null,"header":"final","defect":null},{"type":"turn_end","reason":"stop"}]"#
    );
}

#[test]
fn a_tokenizer_without_harmony_has_no_parser() {
    let text = std::fs::read_to_string(Path::new(MODEL).join("tokenizer.json")).unwrap();
    let other = |name: &str| {
        let text = text.replace(name, "<|other|>");
        HarmonyParser::new(&Tokenizer::from_json(Path::new("t"), &text).unwrap())
    };
    for name in ["<|channel|>", "<|start|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"] {
        assert!(other(name).is_none(), "{name}");
    }
    assert!(other("<|constrain|>").is_some());
    assert!(other("<|endoftext|>").is_some());
}

#[test]
fn an_id_outside_the_vocabulary_is_an_error() {
    let mut parser = parser();
    assert!(parser.push(5000).unwrap_err().to_string().contains("5000"));
    assert_eq!(lines(&parser.push(ids("A")[0]).unwrap()), ["final: A"]);
}

/// All that the model wrote, by message: its header, then its text.
fn written(events: &[ChatEvent]) -> String {
    let (mut whole, mut text) = (String::new(), String::new());
    for event in events {
        match event {
            ChatEvent::AnalysisDelta { text: t }
            | ChatEvent::CommentaryDelta { text: t }
            | ChatEvent::FinalDelta { text: t }
            | ChatEvent::ArgumentsDelta { text: t, .. } => text.push_str(t),
            ChatEvent::MessageEnd { header, .. } => {
                whole.push_str(header);
                whole.push_str(&std::mem::take(&mut text));
            }
            _ => {}
        }
    }
    assert_eq!(text, "", "text after the last message's end");
    whole
}

/// Tokens as a model that has lost its way writes them: mostly control tokens and the words of
/// headers, some text, some bytes that are no text.
fn babble() -> impl Strategy<Value = Vec<u32>> {
    let words = [
        "assistant",
        "analysis",
        "commentary",
        "final",
        " to=",
        "functions",
        ".get",
        "_weather",
        "to=python",
        " ",
        "\n",
        "json",
        " json",
        "?",
        "{\"a\":1}",
        "Zürich",
        "€",
        "user",
        "fin",
        "to",
        "=",
        "STOP",
    ];
    let words: Vec<Vec<u32>> =
        words.iter().map(|word| tokenizer().encode(word, false).unwrap()).collect();
    let piece = prop_oneof![
        4 => (2039_u32..2048).prop_map(|id| vec![id]),
        4 => prop::sample::select(words),
        1 => (0_u32..2048).prop_map(|id| vec![id]),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    /// Whatever the model says, no text is lost, doubled or moved, and no control token shown.
    #[test]
    fn every_character_comes_out_once(ids in babble()) {
        let events = parse_with(parser(), &ids, EndReason::Stop);
        // A control token that begins or ends a message separates characters; the others do not.
        let name = |id: u32| String::from_utf8(tokenizer().token_bytes(id).unwrap().to_vec());
        let inside = |id: u32| {
            let name = name(id).unwrap();
            ["<|message|>", "<|constrain|>", "<|startoftext|>"].contains(&name.as_str())
        };
        let mut expected = String::new();
        let mut segment = Vec::new();
        for &id in &ids {
            if tokenizer().is_special(id) && !inside(id) {
                expected += &tokenizer().decode(&segment, true).unwrap();
                segment.clear();
            } else {
                segment.push(id);
            }
        }
        expected += &tokenizer().decode(&segment, true).unwrap();
        prop_assert_eq!(written(&events), expected);
    }

    /// Calls and messages nest as they should, and the end comes once.
    #[test]
    fn events_are_in_order(ids in babble(), reason in prop::sample::select(vec![
        EndReason::Stop, EndReason::Length, EndReason::Cancelled,
    ])) {
        let events = parse_with(parser(), &ids, reason);
        let mut calls = 0;
        let mut open: Option<(usize, String, String)> = None;
        let mut texts = 0;
        let (last, rest) = events.split_last().unwrap();
        for event in rest {
            match event {
                ChatEvent::ToolCallStarted { index, name, known } => {
                    prop_assert_eq!(*index, calls);
                    prop_assert!(open.is_none() && texts == 0);
                    prop_assert_eq!(*known, ["get_weather", "browser.search", "python"].contains(&name.as_str()));
                    calls += 1;
                    open = Some((*index, name.clone(), String::new()));
                }
                ChatEvent::ArgumentsDelta { index, text } => {
                    prop_assert!(!text.is_empty());
                    let (at, _, so_far) = open.as_mut().unwrap();
                    prop_assert_eq!(index, at);
                    so_far.push_str(text);
                }
                ChatEvent::ToolCallFinished { index, name, arguments, valid_json } => {
                    let json = serde_json::from_str::<serde_json::Value>(arguments).is_ok();
                    prop_assert_eq!(json, *valid_json);
                    prop_assert_eq!(open.take(), Some((*index, name.clone(), arguments.clone())));
                }
                ChatEvent::MessageEnd { .. } => {
                    prop_assert!(open.is_none());
                    texts = 0;
                }
                ChatEvent::AnalysisDelta { text }
                | ChatEvent::CommentaryDelta { text }
                | ChatEvent::FinalDelta { text } => {
                    prop_assert!(open.is_none() && !text.is_empty());
                    texts += 1;
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
        prop_assert!(open.is_none() && texts == 0);
        let expected = match reason {
            EndReason::Stop if calls > 0 => EndReason::ToolCalls,
            reason => reason,
        };
        prop_assert_eq!(last, &ChatEvent::TurnEnd { reason: expected });
    }

    /// The same text in other tokens is the same events.
    #[test]
    fn how_text_is_cut_does_not_matter(ids in babble()) {
        let mut bytewise = Vec::new();
        for &id in &ids {
            if tokenizer().is_special(id) {
                bytewise.push(id);
            } else {
                bytewise.extend(tokenizer().token_bytes(id).unwrap().iter().map(|&b| id_of(b)));
            }
        }
        let whole = lines(&parse_with(parser(), &ids, EndReason::Stop));
        let cut = lines(&parse_with(parser(), &bytewise, EndReason::Stop));
        prop_assert_eq!(whole, cut);
    }

    /// Text before a stop string is what it is without one; of the rest nothing comes out.
    #[test]
    fn a_stop_string_only_cuts(ids in babble()) {
        let stopping = parser().with_stop(vec!["STOP".into()]).unwrap();
        let cut = parse_with(stopping, &ids, EndReason::Stop);
        let whole = parse_with(parser(), &ids, EndReason::Stop);
        let answer = |events: &[ChatEvent]| -> String {
            let text = |event: &ChatEvent| match event {
                ChatEvent::FinalDelta { text } => Some(text.clone()),
                _ => None,
            };
            events.iter().filter_map(text).collect()
        };
        prop_assert!(!answer(&cut).contains("STOP"));
        prop_assert!(answer(&whole).starts_with(&answer(&cut)));
        let stopped = cut.last() == Some(&ChatEvent::TurnEnd { reason: EndReason::StopString });
        if !stopped {
            prop_assert_eq!(lines(&cut), lines(&whole));
        }
    }
}

/// The token that is this one byte.
fn id_of(byte: u8) -> u32 {
    static IDS: OnceLock<Vec<u32>> = OnceLock::new();
    let ids = IDS.get_or_init(|| {
        let spelled = |byte| (0..2048).find(|&id| tokenizer().token_bytes(id).unwrap() == [byte]);
        (u8::MIN..=u8::MAX).map(|byte| spelled(byte).unwrap()).collect()
    });
    ids[usize::from(byte)]
}
