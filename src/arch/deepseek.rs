//! What the DeepSeek families share: multi-head latent attention, routed experts beside shared ones,
//! multi-token prediction layers at the end.
//!
//! Source of names and shapes: `modeling_deepseek.py` and `config.json` of the published checkpoints, and
//! DeepSeek-V3's technical report (arXiv 2412.19437) for the prediction module.

use super::{
    Activation, ArchSpec, Attention, ByLayer, Config, Divisors, Expected, ExpertChoice, Ffn, Latent,
    LayerRole, Pairing, Role, Rotary, Scaling, Scoring, Yarn,
};
use crate::error::{Error, Result};

/// What config.json means where it is silent.
pub(super) struct Family {
    pub(super) model_type: &'static str,
    pub(super) scoring: Scoring,
    pub(super) choice: ExpertChoice,
    pub(super) normalize_top: bool,
}

/// Reads and checks the hyper-parameters.
///
/// # Errors
/// Names the key of config.json that is missing or out of range.
pub(super) fn spec(config: &Config, family: &Family) -> Result<ArchSpec> {
    if config.flag_or("attention_bias", false)? {
        return Err(Error::Unsupported {
            what: "config.json: attention_bias true".into(),
            hint: "no checkpoint of this family is known to have attention biases".into(),
        });
    }
    let layers = config.dimension("num_hidden_layers")?;
    let expert_intermediate = config.dimension("moe_intermediate_size")?;
    let shared_experts = config.count_or("n_shared_experts", 0)? as usize;
    let choice = expert_choice(config, family)?;
    let spec = ArchSpec {
        model_type: family.model_type.to_owned(),
        hidden: config.dimension("hidden_size")?,
        layers,
        mtp_layers: config.count_or("num_nextn_predict_layers", 0)? as usize,
        dense_layers: config.count_or("first_k_dense_replace", 0)? as usize,
        dense_intermediate: ByLayer::all(config.dimension("intermediate_size")?),
        expert_intermediate: ByLayer::all(expert_intermediate),
        experts: config.dimension("n_routed_experts")?,
        experts_per_token: ByLayer::all(config.dimension("num_experts_per_tok")?),
        shared_experts,
        shared_intermediate: ByLayer::all(shared_experts * expert_intermediate),
        shared_gate: false,
        expert_groups: config.count_or("n_group", 1)? as usize,
        top_groups: config.count_or("topk_group", 1)? as usize,
        routed_scale: config.number_or("routed_scaling_factor", 1.0)?,
        normalize_top: config.flag_or("norm_topk_prob", family.normalize_top)?,
        scoring: scoring(config, family)?,
        choice,
        // `noaux_tc` is both.
        router_bias: choice == ExpertChoice::GroupsByTwoBest,
        attention: Attention::Latent(Latent {
            heads: config.dimension("num_attention_heads")?,
            q_lora: match config.get("q_lora_rank") {
                Some(_) => Some(config.dimension("q_lora_rank")?),
                None => None,
            },
            kv_lora: config.dimension("kv_lora_rank")?,
            nope_dim: config.dimension("qk_nope_head_dim")?,
            v_dim: config.dimension("v_head_dim")?,
            temperature: None,
        }),
        rope: Rotary {
            dim: config.dimension("qk_rope_head_dim")?,
            pairing: Pairing::Adjacent,
            theta: rope_theta(config)?,
            scaling: yarn(config)?.map(Scaling::Yarn),
            amplitude: 1.0,
            divisors: Divisors::Absent,
            sections: None,
        },
        vocab: config.dimension("vocab_size")?,
        norm_eps: config.number_or("rms_norm_eps", 1e-6)?,
        tied_embeddings: config.flag_or("tie_word_embeddings", false)?,
        activation: Activation::Silu,
        post_norms: false,
        embedding_scale: 1.0,
        logit_cap: None,
    };
    check(config, &spec)?;
    Ok(spec)
}

/// Every tensor that a checkpoint with these hyper-parameters holds.
pub(crate) fn expected(spec: &ArchSpec) -> Vec<Expected> {
    // No spec of this file has another kind.
    let Attention::Latent(latent) = &spec.attention else { return Vec::new() };
    let mut tensors = Vec::new();
    let mut top = |name: &str, shape: Vec<usize>, role| {
        tensors.push(Expected { name: name.to_owned(), shape, role, required: true });
    };
    top("model.embed_tokens.weight", vec![spec.vocab, spec.hidden], Role::TokenEmbedding);
    top("model.norm.weight", vec![spec.hidden], Role::OutputNorm);
    top("lm_head.weight", vec![spec.vocab, spec.hidden], Role::Output);
    if spec.tied_embeddings {
        tensors[2].required = false;
    }
    for layer in 0..spec.layers + spec.mtp_layers {
        let required = layer < spec.layers;
        for (suffix, shape, role) in layer_tensors(spec, latent, layer) {
            let name = format!("model.layers.{layer}.{suffix}");
            tensors.push(Expected { name, shape, role: Role::Layer(layer, role), required });
        }
    }
    tensors
}

/// `scoring_func`.
fn scoring(config: &Config, family: &Family) -> Result<Scoring> {
    match config.get("scoring_func") {
        None => Ok(family.scoring),
        Some(name) => match name.as_str() {
            Some("sigmoid") => Ok(Scoring::Sigmoid),
            Some("softmax") => Ok(Scoring::Softmax),
            _ => Err(config.invalid("scoring_func", &name.to_string(), "\"sigmoid\" or \"softmax\"")),
        },
    }
}

