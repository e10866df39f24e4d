//! Where two models part: hidden states and choices of experts, layer by layer.
//!
//! With `h` the model's state of a token after a layer and `g` the original's, the relative error of a layer is
//! `sqrt(sum |h - g|^2 / sum |g|^2)` over all tokens; the cosine is the mean over tokens of the cosine between
//! `h` and `g`. The routing agreement of an expert is the share of the tokens that the original sends to it
//! and the model does too.

use rayon::prelude::*;
use serde::Serialize;

use crate::error::Result;
use crate::family::Spec;
use crate::model::{Choice, States};

/// Tokens of one partial sum; does not depend on the number of threads.
const TOKEN_BLOCK: usize = 256;

/// One layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerReport {
    /// Number, from 0.
    pub layer: usize,
    /// Of the hidden state after it.
    pub relative_error: f64,
    /// Of the hidden state after it.
    pub cosine: f64,
    /// Share of all choices of experts that are the original's; none for a dense layer.
    pub routing_agreement: Option<f64>,
    /// One entry for every routed expert.
    pub experts: Vec<ExpertReport>,
}

/// One routed expert.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExpertReport {
    /// Number, from 0.
    pub expert: usize,
    /// Tokens that the model sent to it.
    pub tokens: u64,
    /// Tokens that the original sent to it.
    pub original_tokens: u64,
    /// Share of the latter that are among the former; none when there are none.
    pub agreement: Option<f64>,
}

/// What divides the two, layer by layer.
#[derive(Default)]
pub(super) struct Layers {
    layers: Vec<Sums>,
}

#[derive(Default, Clone)]
struct Sums {
    tokens: u64,
    distance: Distance,
    /// Tokens of the model, of the original, of both, for each expert.
    experts: Vec<[u64; 3]>,
}

/// Sums over the states of some tokens.
#[derive(Default, Clone, Copy)]
struct Distance {
    difference: f64,
    original: f64,
    cosine: f64,
}

impl Layers {
    /// Takes in the states after `layer`, the model's first.
    ///
    /// # Errors
    /// When the states cannot be read.
    pub(super) fn add(
        &mut self,
        layer: usize,
        spec: &Spec,
        [model, original]: [&States; 2],
        choices: [&Option<Vec<Vec<Choice>>>; 2],
    ) -> Result<()> {
        if self.layers.len() <= layer {
            self.layers.resize(layer + 1, Sums::default());
        }
        let sums = &mut self.layers[layer];
        sums.tokens += model.rows() as u64;
        let blocks: Vec<usize> = (0..model.rows()).step_by(TOKEN_BLOCK).collect();
        for group in blocks.chunks(rayon::current_num_threads()) {
            let distances: Vec<Result<Distance>> = group
                .par_iter()
                .map(|&first| {
                    let tokens = first..model.rows().min(first + TOKEN_BLOCK);
                    let (model, original) = (model.read(tokens.clone())?, original.read(tokens)?);
                    Ok(Distance::of(spec.hidden, &model, &original))
                })
                .collect();
            for distance in distances {
                sums.distance.add(distance?);
            }
        }
        if let [Some(model), Some(original)] = choices {
            sums.experts.resize(spec.experts(), [0; 3]);
            for (model, original) in model.iter().zip(original) {
                for choice in model {
                    sums.experts[choice.expert][0] += 1;
                }
                for choice in original {
                    sums.experts[choice.expert][1] += 1;
                    let both = model.iter().any(|other| other.expert == choice.expert);
                    sums.experts[choice.expert][2] += u64::from(both);
                }
            }
        }
        Ok(())
    }

    pub(super) fn reports(self) -> Vec<LayerReport> {
        self.layers.iter().enumerate().map(|(layer, sums)| sums.report(layer)).collect()
    }
}

impl Sums {
    fn report(&self, layer: usize) -> LayerReport {
        let share = |both: u64, of: u64| (of > 0).then(|| both as f64 / of as f64);
        let experts = self.experts.iter().enumerate().map(|(expert, &[tokens, original_tokens, both])| {
            ExpertReport { expert, tokens, original_tokens, agreement: share(both, original_tokens) }
        });
        let sum = |column: usize| self.experts.iter().map(|expert| expert[column]).sum();
        LayerReport {
            layer,
            relative_error: (self.distance.difference / self.distance.original.max(f64::MIN_POSITIVE)).sqrt(),
            cosine: self.distance.cosine / self.tokens.max(1) as f64,
            routing_agreement: share(sum(2), sum(1)),
            experts: experts.collect(),
        }
    }
}

impl Distance {
    fn of(hidden: usize, model: &[f32], original: &[f32]) -> Self {
        let mut sums = Self::default();
        for (h, g) in model.chunks_exact(hidden).zip(original.chunks_exact(hidden)) {
            let (mut difference, mut hh, mut gg, mut hg) = (0.0, 0.0, 0.0, 0.0);
            for (&h, &g) in h.iter().zip(g) {
                let (h, g) = (f64::from(h), f64::from(g));
                difference += (h - g) * (h - g);
                hh += h * h;
                gg += g * g;
                hg += h * g;
            }
            // Two states of zeros are equal.
            let norms = (hh * gg).sqrt();
            let cosine = if norms > 0.0 { hg / norms } else { f64::from(u8::from(hh == gg)) };
            sums.add(Self { difference, original: gg, cosine });
        }
        sums
    }

    fn add(&mut self, other: Self) {
        self.difference += other.difference;
        self.original += other.original;
        self.cosine += other.cosine;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_and_cosine_of_two_tokens() {
        let sums = Sums {
            tokens: 2,
            distance: Distance::of(2, &[3.0, 4.0, 0.0, 2.0], &[3.0, 4.0, 2.0, 0.0]),
            experts: vec![[3, 4, 2], [1, 0, 0]],
        };
        let report = sums.report(7);
        assert!((report.relative_error - (8.0f64 / 29.0).sqrt()).abs() < 1e-12);
        assert!((report.cosine - 0.5).abs() < 1e-12);
        assert_eq!(report.routing_agreement, Some(0.5));
        assert_eq!(report.experts[0].agreement, Some(0.5));
        assert_eq!(report.experts[1].agreement, None);
    }
}
