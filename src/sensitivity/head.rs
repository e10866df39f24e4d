//! The loss and its gradient behind the last layer. Labels are drawn from what the model itself predicts, so that the
//! squares of gradients are, on average, how fast its predictions change (the Fisher matrix).
//!
//! A label is drawn as the place of the largest `logit - ln(-ln u)` with `u` from a hash of seed, token and place
//! (Gumbel): in one pass over the vocabulary, the same whatever the number of threads.
//!
//! Legend: T tokens, B tokens of one block, C logits of one tile of the vocabulary.

use super::{Sink, norm};
use crate::checkpoint::WeightStore;
use crate::error::Result;
use crate::family::Role;
use crate::model::head::Head;
use crate::model::linear::{Input, vector};
use crate::model::matmul::{Into, View, add_wide_product};
use crate::model::panel::{Slice, for_each_panel, tiles};
use crate::model::states::{BLOCK_ROWS, States};
use crate::model::{Hidden, LogSum, for_each_logit_chunk};

/// What is known of one token's prediction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drawn {
    token: usize,
    log_sum: LogSum,
    /// The label so far, its logit, and its logit plus noise.
    pub(super) label: usize,
    logit: f32,
    noisy: f64,
}

impl Drawn {
    fn new(token: usize) -> Self {
        let lowest = f32::NEG_INFINITY;
        Self { token, log_sum: LogSum::EMPTY, label: 0, logit: lowest, noisy: f64::NEG_INFINITY }
    }

    /// Sees the logits from place `first` on.
    fn see(&mut self, seed: u64, first: usize, logits: &[f32]) {
        self.log_sum.add(logits);
        for (place, &logit) in (first..).zip(logits) {
            let noisy = f64::from(logit) + noise(seed, self.token, place);
            if noisy > self.noisy {
                (self.label, self.logit, self.noisy) = (place, logit, noisy);
            }
        }
    }

    /// `-ln p(label)`.
    fn loss(&self) -> f64 {
        self.log_sum.value() - f64::from(self.logit)
    }
}

/// `-ln(-ln u)` with a `u` of its own for each token and place.
fn noise(seed: u64, token: usize, place: usize) -> f64 {
    let mixed = |number: u64| {
        let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let number = mixed(mixed(seed ^ token as u64) ^ place as u64);
    let u = ((number >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -(-u.ln()).ln()
}

/// Draws a label for every token of `hidden`.
///
/// # Errors
/// When a weight cannot be read or a logit is not finite.
pub(super) fn draw(store: &dyn WeightStore, hidden: &Hidden, seed: u64) -> Result<Vec<Drawn>> {
    let tokens: Vec<usize> = (0..hidden.states.rows()).collect();
    let mut drawn: Vec<Drawn> = tokens.iter().map(|&token| Drawn::new(token)).collect();
    for_each_logit_chunk(store, hidden, &tokens, &mut drawn, |drawn, first, len, logits_BC| {
        drawn.iter_mut().zip(logits_BC.chunks_exact(len)).for_each(|(drawn, logits_C)| {
            drawn.see(seed, first, logits_C);
        });
    })?;
    Ok(drawn)
}

/// The sum over tokens of `-ln p(label)`.
pub(super) fn loss(drawn: &[Drawn]) -> f64 {
    drawn.iter().map(Drawn::loss).sum()
}

/// The gradient of the loss in front of the head and its norm.
///
/// # Errors
/// As [`draw`]; what the sink says.
pub(super) fn back(
    store: &dyn WeightStore,
    hidden: &Hidden,
    drawn: &[Drawn],
    sink: &mut dyn Sink,
) -> Result<States> {
    let spec = store.spec();
    let tokens: Vec<usize> = (0..hidden.states.rows()).collect();
    let head = Head::new(store, hidden, &tokens)?;
    let panels: Vec<Vec<Slice>> = tiles(store, &head.weight).map(|slice| vec![slice]).collect();
    let mut dx = head.x_SD.sibling(tokens.len(), spec.hidden)?;
    for_each_panel(&panels, |slices, tiles| {
        let ([slice], [w_CD]) = (slices, tiles) else { return Ok(()) };
        let (first, cols) = (slice.rows.start, slice.rows.len());
        let mut dlogits = dx.sibling(tokens.len(), cols)?;
        dlogits.for_each_block(BLOCK_ROWS, 0..cols, Into::Replace, |rows, part| {
            let logits_BC = head.multiply(rows.start / BLOCK_ROWS, slice.rows.clone(), *w_CD)?;
            let logits = drawn[rows].iter().zip(logits_BC.chunks_exact(cols));
            for (dlogits, (drawn, logits)) in part.data.chunks_exact_mut(cols).zip(logits) {
                for (place, (d, &logit)) in (first..).zip(dlogits.iter_mut().zip(logits)) {
                    let hit = if place == drawn.label { 1.0 } else { 0.0 };
                    let share = spec.embedding.logit_cap.map_or(0.0, |cap| logit / cap as f32);
                    *d = (drawn.log_sum.probability(logit) as f32 - hit) * (1.0 - share * share);
                }
            }
            Ok(())
        })?;
        sink.product(Role::Output, first, &Input::All(&head.x_SD), None, &dlogits)?;
        dx.for_each_block(BLOCK_ROWS, 0..spec.hidden, Into::Add, |rows, part| {
            let dlogits_BC = dlogits.read(rows)?;
            add_wide_product(View::new(&dlogits_BC, cols), *w_CD, part.data, part.stride, part.offset);
            Ok(())
        })
    })?;
    let mut dhidden = dx.sibling(dx.rows(), dx.cols())?;
    let weight = vector(store, Role::OutputNorm)?;
    norm::add_back(&hidden.states, &weight, spec.norms.eps, &dx, &mut dhidden)?;
    Ok(dhidden)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As often as the model says, whatever the chunks in which logits come.
    #[test]
    fn labels_have_the_model_s_distribution() {
        let logits = [0.5f32, -1.0, 2.0, 1.0, -3.0];
        let powers: Vec<f64> = logits.iter().map(|&logit| f64::from(logit).exp()).collect();
        let all: f64 = powers.iter().sum();
        let mut counts = [0u32; 5];
        let draws = 20_000;
        for token in 0..draws {
            let mut whole = Drawn::new(token);
            whole.see(7, 0, &logits);
            let mut parts = Drawn::new(token);
            parts.see(7, 0, &logits[..2]);
            parts.see(7, 2, &logits[2..]);
            assert_eq!(whole.label, parts.label);
            assert!((whole.loss() - parts.loss()).abs() < 1e-6);
            assert!((whole.loss() + (powers[whole.label] / all).ln()).abs() < 1e-6);
            counts[whole.label] += 1;
        }
        for (count, power) in counts.iter().zip(&powers) {
            let (found, expected) = (f64::from(*count) / draws as f64, power / all);
            // Four standard deviations.
            assert!((found - expected).abs() < 4.0 * (expected / draws as f64).sqrt(), "{found} {expected}");
        }
    }
}
