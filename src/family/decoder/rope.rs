//! Rotary positions as config.json says them.
//!
//! Source: transformers `modeling_rope_utils.py` (the keys of each kind of scaling, `_validate_*_rope_parameters`).

use crate::error::{Error, Result};
use crate::family::{Config, Divisors, Pairing, Rotary, Scaling, Wavelengths, Yarn};

/// Keys of every kind of scaling, and of each.
const KEYS: &[&str] = &["rope_type", "type", "rope_theta", "partial_rotary_factor"];
const KEYS_OF: &[(&str, &[&str])] = &[
    // A factor means nothing to it.
    ("default", &["factor"]),
    ("linear", &["factor"]),
    (
        "yarn",
        &[
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "attn_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
            "extrapolation_factor",
            "finetuned",
        ],
    ),
    ("llama3", &["factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"]),
];

/// Rotary positions: `rope_theta` and `rope_scaling`, or `rope_parameters` of newer exports. YaRN's range ends at whole numbers unless
/// it may be any.
///
/// # Errors
/// Names the key that is missing, out of range, or unknown to this kind of scaling.
pub(super) fn rotary(
    config: &Config,
    default_theta: f64,
    head_dim: usize,
    is_any_range: bool,
) -> Result<Rotary> {
    let reads = Reads { partial: false, any_range: is_any_range };
    rotary_of(config, section(config), theta(config, default_theta)?, head_dim, reads)
}

/// The same where a part of a head turns: `partial_rotary_factor` of it, or `default`.
///
/// # Errors
/// As [`rotary`].
pub(super) fn partial(config: &Config, default_theta: f64, head_dim: usize, default: f64) -> Result<Rotary> {
    const KEY: &str = "partial_rotary_factor";
    let section = section(config);
    let nested = section.as_ref().map_or(Ok(default), |section| section.number_or(KEY, default))?;
    let factor = config.number_or(KEY, nested)?;
    let dim = (head_dim as f64 * factor) as usize;
    if dim == 0 || dim > head_dim || !dim.is_multiple_of(2) {
        let expected = format!("an even number of the {head_dim} columns of a head");
        return Err(config.invalid(KEY, &factor.to_string(), &expected));
    }
    let reads = Reads { partial: true, ..Reads::default() };
    rotary_of(config, section, theta(config, default_theta)?, dim, reads)
}

/// The same where `rotary_dim` says how many columns turn; `partial_rotary_factor` may say it too.
///
/// # Errors
/// As [`rotary`], and when the two contradict each other.
pub(super) fn counted(config: &Config, default_theta: f64, head_dim: usize) -> Result<Rotary> {
    const KEY: &str = "rotary_dim";
    let dim = config.count_or(KEY, 0)? as usize;
    let default = if dim == 0 { 1.0 } else { dim as f64 / head_dim as f64 };
    let rope = partial(config, default_theta, head_dim, default)?;
    if config.get(KEY).is_some() && dim != rope.dim {
        let expected =
            format!("an even number up to {head_dim}, and no partial_rotary_factor that contradicts it");
        return Err(config.invalid(KEY, &dim.to_string(), &expected));
    }
    Ok(rope)
}

