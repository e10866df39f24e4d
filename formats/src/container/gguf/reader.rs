//! Reads GGUF headers, trusting nothing: counts and lengths are compared with the bytes
//! that are there before anything is allocated for them.

use std::collections::HashSet;
use std::io::{BufReader, Read};

use super::metadata::{ARRAY_TYPE_ID, Array, Value};
use super::{
    GgmlType, Gguf, MAGIC, MAX_DIMS, MAX_HEADER_LEN_BYTES, Metadata, TensorInfo, TensorSpec, VERSION,
    alignment_bytes, check_name, duplicate, end_of,
};
use crate::error::{FormatError, Result};

/// Fewest bytes of a metadata entry: key length, one byte of key, type, one byte of value.
const MIN_ENTRY_LEN_BYTES: u64 = 8 + 1 + 4 + 1;
/// Fewest bytes of a tensor entry: name length, number of dimensions, type, offset.
const MIN_TENSOR_LEN_BYTES: u64 = 8 + 4 + 4 + 8;
/// Strings and arrays are read in steps of this many bytes.
const STEP_LEN_BYTES: u64 = 1 << 16;

/// Reads and checks the header of a file of `file_len_bytes` bytes.
///
/// Reads ahead: afterwards the position of `reader` is unspecified.
///
/// # Errors
/// Everything the format forbids: see the module's tests for one example of each.
pub fn read(reader: &mut impl Read, file_len_bytes: u64) -> Result<Gguf> {
    let limit_bytes = file_len_bytes.min(MAX_HEADER_LEN_BYTES);
    let mut cursor =
        Cursor { reader: BufReader::new(reader), position_bytes: 0, limit_bytes, file_len_bytes };

    let magic = cursor.take::<4>("GGUF magic")?;
    if magic != MAGIC {
        return Err(invalid("GGUF magic", format!("\"{}\"", magic.escape_ascii()), "\"GGUF\""));
    }
    let version = cursor.u32("GGUF version")?;
    if !(2..=VERSION).contains(&version) {
        let big_endian =
            if (1..=VERSION).contains(&version.swap_bytes()) { " (a big-endian file)" } else { "" };
        let what = format!("GGUF version {version}{big_endian}");
        return Err(FormatError::Unsupported { what, supported: "versions 2 and 3, little-endian".into() });
    }
    let tensor_count = cursor.u64("number of tensors")?;
    let entry_count = cursor.u64("number of metadata entries")?;
    cursor.need("metadata entries", entry_count, MIN_ENTRY_LEN_BYTES)?;
    cursor.need("tensor entries", tensor_count, MIN_TENSOR_LEN_BYTES)?;

    let metadata = read_metadata(&mut cursor, entry_count)?;
    let alignment_bytes = alignment_bytes(&metadata)?;
    let tensors = read_tensors(&mut cursor, tensor_count, alignment_bytes)?;

    let data_offset_bytes = cursor.position_bytes.next_multiple_of(alignment_bytes);
    if !tensors.is_empty() && data_offset_bytes > file_len_bytes {
        let what = "padding before the tensors".into();
        return Err(FormatError::Truncated { what, needed: data_offset_bytes, available: file_len_bytes });
    }
    let available = file_len_bytes.saturating_sub(data_offset_bytes);
    for TensorInfo { name, offset_bytes, len_bytes, .. } in &tensors {
        let needed = offset_bytes + len_bytes;
        if needed > available {
            return Err(FormatError::Truncated { what: format!("tensor {name:?}"), needed, available });
        }
    }
    Ok(Gguf { version, metadata, tensors, alignment_bytes, data_offset_bytes })
}

fn read_metadata<R: Read>(cursor: &mut Cursor<R>, count: u64) -> Result<Metadata> {
    let mut metadata = Metadata::new();
    let mut keys = HashSet::new();
    for index in 0..count {
        let key = cursor.string(&format!("metadata key {index}"))?;
        if key.is_empty() {
            return Err(invalid(&format!("metadata key {index}"), "an empty key".into(), "a name"));
        }
        if !keys.insert(key.clone()) {
            return Err(duplicate("metadata key", &key));
        }
        let type_id = cursor.u32(&key)?;
        let value = read_value(cursor, &key, type_id)?;
        metadata.push_unique(key, value);
    }
    Ok(metadata)
}

