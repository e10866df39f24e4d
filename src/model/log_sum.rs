//! The logarithm of a sum of exponentials that grows chunk by chunk: what turns logits into probabilities.

use super::exponential::{largest, sum_of_powers, weighted_sums_of_powers};

/// `ln sum exp(logit)` of the logits seen so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogSum {
    largest: f32,
    /// Sum of `exp(logit - largest)`.
    sum: f64,
}

impl LogSum {
    /// Of no logit.
    pub(crate) const EMPTY: Self = Self { largest: f32::NEG_INFINITY, sum: 0.0 };

    /// The largest logit so far.
    pub(crate) fn largest(&self) -> f32 {
        self.largest
    }

    /// Takes in more logits.
    pub(crate) fn add(&mut self, logits: &[f32]) {
        self.rise(largest(logits, self.largest));
        self.sum += sum_of_powers(logits, self.largest);
    }

    /// The same, and adds to `weighted` what `exp(logit - largest) (logit - other)` sums up to, in units of this sum.
    pub(crate) fn add_weighted(&mut self, weighted: &mut f64, logits: &[f32], others: &[f32]) {
        *weighted *= self.rise(largest(logits, self.largest));
        let (sum, products) = weighted_sums_of_powers(logits, others, self.largest);
        self.sum += sum;
        *weighted += products;
    }

    /// Refers the sum to a new largest logit; returns what it was multiplied with.
    fn rise(&mut self, largest: f32) -> f64 {
        if self.sum == 0.0 || largest == self.largest {
            self.largest = largest;
            return 1.0;
        }
        let shrink = (f64::from(self.largest) - f64::from(largest)).exp();
        self.largest = largest;
        self.sum *= shrink;
        shrink
    }

    /// Sum of `exp(logit - largest)`.
    pub(crate) fn sum(&self) -> f64 {
        self.sum
    }

    /// The logarithm.
    pub(crate) fn value(&self) -> f64 {
        f64::from(self.largest) + self.sum.ln()
    }

    /// The probability of a logit.
    pub(crate) fn probability(&self, logit: f32) -> f64 {
        (f64::from(logit) - f64::from(self.largest)).exp() / self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_of_the_vocabulary_sum_up_to_the_whole() {
        let logits: Vec<f32> = (0..100).map(|i| ((i * 37) % 100) as f32 * 0.7 - 30.0).collect();
        let others: Vec<f32> = logits.iter().map(|logit| logit * 0.9).collect();
        let whole = logits.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>();
        let differences = logits.iter().zip(&others).map(|(&a, &b)| f64::from(a) - f64::from(b));
        let mean = logits.iter().zip(differences).map(|(&a, d)| f64::from(a).exp() * d).sum::<f64>() / whole;
        for size in [1, 7, 100] {
            let (mut sum, mut with, mut weighted) = (LogSum::EMPTY, LogSum::EMPTY, 0.0);
            for (chunk, others) in logits.chunks(size).zip(others.chunks(size)) {
                sum.add(chunk);
                with.add_weighted(&mut weighted, chunk, others);
            }
            for sum in [sum, with] {
                assert!((sum.value() - whole.ln()).abs() < 1e-10, "{size}: {} {}", sum.value(), whole.ln());
            }
            assert!((weighted / with.sum() - mean).abs() < 1e-10, "{size}");
            assert!((sum.probability(logits[3]) - f64::from(logits[3]).exp() / whole).abs() < 1e-12);
        }
    }
}
