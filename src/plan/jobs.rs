//! Cuts a blueprint into jobs: units of work that read, encode and write bytes of their own.
//!
//! Jobs share nothing, so they run in any order and on any number of threads with the same
//! result.

use std::ops::Range;

use super::{Blueprint, Piece};
use crate::checkpoint::SourceTensor;

/// Weights in a job, at most (a single longer row makes a longer job). One routed expert matrix
/// of DeepSeek-V3, 2048 x 7168, is 14.7 M: one job.
const MAX_JOB_ELEMS: usize = 1 << 24;

/// Rows of one piece of one output tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Position in [`Blueprint::tensors`].
    pub tensor: usize,
    /// Position in [`super::OutputTensor::pieces`].
    pub piece: usize,
    /// Source rows: a part of the piece's rows, or all of them when they are turned.
    pub source_rows: Range<usize>,
    /// First row written, counted from the start of the output tensor.
    pub first_row: usize,
}

/// Every job of `blueprint`, in the order of the output's bytes.
///
/// `sources` are the tensors that the pieces refer to.
pub fn jobs(blueprint: &Blueprint, sources: &[SourceTensor]) -> Vec<Job> {
    let mut jobs = Vec::new();
    for (tensor, output) in blueprint.tensors.iter().enumerate() {
        let mut first_row = 0;
        for (number, piece) in output.pieces.iter().enumerate() {
            let source = &sources[piece.source];
            let (_, cols) = source.matrix();
            let step = if !piece.turn.is_none() {
                piece.rows.len()
            } else {
                whole_bands(MAX_JOB_ELEMS / cols.max(1), output.layout.band_rows())
            };
            let stacked = stacked_rows(source, output.layout.band_rows()).filter(|_| piece.turn.is_none());
            let mut start = piece.rows.start;
            while start < piece.rows.end {
                let mut end = piece.rows.end.min(start + step);
                if let Some(rows) = stacked {
                    end = end.min((start / rows + 1) * rows);
                }
                let job = Job { tensor, piece: number, source_rows: start..end, first_row };
                first_row += output_rows(piece, end - start, cols);
                jobs.push(job);
                start = end;
            }
        }
        debug_assert!(
            output.content.is_some() || (first_row * output.row_len_elems()) as u64 == output.len_elems()
        );
    }
    jobs
}

/// Rows of one of the matrices that are stacked in a tensor: each is calibrated for inputs of its own, so no job has rows of two.
fn stacked_rows(source: &SourceTensor, band_rows: usize) -> Option<usize> {
    let &[_, rows, _] = source.shape.as_slice() else { return None };
    (rows > 0 && rows.is_multiple_of(band_rows)).then_some(rows)
}

/// Output rows that `rows` source rows of `piece` become.
pub fn output_rows(piece: &Piece, rows: usize, cols: usize) -> usize {
    piece.turn.rows(rows, cols)
}

/// The most rows, not above `rows`, that are whole bands; at least one band.
pub fn whole_bands(rows: usize, band_rows: usize) -> usize {
    (rows / band_rows).max(1) * band_rows
}
