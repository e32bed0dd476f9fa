//! Constrained decoding: whatever the model would write, the turn keeps to its grammar.
#![cfg(feature = "constrain")]

mod common;

use std::collections::HashSet;
use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use common::layouts::{Packing, Shape};
use common::random_model;
use gpt_oss_mlx::chat::events::{ChatEvent, EndReason};
use gpt_oss_mlx::chat::harmony::HarmonyParser;
use gpt_oss_mlx::chat::tool_loop::{ToolLoop, ToolLoopEvent, ToolResult};
use gpt_oss_mlx::chat::{BuiltinTool, Conversation, Message, Tool, ToolCall};
use gpt_oss_mlx::constrain::{
    Constraint, ConstraintSpec, Enforce, ResponseFormat, ToolChoice, Vocabulary,
};
use gpt_oss_mlx::{ChatOptions, Error, LoadOptions, Sampling, Session, TextModel, Tokenizer};
use safetensors::Dtype;
use serde_json::{Value, json};

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");

/// A model that writes noise: random weights, and the bundled tokenizer.
fn noise() -> TextModel {
    let shape = Shape {
        layers: 2,
        hidden: 32,
        heads: 2,
        kv_heads: 1,
        head_dim: 64,
        width: 32,
        experts: 2,
        vocab: 2048,
    };
    let dir = tempfile::tempdir().unwrap();
    let ids = json!([2041, 2040, 2047]);
    let extra = json!({"sliding_window": 8, "num_experts_per_tok": 2, "eos_token_id": ids});
    let specs = shape.mlx(Dtype::F32, |_| Packing::Float);
    random_model::write(dir.path(), &shape.config(extra), &specs, &|_| Packing::Float, 3);
    for file in ["tokenizer.json", "chat_template.jinja", "generation_config.json"] {
        std::fs::copy(Path::new(DIR).join(file), dir.path().join(file)).unwrap();
    }
    TextModel::load(dir.path(), &LoadOptions::default()).unwrap()
}

/// Noise at temperature 1 that ends: the control tokens that end a message, and what closes parts
/// of a JSON text, are made likely. It makes nothing valid: they are as likely at a wrong place.
fn noisy(tokenizer: &Tokenizer, seed: u64) -> Sampling {
    let mut sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
    for name in ["<|end|>", "<|call|>", "<|return|>"] {
        sampling.logit_bias.insert(tokenizer.token_id(name).unwrap(), 6.0);
    }
    for id in (0u32..).take(tokenizer.vocab_size()) {
        if tokenizer.is_special(id) {
            continue;
        }
        let bytes = tokenizer.token_bytes(id).unwrap();
        if matches!(bytes.first(), Some(b'"' | b'}' | b']' | b',' | b'\\')) {
            sampling.logit_bias.insert(id, 4.5);
        }
    }
    sampling
}

fn turn(
    model: &TextModel,
    spec: &ConstraintSpec,
    sampling: Sampling,
    max_tokens: usize,
) -> (Vec<ChatEvent>, Vec<u32>) {
    let prompt = model.chat_prompt(&Conversation::new([Message::user("Say something.")])).unwrap();
    let mut options = ChatOptions::default();
    options.generate.sampling = sampling;
    options.generate.max_tokens = max_tokens;
    options.generate.constraint = model.constraint(spec).unwrap();
    options.tools = Some(TOOLS.map(String::from).to_vec());
    let mut session = Session::new(model.model());
    let mut chat = model.chat_ids(&mut session, &prompt, &options).unwrap();
    let events = chat.by_ref().map(|event| event.unwrap()).collect();
    (events, chat.tokens().to_vec())
}

const TOOLS: [&str; 3] = ["book", "größe_not_ascii_but_never_offered", "search.all"];

/// Nesting, enums, arrays, optional fields, numbers, strings with limits, text beyond ASCII.
fn schemas() -> [Value; 2] {
    [
        json!({
            "type": "object",
            "properties": {
                "passenger": {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string", "minLength": 1, "maxLength": 12},
                        "größe": {"type": "number", "minimum": 0.5, "maximum": 2.5},
                    },
                    "required": ["name", "größe"],
                    "additionalProperties": false,
                },
                "class": {"enum": ["économique", "business \"plus\"", "头等舱", 1, null]},
                "seats": {
                    "type": "array",
                    "items": {"type": "integer", "minimum": 1, "maximum": 60},
                    "minItems": 1,
                    "maxItems": 3,
                },
                "note": {"type": "string"},
            },
            "required": ["passenger", "class", "seats"],
            "additionalProperties": false,
        }),
        json!({
            "type": "object",
            "properties": {
                "query": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "filters": {
                    "type": "array",
                    "items": {"$ref": "#/$defs/filter"},
                    "maxItems": 2,
                },
                "date": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"},
                "exact": {"type": "boolean"},
            },
            "required": ["query", "date"],
            "additionalProperties": false,
            "$defs": {
                "filter": {
                    "type": "object",
                    "properties": {
                        "field": {"const": "schlüssel"},
                        "at_least": {"type": "integer", "minimum": -5, "maximum": 500},
                    },
                    "required": ["field"],
                    "additionalProperties": false,
                },
            },
        }),
    ]
}

