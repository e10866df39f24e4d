//! Layouts: how the byte streams of a codec become the stored tensors of a container.
//!
//! A codec encodes the rows of a matrix one after the other into its parts. Some containers store
//! those parts as they are ([`ROW_MAJOR`]: GGUF, MLX). Others pack codes along columns, or keep the zero
//! points of eight rows in one word, or add tensors that say how the matrix is cut (GPTQ, AWQ,
//! compressed-tensors). A layout moves bytes only; what they mean is the codec's business.
//!
//! Matrices are worked on by bands of rows. What a band becomes in a stored tensor is a number of [`Runs`]:
//! pieces of equal length at equal distances. So bands can be written and read in any order.
//!
//! A new layout is one file in `layout/` and one line in [`LAYOUTS`].

use std::borrow::Cow;
use std::ops::Range;

use crate::codec::Codec;
use crate::dtype::Dtype;
use crate::error::Result;

mod awq;
mod check;
mod fp4_pack_quantized;
mod gptq;
mod pack_quantized;
mod row_major;
mod words;

pub use awq::AWQ;
pub use fp4_pack_quantized::{MXFP4_PACK_QUANTIZED, NVFP4_PACK_QUANTIZED};
pub use gptq::GPTQ;
pub use pack_quantized::PACK_QUANTIZED;
pub use row_major::ROW_MAJOR;

/// Every layout.
pub const LAYOUTS: &[&dyn Layout] =
    &[ROW_MAJOR, PACK_QUANTIZED, NVFP4_PACK_QUANTIZED, MXFP4_PACK_QUANTIZED, GPTQ, AWQ];

/// Finds a layout by name.
pub fn find(name: &str) -> Option<&'static dyn Layout> {
    LAYOUTS.iter().copied().find(|layout| layout.name() == name)
}

/// A matrix that is stored in some layout: what its tensors are derived from.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    /// Logical shape, outermost dimension first; a layout may insist on two dimensions.
    pub shape: &'a [usize],
    /// What encodes its rows.
    pub codec: &'a dyn Codec,
    /// The factor on all scales, for codecs that have one: [`Codec::tensor_scale`].
    pub tensor_scale: f32,
}

impl Matrix<'_> {
    /// Rows: leading dimensions folded.
    pub fn rows(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, leading)| leading.iter().product())
    }

    /// Length of a row.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Groups in a row.
    pub fn groups_per_row(&self) -> usize {
        self.cols() / self.codec.group_len_elems()
    }

    /// Bytes of a row in part `part` of the codec.
    pub fn row_bytes(&self, part: usize) -> usize {
        self.groups_per_row() * self.codec.parts()[part].bytes_per_group
    }
}

/// A tensor of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// What its name ends with: `"weight_packed"`, `"qzeros"`.
    pub suffix: &'static str,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
}

impl StoredTensor {
    /// Its length.
    pub fn len_bytes(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product::<u64>() * self.dtype.size_bytes() as u64
    }
}

/// Where a band of rows lies in a stored tensor: `count` pieces of `run_bytes`, their starts
/// `stride_bytes` apart, the first at `offset_bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Runs {
    /// Where the first piece starts, counted from the start of the tensor.
    pub offset_bytes: u64,
    /// Length of a piece.
    pub run_bytes: usize,
    /// From the start of a piece to the start of the next.
    pub stride_bytes: u64,
    /// Pieces.
    pub count: usize,
}

impl Runs {
    /// One piece.
    pub fn one(offset_bytes: u64, len_bytes: usize) -> Self {
        Self { offset_bytes, run_bytes: len_bytes, stride_bytes: len_bytes as u64, count: 1 }
    }

    /// The columns `cols` of a matrix `row_elems` wide, one piece if they are all, `rows` high, of elements of `elem_bytes`.
    pub fn columns(row_elems: usize, elem_bytes: usize, cols: Range<usize>, rows: usize) -> Self {
        if cols == (0..row_elems) {
            return Self::one(0, row_elems * elem_bytes * rows);
        }
        Self {
            offset_bytes: (cols.start * elem_bytes) as u64,
            run_bytes: cols.len() * elem_bytes,
            stride_bytes: (row_elems * elem_bytes) as u64,
            count: rows,
        }
    }

    /// No piece at all.
    pub const NONE: Self = Self { offset_bytes: 0, run_bytes: 0, stride_bytes: 0, count: 0 };

    /// Bytes of all pieces.
    pub fn len_bytes(&self) -> usize {
        self.run_bytes * self.count
    }

    /// From the first byte of the first piece to the last of the last.
    pub fn span_bytes(&self) -> u64 {
        match self.count {
            0 => 0,
            count => (count as u64 - 1) * self.stride_bytes + self.run_bytes as u64,
        }
    }

    /// Where each piece starts in the tensor, and where in a buffer that holds the pieces one after the
    /// other.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, Range<usize>)> {
        let Self { offset_bytes, run_bytes, stride_bytes, count } = *self;
        (0..count)
            .map(move |at| (offset_bytes + at as u64 * stride_bytes, at * run_bytes..(at + 1) * run_bytes))
    }
}

/// An arrangement of a codec's parts in stored tensors.
///
/// # Panics
/// `runs`, `pack` and `unpack` panic when the rows are not a band ([`Layout::band_rows`]) or buffers have
/// other lengths than `runs` says: sizes are checked when a plan is made, so this is a bug of the caller.
pub trait Layout: Sync {
    /// The field's name for it: `"gptq"`, `"pack-quantized"`.
    fn name(&self) -> &'static str;

    /// Codecs of [`crate::CODECS`] that this layout stores, one of each kind, for the conformance suite.
    fn example_codecs(&self) -> &'static [&'static str];

    /// A band starts at a multiple of this number of rows, and ends at one or with the matrix.
    fn band_rows(&self) -> usize;

    /// The tensors that store a matrix, in the order in which the other methods count them.
    ///
    /// # Errors
    /// When the matrix cannot be stored: a number of rows or columns that the packing does not allow, or a
    /// codec that is not one of this layout's.
    fn tensors(&self, matrix: Matrix<'_>) -> Result<Vec<StoredTensor>>;

    /// Which stored tensor holds [`Matrix::tensor_scale`], as one F32; whoever reads a matrix reads it first.
    fn tensor_scale_in(&self) -> Option<usize> {
        None
    }

    /// Where the band `rows` lies in stored tensor number `tensor`. Tensors that do not depend on the
    /// rows belong to the band that starts at 0.
    fn runs(&self, matrix: Matrix<'_>, tensor: usize, rows: Range<usize>) -> Runs;

    /// Arranges the codec's parts of the band `rows`: for each stored tensor the bytes of its runs, one
    /// after the other.
    fn pack<'a>(&self, matrix: Matrix<'_>, rows: Range<usize>, parts: &[&'a [u8]]) -> Vec<Cow<'a, [u8]>>;

    /// The inverse: fills the codec's parts of the band `rows` from the bytes of each tensor's runs.
    ///
    /// # Errors
    /// When a tensor contradicts the matrix: a stored shape, an order of groups that this layout
    /// does not have.
    fn unpack(
        &self,
        matrix: Matrix<'_>,
        rows: Range<usize>,
        tensors: &[&[u8]],
        parts: &mut [&mut [u8]],
    ) -> Result<()>;
}
