//! What the DeepSeek families share: multi-head latent attention, routed experts beside shared ones,
//! multi-token prediction layers at the end; `deepseek2` files of llama.cpp.
//!
//! Source: `modeling_deepseek.py` and `config.json` of the published checkpoints, DeepSeek-V3's technical report (arXiv
//! 2412.19437) for the prediction module; llama.cpp `src/models/deepseek2.cpp`. What its converter writes is in `keys`.

use super::gguf::write::beyond;
use super::gguf::{Architecture, Kind};
use super::{
    Attention, ByLayer, CHECKPOINTS, Checkpoints, Config, Divisors, ExpertChoice, Latent, Moe, NAMING,
    Naming, Pairing, Presence, Rotary, Router, Scaling, Scoring, Shared, Spec, Yarn,
};
use crate::error::{Error, Result};

mod keys;

pub(super) use keys::{Silent, keys_with};

/// llama.cpp's architecture with latent attention.
pub(super) const GGUF: Architecture = Architecture {
    attention: Kind::Latent,
    pairing: Pairing::Adjacent,
    keys: keys::keys,
    loadable,
    ..Architecture::plain("deepseek2")
};

pub(super) const NAMES: Naming = Naming { merges_experts: true, ..NAMING };

/// What config.json means where it is silent.
pub(super) struct Defaults {
    pub(super) model_type: &'static str,
    pub(super) scoring: Scoring,
    pub(super) choice: ExpertChoice,
    pub(super) normalize_top: bool,
}

/// How checkpoints of V3 and its kin are read.
pub(super) const fn checkpoints(spec: fn(&Config) -> Result<Spec>) -> Checkpoints {
    Checkpoints { spec, convertible, mlx, mlx_ties_head: false, ..CHECKPOINTS }
}

/// Reads and checks the hyper-parameters.
///
/// # Errors
/// Names the key of config.json that is missing or out of range.
pub(super) fn spec(config: &Config, defaults: &Defaults) -> Result<Spec> {
    if config.flag_or("attention_bias", false)? {
        return Err(Error::Unsupported {
            what: "config.json: attention_bias true".into(),
            hint: "no checkpoint of this family is known to have attention biases".into(),
        });
    }
    let layers = config.dimension("num_hidden_layers")?;
    let width = config.dimension("moe_intermediate_size")?;
    let shared = config.count_or("n_shared_experts", 0)? as usize;
    let choice = expert_choice(config, defaults)?;
    let hidden = config.dimension("hidden_size")?;
    let mtp_layers = config.count_or("num_nextn_predict_layers", 0)? as usize;
    let dense_layers = config.count_or("first_k_dense_replace", 0)? as usize;
    let dense_width = config.dimension("intermediate_size")?;
    let moe = Moe {
        experts: config.dimension("n_routed_experts")?,
        per_token: ByLayer::all(config.dimension("num_experts_per_tok")?),
        width: ByLayer::all(width),
        router: Router {
            groups: config.count_or("n_group", 1)? as usize,
            top_groups: config.count_or("topk_group", 1)? as usize,
            scale: config.number_or("routed_scaling_factor", 1.0)?,
            normalize: config.flag_or("norm_topk_prob", defaults.normalize_top)?,
            scoring: scoring(config, defaults)?,
            choice,
            // `noaux_tc` is both.
            bias: Presence::certain(choice == ExpertChoice::GroupsByTwoBest),
        },
        shared: (shared > 0).then(|| Shared {
            experts: shared,
            width: ByLayer::all(shared * width),
            gate: false,
        }),
        biases: Presence::Never,
    };
    let attention = Attention::Latent(Latent {
        heads: config.dimension("num_attention_heads")?,
        q_lora: match config.get("q_lora_rank") {
            Some(_) => Some(config.dimension("q_lora_rank")?),
            None => None,
        },
        kv_lora: config.dimension("kv_lora_rank")?,
        nope_dim: config.dimension("qk_nope_head_dim")?,
        v_dim: config.dimension("v_head_dim")?,
        temperature: None,
    });
    let rope = Rotary {
        dim: config.dimension("qk_rope_head_dim")?,
        pairing: Pairing::Adjacent,
        theta: rope_theta(config)?,
        scaling: yarn(config)?.map(Scaling::Yarn),
        amplitude: 1.0,
        divisors: Divisors::Absent,
        sections: None,
    };
    let mut spec = Spec::plain(defaults.model_type, layers, attention, rope);
    spec.hidden = hidden;
    spec.mtp_layers = mtp_layers;
    spec.ffn.dense.layers = dense_layers;
    spec.ffn.dense.width = ByLayer::all(dense_width);
    spec.embedding.vocab = config.dimension("vocab_size")?;
    spec.embedding.tied = config.flag_or("tie_word_embeddings", false)?;
    spec.norms.eps = config.number_or("rms_norm_eps", 1e-6)?;
    check(config, &spec, &moe)?;
    spec.ffn.moe = Some(moe);
    Ok(spec)
}

/// What can be converted: V3's router.
fn convertible(spec: &Spec) -> Result<()> {
    let is_v3 = |moe: &Moe| {
        moe.router.choice == ExpertChoice::GroupsByTwoBest && moe.router.scoring == Scoring::Sigmoid
    };
    if spec.ffn.moe.as_ref().is_some_and(is_v3) {
        return Ok(());
    }
    Err(Error::Unsupported {
        what: format!("converting this {} model", spec.model_type),
        hint: "its router is not deepseek_v3's (scoring_func, topk_method); it can be evaluated".into(),
    })
}

