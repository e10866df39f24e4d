//! Matrix products `y = x w^T` and `y = x w` of row-major f32 matrices with a row stride.
//!
//! One product runs on one thread; callers divide work in parts whose size does not depend on the
//! number of threads, so the sums, and with them every bit of the result, do not either.

use std::time::Instant;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// Columns of a part of a wide product: no fewer, for then the product gets slower.
const COLUMN_BLOCK: usize = 128;

/// A row-major matrix inside a slice: row `r` is `data[offset + r * stride..][..cols]`.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) stride: usize,
    /// Column of the first element.
    pub(crate) offset: usize,
}

impl<'a> View<'a> {
    /// All of `data` as rows of `cols`.
    pub(crate) fn new(data: &'a [f32], cols: usize) -> Self {
        Self { data, rows: data.len() / cols, cols, stride: cols, offset: 0 }
    }

    /// `count` rows of `cols` from row `first` of `data` on.
    pub(crate) fn rows(data: &'a [f32], first: usize, count: usize, cols: usize) -> Self {
        Self::new(&data[first * cols..][..count * cols], cols)
    }

    /// `cols` columns from `offset` on.
    pub(crate) fn columns(self, offset: usize, cols: usize) -> Self {
        Self { offset: self.offset + offset, cols, ..self }
    }

    /// The rows before and from `row` on.
    fn split_rows(self, row: usize) -> (Self, Self) {
        let (top, bottom) = self.data.split_at(row * self.stride);
        (Self { data: top, rows: row, ..self }, Self { data: bottom, rows: self.rows - row, ..self })
    }

    fn mat(self) -> MatRef<'a, f32> {
        let whole =
            MatRef::from_row_major_slice(&self.data[..self.rows * self.stride], self.rows, self.stride);
        whole.subcols(self.offset, self.cols)
    }
}

