//! GGUF families with grouped-query attention: what their metadata says, and what llama.cpp knows without being told.
//!
//! A family is one row of [`FAMILIES`].
//!
//! Not as llama.cpp does it, but as the models do:
//!
//! - `phi3`: every layer has the sliding window of the file; llama.cpp leaves it out, and so differs in contexts
//!   beyond it (2047 tokens of the models with 4096).
//! - YaRN: `beta_fast` and `beta_slow` of the file count; llama.cpp has 32 and 1 for these families.
//!
//! Source: llama.cpp `src/models/{llama,qwen2,qwen2moe,qwen3,qwen3moe,phi3,gemma2,gemma3,glm4-moe}.cpp`,
//! `src/llama-model.cpp` (`load_hparams`, `llama_model_rope_type`), `src/llama-context.cpp` (YaRN's factors),
//! `src/llama-graph.cpp`.

use std::collections::HashSet;

use requant_formats::container::gguf::{Array, Metadata, Value};

use super::gguf_keys::{ARCHITECTURE_KEY, Keys};
use crate::arch::{
    Activation, ArchSpec, Attention, Divisors, ExpertChoice, Grouped, Pairing, QkvBiases, Rotary, Scaling,
    Scoring, Sliding, Yarn,
};
use crate::error::{Error, Result};

/// What files of a family have in common.
pub(super) struct Family {
    /// `general.architecture`.
    architecture: &'static str,
    pairing: Pairing,
    activation: Activation,
    experts: Experts,
    head_norms: HeadNorms,
    windows: Windows,
    /// What is particular to Gemma: scaled embeddings, norms behind the blocks, and the number of layers of the model
    /// whose queries are scaled by hidden / heads.
    gemma: Option<usize>,
    /// Caps of scores and logits where the file does not say.
    caps: Option<(f64, f64)>,
    /// Name of the norm before the feed-forward block.
    pub(super) ffn_norm: &'static str,
    /// Whether gate and up projection of a dense block are one matrix.
    pub(super) is_gate_in_up: bool,
}

/// Experts of a family, in every layer if there are any.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Experts {
    /// None.
    Never,
    /// As many as the file says, perhaps none: softmax, weights normalized, as wide as a dense block.
    Perhaps,
    /// Softmax, weights normalized.
    Normalized,
    /// Softmax; a shared expert with a gate.
    GatedShared,
    /// Behind some dense layers; sigmoid and bias; shared experts.
    Biased,
}

/// Norms of query and key heads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum HeadNorms {
    Never,
    Always,
    /// If the file has them.
    Perhaps,
}

/// Layers with a sliding window.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Windows {
    Never,
    /// All, if the file has a window.
    Every,
    /// All but every `.0`th, with this window where the file has none.
    AllBut(usize, Option<usize>),
}

/// A dense family with the most common choices.
const fn plain(architecture: &'static str) -> Family {
    Family {
        architecture,
        pairing: Pairing::Halves,
        activation: Activation::Silu,
        experts: Experts::Never,
        head_norms: HeadNorms::Never,
        windows: Windows::Never,
        gemma: None,
        caps: None,
        ffn_norm: "ffn_norm",
        is_gate_in_up: false,
    }
}

/// Every family of this kind that can be evaluated.
const FAMILIES: &[Family] = &[
    Family { pairing: Pairing::Adjacent, experts: Experts::Perhaps, ..plain("llama") },
    plain("qwen2"),
    Family { experts: Experts::GatedShared, ..plain("qwen2moe") },
    Family { head_norms: HeadNorms::Always, ..plain("qwen3") },
    Family { head_norms: HeadNorms::Always, experts: Experts::Normalized, ..plain("qwen3moe") },
    Family { windows: Windows::Every, is_gate_in_up: true, ..plain("phi3") },
    Family {
        activation: Activation::GeluTanh,
        windows: Windows::AllBut(2, Some(4096)),
        gemma: Some(46),
        caps: Some((50.0, 30.0)),
        ..plain("gemma2")
    },
    Family {
        activation: Activation::GeluTanh,
        head_norms: HeadNorms::Always,
        windows: Windows::AllBut(6, None),
        gemma: Some(62),
        ..plain("gemma3")
    },
    Family {
        experts: Experts::Biased,
        head_norms: HeadNorms::Perhaps,
        ffn_norm: "post_attention_norm",
        ..plain("glm4moe")
    },
];

