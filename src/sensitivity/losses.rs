//! From what was measured to what each type of each tensor costs.

use std::collections::BTreeMap;

use super::meter::Found;
use crate::plan::Blueprint;
use crate::plan::budget::Choices;

/// How much a tensor's errors matter.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSensitivity {
    /// The tensor, or the first of those that get one type with it and are measured together.
    pub name: String,
    /// Tensors.
    pub tensors: usize,
    /// Weights in them.
    pub parameters: u64,
    /// `kappa`: KL divergence for each unit of the mean squared error of what the tensor's products are; `None` where no
    /// gradient reaches the tensor, or it is not stored row by row.
    pub kappa: Option<f64>,
    /// KL divergence for each unit of relative squared error of the weights, in the mean over types.
    pub by_weights: f64,
    /// KL divergence that each type is expected to cost, by its name.
    pub divergences: BTreeMap<String, f64>,
}

/// Losses of candidates, and the same for people. `errors` are relative squared errors of weights; `left` says of each choice how
/// much of its error is left when it is rounded with feedback.
pub(super) fn losses(
    base: &Blueprint,
    choices: &[Choices],
    errors: &[Vec<f64>],
    (found, left): (&[Vec<Found>], &[f64]),
    tokens: usize,
) -> (Vec<Vec<f64>>, Vec<TensorSensitivity>) {
    let kappas: Vec<Option<f64>> = found.iter().map(|found| kappa(found, tokens)).collect();
    let known = |at: usize| -> Option<Vec<f64>> {
        let loss = |found: &Found| kappas[at].map(|kappa| kappa * found.error * left[at]);
        found[at].iter().map(loss).collect()
    };
    // What a relative squared error of 1 costs, and of all for each weight.
    let mean_rates: Vec<Option<f64>> = (0..choices.len()).map(|at| rate(&known(at)?, &errors[at])).collect();
    let per_weight = geometric_mean(
        mean_rates
            .iter()
            .zip(choices)
            .filter_map(|(rate, choices)| Some((*rate)? / choices.len_elems(base).max(1) as f64)),
    );
    let mut all = Vec::with_capacity(choices.len());
    let mut table = Vec::with_capacity(choices.len());
    for (at, choices) in choices.iter().enumerate() {
        let parameters = choices.len_elems(base);
        let by_weights = mean_rates[at].or(per_weight.map(|rate| rate * parameters as f64)).unwrap_or(1.0);
        let losses = match (known(at), mean_rates[at]) {
            (Some(losses), Some(_)) => losses,
            _ => errors[at].iter().map(|error| by_weights * error).collect(),
        };
        let types = choices.candidates.iter().map(|candidate| candidate.choice.to_string());
        table.push(TensorSensitivity {
            name: base.tensors[choices.tensors[0]].names[0].clone(),
            tensors: choices.tensors.len(),
            parameters,
            kappa: kappas[at].filter(|_| mean_rates[at].is_some()),
            by_weights,
            divergences: types.zip(losses.iter().copied()).collect(),
        });
        all.push(losses);
    }
    (all, table)
}

/// The geometric mean over types of KL divergence and error of outputs.
fn kappa(found: &[Found], tokens: usize) -> Option<f64> {
    geometric_mean(found.iter().filter(|found| found.error > 0.0).map(|found| {
        let squares: f64 = found.inner.iter().map(|inner| inner * inner).sum();
        squares / (2 * tokens) as f64 / found.error
    }))
}

/// The geometric mean over types of loss and error.
fn rate(losses: &[f64], errors: &[f64]) -> Option<f64> {
    geometric_mean(
        losses.iter().zip(errors).filter(|(_, error)| **error > 0.0).map(|(loss, error)| loss / error),
    )
}

/// Of what is above 0.
fn geometric_mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let logarithms: Vec<f64> =
        values.filter(|&value| value > 0.0 && value.is_finite()).map(f64::ln).collect();
    let count = logarithms.len() as f64;
    (!logarithms.is_empty()).then(|| (logarithms.iter().sum::<f64>() / count).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kappa_is_the_geometric_mean_over_types() {
        let found = |inner: [f64; 2], error| Found { inner: inner.to_vec(), error };
        // 25 / (2 * 10) / 0.5 and 100 / 20 / 8; what changes nothing says nothing.
        let all = [found([3.0, -4.0], 0.5), found([0.0, 10.0], 8.0), found([0.0, 0.0], 0.0)];
        let kappa = kappa(&all, 10).unwrap();
        assert!((kappa - (2.5f64 * 0.625).sqrt()).abs() < 1e-12, "{kappa}");
        assert_eq!(super::kappa(&all[2..], 10), None);
        assert_eq!(rate(&[2.0, 0.0, 8.0], &[1.0, 0.0, 1.0]), Some(4.0));
    }
}