/// What happens to the old value of a result.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Into {
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
pub(crate) fn product_transposed(
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

/// As [`product_transposed`], by all threads that have nothing else to do.
pub(crate) fn wide_product_transposed(
    x_MK: View,
    w_NK: View,
    y: &mut [f32],
    stride: usize,
    offset: usize,
    into: Into,
) {
    let rows = x_MK.rows;
    let y = MatMut::from_row_major_slice_mut(&mut y[..rows * stride], rows, stride);
    halves(x_MK, w_NK, y.subcols_mut(offset, w_NK.rows), into);
}

/// Floating-point operations a second of a plain product of matrices that fit no cache, on the threads of this pool: the best
/// of some tries.
pub fn product_rate() -> f64 {
    const SHAPE: [usize; 3] = [512, 2048, 4096];
    const SECONDS: f64 = 0.4;
    let [m, n, k] = SHAPE;
    let values = |count: usize| -> Vec<f32> { (0..count).map(|at| (at % 31) as f32 * 0.1 - 1.5).collect() };
    let (x, w, mut y) = (values(m * k), values(n * k), vec![0.0; m * n]);
    let begun = Instant::now();
    let mut best = f64::INFINITY;
    while best.is_infinite() || begun.elapsed().as_secs_f64() < SECONDS {
        let start = Instant::now();
        wide_product_transposed(View::new(&x, k), View::new(&w, k), &mut y, n, 0, Into::Replace);
        best = best.min(start.elapsed().as_secs_f64());
    }
    std::hint::black_box(&y);
    2.0 * (m * n * k) as f64 / best
}

/// Halves `w` and `y` until a part has few columns.
fn halves(x_MK: View, w_NK: View, y_MN: MatMut<f32>, into: Into) {
    if w_NK.rows <= COLUMN_BLOCK {
        return matmul(y_MN, into.into(), x_MK.mat(), w_NK.mat().transpose(), 1.0, Par::Seq);
    }
    let half = (w_NK.rows / 2).next_multiple_of(COLUMN_BLOCK);
    let (w_top, w_bottom) = w_NK.split_rows(half);
    let (y_left, y_right) = y_MN.split_at_col_mut(half);
    rayon::join(|| halves(x_MK, w_top, y_left, into), || halves(x_MK, w_bottom, y_right, into));
}

/// `y[:, offset..][..n] = x w` with `x` `[m, k]`, `w` `[k, n]` and rows of `y` `stride` apart.
pub(crate) fn product(x_MK: View, w_KN: View, y: &mut [f32], stride: usize, offset: usize) {
    let rows = x_MK.rows;
    let y = MatMut::from_row_major_slice_mut(&mut y[..rows * stride], rows, stride);
    matmul(y.subcols_mut(offset, w_KN.cols), Accum::Replace, x_MK.mat(), w_KN.mat(), 1.0, Par::Seq);
}

/// `y[:, offset..][..n] += x w`, by all threads that have nothing else to do.
pub(crate) fn add_wide_product(x_MK: View, w_KN: View, y: &mut [f32], stride: usize, offset: usize) {
    fn halves(x_MK: View, w_KN: View, y_MN: MatMut<f32>) {
        if w_KN.cols <= COLUMN_BLOCK {
            return matmul(y_MN, Accum::Add, x_MK.mat(), w_KN.mat(), 1.0, Par::Seq);
        }
        let half = (w_KN.cols / 2).next_multiple_of(COLUMN_BLOCK);
        let (w_left, w_right) = (w_KN.columns(0, half), w_KN.columns(half, w_KN.cols - half));
        let (y_left, y_right) = y_MN.split_at_col_mut(half);
        rayon::join(|| halves(x_MK, w_left, y_left), || halves(x_MK, w_right, y_right));
    }
    let rows = x_MK.rows;
    let y = MatMut::from_row_major_slice_mut(&mut y[..rows * stride], rows, stride);
    halves(x_MK, w_KN, y.subcols_mut(offset, w_KN.cols));
}

/// `x^T w` with `x` `[k, m]`, `w` `[k, n]`: the sum of the outer products of their rows.
pub(crate) fn outer_products(x_KM: View, w_KN: View) -> Vec<f32> {
    let (rows, cols) = (x_KM.cols, w_KN.cols);
    let mut y = vec![0.0; rows * cols];
    let y_MN = MatMut::from_row_major_slice_mut(&mut y, rows, cols);
    matmul(y_MN, Accum::Replace, x_KM.mat().transpose(), w_KN.mat(), 1.0, Par::Seq);
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parts of few columns are summed in another order: equal to `k * epsilon * sum |x| |w|`, with `|x|`, `|w|` up to 0.5.
    #[test]
    fn a_wide_product_is_the_product() {
        let (rows, inner, stride) = (37, 96, 320);
        let values =
            |count: usize| -> Vec<f32> { (0..count).map(|i| ((i * 37) % 101) as f32 * 0.01 - 0.5).collect() };
        let bound = inner as f32 * f32::EPSILON * inner as f32 * 0.25;
        let x = values(rows * inner);
        for cols in [1, 127, 128, 129, 300] {
            let w = values(cols * inner);
            let (mut narrow, mut wide) = (values(rows * stride), values(rows * stride));
            for into in [Into::Replace, Into::Add] {
                let (x, w) = (View::new(&x, inner), View::new(&w, inner));
                product_transposed(x, w, &mut narrow, stride, 7, into);
                wide_product_transposed(x, w, &mut wide, stride, 7, into);
                let worst = narrow.iter().zip(&wide).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst <= 2.0 * bound, "{cols} columns: {worst}");
                let outside = |y: &[f32]| -> Vec<f32> {
                    y.chunks(stride)
                        .flat_map(|row| row[..7].iter().chain(&row[7 + cols..]))
                        .copied()
                        .collect()
                };
                assert_eq!(outside(&wide), outside(&values(rows * stride)), "{cols} columns");
            }
        }
    }

    #[test]
    fn products_the_other_way_round_are_those_of_the_definition() {
        let (rows, inner, cols) = (9, 5, 300);
        let values =
            |count: usize| -> Vec<f32> { (0..count).map(|i| ((i * 37) % 101) as f32 * 0.01 - 0.5).collect() };
        let (x, w) = (values(rows * inner), values(inner * cols));
        let mut wide = vec![1.0; rows * (cols + 3)];
        add_wide_product(View::new(&x, inner), View::new(&w, cols), &mut wide, cols + 3, 2);
        // Of the columns of `x` as rows.
        let turned: Vec<f32> = (0..inner * rows).map(|at| x[at % rows * inner + at / rows]).collect();
        let outer = outer_products(View::new(&turned, rows), View::new(&w, cols));
        for row in 0..rows {
            assert_eq!((wide[row * (cols + 3)], wide[row * (cols + 3) + cols + 2]), (1.0, 1.0));
            for col in 0..cols {
                let exact: f64 =
                    (0..inner).map(|k| f64::from(x[row * inner + k]) * f64::from(w[k * cols + col])).sum();
                // A few products of numbers up to 0.5, beside a 1.
                assert!((f64::from(wide[row * (cols + 3) + 2 + col]) - 1.0 - exact).abs() < 1e-6);
                assert!((f64::from(outer[row * cols + col]) - exact).abs() < 1e-6);
            }
        }
    }
}
