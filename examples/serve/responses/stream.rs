//! The events of `POST /v1/responses`: items that begin, grow and end. A response that is not
//! streamed is what they lead to.

use gpt_oss_mlx::chat::events::{ChatEvent, Defect, EndReason};
use gpt_oss_mlx::engine::EngineEvent;
use serde_json::{Value, json};

use super::response::{IncompleteDetails, Item, Part, Response, Status};
use crate::errors::ApiError;
use crate::ids;
use crate::logprobs::{Spelling, TokenLogprobs};
use crate::sse::{Encoder, Frame};

/// Makes a response of a turn's events.
#[derive(Debug)]
pub struct ResponseStream {
    response: Response,
    spelling: Option<Spelling>,
    open: Option<Open>,
    /// Of tokens whose text has not come yet.
    waiting: Vec<TokenLogprobs>,
    end: Option<EndReason>,
    /// Number of the next event.
    sequence: u64,
}

/// The item that grows.
#[derive(Debug)]
struct Open {
    kind: Kind,
    id: String,
    text: String,
    logprobs: Vec<TokenLogprobs>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Reasoning { summary: bool },
    Message,
    Call { call_id: String, name: String },
}

impl Open {
    fn part(&self, text: &str) -> Part {
        let text = text.to_owned();
        match self.kind {
            Kind::Reasoning { summary: true } => Part::Summary { text },
            Kind::Reasoning { summary: false } => Part::Reasoning { text },
            Kind::Message | Kind::Call { .. } => {
                Part::Output { text, annotations: [], logprobs: self.logprobs.clone() }
            }
        }
    }

    /// The item with its text so far, or without any when it has only begun.
    fn item(&self, status: Status) -> Item {
        let begun = status == Status::InProgress;
        let parts = if begun { Vec::new() } else { vec![self.part(&self.text)] };
        let id = self.id.clone();
        match &self.kind {
            Kind::Reasoning { summary: true } => {
                Item::Reasoning { id, summary: parts, content: None, status }
            }
            Kind::Reasoning { summary: false } => {
                Item::Reasoning { id, summary: Vec::new(), content: Some(parts), status }
            }
            Kind::Message => Item::Message { id, role: "assistant", content: parts, status },
            Kind::Call { call_id, name } => Item::FunctionCall {
                id,
                call_id: call_id.clone(),
                name: name.clone(),
                arguments: self.text.clone(),
                status,
            },
        }
    }

    /// The events of its text: a part that begins, text that grows, the whole text, the part's end.
    fn names(&self) -> [Option<&'static str>; 4] {
        match self.kind {
            Kind::Reasoning { summary: true } => [
                Some("response.reasoning_summary_part.added"),
                Some("response.reasoning_summary_text.delta"),
                Some("response.reasoning_summary_text.done"),
                Some("response.reasoning_summary_part.done"),
            ],
            Kind::Reasoning { summary: false } => [
                Some("response.content_part.added"),
                Some("response.reasoning_text.delta"),
                Some("response.reasoning_text.done"),
                Some("response.content_part.done"),
            ],
            Kind::Message => [
                Some("response.content_part.added"),
                Some("response.output_text.delta"),
                Some("response.output_text.done"),
                Some("response.content_part.done"),
            ],
            Kind::Call { .. } => [
                None,
                Some("response.function_call_arguments.delta"),
                Some("response.function_call_arguments.done"),
                None,
            ],
        }
    }
}

impl ResponseStream {
    /// A response, with log-probabilities if there is a spelling for them.
    pub fn new(response: Response, spelling: Option<Spelling>) -> Self {
        let (open, waiting, end) = (None, Vec::new(), None);
        Self { response, spelling, open, waiting, end, sequence: 0 }
    }

    /// The response as far as it has come; None when it did not come to an end of its own.
    pub fn into_response(self) -> Option<Response> {
        let ended = matches!(self.response.status, Status::Completed | Status::Incomplete);
        ended.then_some(self.response)
    }

    fn frame(&mut self, name: &'static str, fields: Value) -> Frame {
        let mut event = json!({"type": name, "sequence_number": self.sequence});
        self.sequence += 1;
        if let (Value::Object(event), Value::Object(fields)) = (&mut event, fields) {
            event.extend(fields);
        }
        Frame { event: Some(name), data: event.to_string() }
    }

    /// An event of the open item's text.
    fn text_frame(&mut self, name: Option<&'static str>, fields: Value) -> Option<Frame> {
        let (name, open) = (name?, self.open.as_ref()?);
        let mut event = json!({"item_id": open.id, "output_index": self.response.output.len()});
        match &open.kind {
            Kind::Reasoning { summary: true } => event["summary_index"] = 0.into(),
            Kind::Reasoning { .. } | Kind::Message => event["content_index"] = 0.into(),
            Kind::Call { .. } => {}
        }
        if let (Value::Object(event), Value::Object(fields)) = (&mut event, fields) {
            event.extend(fields);
        }
        Some(self.frame(name, event))
    }

