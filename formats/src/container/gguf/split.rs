//! Split sets: one model in several GGUF files, as `llama-gguf-split` makes them.
//!
//! - Files are named `PREFIX-00001-of-00003.gguf`.
//! - Tensors keep their order. A new file begins before a tensor that would take the sum of
//!   padded tensor bytes (metadata is not counted) over the limit; so a file is over the
//!   limit only when a single tensor is. The very first tensor must fit.
//! - The first file carries all metadata, the others none of it. Every file ends its
//!   metadata with `split.no` (u16, from 0), `split.tensors.count` (i32, over all files) and
//!   `split.count` (u16), in this order. A model that fits in one file is still a set, of one.
//!
//! Source: llama.cpp `tools/gguf-split/gguf-split.cpp` and `src/llama-model-loader.cpp`.

use std::collections::HashSet;

use super::{DEFAULT_ALIGNMENT_BYTES, Gguf, Metadata, TensorSpec, alignment_bytes, duplicate};
use crate::error::{FormatError, Result};

/// Metadata key: number of this file, from 0.
pub const NO_KEY: &str = "split.no";
/// Metadata key: number of files.
pub const COUNT_KEY: &str = "split.count";
/// Metadata key: number of tensors in all files together.
pub const TENSORS_COUNT_KEY: &str = "split.tensors.count";

/// What goes into one file of the set; hand both to [`super::write_header`].
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// All metadata in the first file, split keys alone in the others.
    pub metadata: Metadata,
    /// The tensors of this file.
    pub tensors: Vec<TensorSpec>,
}

/// Parses `--split-max-size`: a whole number of `M` (10^6) or `G` (10^9) bytes.
///
/// # Errors
/// Anything else, as in `llama-gguf-split`; also a fraction, of which that would drop the end.
pub fn parse_max_size(text: &str) -> Result<u64> {
    let parse = || {
        let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let unit_bytes = match unit {
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            _ => return None,
        };
        let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
        number.parse::<u64>().ok().filter(|&size| is_number && size > 0)?.checked_mul(unit_bytes)
    };
    parse().ok_or_else(|| FormatError::Invalid {
        what: "split size".into(),
        found: format!("{text:?}"),
        expected: "a whole number of megabytes or gigabytes: 500M, 48G".into(),
    })
}

/// Distributes tensors over files of at most `max_size_bytes` of tensor bytes.
///
/// # Errors
/// A first tensor larger than the limit, more than 65,535 files, an alignment other than 32.
pub fn plan(metadata: Metadata, tensors: Vec<TensorSpec>, max_size_bytes: u64) -> Result<Vec<Part>> {
    let alignment = alignment_bytes(&metadata)?;
    if alignment != DEFAULT_ALIGNMENT_BYTES {
        let what = format!("splitting a GGUF with alignment {alignment}");
        return Err(FormatError::Unsupported { what, supported: "alignment 32".into() });
    }
    let tensor_count = i32::try_from(tensors.len()).map_err(|_| too_many("tensors", tensors.len()))?;

    let mut parts = vec![Part { metadata, tensors: Vec::new() }];
    let mut size_bytes = 0u64;
    for spec in tensors {
        let len_bytes = spec.len_bytes()?.next_multiple_of(DEFAULT_ALIGNMENT_BYTES);
        let next_bytes = size_bytes.saturating_add(len_bytes);
        if next_bytes <= max_size_bytes {
            size_bytes = next_bytes;
        } else if parts.iter().all(|part| part.tensors.is_empty()) {
            return Err(FormatError::Invalid {
                what: "split size".into(),
                found: format!("{max_size_bytes} bytes"),
                expected: format!("at least {len_bytes} bytes, the size of the first tensor {:?}", spec.name),
            });
        } else {
            parts.push(Part { metadata: Metadata::new(), tensors: Vec::new() });
            size_bytes = len_bytes;
        }
        if let Some(part) = parts.last_mut() {
            part.tensors.push(spec);
        }
    }

    let count = u16::try_from(parts.len()).map_err(|_| too_many("files", parts.len()))?;
    for (no, part) in (0..count).zip(&mut parts) {
        part.metadata.set(NO_KEY, no);
        // The count comes last: llama-gguf-split sets it when it knows it.
        part.metadata.set(TENSORS_COUNT_KEY, tensor_count);
        part.metadata.set(COUNT_KEY, count);
    }
    Ok(parts)
}

/// Name of file `no` (from 0) of `count`.
pub fn file_name(prefix: &str, no: u16, count: u16) -> String {
    format!("{prefix}-{:05}-of-{count:05}.gguf", u32::from(no) + 1)
}

/// The names of the whole set that the file `name` belongs to, first file first, or `None`
/// for a name that is not that of a split. `name` may be a path; only its end is looked at.
pub fn siblings(name: &str) -> Option<Vec<String>> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let (number, count) = (number.parse::<u16>().ok()?, count.parse::<u16>().ok()?);
    let is_split = (1..=count).contains(&number) && file_name(prefix, number - 1, count) == name;
    is_split.then(|| (0..count).map(|no| file_name(prefix, no, count)).collect())
}

/// Checks that `files` are one complete set, in order.
///
/// # Errors
/// A file that says it is another one, a count that differs, a missing or repeated tensor.
pub fn check(files: &[Gguf]) -> Result<()> {
    let mut names = HashSet::new();
    for (no, file) in files.iter().enumerate() {
        let what = format!("file {} of the split set", no + 1);
        expect(file, NO_KEY, no as u64, &what)?;
        expect(file, COUNT_KEY, files.len() as u64, &what)?;
        for tensor in &file.tensors {
            if !names.insert(tensor.name.as_str()) {
                return Err(duplicate("tensor name in the split set", &tensor.name));
            }
        }
    }
    files.first().map_or(Ok(()), |file| expect(file, TENSORS_COUNT_KEY, names.len() as u64, "the split set"))
}

fn expect(file: &Gguf, key: &str, expected: u64, what: &str) -> Result<()> {
    let found = file.metadata.get(key);
    if found.and_then(|value| value.as_u64()) == Some(expected) {
        return Ok(());
    }
    Err(FormatError::Invalid {
        what: format!("{key} in {what}"),
        found: found.map_or("nothing".into(), |value| format!("{value:?}")),
        expected: expected.to_string(),
    })
}

fn too_many(what: &str, found: usize) -> FormatError {
    FormatError::Invalid {
        what: format!("number of {what} in a split set"),
        found: found.to_string(),
        expected: "65535 files and 2^31 tensors at most (choose a larger split size)".into(),
    }
}

#[cfg(test)]
mod tests;
