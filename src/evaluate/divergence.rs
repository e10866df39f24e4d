//! How far a model's predictions are from its original's, as `llama-perplexity --kl-divergence` defines it.
//!
//! With `p` the original's and `q` the model's probabilities at a scored position, the KL divergence is
//! `sum p (ln p - ln q)`; the top-1 agreement is how often the likeliest token is the same; `delta p` is
//! `q - p` of the token that really followed. Errors are standard errors of means. The error of the
//! perplexity ratio accounts for the correlation of the two, because both were measured on the same text:
//! `var(mean a - mean b) = var(mean a) + var(mean b) - 2 cov(mean a, mean b)`. Percentiles interpolate
//! linearly between sorted values.
//!
//! llama-perplexity keeps the original's logits in 16 bits and leaves out tokens below `e^-16`; requant keeps them in
//! 32 bits and leaves out no token. The divergence comes out of one pass over the vocabulary: with `b` and `a` the logits,
//! `sum p (b - a) - ln sum e^b + ln sum e^a`, in f64.
//!
//! Source: llama.cpp `tools/perplexity/perplexity.cpp`.

use rayon::prelude::*;

use super::Windows;
use super::perplexity::{Score, Scores};
use crate::checkpoint::WeightStore;
use crate::error::Result;
use crate::model::{self, Hidden};

/// A mean and its standard error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The mean, or what follows from one.
    pub value: f64,
    /// Its standard error.
    pub error: f64,
}

/// All values of the printed table.
#[derive(Debug, Clone, PartialEq)]
pub struct Divergence {
    /// KL divergence from the original.
    pub mean: Estimate,
    /// Sorted divergences of all scored positions.
    pub sorted: Vec<f64>,
    /// Share of positions with the same likeliest token.
    pub top1_agreement: Estimate,
    /// Root of the mean square of the change of the correct token's probability.
    pub rms_delta_p: Estimate,
    /// Mean change of the correct token's probability.
    pub mean_delta_p: Estimate,
    /// Perplexity of the model over that of the original.
    pub ratio: Estimate,
    /// Perplexity of the model less that of the original.
    pub difference: Estimate,
    /// Correlation of the two logarithms of perplexity.
    pub correlation: f64,
}

/// Per-position values collected so far.
#[derive(Default)]
pub(super) struct Samples {
    divergences: Vec<f64>,
    same_top: usize,
}

/// Running sums for one position, while chunks of the vocabulary are processed.
struct Pair {
    model: Score,
    original: Score,
    /// Sum of `e^(b - largest) (b - a)`.
    weighted: f64,
}

impl Pair {
    fn new(target: u32) -> Self {
        let score = Score::new(target);
        Self { model: score, original: score, weighted: 0.0 }
    }

    fn add(&mut self, first: usize, model: &[f32], original: &[f32]) {
        self.model.add(first, model);
        self.original.add_weighted(&mut self.weighted, first, original, model);
    }

    fn divergence(&self) -> f64 {
        let (model, original) = (self.model.log_sum(), self.original.log_sum());
        self.weighted / original.sum() - original.value() + model.value()
    }
}

/// Scores both models, the model first, and adds what divides them to `samples`.
pub(super) fn score(
    pair: [(&dyn WeightStore, &Hidden); 2],
    windows: &Windows,
    samples: &mut Samples,
) -> Result<(Scores, Scores)> {
    let scored = windows.scored();
    let targets = scored.iter().map(|&token| windows.tokens[token + 1]);
    score_tokens(pair, scored, targets, samples)
}

/// Scores `targets` as predicted at the positions `scored`.
pub(super) fn score_tokens(
    pair: [(&dyn WeightStore, &Hidden); 2],
    scored: &[usize],
    targets: impl Iterator<Item = u32>,
    samples: &mut Samples,
) -> Result<(Scores, Scores)> {
    let mut pairs: Vec<Pair> = targets.map(Pair::new).collect();
    model::for_each_logit_chunk_pair(pair, scored, &mut pairs, |pairs, first, cols, [model, original]| {
        let chunks = model.par_chunks(cols).zip(original.par_chunks(cols));
        pairs
            .par_iter_mut()
            .zip(chunks)
            .for_each(|(pair, (model, original))| pair.add(first, model, original));
    })?;
    let side = |side: fn(&Pair) -> Score| Scores::finish(&pairs.iter().map(side).collect::<Vec<_>>());
    let (model, original) = (side(|pair| pair.model)?, side(|pair| pair.original)?);
    samples.divergences.extend(pairs.iter().map(Pair::divergence));
    samples.same_top += model.tops.iter().zip(&original.tops).filter(|(a, b)| a == b).count();
    Ok((model, original))
}