fn function(name: &str, parameters: Value) -> Tool {
    Tool::new(name, "", parameters)
}

fn offer() -> Vec<Tool> {
    let [book, search] = schemas();
    vec![function("book", book), function("search.all", search)]
}

/// The call with which a turn ends: name and arguments.
fn call(events: &[ChatEvent]) -> Option<(&str, &str)> {
    events.iter().find_map(|event| match event {
        ChatEvent::ToolCallFinished { name, arguments, .. } => {
            Some((name.as_str(), arguments.as_str()))
        }
        _ => None,
    })
}

fn answer(events: &[ChatEvent]) -> String {
    let text = |event: &ChatEvent| match event {
        ChatEvent::FinalDelta { text } => Some(text.clone()),
        _ => None,
    };
    events.iter().filter_map(text).collect()
}

/// What every constrained turn is, whatever it is constrained to.
fn assert_well_formed(events: &[ChatEvent]) {
    for event in events {
        match event {
            ChatEvent::MessageEnd { defect, .. } => assert_eq!(*defect, None, "{event:?}"),
            ChatEvent::ToolCallStarted { known, index, .. } => {
                assert!(*known && *index == 0, "{event:?}");
            }
            _ => {}
        }
    }
    let reason = if call(events).is_some() { EndReason::ToolCalls } else { EndReason::Stop };
    assert_eq!(events.last(), Some(&ChatEvent::TurnEnd { reason }));
}

fn validate(schema: &Value, text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{text:?}: {e}"));
    let validator = jsonschema::validator_for(schema).unwrap();
    if let Err(error) = validator.validate(&value) {
        panic!("{text}: {error}");
    }
}

#[test]
fn two_hundred_turns_of_noise_are_all_valid() {
    let model = noise();
    let schemas = schemas();
    let mut spec = ConstraintSpec::default();
    spec.tools = offer();
    spec.response_format = Some(ResponseFormat::JsonSchema(schemas[0].clone()));
    let (mut calls, mut answers, mut analyses, mut strings) = (0, 0, 0, String::new());
    let mut optional = HashSet::new();
    for seed in 0..200 {
        let choices = [ToolChoice::Auto, ToolChoice::None, ToolChoice::Required];
        spec.tool_choice = choices[seed as usize % 3].clone();
        let (events, tokens) = turn(&model, &spec, noisy(model.tokenizer(), seed), 4000);
        assert_well_formed(&events);
        let schema = match call(&events) {
            Some(("book", _)) => &schemas[0],
            Some(("search.all", _)) => &schemas[1],
            Some((name, _)) => panic!("{name}"),
            None => &schemas[0],
        };
        let answer = answer(&events);
        let text = call(&events).map_or(answer.as_str(), |(_, arguments)| arguments);
        validate(schema, text);
        strings.push_str(text);
        let keys: Value = serde_json::from_str(text).unwrap();
        for key in ["note", "filters", "exact"] {
            optional.insert((key, keys.get(key).is_some()));
        }
        if call(&events).is_some() {
            calls += 1
        } else {
            answers += 1
        }
        analyses += events.iter().filter(|e| matches!(e, ChatEvent::AnalysisDelta { .. })).count();
        assert!(tokens.len() < 4000);
    }
    // The test covers what it is meant to.
    assert_eq!(optional.len(), 6, "each is there and is left out: {optional:?}");
    assert!(calls > 60 && answers > 60 && analyses > 20, "{calls} {answers} {analyses}");
    for part in ["\\", "économique", "头等舱", "größe", "schlüssel", "\"note\"", "null", "true"]
    {
        assert!(strings.contains(part), "{part}");
    }
    assert!(strings.chars().any(|c| !c.is_ascii() && !"éößü头等舱".contains(c)));
}

