//! Matrix products `y = x w^T` and `y = x w` of row-major f32 matrices with a row stride.
//!
//! One product runs on one thread; callers divide work in parts whose size does not depend on the
//! number of threads, so the sums, and with them every bit of the result, do not either.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// A row-major matrix inside a slice: row `r` is `data[offset + r * stride..][..cols]`.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) stride: usize,
    /// Column of the first element.
    pub(super) offset: usize,
}

impl<'a> View<'a> {
    /// All of `data` as rows of `cols`.
    pub(super) fn new(data: &'a [f32], cols: usize) -> Self {
        Self { data, rows: data.len() / cols, cols, stride: cols, offset: 0 }
    }

    /// `cols` columns from `offset` on.
    pub(super) fn columns(self, offset: usize, cols: usize) -> Self {
        Self { offset: self.offset + offset, cols, ..self }
    }

    fn mat(self) -> MatRef<'a, f32> {
        let whole =
            MatRef::from_row_major_slice(&self.data[..self.rows * self.stride], self.rows, self.stride);
        whole.subcols(self.offset, self.cols)
    }
}

/// What happens to the old value of a result.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Into {
    /// It is replaced.
    Replace,
    /// The product is added to it.
    Add,
}

impl From<Into> for Accum {
    fn from(into: Into) -> Self {
        match into {
            Into::Replace => Self::Replace,
            Into::Add => Self::Add,
        }
    }
}

/// `y[:, offset..][..n] = x w^T` with `x` `[m, k]`, `w` `[n, k]` and rows of `y` `stride` apart.
pub(super) fn product_transposed(
    x_MK: View,
    w_NK: View,
    y: &mut [f32],
    stride: usize,
    offset: usize,
    into: Into,
) {
    let rows = x_MK.rows;
    let y = MatMut::from_row_major_slice_mut(&mut y[..rows * stride], rows, stride);
    matmul(y.subcols_mut(offset, w_NK.rows), into.into(), x_MK.mat(), w_NK.mat().transpose(), 1.0, Par::Seq);
}

/// `y[:, offset..][..n] = x w` with `x` `[m, k]`, `w` `[k, n]` and rows of `y` `stride` apart.
pub(super) fn product(x_MK: View, w_KN: View, y: &mut [f32], stride: usize, offset: usize) {
    let rows = x_MK.rows;
    let y = MatMut::from_row_major_slice_mut(&mut y[..rows * stride], rows, stride);
    matmul(y.subcols_mut(offset, w_KN.cols), Accum::Replace, x_MK.mat(), w_KN.mat(), 1.0, Par::Seq);
}
