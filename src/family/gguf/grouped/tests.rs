//! Published models by their metadata, as converters write it.

use super::*;
use crate::error::Error;
use crate::family::{Activation, Divisors, Pairing, Rotary, Scaling, architecture_of};

/// Metadata of `architecture` with these counts and numbers.
fn metadata(architecture: &str, counts: &[(&str, u32)], numbers: &[(&str, f32)]) -> Metadata {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", architecture);
    metadata.set(format!("{architecture}.attention.layer_norm_rms_epsilon"), 1e-6f32);
    counts.iter().for_each(|&(key, count)| metadata.set(format!("{architecture}.{key}"), count));
    numbers.iter().for_each(|&(key, number)| metadata.set(format!("{architecture}.{key}"), number));
    metadata
}

fn read(metadata: &Metadata, names: &[&str]) -> Result<(Spec, Grouped)> {
    let architecture = architecture_of(metadata, "m.gguf")?.gguf;
    let names = names.iter().copied().collect();
    let spec = spec(architecture, metadata, "m.gguf", &Contents { vocab: 1000, names: &names })?;
    let Attention::Grouped(grouped) = spec.attention.clone() else { panic!("{:?}", spec.attention) };
    Ok((spec, grouped))
}

fn llama() -> Metadata {
    let counts = [
        ("block_count", 32),
        ("context_length", 131_072),
        ("embedding_length", 4096),
        ("feed_forward_length", 14336),
        ("attention.head_count", 32),
        ("attention.head_count_kv", 8),
        ("vocab_size", 128_256),
        ("rope.dimension_count", 128),
    ];
    metadata("llama", &counts, &[("rope.freq_base", 500_000.0)])
}

#[test]
fn llama_3_1_8b() {
    let (spec, grouped) = read(&llama(), &["output.weight", "rope_freqs.weight"]).unwrap();
    assert_eq!((spec.layers, spec.ffn.dense.layers, spec.experts()), (32, 32, 0));
    assert_eq!(grouped.heads, ByLayer::all(Heads { query: 32, key_value: 8 }));
    assert_eq!((grouped.key_dim, grouped.value_dim, grouped.sliding), (128, 128, None));
    assert_eq!(spec.rope.divisors, Divisors::Always);
    assert_eq!((spec.rope.pairing, spec.rope.theta), (Pairing::Adjacent, 500_000.0));
    assert!(!spec.embedding.tied);
}

/// Without the number of key-value heads every head has its own; the older name of the factor counts too.
#[test]
fn what_older_files_leave_out_or_call_otherwise() {
    let mut metadata = llama();
    metadata.remove("llama.attention.head_count_kv");
    metadata.remove("llama.rope.freq_base");
    metadata.set("llama.rope.scale_linear", 4f32);
    metadata.set("llama.tensor_data_layout", "Meta AI original pth");
    let (spec, grouped) = read(&metadata, &[]).unwrap();
    assert_eq!((grouped.heads.of(31).key_value, spec.rope.theta), (32, 10000.0));
    assert_eq!((spec.rope.scaling, spec.embedding.tied), (Some(Scaling::Linear(4.0)), true));
    metadata.set("llama.rope.scaling.type", "none");
    assert_eq!(read(&metadata, &[]).unwrap().0.rope.scaling, None);
}

#[test]
fn mixtral_8x7b() {
    let mut metadata = llama();
    metadata.set("llama.expert_count", 8u32);
    metadata.set("llama.expert_used_count", 2u32);
    let (spec, _) = read(&metadata, &[]).unwrap();
    let moe = spec.ffn.moe.as_ref().unwrap();
    assert_eq!((moe.experts, &moe.per_token, &moe.width), (8, &ByLayer::all(2), &ByLayer::all(14336)));
    assert_eq!((spec.ffn.dense.layers, spec.ffn.dense.width.most(), moe.router.normalize), (0, 0, true));
    assert!(spec.moe(0).is_some() && moe.router.scoring == Scoring::Softmax);
}

