//! How good the multi-token prediction module is: its loss on the second-next token, and how often its
//! likeliest token is the one that the main model then finds likeliest, which is when a speculative
//! decoder accepts the draft.

use super::Windows;
use super::divergence::{self, Divergence, Samples};
use super::perplexity::{Perplexity, Scores, score_tokens};
use crate::checkpoint::WeightStore;
use crate::error::Result;
use crate::model::{self, Hidden};

/// Quality of the prediction module.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// On the second-next tokens.
    pub perplexity: Perplexity,
    /// Share of positions where it agrees with the main head.
    pub top1_agreement: f64,
}

/// The model's prediction module held against the original's.
#[derive(Debug, Clone, PartialEq)]
pub struct AgainstPrediction {
    /// Of the original: its own module, and its own main head.
    pub original: Prediction,
    /// How far the module's predictions are from the original's.
    pub divergence: Divergence,
}

/// Runs the module behind `hidden`; `tops` are the main head's likeliest tokens at the scored positions. None when
/// there is no module, or nothing to ask it.
pub(super) fn measure(
    store: &dyn WeightStore,
    hidden: &Hidden,
    windows: &Windows,
    tops: &[u32],
) -> Result<Option<Prediction>> {
    let drafts = Drafts::of(windows);
    if drafts.positions.is_empty() || !model::has_second_next(store) {
        return Ok(None);
    }
    let hidden = model::second_next(store, hidden, &windows.tokens, windows.context)?;
    let scores = score_tokens(store, &hidden, &drafts.positions, drafts.targets.iter().copied())?;
    Ok(Some(drafts.prediction(scores, tops)))
}

/// Runs both modules, the model's first; the model's alone where the original has none.
pub(super) fn measure_pair(
    pair: [(&dyn WeightStore, &Hidden); 2],
    windows: &Windows,
    tops: [&[u32]; 2],
) -> Result<(Option<Prediction>, Option<AgainstPrediction>)> {
    let [(a, main_a), (b, main_b)] = pair;
    let drafts = Drafts::of(windows);
    if drafts.positions.is_empty() || !(model::has_second_next(a) && model::has_second_next(b)) {
        return Ok((measure(a, main_a, windows, tops[0])?, None));
    }
    let hidden_a = model::second_next(a, main_a, &windows.tokens, windows.context)?;
    let hidden_b = model::second_next(b, main_b, &windows.tokens, windows.context)?;
    let mut samples = Samples::default();
    let targets = drafts.targets.iter().copied();
    let pair = [(a, &hidden_a), (b, &hidden_b)];
    let (model, original) = divergence::score_tokens(pair, &drafts.positions, targets, &mut samples)?;
    let (model, original) = (drafts.prediction(model, tops[0]), drafts.prediction(original, tops[1]));
    let divergence = Divergence::new(samples, &model.perplexity.losses, &original.perplexity.losses);
    Ok((Some(model), Some(AgainstPrediction { original, divergence })))
}

/// What the module is asked: where token and next token are both scored, and the second-next is in the window still.
struct Drafts {
    /// In the module's windows, which are one token shorter.
    positions: Vec<usize>,
    /// The second-next tokens.
    targets: Vec<u32>,
    /// Which of the scored positions is that of the next token: there the main head speaks.
    next: Vec<usize>,
}

impl Drafts {
    /// From what the module said, and the main head's likeliest tokens.
    fn prediction(&self, scores: Scores, tops: &[u32]) -> Prediction {
        let main = self.next.iter().map(|&next| tops[next]);
        let agreed = main.zip(&scores.tops).filter(|(main, top)| main == *top).count();
        let top1_agreement = agreed as f64 / scores.losses.len() as f64;
        Prediction { perplexity: Perplexity::from_losses(scores.losses), top1_agreement }
    }

    fn of(windows: &Windows) -> Self {
        let context = windows.context;
        let scored = windows.scored();
        let mut drafts = Self { positions: Vec::new(), targets: Vec::new(), next: Vec::new() };
        for (at, pair) in scored.windows(2).enumerate() {
            let &[token, next] = pair else { continue };
            if token + 1 == next && token / context == (next + 1) / context {
                drafts.positions.push(token - token / context);
                drafts.targets.push(windows.tokens[token + 2]);
                drafts.next.push(at + 1);
            }
        }
        drafts
    }
}
