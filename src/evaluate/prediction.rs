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

/// Gathers passes.
#[derive(Default)]
pub(super) struct Sum {
    losses: Vec<f64>,
    agreed: usize,
}

impl Sum {
    /// Runs the module behind `hidden`; `tops` are the main head's likeliest tokens at the scored positions.
    pub(super) fn add(
        &mut self,
        store: &dyn WeightStore,
        hidden: &Hidden,
        windows: &Windows,
        tops: &[u32],
    ) -> Result<()> {
        let drafts = Drafts::of(windows);
        if !drafts.positions.is_empty() {
            let hidden = model::second_next(store, hidden, &windows.tokens, windows.context)?;
            let scores = score_tokens(store, &hidden, &drafts.positions, drafts.targets.iter().copied())?;
            self.take(&drafts, scores, tops);
        }
        Ok(())
    }

    fn take(&mut self, drafts: &Drafts, scores: Scores, tops: &[u32]) {
        let main = drafts.next.iter().map(|&next| tops[next]);
        self.agreed += main.zip(&scores.tops).filter(|(main, top)| main == *top).count();
        self.losses.extend(scores.losses);
    }

    pub(super) fn finish(self) -> Option<Prediction> {
        let count = self.losses.len();
        (count > 0).then(|| Prediction {
            perplexity: Perplexity::from_losses(self.losses),
            top1_agreement: self.agreed as f64 / count as f64,
        })
    }
}

/// Gathers passes of two models.
#[derive(Default)]
pub(super) struct PairSum {
    model: Sum,
    original: Sum,
    samples: Samples,
}

impl PairSum {
    /// Runs both modules, the model's first.
    pub(super) fn add(
        &mut self,
        [(a, main_a), (b, main_b)]: [(&dyn WeightStore, &Hidden); 2],
        windows: &Windows,
        tops: [&[u32]; 2],
    ) -> Result<()> {
        let drafts = Drafts::of(windows);
        if drafts.positions.is_empty() {
            return Ok(());
        }
        let hidden_a = model::second_next(a, main_a, &windows.tokens, windows.context)?;
        let hidden_b = model::second_next(b, main_b, &windows.tokens, windows.context)?;
        let pair = [(a, &hidden_a), (b, &hidden_b)];
        let targets = drafts.targets.iter().copied();
        let (model, original) =
            divergence::score_tokens(pair, &drafts.positions, targets, &mut self.samples)?;
        self.model.take(&drafts, model, tops[0]);
        self.original.take(&drafts, original, tops[1]);
        Ok(())
    }

    /// The model's quality, and how it compares.
    pub(super) fn finish(self) -> (Option<Prediction>, Option<AgainstPrediction>) {
        let Self { model, original, samples } = self;
        let (Some(model), Some(original)) = (model.finish(), original.finish()) else { return (None, None) };
        let divergence = Divergence::new(samples, &model.perplexity.losses, &original.perplexity.losses);
        (Some(model), Some(AgainstPrediction { original, divergence }))
    }
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
