//! What config.json says of a decoder with grouped queries, as transformers reads it, and the keys of GGUF files that such
//! models have in common. Families say what is theirs behind it.
//!
//! Source: transformers `models/*/configuration_*.py` (defaults), `modeling_rope_utils.py`; llama.cpp `conversion/base.py`.

use serde_json::Value;

use super::gguf::Written;
use super::{
    Activation, Attention, ByLayer, CHECKPOINTS, Checkpoints, Config, Grouped, Heads, MlxOrder, Moe, NAMING,
    Presence, Router, Spec,
};
use crate::error::{Error, Result};

mod mlx;
pub(super) mod rope;

pub(super) use mlx::{MlxRope, check_mlx_head_dim, check_mlx_keys, check_mlx_rope};

/// How checkpoints of such a family are read, where nothing is particular about them but what mlx-lm's model asks of
/// config.json.
pub(super) const fn checkpoints(
    spec: fn(&Config) -> Result<Spec>,
    mlx: fn(&Config) -> Result<()>,
) -> Checkpoints {
    Checkpoints { spec, mlx, ..CHECKPOINTS }
}

/// mlx-lm's order of a decoder layer: attention, the feed-forward block with the router first, norms.
pub(super) const MLX: MlxOrder = MlxOrder { down_before_up: true, router_first: true, ..NAMING.mlx };

/// Widths of heads, which the converter writes where transformers has `head_dim`.
///
/// # Errors
/// When they are out of range.
pub(super) fn head_lengths(keys: &mut Written) -> Result<()> {
    let Attention::Grouped(grouped) = &keys.spec.attention else { return Ok(()) };
    let (key, value) = (grouped.key_dim as u64, grouped.value_dim as u64);
    keys.count("attention.key_length", key, "head_dim")?;
    keys.count("attention.value_length", value, "head_dim")
}

/// The same where transformers has a `head_dim` only if config.json does.
///
/// # Errors
/// As [`head_lengths`].
pub(super) fn stated_head_lengths(keys: &mut Written) -> Result<()> {
    if keys.config.get("head_dim").is_some() { head_lengths(keys) } else { Ok(()) }
}

/// Experts in every layer, chosen by a softmax over all.
///
/// # Errors
/// Names the key of config.json that is missing or out of range, or that asks for dense layers between.
pub(super) fn experts(config: &Config, count_key: &str, width: usize, normalize: bool) -> Result<Moe> {
    if config.count_or("decoder_sparse_step", 1)? != 1 {
        let found = config.get("decoder_sparse_step").map_or_else(String::new, ToString::to_string);
        return Err(config.invalid("decoder_sparse_step", &found, "1"));
    }
    if let Some(layers) =
        config.get("mlp_only_layers").filter(|layers| layers.as_array().is_none_or(|list| !list.is_empty()))
    {
        return Err(config.invalid("mlp_only_layers", &layers.to_string(), "[]"));
    }
    let experts = config.dimension(count_key)?;
    let per_token = config.dimension("num_experts_per_tok")?;
    if per_token > experts || experts > 65_536 {
        let expected = format!("at most {experts}");
        return Err(config.invalid("num_experts_per_tok", &per_token.to_string(), &expected));
    }
    let router = Router { normalize, ..Router::softmax() };
    Ok(Moe {
        experts,
        per_token: ByLayer::all(per_token),
        width: ByLayer::all(width),
        router,
        shared: None,
        biases: Presence::Never,
    })
}

/// What of a head turns with the position.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Turns {
    /// All.
    All,
    /// All; YaRN's range need not end at whole numbers.
    AllInAnyRange,
    /// All, and otherwise in layers with a sliding window.
    Local,
    /// `partial_rotary_factor`, or so much.
    Part(f64),
    /// So many columns as `rotary_dim` says, or `partial_rotary_factor`.
    Counted,
}