impl Divergence {
    /// From what is known of every position and both models' losses.
    pub(super) fn new(samples: Samples, losses: &[f64], base: &[f64]) -> Self {
        let count = losses.len() as f64;
        let mean = Estimate::of_mean(samples.divergences.iter().copied());
        let mut sorted = samples.divergences;
        sorted.sort_by(f64::total_cmp);
        let deltas = || losses.iter().zip(base).map(|(loss, base)| (-loss).exp() - (-base).exp());
        let square = Estimate::of_mean(deltas().map(|delta| delta * delta));
        let rms = square.value.sqrt();
        let share = samples.same_top as f64 / count;

        let (a, b) = (Estimate::of_mean(losses.iter().copied()), Estimate::of_mean(base.iter().copied()));
        let products = losses.iter().zip(base).map(|(a, b)| a * b).sum::<f64>() / count;
        let covariance = if count > 1.0 { (products - a.value * b.value) / (count - 1.0) } else { 0.0 };
        let error = |a: f64, b: f64, covariance: f64| (a * a + b * b - 2.0 * covariance).max(0.0).sqrt();
        let ratio = (a.value - b.value).exp();
        let (perplexity, base) = (a.value.exp(), b.value.exp());
        Self {
            mean,
            sorted,
            top1_agreement: Estimate {
                value: share,
                error: (share * (1.0 - share) / (count - 1.0).max(1.0)).sqrt(),
            },
            rms_delta_p: Estimate {
                value: rms,
                error: if rms > 0.0 { 0.5 / rms * square.error } else { 0.0 },
            },
            mean_delta_p: Estimate::of_mean(deltas()),
            ratio: Estimate { value: ratio, error: ratio * error(a.error, b.error, covariance) },
            difference: Estimate {
                value: perplexity - base,
                error: error(perplexity * a.error, base * b.error, perplexity * base * covariance),
            },
            correlation: covariance / (a.error * b.error).max(f64::MIN_POSITIVE),
        }
    }

    /// The divergence that `fraction` of all positions stay below; 0.5 is the median.
    pub fn percentile(&self, fraction: f64) -> f64 {
        let Some(last) = self.sorted.len().checked_sub(1) else { return f64::NAN };
        let at = fraction.clamp(0.0, 1.0) * last as f64;
        let (index, part) = (at as usize, at.fract());
        (1.0 - part) * self.sorted[index] + part * self.sorted[(index + 1).min(last)]
    }

    /// The largest divergence.
    pub fn max(&self) -> f64 {
        self.percentile(1.0)
    }
}

impl Estimate {
    fn of_mean(values: impl Iterator<Item = f64>) -> Self {
        let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
        for value in values {
            count += 1.0;
            sum += value;
            squares += value * value;
        }
        let mean = sum / count;
        let variance = squares / count - mean * mean;
        let error = if count > 1.0 && variance > 0.0 { (variance / (count - 1.0)).sqrt() } else { 0.0 };
        Self { value: mean, error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pass_over_chunks_gives_the_divergence_of_its_definition() {
        let original: Vec<f32> = (0..50).map(|i| ((i * 17) % 50) as f32 * 0.3 - 5.0).collect();
        let model: Vec<f32> = original.iter().enumerate().map(|(i, b)| b + 0.1 * (i % 7) as f32).collect();
        let log_softmax = |logits: &[f32]| -> Vec<f64> {
            let sum = logits.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln();
            logits.iter().map(|&logit| f64::from(logit) - sum).collect()
        };
        let (p, q) = (log_softmax(&original), log_softmax(&model));
        let expected: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
        for size in [1, 7, 50] {
            let mut pair = Pair::new(3);
            for (index, (a, b)) in model.chunks(size).zip(original.chunks(size)).enumerate() {
                pair.add(index * size, a, b);
            }
            assert!((pair.divergence() - expected).abs() < 1e-10, "{size}: {} {expected}", pair.divergence());
        }
    }

    #[test]
    fn the_table_of_four_positions() {
        let samples = Samples { divergences: vec![0.4, 0.1, 0.3, 0.2], same_top: 3 };
        let (losses, base) = ([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 3.6]);
        let table = Divergence::new(samples, &losses, &base);
        assert!((table.mean.value - 0.25).abs() < 1e-12);
        assert!((table.percentile(0.5) - 0.25).abs() < 1e-12);
        assert!((table.percentile(0.9) - 0.37).abs() < 1e-12);
        assert!((table.max() - 0.4).abs() < 1e-12);
        assert_eq!(table.top1_agreement.value, 0.75);
        assert!((table.top1_agreement.error - 0.25).abs() < 1e-12);
        assert!((table.ratio.value - 0.1f64.exp()).abs() < 1e-12);
        // Of the differences 0, 0, 0, 0.4: variance 0.03, so the mean's is 0.03 / 3.
        assert!((table.ratio.error - 0.1f64.exp() * 0.1).abs() < 1e-9, "{}", table.ratio.error);
        let delta = (-4.0f64).exp() - (-3.6f64).exp();
        assert!((table.rms_delta_p.value - (delta * delta / 4.0).sqrt()).abs() < 1e-12);
    }
}
