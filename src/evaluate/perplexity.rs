//! Perplexity as llama-perplexity defines it.
//!
//! In each window of `n` tokens, the tokens at positions `n / 2 + 1 .. n` are scored: each has at least
//! `n / 2` tokens before it. With `l` the negative log likelihood of a scored token, perplexity is
//! `exp(mean(l))`, and its standard error is `exp(mean(l)) * sqrt((mean(l^2) - mean(l)^2) / (count - 1))`.
//!
//! Source: llama.cpp `tools/perplexity/perplexity.cpp`.

use rayon::prelude::*;

use super::Windows;
use crate::checkpoint::WeightStore;
use crate::error::{Error, Result};
use crate::model::{self, Hidden, LogSum, Observer, Storage};

/// The measure, and what it was taken on.
#[derive(Debug, Clone, PartialEq)]
pub struct Perplexity {
    /// `exp` of the mean negative log likelihood.
    pub perplexity: f64,
    /// Its standard error.
    pub error: f64,
    /// Negative log likelihood of every scored token, window after window.
    pub losses: Vec<f64>,
}

impl Perplexity {
    /// From the losses of scored tokens.
    pub fn from_losses(losses: Vec<f64>) -> Self {
        let count = losses.len() as f64;
        let mean = losses.iter().sum::<f64>() / count;
        let mean_square = losses.iter().map(|loss| loss * loss).sum::<f64>() / count;
        let variance = (mean_square - mean * mean).max(0.0);
        let error = if count > 1.0 { mean.exp() * (variance / (count - 1.0)).sqrt() } else { f64::INFINITY };
        Self { perplexity: mean.exp(), error, losses }
    }

    /// The estimate after each window: what llama-perplexity prints as it goes.
    pub fn running(&self, windows: usize) -> Vec<f64> {
        let per_window = (self.losses.len() / windows.max(1)).max(1);
        let mut sum = 0.0;
        let means = self.losses.chunks(per_window).enumerate().map(|(window, losses)| {
            sum += losses.iter().sum::<f64>();
            (sum / ((window + 1) * per_window) as f64).exp()
        });
        means.collect()
    }
}

/// What is known of a scored token while the vocabulary goes by.
#[derive(Clone, Copy)]
pub(super) struct Score {
    target: usize,
    target_logit: f32,
    log_sum: LogSum,
    top: u32,
    top_logit: f32,
}

impl Score {
    pub(super) fn new(target: u32) -> Self {
        let none = f32::NEG_INFINITY;
        Self { target: target as usize, target_logit: none, log_sum: LogSum::EMPTY, top: 0, top_logit: none }
    }

    /// Takes in the logits of a chunk of the vocabulary that begins with token `first`.
    pub(super) fn add(&mut self, first: usize, logits: &[f32]) {
        self.log_sum.add(logits);
        self.look(first, logits);
    }

    /// The same, with what [`LogSum::add_weighted`] adds.
    pub(super) fn add_weighted(&mut self, weighted: &mut f64, first: usize, logits: &[f32], others: &[f32]) {
        self.log_sum.add_weighted(weighted, logits, others);
        self.look(first, logits);
    }

    /// Finds the target's logit and the first of the largest, which the sum knows already.
    fn look(&mut self, first: usize, logits: &[f32]) {
        if let Some(&logit) = self.target.checked_sub(first).and_then(|at| logits.get(at)) {
            self.target_logit = logit;
        }
        let largest = self.log_sum.largest();
        if largest > self.top_logit {
            self.top_logit = largest;
            let at = logits.iter().position(|&logit| logit == largest).unwrap_or(0);
            self.top = (first + at) as u32;
        }
    }

    /// Of all logits so far.
    pub(super) fn log_sum(&self) -> &LogSum {
        &self.log_sum
    }
}

/// Losses and likeliest tokens of what was scored.
pub(super) struct Scores {
    pub(super) losses: Vec<f64>,
    pub(super) tops: Vec<u32>,
}

impl Scores {
    /// # Errors
    /// When a target was not in the vocabulary of the head.
    pub(super) fn finish(scores: &[Score]) -> Result<Self> {
        let losses: Vec<f64> =
            scores.iter().map(|score| score.log_sum.value() - f64::from(score.target_logit)).collect();
        if let Some(at) = losses.iter().position(|loss| !loss.is_finite()) {
            let message =
                format!("no likelihood for token {}: it is outside the output head", scores[at].target);
            return Err(Error::Request(message));
        }
        Ok(Self { losses, tops: scores.iter().map(|score| score.top).collect() })
    }
}

/// Scores what `windows` say is to be scored.
pub(super) fn score(store: &dyn WeightStore, hidden: &Hidden, windows: &Windows) -> Result<Scores> {
    let scored = windows.scored();
    let targets = scored.iter().map(|&token| windows.tokens[token + 1]);
    score_tokens(store, hidden, scored, targets)
}

/// Scores `targets` as predicted at the positions `scored`.
pub(super) fn score_tokens(
    store: &dyn WeightStore,
    hidden: &Hidden,
    scored: &[usize],
    targets: impl Iterator<Item = u32>,
) -> Result<Scores> {
    let mut scores: Vec<Score> = targets.map(Score::new).collect();
    model::for_each_logit_chunk(store, hidden, scored, &mut scores, |scores, first, cols, logits| {
        scores.par_iter_mut().zip(logits.par_chunks(cols)).for_each(|(score, logits)| {
            score.add(first, logits);
        });
    })?;
    Scores::finish(&scores)
}

/// Measures the model on `windows`, in memory.
///
/// # Errors
/// As [`model::forward`]; when a token to be scored is not in the vocabulary of the head.
pub fn perplexity(
    store: &dyn WeightStore,
    windows: &Windows,
    observer: &mut dyn Observer,
) -> Result<Perplexity> {
    let (tokens, wanted) = (&windows.tokens, Some(windows.scored()));
    let hidden = model::forward_for(store, tokens, wanted, windows.context, &Storage::Memory, observer)?;
    Ok(Perplexity::from_losses(score(store, &hidden, windows)?.losses))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_and_the_first_of_the_largest_are_found_in_any_chunk() {
        let logits = [0.5, -2.0, 3.0, 1.0, 3.0, -1.0];
        for size in 1..=6 {
            let mut score = Score::new(3);
            for (at, chunk) in logits.chunks(size).enumerate() {
                score.add(at * size, chunk);
            }
            assert_eq!((score.target_logit, score.top, score.top_logit), (1.0, 2, 3.0), "{size}");
        }
    }

    #[test]
    fn the_error_is_that_of_the_mean() {
        let measured = Perplexity::from_losses(vec![1.0, 2.0, 3.0, 4.0]);
        assert!((measured.perplexity - 2.5f64.exp()).abs() < 1e-12);
        assert!((measured.error - 2.5f64.exp() * (1.25f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(measured.running(2), [1.5f64.exp(), 2.5f64.exp()]);
    }
}
