//! GGUF: llama.cpp's container, metadata and tensors in one file or a split set.
//!
//! ```text
//! bytes  content (all numbers little-endian)
//!     4  "GGUF"
//!     4  u32 version: 2 or 3 (same layout)
//!     8  u64 number of tensors
//!     8  u64 number of metadata entries
//!        metadata, each: string key, u32 value type, value
//!        tensors, each:  string name, u32 n_dims, u64 ne[n_dims], u32 type, u64 offset
//!        zeros up to a multiple of the alignment
//!        tensor bytes, each tensor padded with zeros to the alignment; offsets count from here
//!
//! string  u64 length, UTF-8 bytes
//! array   u32 element type, u64 length, elements
//! ```
//!
//! The alignment is the metadata entry `general.alignment` (u32), 32 without it.
//! `ne` has the fastest dimension first: a matrix of `[rows, cols]` has `ne = [cols, rows]`.
//!
//! Source: ggml's GGUF specification; where it leaves a choice, `ggml/src/gguf.cpp`
//! decides: tensors lie in the order of their entries without gaps, arrays do not nest,
//! names are shorter than 64 bytes, trailing dimensions of 1 are not written.

mod ggml_type;
mod metadata;
mod reader;
pub mod split;
mod writer;

pub use ggml_type::GgmlType;
pub use metadata::{Array, Metadata, Value};
pub use reader::read;
pub use writer::write_header;

use crate::error::{FormatError, Result};

/// Metadata key of the alignment.
pub const ALIGNMENT_KEY: &str = "general.alignment";
/// Alignment of files that do not name one.
pub const DEFAULT_ALIGNMENT_BYTES: u64 = 32;
/// Largest alignment accepted; real files have 32.
pub const MAX_ALIGNMENT_BYTES: u64 = 1 << 20;
/// Tensor names must be shorter than this (`GGML_MAX_NAME`).
pub const MAX_NAME_LEN_BYTES: usize = 64;
/// Most dimensions of a tensor (`GGML_MAX_DIMS`).
pub const MAX_DIMS: usize = 4;
/// Most bytes of metadata and tensor entries accepted; DeepSeek-V3 has about 7 million.
pub const MAX_HEADER_LEN_BYTES: u64 = 1 << 28;

const MAGIC: [u8; 4] = *b"GGUF";
/// The version that is written.
const VERSION: u32 = 3;

/// A tensor that is going to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name, unique in the file, shorter than 64 bytes.
    pub name: String,
    /// `ne`: extents, fastest first (`[cols, rows, experts]`).
    pub shape: Vec<u64>,
    /// How the elements are stored.
    pub ggml_type: GgmlType,
}

impl TensorSpec {
    /// Bytes of the tensor, without padding.
    ///
    /// # Errors
    /// A row that is not a whole number of blocks, or a size beyond 2^62.
    pub fn len_bytes(&self) -> Result<u64> {
        let Self { name, shape, ggml_type } = self;
        let row_len_elems = shape.first().copied().unwrap_or(1);
        if row_len_elems % ggml_type.block_len_elems() != 0 {
            return Err(FormatError::Invalid {
                what: format!("shape of tensor {name:?}"),
                found: format!("{shape:?} of {ggml_type}"),
                expected: format!("rows of a multiple of {} elements", ggml_type.block_len_elems()),
            });
        }
        let blocks = row_len_elems / ggml_type.block_len_elems();
        let product = |first: Option<u64>, extents: &[u64]| {
            extents.iter().fold(first, |len, &extent| len?.checked_mul(extent))
        };
        let len_elems = product(Some(1), shape);
        let len_bytes =
            product(blocks.checked_mul(ggml_type.block_len_bytes()), shape.get(1..).unwrap_or(&[]));
        match (len_elems, len_bytes, shape.iter().max()) {
            (Some(len_elems), Some(len_bytes), extent)
                if len_elems.max(len_bytes).max(*extent.unwrap_or(&0)) <= MAX_TENSOR_LEN =>
            {
                Ok(len_bytes)
            }
            _ => Err(FormatError::Invalid {
                what: format!("shape of tensor {name:?}"),
                found: format!("{shape:?} of {ggml_type}"),
                expected: "at most 2^62 elements and bytes".into(),
            }),
        }
    }
}

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, unique in the file.
    pub name: String,
    /// `ne`: extents, fastest first (`[cols, rows, experts]`), as many as the file states.
    pub shape: Vec<u64>,
    /// How the elements are stored.
    pub ggml_type: GgmlType,
    /// First byte, counted from [`Gguf::data_offset_bytes`].
    pub offset_bytes: u64,
    /// Bytes, without the padding that follows.
    pub len_bytes: u64,
}