fn read_value<R: Read>(cursor: &mut Cursor<R>, key: &str, type_id: u32) -> Result<Value> {
    Ok(match type_id {
        0 => Value::U8(u8::from_le_bytes(cursor.take(key)?)),
        1 => Value::I8(i8::from_le_bytes(cursor.take(key)?)),
        2 => Value::U16(u16::from_le_bytes(cursor.take(key)?)),
        3 => Value::I16(i16::from_le_bytes(cursor.take(key)?)),
        4 => Value::U32(u32::from_le_bytes(cursor.take(key)?)),
        5 => Value::I32(i32::from_le_bytes(cursor.take(key)?)),
        6 => Value::F32(f32::from_le_bytes(cursor.take(key)?)),
        7 => Value::Bool(boolean(key, cursor.take(key)?)?),
        8 => Value::String(cursor.string(key)?),
        ARRAY_TYPE_ID => Value::Array(read_array(cursor, key)?),
        10 => Value::U64(u64::from_le_bytes(cursor.take(key)?)),
        11 => Value::I64(i64::from_le_bytes(cursor.take(key)?)),
        12 => Value::F64(f64::from_le_bytes(cursor.take(key)?)),
        _ => return Err(unknown_type(key, type_id)),
    })
}

fn read_array<R: Read>(cursor: &mut Cursor<R>, key: &str) -> Result<Array> {
    let type_id = cursor.u32(key)?;
    let count = cursor.u64(key)?;
    Ok(match type_id {
        0 => Array::U8(cursor.array(key, count, u8::from_le_bytes)?),
        1 => Array::I8(cursor.array(key, count, i8::from_le_bytes)?),
        2 => Array::U16(cursor.array(key, count, u16::from_le_bytes)?),
        3 => Array::I16(cursor.array(key, count, i16::from_le_bytes)?),
        4 => Array::U32(cursor.array(key, count, u32::from_le_bytes)?),
        5 => Array::I32(cursor.array(key, count, i32::from_le_bytes)?),
        6 => Array::F32(cursor.array(key, count, f32::from_le_bytes)?),
        7 => {
            let bytes = cursor.array(key, count, |byte: [u8; 1]| byte)?;
            Array::Bool(bytes.into_iter().map(|byte| boolean(key, byte)).collect::<Result<_>>()?)
        }
        8 => {
            cursor.need(key, count, 8)?;
            let mut strings = Vec::new();
            for _ in 0..count {
                strings.push(cursor.string(key)?);
            }
            Array::String(strings)
        }
        10 => Array::U64(cursor.array(key, count, u64::from_le_bytes)?),
        11 => Array::I64(cursor.array(key, count, i64::from_le_bytes)?),
        12 => Array::F64(cursor.array(key, count, f64::from_le_bytes)?),
        _ => return Err(unknown_type(&format!("elements of {key}"), type_id)),
    })
}

fn read_tensors<R: Read>(
    cursor: &mut Cursor<R>,
    count: u64,
    alignment_bytes: u64,
) -> Result<Vec<TensorInfo>> {
    let mut tensors = Vec::new();
    let mut names = HashSet::new();
    let mut expected_bytes = 0;
    for index in 0..count {
        let name = cursor.string(&format!("name of tensor {index}"))?;
        check_name(&name)?;
        if !names.insert(name.clone()) {
            return Err(duplicate("tensor name", &name));
        }
        let what = format!("tensor {name:?}");
        let dims = cursor.u32(&what)?;
        if dims as usize > MAX_DIMS {
            return Err(invalid(&what, format!("{dims} dimensions"), "at most 4 dimensions"));
        }
        let shape = (0..dims).map(|_| cursor.u64(&what)).collect::<Result<Vec<_>>>()?;
        let ggml_type = GgmlType::from_id(cursor.u32(&what)?).map_err(|error| match error {
            FormatError::Unsupported { what: found, supported } => {
                FormatError::Unsupported { what: format!("{found} of {what}"), supported }
            }
            other => other,
        })?;
        let offset_bytes = cursor.u64(&what)?;
        if offset_bytes != expected_bytes {
            let expected = format!("{expected_bytes}, right after the tensor before it");
            return Err(invalid(&format!("offset of {what}"), offset_bytes.to_string(), &expected));
        }
        let spec = TensorSpec { name, shape, ggml_type };
        let len_bytes = spec.len_bytes()?;
        let TensorSpec { name, shape, ggml_type } = spec;
        expected_bytes = end_of(&name, offset_bytes, len_bytes, alignment_bytes)?;
        tensors.push(TensorInfo { name, shape, ggml_type, offset_bytes, len_bytes });
    }
    Ok(tensors)
}

