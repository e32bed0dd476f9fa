//! The fields that say how tokens are generated, which all endpoints have.

use std::collections::BTreeMap;

use gpt_oss_mlx::{GenerateOptions, Sampling};
use serde_json::Value;

use crate::errors::ApiError;
use crate::fields::{Fields, wrong};
use crate::ids;

/// Fields of OpenAI's API that [`sampling`] reads, and three that other servers have as well.
pub const SAMPLING: [&str; 9] = [
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
    "top_k",
    "min_p",
    "repetition_penalty",
];
/// Fields that make no difference to an answer, and are ignored whatever they hold.
pub const IGNORED: [&str; 8] = [
    "metadata",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "user",
];
/// Most stop strings.
const STOP_LIMIT: usize = 4;
/// OpenAI's own default, which clients rely on.
pub const TEMPERATURE: f32 = 1.0;

/// How to generate after the request's fields, with `max_tokens` unless they say otherwise.
pub fn options(fields: &Fields<'_>, max_tokens: usize) -> Result<GenerateOptions, ApiError> {
    let mut options = GenerateOptions::default();
    options.max_tokens = max_tokens;
    options.sampling = sampling(fields)?;
    Ok(options)
}

fn sampling(fields: &Fields<'_>) -> Result<Sampling, ApiError> {
    let default = Sampling::default();
    let seed = fields.integer("seed", i64::MIN..=i64::MAX)?;
    Ok(Sampling {
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(TEMPERATURE),
        top_p: fields.number("top_p", 0.0..=1.0)?.unwrap_or(default.top_p),
        top_k: fields.count("top_k", 0..=i64::from(u32::MAX))?.unwrap_or(default.top_k),
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(default.min_p),
        presence_penalty: fields
            .number("presence_penalty", -2.0..=2.0)?
            .unwrap_or(default.presence_penalty),
        frequency_penalty: fields
            .number("frequency_penalty", -2.0..=2.0)?
            .unwrap_or(default.frequency_penalty),
        repetition_penalty: fields
            .number("repetition_penalty", 0.01..=10.0)?
            .unwrap_or(default.repetition_penalty),
        logit_bias: logit_bias(fields)?,
        seed: seed.map_or_else(ids::random, i64::cast_unsigned),
        ..default
    })
}

fn logit_bias(fields: &Fields<'_>) -> Result<BTreeMap<u32, f32>, ApiError> {
    let Some(map) = fields.map("logit_bias")? else { return Ok(BTreeMap::new()) };
    let biases = Fields::in_map(map);
    let read = |id: &String| {
        let name = fields.path(&format!("logit_bias.{id}"));
        let token = id.parse().map_err(|_| ApiError::field(&name, "is not the id of a token"))?;
        let bias = biases.number(id, -100.0..=100.0).map_err(|e| e.with_param(&name))?;
        Ok((token, bias.unwrap_or_default()))
    };
    map.keys().map(read).collect()
}

/// The field `stop`: a string or a list of strings.
pub fn stop(fields: &Fields<'_>) -> Result<Vec<String>, ApiError> {
    let stops = match fields.get("stop") {
        None => Vec::new(),
        Some(Value::String(stop)) => vec![stop.clone()],
        Some(Value::Array(stops)) if stops.len() > STOP_LIMIT => {
            let reason = format!("has {} entries, more than {STOP_LIMIT}", stops.len());
            return Err(ApiError::field("stop", reason));
        }
        Some(Value::Array(stops)) => {
            let text = |(i, stop): (usize, &Value)| {
                let wrong = || wrong(&format!("stop[{i}]"), stop, "a string");
                stop.as_str().map(str::to_owned).ok_or_else(wrong)
            };
            stops.iter().enumerate().map(text).collect::<Result<_, _>>()?
        }
        Some(other) => return Err(wrong("stop", other, "a string or a list of strings")),
    };
    match stops.iter().any(String::is_empty) {
        true => Err(ApiError::field("stop", "has an empty string, which is everywhere")),
        false => Ok(stops),
    }
}

/// The fields `stream` and `stream_options`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streaming {
    /// Whether the answer comes as it is made.
    pub on: bool,
    /// Whether the stream ends with the usage.
    pub include_usage: bool,
}

/// Whether and how to stream.
pub fn streaming(fields: &Fields<'_>) -> Result<Streaming, ApiError> {
    let on = fields.bool("stream")?.unwrap_or(false);
    let Some(options) = fields.get("stream_options") else {
        return Ok(Streaming { on, include_usage: false });
    };
    let options = Fields::of(options, "stream_options")?;
    if !on {
        return Err(ApiError::field("stream_options", "is only allowed with `stream`: true"));
    }
    options.only(&[&["include_usage", "include_obfuscation"]])?;
    options.bool("include_obfuscation")?;
    Ok(Streaming { on, include_usage: options.bool("include_usage")?.unwrap_or(false) })
}

/// Refuses more than one answer to a request.
pub fn one_answer(fields: &Fields<'_>) -> Result<(), ApiError> {
    for name in ["n", "best_of"] {
        if fields.integer(name, 1..=128)?.is_some_and(|n| n != 1) {
            return Err(ApiError::unsupported(name, "has to be 1: one answer is made at a time"));
        }
    }
    Ok(())
}

/// Refuses `"store": true`.
pub fn not_stored(fields: &Fields<'_>) -> Result<(), ApiError> {
    match fields.bool("store")? {
        Some(true) => Err(ApiError::unsupported("store", "has to be false: nothing is stored")),
        _ => Ok(()),
    }
}
