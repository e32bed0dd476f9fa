//! What a request gives is what it gives alone, whatever runs beside it.

use gpt_oss_mlx::chat::events::{ChatEvent, EndReason, Part};
use gpt_oss_mlx::chat::{Conversation, Tool};
use gpt_oss_mlx::constrain::{ResponseFormat, ToolChoice};
use gpt_oss_mlx::engine::{CompletionRequest, EngineEvent};
use gpt_oss_mlx::{
    ChatOptions, CompletionOptions, FinishReason, LoadOptions, Session, TextModel, Visible,
};
use serde_json::{Value, json};

use super::limits::until;
use super::{Done, ask, chat, dir, endless, read, start};

pub(super) const TOPICS: [&str; 10] = [
    "Dangling References",
    "Macros",
    "The Stack and the Heap",
    "Using Default Implementations",
    "Project Directory Setup",
    "Open Source Developers",
    "The args Function and Invalid Unicode",
    "Controlling Access with Mutexes",
    "Building and Running a Cargo Project",
    "Customizing Builds with Release Profiles",
];

/// What a chat gives alone.
pub(super) fn alone(
    model: &TextModel,
    conversation: &Conversation,
    options: &ChatOptions,
) -> Vec<ChatEvent> {
    let mut session = Session::new(model.model());
    let chat = model.chat(&mut session, conversation, options).unwrap();
    chat.map(|event| event.unwrap()).collect()
}

pub(super) fn events(done: &Done) -> Vec<ChatEvent> {
    let event = |event: &EngineEvent| match event {
        EngineEvent::Chat(event) => Some(event.clone()),
        _ => None,
    };
    done.events.iter().filter_map(event).collect()
}

/// The options of request `i`: of all kinds.
fn options(i: usize) -> ChatOptions {
    let mut options = ChatOptions::default();
    options.generate.max_tokens = 20 + 9 * i;
    match i % 4 {
        0 => {}
        1 => {
            options.generate.sampling.temperature = 0.9;
            options.generate.sampling.seed = i as u64;
        }
        2 => {
            options.generate.sampling.temperature = 1.0;
            options.generate.sampling.top_p = 0.95;
            options.generate.sampling.repetition_penalty = 1.1;
            options.generate.sampling.seed = 7;
        }
        _ => options.stop = vec![" the".into()],
    }
    options
}

#[test]
fn a_request_gives_what_it_gives_alone_in_any_batch() {
    let model = TextModel::load(dir(), &LoadOptions::default()).unwrap();
    for max_running in [1, 3, 16] {
        let engine = start(|o| (o.max_running, o.prefill_chunk) = (max_running, 40));
        let ask = |i: usize| ask(&format!("Explain {}.", TOPICS[i % TOPICS.len()]));
        let streams: Vec<_> = (0..16)
            .map(|i| {
                let request = gpt_oss_mlx::engine::ChatRequest::new(ask(i), options(i));
                engine.chat(request).unwrap()
            })
            .collect();
        for (i, stream) in streams.into_iter().enumerate() {
            let done = read(stream);
            assert_eq!(events(&done), alone(&model, &ask(i), &options(i)), "request {i}");
        }
        let stats = until(&engine, |stats| stats.stopped + stats.at_length == 16);
        assert_eq!((stats.waiting, stats.failed, stats.cancelled), (0, 0, 0), "{stats:?}");
        if max_running == 16 {
            assert!(stats.steps * 3 < stats.generated_tokens, "{stats:?}");
        }
    }
}

#[test]
fn a_constraint_holds_beside_free_requests() {
    let engine = start(|o| o.max_running = 6);
    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"], "additionalProperties": false});
    let parameters = json!({"type": "object", "properties": {"location": {"enum": ["Paris"]}},
        "required": ["location"], "additionalProperties": false});
    let tool = Tool::new("get_weather", "Get the current weather in a city.", parameters);
    let mut streams = Vec::new();
    for (i, topic) in TOPICS.iter().enumerate().take(6) {
        let mut request = chat(&format!("Explain {topic}."), |o| {
            o.generate.sampling.temperature = 1.0;
            o.generate.max_tokens = 400;
            match i % 3 {
                0 => o.response_format = Some(ResponseFormat::JsonSchema(schema.clone())),
                1 => o.tool_choice = ToolChoice::Required,
                _ => {}
            }
        });
        if i % 3 == 1 {
            request.conversation = request.conversation.with_tools([tool.clone()]);
        }
        streams.push(engine.chat(request).unwrap());
    }
    for (i, stream) in streams.into_iter().enumerate() {
        let done = read(stream);
        match i % 3 {
            0 => {
                let answer: Value = serde_json::from_str(&done.text()).unwrap();
                assert!(answer["ok"].is_boolean(), "{answer}");
            }
            1 => {
                let called = |event: &ChatEvent| {
                    matches!(event, ChatEvent::ToolCallFinished { name, arguments, .. }
                        if name == "get_weather" && arguments.contains("Paris"))
                };
                let events = events(&done);
                assert!(events.iter().any(called), "{events:?}");
                let end = ChatEvent::TurnEnd { reason: EndReason::ToolCalls };
                assert_eq!(events.last(), Some(&end));
            }
            _ => assert!(done.end.is_ok(), "{done:?}"),
        }
    }
}

