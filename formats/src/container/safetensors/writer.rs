//! Writes safetensors headers as the format's own library does: padded with spaces, so that the tensor
//! bytes begin at a multiple of 8, and with every tensor at a multiple of its element's width.
//!
//! Readers make views of the mapped file, which needs that alignment, and the format allows no holes. So tensors
//! whose length is a multiple of 8 come first, in the order given, and the others, widest elements first,
//! at the end.
//!
//! Source: huggingface/safetensors `safetensors/src/tensor.rs` (`prepare`), which sorts all tensors by
//! width; order beyond alignment is free.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};

use super::{Header, METADATA_KEY, PREFIX_LEN_BYTES, TensorEntry, tensor_len_bytes};
use crate::dtype::Dtype;
use crate::error::{FormatError, Result};

/// What every offset and the header's length are a multiple of.
const ALIGNMENT: u64 = 8;

/// A tensor that is going to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name, unique in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Extents, slowest first: `[rows, cols]`.
    pub shape: Vec<usize>,
}

/// Lays out a file: returns its header (tensors in file order, with their offsets) and the bytes in
/// front of the first tensor.
///
/// # Errors
/// Duplicate or reserved names, tensors without elements, a header longer than readers accept.
pub fn write_header(
    tensors: &[TensorSpec],
    metadata: &BTreeMap<String, String>,
) -> Result<(Header, Vec<u8>)> {
    let mut lens = Vec::with_capacity(tensors.len());
    for spec in tensors {
        lens.push(tensor_len_bytes(&spec.name, spec.dtype, &spec.shape)?);
    }
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&index| {
        let is_ragged = !lens[index].is_multiple_of(ALIGNMENT);
        (is_ragged, is_ragged.then(|| Reverse(tensors[index].dtype.size_bytes())))
    });
    let entries = place(tensors, order)?;

    let mut members = Vec::with_capacity(entries.len() + 1);
    if !metadata.is_empty() {
        let text = serde_json::to_string(metadata).map_err(|error| encoding(&error))?;
        members.push(format!("\"{METADATA_KEY}\":{text}"));
    }
    for entry in &entries {
        let TensorEntry { name, dtype, shape, begin_bytes, end_bytes } = entry;
        members.push(format!(
            r#"{}:{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin_bytes},{end_bytes}]}}"#,
            serde_json::Value::from(name.as_str())
        ));
    }
    let mut json = format!("{{{}}}", members.join(","));
    json.extend(std::iter::repeat_n(' ', json.len().next_multiple_of(ALIGNMENT as usize) - json.len()));
    let len_bytes = json.len() as u64;
    if len_bytes > super::MAX_HEADER_LEN_BYTES {
        return Err(FormatError::Invalid {
            what: "safetensors header".into(),
            found: format!("{len_bytes} bytes for {} tensors", tensors.len()),
            expected: format!("at most {} bytes", super::MAX_HEADER_LEN_BYTES),
        });
    }
    let mut bytes = len_bytes.to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    let header = Header {
        tensors: entries,
        metadata: metadata.clone(),
        data_offset_bytes: PREFIX_LEN_BYTES + len_bytes,
    };
    Ok((header, bytes))
}

/// Gives the tensors their offsets, in the order of the indices `order`.
///
/// # Errors
/// Duplicate or reserved names, tensors without elements.
pub(super) fn place(
    tensors: &[TensorSpec],
    order: impl IntoIterator<Item = usize>,
) -> Result<Vec<TensorEntry>> {
    let mut names = HashSet::new();
    for spec in tensors {
        if spec.name == METADATA_KEY || !names.insert(spec.name.as_str()) {
            return Err(FormatError::Invalid {
                what: "tensor name".into(),
                found: format!("{:?} (reserved or used twice)", spec.name),
                expected: "a name of its own for each tensor".into(),
            });
        }
    }
    let mut entries = Vec::with_capacity(tensors.len());
    let mut offset_bytes = 0u64;
    for index in order {
        let TensorSpec { name, dtype, shape } = &tensors[index];
        let len_bytes = tensor_len_bytes(name, *dtype, shape)?;
        let end_bytes = offset_bytes.checked_add(len_bytes).filter(|_| len_bytes > 0).ok_or_else(|| {
            FormatError::Invalid {
                what: format!("shape of tensor {name:?}"),
                found: format!("{shape:?}, {len_bytes} bytes"),
                expected: "at least one element, and a file of less than 2^64 bytes".into(),
            }
        })?;
        entries.push(TensorEntry {
            name: name.clone(),
            dtype: *dtype,
            shape: shape.clone(),
            begin_bytes: offset_bytes,
            end_bytes,
        });
        offset_bytes = end_bytes;
    }
    Ok(entries)
}

fn encoding(error: &serde_json::Error) -> FormatError {
    FormatError::Invalid {
        what: "safetensors metadata".into(),
        found: error.to_string(),
        expected: "text".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, dtype: Dtype, shape: &[usize]) -> TensorSpec {
        TensorSpec { name: name.into(), dtype, shape: shape.to_vec() }
    }

    #[test]
    fn every_tensor_is_aligned_and_the_format_s_own_library_reads_the_file() {
        let specs = [
            spec("odd", Dtype::U8, &[3]),
            spec("codes", Dtype::I32, &[4, 2]),
            spec("one \"quoted\"", Dtype::F32, &[1]),
            spec("halves", Dtype::BF16, &[5]),
            spec("shape", Dtype::I64, &[2]),
        ];
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let (header, mut bytes) = write_header(&specs, &metadata).unwrap();
        assert!(header.data_offset_bytes.is_multiple_of(8));
        assert_eq!(header.data_offset_bytes, bytes.len() as u64);
        for entry in &header.tensors {
            assert!(entry.begin_bytes.is_multiple_of(entry.dtype.size_bytes() as u64), "{entry:?}");
        }
        bytes.resize(header.file_len_bytes() as usize, 7);
        let read = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.len(), specs.len());
        for spec in &specs {
            assert_eq!(read.tensor(&spec.name).unwrap().shape(), spec.shape);
        }
        let again =
            crate::container::safetensors::read_header(&mut bytes.as_slice(), bytes.len() as u64).unwrap();
        assert_eq!(again.tensors, header.tensors);
        assert_eq!(again.metadata, metadata);
    }

    #[test]
    fn a_name_used_twice_is_refused() {
        let specs = [spec("a", Dtype::U8, &[8]), spec("a", Dtype::U8, &[8])];
        assert!(write_header(&specs, &BTreeMap::new()).unwrap_err().to_string().contains("used twice"));
    }
}
