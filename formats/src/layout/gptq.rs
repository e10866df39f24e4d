//! GPTQ checkpoints, `checkpoint_format` `gptq` (v1): words of eight columns, one row of words for each eight.
//!
//! | tensor | dtype, shape | |
//! |---|---|---|
//! | `qweight` | I32 `[cols / 8, rows]` | eight codes of a row per word, the first column lowest |
//! | `qzeros` | I32 `[groups, rows / 8]` | eight rows' zero points per word, less 0x11111111 |
//! | `scales` | F16 `[groups, rows]` | |
//! | `g_idx` | I32 `[cols]` | the group of each column: `column / group size` |
//!
//! "Minus one" is a subtraction of whole words, as the reference does it: a zero point of 0 borrows from the next one,
//! and the reference's loader, which adds the same number, gives it back.
//! Source: GPTQModel 7.7.0, `nn_modules/qlinear/__init__.py` (`pack_block`), `utils/model.py`
//! (`convert_gptq_v2_to_v1_format_module`).

use std::borrow::Cow;
use std::ops::Range;

use super::check;
use super::words::{WORD, join_rows, split_rows, transpose};
use super::{Layout, Matrix, Runs, StoredTensor};
use crate::dtype::Dtype;
use crate::error::Result;

/// See the module.
pub const GPTQ: &dyn Layout = &Gptq;

struct Gptq;

/// Rows of a word of zero points, lowest nibble first.
const IN_ORDER: [usize; WORD] = [0, 1, 2, 3, 4, 5, 6, 7];
/// One for each zero point of a word.
const ONES: u32 = 0x1111_1111;

impl Layout for Gptq {
    fn name(&self) -> &'static str {
        "gptq"
    }

    fn example_codecs(&self) -> &'static [&'static str] {
        &["gptq_int4_g32", "gptq_int4_asym_g64"]
    }

    fn band_rows(&self) -> usize {
        WORD
    }

    fn tensors(&self, matrix: Matrix<'_>) -> Result<Vec<StoredTensor>> {
        check::codes_are(matrix, self.name(), "qweight")?;
        let [rows, cols] = check::rows_and_cols(matrix, self.name(), WORD)?;
        let groups = matrix.groups_per_row();
        Ok(vec![
            StoredTensor { suffix: "qweight", dtype: Dtype::I32, shape: vec![cols / WORD, rows] },
            StoredTensor { suffix: "qzeros", dtype: Dtype::I32, shape: vec![groups, rows / WORD] },
            StoredTensor { suffix: "scales", dtype: Dtype::F16, shape: vec![groups, rows] },
            StoredTensor { suffix: "g_idx", dtype: Dtype::I32, shape: vec![cols] },
        ])
    }

    fn runs(&self, matrix: Matrix<'_>, tensor: usize, rows: Range<usize>) -> Runs {
        let groups = matrix.groups_per_row();
        match tensor {
            0 => Runs::columns(matrix.rows(), 4, rows, matrix.cols() / WORD),
            1 => Runs::columns(matrix.rows() / WORD, 4, rows.start / WORD..rows.end / WORD, groups),
            2 => Runs::columns(matrix.rows(), 2, rows, groups),
            _ if rows.start == 0 => Runs::one(0, matrix.cols() * 4),
            _ => Runs::NONE,
        }
    }

    fn pack<'a>(&self, matrix: Matrix<'_>, rows: Range<usize>, parts: &[&'a [u8]]) -> Vec<Cow<'a, [u8]>> {
        let [codes, scales, zeros] = parts else { panic!("gptq: three parts") };
        let (words, groups) = (matrix.cols() / WORD, matrix.groups_per_row());
        let mut qweight = vec![0; codes.len()];
        transpose::<4>(codes, rows.len(), words, &mut qweight);
        let joined = join_rows(zeros, groups, IN_ORDER);
        let mut qzeros = vec![0; joined.len()];
        transpose::<4>(&joined, rows.len() / WORD, groups, &mut qzeros);
        for word in qzeros.as_chunks_mut().0 {
            *word = u32::from_le_bytes(*word).wrapping_sub(ONES).to_le_bytes();
        }
        let mut stored_scales = vec![0; scales.len()];
        transpose::<2>(scales, rows.len(), groups, &mut stored_scales);
        let group_len = matrix.codec.group_len_elems();
        let columns = if rows.start == 0 { matrix.cols() } else { 0 };
        let g_idx: Vec<u8> =
            (0..columns).flat_map(|column| ((column / group_len) as i32).to_le_bytes()).collect();
        vec![qweight.into(), qzeros.into(), stored_scales.into(), g_idx.into()]
    }

    fn unpack(
        &self,
        matrix: Matrix<'_>,
        rows: Range<usize>,
        tensors: &[&[u8]],
        parts: &mut [&mut [u8]],
    ) -> Result<()> {
        let ([qweight, qzeros, stored_scales, g_idx], [codes, scales, zeros]) = (tensors, parts) else {
            panic!("gptq: four tensors, three parts")
        };
        let (words, groups) = (matrix.cols() / WORD, matrix.groups_per_row());
        check::groups_in_order(g_idx, matrix.codec.group_len_elems())?;
        transpose::<4>(qweight, words, rows.len(), codes);
        transpose::<2>(stored_scales, groups, rows.len(), scales);
        let mut joined = vec![0; qzeros.len()];
        transpose::<4>(qzeros, groups, rows.len() / WORD, &mut joined);
        for word in joined.as_chunks_mut().0 {
            *word = u32::from_le_bytes(*word).wrapping_add(ONES).to_le_bytes();
        }
        split_rows(&joined, groups, IN_ORDER, zeros);
        Ok(())
    }
}
