//! Requests of async-openai, and responses read into its types, which are made from OpenAI's
//! specification: a field that is missing or of another type fails.

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use async_openai::types::chat::{CreateChatCompletionRequest, FinishReason};
use async_openai::types::completions::CreateCompletionRequest;
use async_openai::types::responses::{CreateResponse, OutputItem, ResponseStreamEvent, Status};
use futures_util::StreamExt;
use serde_json::{Value, json};

const MODEL: &str = "gpt-oss-tiny";
const QUESTION: &str = "Explain Macros.";

fn client() -> Client<OpenAIConfig> {
    assert!(std::env::var("OPENAI_BASE_URL").is_ok(), "OPENAI_BASE_URL names the server");
    Client::new()
}

fn answer() -> String {
    let known: Value =
        serde_json::from_str(include_str!("../../fixtures/known-answers.json")).unwrap();
    let known = known.as_array().unwrap();
    let macros = known.iter().find(|known| known["topic"] == "Macros").unwrap();
    macros["answer"].as_str().unwrap().into()
}

fn chat(fields: Value) -> CreateChatCompletionRequest {
    let mut body = json!({"model": MODEL, "temperature": 0,
        "messages": [{"role": "user", "content": QUESTION}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    serde_json::from_value(body).unwrap()
}

fn response(fields: Value) -> CreateResponse {
    let mut body = json!({"model": MODEL, "temperature": 0.0, "input": QUESTION});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    serde_json::from_value(body).unwrap()
}

fn parameters() -> Value {
    json!({"type": "object", "properties": {"location": {"type": "string"}},
        "required": ["location"], "additionalProperties": false})
}

#[tokio::test]
async fn the_model_is_listed() {
    let models = client().models().list().await.unwrap();
    assert_eq!(models.data[0].id, MODEL);
    assert_eq!(client().models().retrieve(MODEL).await.unwrap().id, MODEL);
}

#[tokio::test]
async fn a_chat_is_answered_whole_and_streamed() {
    let fields = json!({"logprobs": true, "top_logprobs": 2});
    let whole = client().chat().create(chat(fields.clone())).await.unwrap();
    let choice = &whole.choices[0];
    assert_eq!(choice.message.content, Some(answer()));
    assert_eq!(choice.finish_reason, Some(FinishReason::Stop));
    assert!(choice.logprobs.as_ref().unwrap().content.as_ref().unwrap().len() > 10);
    assert!(whole.usage.unwrap().completion_tokens_details.unwrap().reasoning_tokens > Some(0));

    let mut stream = client().chat().create_stream(chat(fields)).await.unwrap();
    let mut text = String::new();
    while let Some(chunk) = stream.next().await {
        for choice in chunk.unwrap().choices {
            text += &choice.delta.content.unwrap_or_default();
        }
    }
    assert_eq!(text, answer());
}

#[tokio::test]
async fn a_tool_is_called_and_answered() {
    let tools = json!([{"type": "function", "function":
        {"name": "get_weather", "strict": true, "parameters": parameters()}}]);
    let question = json!({"role": "user", "content": "What is the weather in Paris?"});
    let fields = json!({"messages": [question], "tools": tools, "tool_choice": "required"});
    let whole = client().chat().create(chat(fields)).await.unwrap();
    assert_eq!(whole.choices[0].finish_reason, Some(FinishReason::ToolCalls));
    let message = serde_json::to_value(&whole.choices[0].message).unwrap();
    let call = &message["tool_calls"][0];
    assert_eq!(call["function"]["name"], "get_weather");
    let result = json!({"role": "tool", "tool_call_id": call["id"], "content": "sunny"});
    let history = json!({"role": "assistant", "tool_calls": message["tool_calls"]});
    let fields = json!({"messages": [question, history, result], "max_tokens": 100});
    let whole = client().chat().create(chat(fields)).await.unwrap();
    assert!(whole.choices[0].finish_reason.is_some());
}

#[tokio::test]
async fn a_text_is_completed() {
    let body = json!({"model": MODEL, "prompt": "fn main", "max_tokens": 5, "logprobs": 1});
    let request: CreateCompletionRequest = serde_json::from_value(body).unwrap();
    let whole = client().completions().create(request).await.unwrap();
    assert!(whole.usage.unwrap().completion_tokens <= 5);
}

#[tokio::test]
async fn a_response_is_whole_and_streamed() {
    let fields = json!({"reasoning": {"effort": "low", "summary": "auto"}, "top_logprobs": 1});
    let whole = client().responses().create(response(fields.clone())).await.unwrap();
    assert_eq!(whole.status, Status::Completed);
    assert_eq!(whole.output_text(), Some(answer()));
    assert!(matches!(&whole.output[0], OutputItem::Reasoning(item) if item.summary.len() == 1));

    for fields in [fields, json!({})] {
        let mut stream = client().responses().create_stream(response(fields)).await.unwrap();
        let (mut text, mut done) = (String::new(), None);
        while let Some(event) = stream.next().await {
            match event.unwrap() {
                ResponseStreamEvent::ResponseOutputTextDelta(event) => text += &event.delta,
                ResponseStreamEvent::ResponseCompleted(event) => done = Some(event.response),
                _ => {}
            }
        }
        assert_eq!(text, answer());
        assert_eq!(done.unwrap().output_text(), Some(answer()));
    }
}

#[tokio::test]
async fn a_response_calls_a_function() {
    let tools = json!([{"type": "function", "name": "get_weather", "strict": true,
        "parameters": parameters()}]);
    let fields = json!({"input": [{"type": "message", "role": "user", "content": "What is the weather in Paris?"}],
        "tools": tools, "tool_choice": "required"});
    let mut stream = client().responses().create_stream(response(fields)).await.unwrap();
    let (mut arguments, mut calls) = (String::new(), Vec::new());
    while let Some(event) = stream.next().await {
        match event.unwrap() {
            ResponseStreamEvent::ResponseFunctionCallArgumentsDelta(event) => {
                arguments += &event.delta;
            }
            ResponseStreamEvent::ResponseOutputItemDone(event) => {
                if let OutputItem::FunctionCall(call) = event.item {
                    calls.push(call);
                }
            }
            _ => {}
        }
    }
    assert_eq!(calls.len(), 1);
    assert_eq!((calls[0].name.as_str(), &calls[0].arguments), ("get_weather", &arguments));
}

#[tokio::test]
async fn a_refused_request_says_why() {
    let error = client().chat().create(chat(json!({"n": 2}))).await.unwrap_err();
    let OpenAIError::ApiError(error) = error else { panic!("{error:?}") };
    assert_eq!(error.api_error.param.as_deref(), Some("n"));
    let stranger = Client::with_config(OpenAIConfig::new().with_api_key("wrong"));
    assert!(matches!(stranger.models().list().await, Err(OpenAIError::ApiError(_))));
}