#[test]
fn every_tool_choice_is_kept_to() {
    let model = noise();
    let mut names = HashSet::new();
    for seed in 0..5 {
        for choice in [
            ToolChoice::None,
            ToolChoice::Required,
            ToolChoice::Function("search.all".into()),
            ToolChoice::Auto,
        ] {
            let mut spec = ConstraintSpec::default();
            spec.tools = offer();
            spec.tool_choice = choice.clone();
            let (events, _) = turn(&model, &spec, noisy(model.tokenizer(), seed), 4000);
            assert_well_formed(&events);
            let name = call(&events).map(|(name, _)| name.to_owned());
            match &choice {
                ToolChoice::None => assert_eq!(name, None),
                ToolChoice::Required => names.extend(name),
                ToolChoice::Function(wanted) => assert_eq!(name.as_ref(), Some(wanted)),
                ToolChoice::Auto => {}
            }
        }
    }
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn the_answer_keeps_to_every_kind_of_format() {
    let model = noise();
    let lark = "start: sum\nsum: NUMBER (\"+\" NUMBER)*\nNUMBER: /[1-9][0-9]{0,2}/\n";
    let sum = |text: &str| {
        let number = |n: &str| (1..=3).contains(&n.len()) && n.parse::<u16>().is_ok_and(|n| n > 0);
        text.split('+').all(number)
    };
    let words = |text: &str| {
        let (a, b) = text.split_once(' ').unwrap_or_default();
        ["grün", "blau"].contains(&a) && b.len() == 3 && b.bytes().all(|b| b.is_ascii_lowercase())
    };
    let json = |text: &str| {
        serde_json::from_str::<Value>(text).is_ok_and(|v| v == json!("a\"b") || v == json!([true]))
    };
    type Fits<'a> = &'a dyn Fn(&str) -> bool;
    let cases: [(ResponseFormat, Fits<'_>); 3] = [
        (ResponseFormat::Lark(lark.into()), &sum),
        (ResponseFormat::Regex("(grün|blau) [a-z]{3}".into()), &words),
        (ResponseFormat::JsonSchema(json!({"enum": ["a\"b", [true]]})), &json),
    ];
    for (format, fits) in cases {
        for seed in 0..8 {
            let mut spec = ConstraintSpec::default();
            spec.response_format = Some(format.clone());
            let (events, _) = turn(&model, &spec, noisy(model.tokenizer(), seed), 4000);
            assert_well_formed(&events);
            assert!(fits(&answer(&events)), "{format:?}: {:?}", answer(&events));
        }
    }
    // Only headers and calls.
    let mut spec = ConstraintSpec::default();
    spec.response_format = Some(ResponseFormat::Regex("a".into()));
    spec.enforce = Enforce::Tools;
    let (events, _) = turn(&model, &spec, noisy(model.tokenizer(), 2), 4000);
    assert_well_formed(&events);
    assert!(answer(&events) != "a");
    spec.enforce = Enforce::Off;
    assert!(model.constraint(&spec).unwrap().is_none());
}

#[test]
fn the_bundled_model_calls_its_tool_and_answers_as_without_a_constraint() {
    let model = TextModel::load(DIR, &LoadOptions::default()).unwrap();
    let tool = |place: &str| {
        let parameters = json!({
            "type": "object",
            "properties": {place: {"type": "string"}},
            "required": [place],
        });
        Tool::new("get_weather", "Gets the weather of a city.", parameters)
    };
    for (question, tools, arguments) in [
        ("What is the weather in Paris?", vec![tool("location")], r#"{"location":"Paris"}"#),
        // The model knows its tool by heart, and needs the grammar to keep to another schema.
        ("What is the weather in Paris?", vec![tool("city")], r#"{"city":"Paris"}"#),
        ("Explain Dangling References.", vec![], ""),
    ] {
        let conversation = Conversation::new([Message::user(question)]).with_tools(tools);
        let prompt = model.chat_prompt(&conversation).unwrap();
        let mut options = ChatOptions::default();
        let mut tokens = Vec::new();
        for constrained in [false, true] {
            if constrained {
                let spec = ConstraintSpec::for_conversation(&conversation);
                options.generate.constraint = model.constraint(&spec).unwrap();
            }
            let mut session = Session::new(model.model());
            let mut chat = model.chat_ids(&mut session, &prompt, &options).unwrap();
            let events: Vec<_> = chat.by_ref().map(|event| event.unwrap()).collect();
            tokens.push(chat.tokens().to_vec());
            if constrained && !conversation.tools.is_empty() {
                let (name, got) = call(&events).unwrap();
                assert_eq!(name, "get_weather");
                let got: Value = serde_json::from_str(got).unwrap();
                assert_eq!(got, serde_json::from_str::<Value>(arguments).unwrap());
            }
        }
        assert_eq!(tokens[0] == tokens[1], !arguments.contains("city"));
    }
}

#[test]
fn a_turn_that_the_limit_cuts_off_says_so() {
    let model = noise();
    let mut spec = ConstraintSpec::default();
    spec.response_format = Some(ResponseFormat::Regex("[ab]{1000}".into()));
    let (events, tokens) = turn(&model, &spec, noisy(model.tokenizer(), 1), 40);
    assert_eq!(tokens.len(), 40);
    assert_eq!(events.last(), Some(&ChatEvent::TurnEnd { reason: EndReason::Length }));
}

#[test]
fn the_grammars_end_stops_whatever_the_stop_ids_are() {
    let model = noise();
    let spec = ConstraintSpec::default();
    let prompt = model.chat_prompt(&Conversation::new([Message::user("Say something.")])).unwrap();
    let mut options = ChatOptions::default();
    options.generate.sampling = noisy(model.tokenizer(), 5);
    options.generate.stop_ids = Some(vec![]);
    options.generate.constraint = model.constraint(&spec).unwrap();
    let mut session = Session::new(model.model());
    let mut chat = model.chat_ids(&mut session, &prompt, &options).unwrap();
    let events: Vec<_> = chat.by_ref().map(|event| event.unwrap()).collect();
    assert_well_formed(&events);
    assert_eq!(chat.tokens().last().copied(), model.tokenizer().token_id("<|return|>"));
}

#[test]
fn reported_probabilities_are_the_models_own() {
    let model = TextModel::load(DIR, &LoadOptions::default()).unwrap();
    let prompt = model.chat_prompt(&Conversation::new([Message::user("Explain Traits.")])).unwrap();
    let mut spec = ConstraintSpec::default();
    spec.response_format = Some(ResponseFormat::Regex("[ab]{3}".into()));
    let mut options = gpt_oss_mlx::GenerateOptions::default();
    options.logprobs = Some(1);
    options.constraint = model.constraint(&spec).unwrap();
    let tokens: Vec<_> =
        model.model().generate(&prompt, &options).unwrap().map(|t| t.unwrap()).collect();
    let free = tokens.iter().filter(|t| t.logprobs[0].id != t.id).count();
    assert!(free > 0, "{tokens:?}");
    let ids: Vec<u32> = tokens.iter().map(|t| t.id).collect();
    let mut parser = HarmonyParser::new(model.tokenizer()).unwrap();
    let mut events: Vec<_> = ids.iter().flat_map(|&id| parser.push(id).unwrap()).collect();
    events.extend(parser.finish(EndReason::Stop));
    let answer = answer(&events);
    assert!(answer.len() == 3 && answer.bytes().all(|b| b"ab".contains(&b)), "{answer}");
}

#[test]
fn biases_against_the_only_token_are_an_error() {
    let model = noise();
    let prompt = model.chat_prompt(&Conversation::new([Message::user("Say something.")])).unwrap();
    let mut options = gpt_oss_mlx::GenerateOptions::default();
    let channel = model.tokenizer().token_id("<|channel|>").unwrap();
    options.sampling.logit_bias.insert(channel, f32::NEG_INFINITY);
    options.constraint = model.constraint(&ConstraintSpec::default()).unwrap();
    let mut generation = model.model().generate(&prompt, &options).unwrap();
    let error = generation.next().unwrap().unwrap_err();
    assert!(matches!(error, Error::AllBanned { .. }), "{error}");
    assert!(generation.next().is_none());
}

/// Whether the tokens of `text` are a whole turn by the constraint.
fn is_turn(constraint: &Constraint, tokenizer: &Tokenizer, text: &str) -> bool {
    let mut guide = constraint.begin();
    let mut over = false;
    for id in tokenizer.encode(text, true).unwrap() {
        assert!(!over, "{text}");
        let allowed = guide.allowed(4096).unwrap();
        // Ids that only pad the model's vocabulary.
        assert!(allowed[2048..].iter().all(|allowed| !allowed));
        if !allowed[id as usize] {
            return false;
        }
        over = guide.push(id).unwrap();
    }
    over
}

#[test]
fn a_tool_choice_allows_what_it_says_and_nothing_else() {
    let tokenizer = Tokenizer::from_dir(Path::new(DIR)).unwrap();
    let vocabulary = Vocabulary::new(&tokenizer).unwrap();
    let any = || json!({"type": "object"});
    let tools = [function("a", any()), function("ab", any())];
    let conversation = Conversation::new([]).with_tools(tools);
    let conversation = conversation.with_builtin_tools(BuiltinTool::ALL);
    let mut spec = ConstraintSpec::for_conversation(&conversation);
    let turns = [
        "<|channel|>final<|message|>Hello<|return|>",
        "<|channel|>commentary to=functions.a <|constrain|>json<|message|>{}<|call|>",
        "<|channel|>commentary to=functions.ab <|constrain|>json<|message|>{}<|call|>",
        "<|channel|>analysis to=python code<|message|>print(1)<|call|>",
        "<|channel|>analysis to=browser.open <|constrain|>json<|message|>{\"id\":1}<|call|>",
        "<|channel|>commentary to=python<|message|>x<|call|>",
        "<|channel|>commentary<|message|>Wait.<|end|><|start|>assistant to=functions.a\
         <|channel|>commentary<|message|>{}<|call|>",
    ];
    let function = |name: &str| ToolChoice::Function(name.into());
    for (choice, allowed) in [
        (ToolChoice::Auto, [true; 7]),
        (ToolChoice::None, [true, false, false, false, false, false, false]),
        (ToolChoice::Required, [false, true, true, true, true, true, true]),
        (function("a"), [false, true, false, false, false, false, true]),
        (function("ab"), [false, false, true, false, false, false, false]),
        (function("python"), [false, false, false, true, false, true, false]),
    ] {
        spec.tool_choice = choice;
        let constraint = vocabulary.compile(&spec).unwrap().unwrap();
        for (turn, allowed) in turns.iter().zip(allowed) {
            let got = is_turn(&constraint, &tokenizer, turn);
            assert_eq!(got, allowed, "{:?}: {turn}", spec.tool_choice);
        }
    }
}

#[test]
fn arguments_are_what_the_conversation_says_of_its_tools() {
    let tokenizer = Tokenizer::from_dir(Path::new(DIR)).unwrap();
    let vocabulary = Vocabulary::new(&tokenizer).unwrap();
    let untyped = json!({"properties": {"n": {"type": "integer"}}});
    let referred = json!({"$ref": "#/$defs/a", "$defs": {"a": {"required": ["n"]}}});
    let mut conversation = Conversation::new([])
        .with_tools([
            Tool::without_arguments("now", "The time."),
            function("untyped", untyped),
            function("referred", referred),
        ])
        .with_builtin_tools(BuiltinTool::ALL);
    let ends = |conversation: &Conversation, to: &str, text: &str| {
        let spec = ConstraintSpec::for_conversation(conversation);
        let constraint = vocabulary.compile(&spec).unwrap().unwrap();
        let turn = format!("<|channel|>commentary to={to}<|message|>{text}<|call|>");
        is_turn(&constraint, &tokenizer, &turn)
    };
    for (to, fit, unfit) in [
        ("functions.now", &["{}", "{ }"] as &[_], &["", "null", "[]", r#"{"a":1}"#] as &[_]),
        ("functions.untyped", &["{}", r#"{"n":1}"#], &["3", "[]", r#"{"n":"1"}"#]),
        ("functions.referred", &[r#"{"n":"x"}"#], &["{}", "3"]),
        ("python", &["print(1)", "", "{}"], &[]),
        ("browser", &[], &["", "{}"]),
        (
            "browser.search",
            &[r#"{"query":"x"}"#, r#"{"query":"x","topn":3,"source":"web"}"#],
            &["{}", r#"{"query":1}"#, r#"{"query":"x","pattern":"y"}"#, "x"],
        ),
        (
            "browser.open",
            &["{}", r#"{"id":3,"cursor":-1,"loc":4,"num_lines":5}"#, r#"{"id":"https://a.b/"}"#],
            &[r#"{"id":null}"#, r#"{"view_source":1}"#, r#"{"url":"x"}"#],
        ),
        (
            "browser.find",
            &[r#"{"pattern":"x"}"#, r#"{"pattern":"x","cursor":2}"#],
            &["{}", r#"{"pattern":"x","cursor":"2"}"#],
        ),
    ] {
        for (texts, fits) in [(fit, true), (unfit, false)] {
            for text in texts {
                assert_eq!(ends(&conversation, to, text), fits, "{to}: {text}");
            }
        }
    }
    // What is not offered cannot be called, and what is offered twice is offered.
    conversation.builtin_tools = vec![BuiltinTool::Python; 2];
    assert!(ends(&conversation, "python", "x"));
    assert!(!ends(&conversation, "browser.find", r#"{"pattern":"x"}"#));
}

/// The part that an error names, and its message.
fn refused(vocabulary: &Vocabulary, spec: &ConstraintSpec) -> (String, String) {
    match vocabulary.compile(spec) {
        Err(Error::Grammar { part, message }) => (part, message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_cannot_be_compiled_is_an_error_that_names_the_part() {
    let vocabulary = Vocabulary::new(&Tokenizer::from_dir(Path::new(DIR)).unwrap()).unwrap();
    let format = |format| {
        let mut spec = ConstraintSpec::default();
        spec.response_format = Some(format);
        spec
    };
    let schema = |schema| format(ResponseFormat::JsonSchema(schema));
    let lark = |text: &str| format(ResponseFormat::Lark(text.into()));
    let tools = |tools: Vec<Tool>| {
        let mut spec = ConstraintSpec::default();
        spec.tools = tools;
        spec
    };
    let tool = function;
    let object = || json!({"type": "object"});
    let overlapping = json!({"oneOf": [{"type": "integer"}, {"minimum": 3}]});
    let mut required = tools(vec![]);
    required.tool_choice = ToolChoice::Required;
    let mut missing = tools(vec![tool("a", object())]);
    missing.tool_choice = ToolChoice::Function("b".into());
    let cases = [
        (schema(json!({"type": "colour"})), "response_format", "colour"),
        (schema(json!({"$ref": "#/$defs/none"})), "response_format", "none"),
        (schema(json!({"$ref": "https://example.com/"})), "response_format", "example.com"),
        (schema(overlapping.clone()), "response_format", "oneOf"),
        // An option of llguidance that would let invalid values through.
        (
            schema(json!({"oneOf": overlapping["oneOf"], "x-guidance": {"lenient": true}})),
            "response_format",
            "oneOf",
        ),
        // Beyond llguidance's arithmetic, alone or together.
        (
            schema(json!({"type": "integer", "multipleOf": 999_999_937})),
            "response_format",
            "multipleOf",
        ),
        (
            schema(json!({"allOf": [{"multipleOf": 99991}, {"multipleOf": 99989}]})),
            "response_format",
            "multipleOf",
        ),
        (schema(json!(false)), "response_format", ""),
        (schema(json!(3)), "response_format", ""),
        (schema(json!({"not": {"type": "string"}})), "response_format", "not"),
        (format(ResponseFormat::Regex("(".into())), "response_format", ""),
        (lark("start: missing"), "response_format", "missing"),
        (lark("start: @tool_0"), "response_format", ""),
        (lark("start: \"a\" <|return|>"), "response_format", "control tokens"),
        (lark("start: <[2041]>"), "response_format", "control tokens"),
        (lark("start: <[*]>"), "response_format", "control tokens"),
        (lark("start: <[^1]>"), "response_format", "control tokens"),
        (
            tools(vec![tool("a", object()), tool("b", json!({"type": "colour"}))]),
            "tool `b`",
            "colour",
        ),
        (tools(vec![tool("a b", object())]), "tool `a b`", "name"),
        (tools(vec![tool("a<|call|>", object())]), "tool `a<|call|>`", "name"),
        (tools(vec![tool("", object())]), "tool ``", "name"),
        (tools(vec![tool("a", object()), tool("a", object())]), "tool `a`", "twice"),
        (required, "tool_choice", "no tool"),
        (missing, "tool_choice", "`b`"),
    ];
    for (spec, part, message) in cases {
        let got = refused(&vocabulary, &spec);
        assert_eq!(got.0, part, "{got:?}");
        assert!(got.1.contains(message) && !got.1.is_empty(), "{got:?} for {spec:?}");
        assert!(!got.1.contains("<state>") && !got.1.contains("backtrace"), "{got:?}");
    }
}

#[test]
fn hostile_grammars_end_in_an_error_or_work() {
    let vocabulary = Vocabulary::new(&Tokenizer::from_dir(Path::new(DIR)).unwrap()).unwrap();
    let mut deep = json!({});
    for _ in 0..100_000 {
        let mut outer = serde_json::Map::new();
        outer.insert("items".into(), deep);
        deep = Value::Object(outer);
    }
    let chain = |link: &dyn Fn(usize) -> Value, n: usize| {
        let defs: serde_json::Map<String, Value> =
            (0..n).map(|i| (format!("{i}"), link(i + 1))).collect();
        let mut defs = defs;
        defs.insert(n.to_string(), json!({"type": "null"}));
        json!({"$defs": defs, "$ref": "#/$defs/0"})
    };
    let rules = |n: usize| {
        let mut text = String::from("start: a0\n");
        for i in 0..n {
            text += &format!("a{i}: a{}\n", i + 1);
        }
        text + &format!("a{n}: \"x\"\n")
    };
    let json = ResponseFormat::JsonSchema;
    let text = |text: String| ResponseFormat::Lark(text);
    let cases = [
        json(deep),
        json(chain(&|i| json!({"$ref": format!("#/$defs/{i}")}), 4000)),
        json(chain(&|i| json!({"allOf": [{"$ref": format!("#/$defs/{i}")}]}), 4000)),
        json(json!({"$ref": "#"})),
        json(json!({"allOf": [{"$ref": "#"}]})),
        json(json!({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"})),
        json(json!({"type": "array", "minItems": 1_000_000_000, "items": {"type": "null"}})),
        json(json!({"type": "string", "minLength": 1_000_000_000})),
        json(json!({"type": "string", "pattern": "^((a{1000}){1000}){1000}$"})),
        json(json!({"type": "string", "pattern": "^(a|b)*a(a|b){50}$"})),
        json(json!({"type": "integer", "multipleOf": 999_999_937})),
        text(rules(4000)),
        text(format!("start: {}\"a\"{}", "(".repeat(30_000), ")".repeat(30_000))),
        text(format!("start: A\nA: {}\"a\"", "~".repeat(30_000))),
        text("start: start start | \"a\"".into()),
        text("start: a\na: b\nb: a".into()),
        text("start: A\nA: (\"a\"{1,1000}){1,1000}".into()),
        text("start: \"a\"{1,1000000000}".into()),
        ResponseFormat::Regex("(".repeat(30_000)),
        ResponseFormat::Regex("(a{1000}){1000}".into()),
        ResponseFormat::Regex("x".repeat(1 << 20)),
    ];
    for (i, case) in cases.into_iter().enumerate() {
        let mut spec = ConstraintSpec::default();
        spec.response_format = Some(case);
        let result = vocabulary.compile(&spec);
        if let Err(error) = result {
            assert!(matches!(error, Error::Grammar { .. }), "{error}");
        }
        // Dropping a value this deep is serde_json's own recursion, on this thread's stack.
        if i == 0 {
            let deep = spec.response_format.take();
            std::mem::forget(deep);
        }
    }
}

#[test]
fn a_grammar_without_a_way_on_is_an_error_and_not_a_hang() {
    let tokenizer = Tokenizer::from_dir(Path::new(DIR)).unwrap();
    let vocabulary = Vocabulary::new(&tokenizer).unwrap();
    let walk = |source: &str, text: &str| {
        let mut spec = ConstraintSpec::default();
        spec.response_format = Some(ResponseFormat::Lark(source.into()));
        let mut guide = vocabulary.compile(&spec)?.unwrap().begin();
        for id in tokenizer.encode(text, true)? {
            guide.allowed(2048)?;
            guide.push(id)?;
        }
        guide.allowed(2048)
    };
    let head = "<|channel|>final<|message|>";
    // Rules that never come to an end cannot even begin.
    for source in ["start: start", "start: a\na: b\nb: \"x\" a"] {
        match walk(source, &(head.to_owned() + "xxx")) {
            Err(Error::Constraint { .. } | Error::Grammar { .. }) | Ok(_) => {}
            Err(error) => panic!("{error}"),
        }
    }
    // A token that is not allowed, and a grammar that is over.
    let allowed = walk("start: \"x\"", head).unwrap();
    assert_eq!(allowed.len(), 2048);
    let x = tokenizer.token_id("x").unwrap();
    assert_eq!(allowed.iter().filter(|allowed| **allowed).count(), 1);
    assert!(allowed[x as usize]);
    let index = tokenizer.encode(head, true).unwrap().len();
    for (text, taken) in [("y", index), ("x<|return|>", index + 1)] {
        match walk("start: \"x\"", &(head.to_owned() + text)) {
            Err(Error::Constraint { index, message }) => {
                assert_eq!(index, taken);
                assert!(!message.is_empty() && !message.contains('\n'), "{message}");
            }
            other => panic!("{other:?}"),
        }
    }
    // Work without bounds: ambiguous beyond measure.
    let source = "start: a\na: a a | b\nb: b b | \"x\" | a";
    match walk(source, &(head.to_owned() + &"x".repeat(60))) {
        Err(Error::Constraint { .. }) | Ok(_) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_same_constraint_serves_many_turns() {
    let tokenizer = Tokenizer::from_dir(Path::new(DIR)).unwrap();
    let vocabulary = Vocabulary::new(&tokenizer).unwrap();
    let mut spec = ConstraintSpec::default();
    spec.tools = offer();
    let constraint = vocabulary.compile(&spec).unwrap().unwrap();
    // Headers in every order that the format has, and calls that it does not.
    let json = r#"{"query":null,"date":"2025-01"}"#;
    let ends = |text: &str| is_turn(&constraint, &tokenizer, text);
    for (head, ok) in [
        ("<|channel|>commentary to=functions.search.all <|constrain|>json<|message|>", true),
        ("<|channel|>commentary to=functions.search.all<|constrain|>json<|message|>", true),
        ("<|channel|>commentary to=functions.search.all json<|message|>", true),
        ("<|channel|>commentary to=functions.search.all<|message|>", true),
        (" to=functions.search.all<|channel|>commentary <|constrain|>json<|message|>", true),
        (" to=functions.search.all<|channel|>commentary json<|message|>", true),
        (" to=functions.search.all<|channel|>commentary<|message|>", true),
        (
            "<|channel|>analysis<|message|>Search!<|end|><|start|>assistant<|channel|>commentary\
             <|message|>Searching.<|end|><|start|>assistant<|channel|>commentary \
             to=functions.search.all <|constrain|>json<|message|>",
            true,
        ),
        ("<|channel|>commentary to=functions.search <|constrain|>json<|message|>", false),
        ("<|channel|>commentary to=search.all <|constrain|>json<|message|>", false),
        ("<|channel|>commentary to=functions.other <|constrain|>json<|message|>", false),
        ("<|channel|>analysis to=functions.search.all <|constrain|>json<|message|>", false),
        ("<|channel|>final to=functions.search.all <|constrain|>json<|message|>", false),
        ("<|message|>", false),
        ("", false),
        ("<|channel|>comment<|message|>", false),
        ("<|channel|>analysis<|message|>Hm<|call|>", false),
        ("<|channel|>analysis<|message|>Hm<|channel|>", false),
    ] {
        assert_eq!(ends(&format!("{head}{json}<|call|>")), ok, "{head}");
        assert!(!ends(&format!("{head}{json}<|return|>")), "{head}");
        assert!(!ends(&format!("{head}{json}<|end|>")), "{head}");
    }
}

/// The events of one turn in a conversation.
fn chat(model: &TextModel, conversation: &Conversation, options: &ChatOptions) -> Vec<ChatEvent> {
    let mut session = Session::new(model.model());
    let chat = model.chat(&mut session, conversation, options).unwrap();
    chat.map(|event| event.unwrap()).collect()
}

fn noisy_options(model: &TextModel, seed: u64) -> ChatOptions {
    let mut options = ChatOptions::default();
    options.generate.sampling = noisy(model.tokenizer(), seed);
    options.generate.max_tokens = 4000;
    options
}

#[test]
fn the_options_of_a_chat_are_kept_to() {
    let model = noise();
    let [book, search] = schemas();
    let asked = Conversation::new([Message::user("Say something.")]);
    let asked = asked.with_tools([function("book", book.clone()), function("search", search)]);
    let asked = asked.with_builtin_tools(BuiltinTool::ALL);
    let mut called = HashSet::new();
    for seed in 0..12 {
        let mut options = noisy_options(&model, seed);
        options.response_format = Some(ResponseFormat::JsonSchema(book.clone()));
        options.tool_choice = ToolChoice::None;
        let events = chat(&model, &asked, &options);
        assert_well_formed(&events);
        assert_eq!(call(&events), None);
        validate(&book, &answer(&events));

        options.tool_choice = ToolChoice::Required;
        let events = chat(&model, &asked, &options);
        assert_well_formed(&events);
        called.insert(call(&events).unwrap().0.to_owned());

        options.response_format = None;
        options.tool_choice = ToolChoice::Function("book".into());
        let events = chat(&model, &asked, &options);
        assert_well_formed(&events);
        let (name, arguments) = call(&events).unwrap();
        assert_eq!(name, "book");
        validate(&book, arguments);

        // Only headers and calls, and those of the conversation's tools.
        options.tool_choice = ToolChoice::Auto;
        options.enforce = Some(Enforce::Tools);
        assert_well_formed(&chat(&model, &asked, &options));
    }
    assert!(called.contains("python") && called.len() > 2, "{called:?}");
}

#[test]
fn what_is_enforced_stays_so_after_the_call_that_was_demanded() {
    let model = noise();
    let mut turns = 0;
    for seed in 0..4 {
        let [book, search] = schemas();
        let asked = Conversation::new([Message::user("Say something.")]);
        let mut conversation =
            asked.with_tools([function("book", book.clone()), function("search", search)]);
        let mut options = noisy_options(&model, seed);
        options.tool_choice = ToolChoice::Required;
        // Without a format, it is the choice alone that asks for something.
        options.response_format = (seed % 2 == 1).then(|| ResponseFormat::JsonSchema(book.clone()));
        let (mut session, mut events) = (Session::new(model.model()), Vec::new());
        let handler = |_: ToolCall| std::future::ready(ToolResult::Ok("{}".into()));
        let tools = ToolLoop::new(&mut conversation).with_timeout(None).with_max_rounds(3);
        let run = model.chat_with_tools(&mut session, tools, &handler, &options, |event| {
            events.push(event);
        });
        // Nothing in it waits.
        let Poll::Ready(end) = pin!(run).poll(&mut Context::from_waker(Waker::noop())) else {
            panic!("it waits")
        };
        end.unwrap();
        let events: Vec<ChatEvent> = events
            .into_iter()
            .filter_map(|event| match event {
                ToolLoopEvent::Chat(event) => Some(event),
                _ => None,
            })
            .collect();
        let is_end = |event: &ChatEvent| matches!(event, ChatEvent::TurnEnd { .. });
        for (i, turn) in events.split_inclusive(is_end).enumerate() {
            assert_well_formed(turn);
            match call(turn) {
                Some(("book", arguments)) => validate(&book, arguments),
                Some(_) => {}
                None => {
                    assert!(i > 0, "the first turn has to call");
                    if options.response_format.is_some() {
                        validate(&book, &answer(turn));
                    }
                }
            }
            turns += 1;
        }
    }
    assert!(turns > 4, "{turns}");
}

#[test]
fn nothing_is_enforced_where_nothing_is_asked_for() {
    let model = noise();
    let asked = Conversation::new([Message::user("Say something.")]).with_tools(offer_of_one());
    let mut options = noisy_options(&model, 4);
    options.generate.max_tokens = 60;
    let free = model.chat_prompt(&asked).unwrap();
    let mut session = Session::new(model.model());
    let free: Vec<_> = model
        .model()
        .generate_in(&mut session, &free, &options.generate)
        .unwrap()
        .map(|token| token.unwrap().id)
        .collect();
    let tokens = |options: &ChatOptions| {
        let mut session = Session::new(model.model());
        let mut chat = model.chat(&mut session, &asked, options).unwrap();
        assert!(chat.by_ref().all(|event| event.is_ok()));
        chat.tokens().to_vec()
    };
    assert_eq!(tokens(&options), free);
    options.enforce = Some(Enforce::Everything);
    assert_ne!(tokens(&options), free);
    // Off is off, whatever else is asked for.
    options.enforce = Some(Enforce::Off);
    options.tool_choice = ToolChoice::Required;
    options.response_format = Some(ResponseFormat::Regex("a".into()));
    assert_eq!(tokens(&options), free);
}

fn offer_of_one() -> [Tool; 1] {
    [Tool::without_arguments("now", "Tells the time.")]
}

#[test]
fn what_a_chat_cannot_enforce_is_an_error_that_names_it() {
    let model = TextModel::load(DIR, &LoadOptions::default()).unwrap();
    let plain = Conversation::new([Message::user("Explain Macros.")]);
    let with_tool = plain.clone().with_tools(offer_of_one());
    let mut session = Session::new(model.model());
    let mut refused = |conversation: &Conversation, options: &ChatOptions| {
        model.chat(&mut session, conversation, options).unwrap_err()
    };
    let mut options = ChatOptions::default();
    options.tool_choice = ToolChoice::Required;
    let error = refused(&plain, &options).to_string();
    assert!(error.contains("tool_choice") && error.contains("no tool"), "{error}");
    options.tool_choice = ToolChoice::Function("later".into());
    for conversation in [&plain, &with_tool] {
        let error = refused(conversation, &options).to_string();
        assert!(error.contains("tool_choice") && error.contains("`later`"), "{error}");
    }
    options = ChatOptions::default();
    options.response_format = Some(ResponseFormat::JsonSchema(json!({"type": "colour"})));
    let error = refused(&plain, &options).to_string();
    assert!(error.contains("response_format") && error.contains("colour"), "{error}");
    let broken = plain.clone().with_tools([function("paint", json!({"not": {}}))]);
    options = ChatOptions::default();
    options.tool_choice = ToolChoice::Required;
    let error = refused(&broken, &options).to_string();
    assert!(error.contains("tool `paint`") && error.contains("not"), "{error}");

    // One's own grammar and another.
    options = ChatOptions::default();
    options.generate.constraint = model.constraint(&ConstraintSpec::default()).unwrap();
    options.response_format = Some(ResponseFormat::Regex("a".into()));
    let error = refused(&plain, &options);
    assert!(matches!(&error, Error::Argument { .. }), "{error}");
    assert!(error.to_string().contains("generate.constraint"), "{error}");
    // A prompt of one's own does not say what it offers.
    options.generate.constraint = None;
    let prompt = model.chat_prompt(&plain).unwrap();
    let mut session = Session::new(model.model());
    let error = model.chat_ids(&mut session, &prompt, &options).unwrap_err();
    assert!(matches!(error, Error::Argument { .. }), "{error}");
}
