//! From tokens to the text that is shown: channels, stop strings, half characters, early ends.
//! The model is a script, the tokenizer the bundled one.

mod common;

use std::path::Path;

use common::rng::Rng;
use common::script::Script;
use gpt_oss_mlx::chat::events::{ChatEvent, Defect, EndReason};
use gpt_oss_mlx::{
    CancelToken, Chat, ChatOptions, Completion, CompletionOptions, Error, FinishReason, Generation,
    Piece, Tokenizer, Visible,
};

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");
const ANSWER: &str = "<|channel|>analysis<|message|>The user asks about naïve cafés.<|end|>\
                      <|start|>assistant<|channel|>final<|message|>A naïve café: 🦀👩‍👩‍👧 und 你好.<|return|>";
const SHOWN: &str = "A naïve café: 🦀👩‍👩‍👧 und 你好.";

fn tokenizer() -> Tokenizer {
    Tokenizer::from_dir(Path::new(DIR)).unwrap()
}

fn options(visible: Visible, stop: &[&str]) -> CompletionOptions {
    let mut options = CompletionOptions::default();
    options.visible = visible;
    options.stop = stop.iter().map(|&stop| stop.into()).collect();
    options
}

/// What comes of a script, ended at the latest with its last token or when the token of the number
/// `cancel` is asked for.
fn run(
    tokenizer: &Tokenizer,
    ids: &[u32],
    cancel: Option<usize>,
    mut options: CompletionOptions,
) -> (Vec<Piece>, FinishReason) {
    let token = CancelToken::default();
    let script = Script::new(tokenizer, ids, cancel.map(|at| (at, token.clone())));
    options.generate.max_tokens = ids.len();
    options.generate.cancel = token;
    let generation = Generation::new(script, &[1], &options.generate).unwrap();
    let mut completion = Completion::new(generation, tokenizer, &options).unwrap();
    let pieces = completion.by_ref().map(|piece| piece.unwrap()).collect();
    assert!(completion.next().is_none(), "an ended completion stays ended");
    (pieces, completion.finish_reason().unwrap())
}

fn joined(pieces: &[Piece]) -> String {
    pieces.iter().map(|piece| piece.text.as_str()).collect()
}

fn said(pieces: &[Piece]) -> Vec<u32> {
    pieces.iter().filter_map(|piece| piece.token.as_ref().map(|token| token.id)).collect()
}

#[test]
fn the_answer_is_shown_and_nothing_else() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode(ANSWER, true).unwrap();
    let (pieces, finish) = run(&tokenizer, &ids, None, options(Visible::Final, &[]));
    assert_eq!((joined(&pieces).as_str(), finish), (SHOWN, FinishReason::Stop));
    assert_eq!(said(&pieces), ids);
}

#[test]
fn everything_is_shown_but_the_token_that_stops() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode(ANSWER, true).unwrap();
    let (pieces, _) = run(&tokenizer, &ids, None, options(Visible::Everything, &[]));
    assert_eq!(Some(joined(&pieces).as_str()), ANSWER.strip_suffix("<|return|>"));
    let mut never = options(Visible::Everything, &[]);
    never.generate.stop_ids = Some(vec![]);
    let (pieces, finish) = run(&tokenizer, &ids, None, never);
    assert_eq!((joined(&pieces).as_str(), finish), (ANSWER, FinishReason::Length));
}

#[test]
fn pieces_add_up_to_the_text_of_all_tokens_and_are_never_half_a_character() {
    let tokenizer = tokenizer();
    let mut rng = Rng::new(11);
    for length in (1..40).cycle().take(300) {
        // Mostly single bytes, which make and break characters.
        let mut id = || {
            let below = [2039, 256, 256, 256][rng.below(4)];
            rng.below(below) as u32
        };
        let ids: Vec<u32> = (0..length).map(|_| id()).collect();
        let (pieces, _) = run(&tokenizer, &ids, None, options(Visible::Everything, &[]));
        assert_eq!(joined(&pieces), tokenizer.decode(&ids, false).unwrap(), "{ids:?}");
    }
    let ids = tokenizer.encode(SHOWN, false).unwrap();
    assert!(ids.len() > SHOWN.chars().count() / 2 && ids.iter().any(|&id| id < 256));
    let (pieces, _) = run(&tokenizer, &ids, None, options(Visible::Everything, &[]));
    assert!(pieces.iter().all(|piece| !piece.text.contains('\u{fffd}')), "{pieces:?}");
    assert!(pieces.iter().any(|piece| piece.text.is_empty()), "a character of several tokens");
    let longest = pieces.iter().map(|piece| piece.text.len()).max();
    assert!(longest < Some(SHOWN.len() / 2), "text comes as it is made");
}

