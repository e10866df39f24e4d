//! RMS norm: `y = w * x / sqrt(mean(x^2) + eps)`, row by row.

use super::matmul::Into;
use super::states::{BLOCK_ROWS, States};
use crate::error::Result;

/// Norm of the first `weight_K.len()` columns of every row; the rest is left out.
///
/// # Errors
/// When the states cannot be read or kept.
pub(crate) fn rms_norm(x: &States, weight_K: &[f32], eps: f64) -> Result<States> {
    let cols = weight_K.len();
    let mut y = x.sibling(x.rows(), cols)?;
    y.for_each_block(BLOCK_ROWS, 0..cols, Into::Replace, |tokens, part| {
        let (stride, x) = (x.cols(), x.read(tokens)?);
        for (y_K, x_K) in part.data.chunks_exact_mut(cols).zip(x.chunks_exact(stride)) {
            norm_row(&x_K[..cols], weight_K, eps, y_K);
        }
        Ok(())
    })?;
    Ok(y)
}

/// Norm of one row.
///
/// transformers gives the two low-rank norms of latent attention its default epsilon, 1e-6,
/// rather than the configured one; llama.cpp uses the configured one everywhere, and so do we.
pub(crate) fn norm_row(x_K: &[f32], weight_K: &[f32], eps: f64, y_K: &mut [f32]) {
    let scale = scale(x_K, eps);
    for ((y, x), w) in y_K.iter_mut().zip(x_K).zip(weight_K) {
        *y = w * (x * scale);
    }
}

/// Norm of one head, in place.
pub(crate) fn norm_head(x_K: &mut [f32], weight_K: &[f32], eps: f64) {
    let scale = scale(x_K, eps);
    for (x, w) in x_K.iter_mut().zip(weight_K) {
        *x = w * (*x * scale);
    }
}

/// `1 / sqrt(mean(x^2) + eps)`.
pub(crate) fn scale(x_K: &[f32], eps: f64) -> f32 {
    scale_of(x_K.iter().map(|&x| f64::from(x) * f64::from(x)).sum(), x_K.len(), eps)
}

/// The same from the sum of `len` squares.
pub(crate) fn scale_of(sum: f64, len: usize, eps: f64) -> f32 {
    (1.0 / (sum / len as f64 + eps).sqrt()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_unit_mean_square() {
        let norm = |x: &[f32], weight: &[f32], eps| {
            let mut y = vec![0.0; x.len()];
            norm_row(x, weight, eps, &mut y);
            y
        };
        assert_eq!(norm(&[3.0, -3.0], &[1.0, 2.0], 0.0), [1.0, -2.0]);
        assert_eq!(norm(&[0.5, 0.5], &[1.0, 2.0], 0.0), [1.0, 2.0]);
        assert_eq!(norm(&[0.0, 0.0], &[1.0, 1.0], 1e-6), [0.0, 0.0]);
        let mut head = [3.0, -3.0];
        norm_head(&mut head, &[1.0, 2.0], 0.0);
        assert_eq!(head, [1.0, -2.0]);
    }
}
