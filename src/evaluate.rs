//! Measures of a model's quality on a text: perplexity, divergence from another model, the prediction module.

use crate::checkpoint::WeightStore;
use crate::error::{Error, Result};
use crate::model::{self, Choice, Hidden, Observer, Walk, Workload};

mod divergence;
mod layers;
mod perplexity;
mod prediction;
mod windows;

pub use divergence::{Divergence, Estimate};
pub use layers::{ExpertReport, LayerReport};
pub use perplexity::{Perplexity, perplexity};
pub use prediction::{AgainstPrediction, Prediction};
pub use windows::{Bos, Tokens, Windows};

/// What to measure.
pub struct Request<'a> {
    /// The model.
    pub model: &'a dyn WeightStore,
    /// What it was made from, to be compared with.
    pub original: Option<&'a dyn WeightStore>,
    /// The text.
    pub windows: &'a Windows,
    /// Most memory to use: windows are evaluated in several passes when they would need more.
    pub memory_bytes: Option<u64>,
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
    /// How often the weights were read.
    pub passes: usize,
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
        ("vocabulary size", a.vocab, b.vocab),
        ("hidden size", a.hidden, b.hidden),
        ("number of layers", a.layers, b.layers),
        ("number of experts", a.experts, b.experts),
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
/// As [`model::forward`]; when the models cannot be compared, or one window needs more memory than allowed.
pub fn measure(request: &Request, observer: &mut dyn Observer) -> Result<Report> {
    check(request)?;
    let batches = batches(request)?;
    let passes = batches.len();
    match request.original {
        None => measure_one(request.model, &batches, observer),
        Some(original) => measure_two([request.model, original], &batches, observer),
    }
    .map(|report| Report { passes, ..report })
}

fn measure_one(model: &dyn WeightStore, batches: &[Windows], observer: &mut dyn Observer) -> Result<Report> {
    let mut losses = Vec::new();
    let mut prediction = prediction::Sum::default();
    for (pass, windows) in batches.iter().enumerate() {
        let mut pass = Pass { observer, pass, passes: batches.len() };
        let hidden = model::forward(model, &windows.tokens, windows.context, &mut pass)?;
        let scores = perplexity::score(model, &hidden, windows)?;
        if model::has_second_next(model) {
            prediction.add(model, &hidden, windows, &scores.tops)?;
        }
        losses.extend(scores.losses);
    }
    let perplexity = Perplexity::from_losses(losses);
    Ok(Report { perplexity, prediction: prediction.finish(), against: None, passes: 1 })
}

fn measure_two(
    stores: [&dyn WeightStore; 2],
    batches: &[Windows],
    observer: &mut dyn Observer,
) -> Result<Report> {
    let (mut losses, mut base_losses) = (Vec::new(), Vec::new());
    let (mut samples, mut layers) = (divergence::Samples::default(), layers::Layers::default());
    let (mut prediction, mut predictions) = (prediction::Sum::default(), prediction::PairSum::default());
    for (pass, windows) in batches.iter().enumerate() {
        let mut pass = Pass { observer, pass, passes: batches.len() };
        let hidden = side_by_side(stores, windows, &mut layers, &mut pass)?;
        let pair = [(stores[0], &hidden[0]), (stores[1], &hidden[1])];
        let (scores, base) = divergence::score(pair, windows, &mut samples)?;
        match stores.map(model::has_second_next) {
            [true, true] => predictions.add(pair, windows, [&scores.tops, &base.tops])?,
            [true, false] => prediction.add(stores[0], &hidden[0], windows, &scores.tops)?,
            [false, _] => {}
        }
        losses.extend(scores.losses);
        base_losses.extend(base.losses);
    }
    let (compared, against_prediction) = predictions.finish();
    let against = Against {
        divergence: Divergence::new(samples, &losses, &base_losses),
        perplexity: Perplexity::from_losses(base_losses),
        layers: layers.reports(),
        prediction: against_prediction,
    };
    let perplexity = Perplexity::from_losses(losses);
    let prediction = compared.or_else(|| prediction.finish());
    Ok(Report { perplexity, prediction, against: Some(against), passes: 1 })
}

/// Refuses, before a weight is read, what cannot be measured.
///
/// # Errors
/// When the models cannot be compared, or a token is not in the vocabulary.
pub fn check(request: &Request) -> Result<()> {
    if let Some(original) = request.original {
        check_comparable(request.model, original)?;
    }
    check_tokens(request)
}

/// Every token must be one of the vocabulary: the tokenizer may be another model's.
fn check_tokens(request: &Request) -> Result<()> {
    let vocab = request.model.spec().vocab;
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
    layers: &mut layers::Layers,
    observer: &mut dyn Observer,
) -> Result<[Hidden; 2]> {
    let count = a.spec().layers;
    let mut walk_a = Walk::new(a, &windows.tokens, windows.context)?;
    let mut walk_b = Walk::new(b, &windows.tokens, windows.context)?;
    for layer in 0..count {
        let choices = [walk_a.step()?, walk_b.step()?];
        layers.add(layer, a.spec(), [walk_a.hidden(), walk_b.hidden()], [&choices[0], &choices[1]]);
        observer.layer(layer, count, choices[0].as_deref());
    }
    Ok([walk_a.finish(), walk_b.finish()])
}

/// How often the weights will be read: once, or more when memory is short.
///
/// # Errors
/// When one window needs more than is allowed.
pub fn passes(request: &Request) -> Result<usize> {
    let windows = request.windows;
    let Some(memory) = request.memory_bytes else { return Ok(1) };
    let models = 1 + usize::from(request.original.is_some());
    let predict = |store: Option<&dyn WeightStore>| store.is_some_and(model::has_second_next);
    let own = predict(Some(request.model));
    let predictions = usize::from(own) + usize::from(own && predict(request.original));
    let scored = windows.scored().len().div_ceil(windows.len().max(1));
    let need = |count: usize| {
        let (tokens, scored) = (count * windows.context, count * scored);
        let load = Workload { tokens, context: windows.context, scored, models, predictions };
        // Tensors of the two may be stored in different ways, but have the same shapes.
        model::peak_ram_bytes(request.model.spec(), &load)
    };
    if need(1) > memory {
        return Err(Error::Request(format!(
            "--memory: {memory} bytes are not enough for one window of {} tokens, which needs about {}",
            windows.context,
            need(1)
        )));
    }
    let fitting = (1..=windows.len()).rev().find(|&count| need(count) <= memory).unwrap_or(1);
    Ok(windows.len().div_ceil(fitting))
}

/// Windows that fit into memory together, the passes of about the same size.
fn batches(request: &Request) -> Result<Vec<Windows>> {
    let windows = request.windows;
    Ok(windows.split(windows.len().div_ceil(passes(request)?)))
}

/// Counts layers over all passes.
struct Pass<'a> {
    observer: &'a mut dyn Observer,
    pass: usize,
    passes: usize,
}

impl Observer for Pass<'_> {
    fn layer(&mut self, layer: usize, layers: usize, choices: Option<&[Vec<Choice>]>) {
        self.observer.layer(self.pass * layers + layer, self.passes * layers, choices);
    }
}
