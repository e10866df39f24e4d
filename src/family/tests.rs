//! What holds for every family.

use std::collections::HashSet;

use super::*;

/// A small model of each family whose checkpoints are read.
fn configs() -> Vec<Value> {
    let of = |model_type: &str| {
        serde_json::json!({
            "model_type": model_type, "hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 96,
            "num_nextn_predict_layers": 1, "first_k_dense_replace": 1, "intermediate_size": 80,
            "moe_intermediate_size": 48, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
            "num_attention_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 40, "qk_nope_head_dim": 12,
            "qk_rope_head_dim": 8, "v_head_dim": 20, "num_key_value_heads": 2, "num_experts": 4,
            "num_local_experts": 4, "shared_expert_intermediate_size": 56,
            "max_position_embeddings": 64, "routed_scaling_factor": 1.5, "rms_norm_eps": 1e-6, "rope_scaling": {"rope_type": "default"},
        })
    };
    let read = FAMILIES.iter().filter(|family| family.checkpoint.is_some());
    read.map(|family| of(family.model_type)).collect()
}

#[test]
fn no_two_families_have_one_name() {
    let names: HashSet<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
    assert_eq!(names.len(), FAMILIES.len());
    assert!(architectures().iter().all(|name| of_architecture(name).is_some()));
    let error = find(&serde_json::json!({"model_type": "other"})).err().unwrap().to_string();
    assert!(error.contains("\"other\"") && error.contains("deepseek_v3, deepseek_v2, kimi_k2"), "{error}");
}

/// What a container holds is what the model has: no element is lost or there twice, and a reader that looks in the places
/// finds the tensors that a writer makes.
#[test]
fn every_container_holds_every_weight_once() {
    for config in configs() {
        let family = find(&config).unwrap();
        let spec = family.spec(&Config::new(&config)).unwrap();
        let tensors = family.tensors(&spec);
        for ecosystem in [Ecosystem::Hf, Ecosystem::Gguf, Ecosystem::Mlx] {
            let kept: Vec<&Tensor> =
                tensors.iter().filter(|tensor| !tensor.places(ecosystem).is_empty()).collect();
            let outputs = outputs(kept.iter().copied(), ecosystem);
            let names: HashSet<&str> = outputs.iter().map(|output| output.name.as_str()).collect();
            assert_eq!(names.len(), outputs.len(), "{}", family.model_type);
            let held: usize = outputs.iter().map(|output| output.shape.iter().product::<usize>()).sum();
            let all: usize = kept.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
            assert_eq!(held, all, "{} {ecosystem:?}", family.model_type);
            for tensor in kept {
                let place = &tensor.places(ecosystem)[0];
                for (name, shape) in place.holders(&tensor.shape) {
                    let output = outputs.iter().find(|output| output.name == name).unwrap();
                    assert_eq!(output.shape, shape, "{name}");
                    assert!(output.parts.iter().any(|part| part.role == tensor.role), "{name}");
                }
            }
        }
    }
}

#[test]
fn engines_fuse_what_the_blocks_say() {
    let config = &configs()[0];
    let family = find(config).unwrap();
    let spec = family.spec(&Config::new(config)).unwrap();
    for (role, expected) in [
        (LayerRole::KvA, Some((LayerRole::QA, r"self_attn\.(q_a_proj|kv_a_proj_with_mqa)"))),
        (LayerRole::QB, None),
        (LayerRole::Dense(Ffn::Up), Some((LayerRole::Dense(Ffn::Gate), r"mlp\.(gate|up)_proj"))),
        (LayerRole::Dense(Ffn::Down), None),
        (
            LayerRole::Shared(Ffn::Up),
            Some((LayerRole::Shared(Ffn::Gate), r"mlp\.shared_experts\.(gate|up)_proj")),
        ),
        (
            LayerRole::Expert(3, Ffn::Down),
            Some((LayerRole::Expert(0, Ffn::Gate), r"mlp\.experts\.\d+\.(gate|up|down)_proj")),
        ),
    ] {
        let found = family.fused(&spec, role).map(|fused| (fused.first, fused.names));
        assert_eq!(found, expected.map(|(first, names)| (first, names.to_owned())), "{role:?}");
    }
}