/// What is in a file beside its metadata.
pub(super) struct Contents<'a> {
    /// Rows of its token embedding.
    pub(super) vocab: usize,
    /// Names of its tensors.
    pub(super) names: &'a HashSet<&'a str>,
}

/// Finds the family of `file`.
///
/// # Errors
/// [`Error::Unsupported`] naming the families there are.
pub(super) fn find(architecture: &str, file: &str) -> Result<&'static Family> {
    FAMILIES.iter().find(|family| family.architecture == architecture).ok_or_else(|| {
        let known: Vec<&str> = FAMILIES.iter().map(|family| family.architecture).collect();
        Error::Unsupported {
            what: format!("{file}: {ARCHITECTURE_KEY} {architecture:?}"),
            hint: format!(
                "this version evaluates GGUF files of {}, {}",
                super::gguf_config::ARCHITECTURE,
                known.join(", ")
            ),
        }
    })
}

/// Reads and checks the hyper-parameters of a file; and whether queries, keys and values are one matrix in it.
///
/// # Errors
/// A key that is missing, out of range, of the wrong type or unknown; what this version cannot evaluate.
pub(super) fn spec(
    family: &Family,
    metadata: &Metadata,
    file: &str,
    contents: &Contents,
) -> Result<(ArchSpec, bool)> {
    let keys = Keys::new(metadata, file, family.architecture);
    if keys.value("attention.causal").and_then(Value::as_bool) == Some(false) {
        return Err(keys.unsupported("attention.causal", "false", "models that predict the next token"));
    }
    let blocks = keys.required_count("block_count")?;
    let hidden = keys.required_count("embedding_length")?;
    let heads = keys.required_count("attention.head_count")?;
    let mtp = predictors(family, &keys)?;
    let layers = blocks.checked_sub(mtp).filter(|&layers| layers > 0 && blocks <= MAX_LAYERS);
    let layers = layers.ok_or_else(|| keys.missing("block_count of a model that exists"))?;
    let in_layers = |suffix: &str| contents.names.iter().any(|name| suffix_of(name) == Some(suffix));

    let (rope, sliding_rope) = rotary(family, &keys, hidden / heads, contents)?;
    let attention = Grouped {
        sliding: sliding(family, &keys, layers, sliding_rope)?,
        biases: QkvBiases {
            query: in_layers("attn_q.bias"),
            key: in_layers("attn_k.bias"),
            value: in_layers("attn_v.bias"),
        },
        output_bias: in_layers("attn_output.bias"),
        head_norms: match family.head_norms {
            HeadNorms::Never => false,
            HeadNorms::Always => true,
            HeadNorms::Perhaps => in_layers("attn_q_norm.weight"),
        },
        ..grouped(family, &keys, hidden, layers, heads)?
    };
    let mut spec = ArchSpec {
        model_type: family.architecture.to_owned(),
        hidden,
        layers,
        // A file may have been made without the layers that its metadata counts.
        mtp_layers: if in_layers("nextn.eh_proj.weight") { mtp } else { 0 },
        dense_layers: layers,
        dense_intermediate: keys.count("feed_forward_length")?.unwrap_or(0) as usize,
        expert_intermediate: 0,
        experts: 0,
        experts_per_token: 0,
        shared_experts: 0,
        shared_intermediate: 0,
        shared_gate: false,
        expert_groups: 1,
        top_groups: 1,
        routed_scale: 1.0,
        normalize_top: false,
        scoring: Scoring::Softmax,
        choice: ExpertChoice::Greedy,
        heads,
        attention: Attention::Grouped(attention),
        rope,
        vocab: contents.vocab,
        norm_eps: keys.required_number("attention.layer_norm_rms_epsilon")?,
        tied_embeddings: !contents.names.contains("output.weight"),
        activation: family.activation,
        post_norms: family.gemma.is_some(),
        embedding_scale: if family.gemma.is_some() { (hidden as f64).sqrt() } else { 1.0 },
        logit_cap: match (family.gemma, family.caps) {
            (Some(_), caps) => keys.positive("final_logit_softcapping")?.or(caps.map(|caps| caps.1)),
            (None, _) => None,
        },
    };
    experts(family, &keys, &mut spec)?;
    if spec.dense_layers == 0 {
        spec.dense_intermediate = 0;
    } else if spec.dense_intermediate == 0 {
        return Err(keys.missing("feed_forward_length"));
    }
    keys.check_all_known()?;
    Ok((spec, in_layers("attn_qkv.weight")))
}

