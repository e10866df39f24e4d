//! A sample of the rows of tensors that are measured as one matrix.
//!
//! Rows are drawn in a few runs, one from each of as many equal stretches of the matrix, at a place that a hash of its
//! name and the stretch's number gives: the same ones every time, on every machine and with any number of threads. A run
//! is one read of the source (and one of its scales), so that a source far away is asked seldom.

use std::ops::Range;

use requant_formats::Codec;

use super::Choices;
use crate::checkpoint::{Catalogue, Encoding, TileReader};
use crate::error::Result;
use crate::plan::{Blueprint, OutputTensor, Piece};

/// Weights of a matrix that are looked at, about.
const SAMPLE_ELEMS: usize = 1 << 17;
/// Rows that are looked at, at least.
const MIN_ROWS: usize = 4;
/// Runs of rows, at most.
const MAX_RUNS: usize = 16;

/// How often the source will be read for the samples of `choices`, about.
pub(super) fn reads(source: &Catalogue, blueprint: &Blueprint, choices: &[Choices]) -> usize {
    let samples = choices.iter().map(|choices| Sample::of(source, blueprint, &choices.tensors));
    samples.map(|sample| sample.reads()).sum()
}

/// Runs of rows of some tensors.
pub(super) struct Sample<'a> {
    source: &'a Catalogue,
    runs: Vec<Run<'a>>,
}

/// Rows of a piece of a tensor, as the result has them, counted from the piece's first.
struct Run<'a> {
    piece: &'a Piece,
    rows: Range<usize>,
}

impl<'a> Sample<'a> {
    /// A sample of `tensors` (positions in `blueprint`), which have one shape.
    pub(super) fn of(source: &'a Catalogue, blueprint: &'a Blueprint, tensors: &[usize]) -> Self {
        let tensors: Vec<&OutputTensor> = tensors.iter().map(|&tensor| &blueprint.tensors[tensor]).collect();
        let pieces: Vec<(&Piece, usize)> = tensors
            .iter()
            .flat_map(|tensor| &tensor.pieces)
            .map(|piece| (piece, rows_of(source, piece)))
            .collect();
        let name = tensors.first().map_or("", |tensor| &tensor.names[0]);
        let len = tensors.first().map_or(1, |tensor| tensor.row_len_elems()).max(1);
        let drawn = drawn(name, pieces.iter().map(|(_, rows)| rows).sum(), len);
        let mut runs = Vec::with_capacity(drawn.len());
        let (mut pieces, mut first) = (pieces.into_iter().peekable(), 0);
        for mut wanted in drawn {
            while let Some(&(piece, rows)) = pieces.peek() {
                let end = first + rows;
                if wanted.start < end {
                    let here = wanted.start..wanted.end.min(end);
                    runs.push(Run { piece, rows: here.start - first..here.end - first });
                    wanted.start = here.end;
                    if wanted.is_empty() {
                        break;
                    }
                }
                first = end;
                pieces.next();
            }
        }
        Self { source, runs }
    }

    /// Bytes of its rows in the source, about.
    pub(super) fn stored_bytes(&self) -> u64 {
        let bytes = self.runs.iter().map(|Run { piece, rows }| {
            let tensor = &self.source.tensors()[piece.source];
            let rows = if piece.turn.is_none() { rows.len() } else { piece.rows.len() };
            tensor.len_bytes * rows as u64 / tensor.matrix().0.max(1) as u64
        });
        bytes.sum()
    }

    /// How often the source is read for it.
    fn reads(&self) -> usize {
        let mut last: Option<(usize, Range<usize>)> = None;
        let mut reads = 0;
        for run in &self.runs {
            let (id, rows) = (run.piece.source, run.source_rows());
            let tensor = &self.source.tensors()[id];
            let (count, there) = self.source.reads(id, rows.clone());
            reads += match &last {
                Some((of, _)) if *of == id && tensor.scale().is_some() => count - 1,
                // The band of a packed matrix that was unpacked last is still there.
                Some((of, held)) if *of == id && held.start <= rows.start && rows.end <= held.end => {
                    if matches!(tensor.encoding, Encoding::Packed(_)) { 0 } else { count }
                }
                _ => count,
            };
            last = Some((id, there));
        }
        reads
    }

    /// Whether the run after this one is of the same matrix.
    fn goes_on(&self, number: usize) -> bool {
        let source = |run: &Run<'_>| run.piece.source;
        self.runs.get(number + 1).map(source) == self.runs.get(number).map(source)
    }

