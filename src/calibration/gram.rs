//! Sums of outer products of inputs, and their factors.
//!
//! Work is divided in tiles of one size, whatever the number of threads: every bit of a result is the same at any.
//!
//! Legend: T tokens, K columns, R rows of the other side.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::checkpoint::Matrix;
use crate::error::Result;

/// Tokens that are summed at once.
const TOKENS: usize = 512;
/// Side of a tile of a sum.
const TILE: usize = 256;
/// Columns that are eliminated at once.
const BLOCK: usize = 64;

/// A square or other matrix of `f32`, row after row.
#[derive(Debug, Clone, Default)]
pub(crate) struct Square {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) data: Vec<f32>,
}

impl Square {
    /// Zeros.
    pub(crate) fn new(rows: usize, cols: usize) -> Self {
        Self { rows, cols, data: vec![0.0; rows * cols] }
    }

    /// Mean of the diagonal.
    pub(crate) fn mean_diagonal(&self) -> f64 {
        let diagonal = self.data.iter().step_by(self.cols + 1);
        diagonal.map(|&value| f64::from(value)).sum::<f64>() / self.rows.max(1) as f64
    }

    /// Adds `factor` times another.
    pub(crate) fn add(&mut self, factor: f32, other: &Self) {
        self.data.par_iter_mut().zip(&other.data).for_each(|(value, other)| *value += factor * other);
    }
}

/// Adds the sum over rows of the outer products of rows of `a` (`[T, R]`) and `b` (`[T, K]`), each with its factor, if there
/// are factors; with `lower`, only on and below the diagonal.
fn add_products(sum: &mut Square, a: &[f32], b: &[f32], lower: bool) {
    let (rows, cols) = (sum.rows, sum.cols);
    let tokens = a.len() / rows.max(1);
    let a = MatRef::from_row_major_slice(a, tokens, rows);
    let b = MatRef::from_row_major_slice(b, tokens, cols);
    sum.data.par_chunks_mut(TILE * cols).enumerate().for_each(|(band, data)| {
        let first = band * TILE;
        let count = data.len() / cols;
        let mut y = MatMut::from_row_major_slice_mut(data, count, cols);
        let end = if lower { (first + count).min(cols) } else { cols };
        for start in (0..end).step_by(TILE) {
            let width = TILE.min(end - start);
            let tile = y.as_mut().subcols_mut(start, width);
            matmul(
                tile,
                Accum::Add,
                a.subcols(first, count).transpose(),
                b.subcols(start, width),
                1.0,
                Par::Seq,
            );
        }
    });
}

/// The sum over tokens of `a_t^T b_t`, in the rows' order; for `a` the same as `b` see [`gram`].
///
/// # Errors
/// When they cannot be read.
pub(crate) fn cross(
    rows: usize,
    b: &dyn Matrix,
    mut a: impl FnMut(std::ops::Range<usize>, &[f32]) -> Result<Vec<f32>>,
) -> Result<Square> {
    let mut sum = Square::new(rows, b.cols());
    for first in (0..b.rows()).step_by(TOKENS) {
        let tokens = first..b.rows().min(first + TOKENS);
        let b = weighed(b, tokens.clone())?;
        add_products(&mut sum, &a(tokens, &b)?, &b, false);
    }
    Ok(sum)
}

/// The sum over tokens of `x_t^T x_t`.
///
/// # Errors
/// When they cannot be read.
pub(crate) fn gram(x: &dyn Matrix) -> Result<Square> {
    let mut sum = Square::new(x.cols(), x.cols());
    for first in (0..x.rows()).step_by(TOKENS) {
        let x = weighed(x, first..x.rows().min(first + TOKENS))?;
        add_products(&mut sum, &x, &x, true);
    }
    mirror(&mut sum);
    Ok(sum)
}

/// Rows times the factor on what becomes of them.
pub(crate) fn weighed(x: &dyn Matrix, rows: std::ops::Range<usize>) -> Result<Vec<f32>> {
    let mut data = x.read(rows.clone())?.into_owned();
    if let Some(picks) = x.picks() {
        for (row, &(_, factor)) in data.chunks_exact_mut(x.cols().max(1)).zip(&picks[rows]) {
            row.iter_mut().for_each(|value| *value *= factor);
        }
    }
    Ok(data)
}

/// Copies what is below the diagonal to above it.
fn mirror(sum: &mut Square) {
    let n = sum.rows;
    for row in 0..n {
        for col in row + 1..n {
            sum.data[row * n + col] = sum.data[col * n + row];
        }
    }
}

