//! Measures of a model's quality on a text: perplexity, divergence from another model, the prediction module.

use std::path::Path;

use crate::checkpoint::WeightStore;
use crate::error::{Error, Result};
use crate::model::{self, Hidden, Observer, Storage, Walk};

mod divergence;
mod importance;
mod layers;
mod pairs;
mod perplexity;
mod prediction;
mod room;
mod statistics;
mod windows;

pub use divergence::{Divergence, Estimate};
pub use importance::{Way, importance};
pub use layers::{ExpertReport, LayerReport};
pub use pairs::{Pair, Pairs, Side, Stored as StoredModel, pairs};
pub use perplexity::{Perplexity, perplexity};
pub use prediction::{AgainstPrediction, Prediction};
pub use room::{default_scratch_directory, scratch_need, storage_for};
pub use statistics::{Statistics, statistics};
pub use windows::{Bos, Tokens, Windows};

use perplexity::Scores;

/// What to measure.
pub struct Request<'a> {
    /// The model.
    pub model: &'a dyn WeightStore,
    /// What it was made from, to be compared with.
    pub original: Option<&'a dyn WeightStore>,
    /// The text.
    pub windows: &'a Windows,
    /// Most memory to use, or what is available: states that need more go to scratch files.
    pub memory_bytes: Option<u64>,
    /// Where scratch files lie, or [`default_scratch_directory`].
    pub scratch: Option<&'a Path>,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Of the model.
    pub perplexity: Perplexity,
    /// Of its multi-token prediction module, when it has one.
    pub prediction: Option<Prediction>,
    /// Against the original.
    pub against: Option<Against>,
    /// Bytes that scratch files took at most; 0 when all states were in memory.
    pub scratch_bytes: u64,
}

/// A model held against its original.
#[derive(Debug, Clone, PartialEq)]
pub struct Against {
    /// Of the original.
    pub perplexity: Perplexity,
    /// How far the model's predictions are from the original's.
    pub divergence: Divergence,
    /// How far its hidden states and choices of experts are, layer by layer.
    pub layers: Vec<LayerReport>,
    /// How far its prediction module is from the original's, when both have one.
    pub prediction: Option<AgainstPrediction>,
}

/// Refuses two models that cannot be compared.
///
/// # Errors
/// Names what differs.
pub fn check_comparable(model: &dyn WeightStore, original: &dyn WeightStore) -> Result<()> {
    let (a, b) = (model.spec(), original.spec());
    let same = [
        ("vocabulary size", a.embedding.vocab, b.embedding.vocab),
        ("hidden size", a.hidden, b.hidden),
        ("number of layers", a.layers, b.layers),
        ("number of experts", a.experts(), b.experts()),
    ];
    match same.iter().find(|(_, a, b)| a != b) {
        None => Ok(()),
        Some((what, a, b)) => {
            let message =
                format!("the two models cannot be compared: {what} {a} of the model, {b} of the original");
            Err(Error::Request(message))
        }
    }
}

/// Measures what is asked for; two models walk side by side.
///
/// # Errors
/// As [`model::forward`]; when the models cannot be compared, or there is no room for the states of their tokens.
pub fn measure(request: &Request, observer: &mut dyn Observer) -> Result<Report> {
    check(request)?;
    let storage = room::find(request)?;
    let scratch_bytes = room::scratch_need(request)?.map_or(0, |need| need.bytes);
    let report = match request.original {
        None => measure_one(request, &storage, observer),
        Some(original) => measure_two([request.model, original], request.windows, &storage, observer),
    };
    report.map(|report| Report { scratch_bytes, ..report })
}

fn measure_one(request: &Request, storage: &Storage, observer: &mut dyn Observer) -> Result<Report> {
    let Request { model, windows, .. } = *request;
    // The prediction module starts from every token.
    let wanted = if model::has_second_next(model) { None } else { Some(windows.scored()) };
    let hidden = model::forward_for(model, &windows.tokens, wanted, windows.context, storage, observer)?;
    let Scores { losses, tops } = perplexity::score(model, &hidden, windows)?;
    let prediction = prediction::measure(model, &hidden, windows, &tops)?;
    Ok(Report { perplexity: Perplexity::from_losses(losses), prediction, against: None, scratch_bytes: 0 })
}

fn measure_two(
    stores: [&dyn WeightStore; 2],
    windows: &Windows,
    storage: &Storage,
    observer: &mut dyn Observer,
) -> Result<Report> {
    let mut layers = layers::Layers::default();
    let hidden = side_by_side(stores, windows, storage, &mut layers, observer)?;
    let pair = [(stores[0], &hidden[0]), (stores[1], &hidden[1])];
    let mut samples = divergence::Samples::default();
    let (scores, base) = divergence::score(pair, windows, &mut samples)?;
    let (prediction, against_prediction) =
        prediction::measure_pair(pair, windows, [&scores.tops, &base.tops])?;
    let against = Against {
        divergence: Divergence::new(samples, &scores.losses, &base.losses),
        perplexity: Perplexity::from_losses(base.losses),
        layers: layers.reports(),
        prediction: against_prediction,
    };
    let perplexity = Perplexity::from_losses(scores.losses);
    Ok(Report { perplexity, prediction, against: Some(against), scratch_bytes: 0 })
}

/// Refuses, before a weight is read, what cannot be measured.
///
/// # Errors
/// When the models cannot be compared, a token is not in the vocabulary, or memory will not do.
pub fn check(request: &Request) -> Result<()> {
    if let Some(original) = request.original {
        check_comparable(request.model, original)?;
    }
    check_tokens(request)?;
    room::find(request).map(|_| ())
}

/// Every token must be one of the vocabulary: the tokenizer may be another model's.
fn check_tokens(request: &Request) -> Result<()> {
    let vocab = request.model.spec().embedding.vocab;
    match request.windows.tokens.iter().find(|&&token| token as usize >= vocab) {
        None => Ok(()),
        Some(token) => Err(Error::Request(format!(
            "token {token} is not in the model's vocabulary of {vocab}; does the tokenizer belong to this model?"
        ))),
    }
}

/// Both models' states in front of their heads; `layers` learns what differs after each layer.
fn side_by_side(
    [a, b]: [&dyn WeightStore; 2],
    windows: &Windows,
    storage: &Storage,
    layers: &mut layers::Layers,
    observer: &mut dyn Observer,
) -> Result<[Hidden; 2]> {
    let count = a.spec().layers;
    let mut walk_a = Walk::new(a, &windows.tokens, windows.context, storage)?;
    let mut walk_b = Walk::new(b, &windows.tokens, windows.context, storage)?;
    for layer in 0..count {
        let choices = [walk_a.step()?, walk_b.step()?];
        layers.add(layer, a.spec(), [walk_a.hidden(), walk_b.hidden()], [&choices[0], &choices[1]])?;
        observer.layer(layer, count, choices[0].as_deref());
    }
    Ok([walk_a.finish(), walk_b.finish()])
}
