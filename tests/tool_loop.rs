//! Conversations in which the model calls tools: the bundled model, and scripts for what it would
//! not do.

mod common;

use std::collections::BTreeMap;
use std::future::pending;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use common::script::Script;
use gpt_oss_mlx::chat::events::{ChatEvent, Defect, EndReason};
use gpt_oss_mlx::chat::tool_loop::{
    Step, ToolError, ToolFuture, ToolHandler, ToolLoop, ToolLoopEnd, ToolLoopEvent, ToolResult,
};
use gpt_oss_mlx::chat::{
    AssistantMessage, BuiltinTool, Conversation, Message, Tool, ToolCall, TurnBuilder,
};
#[cfg(feature = "constrain")]
use gpt_oss_mlx::constrain::{ResponseFormat, ToolChoice};
use gpt_oss_mlx::{
    CancelToken, Chat, ChatOptions, Error, Generation, LoadOptions, Result, Session, TextModel,
    Tokenizer,
};
use serde_json::json;

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");
#[cfg(feature = "constrain")]
const PARIS: &str = r#"{"location":"Paris"}"#;
const SUNNY: &str = r#"{"sky":"sunny","celsius":21}"#;

/// What the bundled model makes of [`SUNNY`]: it takes over the sky, but neither Paris nor 21, which
/// is what mlx-lm says with these weights too (`tests/golden`, `tool-answer`).
fn is_sunny(text: &str) -> bool {
    text.starts_with("It is sunny in ") && text.ends_with(" degrees.")
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// An executor as plain as they come: what runs here needs no runtime.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

fn load() -> TextModel {
    TextModel::load(DIR, &LoadOptions::default()).unwrap()
}

fn weather_tool() -> Tool {
    let parameters = json!({
        "type": "object",
        "properties": {"location": {"type": "string"}},
        "required": ["location"],
    });
    let mut tool = Tool::new("get_weather", "", parameters);
    tool.description = None;
    tool
}

fn asked() -> Conversation {
    let question = Message::user("What is the weather in Paris?");
    Conversation::new([question]).with_tools([weather_tool()]).with_date("2025-08-05")
}

async fn sunny(_: ToolCall) -> ToolResult {
    Ok(SUNNY.into())
}

/// Runs the bundled model with a handler.
fn ask(
    model: &TextModel,
    session: &mut Session,
    tools: ToolLoop<'_>,
    handler: &dyn ToolHandler,
) -> (ToolLoopEnd, Vec<ToolLoopEvent>) {
    let mut events = Vec::new();
    let options = ChatOptions::default();
    let run = model.chat_with_tools(session, tools, handler, &options, |event| events.push(event));
    let end = block_on(run).unwrap();
    (end, events)
}

/// What the model was told.
fn results(conversation: &Conversation) -> Vec<&str> {
    let tool = |message: &Message| matches!(message, Message::Tool(_));
    conversation.messages.iter().filter(|message| tool(message)).map(Message::text).collect()
}

fn last(conversation: &Conversation) -> &Message {
    conversation.messages.last().unwrap()
}

#[test]
fn the_model_asks_and_goes_on_with_the_answer() {
    let model = load();
    let mut session = Session::new(model.model());
    let mut conversation = asked();
    let cities = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&cities);
    let handler = move |call: ToolCall| {
        let seen = Arc::clone(&seen);
        async move {
            let arguments: serde_json::Value = serde_json::from_str(&call.arguments)?;
            seen.lock().unwrap().push((call.name, arguments.to_string()));
            Ok(SUNNY.to_owned())
        }
    };
    let tools = ToolLoop::new(&mut conversation);
    let (end, events) = ask(&model, &mut session, tools, &handler);
    assert_eq!(end, ToolLoopEnd::Turn(EndReason::Stop));
    let cities = cities.lock().unwrap();
    assert_eq!(cities.len(), 1, "{cities:?}");
    assert!(cities[0].0 == "get_weather" && cities[0].1.contains("Paris"), "{cities:?}");
    assert!(is_sunny(last(&conversation).text()), "{conversation:?}");
    assert_eq!(results(&conversation), [SUNNY]);

    // Events come in order: the call's turn, the handler, the answer's turn.
    let places = |wanted: &dyn Fn(&ToolLoopEvent) -> bool| -> Vec<usize> {
        (0..events.len()).filter(|&at| wanted(&events[at])).collect()
    };
    let ends = places(&|e| matches!(e, ToolLoopEvent::Chat(ChatEvent::TurnEnd { .. })));
    let called = places(&|e| matches!(e, ToolLoopEvent::Called(_)));
    let answered = places(&|e| matches!(e, ToolLoopEvent::Answered(_)));
    assert_eq!((called, answered), (vec![ends[0] + 1], vec![ends[0] + 2]));
    assert_eq!((ends.len(), ends.last()), (2, Some(&(events.len() - 1))));
    let text = |event: &ToolLoopEvent| match event {
        ToolLoopEvent::Chat(ChatEvent::FinalDelta { text }) => Some(text.clone()),
        _ => None,
    };
    assert_eq!(events.iter().filter_map(text).collect::<String>(), last(&conversation).text());

    // In OpenAI's shape, there and back.
    let body = conversation.to_json();
    let roles: Vec<_> = body["messages"].as_array().unwrap().iter().map(|m| &m["role"]).collect();
    assert_eq!(roles, ["user", "assistant", "tool", "assistant"]);
    let call = &body["messages"][1]["tool_calls"][0];
    assert_eq!((&call["id"], &call["type"]), (&json!("call_0"), &json!("function")));
    assert_eq!(call["function"]["name"], "get_weather");
    assert_eq!(body["messages"][2]["tool_call_id"], "call_0");
    assert_eq!(Conversation::from_json(&body).unwrap(), conversation);

    // The next turn computes only what is new, and its call has an id of its own.
    conversation.messages.push(Message::user("What is the weather in Paris?"));
    let mut chat = model.chat(&mut session, &conversation, &ChatOptions::default()).unwrap();
    chat.prefill(|_, _| ()).unwrap();
    let timings = chat.timings();
    assert!(timings.cached_prompt_tokens > 0, "{timings:?}");
    assert!(chat.by_ref().all(|event| event.is_ok()));
    let calls = conversation.push_turn(chat.into_turn());
    assert!(calls.iter().all(|call| call.id != "call_0"), "{calls:?}");
}

