//! A GGUF header either is refused, or every tensor lies in the file and the header that
//! is written from it reads back the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use requant_formats::container::gguf::{self, TensorSpec};

fuzz_target!(|bytes: &[u8]| {
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
    let (written, header) =
        gguf::write_header(read.metadata.clone(), specs).expect("what was read can be written");
    let again = gguf::read(&mut &header[..], written.file_len_bytes()).expect("what was written can be read");
    assert_eq!(again.metadata.len(), read.metadata.len());
    assert_eq!(again.data_offset_bytes, written.data_offset_bytes);
    for (one, other) in again.tensors.iter().zip(&read.tensors) {
        assert_eq!((one.offset_bytes, one.len_bytes), (other.offset_bytes, other.len_bytes));
        assert_eq!(one.len_elems(), other.len_elems());
    }
});
