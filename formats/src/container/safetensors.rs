//! safetensors: a JSON header in front of plain tensor bytes.
//!
//! ```text
//! offset  bytes  content
//!      0      8  u64 LE: N, length of the JSON text
//!      8      N  {"name": {"dtype": "F32", "shape": [rows, cols], "data_offsets": [begin, end]}, ...,
//!                 "__metadata__": {"key": "value", ...}}      (optional; spaces may follow)
//!  8 + N         tensor bytes; begin and end count from here, tensors lie without gaps or overlaps
//! ```
//!
//! Source: the format description of huggingface/safetensors; the checks made here are
//! those of its Rust crate (which the tests use as the oracle), plus duplicate names, with
//! errors that name the tensor.

pub mod mlx;
mod mlx_order;
mod writer;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::Read;

use ::safetensors::tensor::TensorInfo;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use crate::dtype::Dtype;
use crate::error::{FormatError, Result};

pub use writer::{TensorSpec, write_header};

/// Longest JSON text accepted, the limit of the reference implementation.
pub const MAX_HEADER_LEN_BYTES: u64 = 100_000_000;
/// Bytes in front of the JSON text: its length.
pub const PREFIX_LEN_BYTES: u64 = 8;
/// The one key of the header that is not a tensor.
const METADATA_KEY: &str = "__metadata__";

/// One tensor of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// Name, unique in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Extents, slowest first: `[rows, cols]`; empty for a scalar.
    pub shape: Vec<usize>,
    /// First byte, counted from [`Header::data_offset_bytes`].
    pub begin_bytes: u64,
    /// One past the last byte, counted from [`Header::data_offset_bytes`].
    pub end_bytes: u64,
}

impl TensorEntry {
    /// Bytes of the tensor.
    pub fn len_bytes(&self) -> u64 {
        self.end_bytes - self.begin_bytes
    }
}

/// Everything in front of the tensor bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The tensors in the order of their bytes.
    pub tensors: Vec<TensorEntry>,
    /// The `__metadata__` entries.
    pub metadata: BTreeMap<String, String>,
    /// Where tensor bytes begin, counted from the start of the file.
    pub data_offset_bytes: u64,
}

impl Header {
    /// Finds a tensor by name. Linear: build a map for more than a few look-ups.
    pub fn tensor(&self, name: &str) -> Option<&TensorEntry> {
        self.tensors.iter().find(|entry| entry.name == name)
    }

    /// Length of the whole file.
    pub fn file_len_bytes(&self) -> u64 {
        self.data_offset_bytes + self.tensors.last().map_or(0, |entry| entry.end_bytes)
    }
}

/// Reads the length prefix: bytes of JSON text that follow it.
///
/// For a caller that fetches the header by byte ranges; [`read_header`] does this itself.
///
/// # Errors
/// A length over [`MAX_HEADER_LEN_BYTES`], or one that does not fit in `file_len_bytes`.
pub fn header_len_bytes(prefix: [u8; 8], file_len_bytes: u64) -> Result<u64> {
    let len_bytes = u64::from_le_bytes(prefix);
    if len_bytes > MAX_HEADER_LEN_BYTES {
        return Err(FormatError::Invalid {
            what: "safetensors header length".into(),
            found: format!("{len_bytes} bytes"),
            expected: format!("at most {MAX_HEADER_LEN_BYTES} bytes (is this a safetensors file?)"),
        });
    }
    let available = file_len_bytes.saturating_sub(PREFIX_LEN_BYTES);
    if len_bytes > available {
        return Err(truncated("safetensors header", len_bytes, available));
    }
    Ok(len_bytes)
}

/// Reads and checks the header of a file of `file_len_bytes` bytes.
///
/// Reads exactly the header; afterwards `reader` stands at the first tensor byte.
///
/// # Errors
/// Everything the format forbids: see the module's tests for one example of each.
pub fn read_header(reader: &mut impl Read, file_len_bytes: u64) -> Result<Header> {
    let what = "safetensors header";
    if file_len_bytes < PREFIX_LEN_BYTES {
        return Err(truncated("safetensors length prefix", PREFIX_LEN_BYTES, file_len_bytes));
    }
    let mut prefix = [0; 8];
    let got_bytes = read_up_to(reader, &mut prefix, what)?;
    if got_bytes < prefix.len() {
        return Err(truncated("safetensors length prefix", PREFIX_LEN_BYTES, got_bytes as u64));
    }
    let len_bytes = header_len_bytes(prefix, file_len_bytes)?;

    // Grows as bytes arrive: a false length costs nothing.
    let mut json = Vec::new();
    reader.take(len_bytes).read_to_end(&mut json).map_err(|source| io_error(what, source))?;
    if (json.len() as u64) < len_bytes {
        return Err(truncated(what, len_bytes, json.len() as u64));
    }
    parse_header(&json, file_len_bytes)
}