/// A symmetric positive definite `H` as `N diag(c) N^T`, `N` upper triangular with ones on its diagonal.
#[derive(Debug)]
pub(crate) struct Factor {
    /// `N`; elements on and below the diagonal do not count.
    pub(crate) shares: Square,
    /// `c`.
    pub(crate) costs: Vec<f32>,
}

impl Factor {
    /// Factors `h`, whose lower half does not count. `None` when it is not positive definite in `f32`.
    pub(crate) fn new(mut h: Square) -> Option<Self> {
        let n = h.rows;
        let mut costs = vec![0.0; n];
        let mut end = n;
        while end > 0 {
            let start = (end - 1) / BLOCK * BLOCK;
            eliminate(&mut h, start..end, &mut costs)?;
            end = start;
        }
        Some(Self { shares: h, costs })
    }

    /// Solves `x H = b` for each row of `b`, `[rows, n]`, in place.
    pub(crate) fn solve(&self, b: &mut [f32]) {
        let n = self.costs.len();
        // b = z N^T with z = x N diag(c), from the last column on; then x, from the first.
        let rows = b.len() / n.max(1);
        let starts: Vec<usize> = (0..n).step_by(BLOCK).collect();
        for &start in starts.iter().rev() {
            let end = n.min(start + BLOCK);
            self.within(b, start..end, true);
            self.spread(b, rows, start..end, 0..start);
        }
        b.par_chunks_mut(n.max(1)).for_each(|row| {
            row.iter_mut().zip(&self.costs).for_each(|(value, cost)| *value /= cost);
        });
        for &start in &starts {
            let end = n.min(start + BLOCK);
            self.within(b, start..end, false);
            self.spread(b, rows, start..end, end..n);
        }
    }

    /// Substitutes among the columns of a block: later ones in earlier ones, or the other way round.
    fn within(&self, b: &mut [f32], block: std::ops::Range<usize>, backwards: bool) {
        let n = self.costs.len();
        b.par_chunks_mut(n).for_each(|row| {
            if backwards {
                for k in block.clone().rev() {
                    for j in block.start..k {
                        row[j] -= row[k] * self.shares.data[j * n + k];
                    }
                }
            } else {
                for j in block.clone() {
                    for k in j + 1..block.end {
                        row[k] -= row[j] * self.shares.data[j * n + k];
                    }
                }
            }
        });
    }

    /// Subtracts what the columns of a block, found by now, are worth in others.
    fn spread(
        &self,
        b: &mut [f32],
        rows: usize,
        block: std::ops::Range<usize>,
        others: std::ops::Range<usize>,
    ) {
        let n = self.costs.len();
        let shares = MatRef::from_row_major_slice(&self.shares.data, n, n);
        let earlier = others.end <= block.start;
        // Tiles of columns side by side, so that several threads can work for few rows.
        let mut found = vec![0.0; rows * block.len()];
        for (to, row) in found.chunks_exact_mut(block.len()).zip(b.chunks_exact(n)) {
            to.copy_from_slice(&row[block.clone()]);
        }
        let found = MatRef::from_row_major_slice(&found, rows, block.len());
        let y = MatMut::from_row_major_slice_mut(b, rows, n).subcols_mut(others.start, others.len());
        in_tiles(y, 0, &|y, at, width| {
            let first = others.start + at;
            let part = if earlier {
                shares.submatrix(first, block.start, width, block.len()).transpose()
            } else {
                shares.submatrix(block.start, first, block.len(), width)
            };
            matmul(y, Accum::Add, found, part, -1.0, Par::Seq);
        });
    }
}

/// Calls `work` for tiles of columns, on several threads.
pub(crate) fn in_tiles(y: MatMut<f32>, first: usize, work: &(dyn Fn(MatMut<f32>, usize, usize) + Sync)) {
    let width = y.ncols();
    if width == 0 {
        return;
    }
    if width <= TILE {
        return work(y, first, width);
    }
    let half = (width / 2).next_multiple_of(TILE);
    let (left, right) = y.split_at_col_mut(half);
    rayon::join(|| in_tiles(left, first, work), || in_tiles(right, first + half, work));
}

