//! Products of what a type changes, with gradients and with inputs.
//!
//! Legend: B rows of one block, R rows of a change, K columns.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use crate::calibration::gram::{Square, weighed};
use crate::checkpoint::Matrix;
use crate::error::Result;
use crate::model::linear::{Input, Picks};
use crate::model::matmul::{Into, View, product, wide_product_transposed};
use crate::model::states::BLOCK_ROWS;

/// In parts that a product sums side by side.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    const LEN: usize = 4096;
    let parts = a.chunks(LEN).zip(b.chunks(LEN));
    let of_part = |(a, b): (&[f32], &[f32])| {
        let mut sum = [0.0];
        wide_product_transposed(View::new(a, a.len()), View::new(b, b.len()), &mut sum, 1, 0, Into::Replace);
        f64::from(sum[0])
    };
    parts.map(of_part).sum()
}

/// `tr(dW S dW^T)`.
pub(super) fn under(change: &[f32], sums: &Square) -> f64 {
    let cols = sums.cols;
    let mut passed = vec![0.0; change.len()];
    product(View::new(change, cols), View::new(&sums.data, cols), &mut passed, cols, 0);
    dot(&passed, change)
}

/// The sum over inputs of `|dW x|^2`, for each change.
pub(super) fn squares(changes: &[Vec<f32>], inputs: &Weighed) -> Result<Vec<f64>> {
    let cols = Matrix::cols(inputs);
    let mut sums = vec![0.0; changes.len()];
    for first in (0..Matrix::rows(inputs)).step_by(BLOCK_ROWS) {
        let rows = first..Matrix::rows(inputs).min(first + BLOCK_ROWS);
        let x = weighed(inputs, rows)?;
        let of_change = |change: &Vec<f32>| {
            let (x_BK, dw_RK) = (View::new(&x, cols), View::new(change, cols));
            let mut y = vec![0.0; x_BK.rows * dw_RK.rows];
            wide_product_transposed(x_BK, dw_RK, &mut y, dw_RK.rows, 0, Into::Replace);
            dot(&y, &y)
        };
        let found: Vec<f64> = changes.par_iter().map(of_change).collect();
        sums.iter_mut().zip(found).for_each(|(sum, more)| *sum += more);
    }
    Ok(sums)
}

/// Inputs whose rows have factors.
pub(super) struct Weighed<'a> {
    pub(super) x: &'a Input<'a>,
    pub(super) picks: Option<&'a Picks>,
}

impl Matrix for Weighed<'_> {
    fn rows(&self) -> usize {
        self.x.rows()
    }

    fn cols(&self) -> usize {
        self.x.states().cols()
    }

    fn read(&self, rows: Range<usize>) -> Result<Cow<'_, [f32]>> {
        self.x.read(rows)
    }

    fn picks(&self) -> Option<&[(usize, f32)]> {
        self.picks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibration::gram::gram;
    use crate::model::States;

    /// Both ways to the error of outputs, against the definition.
    #[test]
    fn errors_of_outputs_are_those_of_the_definition() {
        let (rows, tokens, cols) = (3, 700, 5);
        let (x, change) = (
            crate::sensitivity::tests::numbers(tokens * cols, 3),
            crate::sensitivity::tests::numbers(rows * cols, 4),
        );
        let mut states = States::new(&crate::model::Storage::Memory, tokens, cols).unwrap();
        states.write(0, &x).unwrap();
        let picks: Vec<(usize, f32)> = (0..tokens).map(|token| (token, 0.5 + (token % 3) as f32)).collect();
        let input = Input::All(&states);
        let inputs = Weighed { x: &input, picks: Some(&picks) };
        let exact: f64 = (0..tokens)
            .map(|token| {
                let outputs = change.chunks_exact(cols).map(|change| {
                    let x = &x[token * cols..(token + 1) * cols];
                    x.iter().zip(change).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>()
                });
                let square: f64 = outputs.map(|output| output * output).sum();
                square * f64::from(picks[token].1).powi(2)
            })
            .sum();
        let sums = gram(&inputs).unwrap();
        // Sums of some thousand products in f32.
        for found in [under(&change, &sums), squares(std::slice::from_ref(&change), &inputs).unwrap()[0]] {
            assert!((found / exact - 1.0).abs() < 1e-4, "{found} {exact}");
        }
    }
}
