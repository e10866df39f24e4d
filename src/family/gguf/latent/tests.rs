//! Published models by their metadata, as converters write it.

use super::*;
use crate::family::Yarn;
use crate::family::deepseek::GGUF;

/// Metadata with these counts and numbers, and what every converter writes.
fn metadata(counts: &[(&str, u32)], numbers: &[(&str, f32)]) -> Metadata {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", GGUF.name);
    metadata.set("general.file_type", 7u32);
    for &(key, count) in counts {
        metadata.set(format!("deepseek2.{key}"), count);
    }
    for &(key, number) in numbers {
        metadata.set(format!("deepseek2.{key}"), number);
    }
    let count =
        |key: &str| metadata.get(&format!("deepseek2.{key}")).and_then(Value::as_u64).map(|c| c as u32);
    let lora = count("attention.kv_lora_rank").unwrap();
    let rope = count("rope.dimension_count").unwrap();
    let cached = [("head_count_kv", 1), ("key_length", lora + rope), ("value_length", lora)];
    for (key, count) in cached {
        metadata.set(format!("deepseek2.attention.{key}"), count);
    }
    metadata
}

/// Counts of attention: heads, ranks of queries and of keys and values, widths of keys, of their turned part, of values.
fn attention(heads: u32, q_lora: u32, key: u32, value: u32) -> Vec<(&'static str, u32)> {
    let mut counts = vec![
        ("attention.head_count", heads),
        ("attention.kv_lora_rank", 512),
        ("attention.key_length_mla", key),
        ("attention.value_length_mla", value),
        ("rope.dimension_count", 64),
    ];
    if q_lora > 0 {
        counts.push(("attention.q_lora_rank", q_lora));
    }
    counts
}

/// Counts of experts: of all, for a token, shared, their width.
fn experts(all: u32, used: u32, shared: u32, width: u32) -> Vec<(&'static str, u32)> {
    vec![
        ("expert_count", all),
        ("expert_used_count", used),
        ("expert_shared_count", shared),
        ("expert_feed_forward_length", width),
    ]
}

/// Counts of the whole: blocks, hidden width, width of a dense block, leading dense blocks, vocabulary, context.
fn whole(
    blocks: u32,
    hidden: u32,
    width: u32,
    dense: u32,
    vocab: u32,
    context: u32,
) -> Vec<(&'static str, u32)> {
    vec![
        ("block_count", blocks),
        ("embedding_length", hidden),
        ("feed_forward_length", width),
        ("leading_dense_block_count", dense),
        ("vocab_size", vocab),
        ("context_length", context),
    ]
}

fn yarn(metadata: &mut Metadata, original_context: u32, numbers: &[(&str, f32)]) {
    metadata.set("deepseek2.rope.scaling.type", "yarn");
    metadata.set("deepseek2.rope.scaling.original_context_length", original_context);
    for &(key, number) in numbers {
        metadata.set(format!("deepseek2.rope.scaling.{key}"), number);
    }
}

const EPS: (&str, f32) = (EPSILON, 1e-6);
const BIAS: &str = "blk.3.exp_probs_b.bias";

/// DeepSeek-V2's; it has no `expert_gating_func`.
fn deepseek_v2() -> Metadata {
    let groups = vec![("expert_group_count", 8), ("expert_group_used_count", 3)];
    let counts = [
        whole(60, 5120, 12288, 1, 102_400, 163_840),
        attention(128, 1536, 192, 128),
        experts(160, 6, 2, 1536),
        groups,
    ];
    let numbers = [EPS, ("expert_weights_scale", 16.0), ("rope.freq_base", 10000.0)];
    let mut metadata = metadata(&counts.concat(), &numbers);
    yarn(&mut metadata, 4096, &[("factor", 40.0), ("yarn_log_multiplier", 0.1 * 0.707)]);
    metadata
}

