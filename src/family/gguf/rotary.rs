//! Rotary positions and sliding windows of GGUF families with grouped-query attention.
//!
//! Not as llama.cpp does it, but as the models do:
//!
//! - `phi3`: every layer has the sliding window of the file; llama.cpp leaves it out, and so differs in contexts
//!   beyond it (2047 tokens of the models with 4096).
//! - `gpt-oss`: YaRN's range ends where it ends; llama.cpp has whole numbers.
//! - YaRN: `beta_fast`, `beta_slow`, `yarn_attn_factor` and `yarn_log_multiplier` (`mscale_all_dim` of Mistral's own
//!   format) of the file count; llama.cpp has 32 and 1 for these families, and leaves the others out.
//!
//! Source: llama.cpp `src/llama-model.cpp` (`load_hparams`, `get_rope_factors`), `src/llama-context.cpp` (YaRN's factors),
//! `src/models/*.cpp`.

use std::collections::HashSet;

use requant_formats::container::gguf::{Array, Value};

use super::keys::{Keys, counts_of};
use super::{Architecture, Windows};
use crate::error::Result;
use crate::family::{Divisors, Rotary, Scaling, Sections, Sliding, Yarn};

/// Rotary positions, and those of layers with a sliding window; `names` are those of the file's tensors.
///
/// # Errors
/// What is out of range, and what this version cannot evaluate.
pub(super) fn rotary(
    architecture: &Architecture,
    keys: &Keys,
    head_dim: usize,
    names: &HashSet<&str>,
) -> Result<(Rotary, Rotary)> {
    let dim = keys.count("rope.dimension_count")?.map_or(head_dim, |dim| dim as usize);
    if dim == 0 || dim % 2 == 1 || dim > head_dim {
        let expected = format!("an even number up to the head's width, {head_dim}");
        return Err(keys.invalid("rope.dimension_count", &Value::from(dim as u32), &expected));
    }
    let stored = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];
    let [always, long, short] = stored.map(|name| names.contains(name));
    let divisors = match (always, long || short) {
        _ if !architecture.has_divisors => Divisors::Absent,
        (true, _) => Divisors::Always,
        (false, true) => Divisors::ByContext { original_context: original_context(keys)? },
        (false, false) => Divisors::Absent,
    };
    let mut scaling = scaling(keys)?;
    if let Some(Scaling::Yarn(yarn)) = &mut scaling {
        yarn.truncate = architecture.truncates;
    }
    let log = keys.number("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0);
    if let Some(Scaling::Yarn(yarn)) = &mut scaling
        && log != 0.0
    {
        (yarn.mscale, yarn.mscale_all_dim) = (1.0, log);
    }
    let stated = stated_amplitude(keys, &scaling)?;
    let rope = Rotary {
        dim,
        pairing: architecture.pairing,
        theta: keys.positive("rope.freq_base")?.unwrap_or(10000.0),
        scaling,
        amplitude: stated * keys.positive("rope.scaling.attn_factor")?.unwrap_or(1.0),
        divisors,
        sections: sections(architecture, keys)?,
    };
    let sliding = match architecture.windows {
        Windows::Never | Windows::Every => rope.clone(),
        Windows::AllBut(..) => {
            // Gemma 2 has one base and scale for all layers, Gemma 3 another base for these, and no scale.
            let own = keys.positive("rope.freq_base_swa")?;
            if architecture.has_local_base() {
                Rotary { theta: own.unwrap_or(10000.0), scaling: None, ..rope.clone() }
            } else {
                Rotary { theta: own.unwrap_or(rope.theta), ..rope.clone() }
            }
        }
    };
    Ok((rope, sliding))
}

/// Sections of pairs that turn by different dimensions of a position, if there are two at least.
fn sections(architecture: &Architecture, keys: &Keys) -> Result<Option<Sections>> {
    let key = "rope.dimension_sections";
    let Some(value) = keys.value(key) else { return Ok(None) };
    let is_few = |counts: &Vec<usize>| matches!(value, Value::Array(_)) && counts.len() <= 4;
    let counts = counts_of(value).filter(is_few);
    let counts = counts.ok_or_else(|| keys.invalid(key, value, "counts of pairs, four at most"))?;
    let count = |at: usize| counts.get(at).copied().unwrap_or(0);
    let are_used = architecture.has_sections && count(0) > 0 && count(1) > 0;
    Ok(are_used.then(|| Sections([0, 1, 2, 3].map(count))))
}

