//! The format of today: a GGUF file with two F32 tensors for each matrix.
//!
//! ```text
//! imatrix.datasets     array of strings      imatrix.chunk_count, imatrix.chunk_size     u32
//! NAME.in_sum2         [columns, matrices]   NAME.counts                                 [1, matrices]
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::os::unix::fs::FileExt;

use requant_formats::container::gguf::{self, Array, GgmlType, TensorInfo, Value};

use super::{At, Contents, Entry, MAX_ENTRIES, Unseen};

pub(super) const DATASETS_KEY: &str = "imatrix.datasets";
pub(super) const CHUNK_COUNT_KEY: &str = "imatrix.chunk_count";
pub(super) const CHUNK_SIZE_KEY: &str = "imatrix.chunk_size";
pub(super) const SUMS: &str = ".in_sum2";
pub(super) const COUNTS: &str = ".counts";
/// Most counts: experts of one layer.
const MAX_COUNTS: u64 = 1 << 16;

/// Reads what says where the sums are, and the counts.
pub(super) fn read(file: &File, file_len_bytes: u64) -> Result<Contents, String> {
    let mut reader = BufReader::new(At { file, position: 0 });
    let header = gguf::read(&mut reader, file_len_bytes).map_err(|error| error.to_string())?;
    let text = |key: &str| header.metadata.get(key);
    let number = |key: &str| {
        text(key).and_then(Value::as_u64).and_then(|value| u32::try_from(value).ok()).ok_or_else(|| {
            format!("metadata key {key} is missing or no number: this is no importance matrix, or an unfinished one")
        })
    };
    let chunks = number(CHUNK_COUNT_KEY)?;
    number(CHUNK_SIZE_KEY)?;
    let Some(Array::String(datasets)) = text(DATASETS_KEY).and_then(Value::as_array) else {
        return Err(format!("metadata key {DATASETS_KEY} is missing: this is no importance matrix"));
    };
    let datasets = datasets.clone();
    let mut pairs: BTreeMap<&str, [Option<&TensorInfo>; 2]> = BTreeMap::new();
    for tensor in &header.tensors {
        if tensor.ggml_type != GgmlType::F32 {
            return Err(format!("tensor {}: found {}, expected F32", tensor.name, tensor.ggml_type));
        }
        for (at, ending) in [SUMS, COUNTS].into_iter().enumerate() {
            if let Some(name) = tensor.name.strip_suffix(ending) {
                pairs.entry(name).or_default()[at] = Some(tensor);
            }
        }
    }
    if pairs.is_empty() || pairs.len() > MAX_ENTRIES {
        return Err(format!("it has entries for {} matrices", pairs.len()));
    }
    let mut entries = BTreeMap::new();
    for (name, [sums, counts]) in pairs {
        let Some(sums) = sums else { return Err(format!("{name}{SUMS} is missing")) };
        let Some(counts) = counts else { return Err(format!("{name}{COUNTS} is missing")) };
        let counts = read_counts(file, header.data_offset_bytes, counts)?;
        let len = usize::try_from(sums.len_elems()).map_err(|error| error.to_string())?;
        let place = (header.data_offset_bytes + sums.offset_bytes, len);
        entries.insert(name.to_owned(), Entry::new(name, place, counts, Unseen::Ones)?);
    }
    Ok(Contents { datasets, chunks, entries })
}

/// The counts of a matrix or a stack.
fn read_counts(file: &File, data_offset_bytes: u64, tensor: &TensorInfo) -> Result<Vec<f32>, String> {
    if tensor.len_elems() > MAX_COUNTS {
        return Err(format!("{}: {} counts, expected one an expert", tensor.name, tensor.len_elems()));
    }
    let mut bytes = vec![0; tensor.len_bytes as usize];
    let offset = data_offset_bytes + tensor.offset_bytes;
    file.read_exact_at(&mut bytes, offset).map_err(|error| format!("{}: {error}", tensor.name))?;
    // The reference keeps them as whole numbers.
    Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes).round()).collect())
}