/// Most layers, prediction layers included; what llama.cpp reads.
const MAX_LAYERS: usize = 512;
/// Most experts; what llama.cpp reads.
const MAX_EXPERTS: usize = 1024;
const GATING_SOFTMAX: u64 = 1;
const GATING_SIGMOID: u64 = 2;

impl Keys<'_> {
    fn unsupported(&self, key: &str, found: &str, hint: &str) -> Error {
        Error::Unsupported {
            what: format!("{}: {} {found}", self.file(), self.full(key)),
            hint: format!("this version evaluates {hint}"),
        }
    }
}

/// What follows the layer in a tensor's name.
fn suffix_of(name: &str) -> Option<&str> {
    name.strip_prefix("blk.")?.split_once('.').map(|(_, suffix)| suffix)
}

/// Prediction layers, which `block_count` includes.
fn predictors(family: &Family, keys: &Keys) -> Result<usize> {
    match family.experts {
        Experts::Biased => Ok(keys.count("nextn_predict_layers")?.unwrap_or(0) as usize),
        _ => Ok(0),
    }
}

/// Heads and scores.
fn grouped(family: &Family, keys: &Keys, hidden: usize, layers: usize, heads: usize) -> Result<Grouped> {
    let kv_heads = keys.count("attention.head_count_kv")?.unwrap_or(heads as u64) as usize;
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        let found = Value::from(kv_heads as u32);
        return Err(keys.invalid("attention.head_count_kv", &found, &format!("a divisor of {heads} heads")));
    }
    let head_dim = head_dim(keys, hidden / heads)?;
    let value_dim = keys.count("attention.value_length")?.map_or(hidden / heads, |dim| dim as usize);
    if head_dim != value_dim {
        let found = Value::from(value_dim as u32);
        return Err(keys.invalid("attention.value_length", &found, &format!("that of keys, {head_dim}")));
    }
    let scaled_by = if family.gemma == Some(layers) { hidden / heads } else { head_dim };
    let score_cap = match family.caps {
        Some((default, _)) => Some(keys.positive("attn_logit_softcapping")?.unwrap_or(default)),
        None => None,
    };
    Ok(Grouped {
        kv_heads,
        head_dim,
        score_scale: 1.0 / (scaled_by as f64).sqrt(),
        score_cap,
        biases: QkvBiases::default(),
        output_bias: false,
        head_norms: false,
        sliding: None,
    })
}

/// Width of a head.
fn head_dim(keys: &Keys, default: usize) -> Result<usize> {
    match keys.count("attention.key_length")?.map_or(default, |dim| dim as usize) {
        0 => Err(keys.invalid("attention.key_length", &Value::from(0u32), "more than 0")),
        dim => Ok(dim),
    }
}

