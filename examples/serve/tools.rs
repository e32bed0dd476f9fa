//! Which tools the model may call, and which form its answer has: what chat completions and
//! responses have in common.

use gpt_oss_mlx::ChatOptions;
use gpt_oss_mlx::chat::{Conversation, Message, Role};
use gpt_oss_mlx::constrain::{Enforce, ResponseFormat, ToolChoice};
use serde_json::{Value, json};

use crate::errors::ApiError;
use crate::fields::{Fields, wrong};

/// Longest name of a response format.
const NAME_LIMIT: usize = 64;

/// Reads `tool_choice`. `name` finds the name of the function in an object that chooses one.
pub fn choice(
    fields: &Fields<'_>,
    conversation: &Conversation,
    name: impl Fn(&Fields<'_>) -> Result<String, ApiError>,
) -> Result<ToolChoice, ApiError> {
    let choice = match fields.get("tool_choice") {
        None => return Ok(ToolChoice::Auto),
        Some(Value::String(choice)) => match choice.as_str() {
            "auto" => ToolChoice::Auto,
            "none" => ToolChoice::None,
            "required" => ToolChoice::Required,
            other => {
                let reason = format!("is `{other}`, not one of auto, none, required");
                return Err(ApiError::field("tool_choice", reason));
            }
        },
        Some(object @ Value::Object(_)) => {
            let object = Fields::of(object, "tool_choice")?;
            object.required("type")?;
            object.one_of("type", &["function"])?;
            ToolChoice::Function(name(&object)?)
        }
        Some(other) => return Err(wrong("tool_choice", other, "a string or an object")),
    };
    let names = conversation.tool_names();
    match &choice {
        ToolChoice::Required if names.is_empty() => {
            Err(ApiError::field("tool_choice", "is `required`, and there are no `tools`"))
        }
        ToolChoice::Function(name) if !names.contains(name) => {
            Err(ApiError::field("tool_choice", format!("names `{name}`, which is none of `tools`")))
        }
        // Without tools there is nothing to forbid.
        ToolChoice::None if names.is_empty() => Ok(ToolChoice::Auto),
        _ => Ok(choice),
    }
}

/// Calls of strict tools are held to their schemas.
pub fn enforce(conversation: &Conversation, options: &mut ChatOptions) {
    let strict = conversation.tools.iter().any(|tool| tool.strict == Some(true));
    let asked = options.response_format.is_some() || options.tool_choice != ToolChoice::Auto;
    options.enforce = (strict && !asked).then_some(Enforce::Tools);
}

/// Reads the form of the answer, which is the field `at`, and tells the model of it. In OpenAI's
/// two interfaces the schema is in different places: `inside` names the field that holds it.
pub fn response_format(
    format: Option<&Value>,
    at: &str,
    inside: Option<&str>,
    conversation: &mut Conversation,
) -> Result<Option<ResponseFormat>, ApiError> {
    let Some(format) = format else { return Ok(None) };
    let fields = Fields::of(format, at)?;
    fields.required("type")?;
    let kind = fields.one_of("type", &["text", "json_object", "json_schema"])?;
    let inner;
    let schema = match (kind, inside) {
        (Some("json_object"), _) => {
            return Ok(Some(ResponseFormat::JsonSchema(json!({"type": "object"}))));
        }
        (Some("json_schema"), Some(name)) => {
            inner = fields.path(name);
            Fields::of(fields.required(name)?, &inner)?
        }
        (Some("json_schema"), None) => fields,
        _ => return Ok(None),
    };
    schema.required("name")?;
    let name = schema.string("name")?.unwrap_or_default();
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > NAME_LIMIT || !name.chars().all(allowed) {
        let reason = format!("is not made of up to {NAME_LIMIT} ASCII letters, digits, `_`, `-`");
        return Err(ApiError::field(schema.path("name"), reason));
    }
    let description = schema.string("description")?;
    schema.bool("strict")?;
    schema.required("schema")?;
    let Some(object) = schema.map("schema")? else { return Ok(None) };
    let value = Value::Object(object.clone());
    // Behind the other instructions, which are joined in their order.
    let instructions = |message: &Message| matches!(message.role(), Role::System | Role::Developer);
    let place = conversation.messages.iter().take_while(|message| instructions(message)).count();
    let message = Message::response_format(name, description, &value);
    conversation.messages.insert(place, message);
    Ok(Some(ResponseFormat::JsonSchema(value)))
}