#[test]
fn every_part_of_the_answer_may_stop_it() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode(ANSWER, true).unwrap();
    let borders: Vec<usize> = SHOWN.char_indices().map(|(at, _)| at).chain([SHOWN.len()]).collect();
    for (i, &from) in borders.iter().enumerate() {
        for &to in borders.iter().skip(i + 1).take(9) {
            let stop = &SHOWN[from..to];
            let (pieces, finish) =
                run(&tokenizer, &ids, None, options(Visible::Final, &["?", stop]));
            let shown = SHOWN.split(stop).next().unwrap();
            assert_eq!((joined(&pieces).as_str(), finish), (shown, FinishReason::Stop), "{stop:?}");
            assert!(said(&pieces).len() < ids.len() || SHOWN.ends_with(stop), "{stop:?}");
        }
    }
}

#[test]
fn stop_strings_are_looked_for_in_what_is_shown_only() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode(ANSWER, true).unwrap();
    for hidden in ["user", "analysis", "<|message|>", "cafés", "return"] {
        let (pieces, _) = run(&tokenizer, &ids, None, options(Visible::Final, &[hidden]));
        assert_eq!(joined(&pieces), SHOWN, "{hidden}");
    }
    // Where everything is shown, everything counts.
    let (pieces, finish) =
        run(&tokenizer, &ids, None, options(Visible::Everything, &["user asks"]));
    let text = "<|channel|>analysis<|message|>The ";
    assert_eq!((joined(&pieces).as_str(), finish), (text, FinishReason::Stop));
}

#[test]
fn what_was_held_back_is_shown_once_when_it_ends() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode(ANSWER, true).unwrap();
    // A stop string that the whole answer begins holds all of it back.
    let stop = format!("{SHOWN} And more.");
    let (pieces, finish) = run(&tokenizer, &ids, None, options(Visible::Final, &[&stop]));
    assert_eq!((joined(&pieces).as_str(), finish), (SHOWN, FinishReason::Stop));
    let shown: Vec<&Piece> = pieces.iter().filter(|piece| !piece.text.is_empty()).collect();
    assert_eq!(shown.len(), 1, "with the last token: {shown:?}");
    assert!(shown[0].token.is_some(), "{shown:?}");

    let mut held = 0;
    for at in 0..ids.len() {
        let (pieces, finish) = run(&tokenizer, &ids, Some(at), options(Visible::Final, &[&stop]));
        assert_eq!(finish, FinishReason::Cancelled);
        let tokens = said(&pieces);
        assert!(tokens.len() <= at && ids.starts_with(&tokens));
        let (without, _) = run(&tokenizer, &ids, Some(at), options(Visible::Final, &[]));
        assert_eq!(joined(&pieces), joined(&without), "cancelled at {at}");
        let late: Vec<&Piece> = pieces.iter().filter(|piece| piece.token.is_none()).collect();
        assert!(late.len() <= 1 && late.iter().all(|piece| !piece.text.is_empty()), "{late:?}");
        held += late.len();
    }
    assert!(held > 5, "{held}");
}

#[test]
fn a_length_limit_gives_what_there_is() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode(ANSWER, true).unwrap();
    for length in 1..ids.len() {
        let (pieces, finish) = run(&tokenizer, &ids[..length], None, options(Visible::Final, &[]));
        assert_eq!(finish, FinishReason::Length);
        let text = joined(&pieces);
        assert!(SHOWN.starts_with(text.trim_end_matches('\u{fffd}')), "{length}: {text}");
        assert_eq!(said(&pieces), ids[..length]);
    }
}

#[test]
fn text_without_a_header_is_the_answer() {
    let tokenizer = tokenizer();
    for text in ["I know that.", "naïve 🦀", " to=functions.f", " to"] {
        let ids = tokenizer.encode(text, true).unwrap();
        let (pieces, _) = run(&tokenizer, &ids, None, options(Visible::Final, &[]));
        assert_eq!(joined(&pieces), text);
    }
}

#[test]
fn a_tool_call_ends_without_text() {
    let tokenizer = tokenizer();
    let call = "<|channel|>analysis<|message|>Let me look.<|end|><|start|>assistant<|channel|>\
                commentary to=functions.get_weather <|constrain|>json<|message|>\
                {\"location\":\"Paris\"}<|call|>";
    let ids = tokenizer.encode(call, true).unwrap();
    let (pieces, finish) = run(&tokenizer, &ids, None, options(Visible::Final, &["Paris"]));
    assert_eq!((joined(&pieces).as_str(), finish), ("", FinishReason::Stop));
    assert_eq!(said(&pieces), ids);
}

#[test]
fn an_empty_stop_string_is_refused_and_an_error_ends_it_once() {
    let tokenizer = tokenizer();
    let script = || Script::new(&tokenizer, &[1, 1], None);
    let generation = || Generation::new(script(), &[1], &Default::default()).unwrap();
    let refused = Completion::new(generation(), &tokenizer, &options(Visible::Final, &[""]));
    assert!(matches!(refused, Err(Error::Argument { .. })), "{refused:?}");

    // The text so far is held back when the error comes, and stays so.
    let text = tokenizer.decode(&[1], false).unwrap();
    let options = options(Visible::Everything, &[&format!("{text} and more")]);
    let mut completion = Completion::new(generation(), &tokenizer, &options).unwrap();
    assert!(completion.by_ref().any(|piece| piece.is_err()), "the script ends");
    assert!(completion.next().is_none());
    assert_eq!(completion.finish_reason(), None);
}