/// Rotary positions of layers without a sliding window and of those with one, where they differ: `full_attention` and
/// `sliding_attention` in `rope_parameters`, or keys at the top level. Only the former are scaled.
///
/// # Errors
/// As [`rotary`], and for another way to say them.
pub(in crate::family) fn layered(config: &Config, head_dim: usize) -> Result<[Rotary; 2]> {
    let nested = config.section("rope_parameters");
    let kinds = ["full_attention", "sliding_attention"];
    if let Some(nested) = &nested
        && let Some(key) = nested.keys().find(|key| !kinds.contains(key))
    {
        let found = nested.get(key).map_or_else(String::new, ToString::to_string);
        return Err(nested.invalid(key, &found, "full_attention and sliding_attention alone"));
    }
    let [full, sliding] = kinds.map(|kind| nested.as_ref().and_then(|nested| nested.section(kind)));
    let theta = |section: &Option<Config>, key, default| -> Result<f64> {
        let top = config.number_or(key, default)?;
        section.as_ref().map_or(Ok(top), |section| section.number_or("rope_theta", top))
    };
    let thetas = [theta(&full, GLOBAL_BASE.0, GLOBAL_BASE.1)?, theta(&sliding, LOCAL_BASE.0, LOCAL_BASE.1)?];
    let full = config.section("rope_scaling").or(full);
    let full = rotary_of(config, full, thetas[0], head_dim, Reads::default())?;
    let sliding = rotary_of(config, sliding, thetas[1], head_dim, Reads::default())?;
    let is_plain = |rope: &Rotary| rope.divisors == Divisors::Absent && rope.yarn().is_none();
    if sliding.scaling.is_some() || !is_plain(&full) || !is_plain(&sliding) {
        return Err(Error::Unsupported {
            what: "config.json: scaled rotary positions of this kind beside sliding windows".into(),
            hint: "this version reads models of this family with those of type linear, in layers without a window"
                .into(),
        });
    }
    Ok([full, sliding])
}

/// Key and default of the base of layers without a window.
pub(in crate::family) const GLOBAL_BASE: (&str, f64) = ("rope_theta", 1e6);
/// The same of layers with one.
pub(in crate::family) const LOCAL_BASE: (&str, f64) = ("rope_local_base_freq", 1e4);

/// What not every family reads.
#[derive(Clone, Copy, Default)]
struct Reads {
    /// That a part of a head turns.
    partial: bool,
    /// That YaRN's range does not end at whole numbers.
    any_range: bool,
}

/// Rotary positions of so many columns and of this base, scaled as `section` says.
fn rotary_of(
    config: &Config,
    section: Option<Config>,
    theta: f64,
    dim: usize,
    reads: Reads,
) -> Result<Rotary> {
    let mut rope = Rotary {
        dim,
        pairing: Pairing::Halves,
        theta,
        scaling: None,
        amplitude: 1.0,
        divisors: Divisors::Absent,
        sections: None,
    };
    if !(rope.theta > 0.0 && rope.theta.is_finite()) {
        return Err(config.invalid("rope_theta", &rope.theta.to_string(), "a positive number"));
    }
    let Some(section) = section else { return Ok(rope) };
    let kind = kind(&section);
    check_keys(&section, kind, reads.partial)?;
    match kind {
        "default" => {}
        "linear" => rope.scaling = Some(Scaling::Linear(factor(&section)?)),
        "yarn" => {
            let factor = factor(&section)?;
            let yarn = Yarn {
                factor,
                original_context: section.dimension("original_max_position_embeddings")? as u64,
                beta_fast: section.number_or("beta_fast", 32.0)?,
                beta_slow: section.number_or("beta_slow", 1.0)?,
                mscale: section.number_or("mscale", 0.0)?,
                mscale_all_dim: section.number_or("mscale_all_dim", 0.0)?,
                truncate: section.flag_or("truncate", true)?,
            };
            check_yarn(&section, &yarn, reads)?;
            let own = yarn.amplitude();
            rope.amplitude = positive(&section, "attention_factor", own)? / own;
            rope.scaling = Some(Scaling::Yarn(yarn));
        }
        "llama3" => {
            let own = Wavelengths {
                factor: section.number_or("factor", 8.0)?,
                low: section.number_or("low_freq_factor", 1.0)?,
                high: section.number_or("high_freq_factor", 4.0)?,
                original_context: section.dimension("original_max_position_embeddings")? as u64,
            };
            for (key, value, is_right) in [
                ("factor", own.factor, own.factor >= 1.0),
                ("low_freq_factor", own.low, own.low > 0.0),
                ("high_freq_factor", own.high, own.high > own.low),
            ] {
                if !is_right {
                    let expected = "a factor of at least 1, and 0 < low_freq_factor < high_freq_factor";
                    return Err(section.invalid(key, &value.to_string(), expected));
                }
            }
            rope.divisors = Divisors::ByWavelength(own);
        }
        other => {
            let known = "\"default\", \"linear\", \"yarn\" or \"llama3\"";
            return Err(section.invalid("rope_type", &format!("{other:?}"), known));
        }
    }
    Ok(rope)
}

