//! What Gemma 2 and 3 share: norms before and behind both halves of a layer, whose weights are what is added to 1; embeddings scaled by
//! the root of their width; scores scaled by a number of config.json; layers with a sliding window; gates by GELU.
//!
//! Source: transformers `models/gemma2`, `models/gemma3`; llama.cpp `conversion/gemma.py`, `src/models/gemma2.cpp`, `gemma3.cpp`;
//! mlx-lm `models/gemma2.py`, `gemma3_text.py`.

use super::decoder::{self, DEFAULTS, Defaults, with_attention};
use super::gguf::write::beyond;
use super::gguf::{Architecture, Vocabulary, Windows};
use super::{Activation, Attention, Config, Presence, Rotary, Sliding, Spec};
use crate::error::{Error, Result};

/// What config.json means where it is silent.
pub(super) const GEMMA: Defaults = Defaults {
    key_value_heads: Some(4),
    head_dim: Some(256),
    tied: true,
    activation: Activation::GeluTanh,
    ..DEFAULTS
};

/// What llama.cpp's converter does with their tokenizers.
pub(super) const VOCABULARY: Vocabulary = Vocabulary {
    prefers_sentence_piece: true,
    needs_sentence_piece: true,
    cuts_embedding: false,
    states_space_prefix: false,
    denies_space_prefix: true,
    size_without_bos: None,
    states_pooling: false,
    rerankers: &[],
    special: &[],
};

/// Reads and checks what they share; `rope` makes the rotary positions of layers with a window, all but each `period`th.
///
/// # Errors
/// Names the key of config.json that is missing or out of range.
pub(super) fn spec(
    config: &Config,
    defaults: &Defaults,
    period: usize,
    rope: impl FnOnce(&Spec) -> Result<Rotary>,
) -> Result<Spec> {
    decoder::check_no_attention_bias(config)?;
    if config.flag_or("use_bidirectional_attention", false)? {
        let expected = "false: a model in which tokens see those before them";
        return Err(config.invalid("use_bidirectional_attention", "true", expected));
    }
    let mut spec = decoder::spec(config, defaults)?;
    spec.embedding.scale = (spec.hidden as f64).sqrt();
    (spec.norms.post, spec.norms.from_one) = (true, true);
    let window = config.count_or("sliding_window", 4096)? as usize;
    if window == 0 || config.is_null("sliding_window") {
        let found = config.get("sliding_window").map_or_else(|| "null".to_owned(), ToString::to_string);
        return Err(config.invalid("sliding_window", &found, "more than 0"));
    }
    let layers = decoder::sliding(config, spec.layers, period)?;
    let rope = Box::new(rope(&spec)?);
    let scalar = config.number_or("query_pre_attn_scalar", 256.0)?;
    if !(scalar > 0.0 && scalar.is_finite()) {
        return Err(config.invalid("query_pre_attn_scalar", &scalar.to_string(), "a positive number"));
    }
    Ok(with_attention(spec, |attention| {
        attention.sliding = Some(Sliding { window, layers, rope });
        attention.score_scale = 1.0 / scalar.sqrt();
    }))
}

/// A number that null turns off.
pub(super) fn cap(config: &Config, key: &str, default: Option<f64>) -> Result<Option<f64>> {
    if config.is_null(key) || (config.get(key).is_none() && default.is_none()) {
        return Ok(None);
    }
    let cap = config.number_or(key, default.unwrap_or_default())?;
    if cap > 0.0 && cap.is_finite() {
        return Ok(Some(cap));
    }
    Err(config.invalid(key, &cap.to_string(), "a positive number, or null"))
}

/// Whether the windows are those of layers that a consumer takes for it, every one but each `period`th.
pub(super) fn slides_by_period(spec: &Spec, period: usize) -> bool {
    match &spec.attention {
        Attention::Grouped(grouped) => grouped
            .sliding
            .as_ref()
            .is_some_and(|sliding| sliding.layers == decoder::by_period(spec.layers, period)),
        Attention::Latent(_) => false,
    }
}

/// Refuses what llama.cpp takes for something else than config.json says: which layers have a window, how scores are scaled.
///
/// # Errors
/// Names the key.
pub(super) fn loadable(architecture: &Architecture, spec: &Spec) -> Result<()> {
    let (Attention::Grouped(grouped), Windows::AllBut(period, _)) = (&spec.attention, architecture.windows)
    else {
        return Ok(());
    };
    if !slides_by_period(spec, period) {
        let limit = format!("a sliding window in all layers but each {period}th");
        return Err(beyond(architecture.name, "layer_types", "with another order", &limit));
    }
    let scalar = match architecture.gemma {
        Some(layers) if layers == spec.layers => spec.hidden / spec.heads().query,
        _ => grouped.key_dim,
    };
    if grouped.score_scale != 1.0 / (scalar as f64).sqrt() {
        let found = (1.0 / (grouped.score_scale * grouped.score_scale)).to_string();
        return Err(beyond(architecture.name, "query_pre_attn_scalar", &found, &scalar.to_string()));
    }
    Ok(())
}

/// Refuses a file of the one that llama.cpp takes its head from the embedding for, and of biases.
///
/// # Errors
/// Names the key.
pub(super) fn check_tied(config: &Config, spec: &Spec) -> Result<()> {
    if spec.embedding.tied && spec.embedding.output_bias == Presence::Never {
        return Ok(());
    }
    Err(config.invalid("tie_word_embeddings", "false", "true in models of this family"))
}

/// The error for what mlx-lm's model has no place for.
pub(super) fn beyond_mlx(key: &str, found: &str, limit: &str) -> Error {
    Error::Unsupported {
        what: format!("config.json: {key} {found}"),
        hint: format!("mlx-lm reads models of this family only with {limit}"),
    }
}
