//! The bundled model's turns as events.

use gpt_oss_mlx::chat::events::{ChatEvent, EndReason};
use gpt_oss_mlx::chat::{Conversation, Message, Tool};
use gpt_oss_mlx::{ChatOptions, CompletionOptions, LoadOptions, Session, TextModel};
use serde_json::json;

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");

#[test]
fn the_answer_is_the_completions_and_a_second_turn_reuses_the_first() {
    let model = TextModel::load(DIR, &LoadOptions::default()).unwrap();
    let mut session = Session::new(model.model());
    let mut conversation = Conversation::new([Message::user("Explain Dangling References.")]);
    let prompt = model.chat_prompt(&conversation).unwrap();
    let mut chat = model.chat_ids(&mut session, &prompt, &ChatOptions::default()).unwrap();
    let events: Vec<_> = chat.by_ref().map(|event| event.unwrap()).collect();
    let tokens = chat.tokens().to_vec();
    let turn = chat.into_turn();
    let text = |event: &ChatEvent| match event {
        ChatEvent::FinalDelta { text } => Some(text.clone()),
        _ => None,
    };
    let answer: String = events.iter().filter_map(text).collect();
    assert!(answer.contains("dangling pointer"), "{answer}");
    assert_eq!(events.last(), Some(&ChatEvent::TurnEnd { reason: EndReason::Stop }));
    let completion = model.complete(&prompt, &CompletionOptions::default()).unwrap();
    let pieces: Vec<_> = completion.map(|piece| piece.unwrap()).collect();
    assert_eq!(answer, pieces.iter().map(|piece| piece.text.as_str()).collect::<String>());
    let ids = pieces.iter().filter_map(|piece| Some(piece.token.as_ref()?.id));
    assert_eq!(tokens, ids.collect::<Vec<_>>());

    assert_eq!((&turn.answer, turn.reason), (&answer, EndReason::Stop));
    assert!(!turn.analysis.is_empty(), "{turn:?}");
    assert_eq!(conversation.push_turn(turn), []);
    conversation.messages.push(Message::user("Why?"));
    let mut chat = model.chat(&mut session, &conversation, &ChatOptions::default()).unwrap();
    chat.prefill(|_, _| ()).unwrap();
    assert!(chat.timings().cached_prompt_tokens > 40, "{:?}", chat.timings());
}

#[test]
fn a_tool_is_called() {
    let model = TextModel::load(DIR, &LoadOptions::default()).unwrap();
    let mut session = Session::new(model.model());
    let parameters = json!({
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    });
    let tool = Tool::new("get_weather", "Gets the weather of a city.", parameters);
    let asked = Conversation::new([Message::user("What is the weather in Paris?")]);
    let mut conversation = asked.with_tools([tool]);
    let options = ChatOptions::default();
    let mut chat = model.chat(&mut session, &conversation, &options).unwrap();
    let events: Vec<_> = chat.by_ref().map(|event| event.unwrap()).collect();
    let calls = conversation.push_turn(chat.into_turn());
    assert_eq!((calls[0].id.as_str(), calls[0].name.as_str()), ("call_0", "get_weather"));
    let started = ChatEvent::ToolCallStarted { index: 0, name: "get_weather".into(), known: true };
    assert!(events.contains(&started), "{events:?}");
    let arguments = events.iter().find_map(|event| match event {
        ChatEvent::ToolCallFinished { arguments, valid_json: true, .. } => Some(arguments),
        _ => None,
    });
    let arguments: serde_json::Value = serde_json::from_str(arguments.unwrap()).unwrap();
    assert!(arguments.to_string().contains("Paris"), "{arguments}");
    assert_eq!(events.last(), Some(&ChatEvent::TurnEnd { reason: EndReason::ToolCalls }));
}