    /// Begins an item.
    fn begin(&mut self, kind: Kind, frames: &mut Vec<Frame>) {
        self.close(Status::Completed, frames);
        let prefix = match kind {
            Kind::Reasoning { .. } => "rs_",
            Kind::Message => "msg_",
            Kind::Call { .. } => "fc_",
        };
        let id = ids::id(prefix);
        let open = Open { kind, id, text: String::new(), logprobs: Vec::new() };
        let fields = json!({
            "output_index": self.response.output.len(),
            "item": open.item(Status::InProgress),
        });
        frames.push(self.frame("response.output_item.added", fields));
        let ([added, ..], part) = (open.names(), json!({"part": open.part("")}));
        self.open = Some(open);
        frames.extend(self.text_frame(added, part));
    }

    /// Adds text to an item of this kind, which begins if there is none.
    fn grow(&mut self, kind: Kind, text: &str, frames: &mut Vec<Frame>) {
        if self.open.as_ref().is_none_or(|open| open.kind != kind) {
            self.begin(kind, frames);
        }
        self.add(text, frames);
    }

    /// Adds text to the open item.
    fn add(&mut self, text: &str, frames: &mut Vec<Frame>) {
        let Some(open) = &mut self.open else { return };
        open.text.push_str(text);
        let [_, delta, ..] = open.names();
        let mut fields = json!({"delta": text});
        if open.kind == Kind::Message {
            let logprobs = std::mem::take(&mut self.waiting);
            fields["logprobs"] = json!(logprobs);
            open.logprobs.extend(logprobs);
        }
        frames.extend(self.text_frame(delta, fields));
    }

    /// Ends the open item, if there is one.
    fn close(&mut self, status: Status, frames: &mut Vec<Frame>) {
        let Some(open) = &mut self.open else { return };
        let [_, _, done, part_done] = open.names();
        let mut whole = match open.kind {
            Kind::Call { .. } => json!({"arguments": open.text}),
            _ => json!({"text": open.text}),
        };
        if let Kind::Call { name, .. } = &open.kind {
            whole["name"] = name.as_str().into();
        }
        if open.kind == Kind::Message {
            open.logprobs.append(&mut self.waiting);
            whole["logprobs"] = json!(open.logprobs);
        }
        let part = json!({"part": open.part(&open.text)});
        let item = open.item(status);
        frames.extend(self.text_frame(done, whole));
        frames.extend(self.text_frame(part_done, part));
        let fields = json!({"output_index": self.response.output.len(), "item": item});
        frames.push(self.frame("response.output_item.done", fields));
        self.response.output.push(item);
        self.open = None;
    }

    fn chat(&mut self, event: ChatEvent, frames: &mut Vec<Frame>) {
        match event {
            ChatEvent::AnalysisDelta { text } => {
                let kind = Kind::Reasoning { summary: self.response.summarizes() };
                self.grow(kind, &text, frames);
            }
            ChatEvent::CommentaryDelta { text } | ChatEvent::FinalDelta { text } => {
                self.grow(Kind::Message, &text, frames);
            }
            ChatEvent::ToolCallStarted { name, .. } => {
                self.begin(Kind::Call { call_id: ids::id("call_"), name }, frames);
            }
            ChatEvent::ArgumentsDelta { text, .. } => self.add(&text, frames),
            // A turn that was cut off ends its last item, too, but not in a sound way.
            ChatEvent::TurnEnd { reason } => {
                let whole = matches!(
                    reason,
                    EndReason::Stop | EndReason::StopString | EndReason::ToolCalls
                );
                self.close(if whole { Status::Completed } else { Status::Incomplete }, frames);
                self.end = Some(reason);
            }
            // One that was cut off ends with the turn.
            ChatEvent::MessageEnd { defect: Some(Defect::NotEnded), .. } => {}
            ChatEvent::MessageEnd { .. } => self.close(Status::Completed, frames),
            _ => {}
        }
    }

    fn finish(&mut self, frames: &mut Vec<Frame>) {
        let name = match self.end {
            None | Some(EndReason::Cancelled) => {
                frames.extend(self.fail(&ApiError::stopping()));
                return;
            }
            Some(EndReason::Length) => {
                let reason = "max_output_tokens";
                self.response.incomplete_details = Some(IncompleteDetails { reason });
                self.response.status = Status::Incomplete;
                "response.incomplete"
            }
            Some(_) => {
                self.response.completed_at = Some(ids::now());
                self.response.status = Status::Completed;
                "response.completed"
            }
        };
        let response = json!({"response": self.response});
        frames.push(self.frame(name, response));
    }
}

impl Encoder for ResponseStream {
    fn start(&mut self) -> Vec<Frame> {
        let response = json!({"response": self.response});
        ["response.created", "response.in_progress"]
            .map(|name| self.frame(name, response.clone()))
            .into()
    }

    fn push(&mut self, event: EngineEvent) -> Vec<Frame> {
        let mut frames = Vec::new();
        match event {
            EngineEvent::Chat(event) => self.chat(event, &mut frames),
            EngineEvent::Token(token) => {
                let token = self.spelling.as_ref().and_then(|spelling| spelling.visible(&token));
                self.waiting.extend(token);
            }
            EngineEvent::Finished { usage, .. } => {
                self.response.usage = Some((&usage).into());
                self.finish(&mut frames);
            }
            _ => {}
        }
        frames
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Frame> {
        let mut frames = Vec::new();
        self.close(Status::Incomplete, &mut frames);
        self.response.status = Status::Failed;
        self.response.error = Some(error.into());
        let response = json!({"response": self.response});
        frames.push(self.frame("response.failed", response));
        frames
    }
}
