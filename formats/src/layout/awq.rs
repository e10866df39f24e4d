//! AWQ checkpoints, version `gemm`: words of eight rows, in an order of their own.
//!
//! | tensor | dtype, shape | |
//! |---|---|---|
//! | `qweight` | I32 `[cols, rows / 8]` | the codes of eight rows in one column, in bits `4 i ..` that of row `order[i]` |
//! | `qzeros` | I32 `[groups, rows / 8]` | their zero points, in the same order |
//! | `scales` | F16 `[groups, rows]` | |
//!
//! `order` is 0 2 4 6 1 3 5 7. Source: AutoAWQ 0.2.9, `modules/linear/gemm.py` (`WQLinear_GEMM.from_linear`).
//!
//! Eight words, one of each row, are eight columns: exchanging nibbles between them makes the stored words. That is
//! done for sixteen times eight rows side by side, which are a cache line of the result.

use std::array::from_fn;
use std::borrow::Cow;
use std::ops::Range;

use super::check;
use super::words::{WORD, join_rows, split_rows, transpose};
use super::{Layout, Matrix, Runs, StoredTensor};
use crate::dispatch::{self, Kernel};
use crate::dtype::Dtype;
use crate::error::Result;

/// See the module.
pub const AWQ: &dyn Layout = &Awq;

struct Awq;

/// Row of each nibble of a word, lowest first.
const ORDER: [usize; WORD] = [0, 2, 4, 6, 1, 3, 5, 7];
/// Words that are worked on side by side.
const LANES: usize = 16;

impl Layout for Awq {
    fn name(&self) -> &'static str {
        "awq"
    }

    fn example_codecs(&self) -> &'static [&'static str] {
        &["awq_int4_g32"]
    }

    fn band_rows(&self) -> usize {
        WORD
    }

    fn tensors(&self, matrix: Matrix<'_>) -> Result<Vec<StoredTensor>> {
        check::codes_are(matrix, self.name(), "qweight")?;
        let [rows, cols] = check::rows_and_cols(matrix, self.name(), WORD)?;
        let groups = matrix.groups_per_row();
        Ok(vec![
            StoredTensor { suffix: "qweight", dtype: Dtype::I32, shape: vec![cols, rows / WORD] },
            StoredTensor { suffix: "qzeros", dtype: Dtype::I32, shape: vec![groups, rows / WORD] },
            StoredTensor { suffix: "scales", dtype: Dtype::F16, shape: vec![groups, rows] },
        ])
    }

    fn runs(&self, matrix: Matrix<'_>, tensor: usize, rows: Range<usize>) -> Runs {
        let (groups, words) = (matrix.groups_per_row(), rows.start / WORD..rows.end / WORD);
        match tensor {
            0 => Runs::columns(matrix.rows() / WORD, 4, words, matrix.cols()),
            1 => Runs::columns(matrix.rows() / WORD, 4, words, groups),
            _ => Runs::columns(matrix.rows(), 2, rows, groups),
        }
    }

    fn pack<'a>(&self, matrix: Matrix<'_>, rows: Range<usize>, parts: &[&'a [u8]]) -> Vec<Cow<'a, [u8]>> {
        let [codes, scales, zeros] = parts else { panic!("awq: three parts") };
        let groups = matrix.groups_per_row();
        let mut qweight = vec![0; codes.len()];
        dispatch::run(Pack { codes, cols: matrix.cols(), qweight: &mut qweight });
        let joined = join_rows(zeros, groups, ORDER);
        let mut qzeros = vec![0; joined.len()];
        transpose::<4>(&joined, rows.len() / WORD, groups, &mut qzeros);
        let mut stored_scales = vec![0; scales.len()];
        transpose::<2>(scales, rows.len(), groups, &mut stored_scales);
        vec![qweight.into(), qzeros.into(), stored_scales.into()]
    }

    fn unpack(
        &self,
        matrix: Matrix<'_>,
        rows: Range<usize>,
        tensors: &[&[u8]],
        parts: &mut [&mut [u8]],
    ) -> Result<()> {
        let ([qweight, qzeros, stored_scales], [codes, scales, zeros]) = (tensors, parts) else {
            panic!("awq: three tensors, three parts")
        };
        let groups = matrix.groups_per_row();
        dispatch::run(Unpack { qweight, cols: matrix.cols(), codes });
        transpose::<2>(stored_scales, groups, rows.len(), scales);
        let mut joined = vec![0; qzeros.len()];
        transpose::<4>(qzeros, groups, rows.len() / WORD, &mut joined);
        split_rows(&joined, groups, ORDER, zeros);
        Ok(())
    }
}

