//! How much the model's predictions change when a tensor gets a type: a backward pass, layer by layer from the last to the
//! first.
//!
//! A forward pass keeps the hidden states in front of every layer, in memory or scratch files. Then each layer is computed
//! anew from these, and the gradient of the loss goes back through it; one matrix of weights is in memory at a time. The
//! labels of the loss are drawn from the model's own predictions, so that for a small change `dW` of a weight with
//! gradient `g`
//!
//! ```text
//! mean KL divergence of predictions = sum over windows of <g, dW>^2 / (2 tokens)
//! ```
//!
//! on average over labels (Fisher information). A weight's gradient in a window is `dy^T x` with `x` the rows that it is
//! multiplied with and `dy` the gradient of what comes out; it is made of some rows of the weight at a time, and not kept
//! (`meter`).
//!
//! One file per block kind, as in [`crate::model`], whose forward functions are used. Results are the same at any number of
//! threads. What is differentiated: everything but the choice of experts, which is taken as constant. Prediction layers
//! are no part of the loss.
#![expect(non_snake_case, reason = "shape suffixes, see the legend on top of each file")]

use std::sync::{Mutex, PoisonError};

use crate::checkpoint::WeightStore;
use crate::error::{Error, Result};
use crate::family::{Attention, Role, Spec};
use crate::model::linear::{Input, Picks};
use crate::model::rope::Ropes;
use crate::model::states::States;
use crate::model::{Observer, Storage, Walk};
use crate::opened::Opened;
use crate::plan::Blueprint;
use crate::plan::budget::{self, Choices};

mod attention;
mod attention_gqa;
mod attention_mla;
mod embedding;
mod ffn;
mod head;
mod layer;
mod linear;
mod losses;
mod meter;
mod moe;
mod norm;
mod router;

pub use embedding::lookups;
pub use losses::TensorSensitivity;

use meter::Meter;

/// Of the labels.
const SEED: u64 = 0x7265_7175_616e_7431;

/// How to measure.
pub struct Settings<'a> {
    /// Windows of tokens, one after the other.
    pub tokens: &'a [u32],
    /// Tokens of a window.
    pub context: usize,
    /// Where states are kept.
    pub storage: Storage,
    /// Threads.
    pub threads: usize,
    /// Told of every layer, forwards and backwards.
    pub observer: &'a mut dyn Observer,
}

/// Says what types cost the model on a text.
pub struct Sensitivities<'a> {
    settings: Mutex<Settings<'a>>,
    found: Mutex<Vec<TensorSensitivity>>,
}

impl<'a> Sensitivities<'a> {
    /// Nothing is measured yet.
    pub fn new(settings: Settings<'a>) -> Self {
        Self { settings: Mutex::new(settings), found: Mutex::default() }
    }

    /// What was measured, tensor by tensor.
    pub fn found(self) -> Vec<TensorSensitivity> {
        self.found.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl budget::Sensitivity for Sensitivities<'_> {
    fn losses(
        &self,
        source: &Opened,
        base: &Blueprint,
        choices: &[Choices],
        errors: &[Vec<f64>],
    ) -> Result<Vec<Vec<f64>>> {
        let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let Settings { tokens, context, storage, threads, observer } = &mut *settings;
        let mut meter = Meter::new(source, base, choices, errors, tokens.len(), *context)?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(*threads)
            .build()
            .map_err(|error| Error::Request(format!("cannot start {threads} threads: {error}")))?;
        let store = source.store()?;
        pool.install(|| backward(store, tokens, *context, SEED, storage, &mut meter, &mut **observer))?;
        let (found, left) = pool.install(|| meter.finish());
        let (losses, found) = losses::losses(base, choices, errors, (&found, &left), tokens.len());
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(losses)
    }
}

/// Bytes of states of `tokens` tokens, about: those in front of every layer, and what is inside one.
pub fn states_bytes(spec: &Spec, tokens: usize) -> u64 {
    let inside = match &spec.attention {
        Attention::Latent(latent) => {
            let heads = latent.heads * (2 * latent.nope_dim + 2 * latent.v_dim + spec.rope.dim);
            2 * heads + 4 * latent.kv_lora + 4 * latent.q_lora.unwrap_or(0)
        }
        Attention::Grouped(grouped) => {
            let widths = (0..spec.layers).map(|layer| {
                let heads = grouped.heads.of(layer);
                (heads.query + 2 * heads.key_value) * grouped.key_dim.max(grouped.value_dim)
            });
            4 * widths.max().unwrap_or(0)
        }
    };
    let dense = (0..spec.layers).map(|layer| *spec.ffn.dense.width.of(layer)).max().unwrap_or(0);
    let columns = spec.layers * spec.hidden + 8 * spec.hidden + inside.max(4 * dense);
    (tokens * columns * size_of::<f32>()) as u64
}

/// Learns what the gradients of weights are made of.
pub(crate) trait Sink: Send {
    /// Rows from `first` on of the weight with this role were multiplied with `x`, and `dy` is the gradient of the products,
    /// a column for each of these rows of the weight. `picks` are the tokens of the rows of `x`, and how much each counts
    /// in what follows; without them all tokens, each once.
    ///
    /// # Errors
    /// Of the sink's own; they end the run.
    fn product(
        &mut self,
        role: Role,
        first: usize,
        x: &Input,
        picks: Option<&Picks>,
        dy: &States,
    ) -> Result<()>;

    /// The embeddings of `tokens` times `scale` have this gradient.
    ///
    /// # Errors
    /// As [`Sink::product`].
    fn lookup(&mut self, tokens: &[u32], scale: f32, gradient: &States) -> Result<()>;
}

/// What all layers need.
struct Pass<'a> {
    store: &'a dyn WeightStore,
    context: usize,
    ropes: &'a Ropes,
}

/// Runs the model on `tokens`, windows of `context`, forwards and backwards; `observer` is told of every layer in both
/// directions. Returns the loss: the sum over tokens of `-ln p(label)`.
///
/// # Errors
/// When a weight cannot be read, a product is not finite, or states cannot be kept; what the sink says.
fn backward(
    store: &dyn WeightStore,
    tokens: &[u32],
    context: usize,
    seed: u64,
    storage: &Storage,
    sink: &mut dyn Sink,
    observer: &mut dyn Observer,
) -> Result<f64> {
    let layers = store.spec().layers;
    let ropes = Ropes::new(store, context, context.min(tokens.len()))?;
    let pass = Pass { store, context, ropes: &ropes };
    let mut walk = Walk::new(store, tokens, context, storage)?;
    let mut kept = Vec::with_capacity(layers);
    for layer in 0..layers {
        kept.push(States::copy_of(walk.hidden(), storage)?);
        walk.step()?;
        observer.layer(layer, 2 * layers, None);
    }
    let hidden = walk.finish();
    let drawn = head::draw(store, &hidden, seed)?;
    let mut gradient = head::back(store, &hidden, &drawn, sink)?;
    drop(hidden);
    while let Some(hidden) = kept.pop() {
        layer::back(&pass, kept.len(), &hidden, sink, &mut gradient)?;
        observer.layer(2 * layers - 1 - kept.len(), 2 * layers, None);
    }
    sink.lookup(tokens, store.spec().embedding.scale as f32, &gradient)?;
    Ok(head::loss(&drawn))
}

#[cfg(test)]
mod tests;
