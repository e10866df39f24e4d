//! The text model of Gemma 3: five of six layers have a sliding window, and rotary positions of their own.

use super::decoder::rope::{self, GLOBAL_BASE, LOCAL_BASE};
use super::decoder::{self, Defaults, Turns, check_mlx_keys, head_lengths, with_attention};
use super::gemma::{self, GEMMA, beyond_mlx};
use super::gguf::{Architecture, Vocabulary, Windows, Written};
use super::{Activation, Attention, Config, Family, NAMING, Naming, Presence, Spec};
use crate::error::Result;

/// The `gemma3_text` family.
pub(super) const FAMILY: Family = Family {
    model_type: "gemma3_text",
    checkpoint: Some(decoder::checkpoints(|config| spec(config, "gemma3_text"), mlx)),
    gguf: &GGUF,
    naming: Naming { mlx: decoder::MLX, ..NAMING },
    renamed: None,
};

pub(super) const GGUF: Architecture = Architecture {
    activation: Activation::GeluTanh,
    head_norms: Presence::Always,
    windows: Windows::AllBut(PERIOD, None),
    gemma: Some(62),
    vocabulary: Vocabulary { needs_sentence_piece: false, cuts_embedding: true, ..gemma::VOCABULARY },
    keys,
    loadable: |spec| gemma::loadable(&GGUF, spec),
    ..Architecture::plain("gemma3")
};

/// Each of so many layers has no window, where config.json does not say.
const PERIOD: usize = 6;
const PATTERN: &str = "sliding_window_pattern";

/// Reads and checks the hyper-parameters.
///
/// # Errors
/// Names the key of config.json that is missing or out of range.
pub(super) fn spec(config: &Config, model_type: &'static str) -> Result<Spec> {
    let defaults = Defaults { model_type, turns: Turns::Local, ..GEMMA };
    let period = match config.count_or(PATTERN, PERIOD as u64)? as usize {
        0 => return Err(config.invalid(PATTERN, "0", "more than 0")),
        period => period,
    };
    if let Some(found) = config.get("attn_logit_softcapping") {
        return Err(config.invalid("attn_logit_softcapping", &found.to_string(), "null"));
    }
    config.dimension("max_position_embeddings")?;
    let mut spec = gemma::spec(config, &defaults, period, |spec| {
        let [_, sliding] = rope::layered(config, spec.rope.dim)?;
        Ok(sliding)
    })?;
    spec.embedding.logit_cap = gemma::cap(config, "final_logit_softcapping", None)?;
    Ok(with_attention(spec, |attention| attention.head_norms = Presence::Always))
}

/// Refuses what mlx-lm's model could not be built from, or would leave out.
///
/// # Errors
/// Names the key.
pub(super) fn mlx(config: &Config) -> Result<()> {
    let keys = ["hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "vocab_size"];
    check_mlx_keys(config, &keys)?;
    check_mlx_keys(config, &["num_key_value_heads"])?;
    own_mlx(config, &spec(config, "gemma3_text")?)
}

/// What holds for the model on its own and as a part of another.
///
/// # Errors
/// Names the key.
pub(super) fn own_mlx(config: &Config, spec: &Spec) -> Result<()> {
    check_mlx_keys(config, &["sliding_window"])?;
    let Attention::Grouped(grouped) = &spec.attention else { return Ok(()) };
    if !gemma::slides_by_period(spec, config.count_or(PATTERN, PERIOD as u64)? as usize) {
        return Err(beyond_mlx("layer_types", "with another order", "that of sliding_window_pattern"));
    }
    if spec.embedding.logit_cap.is_some() {
        return Err(beyond_mlx("final_logit_softcapping", "that is a number", "null there"));
    }
    let ropes = [Some(&spec.rope), grouped.sliding.as_ref().map(|sliding| &*sliding.rope)];
    for ((key, default), rope) in [GLOBAL_BASE, LOCAL_BASE].into_iter().zip(ropes.into_iter().flatten()) {
        if config.number_or(key, default)? != rope.theta {
            let limit = format!("it at the top level, {}", rope.theta);
            return Err(beyond_mlx(key, "in rope_parameters alone", &limit));
        }
    }
    if spec.rope.scaling.is_some() && config.section("rope_scaling").is_none() {
        return Err(beyond_mlx("rope_parameters", "that scale positions", "rope_scaling to say it"));
    }
    Ok(())
}

fn keys(keys: &mut Written) -> Result<()> {
    let spec = keys.spec;
    let Attention::Grouped(grouped) = &spec.attention else { return Ok(()) };
    head_lengths(keys)?;
    if let Some(cap) = spec.embedding.logit_cap {
        keys.float("final_logit_softcapping", cap);
    }
    let window = grouped.sliding.as_ref().map_or(0, |sliding| sliding.window);
    keys.count("attention.sliding_window", window as u64, "sliding_window")
}
