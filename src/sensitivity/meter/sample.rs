//! Which rows of a weight are looked at.

use std::ops::Range;

use crate::checkpoint::Weight;

/// Weights of a matrix that are looked at, about.
pub(super) const SAMPLE_ELEMS: usize = 1 << 20;
/// Rows that are looked at, at least.
const MIN_ROWS: usize = 16;
/// Rows of a run.
const RUN_ROWS: usize = 8;

/// Rows to look at, of so many that came of a weight.
pub(super) fn wanted(rows: usize, weight: &Weight) -> usize {
    let of_all = (SAMPLE_ELEMS / weight.cols).max(MIN_ROWS);
    if of_all >= weight.rows { rows } else { (rows * of_all).div_ceil(weight.rows).max(1) }
}

/// So many of `rows`: runs in the middle of stretches of one length.
pub(super) fn sample(rows: &Range<usize>, count: usize) -> Vec<usize> {
    if count >= rows.len() {
        return rows.clone().collect();
    }
    let runs = count.div_ceil(RUN_ROWS);
    let mut sample = Vec::with_capacity(count);
    for run in 0..runs {
        let (start, end) = (run * rows.len() / runs, (run + 1) * rows.len() / runs);
        let own = ((run + 1) * count / runs - run * count / runs).min(end - start);
        let first = rows.start + start + (end - start - own) / 2;
        sample.extend(first..first + own);
    }
    sample
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_as_many_rows_as_wanted_and_spread() {
        for (rows, count) in [(0..10, 10), (5..105, 17), (0..2048, 146), (3..4, 1), (0..129_280, 16)] {
            let sample = sample(&rows, count);
            assert_eq!(sample.len(), count, "{rows:?}");
            assert!(sample.windows(2).all(|pair| pair[0] < pair[1]), "{rows:?}");
            assert!(sample.iter().all(|row| rows.contains(row)), "{rows:?}");
            // No stretch is left out.
            let gap = sample.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
            assert!(gap <= 2 * rows.len().div_ceil(count.div_ceil(RUN_ROWS)), "{rows:?}: {gap}");
        }
    }
}