    /// Hands its runs to `each`, one after the other: the weights, row after row, and how they were read.
    pub(super) fn read(&self, mut each: impl FnMut(&[f32], Read<'_>)) -> Result<()> {
        let mut reader = TileReader::default();
        let (mut tile, mut turned) = (Vec::new(), Vec::new());
        let mut last = None;
        for (number, run) in self.runs.iter().enumerate() {
            let id = run.piece.source;
            if last != Some(id) && self.goes_on(number) {
                reader.hold_scales(self.source, id)?;
            }
            last = Some(id);
            reader.read(self.source, id, run.source_rows(), &mut tile)?;
            let turn = run.piece.turn;
            if !turn.is_none() {
                let (_, cols) = self.source.tensors()[id].matrix();
                turn.apply(&tile, cols, &mut turned);
                let row_len = tile.len() / turn.rows(run.piece.rows.len(), cols);
                let wanted = &turned[run.rows.start * row_len..run.rows.end * row_len];
                each(wanted, Read { source: self.source, reader: &reader, rows: None });
            } else {
                let rows = Some((id, run.source_rows()));
                each(&tile, Read { source: self.source, reader: &reader, rows });
            }
        }
        Ok(())
    }
}

/// How a run was read.
pub(super) struct Read<'a> {
    source: &'a Catalogue,
    reader: &'a TileReader,
    /// The rows of the source that it is, where it is some.
    rows: Option<(usize, Range<usize>)>,
}

impl Read<'_> {
    /// As the conversion does it: groups that `codec` can hold exactly are written anew to `parts`.
    pub(super) fn keep_grids(&self, codec: &dyn Codec, parts: &mut [&mut [u8]]) {
        if let Some((id, rows)) = &self.rows {
            self.reader.keep_grids(self.source, *id, rows.clone(), codec, parts);
        }
    }
}

impl Run<'_> {
    /// Rows of the source that have it.
    fn source_rows(&self) -> Range<usize> {
        let Self { piece, rows } = self;
        if piece.turn.is_none() {
            piece.rows.start + rows.start..piece.rows.start + rows.end
        } else {
            piece.rows.clone()
        }
    }
}

/// Rows of the result that come from a piece.
fn rows_of(source: &Catalogue, piece: &Piece) -> usize {
    piece.turn.rows(piece.rows.len(), source.tensors()[piece.source].matrix().1)
}

/// The rows to look at, of `all` of length `len`: ascending runs that do not overlap.
fn drawn(name: &str, all: usize, len: usize) -> Vec<Range<usize>> {
    let count = (SAMPLE_ELEMS / len).max(MIN_ROWS).min(all);
    let runs = count.min(MAX_RUNS);
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let drawn = (0..runs).map(|number| {
        let (start, end) = (number * all / runs, (number + 1) * all / runs);
        let rows = ((number + 1) * count / runs - number * count / runs).min(end - start);
        let places = (end - start - rows + 1) as u64;
        let start = start + (mixed(seed.wrapping_add(number as u64)) % places) as usize;
        start..start + rows
    });
    drawn.collect()
}

/// `SplitMix64`.
fn mixed(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_few_apart_and_as_many_rows_as_wanted() {
        for (all, len) in
            [(0, 64), (1, 64), (3, 7168), (18, 7168), (19, 7168), (524_288, 7168), (500, 512), (32_768, 512)]
        {
            let runs = drawn("blk.3.ffn_down_exps.weight", all, len);
            let rows: usize = runs.iter().map(ExactSizeIterator::len).sum();
            assert!(runs.len() <= MAX_RUNS && runs.iter().all(|run| run.end <= all), "{all} {len}: {runs:?}");
            assert!(runs.windows(2).all(|pair| pair[0].end <= pair[1].start), "{all} {len}: {runs:?}");
            // A stretch can be shorter than a run.
            let wanted = (SAMPLE_ELEMS / len).max(MIN_ROWS).min(all);
            assert!(rows <= wanted && 8 * rows >= 7 * wanted, "{all} {len}: {rows} of {wanted}");
        }
        assert_eq!(drawn("a", 1 << 20, 512), drawn("a", 1 << 20, 512));
        assert_ne!(drawn("a", 1 << 20, 512), drawn("b", 1 << 20, 512));
    }
}
