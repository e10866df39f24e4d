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
//! Eight words, one of each row, are eight columns: exchanging nibbles between them makes the stored words. Blocks of them
//! are then transposed: 9 G weights/s to pack, 4.5 G to unpack on one AVX-512 core of an AMD EPYC.

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
/// Eights of rows that are worked on together: their words are a cache line of the result.
const STRIPS: usize = 16;
/// Words of a row that are worked on together.
const WIDTH: usize = 64;

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

/// The upper parts of `low` and the lower parts, which `mask` has, of `high` change places.
#[inline(always)]
fn swap<const BITS: u32>(low: &mut u32, high: &mut u32, mask: u32) {
    let lower = *low & mask | (*high & mask) << BITS;
    *high = *low >> BITS & mask | *high & !mask;
    *low = lower;
}

/// Exchanges rows and columns of eight by eight nibbles: nibble `i` of word `j` becomes nibble `j` of word `i`. Done
/// twice it does nothing.
#[inline(always)]
fn exchange([mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h]: [u32; WORD]) -> [u32; WORD] {
    for (low, high) in [(&mut a, &mut b), (&mut c, &mut d), (&mut e, &mut f), (&mut g, &mut h)] {
        swap::<4>(low, high, 0x0f0f_0f0f);
    }
    for (low, high) in [(&mut a, &mut c), (&mut b, &mut d), (&mut e, &mut g), (&mut f, &mut h)] {
        swap::<8>(low, high, 0x00ff_00ff);
    }
    for (low, high) in [(&mut a, &mut e), (&mut b, &mut f), (&mut c, &mut g), (&mut d, &mut h)] {
        swap::<16>(low, high, 0x0000_ffff);
    }
    [a, b, c, d, e, f, g, h]
}

/// `exchange` for every word of eight rows.
#[inline(always)]
fn exchange_rows(rows: &Rows) -> Rows {
    let mut exchanged = [[0; WIDTH]; WORD];
    for word in 0..WIDTH {
        let words = exchange([
            rows[0][word],
            rows[1][word],
            rows[2][word],
            rows[3][word],
            rows[4][word],
            rows[5][word],
            rows[6][word],
            rows[7][word],
        ]);
        for row in 0..WORD {
            exchanged[row][word] = words[row];
        }
    }
    exchanged
}

/// Words of eight rows, or of eight columns of words.
type Rows = [[u32; WIDTH]; WORD];
/// Stored words of a block: `[strip][column of a word][word]`.
type Block = [Rows; STRIPS];

/// The pieces of eight rows that lie in `WIDTH` words from `first_word` on, `width` of them there.
#[inline(always)]
fn rows_of(strip: usize, row_words: usize, first_word: usize, width: usize) -> [Range<usize>; WORD] {
    from_fn(|row| {
        let start = (strip * WORD + row) * row_words + first_word;
        start..start + width
    })
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

    #[inline(always)]
    fn run(self) {
        let row_words = self.cols / WORD;
        let (codes, qweight) = (self.codes.as_chunks::<4>().0, self.qweight.as_chunks_mut::<4>().0);
        let strips = codes.len() / row_words / WORD;
        let mut block: Block = [[[0; WIDTH]; WORD]; STRIPS];
        for first_strip in (0..strips).step_by(STRIPS) {
            let depth = STRIPS.min(strips - first_strip);
            for first_word in (0..row_words).step_by(WIDTH) {
                let width = WIDTH.min(row_words - first_word);
                for (strip, columns) in block[..depth].iter_mut().enumerate() {
                    let rows = rows_of(first_strip + strip, row_words, first_word, width);
                    let mut lines = [[0; WIDTH]; WORD];
                    for (row, line) in ORDER.into_iter().zip(&mut lines) {
                        for (bytes, word) in codes[rows[row].clone()].iter().zip(line) {
                            *word = u32::from_le_bytes(*bytes);
                        }
                    }
                    *columns = exchange_rows(&lines);
                }
                for word in 0..width {
                    for column in 0..WORD {
                        let at = ((first_word + word) * WORD + column) * strips + first_strip;
                        for (bytes, columns) in qweight[at..at + depth].iter_mut().zip(&block) {
                            *bytes = columns[column][word].to_le_bytes();
                        }
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

    #[inline(always)]
    fn run(self) {
        let row_words = self.cols / WORD;
        let (qweight, codes) = (self.qweight.as_chunks::<4>().0, self.codes.as_chunks_mut::<4>().0);
        let strips = codes.len() / row_words / WORD;
        let mut block: Block = [[[0; WIDTH]; WORD]; STRIPS];
        for first_strip in (0..strips).step_by(STRIPS) {
            let depth = STRIPS.min(strips - first_strip);
            for first_word in (0..row_words).step_by(WIDTH) {
                let width = WIDTH.min(row_words - first_word);
                for word in 0..width {
                    for column in 0..WORD {
                        let at = ((first_word + word) * WORD + column) * strips + first_strip;
                        for (bytes, columns) in qweight[at..at + depth].iter().zip(&mut block) {
                            columns[column][word] = u32::from_le_bytes(*bytes);
                        }
                    }
                }
                for (strip, columns) in block[..depth].iter().enumerate() {
                    let rows = rows_of(first_strip + strip, row_words, first_word, width);
                    for (row, words) in ORDER.into_iter().zip(&exchange_rows(columns)) {
                        for (bytes, word) in codes[rows[row].clone()].iter_mut().zip(words) {
                            *bytes = word.to_le_bytes();
                        }
                    }
                }
            }
        }
    }
}