fn gemma_2_27b() -> Metadata {
    let counts = [
        ("block_count", 46),
        ("embedding_length", 4608),
        ("feed_forward_length", 36864),
        ("attention.head_count", 32),
        ("attention.head_count_kv", 16),
        ("attention.key_length", 128),
        ("attention.value_length", 128),
        ("attention.sliding_window", 4096),
    ];
    metadata("gemma2", &counts, &[("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)])
}

#[test]
fn gemma_2_of_27_billion_scales_queries_by_hidden_over_heads() {
    let (spec, grouped) = read(&gemma_2_27b(), &[]).unwrap();
    assert!((grouped.score_scale - 144f64.powf(-0.5)).abs() < 1e-12);
    assert_eq!((grouped.score_cap, spec.embedding.logit_cap), (Some(50.0), Some(30.0)));
    assert!((spec.embedding.scale - 4608f64.sqrt()).abs() < 1e-12);
    assert_eq!((spec.ffn.activation, spec.norms.post), (Activation::GeluTanh, true));
    assert_eq!(
        (0..4).map(|layer| grouped.window(layer)).collect::<Vec<_>>(),
        [Some(4096), None, Some(4096), None]
    );
    assert_eq!(*grouped.sliding.unwrap().rope, spec.rope);
    // The others by the width of a head, and with the same caps where the file has none.
    let mut metadata = gemma_2_27b();
    metadata.set("gemma2.block_count", 42u32);
    metadata.remove("gemma2.attn_logit_softcapping");
    metadata.remove("gemma2.final_logit_softcapping");
    metadata.remove("gemma2.attention.sliding_window");
    let (spec, grouped) = read(&metadata, &[]).unwrap();
    assert!((grouped.score_scale - 128f64.powf(-0.5)).abs() < 1e-12);
    assert_eq!(
        (grouped.score_cap, spec.embedding.logit_cap, grouped.window(0)),
        (Some(50.0), Some(30.0), Some(4096))
    );
}

#[test]
fn gemma_3_has_two_rotations() {
    let counts = [
        ("block_count", 34),
        ("embedding_length", 2560),
        ("feed_forward_length", 10240),
        ("attention.head_count", 8),
        ("attention.head_count_kv", 4),
        ("attention.key_length", 256),
        ("attention.value_length", 256),
        ("attention.sliding_window", 1024),
    ];
    let mut metadata =
        metadata("gemma3", &counts, &[("rope.freq_base", 1_000_000.0), ("rope.scaling.factor", 8.0)]);
    metadata.set("gemma3.rope.scaling.type", "linear");
    let (spec, grouped) = read(&metadata, &[]).unwrap();
    assert_eq!((spec.rope.theta, spec.rope.scaling.clone()), (1_000_000.0, Some(Scaling::Linear(8.0))));
    let sliding = grouped.sliding.clone().unwrap();
    assert_eq!(*sliding.rope, Rotary { theta: 10000.0, scaling: None, ..spec.rope });
    assert_eq!(
        (0..34).filter(|&layer| grouped.window(layer).is_none()).collect::<Vec<_>>(),
        [5, 11, 17, 23, 29]
    );
    assert_eq!((grouped.score_cap, spec.embedding.logit_cap), (None, None));
}

#[test]
fn phi_3_takes_its_divisors_by_context() {
    let counts = [
        ("block_count", 32),
        ("context_length", 131_072),
        ("rope.scaling.original_context_length", 4096),
        ("embedding_length", 3072),
        ("feed_forward_length", 8192),
        ("attention.head_count", 32),
        ("attention.head_count_kv", 32),
        ("rope.dimension_count", 96),
        ("attention.sliding_window", 262_144),
    ];
    let metadata = metadata("phi3", &counts, &[("rope.scaling.attn_factor", 1.190_238)]);
    let names = ["rope_factors_long.weight", "rope_factors_short.weight", "blk.0.attn_qkv.weight"];
    let (spec, grouped) = read(&metadata, &names).unwrap();
    assert_eq!(spec.rope.divisors, Divisors::ByContext { original_context: 4096 });
    assert!((spec.rope.amplitude - 1.190_238).abs() < 1e-6);
    assert_eq!(grouped.window(31), Some(262_144));
}

#[test]
fn glm_4_5_air_counts_its_prediction_layer_among_its_blocks() {
    let counts = [
        ("block_count", 47),
        ("nextn_predict_layers", 1),
        ("embedding_length", 4096),
        ("feed_forward_length", 10944),
        ("attention.head_count", 96),
        ("attention.head_count_kv", 8),
        ("attention.key_length", 128),
        ("attention.value_length", 128),
        ("rope.dimension_count", 64),
        ("expert_count", 128),
        ("expert_used_count", 8),
        ("expert_group_count", 1),
        ("expert_group_used_count", 1),
        ("expert_feed_forward_length", 1408),
        ("expert_shared_count", 1),
        ("leading_dense_block_count", 1),
        ("expert_gating_func", 2),
    ];
    let mut metadata = metadata("glm4moe", &counts, &[("expert_weights_scale", 1.0)]);
    metadata.set("glm4moe.expert_weights_norm", true);
    let (spec, _) = read(&metadata, &["blk.46.nextn.eh_proj.weight"]).unwrap();
    let moe = spec.ffn.moe.as_ref().unwrap();
    assert_eq!((spec.layers, spec.mtp_layers, spec.ffn.dense.layers), (46, 1, 1));
    assert_eq!((&moe.shared.as_ref().unwrap().width, spec.rope.dim), (&ByLayer::all(1408), 64));
    assert_eq!((moe.router.scoring, moe.router.choice), (Scoring::Sigmoid, ExpertChoice::GroupsByTwoBest));
    assert_eq!(moe.router.bias, Presence::Always);
    // Files without the layer exist.
    assert_eq!(read(&metadata, &[]).unwrap().0.mtp_layers, 0);
}

/// Of transformers' `attention_factor`, and of the two scales whose ratio it is otherwise.
#[test]
fn yarn_has_the_amplitude_that_the_file_states() {
    let mut metadata = llama();
    metadata.set("llama.rope.scaling.type", "yarn");
    metadata.set("llama.rope.scaling.factor", 8f32);
    metadata.set("llama.rope.scaling.original_context_length", 8192u32);
    let amplitude = |metadata: &Metadata| {
        let rope = read(metadata, &[]).unwrap().0.rope;
        rope.amplitude * rope.yarn().unwrap().amplitude()
    };
    let own = 0.1 * 8f64.ln() + 1.0;
    assert!((amplitude(&metadata) - own).abs() < 1e-12);
    metadata.set("llama.rope.scaling.yarn_log_multiplier", 1f32);
    assert!((amplitude(&metadata) - 1.0).abs() < 1e-12);
    metadata.set("llama.rope.scaling.yarn_log_multiplier", 0.5f32);
    assert!((amplitude(&metadata) - own / (0.05 * 8f64.ln() + 1.0)).abs() < 1e-12);
    metadata.set("llama.rope.scaling.yarn_attn_factor", 1.25f32);
    assert!((amplitude(&metadata) - 1.25).abs() < 1e-12);
}

#[test]
fn a_key_that_nobody_reads_is_not_passed_over() {
    let mut metadata = llama();
    metadata.set("llama.residual_scale", 0.5f32);
    let error = read(&metadata, &[]).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("llama.residual_scale"), "{error}");
}

#[test]
fn olmoe_1b_7b_and_minimax_m2_norm_all_heads_together() {
    let counts = [
        ("block_count", 16),
        ("context_length", 4096),
        ("embedding_length", 2048),
        ("feed_forward_length", 1024),
        ("attention.head_count", 16),
        ("attention.head_count_kv", 16),
        ("expert_count", 64),
        ("expert_used_count", 8),
    ];
    let (spec, grouped) = read(&metadata("olmoe", &counts, &[]), &["output.weight"]).unwrap();
    let moe = spec.ffn.moe.unwrap();
    assert!(grouped.whole_norms && grouped.head_norms == Presence::Always);
    assert_eq!((moe.experts, moe.width, moe.router.normalize), (64, ByLayer::all(1024), false));
    assert_eq!((moe.router.scoring, moe.router.bias), (Scoring::Softmax, Presence::Never));

    let counts = [
        ("block_count", 62),
        ("context_length", 196_608),
        ("embedding_length", 3072),
        ("feed_forward_length", 1536),
        ("attention.head_count", 48),
        ("attention.head_count_kv", 8),
        ("attention.key_length", 128),
        ("attention.value_length", 128),
        ("rope.dimension_count", 64),
        ("expert_count", 256),
        ("expert_used_count", 8),
        ("expert_gating_func", 2),
        ("expert_feed_forward_length", 1536),
    ];
    let minimax = metadata("minimax-m2", &counts, &[("rope.freq_base", 5e6)]);
    let (spec, grouped) = read(&minimax, &["output.weight"]).unwrap();
    let moe = spec.ffn.moe.unwrap();
    assert!(grouped.whole_norms && moe.router.normalize);
    assert_eq!((spec.rope.dim, grouped.key_dim), (64, 128));
    assert_eq!((moe.router.scoring, moe.router.bias), (Scoring::Sigmoid, Presence::Always));
}

#[test]
fn gpt_oss_20b() {
    let counts = [
        ("block_count", 24),
        ("context_length", 131_072),
        ("embedding_length", 2880),
        ("feed_forward_length", 2880),
        ("attention.head_count", 64),
        ("attention.head_count_kv", 8),
        ("attention.key_length", 64),
        ("attention.value_length", 64),
        ("attention.sliding_window", 128),
        ("expert_count", 32),
        ("expert_used_count", 4),
        ("expert_feed_forward_length", 2880),
        ("rope.scaling.original_context_length", 4096),
    ];
    let numbers = [("rope.freq_base", 150_000.0), ("rope.scaling.factor", 32.0)];
    let mut metadata = metadata("gpt-oss", &counts, &numbers);
    metadata.set("gpt-oss.rope.scaling.type", "yarn");
    let (spec, grouped) = read(&metadata, &["output.weight"]).unwrap();
    let moe = spec.ffn.moe.as_ref().unwrap();
    assert_eq!((moe.router.scoring, moe.biases), (Scoring::SoftmaxOfChosen, Presence::Always));
    assert_eq!((spec.ffn.activation, grouped.sinks), (Activation::Clamped, Presence::Always));
    assert_eq!(
        (0..4).map(|layer| grouped.window(layer)).collect::<Vec<_>>(),
        [Some(128), None, Some(128), None]
    );
    // Windows have the same positions, and the range of YaRN does not end at whole numbers.
    assert_eq!(*grouped.sliding.unwrap().rope, spec.rope);
    assert_eq!(spec.rope.yarn().map(|yarn| (yarn.factor, yarn.truncate)), Some((32.0, false)));
    metadata.set("gpt-oss.expert_gating_func", 1u32);
    assert!(read(&metadata, &[]).unwrap_err().to_string().contains("expert_gating_func"));
}
