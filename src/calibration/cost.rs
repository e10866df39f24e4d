//! What a calibration costs, from headers alone: memory, scratch files, and floating-point operations.
//!
//! With `t` the tokens that a matrix `[N, K]` sees (of experts the mean), a multiplication and an addition counted as two:
//!
//! ```text
//! forward    2 t N K for each matrix, t context (key + value dimensions) for each layer's attention; for both models
//! sums       of each input: t K (K + 256) for the outer products, 2 t K^2 for those with what the original has;
//!            2 t N K of what is added to the hidden states, for what is missing there
//! rounding   K^3 / 3 to factor the sums of each input; for each matrix N K^2 of errors that later columns take over, and in
//!            sequential mode 4 N K^2 to correct it
//! ```
//!
//! The search for scales is not counted: time has to be measured.

use std::collections::{BTreeMap, BTreeSet};

use super::inputs::Kind;
use super::recorder::has_query_latent;
use super::targets::Targets;
use super::{LOOKUP_WINDOWS, Mode};
use crate::checkpoint::WeightStore;
use crate::error::Result;
use crate::evaluate;
use crate::family::{Attention, Ffn, LayerRole, Role, Spec};
use crate::model::{Storage, Workload, peak_ram_bytes, scratch_bytes};

/// Columns of a tile of sums: those on the diagonal are done whole.
const TILE: f64 = 256.0;
/// Bytes of a value.
const VALUE: u64 = size_of::<f32>() as u64;

/// What a calibration costs.
#[derive(Debug, Clone, PartialEq)]
pub struct Cost {
    /// Matrices that are calibrated.
    pub matrices: usize,
    /// Tokens of all windows.
    pub tokens: usize,
    /// Floating-point operations of forward passes.
    pub forward_flops: f64,
    /// Of sums of outer products.
    pub sums_flops: f64,
    /// Of factors, corrections and feedback.
    pub rounding_flops: f64,
    /// Most bytes of memory.
    pub ram_bytes: u64,
    /// Most bytes of scratch files.
    pub scratch_bytes: u64,
    /// Bytes of what is kept behind a layer, twice while it is replaced.
    pub kept_bytes: u64,
    /// Where states are.
    pub storage: Storage,
}

impl Cost {
    /// All operations.
    pub fn flops(&self) -> f64 {
        self.forward_flops + self.sums_flops + self.rounding_flops
    }
}