/// The events of a script, as [`run`] for text; with its tokens and how many the model said.
fn events(script: &str, cancel: Option<usize>, options: &mut ChatOptions) -> Vec<ChatEvent> {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode(script, true).unwrap();
    let token = CancelToken::default();
    let script = Script::new(&tokenizer, &ids, cancel.map(|at| (at, token.clone())));
    options.generate.max_tokens = options.generate.max_tokens.min(ids.len());
    options.generate.cancel = token;
    let generation = Generation::new(script, &[1], &options.generate).unwrap();
    let mut chat = Chat::new(generation, &tokenizer, options).unwrap();
    let events: Vec<_> = chat.by_ref().map(|event| event.unwrap()).collect();
    assert!(chat.next().is_none(), "an ended turn stays ended");
    assert!(ids.starts_with(chat.tokens()));
    let reason = ChatEvent::TurnEnd { reason: EndReason::StopString };
    assert!(events.last() != Some(&reason) || chat.tokens().len() < ids.len(), "it went on");
    assert_eq!(chat.tokens().len(), chat.timings().generated_tokens);
    let ends = events.iter().filter(|event| matches!(event, ChatEvent::TurnEnd { .. })).count();
    assert_eq!(ends, 1);
    events
}

/// Analysis, answer, arguments of calls, and why it ended.
fn told(events: &[ChatEvent]) -> (String, String, String, EndReason) {
    let (mut analysis, mut answer, mut arguments) = Default::default();
    for event in events {
        let (to, text): (&mut String, _) = match event {
            ChatEvent::AnalysisDelta { text } => (&mut analysis, text),
            ChatEvent::FinalDelta { text } => (&mut answer, text),
            ChatEvent::ArgumentsDelta { text, .. } => (&mut arguments, text),
            _ => continue,
        };
        to.push_str(text);
    }
    let Some(ChatEvent::TurnEnd { reason }) = events.last() else { panic!("{events:?}") };
    (analysis, answer, arguments, *reason)
}

#[test]
fn a_turn_as_events() {
    let thought = "The user asks about naïve cafés.".to_owned();
    let told = |script, cancel, options: &mut ChatOptions| told(&events(script, cancel, options));
    let mut options = ChatOptions::default();
    let whole = told(ANSWER, None, &mut options);
    assert_eq!(whole, (thought.clone(), SHOWN.into(), String::new(), EndReason::Stop));
    // A stop string ends the answer, and is no stop string in the analysis.
    options = ChatOptions::default();
    options.stop = vec!["café".into()];
    let whole = told(ANSWER, None, &mut options);
    assert_eq!(whole, (thought, "A naïve ".into(), String::new(), EndReason::StopString));
    options = ChatOptions::default();
    options.generate.max_tokens = 8;
    assert_eq!(told(ANSWER, None, &mut options).3, EndReason::Length);
    options = ChatOptions::default();
    let (analysis, .., reason) = told(ANSWER, Some(8), &mut options);
    assert_eq!(reason, EndReason::Cancelled);
    assert!(!analysis.is_empty());
}

#[test]
fn a_call_as_events() {
    let script =
        "<|channel|>commentary to=functions.get_weather<|message|>{\"city\":\"Paris\"}<|call|>";
    for (tools, offered) in [(None, true), (Some(vec![]), false)] {
        let mut options = ChatOptions::default();
        options.tools = tools;
        let events = events(script, None, &mut options);
        let name = "get_weather".to_owned();
        let started = ChatEvent::ToolCallStarted { index: 0, name, known: offered };
        assert_eq!(events[0], started);
        assert_eq!(told(&events).2, "{\"city\":\"Paris\"}");
        assert_eq!(told(&events).3, EndReason::ToolCalls);
    }
}

#[test]
fn a_turn_that_fails_gives_its_error_once() {
    let tokenizer = tokenizer();
    let script = |ids: Vec<u32>| Script::new(&tokenizer, &ids, None);
    let options = ChatOptions::default();
    let generation = |ids| Generation::new(script(ids), &[1], &options.generate).unwrap();
    let mut chat = Chat::new(generation(vec![65, 65]), &tokenizer, &options).unwrap();
    assert!(chat.by_ref().any(|event| event.is_err()), "the script ends");
    assert!(chat.next().is_none());
    // An error of the prefill is the caller's already.
    let mut chat = Chat::new(generation(vec![]), &tokenizer, &options).unwrap();
    assert!(chat.prefill(|_, _| ()).is_err());
    assert!(chat.next().is_none());
    let mut refused = ChatOptions::default();
    refused.stop = vec![String::new()];
    assert!(Chat::new(generation(vec![65]), &tokenizer, &refused).is_err());
}

#[test]
fn a_message_that_is_cut_off_says_so() {
    let mut options = ChatOptions::default();
    options.generate.max_tokens = 8;
    let events = events(ANSWER, None, &mut options);
    let [.., ChatEvent::MessageEnd { defect, .. }, _] = &events[..] else { panic!("{events:?}") };
    assert_eq!(*defect, Some(Defect::NotEnded));
}
