//! What a tensor is for, from its name in any ecosystem.

/// What a tensor is for, coarsely: as tables show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Vectors of tokens.
    Embedding,
    /// Projections of attention, and their biases.
    Attention,
    /// Feed-forward matrices that every token uses, in layers without experts.
    FeedForward,
    /// Experts that a router chooses.
    RoutedExperts,
    /// Experts that every token uses.
    SharedExperts,
    /// What chooses experts.
    Router,
    /// Norms.
    Norms,
    /// From states to tokens.
    Head,
    /// Anything else.
    Other,
}

impl Kind {
    /// All of them, in the order in which a token meets them.
    pub(crate) const ALL: [Self; 9] = [
        Self::Embedding,
        Self::Attention,
        Self::FeedForward,
        Self::RoutedExperts,
        Self::SharedExperts,
        Self::Router,
        Self::Norms,
        Self::Head,
        Self::Other,
    ];

    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Embedding => "token embedding",
            Self::Attention => "attention",
            Self::FeedForward => "feed-forward",
            Self::RoutedExperts => "routed experts",
            Self::SharedExperts => "shared experts",
            Self::Router => "router",
            Self::Norms => "norms",
            Self::Head => "output head",
            Self::Other => "other",
        }
    }

    /// Of the tensor called `name`.
    pub(crate) fn of(name: &str) -> Self {
        let words: Vec<&str> = name.split('.').collect();
        let is_word = |wanted: &str| words.contains(&wanted);
        let has = |part: &str| words.iter().any(|word| word.contains(part));
        if has("norm") {
            return Self::Norms;
        }
        // GGUF's names of routers and shared experts begin like those of experts.
        let is_gate = words.windows(2).any(|pair| matches!(pair, ["mlp" | "block_sparse_moe", "gate"]));
        if is_gate || has("ffn_gate_inp") || has("exp_probs") || has("router") || has("shared_expert_gate") {
            return Self::Router;
        }
        if has("shexp") || has("shared_expert") {
            return Self::SharedExperts;
        }
        if has("_exps") || is_word("experts") || has("switch_mlp") {
            return Self::RoutedExperts;
        }
        if has("embed_tokens") || has("token_embd") {
            return Self::Embedding;
        }
        if has("attn") || has("attention") {
            return Self::Attention;
        }
        if is_word("lm_head") || words.first() == Some(&"output") {
            return Self::Head;
        }
        if is_word("mlp") || has("ffn_") {
            return Self::FeedForward;
        }
        Self::Other
    }
}

/// Number of the decoder layer that the tensor called `name` belongs to.
pub(crate) fn layer_of(name: &str) -> Option<usize> {
    let words: Vec<&str> = name.split('.').collect();
    let after = words.windows(2).find(|pair| matches!(pair[0], "blk" | "layers"))?;
    after[1].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{Config, Ecosystem, FAMILIES, LayerRole, Role};

    /// The same tensor is of the same kind wherever it is kept, in every family, and in its layer.
    #[test]
    fn ecosystems_agree() {
        let mut seen = 0;
        for family in FAMILIES.iter().filter(|family| family.checkpoint.is_some()) {
            let config = serde_json::json!({
                "model_type": family.model_type, "hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 96,
                "num_nextn_predict_layers": 1, "first_k_dense_replace": 1, "intermediate_size": 80,
                "moe_intermediate_size": 48, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
                "num_attention_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 40, "qk_nope_head_dim": 12,
                "qk_rope_head_dim": 8, "v_head_dim": 20, "num_key_value_heads": 2, "num_experts": 4,
                "num_local_experts": 4, "shared_expert_intermediate_size": 56, "max_position_embeddings": 64,
                "routed_scaling_factor": 1.5, "rms_norm_eps": 1e-6, "rope_scaling": {"rope_type": "default"},
            });
            let spec = family.spec(&Config::new(&config)).unwrap();
            for tensor in family.tensors(&spec) {
                let expected = match tensor.role {
                    Role::TokenEmbedding => Kind::Embedding,
                    Role::Output => Kind::Head,
                    Role::Layer(_, LayerRole::Expert(..)) => Kind::RoutedExperts,
                    Role::Layer(_, LayerRole::Shared(_)) => Kind::SharedExperts,
                    Role::Layer(_, LayerRole::Dense(_)) => Kind::FeedForward,
                    Role::Layer(_, LayerRole::Router) => Kind::Router,
                    role if role.is_norm() => Kind::Norms,
                    _ => continue,
                };
                let layer = match tensor.role {
                    Role::Layer(layer, _) => Some(layer),
                    _ => None,
                };
                for ecosystem in [Ecosystem::Hf, Ecosystem::Gguf, Ecosystem::Mlx] {
                    for name in tensor.places(ecosystem).iter().flat_map(|place| place.names()) {
                        assert_eq!(Kind::of(name), expected, "{} {name}", family.model_type);
                        assert_eq!(layer_of(name), layer, "{} {name}", family.model_type);
                        seen += 1;
                    }
                }
            }
        }
        assert!(seen > 1000, "{seen}");
    }

    #[test]
    fn names_of_other_kinds() {
        for (name, kind) in [
            ("model.layers.0.self_attn.q_proj.weight", Kind::Attention),
            ("model.layers.0.self_attn.q_proj.bias", Kind::Attention),
            ("blk.3.attn_kv_b.weight", Kind::Attention),
            ("model.layers.3.mlp.gate.e_score_correction_bias", Kind::Router),
            ("blk.3.exp_probs_b.bias", Kind::Router),
            ("model.layers.3.mlp.gate_proj.weight", Kind::FeedForward),
            ("blk.1.nextn.eh_proj.weight", Kind::Other),
            ("rope_freqs.weight", Kind::Other),
            ("", Kind::Other),
        ] {
            assert_eq!(Kind::of(name), kind, "{name}");
        }
        assert_eq!(layer_of("blk.x.y"), None);
        assert_eq!(layer_of("layers"), None);
    }
}