/// Eliminates the columns of `block`, the last ones that are left: afterwards they hold `N`, and the elements above and to
/// the left of them hold what is left of `h`.
fn eliminate(h: &mut Square, block: std::ops::Range<usize>, costs: &mut [f32]) -> Option<()> {
    let n = h.rows;
    // The block itself, in f64.
    for k in block.clone().rev() {
        let cost = h.data[k * n + k];
        // Not above zero, or no number.
        if cost.partial_cmp(&0.0) != Some(std::cmp::Ordering::Greater) || !cost.is_finite() {
            return None;
        }
        costs[k] = cost;
        let column: Vec<f64> =
            (block.start..k).map(|j| f64::from(h.data[j * n + k]) / f64::from(cost)).collect();
        for (at, i) in (block.start..k).enumerate() {
            for (other, j) in (i..k).enumerate() {
                let lost = column[at] * column[at + other] * f64::from(cost);
                h.data[i * n + j] = (f64::from(h.data[i * n + j]) - lost) as f32;
            }
            h.data[i * n + k] = column[at] as f32;
        }
    }
    // Rows above it: the same substitutions.
    let width = block.len();
    let (above, own) = h.data.split_at_mut(block.start * n);
    above.par_chunks_mut(n).for_each(|row| {
        for k in (0..width).rev() {
            let share = row[block.start + k] / costs[block.start + k];
            row[block.start + k] = share;
            for j in 0..k {
                row[block.start + j] -= share * costs[block.start + k] * own[j * n + block.start + k];
            }
        }
    });
    // What is left of the rest.
    let scaled: Vec<f32> = above
        .par_chunks(n)
        .flat_map_iter(|row| (0..width).map(|k| row[block.start + k] * costs[block.start + k]))
        .collect();
    let shares: Vec<f32> = above.par_chunks(n).flat_map_iter(|row| row[block.clone()].to_vec()).collect();
    let (scaled, shares) = (
        MatRef::from_row_major_slice(&scaled, block.start, width),
        MatRef::from_row_major_slice(&shares, block.start, width),
    );
    above.par_chunks_mut(TILE * n).enumerate().for_each(|(band, data)| {
        let first = band * TILE;
        let count = data.len() / n;
        let mut y = MatMut::from_row_major_slice_mut(data, count, n);
        for start in (first..block.start).step_by(TILE) {
            let width = TILE.min(block.start - start);
            let tile = y.as_mut().subcols_mut(start, width);
            matmul(
                tile,
                Accum::Add,
                scaled.subrows(first, count),
                shares.subrows(start, width).transpose(),
                -1.0,
                Par::Seq,
            );
        }
    });
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize) -> Vec<f32> {
        let mut state = 9u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..count).map(|_| next()).collect()
    }

    struct Plain(Vec<f32>, usize);

    impl Matrix for Plain {
        fn rows(&self) -> usize {
            self.0.len() / self.1
        }

        fn cols(&self) -> usize {
            self.1
        }

        fn read(&self, rows: std::ops::Range<usize>) -> Result<std::borrow::Cow<'_, [f32]>> {
            Ok((&self.0[rows.start * self.1..rows.end * self.1]).into())
        }
    }

    /// Blocks, tiles and their ends: factor and solution against what they stand for, in f64.
    #[test]
    fn factors_multiply_to_what_was_factored_and_solve_it() {
        for n in [1, 5, 64, 65, 300, 530] {
            let x = Plain(numbers(3 * n * n), n);
            let mut h = gram(&x).unwrap();
            let damping = 0.01 * h.mean_diagonal() as f32;
            (0..n).for_each(|k| h.data[k * n + k] += damping);
            let factor = Factor::new(h.clone()).unwrap();
            let share = |j: usize, k: usize| match j.cmp(&k) {
                std::cmp::Ordering::Less => f64::from(factor.shares.data[j * n + k]),
                std::cmp::Ordering::Equal => 1.0,
                std::cmp::Ordering::Greater => 0.0,
            };
            let scale = h.mean_diagonal();
            for i in (0..n).step_by(7) {
                for j in 0..n {
                    let product: f64 =
                        (0..n).map(|k| share(i, k) * f64::from(factor.costs[k]) * share(j, k)).sum();
                    let expected = f64::from(h.data[i * n + j]);
                    assert!((product - expected).abs() < 2e-5 * scale, "{n}: {i} {j}: {product} {expected}");
                }
            }
            let wanted = numbers(3 * n);
            let mut b = vec![0.0f32; 3 * n];
            for (b, x) in b.chunks_exact_mut(n).zip(wanted.chunks_exact(n)) {
                for (j, b) in b.iter_mut().enumerate() {
                    *b = (0..n).map(|i| f64::from(x[i]) * f64::from(h.data[i * n + j])).sum::<f64>() as f32;
                }
            }
            factor.solve(&mut b);
            let worst = b.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 2e-3, "{n}: {worst}");
        }
    }

    #[test]
    fn what_is_not_positive_definite_is_told() {
        let mut h = Square::new(2, 2);
        h.data = vec![1.0, 2.0, 2.0, 1.0];
        assert!(Factor::new(h.clone()).is_none());
        h.data[3] = f32::NAN;
        assert!(Factor::new(h).is_none());
    }
}
