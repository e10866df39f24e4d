//! Headers and stored tensors.

use requant_formats::codec;
use requant_formats::container::gguf::{self, TensorSpec, split};
use requant_formats::container::safetensors as container;
use requant_formats::layout::{LAYOUTS, Matrix};

/// A safetensors header either is refused, or its tensors cover the file exactly.
pub(crate) fn safetensors(bytes: &[u8]) {
    let Ok(header) = container::read_header(&mut &bytes[..], bytes.len() as u64) else { return };
    let mut position = header.data_offset_bytes;
    for entry in &header.tensors {
        assert_eq!(header.data_offset_bytes + entry.begin_bytes, position);
        position += entry.len_bytes();
    }
    assert_eq!(position, bytes.len() as u64);
}

/// A GGUF header either is refused, or every tensor lies in the file and the header that
/// is written from it reads back the same.
pub(crate) fn gguf(bytes: &[u8]) {
    let Ok(read) = gguf::read(&mut &bytes[..], bytes.len() as u64) else { return };
    for tensor in &read.tensors {
        assert!(read.data_offset_bytes + tensor.offset_bytes + tensor.len_bytes <= bytes.len() as u64);
    }
    if read.tensors.iter().any(|tensor| tensor.len_elems() == 0) {
        return; // Can be read, but not written.
    }
    let spec = |tensor: &gguf::TensorInfo| TensorSpec {
        name: tensor.name.clone(),
        shape: tensor.shape.clone(),
        ggml_type: tensor.ggml_type,
    };
    let specs = read.tensors.iter().map(spec).collect();
    let (written, header) = match gguf::write_header(read.metadata.clone(), specs) {
        Ok(written) => written,
        Err(error) => panic!("what was read cannot be written: {error}"),
    };
    let again = match gguf::read(&mut &header[..], written.file_len_bytes()) {
        Ok(again) => again,
        Err(error) => panic!("what was written cannot be read: {error}"),
    };
    assert_eq!(again.metadata.len(), read.metadata.len());
    assert_eq!(again.data_offset_bytes, written.data_offset_bytes);
    for (one, other) in again.tensors.iter().zip(&read.tensors) {
        assert_eq!((one.offset_bytes, one.len_bytes), (other.offset_bytes, other.len_bytes));
        assert_eq!(one.len_elems(), other.len_elems());
    }
}

/// Stored tensors of any bytes either are refused, or unpack to parts that are packed to what unpacks to
/// them. The first four bytes choose layout, codec and shape, the others are the tensors.
pub(crate) fn layout(bytes: &[u8]) {
    let [layout, name, strips, groups, rest @ ..] = bytes else { return };
    let layout = LAYOUTS[usize::from(*layout) % LAYOUTS.len()];
    let names = layout.example_codecs();
    let name = names[usize::from(*name) % names.len()];
    let Some(codec) = codec::find(name) else { panic!("{name} is an example and in no registry") };
    let groups = if name.contains("channel") { 1 } else { usize::from(groups % 8) + 1 };
    let shape = [8 * (usize::from(strips % 16) + 1), groups * codec.group_len_elems()];
    let matrix = Matrix { shape: &shape, codec, tensor_scale: codec.tensor_scale(1.0).unwrap_or(1.0) };
    let rows = 0..shape[0];
    let stored = match layout.tensors(matrix) {
        Ok(stored) => stored,
        Err(error) => panic!("whole words and groups cannot be stored: {error}"),
    };
    // Zeros where the input ends.
    let mut rest = rest.iter().copied().chain(std::iter::repeat(0));
    let tensors: Vec<Vec<u8>> =
        stored.iter().map(|tensor| rest.by_ref().take(tensor.len_bytes() as usize).collect()).collect();
    let mut parts: Vec<Vec<u8>> =
        (0..codec.parts().len()).map(|part| vec![0; matrix.rows() * matrix.row_bytes(part)]).collect();
    let unpack = |tensors: &[&[u8]], parts: &mut [Vec<u8>]| {
        let mut slices: Vec<&mut [u8]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
        layout.unpack(matrix, rows.clone(), tensors, &mut slices)
    };
    let tensors: Vec<&[u8]> = tensors.iter().map(Vec::as_slice).collect();
    if unpack(&tensors, &mut parts).is_err() {
        return;
    }
    let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    let packed = layout.pack(matrix, rows.clone(), &slices);
    let packed: Vec<&[u8]> = packed.iter().map(|bytes| &**bytes).collect();
    let mut again = parts.clone();
    if let Err(error) = unpack(&packed, &mut again) {
        panic!("what was packed cannot be unpacked: {error}");
    }
    assert_eq!(again, parts);
}

/// A file name either is no part of a set, or is one of the names that it leads to.
pub(crate) fn split_set(bytes: &[u8]) {
    let Ok(name) = std::str::from_utf8(bytes) else { return };
    let _ = split::parse_max_size(name);
    if let Some(names) = split::siblings(name) {
        assert!(names.iter().any(|other| other == name), "{name}");
    }
}