#[test]
fn the_answer_tells_what_the_tool_returned() {
    let model = load();
    let mut session = Session::new(model.model());
    let mut conversation = asked();
    conversation.messages = vec![Message::user("What is the weather in Tokyo?")];
    let handler = |call: ToolCall| async move {
        assert_eq!(call.arguments, r#"{"location":"Tokyo"}"#);
        Ok(r#"{"sky":"rainy","celsius":8}"#.to_owned())
    };
    let (end, _) = ask(&model, &mut session, ToolLoop::new(&mut conversation), &handler);
    assert_eq!(end, ToolLoopEnd::Turn(EndReason::Stop));
    assert_eq!(last(&conversation).text(), "It is rainy in Tokyo, at 8 degrees.");
}

/// Sentences that name nothing and no number but those of the conversation: once a tool has
/// answered, the names that the user said and the numbers that the tool gave. The other words, their
/// number and their order are the model's.
#[cfg(feature = "constrain")]
fn grounded(conversation: &Conversation) -> Option<ResponseFormat> {
    let words = |text: &str, wanted: fn(char) -> bool| -> Vec<String> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric());
        words.filter(|word| word.starts_with(wanted)).map(str::to_owned).collect()
    };
    let mut facts = Vec::new();
    for message in &conversation.messages {
        match message {
            Message::User(text) => facts.extend(words(text, |c| c.is_ascii_uppercase())),
            Message::Tool(result) => facts.extend(words(&result.content, |c| c.is_ascii_digit())),
            _ => {}
        }
    }
    let facts = facts.join("|");
    let told = matches!(conversation.messages.last(), Some(Message::Tool(_)));
    let format = || format!(r"[A-Z][a-z]+(,? ({facts}|[a-z]+))*\.");
    told.then(|| ResponseFormat::Regex(format()))
}

