//! How much memory, or how much of it and of a disk, a forward pass needs: upper bounds from the hyper-parameters.

use super::attention_gqa;
use super::attention_mla::{GROUP_HEADS, QUERY_BLOCK};
use super::panel::{TILE_WEIGHTS, tile_rows, tiles_per_panel};
use super::states::{BLOCK_ROWS, Storage};
use crate::family::{Attention, Heads, Spec};

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
pub fn peak_ram_bytes(spec: &Spec, load: &Workload, storage: &Storage) -> u64 {
    let Workload { tokens, models, .. } = *load;
    let threads = rayon::current_num_threads();
    // Choices of every token, and at worst all of them go to one expert.
    let choices =
        spec.ffn.moe.as_ref().map_or(0, |moe| tokens * (models * (4 * moe.per_token.most() + 16) + 16));
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
pub fn scratch_bytes(spec: &Spec, load: &Workload) -> u64 {
    4 * states(spec, load) as u64
}

/// Values of all states that exist at a time.
fn states(spec: &Spec, load: &Workload) -> usize {
    let Workload { tokens, scored, models, predictions, .. } = *load;
    let hidden = spec.hidden;
    let attention = attention(spec);
    let [dense, expert, shared] = widths(spec);
    let dense = if spec.ffn.dense.layers > 0 { dense } else { 0 };
    let experts = spec.experts() + expert.max(shared + 1);
    // What a block says, and its norm, where that is not added as it is.
    let normed = if spec.norms.post { 2 * hidden } else { 0 };
    // The states of every model, and the input of a block.
    let layer = hidden + normed + attention.states.max(dense).max(experts);
    // The prediction module joins two states, and then has states of its own.
    let prediction = predictions * hidden + (3 * hidden).max(layer);
    let walk = tokens * (models * hidden + layer.max(prediction));
    // The scored states, normed.
    let head = tokens * (models + predictions) * hidden + scored * models * hidden;
    walk.max(head)
}

/// Rows and columns of the matrices that are multiplied tile by tile.
fn matrices(spec: &Spec) -> Vec<(usize, usize)> {
    let hidden = spec.hidden;
    let ffn = widths(spec)
        .into_iter()
        .filter(|&width| width > 0)
        .flat_map(|width| [(width, hidden), (hidden, width)]);
    let mut matrices: Vec<(usize, usize)> = ffn.collect();
    matrices.extend(attention(spec).matrices);
    matrices.extend([(hidden, 2 * hidden), (spec.embedding.vocab, hidden)]);
    matrices
}

/// Largest widths of dense blocks, of experts, and of shared experts together.
fn widths(spec: &Spec) -> [usize; 3] {
    let moe = spec.ffn.moe.as_ref();
    let shared = moe.and_then(|moe| moe.shared.as_ref());
    [
        spec.ffn.dense.width.most(),
        moe.map_or(0, |moe| moe.width.most()),
        shared.map_or(0, |shared| shared.width.most()),
    ]
}

/// What attention needs.
struct Needs {
    /// Values per token of states beside input and output.
    states: usize,
    /// Rows and columns of the matrices that are multiplied tile by tile.
    matrices: Vec<(usize, usize)>,
    /// Weights of the heads of a pass.
    panel: usize,
    /// Values per token of a window that is worked on: queries, keys and values of a pass.
    expanded: usize,
    /// Values per token that a pass reads.
    read: usize,
    /// Values per token that a pass writes.
    written: usize,
}

fn attention(spec: &Spec) -> Needs {
    let hidden = spec.hidden;
    match &spec.attention {
        Attention::Latent(latent) => {
            let heads = GROUP_HEADS.min(latent.heads);
            let (rank, low) = (latent.q_lora.unwrap_or(0), latent.kv_lora + spec.rope.dim);
            let (query, key_value) = (latent.nope_dim + spec.rope.dim, latent.nope_dim + latent.v_dim);
            let out = latent.heads * latent.v_dim;
            let query_cols = latent.q_lora.unwrap_or(hidden);
            let factored = latent.q_lora.map(|rank| (rank, hidden));
            Needs {
                states: 2 * rank + 2 * low + out,
                matrices: factored.into_iter().chain([(low, hidden), (hidden, out)]).collect(),
                panel: heads * (query * query_cols + key_value * latent.kv_lora),
                expanded: heads * (query + key_value),
                read: query_cols + low,
                written: heads * latent.v_dim,
            }
        }
        Attention::Grouped(grouped) => {
            // The most of any layer.
            let most = |of: &dyn Fn(&Heads) -> usize| grouped.heads.iter().map(of).max().unwrap_or(0);
            let expanded = |heads: &Heads| {
                let Heads { query, key_value } = attention_gqa::pass_heads(heads);
                (query + key_value) * grouped.key_dim + key_value * grouped.value_dim
            };
            let out = most(&|heads| heads.query) * grouped.value_dim;
            Needs {
                states: out,
                // Norms over all heads take products with all of a matrix.
                matrices: [(hidden, out)]
                    .into_iter()
                    .chain(
                        grouped.whole_norms.then(|| (most(&|heads| heads.query) * grouped.key_dim, hidden)),
                    )
                    .collect(),
                panel: most(&expanded) * hidden,
                expanded: most(&expanded),
                read: hidden,
                written: most(&|heads| attention_gqa::pass_heads(heads).query) * grouped.value_dim,
            }
        }
    }
}

/// Weights of the largest panel.
fn panel(spec: &Spec, models: usize, storage: &Storage) -> usize {
    // Gate and up projection, and the heads of two models, come in pairs.
    let tiles = tiles_per_panel(storage).max(2).max(models);
    let tile = |(rows, cols): (usize, usize)| rows.min(tile_rows(cols, 1)) * cols;
    let tiled = matrices(spec).into_iter().map(tile).max().unwrap_or(TILE_WEIGHTS);
    attention(spec).panel.max(tiles * tiled)
}

/// Values of what one thread needs beside the states while it works on a block of them.
fn block(spec: &Spec, load: &Workload, storage: &Storage) -> usize {
    let Workload { context, tokens, models, .. } = *load;
    let window = context.min(tokens);
    let needs = attention(spec);
    let mut attention = window * (needs.expanded + QUERY_BLOCK);
    let tiles = tiles_per_panel(storage);
    // Two products of a tile each; a panel of them where they are not yet where they go.
    let product = |(rows, cols): (usize, usize)| rows.min(tiles.max(2 * models) * tile_rows(cols, 1));
    let mut tiled = matrices(spec).into_iter().map(product).max().unwrap_or(0);
    if let Storage::Scratch(_) = storage {
        // A copy of what is read, and of what will be written.
        attention += window * (needs.read + needs.written);
        let widest = matrices(spec).into_iter().map(|(_, cols)| cols).max().unwrap_or(0);
        tiled = 2 * tiled + widest;
    }
    attention.max(BLOCK_ROWS.min(tokens) * tiled)
}

/// Tensors of a checkpoint, scales not counted.
fn tensors(spec: &Spec) -> u64 {
    let of_layer = |layer| 24 + 3 * spec.moe(layer).map_or(0, |moe| moe.experts);
    (0..spec.layers + spec.mtp_layers).map(of_layer).sum::<usize>() as u64
}
