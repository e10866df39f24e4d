//! How much memory, or how much of it and of a disk, a forward pass needs: upper bounds from the hyper-parameters.

use super::attention_mla::{GROUP_HEADS, QUERY_BLOCK};
use super::panel::{TILE_WEIGHTS, tile_rows, tiles_per_panel};
use super::states::{BLOCK_ROWS, Storage};
use crate::arch::ArchSpec;

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

/// Most bytes of memory that evaluating `load` takes with its states in `storage`.
pub fn peak_ram_bytes(spec: &ArchSpec, load: &Workload, storage: &Storage) -> u64 {
    let Workload { tokens, models, .. } = *load;
    let threads = rayon::current_num_threads();
    // Choices of every token, and at worst all of them go to one expert.
    let choices =
        if spec.experts > 0 { tokens * (models * (4 * spec.experts_per_token + 16) + 16) } else { 0 };
    let states = match storage {
        Storage::Memory => states(spec, load),
        Storage::Scratch(_) => 0,
    };
    let values = states + choices + 2 * panel(spec, models, storage) + threads * block(spec, load, storage);
    BASE_BYTES
        + models as u64 * (TENSOR_BYTES * tensors(spec) + TOKEN_BYTES * tokens as u64)
        + threads as u64 * THREAD_BYTES
        + 4 * values as u64
}

/// Most bytes of scratch files that evaluating `load` takes.
pub fn scratch_bytes(spec: &ArchSpec, load: &Workload) -> u64 {
    4 * states(spec, load) as u64
}

/// Values of all states that exist at a time.
fn states(spec: &ArchSpec, load: &Workload) -> usize {
    let Workload { tokens, scored, models, predictions, .. } = *load;
    let hidden = spec.hidden;
    let attention =
        2 * spec.q_lora.unwrap_or(0) + 2 * (spec.kv_lora + spec.rope_dim) + spec.heads * spec.v_dim;
    let dense = if spec.dense_layers > 0 { spec.dense_intermediate } else { 0 };
    let experts = spec.experts + spec.expert_intermediate * spec.shared_experts.max(1);
    // The states of every model, and the input of a block.
    let layer = hidden + attention.max(dense).max(experts);
    // The prediction module joins two states, and then has states of its own.
    let prediction = predictions * hidden + (3 * hidden).max(layer);
    let walk = tokens * (models * hidden + layer.max(prediction));
    // The scored states, normed.
    let head = tokens * (models + predictions) * hidden + scored * models * hidden;
    walk.max(head)
}

/// Rows and columns of the matrices that are multiplied tile by tile.
fn matrices(spec: &ArchSpec) -> Vec<(usize, usize)> {
    let hidden = spec.hidden;
    let shared = spec.shared_experts * spec.expert_intermediate;
    let blocks = [spec.dense_intermediate, spec.expert_intermediate, shared];
    let ffn =
        blocks.into_iter().filter(|&width| width > 0).flat_map(|width| [(width, hidden), (hidden, width)]);
    let mut matrices: Vec<(usize, usize)> = ffn.collect();
    matrices.extend(spec.q_lora.map(|rank| (rank, hidden)));
    matrices.extend([
        (spec.kv_lora + spec.rope_dim, hidden),
        (hidden, spec.heads * spec.v_dim),
        (hidden, 2 * hidden),
        (spec.vocab, hidden),
    ]);
    matrices
}

/// Weights of the largest panel.
fn panel(spec: &ArchSpec, models: usize, storage: &Storage) -> usize {
    let heads = GROUP_HEADS.min(spec.heads);
    let attention = heads * (spec.nope_dim + spec.rope_dim) * spec.q_lora.unwrap_or(spec.hidden)
        + heads * (spec.nope_dim + spec.v_dim) * spec.kv_lora;
    // Gate and up projection, and the heads of two models, come in pairs.
    let tiles = tiles_per_panel(storage).max(2).max(models);
    let tile = |(rows, cols): (usize, usize)| rows.min(tile_rows(cols, 1)) * cols;
    let tiled = matrices(spec).into_iter().map(tile).max().unwrap_or(TILE_WEIGHTS);
    attention.max(tiles * tiled)
}

/// Values of what one thread needs beside the states while it works on a block of them.
fn block(spec: &ArchSpec, load: &Workload, storage: &Storage) -> usize {
    let Workload { context, tokens, models, .. } = *load;
    let window = context.min(tokens);
    let heads = GROUP_HEADS.min(spec.heads);
    let key_value = spec.nope_dim + spec.v_dim;
    let mut attention = window * heads * (spec.nope_dim + spec.rope_dim + key_value) + QUERY_BLOCK * window;
    let tiles = tiles_per_panel(storage);
    // Two products of a tile each; a panel of them where they are not yet where they go.
    let product = |(rows, cols): (usize, usize)| rows.min(tiles.max(2 * models) * tile_rows(cols, 1));
    let mut tiled = matrices(spec).into_iter().map(product).max().unwrap_or(0);
    if let Storage::Scratch(_) = storage {
        // A copy of what is read, and of what will be written.
        let latents = spec.q_lora.unwrap_or(spec.hidden) + spec.kv_lora + spec.rope_dim;
        attention += window * (latents + heads * spec.v_dim);
        let widest = matrices(spec).into_iter().map(|(_, cols)| cols).max().unwrap_or(0);
        tiled += widest + tiled;
    }
    attention.max(BLOCK_ROWS.min(tokens) * tiled)
}

/// Tensors of a checkpoint, scales not counted.
fn tensors(spec: &ArchSpec) -> u64 {
    let of_layer = |layer| 16 + if spec.is_moe(layer) { 3 * spec.experts } else { 0 };
    (0..spec.layers + spec.mtp_layers).map(of_layer).sum::<usize>() as u64
}