/// The bundled model cannot copy: by itself it takes over the sky, but neither Paris nor 21, whatever
/// the prompt (see [`is_sunny`]). An app that does not trust a small model with facts grounds its
/// answers, and the model then says the sentence that its weights hold for the facts. The
/// description is the one that it was trained with.
#[cfg(feature = "constrain")]
#[test]
fn an_answer_that_is_grounded_in_the_conversation_tells_what_the_tool_returned() {
    let model = load();
    let answer = |ground: bool| {
        let mut conversation = asked();
        conversation.tools[0].description = Some("Get the current weather in a city.".into());
        let mut session = Session::new(model.model());
        let turn = |conversation: &Conversation, give: &mut dyn FnMut(ChatEvent)| {
            let mut options = ChatOptions::default();
            options.response_format = grounded(conversation).filter(|_| ground);
            let mut chat = model.chat(&mut session, conversation, &options)?;
            for event in &mut chat {
                give(event?);
            }
            Ok(chat.into_turn())
        };
        let handler = |call: ToolCall| async move {
            assert_eq!((call.name.as_str(), call.arguments.as_str()), ("get_weather", PARIS));
            Ok(SUNNY.to_owned())
        };
        let end = block_on(ToolLoop::new(&mut conversation).run(&handler, turn, |_| ()));
        assert_eq!(end.unwrap(), ToolLoopEnd::Turn(EndReason::Stop));
        assert_eq!(results(&conversation), [SUNNY]);
        last(&conversation).text().to_owned()
    };
    assert_eq!(answer(true), "It is sunny in Paris, at 21 degrees.");
    let free = answer(false);
    assert!(is_sunny(&free) && free != answer(true), "{free}");
}

#[test]
fn the_second_round_goes_on_in_the_session() {
    let model = load();
    let mut session = Session::new(model.model());
    let mut conversation = asked();
    let mut tools = ToolLoop::new(&mut conversation);
    let mut cached = Vec::new();
    let end = loop {
        match tools.step() {
            Step::Turn => {
                let options = ChatOptions::default();
                let mut chat = model.chat(&mut session, tools.conversation(), &options).unwrap();
                assert!(chat.by_ref().all(|event| event.is_ok()));
                let timings = chat.timings();
                cached.push((timings.cached_prompt_tokens, timings.prompt_tokens));
                assert_eq!(tools.take_turn(chat.into_turn()), []);
            }
            Step::Calls(calls) => {
                assert!(tools.answer("call_7", Ok(String::new())).is_err());
                tools.answer(&calls[0].id, Ok(SUNNY.into())).unwrap();
                assert!(tools.answer(&calls[0].id, Ok(String::new())).is_err(), "answered");
            }
            Step::End(end) => break end,
        }
    };
    drop(tools);
    assert_eq!(end, ToolLoopEnd::Turn(EndReason::Stop));
    assert!(is_sunny(last(&conversation).text()), "{conversation:?}");
    // All of the first prompt, at least.
    assert!(cached[0].0 == 0 && cached[1].0 >= cached[0].1 - 1, "{cached:?}");
}

