//! Grouped-query attention (arXiv 2305.13245).
//!
//! GGUF files may hold queries, keys and values, and their biases, one after the other in one tensor. Where llama.cpp turns
//! other columns of a head together than the checkpoint, the rows of its queries and keys are interleaved.

use crate::family::place::{Ecosystem, Place};
use crate::family::tensors::{List, Names};
use crate::family::{Grouped, Heads, LayerRole, Pairing, Presence, Role};

/// Sets that engines fuse, with expressions for their names. Source: vLLM `model_executor/models/llama.py`
/// (`packed_modules_mapping`).
pub(super) const FUSED: &[(&[LayerRole], &str)] =
    &[(&[LayerRole::Q, LayerRole::K, LayerRole::V], r"self_attn\.(q|k|v)_proj")];

/// A projection: its role and names, and those of its bias.
struct Projection {
    role: LayerRole,
    names: Names,
    bias: LayerRole,
    bias_names: Names,
}

/// In the order in which they follow each other where they are fused.
const PROJECTIONS: [Projection; 3] = [
    Projection {
        role: LayerRole::Q,
        names: Names::new("self_attn.q_proj.weight", "attn_q.weight"),
        bias: LayerRole::QBias,
        bias_names: Names::new("self_attn.q_proj.bias", "attn_q.bias"),
    },
    Projection {
        role: LayerRole::K,
        names: Names::new("self_attn.k_proj.weight", "attn_k.weight"),
        bias: LayerRole::KBias,
        bias_names: Names::new("self_attn.k_proj.bias", "attn_k.bias"),
    },
    Projection {
        role: LayerRole::V,
        names: Names::new("self_attn.v_proj.weight", "attn_v.weight"),
        bias: LayerRole::VBias,
        bias_names: Names::new("self_attn.v_proj.bias", "attn_v.bias"),
    },
];

/// Adds the block.
pub(in crate::family) fn add(list: &mut List, grouped: &Grouped, layer: usize) {
    let hidden = list.spec.hidden;
    let Heads { query, key_value } = *grouped.heads.of(layer);
    let rows = [query * grouped.key_dim, key_value * grouped.key_dim, key_value * grouped.value_dim];
    let all = rows.iter().sum();
    let sinks = Names::new("self_attn.sinks", "attn_sinks.weight");
    list.whole_in_layer(LayerRole::Sinks, &[query], grouped.sinks, sinks);
    let mut first = 0;
    for (Projection { role, names, bias, bias_names }, rows) in PROJECTIONS.into_iter().zip(rows) {
        let fused =
            |list: &List, name| Place::Rows { name: list.name(Ecosystem::Gguf, name), first, of: all };
        let mut places = list.whole(Role::Layer(layer, role), names);
        let (pairing, stored) = (list.spec.rope.pairing, list.family.gguf.pairing);
        if role != LayerRole::V && pairing == Pairing::Halves && stored == Pairing::Adjacent {
            let heads = if role == LayerRole::Q { query } else { key_value };
            let name = list.name(Ecosystem::Gguf, names.gguf);
            places.gguf = vec![Place::HeadsInterleaved { name, heads }];
        }
        places.gguf.push(fused(list, "attn_qkv.weight"));
        list.in_layer(role, &[rows, hidden], Presence::Always, places);
        let mut places = list.whole(Role::Layer(layer, bias), bias_names);
        places.gguf.push(fused(list, "attn_qkv.bias"));
        list.in_layer(bias, &[rows], grouped.biases, places);
        first += rows;
    }
    let names = Names::new("self_attn.o_proj.weight", "attn_output.weight");
    list.always(LayerRole::AttentionOutput, &[hidden, query * grouped.value_dim], names);
    let names = Names::new("self_attn.o_proj.bias", "attn_output.bias");
    list.whole_in_layer(LayerRole::AttentionOutputBias, &[hidden], grouped.output_bias, names);
    let norm = |heads: usize| [if grouped.whole_norms { heads * grouped.key_dim } else { grouped.key_dim }];
    let names = Names::new("self_attn.q_norm.weight", "attn_q_norm.weight");
    list.whole_in_layer(LayerRole::QNorm, &norm(query), grouped.head_norms, names);
    let names = Names::new("self_attn.k_norm.weight", "attn_k_norm.weight");
    list.whole_in_layer(LayerRole::KNorm, &norm(key_value), grouped.head_norms, names);
}
