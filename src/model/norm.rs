//! RMS norm: `y = w * x / sqrt(mean(x^2) + eps)`, row by row.

use rayon::prelude::*;

/// Norm of the first `weight_K.len()` columns of rows `stride` apart; the rest is left out.
///
/// transformers gives the two low-rank norms of latent attention its default epsilon, 1e-6,
/// rather than the configured one; llama.cpp uses the configured one everywhere, and so do we.
pub(super) fn rms_norm(x: &[f32], stride: usize, weight_K: &[f32], eps: f64) -> Vec<f32> {
    let cols = weight_K.len();
    let mut y_TK = vec![0.0; x.len() / stride * cols];
    y_TK.par_chunks_mut(cols).zip(x.par_chunks(stride)).for_each(|(y_K, x_K)| {
        let x_K = &x_K[..cols];
        let scale = scale(x_K, eps);
        for ((y, x), w) in y_K.iter_mut().zip(x_K).zip(weight_K) {
            *y = w * (x * scale);
        }
    });
    y_TK
}

/// Norm of one head, in place.
pub(super) fn norm_head(x_K: &mut [f32], weight_K: &[f32], eps: f64) {
    let scale = scale(x_K, eps);
    for (x, w) in x_K.iter_mut().zip(weight_K) {
        *x = w * (*x * scale);
    }
}

/// `1 / sqrt(mean(x^2) + eps)`.
fn scale(x_K: &[f32], eps: f64) -> f32 {
    let sum: f64 = x_K.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    (1.0 / (sum / x_K.len() as f64 + eps).sqrt()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_unit_mean_square_and_ignore_what_follows() {
        let y = rms_norm(&[3.0, -3.0, 99.0, 0.5, 0.5, 99.0], 3, &[1.0, 2.0], 0.0);
        assert_eq!(y, [1.0, -2.0, 1.0, 2.0]);
        let mut head = [3.0, -3.0];
        norm_head(&mut head, &[1.0, 2.0], 0.0);
        assert_eq!(head, [1.0, -2.0]);
        assert_eq!(rms_norm(&[0.0, 0.0], 2, &[1.0, 1.0], 1e-6), [0.0, 0.0]);
    }
}