impl TensorInfo {
    /// Number of elements.
    pub fn len_elems(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// Everything in front of the tensor bytes of one file.
#[derive(Debug, Clone, PartialEq)]
pub struct Gguf {
    /// Format version of the file.
    pub version: u32,
    /// Metadata in file order.
    pub metadata: Metadata,
    /// Tensors in the order of their bytes.
    pub tensors: Vec<TensorInfo>,
    /// Tensors begin at multiples of this.
    pub alignment_bytes: u64,
    /// Where tensor bytes begin, counted from the start of the file.
    pub data_offset_bytes: u64,
}

impl Gguf {
    /// Finds a tensor by name. Linear: build a map for more than a few look-ups.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// Length of the file as ggml writes it: with the padding after header and last tensor.
    pub fn file_len_bytes(&self) -> u64 {
        let end = |tensor: &TensorInfo| {
            tensor.offset_bytes + tensor.len_bytes.next_multiple_of(self.alignment_bytes)
        };
        self.data_offset_bytes + self.tensors.last().map_or(0, end)
    }
}

/// Largest tensor, in elements and in bytes: leaves room for padding and sums.
const MAX_TENSOR_LEN: u64 = 1 << 62;

/// Places tensors one after the other, each padded to the alignment.
fn lay_out(tensors: Vec<TensorSpec>, alignment_bytes: u64) -> Result<Vec<TensorInfo>> {
    let mut offset_bytes = 0u64;
    let mut infos = Vec::with_capacity(tensors.len());
    for spec in tensors {
        let len_bytes = spec.len_bytes()?;
        let TensorSpec { name, shape, ggml_type } = spec;
        let end_bytes = end_of(&name, offset_bytes, len_bytes, alignment_bytes)?;
        infos.push(TensorInfo { name, shape, ggml_type, offset_bytes, len_bytes });
        offset_bytes = end_bytes;
    }
    Ok(infos)
}

/// Where the tensor after this one begins.
fn end_of(name: &str, offset_bytes: u64, len_bytes: u64, alignment_bytes: u64) -> Result<u64> {
    // `len_bytes` is at most `MAX_TENSOR_LEN`, so rounding it up cannot overflow.
    offset_bytes
        .checked_add(len_bytes.next_multiple_of(alignment_bytes))
        .filter(|&end_bytes| end_bytes <= i64::MAX as u64)
        .ok_or_else(|| FormatError::Invalid {
            what: format!("offset of tensor {name:?}"),
            found: format!("{offset_bytes} + {len_bytes} bytes"),
            expected: "a file of less than 2^63 bytes".into(),
        })
}

/// The alignment that `metadata` asks for.
fn alignment_bytes(metadata: &Metadata) -> Result<u64> {
    let alignment = match metadata.get(ALIGNMENT_KEY) {
        None => return Ok(DEFAULT_ALIGNMENT_BYTES),
        Some(&Value::U32(alignment)) => u64::from(alignment),
        Some(other) => return Err(bad_alignment(format!("{other:?}"))),
    };
    if alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT_BYTES {
        Ok(alignment)
    } else {
        Err(bad_alignment(alignment.to_string()))
    }
}

fn bad_alignment(found: String) -> FormatError {
    FormatError::Invalid {
        what: ALIGNMENT_KEY.into(),
        found,
        expected: format!("a u32 that is a power of two and at most {MAX_ALIGNMENT_BYTES}"),
    }
}

/// What ggml demands of a tensor name.
fn check_name(name: &str) -> Result<()> {
    if name.len() < MAX_NAME_LEN_BYTES {
        return Ok(());
    }
    Err(FormatError::Invalid {
        what: format!("name of tensor {name:?}"),
        found: format!("{} bytes", name.len()),
        expected: format!("fewer than {MAX_NAME_LEN_BYTES} bytes"),
    })
}

fn duplicate(what: &str, name: &str) -> FormatError {
    FormatError::Invalid {
        what: what.into(),
        found: format!("{name:?} twice"),
        expected: "unique names".into(),
    }
}

#[cfg(test)]
mod tests;
