//! The tools of `/tools demo`.

use gpt_oss_mlx::chat::Tool;
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

/// The result of a call, or what the model is told instead.
pub fn call(name: &str, arguments: &str) -> Result<Value, String> {
    match name {
        "get_weather" => {
            let arguments: Value =
                serde_json::from_str(arguments).map_err(|e| format!("arguments: {e}"))?;
            arguments["location"].as_str().ok_or("`location` is missing")?;
            // The demo has one weather, everywhere.
            Ok(json!({"sky": "sunny", "celsius": 21}))
        }
        "get_time" => Ok(jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S %Z").to_string().into()),
        _ => Err(format!("there is no tool {name}")),
    }
}
