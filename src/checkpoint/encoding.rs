//! What the bytes of a stored weight mean.

use std::fmt;

use requant_formats::Codec;
use requant_formats::layout::{Layout, Matrix, Runs};

/// How a tensor is decoded to f32.
#[derive(Debug, Clone, PartialEq)]
pub enum Encoding {
    /// Numbers of the tensor's own dtype.
    Plain,
    /// FP8 numbers under block scales.
    Scaled(BlockScale),
    /// Groups of codes, with scales in other tensors.
    Packed(Packed),
}

/// How a scale is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleFormat {
    /// A float of the scale tensor's own dtype (F32, BF16 or F16).
    Float,
    /// A power of two, one exponent byte each: `2^(byte - 127)`.
    E8m0,
}

/// The scale of an FP8 weight: one number per block of the matrix. A block of one row is a scale per
/// channel, one of the whole matrix a scale per tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockScale {
    /// Position of the scale tensor in the catalogue.
    pub tensor: usize,
    /// Rows of a block.
    pub block_rows: usize,
    /// Columns of a block.
    pub block_cols: usize,
    /// How the numbers are stored.
    pub format: ScaleFormat,
    /// Whether products are rounded to the scale's own BF16 or F16, as compressed-tensors does.
    pub rounds: bool,
}

/// A weight in a [`Layout`]; the tensor's own place in the catalogue is that of its codes.
#[derive(Clone)]
pub struct Packed {
    /// What its groups are.
    pub codec: &'static dyn Codec,
    /// How they are arranged.
    pub layout: &'static dyn Layout,
    /// Which of the layout's stored tensors is the catalogue's entry itself.
    pub own: usize,
    /// Positions in the catalogue of the layout's other stored tensors, in its order.
    pub companions: Vec<usize>,
}

impl Packed {
    /// Position in the catalogue of the layout's stored tensor number `number`; `id` is the weight's own.
    pub fn stored(&self, id: usize, number: usize) -> usize {
        match number.cmp(&self.own) {
            std::cmp::Ordering::Less => self.companions[number],
            std::cmp::Ordering::Equal => id,
            std::cmp::Ordering::Greater => self.companions[number - 1],
        }
    }

    /// Where all rows of a weight with this logical shape lie in its stored tensor number `number`.
    pub(super) fn runs(&self, shape: &[usize], number: usize) -> Runs {
        let matrix = self.matrix(shape, 1.0);
        self.layout.runs(matrix, number, 0..matrix.rows())
    }

    /// The matrix of a weight with this logical shape.
    pub fn matrix<'a>(&self, shape: &'a [usize], tensor_scale: f32) -> Matrix<'a> {
        Matrix { shape, codec: self.codec, tensor_scale }
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {} beside {:?}", self.codec.name(), self.layout.name(), self.companions)
    }
}

impl PartialEq for Packed {
    fn eq(&self, other: &Self) -> bool {
        self.codec.name() == other.codec.name()
            && self.layout.name() == other.layout.name()
            && (self.own, &self.companions) == (other.own, &other.companions)
    }
}
