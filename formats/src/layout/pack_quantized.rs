//! compressed-tensors' `pack-quantized`: int4 weights beside their scales.
//!
//! | tensor | dtype, shape | |
//! |---|---|---|
//! | `weight_packed` | I32 `[rows, ceil(cols / 8)]` | eight codes of a row per word, the first one lowest |
//! | `weight_scale` | the weights' dtype, `[rows, groups]` | |
//! | `weight_zero_point` | I32 `[ceil(rows / 8), groups]` | asymmetric only: eight rows' zero points per word |
//! | `weight_shape` | I64 `[2]` | `[rows, cols]` |
//!
//! Codes and zero points are stored plus 8, so as the codec gives them. Reading also takes a `weight_shape` of I32.
//! Source: compressed-tensors 0.20.0, `compressors/pack_quantized` (`compress`, `pack_to_int32`).

use std::borrow::Cow;
use std::ops::Range;

use super::check;
use super::words::{WORD, join_rows, split_rows};
use super::{Layout, Matrix, Runs, StoredTensor};
use crate::dtype::Dtype;
use crate::error::Result;

/// See the module.
pub const PACK_QUANTIZED: &dyn Layout = &PackQuantized;

struct PackQuantized;

/// Rows of a word of zero points, lowest nibble first.
const IN_ORDER: [usize; WORD] = [0, 1, 2, 3, 4, 5, 6, 7];

/// Number of the tensor of zero points, if there is one.
const ZERO_POINT: usize = 2;

/// Codecs with a third part have zero points.
fn has_zero_point(matrix: Matrix<'_>) -> bool {
    matrix.codec.parts().len() > ZERO_POINT
}

/// What `weight_shape` holds.
fn weight_shape(matrix: Matrix<'_>) -> [i64; 2] {
    [matrix.rows() as i64, matrix.cols() as i64]
}

/// Two numbers: I64, or I32 as some checkpoints have them.
fn integers(bytes: &[u8]) -> Vec<i64> {
    if bytes.len() == 8 {
        bytes.as_chunks().0.iter().map(|bytes| i64::from(i32::from_le_bytes(*bytes))).collect()
    } else {
        bytes.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
    }
}

impl Layout for PackQuantized {
    fn name(&self) -> &'static str {
        "pack-quantized"
    }

    fn example_codecs(&self) -> &'static [&'static str] {
        &["ct_int4_g32", "ct_int4_asym_g32", "ct_int4_channel_100", "ct_int4_asym_channel_100"]
    }

    fn band_rows(&self) -> usize {
        WORD
    }

    fn tensors(&self, matrix: Matrix<'_>) -> Result<Vec<StoredTensor>> {
        check::codes_are(matrix, self.name(), "weight_packed")?;
        let [rows, _] = check::rows_and_cols(matrix, self.name(), 1)?;
        let groups = matrix.groups_per_row();
        let parts = matrix.codec.parts();
        let mut tensors = vec![
            StoredTensor {
                suffix: "weight_packed",
                dtype: Dtype::I32,
                shape: vec![rows, matrix.row_bytes(0) / 4],
            },
            StoredTensor { suffix: "weight_scale", dtype: parts[1].dtype, shape: vec![rows, groups] },
        ];
        if has_zero_point(matrix) {
            let shape = vec![rows.div_ceil(WORD), groups];
            tensors.push(StoredTensor { suffix: "weight_zero_point", dtype: Dtype::I32, shape });
        }
        tensors.push(StoredTensor { suffix: "weight_shape", dtype: Dtype::I64, shape: vec![2] });
        Ok(tensors)
    }

    fn runs(&self, matrix: Matrix<'_>, tensor: usize, rows: Range<usize>) -> Runs {
        match tensor {
            ZERO_POINT if has_zero_point(matrix) => {
                let row_bytes = matrix.groups_per_row() * 4;
                let words = rows.start / WORD..rows.end.div_ceil(WORD);
                Runs::one((words.start * row_bytes) as u64, words.len() * row_bytes)
            }
            0 | 1 => {
                let row_bytes = matrix.row_bytes(tensor);
                Runs::one((rows.start * row_bytes) as u64, rows.len() * row_bytes)
            }
            _ if rows.start == 0 => Runs::one(0, 16),
            _ => Runs::NONE,
        }
    }

    fn pack<'a>(&self, matrix: Matrix<'_>, rows: Range<usize>, parts: &[&'a [u8]]) -> Vec<Cow<'a, [u8]>> {
        let mut tensors = vec![Cow::Borrowed(parts[0]), Cow::Borrowed(parts[1])];
        if has_zero_point(matrix) {
            tensors.push(join_rows(parts[ZERO_POINT], matrix.groups_per_row(), IN_ORDER).into());
        }
        let shape =
            if rows.start == 0 { weight_shape(matrix).map(i64::to_le_bytes).concat() } else { vec![] };
        tensors.push(shape.into());
        tensors
    }

    fn unpack(
        &self,
        matrix: Matrix<'_>,
        rows: Range<usize>,
        tensors: &[&[u8]],
        parts: &mut [&mut [u8]],
    ) -> Result<()> {
        parts[0].copy_from_slice(tensors[0]);
        parts[1].copy_from_slice(tensors[1]);
        if has_zero_point(matrix) {
            split_rows(tensors[ZERO_POINT], matrix.groups_per_row(), IN_ORDER, parts[ZERO_POINT]);
        }
        if rows.start == 0 {
            check::says("weight_shape", &integers(tensors[tensors.len() - 1]), &weight_shape(matrix))?;
        }
        Ok(())
    }
}