fn read(metadata: &Metadata, names: &[&str]) -> Result<Spec> {
    let vocab = metadata.get("deepseek2.vocab_size").and_then(Value::as_u64).unwrap_or(0) as usize;
    spec(&GGUF, metadata, "m.gguf", &Contents { vocab, names: &names.iter().copied().collect() })
}

fn latent(spec: &Spec) -> Latent {
    spec.latent().unwrap().clone()
}

fn moe(spec: &Spec) -> &Moe {
    spec.ffn.moe.as_ref().unwrap()
}

fn routing(spec: &Spec) -> (Scoring, ExpertChoice, bool, bool, f64) {
    let router = &moe(spec).router;
    (router.scoring, router.choice, router.bias != Presence::Never, router.normalize, router.scale)
}

#[test]
fn deepseek_v2_and_lite() {
    let spec = read(&deepseek_v2(), &["output.weight"]).unwrap();
    assert_eq!(spec.model_type, "deepseek2");
    assert_eq!(routing(&spec), (Scoring::Softmax, ExpertChoice::GroupsByBest, false, false, 16.0));
    assert_eq!((moe(&spec).router.groups, moe(&spec).router.top_groups, spec.norms.eps), (8, 3, 1e-6));
    assert_eq!(
        (moe(&spec).shared_width(1), spec.ffn.dense.layers, spec.ffn.dense.width.most()),
        (3072, 1, 12288)
    );
    let expected =
        Latent { heads: 128, q_lora: Some(1536), kv_lora: 512, nope_dim: 128, v_dim: 128, temperature: None };
    assert_eq!((latent(&spec), spec.rope.dim, spec.rope.amplitude), (expected, 64, 1.0));
    let &Yarn { factor, original_context, beta_fast, beta_slow, mscale, mscale_all_dim } =
        spec.rope.yarn().unwrap();
    assert_eq!((factor, original_context, beta_fast, beta_slow), (40.0, 4096, 32.0, 1.0));
    assert!((mscale - 0.707).abs() < 1e-6 && mscale == mscale_all_dim);

    let counts =
        [whole(27, 2048, 10944, 1, 102_400, 163_840), attention(16, 0, 192, 128), experts(64, 6, 2, 1408)];
    let mut lite = metadata(&counts.concat(), &[EPS, ("expert_weights_scale", 1.0)]);
    yarn(&mut lite, 4096, &[("factor", 40.0), ("yarn_log_multiplier", 0.0707)]);
    let spec = read(&lite, &["output.weight"]).unwrap();
    assert_eq!(routing(&spec), (Scoring::Softmax, ExpertChoice::Ungrouped, false, false, 1.0));
    assert_eq!((latent(&spec).q_lora, spec.rope.theta), (None, 10000.0));
}

/// V3, R1 and V3.1, which the converter makes without the prediction layer.
#[test]
fn deepseek_v3() {
    let groups = vec![("expert_group_count", 8), ("expert_group_used_count", 4), ("expert_gating_func", 2)];
    let counts = [
        whole(61, 7168, 18432, 3, 129_280, 163_840),
        attention(128, 1536, 192, 128),
        experts(256, 8, 1, 2048),
        groups,
    ];
    let mut metadata =
        metadata(&counts.concat(), &[EPS, ("expert_weights_scale", 2.5), ("rope.freq_base", 10000.0)]);
    metadata.set("deepseek2.expert_weights_norm", true);
    let numbers =
        [("factor", 40.0), ("yarn_beta_fast", 32.0), ("yarn_beta_slow", 1.0), ("yarn_log_multiplier", 0.1)];
    yarn(&mut metadata, 4096, &numbers);
    let spec = read(&metadata, &["output.weight", BIAS]).unwrap();
    assert_eq!(routing(&spec), (Scoring::Sigmoid, ExpertChoice::GroupsByTwoBest, true, true, 2.5));
    assert_eq!((spec.layers, spec.mtp_layers, spec.embedding.tied), (61, 0, false));
    assert_eq!(spec.rope.yarn().unwrap().mscale_all_dim, 1.0);
    // Early files lack the groups: all experts then.
    for key in ["group_count", "group_used_count"] {
        metadata.remove(&format!("deepseek2.expert_{key}"));
    }
    assert_eq!(moe(&read(&metadata, &[BIAS]).unwrap()).router.choice, ExpertChoice::Ungrouped);
}

