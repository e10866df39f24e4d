//! compressed-tensors' `nvfp4-pack-quantized` and `mxfp4-pack-quantized`: 4-bit floats beside their scales.
//!
//! | tensor | NVFP4 | MXFP4 |
//! |---|---|---|
//! | `weight_packed` | U8 `[rows, cols / 2]` | U8 `[rows, cols / 2]` |
//! | `weight_scale` | F8_E4M3 `[rows, cols / 16]` | U8 `[rows, cols / 32]`, E8M0 numbers |
//! | `weight_global_scale` | F32 `[1]` | |
//!
//! A scale of NVFP4 is divided by the global scale: that is [`Matrix::tensor_scale`].
//! Source: compressed-tensors 0.20.0, `compressors/nvfp4`, `compressors/mxfp4`.

use std::borrow::Cow;
use std::ops::Range;

use super::check;
use super::{Layout, Matrix, Runs, StoredTensor};
use crate::dtype::Dtype;
use crate::error::{FormatError, Result};

/// See the module.
pub const NVFP4_PACK_QUANTIZED: &dyn Layout = &Fp4PackQuantized {
    name: "nvfp4-pack-quantized",
    codecs: &["ct_nvfp4"],
    scale: Dtype::F8_E4M3,
    has_global_scale: true,
};

/// See the module.
pub const MXFP4_PACK_QUANTIZED: &dyn Layout = &Fp4PackQuantized {
    name: "mxfp4-pack-quantized",
    codecs: &["ct_mxfp4"],
    scale: Dtype::U8,
    has_global_scale: false,
};

struct Fp4PackQuantized {
    name: &'static str,
    codecs: &'static [&'static str],
    scale: Dtype,
    has_global_scale: bool,
}

/// Number of the tensor of the global scale, if there is one.
const GLOBAL_SCALE: usize = 2;

impl Layout for Fp4PackQuantized {
    fn name(&self) -> &'static str {
        self.name
    }

    fn example_codecs(&self) -> &'static [&'static str] {
        self.codecs
    }

    fn band_rows(&self) -> usize {
        1
    }

    fn tensors(&self, matrix: Matrix<'_>) -> Result<Vec<StoredTensor>> {
        let parts = matrix.codec.parts();
        let fits = parts.len() == 2 && parts[0].name == "weight_packed" && parts[1].dtype == self.scale;
        if !fits || parts[0].dtype != Dtype::U8 {
            return Err(FormatError::Unsupported {
                what: format!("codec {} in layout {}", matrix.codec.name(), self.name),
                supported: self.codecs.join(", "),
            });
        }
        let [rows, cols] = check::rows_and_cols(matrix, self.name, 1)?;
        let mut tensors = vec![
            StoredTensor { suffix: "weight_packed", dtype: Dtype::U8, shape: vec![rows, cols / 2] },
            StoredTensor {
                suffix: "weight_scale",
                dtype: self.scale,
                shape: vec![rows, matrix.groups_per_row()],
            },
        ];
        if self.has_global_scale {
            tensors.push(StoredTensor { suffix: "weight_global_scale", dtype: Dtype::F32, shape: vec![1] });
        }
        Ok(tensors)
    }

    fn tensor_scale_in(&self) -> Option<usize> {
        self.has_global_scale.then_some(GLOBAL_SCALE)
    }

    fn runs(&self, matrix: Matrix<'_>, tensor: usize, rows: Range<usize>) -> Runs {
        if tensor == GLOBAL_SCALE {
            return if rows.start == 0 { Runs::one(0, 4) } else { Runs::NONE };
        }
        let row_bytes = matrix.row_bytes(tensor);
        Runs::one((rows.start * row_bytes) as u64, rows.len() * row_bytes)
    }

    fn pack<'a>(&self, matrix: Matrix<'_>, rows: Range<usize>, parts: &[&'a [u8]]) -> Vec<Cow<'a, [u8]>> {
        let mut tensors: Vec<Cow<'a, [u8]>> = parts.iter().map(|part| Cow::Borrowed(*part)).collect();
        if self.has_global_scale {
            let scale = matrix.tensor_scale.to_le_bytes();
            tensors.push(if rows.start == 0 { scale.to_vec() } else { vec![] }.into());
        }
        tensors
    }

    fn unpack(
        &self,
        matrix: Matrix<'_>,
        rows: Range<usize>,
        tensors: &[&[u8]],
        parts: &mut [&mut [u8]],
    ) -> Result<()> {
        for (part, tensor) in parts.iter_mut().zip(tensors) {
            part.copy_from_slice(tensor);
        }
        if self.has_global_scale && rows.start == 0 {
            let stored = tensors[GLOBAL_SCALE].as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            let stored: Vec<f32> = stored.collect();
            if stored.iter().map(|scale| scale.to_bits()).ne([matrix.tensor_scale.to_bits()]) {
                return Err(FormatError::Invalid {
                    what: "weight_global_scale".into(),
                    found: format!("{stored:?}"),
                    expected: format!("[{:?}], which the matrix is decoded with", matrix.tensor_scale),
                });
            }
        }
        Ok(())
    }
}
