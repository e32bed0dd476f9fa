//! The tools of `/tools demo`.

use gpt_oss_mlx::chat::Tool;
use gpt_oss_mlx::chat::tool_loop::{ToolError, ToolResult};
use serde_json::{Value, json};

/// What is offered.
pub fn demo() -> [Tool; 2] {
    let parameters = json!({
        "type": "object",
        "properties": {"location": {"type": "string"}},
        "required": ["location"],
    });
    [
        Tool::new("get_weather", "Gets the weather of a city.", parameters),
        Tool::without_arguments("get_time", "Tells the date and time of day."),
    ]
}

/// The result of a call.
pub fn call(name: &str, arguments: &str) -> ToolResult {
    let arguments: Value = serde_json::from_str(arguments)?;
    match name {
        "get_weather" if !arguments["location"].is_string() => {
            Err(ToolError::new("`location` is missing"))
        }
        // The demo has one weather, everywhere.
        "get_weather" => Ok(json!({"sky": "sunny", "celsius": 21}).to_string()),
        "get_time" => Ok(jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S %Z").to_string()),
        // Of a conversation that was loaded.
        _ => Err(ToolError::new("this tool is not available here")),
    }
}
