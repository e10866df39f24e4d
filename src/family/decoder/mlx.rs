//! What mlx-lm's models ask of config.json, and where they would take it for something else.
//!
//! Source: mlx-lm `models/*.py` (`ModelArgs`).

use super::rope;
use crate::error::{Error, Result};
use crate::family::Config;

/// Refuses a config.json without keys that mlx-lm's model has no default for.
///
/// # Errors
/// Names the first that is missing.
pub(in crate::family) fn check_mlx_keys(config: &Config, keys: &[&str]) -> Result<()> {
    match keys.iter().find(|key| !config.has(key)) {
        None => Ok(()),
        Some(key) => Err(Error::Unsupported {
            what: format!("config.json: no {key}"),
            hint: format!(
                "mlx-lm reads {} models only with one",
                config.text("model_type").unwrap_or("such")
            ),
        }),
    }
}

/// What mlx-lm's model of a family makes of rotary positions.
pub(in crate::family) struct MlxRope {
    /// Base where config.json has none at its top level; none of its own with `None`.
    pub(in crate::family) theta: Option<f64>,
    /// Whether it looks into `rope_parameters`.
    pub(in crate::family) is_nested: bool,
    /// Whether it scales them.
    pub(in crate::family) scales: bool,
}

/// Refuses rotary positions that mlx-lm's model would take for others.
///
/// # Errors
/// Names the key.
pub(in crate::family) fn check_mlx_rope(config: &Config, rope: &MlxRope, default_theta: f64) -> Result<()> {
    let nested = config.section("rope_parameters");
    let scaling = config.section("rope_scaling").or_else(|| nested.clone().filter(|_| rope.is_nested));
    let theta = rope::theta(config, default_theta)?;
    let refuse = |what: String, hint: &str| {
        Err(Error::Unsupported { what: format!("config.json: {what}"), hint: hint.into() })
    };
    let reads_theta = config.get("rope_theta").is_some()
        || rope.is_nested && nested.as_ref().is_some_and(|nested| nested.get("rope_theta").is_some());
    if !reads_theta && rope.theta != Some(theta) {
        return refuse(
            format!("no rope_theta at the top level, and a base of {theta}"),
            "mlx-lm's model reads it there and has another default; add it to config.json",
        );
    }
    let kind = |section: &Config| match rope::kind(section) {
        "default" => None,
        kind => Some(kind.to_owned()),
    };
    let said = config.section("rope_scaling").or(nested).and_then(|section| kind(&section));
    if let Some(kind) = &said
        && !(rope.scales && scaling.as_ref().is_some_and(|section| rope::kind(section) == kind))
    {
        return refuse(
            format!("rope_scaling or rope_parameters of type {kind}"),
            "mlx-lm's model of this family leaves it out; where it reads rope_scaling, it does so at the top level",
        );
    }
    match scaling {
        Some(section) if said.is_some() && section.get("attention_factor").is_some() => refuse(
            "rope_scaling with an attention_factor".into(),
            "mlx-lm leaves it out; it has mscale and mscale_all_dim instead",
        ),
        _ => Ok(()),
    }
}

/// Refuses heads that are not hidden / heads wide, which mlx-lm's model takes them to be.
///
/// # Errors
/// Names the key.
pub(in crate::family) fn check_mlx_head_dim(config: &Config) -> Result<()> {
    let expected = config.dimension("hidden_size")? / config.dimension("num_attention_heads")?;
    match config.get("head_dim") {
        Some(width) if width.as_u64() != Some(expected as u64) => Err(Error::Unsupported {
            what: format!("config.json: head_dim {width}"),
            hint: format!(
                "mlx-lm reads models of this family only with hidden_size / num_attention_heads, {expected}"
            ),
        }),
        _ => Ok(()),
    }
}