#[test]
fn kimi_k2_and_moonlight() {
    let one_group =
        vec![("expert_group_count", 1), ("expert_group_used_count", 1), ("expert_gating_func", 2)];
    let counts = [
        whole(61, 7168, 18432, 1, 163_840, 131_072),
        attention(64, 1536, 192, 128),
        experts(384, 8, 1, 2048),
        one_group.clone(),
    ];
    let mut kimi =
        metadata(&counts.concat(), &[EPS, ("expert_weights_scale", 2.827), ("rope.freq_base", 50000.0)]);
    kimi.set("deepseek2.expert_weights_norm", true);
    let numbers =
        [("factor", 32.0), ("yarn_beta_fast", 1.0), ("yarn_beta_slow", 1.0), ("yarn_log_multiplier", 0.1)];
    yarn(&mut kimi, 4096, &numbers);
    let spec = read(&kimi, &["output.weight", BIAS]).unwrap();
    assert_eq!(routing(&spec), (Scoring::Sigmoid, ExpertChoice::Ungrouped, true, true, 2.827));
    assert_eq!((spec.experts(), spec.rope.theta, spec.rope.yarn().unwrap().beta_fast), (384, 50000.0, 1.0));

    let counts = [
        whole(27, 2048, 11264, 1, 163_840, 8192),
        attention(16, 0, 192, 128),
        experts(64, 6, 2, 1408),
        one_group,
    ];
    let mut moonlight = metadata(
        &counts.concat(),
        &[(EPSILON, 1e-5), ("expert_weights_scale", 2.446), ("rope.freq_base", 50000.0)],
    );
    moonlight.set("deepseek2.expert_weights_norm", true);
    let spec = read(&moonlight, &["output.weight", BIAS]).unwrap();
    assert_eq!(routing(&spec), (Scoring::Sigmoid, ExpertChoice::Ungrouped, true, true, 2.446));
    assert_eq!((latent(&spec).q_lora, &spec.rope.scaling, spec.norms.eps), (None, &None, 1e-5));
}

/// Its first files have no `expert_gating_func`, later ones the prediction layer.
#[test]
fn glm_4_7_flash() {
    let counts = [
        whole(47, 2048, 10240, 1, 154_880, 202_752),
        attention(20, 768, 256, 256),
        experts(64, 4, 1, 1536),
        vec![("expert_group_count", 1), ("expert_group_used_count", 1)],
    ];
    let numbers = [(EPSILON, 1e-5), ("expert_weights_scale", 1.8), ("rope.freq_base", 1e6)];
    let mut metadata = metadata(&counts.concat(), &numbers);
    metadata.set("deepseek2.expert_weights_norm", true);
    let expected = (Scoring::Sigmoid, ExpertChoice::Ungrouped, true, true, 1.8);
    let spec = read(&metadata, &["output.weight", BIAS]).unwrap();
    assert_eq!((routing(&spec), spec.mtp_layers), (expected, 0));
    assert_eq!((latent(&spec).nope_dim, latent(&spec).v_dim), (192, 256));
    metadata.set("deepseek2.expert_gating_func", 0u32);
    assert_eq!(moe(&read(&metadata, &[BIAS]).unwrap()).router.scoring, Scoring::Sigmoid);
    metadata.set("deepseek2.vocab_size", 154_881u32);
    assert_eq!(moe(&read(&metadata, &[BIAS]).unwrap()).router.scoring, Scoring::Softmax);

    metadata.set("deepseek2.vocab_size", 154_880u32);
    metadata.set("deepseek2.block_count", 48u32);
    metadata.set("deepseek2.nextn_predict_layers", 1u32);
    let spec = read(&metadata, &["output.weight", BIAS, "blk.47.nextn.eh_proj.weight"]).unwrap();
    assert_eq!((spec.layers, spec.mtp_layers, routing(&spec)), (47, 1, expected));
    // A copy of the same without the layer.
    let spec = read(&metadata, &["output.weight", BIAS]).unwrap();
    assert_eq!((spec.layers, spec.mtp_layers), (47, 0));
}