/// Context length of the original training.
fn original_context(keys: &Keys) -> Result<u64> {
    let key = "rope.scaling.original_context_length";
    match keys.count(key)? {
        Some(length) => Ok(length),
        None => keys.count("context_length")?.ok_or_else(|| keys.missing(key)),
    }
}

/// `rope.scaling.*`; YaRN with `mscale` 0.
///
/// # Errors
/// What is out of range, and what this version cannot evaluate.
pub(super) fn scaling(keys: &Keys) -> Result<Option<Scaling>> {
    let older = keys.number("rope.scale_linear")?;
    let factor = keys.number("rope.scaling.factor")?.or(older);
    // llama.cpp takes 0 for absent.
    let factor = factor.filter(|&factor| factor != 0.0);
    if let Some(found) = factor.filter(|factor| !(*factor > 0.0 && factor.is_finite())) {
        let found = Value::from(found as f32);
        return Err(keys.invalid("rope.scaling.factor", &found, "a positive number"));
    }
    let linear = factor.filter(|&factor| factor != 1.0).map(Scaling::Linear);
    // Without YaRN or LongRoPE it changes nothing.
    let original_context = original_context(keys);
    let kind = keys.value("rope.scaling.type");
    match kind.map(|kind| kind.as_str().unwrap_or("(not a text)")) {
        // LongRoPE's divisors are stored with the weights.
        None | Some("linear" | "longrope") => Ok(linear),
        Some("none") => Ok(None),
        Some("yarn") => yarn(keys, factor, original_context?),
        Some(other) => {
            let hint = "\"linear\", \"yarn\", \"longrope\" or none";
            Err(keys.unsupported("rope.scaling.type", &format!("{other:?}"), hint))
        }
    }
}

/// Factor on the amplitude that follows from `scaling` where the file states another one for YaRN.
///
/// # Errors
/// One that is not positive.
pub(super) fn stated_amplitude(keys: &Keys, scaling: &Option<Scaling>) -> Result<f64> {
    let stated = keys.positive("rope.scaling.yarn_attn_factor")?;
    match (stated, scaling) {
        (Some(stated), Some(Scaling::Yarn(yarn))) => Ok(stated / yarn.amplitude()),
        _ => Ok(1.0),
    }
}

fn yarn(keys: &Keys, factor: Option<f64>, original_context: u64) -> Result<Option<Scaling>> {
    Ok(Some(Scaling::Yarn(Yarn {
        factor: factor.ok_or_else(|| keys.missing("rope.scaling.factor"))?,
        original_context,
        beta_fast: keys.positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
        beta_slow: keys.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
        mscale: 0.0,
        mscale_all_dim: 0.0,
        truncate: true,
    })))
}

/// Sliding windows.
///
/// # Errors
/// A window or a pattern of the wrong type.
pub(super) fn sliding(
    architecture: &Architecture,
    keys: &Keys,
    layers: usize,
    rope: Rotary,
) -> Result<Option<Sliding>> {
    let key = "attention.sliding_window_pattern";
    let (period, default, pattern) = match architecture.windows {
        Windows::Never => return Ok(None),
        Windows::Every => (0, None, None),
        Windows::AllBut(period, default) => (period, default, keys.value(key)),
    };
    let window = keys.count("attention.sliding_window")?.map(|window| window as usize).or(default);
    let slides = match pattern {
        None => by_period(period, layers),
        Some(Value::Array(Array::Bool(slides))) if slides.len() >= layers => slides[..layers].to_vec(),
        Some(other) => match other.as_u64().and_then(|period| usize::try_from(period).ok()) {
            Some(period) => by_period(period, layers),
            None => return Err(keys.invalid(key, other, "a period, or true or false for every layer")),
        },
    };
    let window = window.filter(|&window| window > 0);
    Ok(window.map(|window| Sliding { window, layers: slides, rope: Box::new(rope) }))
}

/// The last of every `period` layers does not slide; with 0 all do.
fn by_period(period: usize, layers: usize) -> Vec<bool> {
    (0..layers).map(|layer| period == 0 || layer % period < period - 1).collect()
}
