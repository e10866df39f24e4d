//! How much memory a forward pass needs: an upper bound from the hyper-parameters.

use super::{attention_mla, ffn, linear};
use crate::arch::ArchSpec;

/// The program, its threads' buffers and what is read of headers.
const BASE_BYTES: u64 = 96 << 20;

/// Most bytes that evaluating `tokens` tokens takes at a time; with `models` 2, of two that walk side by side.
pub fn peak_ram_bytes(spec: &ArchSpec, tokens: usize, models: usize) -> u64 {
    let group = attention_mla::GROUP_HEADS.min(spec.heads);
    let attention = spec.q_lora.map_or(spec.hidden, |rank| 2 * rank)
        + 2 * (spec.kv_lora + spec.rope_dim)
        + spec.heads * spec.v_dim
        + group * (2 * spec.nope_dim + spec.rope_dim + spec.v_dim);
    let chunk = 2 * ffn::CHUNK_COLS;
    let dense = if spec.dense_layers > 0 { spec.dense_intermediate + chunk } else { 0 };
    // At worst every token goes to one expert; its choices are kept beside.
    let choices = spec.experts + 4 * spec.experts_per_token + 16;
    let experts = 2 * spec.hidden + spec.expert_intermediate * (1 + spec.shared_experts) + chunk + choices;
    // The prediction module joins two states, and the head works on copies of the scored ones.
    let head = 3 * spec.hidden;
    let widest = attention.max(dense).max(experts).max(head);
    let per_token = (models * spec.hidden + spec.hidden + widest) as u64;
    BASE_BYTES + 2 * 4 * linear::TILE_WEIGHTS as u64 + 4 * per_token * tokens as u64
}
