//! Writes GGUF headers byte for byte as ggml does (`gguf_get_meta_data`).

use std::collections::HashSet;

use super::metadata::{Array, Value};
use super::{
    Gguf, MAGIC, MAX_DIMS, Metadata, TensorSpec, VERSION, alignment_bytes, check_name, duplicate, lay_out,
};
use crate::error::{FormatError, Result};

/// Lays out a file: returns its header (with the offset of each tensor) and the bytes in
/// front of the first tensor. Tensors keep their order; each is followed by zeros up to
/// the alignment.
///
/// # Errors
/// Names that ggml refuses, no elements, a row that is not a whole number of blocks, a bad alignment.
pub fn write_header(metadata: Metadata, tensors: Vec<TensorSpec>) -> Result<(Gguf, Vec<u8>)> {
    let alignment_bytes = alignment_bytes(&metadata)?;
    let mut names = HashSet::new();
    for spec in &tensors {
        check_name(&spec.name)?;
        if !names.insert(spec.name.as_str()) {
            return Err(duplicate("tensor name", &spec.name));
        }
        // ggml would drop a trailing extent of 0 like one of 1, and so give the tensor elements.
        if spec.shape.len() > MAX_DIMS || spec.shape.contains(&0) {
            return Err(FormatError::Invalid {
                what: format!("shape of tensor {:?}", spec.name),
                found: format!("{:?}", spec.shape),
                expected: format!("at most {MAX_DIMS} dimensions, none of them 0"),
            });
        }
    }

    let tensors = lay_out(tensors, alignment_bytes)?;
    let mut bytes = Vec::new();
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        put_string(&mut bytes, key);
        bytes.extend(value.type_id().to_le_bytes());
        put_value(&mut bytes, value);
    }
    for tensor in &tensors {
        put_string(&mut bytes, &tensor.name);
        let shape = significant(&tensor.shape);
        bytes.extend((shape.len() as u32).to_le_bytes());
        bytes.extend(shape.iter().flat_map(|extent| extent.to_le_bytes()));
        bytes.extend(tensor.ggml_type.id().to_le_bytes());
        bytes.extend(tensor.offset_bytes.to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(alignment_bytes as usize), 0);

    let data_offset_bytes = bytes.len() as u64;
    Ok((Gguf { version: VERSION, metadata, tensors, alignment_bytes, data_offset_bytes }, bytes))
}

/// The dimensions that ggml writes: trailing ones go, but one dimension stays.
fn significant(shape: &[u64]) -> &[u64] {
    let len = shape.iter().rposition(|&extent| extent > 1).map_or(1, |last| last + 1);
    if shape.is_empty() { &[1] } else { &shape[..len] }
}

fn put_string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn put_value(bytes: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(value) => bytes.extend(value.to_le_bytes()),
        Value::I8(value) => bytes.extend(value.to_le_bytes()),
        Value::U16(value) => bytes.extend(value.to_le_bytes()),
        Value::I16(value) => bytes.extend(value.to_le_bytes()),
        Value::U32(value) => bytes.extend(value.to_le_bytes()),
        Value::I32(value) => bytes.extend(value.to_le_bytes()),
        Value::F32(value) => bytes.extend(value.to_le_bytes()),
        Value::Bool(value) => bytes.push(u8::from(*value)),
        Value::String(value) => put_string(bytes, value),
        Value::Array(array) => put_array(bytes, array),
        Value::U64(value) => bytes.extend(value.to_le_bytes()),
        Value::I64(value) => bytes.extend(value.to_le_bytes()),
        Value::F64(value) => bytes.extend(value.to_le_bytes()),
    }
}

fn put_array(bytes: &mut Vec<u8>, array: &Array) {
    bytes.extend(array.type_id().to_le_bytes());
    bytes.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(values) => bytes.extend(values),
        Array::I8(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::U16(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::I16(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::U32(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::I32(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::F32(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::Bool(values) => bytes.extend(values.iter().map(|&value| u8::from(value))),
        Array::String(values) => values.iter().for_each(|value| put_string(bytes, value)),
        Array::U64(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::I64(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::F64(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
    }
}