/// Checks the JSON text of a header, without its length prefix.
///
/// # Errors
/// As [`read_header`].
pub fn parse_header(json: &[u8], file_len_bytes: u64) -> Result<Header> {
    let raw = parse_json(json)?;
    let data_offset_bytes = PREFIX_LEN_BYTES + json.len() as u64;
    let available_bytes = file_len_bytes.saturating_sub(data_offset_bytes);

    let mut tensors = raw
        .tensors
        .into_iter()
        .map(|(name, info)| check_tensor(name, info, available_bytes))
        .collect::<Result<Vec<_>>>()?;
    tensors.sort_by_key(|entry| (entry.begin_bytes, entry.end_bytes));

    let mut expected_bytes = 0;
    for entry in &tensors {
        if entry.begin_bytes != expected_bytes {
            let kind = if entry.begin_bytes < expected_bytes { "overlaps" } else { "leaves a hole after" };
            return Err(FormatError::Invalid {
                what: format!("offsets of tensor {:?}", entry.name),
                found: format!("begin {}, which {kind} the tensor before it", entry.begin_bytes),
                expected: format!("begin {expected_bytes}"),
            });
        }
        expected_bytes = entry.end_bytes;
    }
    if expected_bytes < available_bytes {
        return Err(FormatError::Invalid {
            what: "length of the safetensors file".into(),
            found: format!("{} bytes that belong to no tensor at the end", available_bytes - expected_bytes),
            expected: "a file that ends with its last tensor".into(),
        });
    }
    Ok(Header { tensors, metadata: raw.metadata, data_offset_bytes })
}

/// Bytes of a tensor, or what is wrong with its shape.
fn tensor_len_bytes(name: &str, dtype: Dtype, shape: &[usize]) -> Result<u64> {
    shape
        .iter()
        .try_fold(dtype.size_bytes() as u64, |len, &extent| len.checked_mul(extent as u64))
        .ok_or_else(|| FormatError::Invalid {
            what: format!("shape of tensor {name:?}"),
            found: format!("{shape:?} of {dtype}, more than 2^64 bytes"),
            expected: "a size that can be computed".into(),
        })
}

/// Turns one header entry into a [`TensorEntry`], checking all but its neighbours.
fn check_tensor(name: String, info: TensorInfo, available_bytes: u64) -> Result<TensorEntry> {
    let dtype = Dtype::parse(&info.dtype.to_string()).map_err(|error| match error {
        FormatError::Unsupported { what, supported } => {
            FormatError::Unsupported { what: format!("{what} of tensor {name:?}"), supported }
        }
        other => other,
    })?;
    let (begin_bytes, end_bytes) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
    let len_bytes = tensor_len_bytes(&name, dtype, &info.shape)?;
    if end_bytes.checked_sub(begin_bytes) != Some(len_bytes) {
        return Err(FormatError::Invalid {
            what: format!("offsets of tensor {name:?}"),
            found: format!("[{begin_bytes}, {end_bytes}]"),
            expected: format!("{len_bytes} bytes for {:?} of {dtype}", info.shape),
        });
    }
    if end_bytes > available_bytes {
        return Err(truncated(&format!("tensor {name:?}"), end_bytes, available_bytes));
    }
    Ok(TensorEntry { name, dtype, shape: info.shape, begin_bytes, end_bytes })
}

/// The header as JSON has it.
#[derive(Default)]
struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, TensorInfo)>,
}

fn parse_json(json: &[u8]) -> Result<RawHeader> {
    let invalid = |found: String| FormatError::Invalid {
        what: "safetensors header".into(),
        found,
        expected: "UTF-8 JSON that maps tensor names to dtype, shape and data_offsets".into(),
    };
    let text = std::str::from_utf8(json).map_err(|error| invalid(error.to_string()))?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let raw = deserializer.deserialize_map(RawHeaderVisitor).map_err(|error| invalid(error.to_string()))?;
    deserializer.end().map_err(|error| invalid(error.to_string()))?;
    Ok(raw)
}

/// Keeps what a map type would lose: duplicate names, and the name an error belongs to.
struct RawHeaderVisitor;

impl<'de> Visitor<'de> for RawHeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawHeader, A::Error> {
        let mut raw = RawHeader::default();
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format_args!("duplicate entry {name:?}")));
            }
            let result = if name == METADATA_KEY {
                map.next_value().map(|value: Option<_>| raw.metadata = value.unwrap_or_default())
            } else {
                map.next_value().map(|info| raw.tensors.push((name.clone(), info)))
            };
            result.map_err(|error| A::Error::custom(format_args!("entry {name:?}: {error}")))?;
        }
        Ok(raw)
    }
}

fn read_up_to(reader: &mut impl Read, buffer: &mut [u8], what: &str) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io_error(what, error)),
        }
    }
    Ok(filled)
}

fn truncated(what: &str, needed: u64, available: u64) -> FormatError {
    FormatError::Truncated { what: what.into(), needed, available }
}

fn io_error(what: &str, source: std::io::Error) -> FormatError {
    FormatError::Io { what: what.into(), source }
}

#[cfg(test)]
mod tests;
