//! GLM-4.5 to 4.7: experts behind some dense layers, half of a head turns, and a prediction layer, which GGUF files keep.

use super::decoder::{
    self, DEFAULTS, Defaults, MlxRope, Turns, check_mlx_keys, check_mlx_rope, stated_head_lengths,
    with_attention,
};
use super::gguf::{Architecture, Experts, Vocabulary, Written};
use super::{
    ByLayer, CHECKPOINTS, Checkpoints, Config, ExpertChoice, Family, Moe, NAMING, Names, Naming, Presence,
    Router, Scoring, Shared, Spec,
};
use crate::error::Result;

/// The `glm4_moe` family.
pub(super) const FAMILY: Family = Family {
    model_type: "glm4_moe",
    checkpoint: Some(Checkpoints { spec, mlx, mlx_ties_head: false, ..CHECKPOINTS }),
    gguf: &GGUF,
    naming: Naming { ffn_norm: FFN_NORM, ..NAMING },
    renamed: None,
};

const GGUF: Architecture = Architecture {
    experts: Experts::Biased,
    head_norms: Presence::Perhaps,
    has_sections: true,
    keeps_predictors: true,
    vocabulary: Vocabulary { special: SPECIAL, ..PLAIN.vocabulary },
    keys,
    ..PLAIN
};

const PLAIN: Architecture = Architecture::plain("glm4moe");
pub(super) const FFN_NORM: Names =
    Names::new("post_attention_layernorm.weight", "post_attention_norm.weight");
/// Special tokens by their texts, in the order in which the converter sets them.
pub(super) const SPECIAL: &[(&str, &str)] =
    &[("bos", "[gMASK]"), ("eot", "<|user|>"), ("unk", "<|endoftext|>"), ("eom", "<|observation|>")];
/// What turns of a head where config.json does not say.
const PART: f64 = 0.5;
/// Its value of `expert_gating_func`.
const SIGMOID: u64 = 2;

fn spec(config: &Config) -> Result<Spec> {
    for (key, expected) in [("scoring_func", "sigmoid"), ("topk_method", "noaux_tc")] {
        if let Some(other) = config.get(key).filter(|value| value.as_str() != Some(expected)) {
            return Err(config.invalid(key, &other.to_string(), &format!("{expected:?}")));
        }
    }
    let defaults = Defaults {
        model_type: "glm4_moe",
        key_value_heads: Some(8),
        norm_eps: 1e-5,
        turns: Turns::Part(PART),
        ..DEFAULTS
    };
    let mut spec = decoder::spec(config, &defaults)?;
    let biases = Presence::certain(config.flag_or("attention_bias", false)?);
    let head_norms = Presence::certain(config.flag_or("use_qk_norm", false)?);
    spec = with_attention(spec, |attention| (attention.biases, attention.head_norms) = (biases, head_norms));
    spec.mtp_layers = config.count_or("num_nextn_predict_layers", 1)? as usize;
    spec.ffn.dense.layers = (config.count_or("first_k_dense_replace", 1)? as usize).min(spec.layers);
    let width = config.dimension("moe_intermediate_size")?;
    let (experts, per_token) =
        (config.dimension("n_routed_experts")?, config.dimension("num_experts_per_tok")?);
    let shared = config.count_or("n_shared_experts", 1)? as usize;
    let router = Router {
        scoring: Scoring::Sigmoid,
        choice: ExpertChoice::GroupsByTwoBest,
        groups: config.count_or("n_group", 1)? as usize,
        top_groups: config.count_or("topk_group", 1)? as usize,
        bias: Presence::Always,
        normalize: config.flag_or("norm_topk_prob", true)?,
        scale: config.number_or("routed_scaling_factor", 1.0)?,
    };
    check_router(config, &router, experts, per_token)?;
    spec.ffn.moe = Some(Moe {
        experts,
        per_token: ByLayer::all(per_token),
        width: ByLayer::all(width),
        router,
        shared: (shared > 0).then(|| Shared {
            experts: shared,
            width: ByLayer::all(shared * width),
            gate: false,
        }),
        biases: Presence::Never,
    });
    Ok(spec)
}

/// Groups that divide the experts, two to a group at least, with enough to choose from.
fn check_router(config: &Config, router: &Router, experts: usize, per_token: usize) -> Result<()> {
    let &Router { groups, top_groups, .. } = router;
    if groups == 0 || !experts.is_multiple_of(groups) || experts / groups < 2 {
        let expected = format!("a divisor of {experts} experts that leaves two to a group at least");
        return Err(config.invalid("n_group", &groups.to_string(), &expected));
    }
    if top_groups == 0 || top_groups > groups {
        return Err(config.invalid("topk_group", &top_groups.to_string(), &format!("1 to {groups}")));
    }
    let most = top_groups * (experts / groups);
    if per_token > most {
        return Err(config.invalid(
            "num_experts_per_tok",
            &per_token.to_string(),
            &format!("at most {most}"),
        ));
    }
    Ok(())
}

fn mlx(config: &Config) -> Result<()> {
    check_mlx_rope(config, &MlxRope { theta: None, is_nested: false, scales: false }, DEFAULTS.rope_theta)?;
    let keys = [
        "max_position_embeddings",
        "norm_topk_prob",
        "n_group",
        "head_dim",
        "topk_group",
        "n_shared_experts",
        "routed_scaling_factor",
        "first_k_dense_replace",
        "num_key_value_heads",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
        "use_qk_norm",
        "tie_word_embeddings",
        "attention_bias",
        "partial_rotary_factor",
    ];
    check_mlx_keys(config, &keys)
}

fn keys(keys: &mut Written) -> Result<()> {
    let (config, spec) = (keys.config, keys.spec);
    let Some(moe) = &spec.ffn.moe else { return Ok(()) };
    keys.count("expert_group_count", moe.router.groups as u64, "n_group")?;
    keys.count("expert_group_used_count", moe.router.top_groups as u64, "topk_group")?;
    keys.gating()?;
    stated_head_lengths(keys)?;
    keys.count("rope.dimension_count", spec.rope.dim as u64, "partial_rotary_factor")?;
    keys.count("expert_feed_forward_length", *moe.width.of(0) as u64, "moe_intermediate_size")?;
    let shared = moe.shared.as_ref().map_or(0, |shared| shared.experts);
    keys.count("expert_shared_count", shared as u64, "n_shared_experts")?;
    keys.count("leading_dense_block_count", spec.ffn.dense.layers as u64, "first_k_dense_replace")?;
    if config.get("scoring_func").is_none() {
        keys.count("expert_gating_func", SIGMOID, "scoring_func")?;
    }
    keys.float("expert_weights_scale", moe.router.scale);
    keys.flag("expert_weights_norm", moe.router.normalize);
    keys.count("nextn_predict_layers", spec.mtp_layers as u64, "num_nextn_predict_layers")
}
