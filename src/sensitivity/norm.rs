//! Backwards through an RMS norm, `y = w x s` with `s = (mean(x^2) + eps)^(-1/2)`:
//!
//! ```text
//! dx_k = s w_k dy_k - x_k s^3 / K * sum over j of w_j dy_j x_j
//! ```

use crate::error::Result;
use crate::model::matmul::Into;
use crate::model::norm::scale;
use crate::model::states::{BLOCK_ROWS, Part, States};

/// Adds to `dx` what the norm of the first `weight_K.len()` columns of `x` passes on of `dy`.
///
/// # Errors
/// When the states cannot be read or kept.
pub(super) fn add_back(x: &States, weight_K: &[f32], eps: f64, dy: &States, dx: &mut States) -> Result<()> {
    let cols = weight_K.len();
    dx.for_each_block(BLOCK_ROWS, 0..cols, Into::Add, |rows, part| {
        let (x_all, dy_K) = (x.read(rows.clone())?, dy.read(rows)?);
        let Part { data, stride, offset } = part;
        let inputs = x_all.chunks_exact(x.cols()).zip(dy_K.chunks_exact(cols));
        for (dx, (x_K, dy_K)) in data.chunks_exact_mut(stride).zip(inputs) {
            add_back_row(&x_K[..cols], weight_K, eps, dy_K, &mut dx[offset..offset + cols]);
        }
        Ok(())
    })
}

/// The same of one row.
pub(super) fn add_back_row(x_K: &[f32], weight_K: &[f32], eps: f64, dy_K: &[f32], dx_K: &mut [f32]) {
    let scale = f64::from(scale(x_K, eps));
    let passed = || weight_K.iter().zip(dy_K).map(|(&w, &dy)| f64::from(w) * f64::from(dy));
    let along: f64 = passed().zip(x_K).map(|(passed, &x)| passed * f64::from(x)).sum();
    let pull = scale * scale * scale * along / x_K.len() as f64;
    for ((dx, &x), passed) in dx_K.iter_mut().zip(x_K).zip(passed()) {
        *dx += (scale * passed - f64::from(x) * pull) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sensitivity::tests::{check_gradient, numbers};

    #[test]
    fn it_is_the_slope_of_the_norm() {
        for (len, eps) in [(1, 1e-2), (7, 1e-6), (64, 0.3)] {
            let (x, weight, dy) = (numbers(len, 1), numbers(len, 2), numbers(len, 3));
            let mut dx = vec![0.5; len];
            add_back_row(&x, &weight, eps, &dy, &mut dx);
            dx.iter_mut().for_each(|dx| *dx -= 0.5);
            check_gradient(&x, &dx, 1e-5, |x| {
                let square: f64 = x.iter().map(|x| x * x).sum::<f64>() / len as f64;
                let terms = x.iter().zip(&weight).zip(&dy);
                terms.map(|((x, &w), &dy)| x * f64::from(w) * f64::from(dy) / (square + eps).sqrt()).sum()
            });
        }
    }
}