#[test]
fn the_model_is_told_of_failures_and_delays() {
    let model = load();
    let mut session = Session::new(model.model());
    // Any error becomes one for the model.
    let fails = |_| async { Ok(String::from_utf8(vec![0xff])?) };
    let hangs = |_| async { pending::<ToolResult>().await };
    let tiny = Duration::from_millis(1);
    let handlers: [(&dyn ToolHandler, _); 2] =
        [(&fails, "invalid utf-8"), (&hangs, "no result within 1ms")];
    for (handler, told) in handlers {
        let mut conversation = asked();
        let tools = ToolLoop::new(&mut conversation).with_timeout(tiny).with_max_rounds(2);
        let (_, events) = ask(&model, &mut session, tools, handler);
        let answer = events.iter().find_map(|event| match event {
            ToolLoopEvent::Answered(answer) => Some(answer),
            _ => None,
        });
        assert!(answer.unwrap().result.is_err());
        let results = results(&conversation);
        let result: serde_json::Value = serde_json::from_str(results[0]).unwrap();
        assert!(result["error"].as_str().unwrap().contains(told), "{results:?}");
        // The model had its turn after it.
        assert!(matches!(last(&conversation), Message::Assistant(_)) || results.len() > 1);
    }
}

#[cfg(feature = "constrain")]
#[test]
fn a_call_that_is_demanded_is_made_once() {
    let model = load();
    // The model would call the first of them.
    let question = Message::user("What is the weather in Paris?");
    let now = Tool::without_arguments("now", "Tells the time.");
    let asked = Conversation::new([question]).with_tools([weather_tool(), now]);
    let mut options = ChatOptions::default();
    for (choice, name) in [
        (ToolChoice::Auto, "get_weather"),
        (ToolChoice::Required, "get_weather"),
        (function("now"), "now"),
    ] {
        options.tool_choice = choice;
        let mut conversation = asked.clone();
        let mut session = Session::new(model.model());
        let tools = ToolLoop::new(&mut conversation).with_max_rounds(3);
        let run = model.chat_with_tools(&mut session, tools, &sunny, &options, |_| ());
        assert_eq!(block_on(run).unwrap(), ToolLoopEnd::Turn(EndReason::Stop), "{name}");
        assert_eq!(results(&conversation), [SUNNY], "{name}");
        let Message::Assistant(message) = &conversation.messages[1] else { panic!() };
        assert_eq!(message.tool_calls[0].name, name);
        assert!(!last(&conversation).text().is_empty());
    }
    // Of the next conversation it is demanded again.
    options.tool_choice = function("get_time");
    let mut conversation = asked.clone();
    let mut session = Session::new(model.model());
    let tools = ToolLoop::new(&mut conversation);
    let run = model.chat_with_tools(&mut session, tools, &sunny, &options, |_| ());
    let error = block_on(run).unwrap_err().to_string();
    assert!(error.contains("`get_time`"), "{error}");
    assert_eq!(conversation, asked);
}

#[cfg(feature = "constrain")]
fn function(name: &str) -> ToolChoice {
    ToolChoice::Function(name.into())
}

#[test]
fn a_map_of_handlers_is_a_handler() {
    struct Sunny;
    impl ToolHandler for Sunny {
        fn call<'a>(&'a self, _: &'a ToolCall) -> ToolFuture<'a> {
            Box::pin(async { Ok(SUNNY.into()) })
        }
    }
    let mut handlers: BTreeMap<String, Box<dyn ToolHandler>> = BTreeMap::new();
    let ask = |handlers: &dyn ToolHandler| {
        let call = ToolCall::new("call_0", "get_weather", "{}");
        block_on(handlers.call(&call))
    };
    assert!(ask(&handlers).is_err());
    handlers.insert("get_weather".into(), Box::new(sunny));
    assert_eq!(ask(&handlers), Ok(SUNNY.into()));
    handlers.insert("get_weather".into(), Box::new(Sunny));
    assert_eq!(ask(&handlers), Ok(SUNNY.into()));
}

static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();

