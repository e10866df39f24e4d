//! How much memory a forward pass needs: an upper bound from the hyper-parameters.

use super::{attention_gqa, attention_mla, ffn, linear};
use crate::arch::{ArchSpec, Attention, Latent};

/// The program, a tokenizer, the allocator.
const BASE_BYTES: u64 = 96 << 20;
/// What is known of a tensor while a model is open: name, place, shape, its scale's.
const TENSOR_BYTES: u64 = 1024;
/// Working memory of one thread beside what is counted: packed panels of a product, its stack.
const THREAD_BYTES: u64 = 4 << 20;
/// Tokens, positions, losses, scores of one token, for each model.
const TOKEN_BYTES: u64 = 256;

/// What is evaluated at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// Tokens of all windows.
    pub tokens: usize,
    /// Tokens of a window.
    pub context: usize,
    /// Tokens whose prediction is scored.
    pub scored: usize,
    /// 2 when two models walk side by side.
    pub models: usize,
    /// How many of them have their prediction module evaluated too.
    pub predictions: usize,
}

/// Most bytes that evaluating `load` takes.
pub fn peak_ram_bytes(spec: &ArchSpec, load: &Workload) -> u64 {
    let Workload { tokens, context, scored, models, predictions } = *load;
    let hidden = spec.hidden;
    let (attention, out_width) = match &spec.attention {
        Attention::Latent(latent) => (latent_floats(spec, latent), spec.heads * latent.v_dim),
        Attention::Grouped(grouped) => {
            (attention_gqa::floats_per_token(spec.heads, grouped), spec.heads * grouped.head_dim)
        }
    };
    let chunk = 2 * ffn::CHUNK_COLS;
    let dense = if spec.dense_layers > 0 { spec.dense_intermediate + chunk } else { 0 };
    // At worst every token goes to one expert; its choices are kept beside.
    let choices = models * (spec.experts + 4 * spec.experts_per_token + 16);
    let experts = 2 * hidden + spec.expert_intermediate + spec.shared_intermediate + chunk + choices;
    // What a block says is normed before it is added.
    let normed = if spec.post_norms { 2 * hidden } else { 0 };
    // The states of every model, and the input of a block.
    let layer = normed + hidden + attention.max(dense).max(experts);
    // The prediction module joins two states, and then has states of its own.
    let prediction = predictions * hidden + (3 * hidden).max(layer);
    let walk = tokens * (models * hidden + layer.max(prediction));
    // Copies of the scored states, and the logits of one piece of the vocabulary.
    let piece = linear::tile_rows(hidden, 1).min(spec.vocab);
    let head = tokens * models * hidden + scored * models * (2 * hidden + piece);
    // Two tiles of every model, the widest perhaps larger than others; what is read of one is not decoded yet.
    let cols = spec.dense_intermediate.max(out_width).max(hidden);
    let tile = linear::TILE_WEIGHTS.max(linear::tile_rows(cols, 1) * cols);
    let threads = rayon::current_num_threads();
    let working =
        2 * models * tile + threads * (linear::DECODE_ROWS * cols + attention_mla::QUERY_BLOCK * context);
    BASE_BYTES
        + models as u64 * (TENSOR_BYTES * tensors(spec) + TOKEN_BYTES * tokens as u64)
        + threads as u64 * THREAD_BYTES
        + 4 * (walk.max(head) + working) as u64
}

/// Floats per token of latent attention.
fn latent_floats(spec: &ArchSpec, latent: &Latent) -> usize {
    let rope_dim = spec.rope.dim;
    let group = attention_mla::GROUP_HEADS.min(spec.heads);
    latent.q_lora.map_or(spec.hidden, |rank| 2 * rank)
        + 2 * (latent.kv_lora + rope_dim)
        + spec.heads * latent.v_dim
        + group * (2 * latent.nope_dim + rope_dim + latent.v_dim)
}

/// Tensors of a checkpoint, scales not counted.
fn tensors(spec: &ArchSpec) -> u64 {
    let of_layer = |layer| 24 + if spec.is_moe(layer) { 3 * spec.experts } else { 0 };
    (0..spec.layers + spec.mtp_layers).map(of_layer).sum::<usize>() as u64
}