/// Rotary positions, and those of layers with a sliding window.
fn rotary(family: &Family, keys: &Keys, default: usize, contents: &Contents) -> Result<(Rotary, Rotary)> {
    let head_dim = head_dim(keys, default)?;
    let dim = keys.count("rope.dimension_count")?.map_or(head_dim, |dim| dim as usize);
    if dim == 0 || dim % 2 == 1 || dim > head_dim {
        let expected = format!("an even number up to the head's width, {head_dim}");
        return Err(keys.invalid("rope.dimension_count", &Value::from(dim as u32), &expected));
    }
    if let Some(Value::Array(sections)) = keys.value("rope.dimension_sections")
        && !matches!(sections, Array::I32(sections) if sections.iter().all(|&section| section == 0))
    {
        return Err(keys.unsupported("rope.dimension_sections", "", "positions of one dimension"));
    }
    let names = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];
    let [always, long, short] = names.map(|name| contents.names.contains(name));
    let has_divisors = matches!(family.experts, Experts::Perhaps) || matches!(family.windows, Windows::Every);
    let divisors = match (always, long || short) {
        _ if !has_divisors => Divisors::Absent,
        (true, _) => Divisors::Always,
        (false, true) => Divisors::ByContext { original_context: original_context(keys)? },
        (false, false) => Divisors::Absent,
    };
    let rope = Rotary {
        dim,
        pairing: family.pairing,
        theta: keys.positive("rope.freq_base")?.unwrap_or(10000.0),
        scaling: scaling(keys)?,
        amplitude: keys.positive("rope.scaling.attn_factor")?.unwrap_or(1.0),
        divisors,
    };
    let sliding = match family.windows {
        Windows::Never | Windows::Every => rope.clone(),
        Windows::AllBut(..) => {
            // Gemma 2 has one base and scale for all layers, Gemma 3 another base for these, and no scale.
            let own = keys.positive("rope.freq_base_swa")?;
            match family.caps {
                Some(_) => Rotary { theta: own.unwrap_or(rope.theta), ..rope.clone() },
                None => Rotary { theta: own.unwrap_or(10000.0), scaling: None, ..rope.clone() },
            }
        }
    };
    Ok((rope, sliding))
}

/// Context length of the original training.
fn original_context(keys: &Keys) -> Result<u64> {
    let key = "rope.scaling.original_context_length";
    match keys.count(key)? {
        Some(length) => Ok(length),
        None => keys.count("context_length")?.ok_or_else(|| keys.missing(key)),
    }
}

