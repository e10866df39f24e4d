//! Parts as they are: every part of the codec is a tensor, row after row.

use std::borrow::Cow;
use std::ops::Range;

use super::{Layout, Matrix, Runs, StoredTensor};
use crate::error::Result;

/// Each part of the codec is a tensor of the container. Any codec, any number of dimensions.
pub const ROW_MAJOR: &dyn Layout = &RowMajor;

struct RowMajor;

impl Layout for RowMajor {
    fn name(&self) -> &'static str {
        "row-major"
    }

    fn example_codecs(&self) -> &'static [&'static str] {
        &["affine4_g64", "Q4_K"]
    }

    fn band_rows(&self) -> usize {
        1
    }

    fn tensors(&self, matrix: Matrix<'_>) -> Result<Vec<StoredTensor>> {
        let tensors = matrix.codec.parts().iter().map(|part| {
            let mut shape = matrix.shape.to_vec();
            if let Some(last) = shape.last_mut() {
                *last = matrix.groups_per_row() * part.bytes_per_group / part.dtype.size_bytes();
            }
            StoredTensor { suffix: part.name, dtype: part.dtype, shape }
        });
        Ok(tensors.collect())
    }

    fn runs(&self, matrix: Matrix<'_>, tensor: usize, rows: Range<usize>) -> Runs {
        let row_bytes = matrix.row_bytes(tensor);
        Runs::one((rows.start * row_bytes) as u64, rows.len() * row_bytes)
    }

    fn pack<'a>(&self, _: Matrix<'_>, _: Range<usize>, parts: &[&'a [u8]]) -> Vec<Cow<'a, [u8]>> {
        parts.iter().map(|part| Cow::Borrowed(*part)).collect()
    }

    fn unpack(
        &self,
        _: Matrix<'_>,
        _: Range<usize>,
        tensors: &[&[u8]],
        parts: &mut [&mut [u8]],
    ) -> Result<()> {
        for (part, tensor) in parts.iter_mut().zip(tensors) {
            part.copy_from_slice(tensor);
        }
        Ok(())
    }
}