#[test]
fn events_come_in_order_and_usage_adds_up() {
    let engine = start(|o| o.prefill_chunk = 30);
    let done = read(engine.chat(chat("Explain Dangling References.", |_| ())).unwrap());
    let EngineEvent::Queued { prompt_tokens, ahead: 0 } = done.events[0] else {
        panic!("{:?}", done.events[0])
    };
    let progress: Vec<_> = done
        .events
        .iter()
        .filter_map(|event| match event {
            EngineEvent::Prefill { done, total } => Some((*done, *total)),
            _ => None,
        })
        .collect();
    assert!(progress.len() > 1 && progress.is_sorted(), "{progress:?}");
    assert_eq!(progress.last(), Some(&(prompt_tokens, prompt_tokens)));
    let first = done.events.iter().position(|event| matches!(event, EngineEvent::Chat(_)));
    assert_eq!(first, Some(1 + progress.len()));
    assert!(done.text().contains("dangling pointer"), "{}", done.text());

    let usage = done.usage();
    assert_eq!(done.reason(), FinishReason::Stop);
    assert_eq!((usage.prompt_tokens, usage.cached_tokens), (prompt_tokens, 0));
    assert!((1..usage.completion_tokens).contains(&usage.reasoning_tokens), "{usage:?}");
    assert!(usage.time_to_first_token >= usage.queued + usage.prefill, "{usage:?}");
    assert!(!usage.prefill.is_zero() && !usage.decode.is_zero(), "{usage:?}");
}

#[test]
fn the_next_turn_computes_only_what_is_new() {
    let engine = start(|_| ());
    let mut conversation = ask("Explain Dangling References.");
    let first = read(engine.chat(chat("Explain Dangling References.", |_| ())).unwrap());
    let mut turn = gpt_oss_mlx::chat::TurnBuilder::default();
    events(&first).iter().for_each(|event| turn.push(event));
    conversation.push_turn(turn.finish());
    conversation.messages.push(gpt_oss_mlx::chat::Message::user("Explain Macros."));

    let request = gpt_oss_mlx::engine::ChatRequest::new(conversation, ChatOptions::default());
    let second = read(engine.chat(request.clone()).unwrap());
    let usage = second.usage();
    // Up to where the template leaves the analysis out.
    assert!(usage.cached_tokens >= first.usage().prompt_tokens - 1, "{usage:?}");
    let again = read(engine.chat(request).unwrap());
    assert_eq!(again.usage().cached_tokens, usage.prompt_tokens - 1);
    assert_eq!(events(&again), events(&second));
    let stats = until(&engine, |stats| stats.stopped == 3);
    assert_eq!((stats.prefixes.hits, stats.prefixes.misses), (2, 1), "{stats:?}");
    let cached = usage.cached_tokens + usage.prompt_tokens - 1;
    assert_eq!(stats.cached_tokens, cached as u64);
}

#[test]
fn an_answer_that_is_gone_on_with_is_not_computed_again() {
    let engine = start(|_| ());
    let mut request = endless(&[1, 2, 3], 6);
    request.options.generate.logprobs = Some(0);
    let first = read(engine.complete(request).unwrap());
    let token = |event: &EngineEvent| match event {
        EngineEvent::Token(event) => Some(event.token.id),
        _ => None,
    };
    let mut ids = vec![1, 2, 3];
    ids.extend(first.events.iter().filter_map(token));
    ids.push(4);
    let usage = read(engine.complete(endless(&ids, 1)).unwrap()).usage();
    // All but the last token of the answer, which was never fed, and the new one.
    assert_eq!((usage.prompt_tokens, usage.cached_tokens), (10, 8));
    assert_eq!(until(&engine, |stats| stats.at_length == 2).prefixes.reused_tokens, 8);
}

#[test]
fn logprobs_come_with_their_place_in_the_turn() {
    let engine = start(|_| ());
    let request = chat("Explain Macros.", |o| o.generate.logprobs = Some(2));
    let done = read(engine.chat(request).unwrap());
    let tokens: Vec<_> = done
        .events
        .iter()
        .filter_map(|event| match event {
            EngineEvent::Token(event) => Some(event.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(tokens.len(), done.usage().completion_tokens);
    let of = |part: Part| tokens.iter().filter(move |event| event.part == part);
    let bytes: Vec<u8> = of(Part::Final)
        .flat_map(|event| engine.tokenizer().token_bytes(event.token.id).unwrap().to_vec())
        .collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), done.text());
    assert_eq!(of(Part::Analysis).count(), done.usage().reasoning_tokens);
    for event in &tokens {
        let top = &event.token.logprobs;
        assert_eq!((top.len(), top[0].id), (2, event.token.id));
        assert_eq!(Some(top[0].logprob), event.token.logprob);
    }
}

#[test]
fn a_completion_gives_what_it_gives_alone() {
    let model = TextModel::load(dir(), &LoadOptions::default()).unwrap();
    let engine = start(|_| ());
    for visible in [Visible::Everything, Visible::Final] {
        let mut options = CompletionOptions::default();
        (options.visible, options.generate.max_tokens) = (visible, 60);
        options.stop = vec!["zzz".into()];
        let text = "<|start|>user<|message|>Explain Macros.<|end|><|start|>assistant";
        let ids = model.raw_prompt(text).unwrap();
        let alone: String =
            model.complete(&ids, &options).unwrap().map(|piece| piece.unwrap().text).collect();
        for request in [
            CompletionRequest::new(text, options.clone()),
            CompletionRequest::new(ids.clone(), options.clone()),
        ] {
            let done = read(engine.complete(request).unwrap());
            assert_eq!(done.text(), alone);
        }
    }
}
