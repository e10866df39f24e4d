//! The older format.
//!
//! ```text
//! i32 entries, then each:   i32 length, name;  i32 calls;  i32 n, n f32: sums divided by tokens, times calls
//! at the end, or not:       i32 chunks;  i32 length, name of the text
//! ```
//!
//! All numbers are little-endian.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::{Contents, Entry, MAX_ENTRIES, Unseen};

/// Longest name of a matrix or a text.
const MAX_NAME_BYTES: usize = 4096;

/// Reads names and counts, and passes over the sums.
pub(super) fn read(file: &File, file_len_bytes: u64) -> Result<Contents, String> {
    let mut reader = Reader { file, position: 0, len_bytes: file_len_bytes };
    let count = reader.number()?;
    let no_such_file = "it is neither a GGUF file nor an importance matrix in the older format";
    let count = usize::try_from(count).ok().filter(|count| (1..=MAX_ENTRIES).contains(count));
    let count = count.ok_or(no_such_file)?;
    let mut entries = BTreeMap::new();
    for _ in 0..count {
        let name = reader.name().map_err(|error| format!("{no_such_file}: {error}"))?;
        let calls = reader.number()?;
        let len =
            usize::try_from(reader.number()?).map_err(|_| format!("{name}: a negative number of values"))?;
        let place = (reader.position, len);
        reader.skip(4 * len as u64).map_err(|error| format!("{name}: {error}"))?;
        // Without a call the values are taken as they are.
        let calls = calls.max(0) as f32;
        entries.insert(name.clone(), Entry::new(&name, place, vec![calls], Unseen::Sums)?);
    }
    let (mut chunks, mut datasets) = (0, Vec::new());
    if reader.position < file_len_bytes {
        chunks = u32::try_from(reader.number()?).unwrap_or(0);
        if reader.position < file_len_bytes {
            datasets.push(reader.name()?);
        }
    }
    Ok(Contents { datasets, chunks, entries })
}

struct Reader<'a> {
    file: &'a File,
    position: u64,
    len_bytes: u64,
}

impl Reader<'_> {
    fn bytes(&mut self, buf: &mut [u8]) -> Result<(), String> {
        self.file
            .read_exact_at(buf, self.position)
            .map_err(|error| format!("at byte {}: {error}", self.position))?;
        self.position += buf.len() as u64;
        Ok(())
    }

    fn number(&mut self) -> Result<i32, String> {
        let mut bytes = [0; 4];
        self.bytes(&mut bytes)?;
        Ok(i32::from_le_bytes(bytes))
    }

    fn name(&mut self) -> Result<String, String> {
        let len = self.number()?;
        let len = usize::try_from(len).ok().filter(|len| *len <= MAX_NAME_BYTES);
        let mut bytes =
            vec![0; len.ok_or_else(|| format!("a name of a senseless length at byte {}", self.position))?];
        self.bytes(&mut bytes)?;
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        String::from_utf8(bytes[..end].to_vec())
            .map_err(|_| format!("a name that is no text at byte {}", self.position))
    }

    fn skip(&mut self, len_bytes: u64) -> Result<(), String> {
        if self.position + len_bytes > self.len_bytes {
            return Err(format!("the file ends before its {} values", len_bytes / 4));
        }
        self.position += len_bytes;
        Ok(())
    }
}