/// Exchanges rows and columns of eight by eight nibbles, for every lane: nibble `i` of word `j` becomes nibble `j` of
/// word `i`. Done twice it does nothing.
#[inline(always)]
fn exchange(words: &mut [[u32; LANES]; WORD]) {
    for (bits, mask) in [(4, 0x0f0f_0f0f), (8, 0x00ff_00ff), (16, 0x0000_ffff)] {
        let distance = bits / 4;
        for first in (0..WORD).filter(|word| word & distance == 0) {
            let (lows, highs) = (words[first], words[first + distance]);
            words[first] = from_fn(|lane| lows[lane] & mask | (highs[lane] & mask) << bits);
            words[first + distance] = from_fn(|lane| lows[lane] >> bits & mask | highs[lane] & !mask);
        }
    }
}

struct Pack<'a> {
    /// Words `[rows, cols / 8]`.
    codes: &'a [u8],
    cols: usize,
    /// Words `[cols, rows / 8]`.
    qweight: &'a mut [u8],
}

impl Kernel for Pack<'_> {
    type Output = ();

    #[expect(clippy::needless_range_loop, reason = "one word of every line of the tile")]
    #[inline(always)]
    fn run(self) {
        let row_words = self.cols / WORD;
        let (codes, qweight) = (self.codes.as_chunks::<4>().0, self.qweight.as_chunks_mut::<4>().0);
        let strips = codes.len() / row_words / WORD;
        for first_strip in (0..strips).step_by(LANES) {
            let lanes = LANES.min(strips - first_strip);
            for first_word in (0..row_words).step_by(LANES) {
                let width = LANES.min(row_words - first_word);
                // The lines of all rows at once: their distance may be one that caches do not like.
                let mut tile = [[[0u8; 4]; LANES]; LANES * WORD];
                for (row, line) in tile[..lanes * WORD].iter_mut().enumerate() {
                    let at = (first_strip * WORD + row) * row_words + first_word;
                    line[..width].copy_from_slice(&codes[at..at + width]);
                }
                for word in 0..width {
                    let mut words = [[0u32; LANES]; WORD];
                    for (words, row) in words.iter_mut().zip(ORDER) {
                        for (lane, value) in words.iter_mut().enumerate() {
                            *value = u32::from_le_bytes(tile[lane * WORD + row][word]);
                        }
                    }
                    exchange(&mut words);
                    for (column, words) in words.iter().enumerate() {
                        let at = ((first_word + word) * WORD + column) * strips + first_strip;
                        let bytes = words.map(u32::to_le_bytes);
                        qweight[at..at + lanes].copy_from_slice(&bytes[..lanes]);
                    }
                }
            }
        }
    }
}

struct Unpack<'a> {
    /// Words `[cols, rows / 8]`.
    qweight: &'a [u8],
    cols: usize,
    /// Words `[rows, cols / 8]`.
    codes: &'a mut [u8],
}

impl Kernel for Unpack<'_> {
    type Output = ();

    #[expect(clippy::needless_range_loop, reason = "one word of every line of the tile")]
    #[inline(always)]
    fn run(self) {
        let row_words = self.cols / WORD;
        let (qweight, codes) = (self.qweight.as_chunks::<4>().0, self.codes.as_chunks_mut::<4>().0);
        let strips = codes.len() / row_words / WORD;
        for first_strip in (0..strips).step_by(LANES) {
            let lanes = LANES.min(strips - first_strip);
            for first_word in (0..row_words).step_by(LANES) {
                let width = LANES.min(row_words - first_word);
                let mut tile = [[[0u8; 4]; LANES]; LANES * WORD];
                for word in 0..width {
                    let mut words = [[0u32; LANES]; WORD];
                    for (column, words) in words.iter_mut().enumerate() {
                        let at = ((first_word + word) * WORD + column) * strips + first_strip;
                        for (value, bytes) in words.iter_mut().zip(&qweight[at..at + lanes]) {
                            *value = u32::from_le_bytes(*bytes);
                        }
                    }
                    exchange(&mut words);
                    for (words, row) in words.iter().zip(ORDER) {
                        for (lane, value) in words.iter().enumerate() {
                            tile[lane * WORD + row][word] = value.to_le_bytes();
                        }
                    }
                }
                for (row, line) in tile[..lanes * WORD].iter().enumerate() {
                    let at = (first_strip * WORD + row) * row_words + first_word;
                    codes[at..at + width].copy_from_slice(&line[..width]);
                }
            }
        }
    }
}