/// A reader that knows how much may still come.
struct Cursor<R> {
    reader: BufReader<R>,
    position_bytes: u64,
    limit_bytes: u64,
    file_len_bytes: u64,
}

impl<R: Read> Cursor<R> {
    /// Fails unless `count` items of `item_len_bytes` can still follow.
    fn need(&self, what: &str, count: u64, item_len_bytes: u64) -> Result<()> {
        let needed = count.saturating_mul(item_len_bytes);
        let available = self.limit_bytes - self.position_bytes;
        if needed <= available {
            return Ok(());
        }
        if needed <= self.file_len_bytes - self.position_bytes {
            let expected = format!("a header of at most {MAX_HEADER_LEN_BYTES} bytes");
            return Err(invalid(what, format!("{needed} more bytes"), &expected));
        }
        Err(FormatError::Truncated { what: what.into(), needed, available })
    }

    fn fill(&mut self, what: &str, buffer: &mut [u8]) -> Result<()> {
        let needed = buffer.len() as u64;
        self.need(what, 1, needed)?;
        self.reader.read_exact(buffer).map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                FormatError::Truncated { what: what.into(), needed, available: 0 }
            }
            _ => FormatError::Io { what: what.into(), source },
        })?;
        self.position_bytes += needed;
        Ok(())
    }

    fn take<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut buffer = [0; N];
        self.fill(what, &mut buffer)?;
        Ok(buffer)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take(what)?))
    }

    fn string(&mut self, what: &str) -> Result<String> {
        let len_bytes = self.u64(what)?;
        self.need(what, 1, len_bytes)?;
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < len_bytes {
            let start = bytes.len();
            bytes.resize(start + (len_bytes - start as u64).min(STEP_LEN_BYTES) as usize, 0);
            self.fill(what, &mut bytes[start..])?;
        }
        String::from_utf8(bytes).map_err(|error| invalid(what, error.utf8_error().to_string(), "UTF-8"))
    }

    /// Reads `count` numbers, allocating no more than has arrived.
    fn array<T, const N: usize>(
        &mut self,
        what: &str,
        count: u64,
        decode: fn([u8; N]) -> T,
    ) -> Result<Vec<T>> {
        self.need(what, count, N as u64)?;
        let mut values = Vec::new();
        let mut buffer = vec![0; (count * N as u64).min(STEP_LEN_BYTES) as usize];
        let mut remaining_bytes = count * N as u64;
        while remaining_bytes > 0 {
            let step = &mut buffer[..remaining_bytes.min(STEP_LEN_BYTES) as usize];
            self.fill(what, step)?;
            values.extend(step.as_chunks().0.iter().map(|&bytes| decode(bytes)));
            remaining_bytes -= step.len() as u64;
        }
        Ok(values)
    }
}

fn boolean(key: &str, [byte]: [u8; 1]) -> Result<bool> {
    match byte {
        0 | 1 => Ok(byte == 1),
        _ => Err(invalid(key, format!("boolean {byte}"), "0 or 1")),
    }
}

fn unknown_type(what: &str, type_id: u32) -> FormatError {
    let supported = "0 to 12 (arrays do not nest)".into();
    FormatError::Unsupported { what: format!("{what}: value type {type_id}"), supported }
}

fn invalid(what: &str, found: String, expected: &str) -> FormatError {
    FormatError::Invalid { what: what.into(), found, expected: expected.into() }
}
