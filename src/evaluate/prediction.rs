//! How good the multi-token prediction module is: its loss on the second-next token, and how often its
//! likeliest token is the one that the main model then finds likeliest, which is when a speculative
//! decoder accepts the draft.

use super::Windows;
use super::perplexity::{Perplexity, score_tokens};
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
        let context = windows.context;
        // Where token and next token are both scored, and the second-next is in the window still.
        let scored = windows.scored();
        let pairs: Vec<(usize, u32)> = scored
            .windows(2)
            .zip(&tops[1..])
            .filter(|(pair, _)| pair[0] + 1 == pair[1] && pair[0] / context == (pair[1] + 1) / context)
            .map(|(pair, &top)| (pair[0], top))
            .collect();
        if pairs.is_empty() {
            return Ok(());
        }
        let hidden = model::second_next(store, hidden, &windows.tokens, context)?;
        // Its windows are one token shorter.
        let positions: Vec<usize> = pairs.iter().map(|&(token, _)| token - token / context).collect();
        let targets = pairs.iter().map(|&(token, _)| windows.tokens[token + 2]);
        let scores = score_tokens(store, &hidden, &positions, targets)?;
        self.agreed += pairs.iter().zip(&scores.tops).filter(|((_, main), top)| main == *top).count();
        self.losses.extend(scores.losses);
        Ok(())
    }

    pub(super) fn finish(self) -> Option<Prediction> {
        let count = self.losses.len();
        (count > 0).then(|| Prediction {
            perplexity: Perplexity::from_losses(self.losses),
            top1_agreement: self.agreed as f64 / count as f64,
        })
    }
}