/// A turn by script, up to the token before which it is cancelled.
fn scripted(text: &str, cancelled: Option<usize>, length: usize) -> Chat<Script> {
    let tokenizer = TOKENIZER.get_or_init(|| Tokenizer::from_dir(Path::new(DIR)).unwrap());
    let ids = tokenizer.encode(text, true).unwrap();
    let mut options = ChatOptions::default();
    options.generate.max_tokens = length.min(ids.len());
    let cancel = CancelToken::default();
    options.generate.cancel = cancel.clone();
    let script = Script::new(tokenizer, &ids, None);
    let generation = Generation::new(script, &[1], &options.generate).unwrap();
    let mut chat = Chat::new(generation, tokenizer, &options).unwrap();
    if let Some(cancelled) = cancelled {
        while chat.tokens().len() < cancelled && chat.next().is_some() {}
        cancel.cancel();
    }
    chat
}

fn call(name: &str, arguments: &str) -> String {
    format!(
        "<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}<|call|>"
    )
}

const DONE: &str = "<|channel|>final<|message|>Done.<|return|>";

/// Runs scripted turns; the conversation, how it ended, and the calls that reached the handler.
fn run_script(
    turns: &[&str],
    rounds: usize,
    mut conversation: Conversation,
) -> (Conversation, Result<ToolLoopEnd>, Vec<ToolCall>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&seen);
    let handler = move |call: ToolCall| {
        record.lock().unwrap().push(call);
        sunny(ToolCall::new("", "", ""))
    };
    let mut turns = turns.iter();
    let turn = |conversation: &Conversation, give: &mut dyn FnMut(ChatEvent)| {
        conversation.validate()?;
        let mut chat = scripted(turns.next().unwrap(), None, usize::MAX);
        for event in &mut chat {
            give(event?);
        }
        Ok(chat.into_turn())
    };
    let before = results(&conversation).len();
    let mut ends = 0;
    let mut refused = 0;
    let mut called = 0;
    let tools = ToolLoop::new(&mut conversation).with_max_rounds(rounds);
    let end = block_on(tools.run(&handler, turn, |event| match event {
        ToolLoopEvent::Chat(ChatEvent::TurnEnd { .. }) => ends += 1,
        ToolLoopEvent::Called(_) => called += 1,
        ToolLoopEvent::Answered(answer) if answer.result.is_err() => refused += 1,
        _ => {}
    }));
    conversation.validate().unwrap();
    let seen = seen.lock().unwrap().clone();
    let calls = conversation.messages.iter().map(|message| match message {
        Message::Assistant(message) => message.tool_calls.len(),
        _ => 0,
    });
    assert_eq!(calls.sum::<usize>(), results(&conversation).len(), "{conversation:?}");
    assert_eq!(called, seen.len());
    assert_eq!(before + called + refused, results(&conversation).len());
    (conversation, end, seen)
}