/// `rope.scaling.*`.
fn scaling(keys: &Keys) -> Result<Option<Scaling>> {
    let factor = match keys.number("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.number("rope.scale_linear")?,
    };
    // llama.cpp takes 0 for absent.
    let factor = factor.filter(|&factor| factor != 0.0);
    if let Some(found) = factor.filter(|factor| !(*factor > 0.0 && factor.is_finite())) {
        let found = Value::from(found as f32);
        return Err(keys.invalid("rope.scaling.factor", &found, "a positive number"));
    }
    let linear = factor.filter(|&factor| factor != 1.0).map(Scaling::Linear);
    // Asked for by those who know YaRN, and by nobody else in a file that has it all the same.
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

/// YaRN's factor on sine and cosine is `0.1 ln(factor) + 1`, times `rope.scaling.attn_factor`.
fn yarn(keys: &Keys, factor: Option<f64>, original_context: u64) -> Result<Option<Scaling>> {
    for (key, neutral) in [("yarn_ext_factor", 1.0), ("yarn_attn_factor", 1.0), ("yarn_log_multiplier", 0.0)]
    {
        let key = format!("rope.scaling.{key}");
        if let Some(found) = keys.number(&key)?.filter(|&found| found != neutral) {
            return Err(keys.unsupported(&key, &found.to_string(), &format!("{neutral} only")));
        }
    }
    Ok(Some(Scaling::Yarn(Yarn {
        factor: factor.ok_or_else(|| keys.missing("rope.scaling.factor"))?,
        original_context,
        beta_fast: keys.positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
        beta_slow: keys.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
        mscale: 0.0,
        mscale_all_dim: 0.0,
    })))
}

/// Sliding windows.
fn sliding(family: &Family, keys: &Keys, layers: usize, rope: Rotary) -> Result<Option<Sliding>> {
    let (pattern, default) = match family.windows {
        Windows::Never => return Ok(None),
        Windows::Every => (0, None),
        Windows::AllBut(pattern, default) => (pattern, default),
    };
    let window = keys.count("attention.sliding_window")?.map(|window| window as usize).or(default);
    let key = "attention.sliding_window_pattern";
    let slides = match keys.value(key).filter(|_| family.windows != Windows::Every) {
        None => by_period(pattern, layers),
        Some(Value::Array(Array::Bool(slides))) if slides.len() >= layers => slides[..layers].to_vec(),
        Some(other) => match other.as_u64().and_then(|period| usize::try_from(period).ok()) {
            Some(period) => by_period(period, layers),
            None => return Err(keys.invalid(key, other, "a period, or true or false for every layer")),
        },
    };
    let window = window.filter(|&window| window > 0);
    Ok(window.map(|window| Sliding { window, layers: slides, rope }))
}

/// The last of every `period` layers does not slide; with 0 all do.
fn by_period(period: usize, layers: usize) -> Vec<bool> {
    (0..layers).map(|layer| period == 0 || layer % period < period - 1).collect()
}

/// Experts.
fn experts(family: &Family, keys: &Keys, spec: &mut ArchSpec) -> Result<()> {
    let count = |key: &str| -> Result<usize> { Ok(keys.count(key)?.unwrap_or(0) as usize) };
    spec.experts = match family.experts {
        Experts::Never => return Ok(()),
        Experts::Perhaps => count("expert_count")?,
        _ => keys.required_count("expert_count")?,
    };
    spec.experts_per_token = count("expert_used_count")?;
    if spec.experts == 0 {
        return Ok(());
    }
    if !(1..=spec.experts.min(MAX_EXPERTS)).contains(&spec.experts_per_token) || spec.experts > MAX_EXPERTS {
        let found = Value::from(spec.experts_per_token as u32);
        let expected = format!("1 to {} experts, of {MAX_EXPERTS} at most", spec.experts);
        return Err(keys.invalid("expert_used_count", &found, &expected));
    }
    spec.dense_layers = 0;
    spec.expert_intermediate = match family.experts {
        Experts::Perhaps => spec.dense_intermediate,
        _ => match count("expert_feed_forward_length")? {
            0 => spec.dense_intermediate / spec.experts_per_token,
            width => width,
        },
    };
    if spec.expert_intermediate == 0 {
        return Err(keys.missing("expert_feed_forward_length"));
    }
    spec.normalize_top = matches!(family.experts, Experts::Perhaps | Experts::Normalized);
    spec.expert_groups = count("expert_group_count")?.max(1);
    spec.top_groups = count("expert_group_used_count")?.max(1);
    match family.experts {
        Experts::GatedShared => {
            spec.shared_experts = 1;
            spec.shared_gate = true;
            spec.shared_intermediate = match count("expert_shared_feed_forward_length")? {
                0 => spec.dense_intermediate,
                width => width,
            };
        }
        Experts::Biased => {
            spec.dense_layers = count("leading_dense_block_count")?;
            spec.shared_experts = count("expert_shared_count")?;
            spec.shared_intermediate = spec.shared_experts * spec.expert_intermediate;
            let scale = keys.number("expert_weights_scale")?;
            spec.routed_scale = scale.filter(|&scale| scale != 0.0).unwrap_or(1.0);
            spec.normalize_top = keys.flag("expert_weights_norm")?;
            spec.choice = ExpertChoice::BiasedGroups;
        }
        Experts::Never | Experts::Perhaps | Experts::Normalized => {}
    }
    let own = if family.experts == Experts::Biased { GATING_SIGMOID } else { GATING_SOFTMAX };
    spec.scoring = match keys.count("expert_gating_func")?.filter(|&gating| gating != 0).unwrap_or(own) {
        GATING_SOFTMAX => Scoring::Softmax,
        GATING_SIGMOID if family.experts == Experts::Biased => Scoring::Sigmoid,
        other => {
            let hint =
                format!("a router that is {own} ({GATING_SOFTMAX}: softmax, {GATING_SIGMOID}: sigmoid)");
            return Err(keys.unsupported("expert_gating_func", &other.to_string(), &hint));
        }
    };
    let groups_fit = spec.experts.is_multiple_of(spec.expert_groups) && spec.top_groups <= spec.expert_groups;
    if !groups_fit || spec.expert_groups > 1 && spec.choice != ExpertChoice::BiasedGroups {
        let found = spec.expert_groups.to_string();
        return Err(keys.unsupported("expert_group_count", &found, "one group of experts in this family"));
    }
    Ok(())
}