/// What mlx-lm's model can be built from.
///
/// # Errors
/// Names the key.
pub(super) fn mlx(config: &Config) -> Result<()> {
    match config.get("topk_method") {
        None => Ok(()),
        Some(method) if method.as_str() == Some("noaux_tc") => Ok(()),
        Some(other) => Err(Error::Unsupported {
            what: format!("config.json: topk_method {other}"),
            hint: "mlx-lm reads deepseek_v3 models with \"noaux_tc\" only".into(),
        }),
    }
}

/// llama.cpp recognizes the "lite" models by their size.
fn loadable(spec: &Spec) -> Result<()> {
    let is_lite = matches!(spec.layers, 26 | 27) || spec.layers == 48 && spec.embedding.vocab == 128_256;
    if spec.latent()?.q_lora.is_none() && !is_lite {
        let limit = "a low-rank query projection, or 26 or 27 layers";
        return Err(beyond(GGUF.name, "q_lora_rank", "null", limit));
    }
    Ok(())
}

/// `scoring_func`.
fn scoring(config: &Config, defaults: &Defaults) -> Result<Scoring> {
    match config.get("scoring_func") {
        None => Ok(defaults.scoring),
        Some(name) => match name.as_str() {
            Some("sigmoid") => Ok(Scoring::Sigmoid),
            Some("softmax") => Ok(Scoring::Softmax),
            _ => Err(config.invalid("scoring_func", &name.to_string(), "\"sigmoid\" or \"softmax\"")),
        },
    }
}

/// `topk_method`.
fn expert_choice(config: &Config, defaults: &Defaults) -> Result<ExpertChoice> {
    match config.get("topk_method") {
        None => Ok(defaults.choice),
        Some(name) => match name.as_str() {
            Some("noaux_tc") => Ok(ExpertChoice::GroupsByTwoBest),
            Some("group_limited_greedy") => Ok(ExpertChoice::GroupsByBest),
            Some("greedy") => Ok(ExpertChoice::Ungrouped),
            _ => {
                let known = "\"noaux_tc\", \"group_limited_greedy\" or \"greedy\"";
                Err(config.invalid("topk_method", &name.to_string(), known))
            }
        },
    }
}

/// RoPE base: top level in the hub's files, inside `rope_parameters` in newer exports.
fn rope_theta(config: &Config) -> Result<f64> {
    let nested = config.section("rope_parameters");
    let nested = nested.map_or(Ok(10000.0), |section| section.number_or("rope_theta", 10000.0))?;
    config.number_or("rope_theta", nested)
}

/// YaRN parameters from `rope_scaling` or `rope_parameters`.
fn yarn(config: &Config) -> Result<Option<Yarn>> {
    let Some(section) = config.section("rope_scaling").or_else(|| config.section("rope_parameters")) else {
        return Ok(None);
    };
    match section.text("rope_type").or(section.text("type")) {
        Some("yarn") if section.get("attention_factor").is_some() => {
            let found = section.number_or("attention_factor", 1.0)?.to_string();
            Err(section.invalid("attention_factor", &found, "mscale and mscale_all_dim to say it"))
        }
        Some("yarn") => Ok(Some(Yarn {
            factor: section.number_or("factor", 1.0)?,
            original_context: section.dimension("original_max_position_embeddings")? as u64,
            beta_fast: section.number_or("beta_fast", 32.0)?,
            beta_slow: section.number_or("beta_slow", 1.0)?,
            mscale: section.number_or("mscale", 1.0)?,
            mscale_all_dim: section.number_or("mscale_all_dim", 0.0)?,
            truncate: true,
        })),
        None | Some("default") => Ok(None),
        Some(other) => Err(section.invalid("type", &format!("{other:?}"), "\"yarn\"")),
    }
}

/// What these families do not do, and constraints between hyper-parameters.
fn check(config: &Config, spec: &Spec, moe: &Moe) -> Result<()> {
    let activation = config.text("hidden_act").unwrap_or("silu");
    if activation != "silu" {
        return Err(config.invalid("hidden_act", &format!("{activation:?}"), "\"silu\""));
    }
    if !config.flag_or("rope_interleave", true)? {
        return Err(config.invalid("rope_interleave", "false", "true"));
    }
    if config.count_or("moe_layer_freq", 1)? != 1 {
        let found = config.get("moe_layer_freq").map_or_else(String::new, ToString::to_string);
        return Err(config.invalid("moe_layer_freq", &found, "1"));
    }
    if moe.per_token.most() > moe.experts {
        let found = moe.per_token.most().to_string();
        return Err(config.invalid("num_experts_per_tok", &found, &format!("at most {}", moe.experts)));
    }
    if moe.router.groups == 0 || !moe.experts.is_multiple_of(moe.router.groups) {
        let found = moe.router.groups.to_string();
        return Err(config.invalid("n_group", &found, &format!("a divisor of {} experts", moe.experts)));
    }
    if moe.router.top_groups == 0 || moe.router.top_groups > moe.router.groups {
        let found = moe.router.top_groups.to_string();
        return Err(config.invalid("topk_group", &found, &format!("1 to {}", moe.router.groups)));
    }
    if spec.mtp_layers > 100 {
        return Err(config.invalid("num_nextn_predict_layers", &spec.mtp_layers.to_string(), "100 at most"));
    }
    Ok(())
}