/// `topk_method`.
fn expert_choice(config: &Config, family: &Family) -> Result<ExpertChoice> {
    match config.get("topk_method") {
        None => Ok(family.choice),
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
        })),
        None | Some("default") => Ok(None),
        Some(other) => Err(section.invalid("type", &format!("{other:?}"), "\"yarn\"")),
    }
}

/// What these families do not do, and constraints between hyper-parameters.
fn check(config: &Config, spec: &ArchSpec) -> Result<()> {
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
    if spec.experts_per_token.most() > spec.experts {
        let found = spec.experts_per_token.most().to_string();
        return Err(config.invalid("num_experts_per_tok", &found, &format!("at most {}", spec.experts)));
    }
    if spec.expert_groups == 0 || !spec.experts.is_multiple_of(spec.expert_groups) {
        let found = spec.expert_groups.to_string();
        return Err(config.invalid("n_group", &found, &format!("a divisor of {} experts", spec.experts)));
    }
    if spec.top_groups == 0 || spec.top_groups > spec.expert_groups {
        let found = spec.top_groups.to_string();
        return Err(config.invalid("topk_group", &found, &format!("1 to {}", spec.expert_groups)));
    }
    if spec.mtp_layers > 100 {
        return Err(config.invalid("num_nextn_predict_layers", &spec.mtp_layers.to_string(), "100 at most"));
    }
    spec.check_size("config.json: num_hidden_layers, n_routed_experts")
}

/// Suffix, shape and role of every tensor of one layer.
fn layer_tensors(spec: &ArchSpec, latent: &Latent, layer: usize) -> Vec<(String, Vec<usize>, LayerRole)> {
    let hidden = spec.hidden;
    let q_rows = latent.heads * (latent.nope_dim + spec.rope.dim);
    let mut list: Vec<(String, Vec<usize>, LayerRole)> = Vec::new();
    let mut add = |suffix: &str, shape: Vec<usize>, role| list.push((suffix.to_owned(), shape, role));

    add("input_layernorm.weight", vec![hidden], LayerRole::AttentionNorm);
    match latent.q_lora {
        Some(rank) => {
            add("self_attn.q_a_proj.weight", vec![rank, hidden], LayerRole::QA);
            add("self_attn.q_a_layernorm.weight", vec![rank], LayerRole::QANorm);
            add("self_attn.q_b_proj.weight", vec![q_rows, rank], LayerRole::QB);
        }
        None => add("self_attn.q_proj.weight", vec![q_rows, hidden], LayerRole::Q),
    }
    let kv_a_rows = latent.kv_lora + spec.rope.dim;
    add("self_attn.kv_a_proj_with_mqa.weight", vec![kv_a_rows, hidden], LayerRole::KvA);
    add("self_attn.kv_a_layernorm.weight", vec![latent.kv_lora], LayerRole::KvANorm);
    let kv_b_rows = latent.heads * (latent.nope_dim + latent.v_dim);
    add("self_attn.kv_b_proj.weight", vec![kv_b_rows, latent.kv_lora], LayerRole::KvB);
    add("self_attn.o_proj.weight", vec![hidden, latent.heads * latent.v_dim], LayerRole::AttentionOutput);
    add("post_attention_layernorm.weight", vec![hidden], LayerRole::FfnNorm);

    let ffn_shape = |ffn, width| match ffn {
        Ffn::Gate | Ffn::Up => vec![width, hidden],
        Ffn::Down => vec![hidden, width],
    };
    if spec.is_moe(layer) {
        add("mlp.gate.weight", vec![spec.experts, hidden], LayerRole::Router);
        if spec.router_bias {
            add("mlp.gate.e_score_correction_bias", vec![spec.experts], LayerRole::RouterBias);
        }
        for expert in 0..spec.experts {
            for ffn in Ffn::ALL {
                let suffix = format!("mlp.experts.{expert}.{}.weight", ffn.hf_name());
                add(
                    &suffix,
                    ffn_shape(ffn, *spec.expert_intermediate.of(layer)),
                    LayerRole::Expert(expert, ffn),
                );
            }
        }
        if spec.shared_experts > 0 {
            let width = *spec.shared_intermediate.of(layer);
            for ffn in Ffn::ALL {
                let suffix = format!("mlp.shared_experts.{}.weight", ffn.hf_name());
                add(&suffix, ffn_shape(ffn, width), LayerRole::Shared(ffn));
            }
        }
    } else {
        for ffn in Ffn::ALL {
            let suffix = format!("mlp.{}.weight", ffn.hf_name());
            add(&suffix, ffn_shape(ffn, *spec.dense_intermediate.of(layer)), LayerRole::Dense(ffn));
        }
    }
    if layer >= spec.layers {
        add("embed_tokens.weight", vec![spec.vocab, hidden], LayerRole::MtpEmbedding);
        add("enorm.weight", vec![hidden], LayerRole::MtpEmbeddingNorm);
        add("hnorm.weight", vec![hidden], LayerRole::MtpHiddenNorm);
        add("eh_proj.weight", vec![hidden, 2 * hidden], LayerRole::MtpProjection);
        add("shared_head.norm.weight", vec![hidden], LayerRole::MtpHeadNorm);
        add("shared_head.head.weight", vec![spec.vocab, hidden], LayerRole::MtpHead);
    }
    list
}
