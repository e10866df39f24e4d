//! Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).
//!
//! `kv_b_proj`, per head key rows and then value rows, is in one piece in checkpoints. llama.cpp and mlx-lm split it into the
//! keys of every head, transposed, and the values. GGUF files from before May 2025, older versions of mlx-lm and its model
//! of DeepSeek-V2 keep it whole.

use crate::family::place::{Ecosystem, Place};
use crate::family::tensors::{List, Names, Places};
use crate::family::{Latent, LayerRole, Presence, Role};

/// Sets that engines fuse, with expressions for their names. Source: vLLM `model_executor/models/deepseek_v2.py`
/// (`packed_modules_mapping`).
pub(super) const FUSED: &[(&[LayerRole], &str)] =
    &[(&[LayerRole::QA, LayerRole::KvA], r"self_attn\.(q_a_proj|kv_a_proj_with_mqa)")];

/// Adds the block.
pub(in crate::family) fn add(list: &mut List, latent: &Latent) {
    let (hidden, rope) = (list.spec.hidden, list.spec.rope.dim);
    let &Latent { heads, kv_lora, nope_dim, v_dim, .. } = latent;
    let query = heads * (nope_dim + rope);
    match latent.q_lora {
        Some(rank) => {
            let names = Names::new("self_attn.q_a_proj.weight", "attn_q_a.weight");
            list.always(LayerRole::QA, &[rank, hidden], names);
            let names = Names::new("self_attn.q_a_layernorm.weight", "attn_q_a_norm.weight");
            list.always(LayerRole::QANorm, &[rank], names);
            let names = Names::new("self_attn.q_b_proj.weight", "attn_q_b.weight");
            list.always(LayerRole::QB, &[query, rank], names);
        }
        None => {
            let names = Names::new("self_attn.q_proj.weight", "attn_q.weight");
            list.always(LayerRole::Q, &[query, hidden], names);
        }
    }
    let names = Names::new("self_attn.kv_a_proj_with_mqa.weight", "attn_kv_a_mqa.weight");
    list.always(LayerRole::KvA, &[kv_lora + rope, hidden], names);
    let names = Names::new("self_attn.kv_a_layernorm.weight", "attn_kv_a_norm.weight");
    list.always(LayerRole::KvANorm, &[kv_lora], names);
    key_value(list, latent);
    let names = Names::new("self_attn.o_proj.weight", "attn_output.weight");
    list.always(LayerRole::AttentionOutput, &[hidden, heads * v_dim], names);
}

/// `kv_b_proj`.
fn key_value(list: &mut List, latent: &Latent) {
    let &Latent { heads, kv_lora, nope_dim, v_dim, .. } = latent;
    let mut places = list
        .whole(Role::Layer(0, LayerRole::KvB), Names::new("self_attn.kv_b_proj.weight", "attn_kv_b.weight"));
    let split = |ecosystem, [keys, values]: [&str; 2]| Place::SplitTransposed {
        keys: list.name(ecosystem, keys),
        values: list.name(ecosystem, values),
        heads,
        key_rows: nope_dim,
        value_rows: v_dim,
    };
    let Places { gguf, mlx, .. } = &mut places;
    gguf.insert(0, split(Ecosystem::Gguf, ["attn_k_b.weight", "attn_v_b.weight"]));
    let split = split(Ecosystem::Mlx, ["self_attn.embed_q.weight", "self_attn.unembed_out.weight"]);
    let first = if list.family.naming.mlx_splits_key_value { 0 } else { mlx.len() };
    mlx.insert(first, split);
    let shape = [heads * (nope_dim + v_dim), kv_lora];
    list.in_layer(LayerRole::KvB, &shape, Presence::Always, places);
}
