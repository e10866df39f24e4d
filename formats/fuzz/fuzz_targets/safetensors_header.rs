//! A safetensors header either is refused, or its tensors cover the file exactly.
#![no_main]

use libfuzzer_sys::fuzz_target;
use requant_formats::container::safetensors;

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = safetensors::read_header(&mut &bytes[..], bytes.len() as u64) else { return };
    let mut position = header.data_offset_bytes;
    for entry in &header.tensors {
        assert_eq!(header.data_offset_bytes + entry.begin_bytes, position);
        position += entry.len_bytes();
    }
    assert_eq!(position, bytes.len() as u64);
});
