//! The fields of rotary position embeddings, in the spellings of transformers 4 (`rope_theta` and
//! `rope_scaling`) and transformers 5 (`rope_parameters`).

use super::fields::{Fields, boolean, integer, keyword, number};
use super::{MAX_POSITIONS, MAX_ROPE_FACTOR, MAX_ROPE_THETA, MAX_YARN_ROTATIONS};
use crate::error::Result;

/// Rotations within the original context from which on a dimension keeps its frequency: YaRN's
/// own default (Peng et al. 2023, "YaRN", section 3.2), and transformers'.
const DEFAULT_BETA_FAST: f32 = 32.0;

/// Rotations below which a dimension is interpolated in full; default as above.
const DEFAULT_BETA_SLOW: f32 = 1.0;

/// YaRN's way of stretching rotary position embeddings beyond the context that the model was
/// pretrained with (Peng et al. 2023, "YaRN: Efficient Context Window Extension of Large Language
/// Models").
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct RopeScaling {
    /// How many times longer the context becomes, at least 1.
    pub factor: f32,
    /// Dimensions that turn at least this often within the original context keep their frequency.
    pub beta_fast: f32,
    /// Dimensions that turn at most this often are slowed down by the whole `factor`. Below
    /// `beta_fast`.
    pub beta_slow: f32,
    /// The original context, in tokens.
    pub original_max_position_embeddings: usize,
    /// Whether the range between the two betas is widened to whole dimensions. OpenAI's models
    /// say false; an absent field means true, as in transformers.
    pub truncate: bool,
}

/// One of the places where a config describes its position embeddings.
struct Block<'a> {
    fields: Fields<'a>,
    theta: Option<f32>,
    scaling: Option<RopeScaling>,
}

/// `rope_theta` and the scaling, wherever they stand. Where a value stands twice, both must agree.
pub(super) fn parse(fields: &Fields) -> Result<(f32, Option<RopeScaling>)> {
    let new = block(fields, "rope_parameters")?;
    let old = block(fields, "rope_scaling")?;
    // Neither spelling at all: transformers would scale by 32, mlx-lm not at all. A plain null,
    // however, is a statement.
    if new.is_none() && !fields.contains("rope_scaling") {
        let reason = "is missing, as is `rope_parameters`; write null for no scaling";
        return Err(fields.error("rope_scaling", reason));
    }
    if let (Some(new), Some(old)) = (&new, &old)
        && new.scaling != old.scaling
    {
        return Err(fields.error("rope_scaling", "disagrees with `rope_parameters`"));
    }
    let theta = agreed_theta(fields, [&new, &old])?;
    Ok((theta, new.or(old).and_then(|block| block.scaling)))
}

/// The base of the frequencies, from the top level or from a block.
fn agreed_theta(fields: &Fields, blocks: [&Option<Block>; 2]) -> Result<f32> {
    let mut agreed = fields.optional("rope_theta", theta)?;
    for block in blocks.into_iter().flatten() {
        match (agreed, block.theta) {
            (Some(one), Some(other)) if one != other => {
                let reason = format!("is {other}, but `rope_theta` stands elsewhere with {one}");
                return Err(block.fields.error("rope_theta", reason));
            }
            (one, other) => agreed = one.or(other),
        }
    }
    agreed.ok_or_else(|| fields.missing("rope_theta"))
}

/// Above 1, since YaRN divides by its logarithm.
fn theta(value: &serde_json::Value) -> super::fields::Converted<f32> {
    let wanted = format!("a number above 1 and at most {MAX_ROPE_THETA}");
    number(&wanted, |theta| theta > 1.0 && theta <= MAX_ROPE_THETA)(value)
}

fn block<'a>(fields: &Fields<'a>, key: &str) -> Result<Option<Block<'a>>> {
    let Some(fields) = fields.object(key)? else { return Ok(None) };
    let theta = fields.optional("rope_theta", theta)?;
    let scaling = if is_yarn(&fields)? { Some(yarn(&fields)?) } else { None };
    Ok(Some(Block { fields, theta, scaling }))
}

/// The kind of scaling, under its name or the older name `type`.
fn is_yarn(fields: &Fields) -> Result<bool> {
    let kind = || keyword(&[("yarn", true), ("default", false)]);
    match (fields.optional("rope_type", kind())?, fields.optional("type", kind())?) {
        (None, None) => Err(fields.missing("rope_type")),
        (Some(one), Some(other)) if one != other => {
            Err(fields.error("type", "disagrees with `rope_type`"))
        }
        (one, other) => Ok(one.or(other).unwrap_or(false)),
    }
}

fn yarn(fields: &Fields) -> Result<RopeScaling> {
    let wanted = format!("a number from 1 to {MAX_ROPE_FACTOR}");
    let factor =
        fields.required("factor", number(&wanted, |x| (1.0..=MAX_ROPE_FACTOR).contains(&x)))?;
    refuse_other_attention_factors(fields, factor)?;

    let wanted = format!("a number above 0 and at most {MAX_YARN_ROTATIONS}");
    let rotations = || number(&wanted, |x| x > 0.0 && x <= MAX_YARN_ROTATIONS);
    let beta_fast = fields.optional("beta_fast", rotations())?.unwrap_or(DEFAULT_BETA_FAST);
    let beta_slow = fields.optional("beta_slow", rotations())?.unwrap_or(DEFAULT_BETA_SLOW);
    if beta_fast <= beta_slow {
        let reason = format!("must be above beta_slow ({beta_slow}), not {beta_fast}");
        return Err(fields.error("beta_fast", reason));
    }
    Ok(RopeScaling {
        factor,
        beta_fast,
        beta_slow,
        original_max_position_embeddings: fields
            .required("original_max_position_embeddings", integer(1..=MAX_POSITIONS))?,
        truncate: fields.optional("truncate", boolean)?.unwrap_or(true),
    })
}

/// This library scales queries and keys by YaRN's `0.1 ln(factor) + 1`. The fields with which
/// other models replace that number must be absent or say the same.
fn refuse_other_attention_factors(fields: &Fields, factor: f32) -> Result<()> {
    let attention_factor = 0.1 * factor.ln() + 1.0;
    let wanted = format!("absent or {attention_factor}; other values are not supported");
    let same = number(&wanted, |x| (x - attention_factor).abs() < 1e-4);
    fields.optional("attention_factor", same)?;
    for key in ["mscale", "mscale_all_dim"] {
        fields.optional(key, number("absent or 0; others are not supported", |x| x == 0.0))?;
    }
    fields.optional("partial_rotary_factor", number("absent or 1", |x| x == 1.0))?;
    Ok(())
}