/// What config.json means where it is silent.
pub(super) struct Defaults {
    pub(super) model_type: &'static str,
    /// Heads of keys and values; `None` for as many as of queries, which is what a null means.
    pub(super) key_value_heads: Option<usize>,
    /// Width of a head; `None` for hidden / heads.
    pub(super) head_dim: Option<u64>,
    pub(super) rope_theta: f64,
    pub(super) norm_eps: f64,
    pub(super) tied: bool,
    /// What turns with the position.
    pub(super) turns: Turns,
    /// The only one that is read.
    pub(super) activation: Activation,
}

/// Those of most.
pub(super) const DEFAULTS: Defaults = Defaults {
    model_type: "",
    key_value_heads: None,
    head_dim: None,
    rope_theta: 10000.0,
    norm_eps: 1e-6,
    tied: false,
    turns: Turns::All,
    activation: Activation::Silu,
};

/// Reads and checks what these families have in common: a dense model without biases.
///
/// # Errors
/// Names the key of config.json that is missing or out of range.
pub(super) fn spec(config: &Config, defaults: &Defaults) -> Result<Spec> {
    let hidden = config.dimension("hidden_size")?;
    let layers = config.dimension("num_hidden_layers")?;
    let query = config.dimension("num_attention_heads")?;
    let key_value = match config.get("num_key_value_heads") {
        Some(_) => config.dimension("num_key_value_heads")?,
        None if config.has("num_key_value_heads") => query,
        None => defaults.key_value_heads.unwrap_or(query),
    };
    if !query.is_multiple_of(key_value) {
        let expected = format!("a divisor of num_attention_heads, {query}");
        return Err(config.invalid("num_key_value_heads", &key_value.to_string(), &expected));
    }
    let default = defaults.head_dim.unwrap_or((hidden / query) as u64);
    let head_dim = config.count_or("head_dim", default)? as usize;
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Err(config.invalid("head_dim", &head_dim.to_string(), "an even number"));
    }
    let (key, expected) = match defaults.activation {
        Activation::Silu | Activation::Clamped => ("hidden_act", "silu"),
        Activation::GeluTanh => ("hidden_activation", "gelu_pytorch_tanh"),
    };
    if let Some(other) = config.get(key).filter(|name| name.as_str() != Some(expected)) {
        return Err(config.invalid(key, &other.to_string(), &format!("{expected:?}")));
    }
    check_nothing_else(config, defaults)?;
    let attention = Attention::Grouped(Grouped {
        heads: ByLayer::all(Heads { query, key_value }),
        key_dim: head_dim,
        value_dim: head_dim,
        score_scale: 1.0 / (head_dim as f64).sqrt(),
        score_cap: None,
        sliding: None,
        head_norms: Presence::Never,
        whole_norms: false,
        sinks: Presence::Never,
        biases: Presence::Never,
        output_bias: Presence::Never,
    });
    let mut spec = Spec::plain(
        defaults.model_type,
        layers,
        attention,
        match defaults.turns {
            Turns::Local => rope::layered(config, head_dim)?[0].clone(),
            Turns::All => rope::rotary(config, defaults.rope_theta, head_dim, false)?,
            Turns::AllInAnyRange => rope::rotary(config, defaults.rope_theta, head_dim, true)?,
            Turns::Part(part) => rope::partial(config, defaults.rope_theta, head_dim, part)?,
            Turns::Counted => rope::counted(config, defaults.rope_theta, head_dim)?,
        },
    );
    spec.hidden = hidden;
    spec.ffn.activation = defaults.activation;
    spec.ffn.dense.width = ByLayer::all(config.dimension("intermediate_size")?);
    spec.embedding.vocab = config.dimension("vocab_size")?;
    spec.embedding.tied = config.flag_or("tie_word_embeddings", defaults.tied)?;
    spec.norms.eps = config.number_or("rms_norm_eps", defaults.norm_eps)?;
    Ok(spec)
}