#[test]
fn kanana_2_and_gigachat_3() {
    let gating = vec![("expert_group_count", 1), ("expert_group_used_count", 1), ("expert_gating_func", 2)];
    let counts = [
        whole(48, 2048, 6144, 1, 128_256, 32768),
        attention(32, 0, 192, 128),
        experts(128, 6, 2, 768),
        gating.clone(),
    ];
    let mut kanana =
        metadata(&counts.concat(), &[EPS, ("expert_weights_scale", 2.448), ("rope.freq_base", 1e6)]);
    kanana.set("deepseek2.expert_weights_norm", true);
    let spec = read(&kanana, &["output.weight", BIAS]).unwrap();
    assert_eq!(routing(&spec), (Scoring::Sigmoid, ExpertChoice::Ungrouped, true, true, 2.448));
    assert_eq!((latent(&spec).q_lora, spec.layers), (None, 48));

    let counts = [
        whole(26, 1536, 8960, 1, 128_256, 262_144),
        attention(32, 0, 192, 192),
        experts(64, 4, 1, 1280),
        gating,
    ];
    let mut gigachat =
        metadata(&counts.concat(), &[EPS, ("expert_weights_scale", 1.0), ("rope.freq_base", 1e5)]);
    gigachat.set("deepseek2.expert_weights_norm", true);
    let numbers =
        [("factor", 64.0), ("yarn_beta_fast", 32.0), ("yarn_beta_slow", 1.0), ("yarn_log_multiplier", 0.1)];
    yarn(&mut gigachat, 4096, &numbers);
    let spec = read(&gigachat, &["output.weight", BIAS]).unwrap();
    assert_eq!((latent(&spec).v_dim, spec.rope.yarn().unwrap().factor), (192, 64.0));
}

/// Its converter says the width of experts and that none are shared, but not how many there are.
#[test]
fn youtu_llm_has_no_experts() {
    let counts = [
        whole(32, 2048, 6144, 32, 128_256, 131_072),
        attention(16, 1536, 192, 128),
        vec![("expert_feed_forward_length", 6144), ("expert_shared_count", 0)],
    ];
    let mut metadata = metadata(&counts.concat(), &[EPS, ("rope.freq_base", 1.6e6)]);
    let spec = read(&metadata, &[]).unwrap();
    assert_eq!((spec.experts(), spec.ffn.dense.layers, spec.ffn.dense.width.most()), (0, 32, 6144));
    assert_eq!(spec.ffn.moe, None);
    assert!(spec.embedding.tied && !(0..32).any(|layer| spec.moe(layer).is_some()));
    // What is not dense needs them.
    metadata.set("deepseek2.leading_dense_block_count", 31u32);
    assert!(read(&metadata, &[]).unwrap_err().to_string().contains("expert_count"));
}