/// `rope_scaling`, or `rope_parameters` of newer exports.
fn section<'a>(config: &Config<'a>) -> Option<Config<'a>> {
    config.section("rope_scaling").or_else(|| config.section("rope_parameters"))
}

/// The base: at the top level, or in the section of newer exports.
///
/// # Errors
/// When it is no number.
pub(super) fn theta(config: &Config, default: f64) -> Result<f64> {
    let nested = section(config).map_or(Ok(default), |section| section.number_or("rope_theta", default))?;
    config.number_or("rope_theta", nested)
}

/// The kind of scaling that a section says.
pub(super) fn kind<'a>(section: &Config<'a>) -> &'a str {
    section.text("rope_type").or(section.text("type")).unwrap_or("default")
}

/// `factor`, which has to be there.
fn factor(section: &Config) -> Result<f64> {
    match section.get("factor") {
        None => Err(section.missing("factor")),
        Some(_) => positive(section, "factor", 1.0),
    }
}

/// A positive number.
fn positive(section: &Config, key: &str, default: f64) -> Result<f64> {
    let number = section.number_or(key, default)?;
    if number > 0.0 && number.is_finite() {
        return Ok(number);
    }
    Err(section.invalid(key, &number.to_string(), "a positive number"))
}

/// Refuses keys that this kind of scaling does not have: an evaluation without them might be of another model.
fn check_keys(section: &Config, kind: &str, is_partial: bool) -> Result<()> {
    let Some((_, own)) = KEYS_OF.iter().find(|(name, _)| *name == kind) else { return Ok(()) };
    if let Some(key) = section.keys().find(|key| !KEYS.contains(key) && !own.contains(key)) {
        let found = section.get(key).map_or_else(String::new, ToString::to_string);
        let known = [KEYS, own].concat().join(", ");
        return Err(section.invalid(
            key,
            &found,
            &format!("{kind} rotary positions with no keys but {known}"),
        ));
    }
    if !is_partial && section.number_or("partial_rotary_factor", 1.0)? != 1.0 {
        let found = section.number_or("partial_rotary_factor", 1.0)?;
        return Err(section.invalid(
            "partial_rotary_factor",
            &found.to_string(),
            "1 in models of this family",
        ));
    }
    Ok(())
}

/// Refuses what YaRN can do and this version does not.
fn check_yarn(section: &Config, yarn: &Yarn, reads: Reads) -> Result<()> {
    if !yarn.truncate && !reads.any_range {
        let expected = "true in models of this family: a range of dimensions that ends at whole numbers";
        return Err(section.invalid("truncate", "false", expected));
    }
    if section.number_or("extrapolation_factor", 1.0)? != 1.0 {
        let found = section.number_or("extrapolation_factor", 1.0)?;
        return Err(section.invalid("extrapolation_factor", &found.to_string(), "1"));
    }
    if !(yarn.beta_slow > 0.0 && yarn.beta_fast > yarn.beta_slow) {
        return Err(section.invalid(
            "beta_fast",
            &yarn.beta_fast.to_string(),
            "more than beta_slow, and that more than 0",
        ));
    }
    if section.get("attn_factor").is_some() {
        let found = section.number_or("attn_factor", 1.0)?;
        return Err(section.invalid("attn_factor", &found.to_string(), "attention_factor to say it"));
    }
    Ok(())
}
