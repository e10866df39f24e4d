//! Experts that a checkpoint has stacked: every matrix of every expert becomes an entry of the catalogue with a name of its own, and
//! so does every bias. Where rows of two matrices come in turns, an entry has every other row.
//!
//! | stored | is |
//! |---|---|
//! | `experts.NAME_blocks`, U8 `[experts, rows, groups, 16]` | codes of MXFP4, the first of a byte in its low nibble |
//! | `experts.NAME_scales`, U8 `[experts, rows, groups]` | its powers of two, 127 for 1 |
//! | `experts.NAME_bias`, `[experts, rows]` | biases |
//!
//! Source: transformers `integrations/mxfp4.py` (`convert_moe_packed_tensors`), checkpoints of openai/gpt-oss-20b.

use std::borrow::Cow;
use std::ops::Range;

use requant_formats::codec;
use requant_formats::layout::{Layout, Matrix, Runs, StoredTensor};
use requant_formats::{Dtype, Result as FormatResult};

use super::{Encoding, Packed, SourceTensor};
use crate::error::{Error, Result};
use crate::family::Stack;
use crate::source::Source;

/// Codes of a group: 32 of 4 bits.
const GROUP_BYTES: usize = 16;
/// What entries with codes and scales are called behind the module, by how far their rows are apart.
pub(super) const CODES: [&str; 2] = ["blocks", "blocks_in_turns"];
const SCALES: [&str; 2] = ["scales", "scales_in_turns"];

/// MXFP4 whose rows follow each other.
pub(super) const BLOCKS: &dyn Layout = &Strided { step: 1 };
/// The same, and vectors, with every other row or element.
pub(super) const BLOCKS_IN_TURNS: &dyn Layout = &Strided { step: 2 };

/// Rows of a tensor, or elements of a vector, with those of others between them.
struct Strided {
    /// From one to the next.
    step: usize,
}

impl Layout for Strided {
    fn name(&self) -> &'static str {
        CODES[self.step - 1]
    }

    fn example_codecs(&self) -> &'static [&'static str] {
        &["ct_mxfp4"]
    }

    fn band_rows(&self) -> usize {
        1
    }

    fn tensors(&self, matrix: Matrix<'_>) -> FormatResult<Vec<StoredTensor>> {
        let suffixes = [CODES[self.step - 1], SCALES[self.step - 1]];
        let parts = matrix.codec.parts().iter().enumerate().zip(suffixes);
        let stored = parts.map(|((number, part), suffix)| StoredTensor {
            suffix,
            dtype: part.dtype,
            shape: vec![matrix.rows(), matrix.row_bytes(number) / part.dtype.size_bytes()],
        });
        Ok(stored.collect())
    }

    fn runs(&self, matrix: Matrix<'_>, tensor: usize, rows: Range<usize>) -> Runs {
        let whole = matrix.row_bytes(tensor);
        let (run_bytes, rows) = match matrix.shape {
            [_] => (whole / matrix.cols(), 0..matrix.cols()),
            _ => (whole, rows),
        };
        if self.step == 1 || rows.len() == 1 {
            return Runs::one((rows.start * self.step * run_bytes) as u64, rows.len() * run_bytes);
        }
        Runs {
            offset_bytes: (rows.start * self.step * run_bytes) as u64,
            run_bytes,
            stride_bytes: (self.step * run_bytes) as u64,
            count: rows.len(),
        }
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
    ) -> FormatResult<()> {
        parts.iter_mut().zip(tensors).for_each(|(part, tensor)| part.copy_from_slice(tensor));
        Ok(())
    }
}

/// What a stored tensor holds.
#[derive(Clone, Copy, PartialEq)]
enum Holds {
    Codes,
    Scales,
    Biases,
}

/// Entries for the matrices of `stacks`, in the place of these.
///
/// # Errors
/// A stack of another dtype or shape.
pub(super) fn split(
    source: &dyn Source,
    tensors: Vec<SourceTensor>,
    stacks: &[Stack],
) -> Result<Vec<SourceTensor>> {
    if stacks.is_empty() {
        return Ok(tensors);
    }
    let mut entries = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        match stacks.iter().find_map(|stack| Some((stack, held(&tensor.name, stack)?))) {
            None => entries.push(tensor),
            Some((stack, (prefix, holds))) => {
                let prefix = prefix.to_owned();
                add(source, &tensor, stack, &prefix, holds, &mut entries)?;
            }
        }
    }
    Ok(entries)
}