/// Softmax weights that are normalized, YaRN, and a temperature.
#[test]
fn mistral_large_3() {
    let counts = [
        whole(61, 7168, 16384, 3, 131_072, 294_912),
        attention(128, 1536, 192, 128),
        experts(128, 4, 1, 4096),
        vec![("expert_group_count", 1), ("expert_group_used_count", 1), ("expert_gating_func", 1)],
        vec![("attention.temperature_length", 8192)],
    ];
    let mut numbers = vec![EPS, ("expert_weights_scale", 1.0), ("rope.freq_base", 10000.0)];
    numbers.push(("attention.temperature_scale", 0.1));
    let mut metadata = metadata(&counts.concat(), &numbers);
    metadata.set("deepseek2.expert_weights_norm", true);
    let numbers =
        [("factor", 36.0), ("yarn_beta_fast", 32.0), ("yarn_beta_slow", 1.0), ("yarn_log_multiplier", 0.1)];
    yarn(&mut metadata, 8192, &numbers);
    let spec = read(&metadata, &["output.weight"]).unwrap();
    assert_eq!(routing(&spec), (Scoring::Softmax, ExpertChoice::Ungrouped, false, true, 1.0));
    assert_eq!(latent(&spec).temperature, Some(Temperature { scale: 0.1, length: 8192 }));
    // Only the scale makes one, and needs the length.
    metadata.remove("deepseek2.attention.temperature_length");
    assert!(read(&metadata, &[]).unwrap_err().to_string().contains("temperature_length"));
    metadata.set("deepseek2.attention.temperature_length", 8192u32);
    metadata.remove("deepseek2.attention.temperature_scale");
    assert_eq!(latent(&read(&metadata, &[]).unwrap()).temperature, None);
}

#[test]
fn routers_by_gating_bias_and_groups() {
    use ExpertChoice::{GroupsByBest, GroupsByTwoBest, Ungrouped};
    for (gating, scoring, with_bias, without_bias) in [
        (1u32, Scoring::Softmax, GroupsByTwoBest, GroupsByBest),
        (2, Scoring::Sigmoid, GroupsByTwoBest, GroupsByTwoBest),
        (3, Scoring::SoftmaxOfChosen, GroupsByTwoBest, GroupsByTwoBest),
        (4, Scoring::SqrtSoftplus, GroupsByTwoBest, GroupsByTwoBest),
    ] {
        let mut metadata = deepseek_v2();
        metadata.set("deepseek2.expert_gating_func", gating);
        for (names, has_bias, choice) in [(vec![BIAS], true, with_bias), (vec![], false, without_bias)] {
            metadata.set("deepseek2.expert_group_count", 8u32);
            metadata.set("deepseek2.expert_group_used_count", 3u32);
            assert_eq!(routing(&read(&metadata, &names).unwrap()), (scoring, choice, has_bias, false, 16.0));
            metadata.set("deepseek2.expert_group_count", 0u32);
            metadata.set("deepseek2.expert_group_used_count", 0u32);
            assert_eq!(moe(&read(&metadata, &names).unwrap()).router.choice, Ungrouped);
        }
    }
}

/// llama.cpp takes a factor without a type for linear scaling, by its older name too.
#[test]
fn scaling_that_is_not_yarn() {
    let mut metadata = deepseek_v2();
    metadata.remove("deepseek2.rope.scaling.type");
    assert!(read(&metadata, &[]).unwrap_err().to_string().contains("yarn_log_multiplier with linear"));
    metadata.remove("deepseek2.rope.scaling.yarn_log_multiplier");
    let scaling = |metadata: &Metadata| read(metadata, &[]).unwrap().rope.scaling;
    assert_eq!(scaling(&metadata), Some(Scaling::Linear(40.0)));
    metadata.set("deepseek2.rope.scaling.type", "linear");
    assert_eq!(scaling(&metadata), Some(Scaling::Linear(40.0)));
    metadata.set("deepseek2.rope.scaling.type", "none");
    assert_eq!(scaling(&metadata), None);
    metadata.remove("deepseek2.rope.scaling.type");
    metadata.remove("deepseek2.rope.scaling.factor");
    assert_eq!(scaling(&metadata), None);
    metadata.set("deepseek2.rope.scale_linear", 4f32);
    assert_eq!(scaling(&metadata), Some(Scaling::Linear(4.0)));
}