/// Changes its attention.
pub(super) fn with_attention(mut spec: Spec, change: impl FnOnce(&mut Grouped)) -> Spec {
    if let Attention::Grouped(grouped) = &mut spec.attention {
        change(grouped);
    }
    spec
}

/// Keys with which a model of such a family computes something else, and what they say where it does not. Most are other
/// families' own; implementations that read every key of every model go by them.
const NEUTRAL: &[(&str, f64)] = &[
    ("partial_rotary_factor", 1.0),
    ("embedding_multiplier", 1.0),
    ("residual_multiplier", 1.0),
    ("logits_scaling", 1.0),
    ("logit_scale", 1.0),
];

/// Refuses keys with which a model computes what this version does not.
fn check_nothing_else(config: &Config, defaults: &Defaults) -> Result<()> {
    let is_partial = matches!(defaults.turns, Turns::Part(_) | Turns::Counted);
    let is_read = |key: &str| key == "partial_rotary_factor" && is_partial;
    for &(key, neutral) in NEUTRAL.iter().filter(|(key, _)| !is_read(key)) {
        if config.number_or(key, neutral)? != neutral {
            let found = config.get(key).map_or_else(String::new, ToString::to_string);
            return Err(config.invalid(key, &found, &format!("{neutral} in models of this family")));
        }
    }
    if !config.flag_or("is_causal", true)? {
        return Err(config.invalid(
            "is_causal",
            "false",
            "true: a model in which tokens see those before them",
        ));
    }
    if let Some(draft) = config.get("draft_vocab_size") {
        let expected = "none: this is a draft model, which needs the model that it drafts for";
        return Err(config.invalid("draft_vocab_size", &draft.to_string(), expected));
    }
    Ok(())
}

/// Refuses biases in attention, which no published model of the family has.
///
/// # Errors
/// Names the key.
pub(super) fn check_no_attention_bias(config: &Config) -> Result<()> {
    if config.flag_or("attention_bias", false)? {
        return Err(config.invalid("attention_bias", "true", "false"));
    }
    Ok(())
}

/// Refuses windows that slide, where the family's own files say that none does.
///
/// # Errors
/// Names the key.
pub(super) fn check_no_window(config: &Config, is_used: bool) -> Result<()> {
    if let Some(kinds) = config.get("layer_types").and_then(Value::as_array)
        && let Some(other) = kinds.iter().find(|kind| kind.as_str() != Some("full_attention"))
    {
        return Err(config.invalid("layer_types", &other.to_string(), "\"full_attention\" in every layer"));
    }
    match config.get("sliding_window") {
        Some(window) if is_used => Err(Error::Unsupported {
            what: format!("config.json: sliding_window {window}"),
            hint: "this version reads models of this family in which every token sees all before it".into(),
        }),
        _ => Ok(()),
    }
}

/// Whether each layer has a window: as `layer_types` say, else all but each `period`th.
///
/// # Errors
/// Names the key, when it says something else or of other layers.
pub(super) fn sliding(config: &Config, layers: usize, period: usize) -> Result<Vec<bool>> {
    let Some(kinds) = config.get("layer_types") else { return Ok(by_period(layers, period)) };
    let of_kind = |kind: &Value| match kind.as_str() {
        Some("sliding_attention") => Some(true),
        Some("full_attention") => Some(false),
        _ => None,
    };
    let found: Option<Vec<bool>> = kinds.as_array().and_then(|kinds| kinds.iter().map(of_kind).collect());
    found.filter(|found| found.len() == layers).ok_or_else(|| {
        let expected = format!("\"sliding_attention\" or \"full_attention\" for each of {layers} layers");
        config.invalid("layer_types", &kinds.to_string(), &expected)
    })
}

/// Windows in all of so many layers but each `period`th.
pub(super) fn by_period(layers: usize, period: usize) -> Vec<bool> {
    (1..=layers).map(|layer| !layer.is_multiple_of(period)).collect()
}