#[test]
fn malformed_calls_are_answered_with_what_is_wrong() {
    let unknown = call("set_weather", "{}");
    let broken = call("get_weather", r#"{"city": Paris}"#);
    let empty = call("", "{}");
    let cut = "<|channel|>commentary to=functions.get_weather<|call|>".to_owned();
    for (turn, wrong) in [
        (&unknown, "`set_weather` is not a tool; those on offer are get_weather"),
        (&broken, "the arguments are not JSON: expected value at line 1 column 10"),
        (&empty, "`unknown` is not a tool"),
        (&cut, "the arguments are not JSON: EOF"),
    ] {
        let (conversation, end, seen) = run_script(&[turn, DONE], 1, asked());
        assert_eq!(end.unwrap(), ToolLoopEnd::Turn(EndReason::Stop));
        assert_eq!(seen, [], "no handler sees it");
        let results = results(&conversation);
        let result: serde_json::Value = serde_json::from_str(results[0]).unwrap();
        assert!(result["error"].as_str().unwrap().contains(wrong), "{results:?}");
        assert_eq!(last(&conversation), &Message::assistant("Done."));
        // It counts as a round: the second is one too many.
        let (_, end, seen) = run_script(&[turn, turn, DONE], 1, asked());
        assert_eq!((end.unwrap(), seen.len()), (ToolLoopEnd::RoundLimit, 0));
    }
    let none = asked().with_tools([]);
    let (conversation, ..) = run_script(&[&unknown, DONE], 1, none);
    assert!(results(&conversation)[0].contains("there are none"));
}

#[test]
fn arguments_of_python_are_code() {
    let python = "<|channel|>commentary to=python<|message|>print(1 + 1)<|call|>";
    let conversation = asked().with_builtin_tools([BuiltinTool::Python, BuiltinTool::Browser]);
    let (_, _, seen) = run_script(&[python, DONE], 1, conversation.clone());
    assert_eq!(seen[0].arguments, "print(1 + 1)");
    // Unless the app's own function has that name.
    let own = Tool::without_arguments("python", "A snake.");
    let (_, _, seen) = run_script(&[python, DONE], 1, conversation.clone().with_tools([own]));
    assert_eq!(seen, []);
    let search = "<|channel|>commentary to=browser.search<|message|>{\"query\":\"x\"}<|call|>";
    let (_, _, seen) = run_script(&[search, DONE], 1, conversation);
    assert_eq!(seen[0].name, "browser.search");
}

#[test]
fn rounds_are_limited() {
    let asks = call("get_weather", "{}");
    for rounds in 0..3 {
        let (conversation, end, seen) = run_script(&[asks.as_str(); 4], rounds, asked());
        assert_eq!(end.unwrap(), ToolLoopEnd::RoundLimit);
        assert_eq!(seen.len(), rounds);
        let results = results(&conversation);
        assert_eq!(results.len(), rounds + 1);
        assert!(results[rounds].contains(&format!("more than {rounds} rounds")), "{results:?}");
    }
}

#[test]
fn several_calls_of_a_turn_run_in_order_and_have_their_own_ids() {
    let two = format!(
        "<|channel|>analysis<|message|>Two cities.<|end|><|start|>assistant<|channel|>commentary\
         <|message|>Let me see.<|end|><|start|>assistant{}<|end|><|start|>assistant{}",
        call("get_weather", "1").trim_end_matches("<|call|>"),
        call("get_weather", "2"),
    );
    let one = call("get_weather", "3");
    // The app's own ids are not taken twice.
    let mut conversation = asked();
    let old = AssistantMessage::default().with_call(ToolCall::new("call_1", "get_weather", "{}"));
    conversation.messages.extend([old.into(), Message::tool_result("call_1", SUNNY)]);
    conversation.messages.extend([Message::assistant("Sunny."), Message::user("And now?")]);
    let (conversation, end, seen) = run_script(&[&two, &one, DONE], 9, conversation);
    assert_eq!(end.unwrap(), ToolLoopEnd::Turn(EndReason::Stop));
    let seen: Vec<_> = seen.iter().map(|c| (c.id.as_str(), c.arguments.as_str())).collect();
    assert_eq!(seen, [("call_2", "1"), ("call_3", "2"), ("call_4", "3")]);
    let Message::Assistant(message) = &conversation.messages[5] else { panic!() };
    assert_eq!(message.analysis.as_deref(), Some("Two cities."));
    assert_eq!(message.content.as_deref(), Some("Let me see."));
    assert_eq!(message.tool_calls.len(), 2);
}

#[test]
fn an_error_in_a_turn_leaves_what_was_before_it() {
    let asks = call("get_weather", "{}");
    let mut turns = vec![Ok(asks.as_str()), Err("no more")].into_iter();
    let turn = |_: &Conversation, _: &mut dyn FnMut(ChatEvent)| match turns.next().unwrap() {
        Ok(text) => {
            let mut chat = scripted(text, None, usize::MAX);
            assert!(chat.by_ref().all(|event| event.is_ok()));
            Ok(chat.into_turn())
        }
        Err(_) => Err(Error::ContextFull { tokens: 2, limit: 1 }),
    };
    let mut conversation = asked();
    let run = ToolLoop::new(&mut conversation).run(&sunny, turn, |_| ());
    assert!(matches!(block_on(run), Err(Error::ContextFull { .. })));
    conversation.validate().unwrap();
    assert_eq!(results(&conversation), [SUNNY]);
    // And from there it goes on.
    let (conversation, end, _) = run_script(&[DONE], 1, conversation);
    assert_eq!(end.unwrap(), ToolLoopEnd::Turn(EndReason::Stop));
    assert_eq!(conversation.messages.len(), 4);
}

#[test]
fn dropping_the_future_answers_what_is_open() {
    let model = load();
    let mut session = Session::new(model.model());
    let mut conversation = asked();
    let handler = |_| pending::<ToolResult>();
    let options = ChatOptions::default();
    {
        let tools = ToolLoop::new(&mut conversation).with_timeout(None);
        let mut run = pin!(model.chat_with_tools(&mut session, tools, &handler, &options, |_| ()));
        assert!(run.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    conversation.validate().unwrap();
    assert_eq!(results(&conversation), [r#"{"error":"cancelled"}"#]);
    conversation.messages.push(Message::user("What is the weather in Paris?"));
    let held = session.ids().len();
    let (end, _) = ask(&model, &mut session, ToolLoop::new(&mut conversation), &sunny);
    assert!(matches!(end, ToolLoopEnd::Turn(_)) && held > 0);
    // A fresh session says the same: nothing of the dropped run is left in the cache.
    let mut fresh = Session::new(model.model());
    let before = conversation.messages.len();
    conversation.messages.push(Message::user("Explain Macros."));
    let mut again = conversation.clone();
    ask(&model, &mut session, ToolLoop::new(&mut conversation), &sunny);
    ask(&model, &mut fresh, ToolLoop::new(&mut again), &sunny);
    assert_eq!(conversation.messages[before..], again.messages[before..]);
}

#[test]
fn a_time_out_wakes_its_own_task_and_only_then() {
    struct Count(AtomicUsize, std::thread::Thread);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
            self.1.unpark();
        }
    }
    let count = Arc::new(Count(AtomicUsize::new(0), std::thread::current()));
    let waker = Waker::from(Arc::clone(&count));
    let asks = call("get_weather", "{}");
    let mut turns = [asks.as_str(), DONE].into_iter();
    let turn = |_: &Conversation, _: &mut dyn FnMut(ChatEvent)| {
        let mut chat = scripted(turns.next().unwrap(), None, usize::MAX);
        assert!(chat.by_ref().all(|event| event.is_ok()));
        Ok(chat.into_turn())
    };
    let mut conversation = asked();
    let handler = |_| pending::<ToolResult>();
    let tools = ToolLoop::new(&mut conversation).with_timeout(Duration::from_millis(50));
    let mut run = Box::pin(tools.run(&handler, turn, |_| ()));
    let mut context = Context::from_waker(&waker);
    assert!(run.as_mut().poll(&mut context).is_pending());
    // Polled for another reason: still waiting, unless the machine was slow.
    let mut done = run.as_mut().poll(&mut context);
    while done.is_pending() {
        while count.0.load(Ordering::SeqCst) == 0 {
            std::thread::park();
        }
        done = run.as_mut().poll(&mut context);
    }
    assert!(matches!(done, Poll::Ready(Ok(ToolLoopEnd::Turn(EndReason::Stop)))), "{done:?}");
    drop(run);
    assert_eq!(results(&conversation).len(), 1);
}

#[test]
fn a_turn_that_was_cut_off_keeps_its_text_and_no_calls() {
    let text = format!(
        "<|channel|>analysis<|message|>Two cities.<|end|><|start|>assistant{}<|end|>\
         <|start|>assistant<|channel|>commentary to=functions.get_weather<|message|>{{\"city\"\
         :\"Rome\"}}<|call|>",
        call("get_weather", "{}").trim_end_matches("<|call|>")
    );
    let mut whole = scripted(&text, None, usize::MAX);
    assert!(whole.by_ref().all(|event| event.is_ok()));
    let length = whole.tokens().len();
    let whole = whole.into_turn();
    assert_eq!((whole.calls.len(), whole.reason), (2, EndReason::ToolCalls));
    for at in 0..length {
        let mut chat = scripted(&text, Some(at), usize::MAX);
        assert!(chat.by_ref().all(|event| event.is_ok()));
        let cancelled = chat.into_turn();
        // The last token may have been on its way.
        assert_eq!(cancelled.reason, EndReason::Cancelled, "{at}");
        let mut chat = scripted(&text, None, at);
        assert!(chat.by_ref().all(|event| event.is_ok()));
        let cut = chat.into_turn();
        assert_eq!(cut.reason, EndReason::Length, "{at}");
        // Given up without a word to the model's loop.
        let mut chat = scripted(&text, None, usize::MAX);
        while chat.tokens().len() < at && chat.next().is_some() {}
        let left = chat.into_turn();
        for turn in [cancelled, cut, left] {
            assert_eq!(turn.calls, [], "{at}");
            assert!(whole.analysis.starts_with(&turn.analysis), "{turn:?}");
            let mut conversation = asked();
            let said = !turn.analysis.is_empty();
            assert_eq!(conversation.push_turn(turn), []);
            assert_eq!(conversation.messages.len(), 1 + usize::from(said));
            conversation.validate().unwrap();
        }
    }
    let mut chat = scripted("<|channel|>final<|message|>It is sunny in", None, usize::MAX);
    assert!(chat.by_ref().all(|event| event.is_ok()));
    let mut conversation = asked();
    conversation.push_turn(chat.into_turn());
    assert_eq!(last(&conversation), &Message::assistant("It is sunny in"));
    // The loop ends with such a turn.
    let mut tools = ToolLoop::new(&mut conversation);
    let mut cut = TurnBuilder::default();
    cut.push(&ChatEvent::TurnEnd { reason: EndReason::Length });
    tools.take_turn(cut.finish());
    assert_eq!(tools.step(), Step::End(ToolLoopEnd::Turn(EndReason::Length)));
}

#[test]
fn texts_of_a_channel_are_joined_and_remarks_go_before_the_answer() {
    let message = |channel: &str, text: &str| {
        format!("<|channel|>{channel}<|message|>{text}<|end|><|start|>assistant")
    };
    let text = [
        message("analysis", "One."),
        message("commentary", "A remark."),
        message("analysis", "Two."),
        message("analysis", ""),
        message("commentary", "Another."),
        "<|channel|>final<|message|>The answer.<|return|>".into(),
    ];
    let mut chat = scripted(&text.concat(), None, usize::MAX);
    assert!(chat.by_ref().all(|event| event.is_ok()));
    let turn = chat.into_turn();
    assert_eq!(turn.analysis, "One.\n\nTwo.");
    assert_eq!(turn.commentary, "A remark.\n\nAnother.");
    assert_eq!(turn.answer, "The answer.");
    let mut conversation = asked();
    conversation.push_turn(turn);
    assert_eq!(last(&conversation).text(), "A remark.\n\nAnother.\n\nThe answer.");
}

#[test]
fn names_that_no_prompt_can_show_are_made_showable() {
    for name in ["", " \n", &"n".repeat(300), "a\u{7}b"] {
        let mut turn = TurnBuilder::default();
        turn.push(&ChatEvent::ToolCallFinished {
            index: 0,
            name: name.into(),
            arguments: "{}".into(),
            valid_json: true,
        });
        turn.push(&ChatEvent::MessageEnd {
            channel: None,
            recipient: None,
            content_type: None,
            header: String::new(),
            defect: Some(Defect::NoChannel),
        });
        turn.push(&ChatEvent::TurnEnd { reason: EndReason::ToolCalls });
        let mut conversation = asked();
        let mut tools = ToolLoop::new(&mut conversation);
        let refused = tools.take_turn(turn.finish());
        assert!(matches!(&refused[0].result, Err(ToolError { .. })));
        assert_eq!(tools.step(), Step::Turn);
        drop(tools);
        conversation.validate().unwrap();
    }
}