/// transformers: `attention_factor` is the factor on sine and cosine, whatever `mscale` would make it.
#[test]
fn the_attention_factor_of_yarn_takes_the_place_of_mscale() {
    let mut metadata = deepseek_v2();
    metadata.set("deepseek2.rope.scaling.yarn_ext_factor", 0.5f32);
    metadata.set("deepseek2.rope.scaling.yarn_attn_factor", 1.25f32);
    assert_eq!(read(&metadata, &[]).unwrap().rope.amplitude, 1.25);
    metadata.remove("deepseek2.rope.scaling.yarn_log_multiplier");
    let rope = read(&metadata, &[]).unwrap().rope;
    let own = 0.1 * 40f64.ln() + 1.0;
    assert_eq!((rope.yarn().unwrap().mscale_all_dim, rope.amplitude * own), (0.0, 1.25));
}

#[test]
fn heads_may_be_described_as_they_were_before_the_projection_was_split() {
    let mut metadata = deepseek_v2();
    for (new, old, count) in
        [("key_length_mla", "key_length", 192u32), ("value_length_mla", "value_length", 128)]
    {
        metadata.remove(&format!("deepseek2.attention.{new}"));
        metadata.remove(&format!("deepseek2.attention.{old}"));
        assert!(read(&metadata, &[]).unwrap_err().to_string().contains(new));
        metadata.set(format!("deepseek2.attention.{old}"), count);
    }
    let spec = read(&metadata, &[]).unwrap();
    assert_eq!((latent(&spec).nope_dim, latent(&spec).v_dim), (128, 128));
}

/// llama.cpp scales weights that it has normalized, as V3 does and V2 does not.
#[test]
fn normalized_weights_are_scaled_as_llama_cpp_does() {
    let mut metadata = deepseek_v2();
    metadata.set("deepseek2.expert_weights_norm", true);
    let spec = read(&metadata, &[]).unwrap();
    assert_eq!(routing(&spec), (Scoring::Softmax, ExpertChoice::GroupsByBest, false, true, 16.0));
}

#[test]
fn what_is_not_ours_is_named() {
    for (key, value, named) in [
        ("expert_gating_func", Value::from(5u32), "expert_gating_func 5"),
        ("rope.scaling.type", Value::from("dynamic"), "\"dynamic\""),
        ("rope.scaling.attn_factor", Value::from(2f32), "attn_factor"),
        ("rope.scaling.factor", Value::from(-1f32), "rope.scaling.factor"),
        ("rope.dimension_count", Value::from(63u32), "rope.dimension_count"),
        ("rope.dimension_count", Value::from(192u32), "rope.dimension_count"),
        ("block_count", Value::from("many"), "block_count"),
        ("block_count", Value::from(513u32), "block_count"),
        ("nextn_predict_layers", Value::from(60u32), "block_count"),
        ("expert_group_count", Value::from(7u32), "expert_group_count"),
        ("expert_group_used_count", Value::from(9u32), "expert_group_used_count"),
        ("expert_used_count", Value::from(161u32), "expert_used_count"),
        ("expert_used_count", Value::from(0u32), "expert_used_count"),
        ("expert_count", Value::from(0u32), "expert_count"),
        ("expert_count", Value::from(1025u32), "expert_used_count"),
        ("expert_feed_forward_length", Value::from(0u32), "expert_feed_forward_length"),
        ("feed_forward_length", Value::from(0u32), "feed_forward_length"),
        ("attention.kv_lora_rank", Value::from(0u32), "kv_lora_rank"),
        ("attention.temperature_scale", Value::from(0.1f32), "temperature_length"),
        ("attention.causal", Value::from(false), "attention.causal"),
        ("attention.sliding_window", Value::from(128u32), "attention.sliding_window"),
    ] {
        let mut metadata = deepseek_v2();
        metadata.set(format!("deepseek2.{key}"), value);
        let error = read(&metadata, &[]).unwrap_err().to_string();
        assert!(error.contains(named), "{key}: {error}");
    }
}