/// What stands before the number of an expert, and what a tensor of this name holds, if it is one of the stack's.
fn held<'a>(name: &'a str, stack: &Stack) -> Option<(&'a str, Holds)> {
    let kinds = [("_blocks", Holds::Codes), ("_scales", Holds::Scales), ("_bias", Holds::Biases)];
    let (stem, holds) =
        kinds.iter().find_map(|(suffix, holds)| Some((name.strip_suffix(suffix)?, *holds)))?;
    let prefix = stem.strip_suffix(stack.name)?;
    prefix.ends_with(".experts.").then_some((prefix, holds))
}

fn add(
    source: &dyn Source,
    tensor: &SourceTensor,
    stack: &Stack,
    prefix: &str,
    holds: Holds,
    entries: &mut Vec<SourceTensor>,
) -> Result<()> {
    let file = &source.files()[tensor.file].name;
    let step = stack.matrices.len();
    let (experts, all_rows, cols) = match (holds, tensor.shape.as_slice(), tensor.dtype) {
        (Holds::Codes, &[experts, rows, groups, GROUP_BYTES], Dtype::U8) => {
            (experts, rows, groups * GROUP_BYTES)
        }
        (Holds::Scales, &[experts, rows, groups], Dtype::U8) => (experts, rows, groups),
        (Holds::Biases, &[experts, rows], Dtype::BF16 | Dtype::F16 | Dtype::F32) => (experts, rows, 1),
        (holds, found, dtype) => {
            let expected = match holds {
                Holds::Codes => "U8 [experts, rows, groups, 16]",
                Holds::Scales => "U8 [experts, rows, groups]",
                Holds::Biases => "BF16, F16 or F32 [experts, rows]",
            };
            let message = format!("tensor {}: found {dtype} {found:?}, expected {expected}", tensor.name);
            return Err(Error::checkpoint(file, message));
        }
    };
    if !all_rows.is_multiple_of(step) {
        let message = format!("tensor {}: found {all_rows} rows of {step} matrices in turns", tensor.name);
        return Err(Error::checkpoint(file, message));
    }
    let (rows, row_bytes) = (all_rows / step, cols * tensor.dtype.size_bytes());
    for expert in 0..experts {
        for (number, matrix) in stack.matrices.iter().enumerate() {
            let (suffix, shape) = match holds {
                Holds::Codes => (CODES[step - 1], vec![rows, cols]),
                Holds::Scales => (SCALES[step - 1], vec![rows, cols]),
                Holds::Biases => ("bias", vec![rows]),
            };
            let in_turns = holds == Holds::Biases && step > 1;
            let codec = codec::find(tensor.dtype.name()).filter(|_| in_turns);
            let packed = |codec| Packed { codec, layout: BLOCKS_IN_TURNS, own: 0, companions: Vec::new() };
            entries.push(SourceTensor {
                name: format!("{prefix}{expert}.{matrix}.{suffix}"),
                dtype: tensor.dtype,
                shape,
                file: tensor.file,
                offset_bytes: tensor.offset_bytes + ((expert * all_rows + number) * row_bytes) as u64,
                len_bytes: (rows * row_bytes) as u64,
                role: None,
                encoding: codec.map_or(Encoding::Plain, |codec| Encoding::Packed(packed(codec))),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Catalogue, TileReader};
    use crate::source::LocalDirectory;

    const STACK: Stack = Stack { name: "gate_up_proj", matrices: &["gate_proj", "up_proj"] };

    fn tensor(name: &str, dtype: Dtype, shape: &[usize], offset_bytes: u64) -> SourceTensor {
        let len: usize = shape.iter().product();
        SourceTensor {
            name: format!("model.layers.0.mlp.experts.gate_up_proj_{name}"),
            dtype,
            shape: shape.to_vec(),
            file: 0,
            offset_bytes,
            len_bytes: (len * dtype.size_bytes()) as u64,
            role: None,
            encoding: Encoding::Plain,
        }
    }

    /// Rows of two matrices in turns, of two experts, are those of the definition.
    #[test]
    fn every_matrix_and_bias_has_its_own_rows() {
        let directory = tempfile::tempdir().unwrap();
        let (experts, rows, groups) = (2, 6, 2);
        let codes: Vec<u8> =
            (0..experts * rows * groups * GROUP_BYTES).map(|at| (at * 37 % 251) as u8).collect();
        let scales: Vec<u8> = (0..experts * rows * groups).map(|at| 120 + (at % 9) as u8).collect();
        let biases: Vec<u8> = (0..experts * rows).flat_map(|at| (at as f32).to_le_bytes()).collect();
        let bytes = [vec![0; 7], codes.clone(), scales.clone(), biases].concat();
        std::fs::write(directory.path().join("a"), bytes).unwrap();
        let source = LocalDirectory::open(directory.path()).unwrap();
        let stored = vec![
            tensor("blocks", Dtype::U8, &[experts, rows, groups, GROUP_BYTES], 7),
            tensor("scales", Dtype::U8, &[experts, rows, groups], 7 + codes.len() as u64),
            tensor("bias", Dtype::F32, &[experts, rows], 7 + (codes.len() + scales.len()) as u64),
        ];
        let all: u64 = stored.iter().map(|tensor| tensor.len_bytes).sum();
        let mut entries = split(&source, stored, &[STACK]).unwrap();
        assert_eq!(entries.len(), 3 * experts * 2);
        assert_eq!(entries.iter().map(|entry| entry.len_bytes).sum::<u64>(), all);
        // As the catalogue joins codes and scales.
        let codec = codec::find("ct_mxfp4").unwrap();
        for id in 0..experts * 2 {
            let companions = vec![experts * 2 + id];
            entries[id].encoding =
                Encoding::Packed(Packed { codec, layout: BLOCKS_IN_TURNS, own: 0, companions });
            entries[id].shape = vec![rows / 2, groups * 32];
        }
        let catalogue = Catalogue::new(std::sync::Arc::new(source), entries);
        let values = [0.0f32, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        let mut tile = Vec::new();
        for (id, (expert, number)) in [(0, 0), (0, 1), (1, 0), (1, 1)].into_iter().enumerate() {
            let matrix = ["gate_proj", "up_proj"][number];
            let stem = format!("model.layers.0.mlp.experts.{expert}.{matrix}");
            assert_eq!(catalogue.tensors()[id].name, format!("{stem}.{}", CODES[1]));
            for rows_read in [0..rows / 2, 1..2] {
                TileReader::default().read(&catalogue, id, rows_read.clone(), &mut tile).unwrap();
                for (row, found) in rows_read.zip(tile.chunks_exact(groups * 32)) {
                    let stored_row = expert * rows + 2 * row + number;
                    for (col, &found) in found.iter().enumerate() {
                        let byte = codes[stored_row * groups * GROUP_BYTES + col / 2];
                        let code = byte >> (4 * (col % 2)) & 15;
                        let power = (f32::from(scales[stored_row * groups + col / 32]) - 127.0).exp2();
                        let sign = if code < 8 { 1.0 } else { -1.0 };
                        assert_eq!(found, sign * values[usize::from(code & 7)] * power, "{stem} {row} {col}");
                    }
                }
            }
            let bias = experts * 4 + id;
            assert_eq!(catalogue.tensors()[bias].name, format!("{stem}.bias"));
            TileReader::default().read(&catalogue, bias, 0..1, &mut tile).unwrap();
            let expected: Vec<f32> =
                (0..rows / 2).map(|row| (expert * rows + 2 * row + number) as f32).collect();
            assert_eq!(tile, expected);
        }
    }

    #[test]
    fn other_shapes_are_named() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a"), [0; 64]).unwrap();
        let source = LocalDirectory::open(directory.path()).unwrap();
        for (name, dtype, shape) in [
            ("blocks", Dtype::U8, &[2, 6, 2, 8][..]),
            ("blocks", Dtype::BF16, &[2, 6, 2, 16]),
            ("scales", Dtype::U8, &[2, 6]),
            ("bias", Dtype::U8, &[2, 6]),
            ("bias", Dtype::F32, &[2, 5]),
        ] {
            let error =
                split(&source, vec![tensor(name, dtype, shape, 0)], &[STACK]).unwrap_err().to_string();
            assert!(error.contains(&format!("gate_up_proj_{name}")), "{error}");
        }
    }
}