/// Of calibrating `targets` on `tokens` tokens in windows of `context`; states are in memory if that does not take more than
/// `limit_bytes`, or what is available.
pub(super) fn cost(
    store: &dyn WeightStore,
    targets: &Targets,
    (tokens, context): (usize, usize),
    mode: Mode,
    limit_bytes: Option<u64>,
) -> Result<Cost> {
    let spec = store.spec();
    let is_sequential = mode == Mode::Sequential;
    let models = if is_sequential { 2 } else { 1 };
    let t = tokens as f64;
    let of_expert =
        spec.ffn.moe.as_ref().map_or(0.0, |moe| t * moe.per_token.most() as f64 / moe.experts as f64);
    let seen = |role: Role| match role {
        Role::Layer(_, LayerRole::Expert(..)) => of_expert,
        _ => t,
    };

    let mut forward_flops = spec.layers as f64 * t * context as f64 * attention_dims(spec);
    let mut one_window_flops = 0.0;
    let has_prediction = targets.of_layer(spec.layers).next().is_some();
    for role in crate::model::order_of_need(store, 0, has_prediction).into_iter().flatten() {
        let Role::Layer(_, own) = role else { continue };
        if !own.is_linear() && !matches!(own, LayerRole::Router | LayerRole::SharedGate) {
            continue;
        }
        let weight = store.weight(role)?;
        let product = 2.0 * (weight.rows * weight.cols) as f64;
        forward_flops += product * seen(role);
        one_window_flops += product * seen(role) / t;
    }
    forward_flops *= models as f64;

    let has_latent = has_query_latent(store);
    let (mut sums_flops, mut rounding_flops) = (0.0, 0.0);
    let mut inputs: BTreeMap<(Option<usize>, Kind), (usize, f64)> = BTreeMap::new();
    let (mut widest, mut largest, mut layers) = (0, 0, BTreeSet::new());
    for (&role, target) in &targets.by_role {
        let [rows, cols] = target.shape;
        let (n, k) = (rows as f64, cols as f64);
        widest = widest.max(cols);
        rounding_flops += n * k * k;
        if role == Role::TokenEmbedding {
            // Windows forwards and twice as much backwards, and the head as often.
            let windows = (LOOKUP_WINDOWS * context).min(tokens) as f64;
            forward_flops += windows * (3.0 * one_window_flops + 8.0 * n * k);
            rounding_flops += k * k * k / 3.0;
            continue;
        }
        largest = largest.max(rows * cols);
        let Some(kind) = Kind::of(role, has_latent) else { continue };
        let layer = match role {
            Role::Layer(layer, _) => Some(layer),
            _ => None,
        };
        layers.extend(layer);
        inputs.insert((layer, kind), (cols, seen(role)));
        if is_sequential {
            rounding_flops += 4.0 * n * k * k;
            if adds_to_hidden(role) && !spec.norms.post {
                sums_flops += 2.0 * seen(role) * n * k;
            }
        }
    }
    for (&(_, kind), &(cols, seen)) in &inputs {
        let k = cols as f64;
        sums_flops += seen * k * (k + TILE);
        if matches!(kind, Kind::Inner(Some(_))) {
            // Once more for the mean of all experts.
            sums_flops += seen * k * (k + TILE);
        }
        if is_sequential {
            sums_flops += 2.0 * seen * k * k;
        }
        rounding_flops += k * k * k / 3.0;
    }
    if spec.ffn.moe.is_some() {
        // The mean input of experts.
        let moe_layers = layers.iter().filter(|layer| spec.moe(**layer).is_some()).count() as f64;
        sums_flops += moe_layers * t * spec.hidden as f64 * (spec.hidden as f64 + TILE);
    }

    let load = Workload { tokens, context, scored: 0, models: 2, predictions: 0 };
    let captured = VALUE * captured(store, tokens) as u64;
    let states = VALUE * (tokens * spec.hidden) as u64;
    // Sums, differences, their factor and a copy in its order; what is missing; the matrix and what it becomes.
    let sums = VALUE * (4 * widest * widest + 3 * largest) as u64;
    // Those of the original's inputs, and the states that the quantized model is to come to.
    let of_states = captured + states;
    let with = |storage: &Storage| {
        let held = if *storage == Storage::Memory { of_states } else { 0 };
        peak_ram_bytes(spec, &load, storage) + sums + held
    };
    let storage = evaluate::storage_for(with(&Storage::Memory), limit_bytes);
    let scratch_bytes = if storage == Storage::Memory { 0 } else { scratch_bytes(spec, &load) + of_states };
    Ok(Cost {
        matrices: targets.by_role.len(),
        tokens,
        forward_flops,
        sums_flops,
        rounding_flops,
        ram_bytes: with(&storage),
        scratch_bytes,
        kept_bytes: 2 * models * states,
        storage,
    })
}

/// Whether what the matrix answers is added to the hidden states of every token.
fn adds_to_hidden(role: Role) -> bool {
    use LayerRole::{AttentionOutput, Dense, Shared};
    matches!(role, Role::Layer(_, AttentionOutput | Dense(Ffn::Down) | Shared(Ffn::Down)))
}

/// Dimensions of keys and values of all query heads.
fn attention_dims(spec: &Spec) -> f64 {
    match &spec.attention {
        Attention::Latent(latent) => (latent.heads * (latent.nope_dim + spec.rope.dim + latent.v_dim)) as f64,
        Attention::Grouped(grouped) => {
            let heads = grouped.heads.iter().map(|heads| heads.query).max().unwrap_or(0);
            (heads * (grouped.key_dim + grouped.value_dim)) as f64
        }
    }
}

/// Values of the inputs of one layer of the original that are kept until the quantized model has been there.
fn captured(store: &dyn WeightStore, tokens: usize) -> usize {
    let spec = store.spec();
    let heads = match &spec.attention {
        Attention::Latent(latent) => {
            latent.q_lora.unwrap_or(0) + latent.kv_lora + latent.heads * latent.v_dim
        }
        Attention::Grouped(grouped) => {
            grouped.heads.iter().map(|heads| heads.query).max().unwrap_or(0) * grouped.value_dim
        }
    };
    let dense = if spec.ffn.dense.layers > 0 { spec.ffn.dense.width.most() } else { 0 };
    let experts = spec.ffn.moe.as_ref().map_or(0, |moe| {
        let shared = moe.shared.as_ref().map_or(0, |shared| shared.width.most());
        moe.per_token.most() * moe.width.most() + shared
    });
    tokens * (2 * spec.hidden + heads + dense.max(experts))
}
