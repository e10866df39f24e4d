//! Stored tensors of any bytes either are refused, or unpack to parts that are packed to what unpacks to
//! them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use requant_formats::codec;
use requant_formats::layout::{LAYOUTS, Matrix};

fuzz_target!(|bytes: &[u8]| {
    let [layout, name, strips, groups, rest @ ..] = bytes else { return };
    let layout = LAYOUTS[usize::from(*layout) % LAYOUTS.len()];
    let names = layout.example_codecs();
    let name = names[usize::from(*name) % names.len()];
    let codec = codec::find(name).expect("examples are of the registry");
    let groups = if name.contains("channel") { 1 } else { usize::from(groups % 8) + 1 };
    let shape = [8 * (usize::from(strips % 16) + 1), groups * codec.group_len_elems()];
    let matrix = Matrix { shape: &shape, codec, tensor_scale: codec.tensor_scale(1.0).unwrap_or(1.0) };
    let rows = 0..shape[0];
    let stored = layout.tensors(matrix).expect("whole words and groups can be stored");
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
    unpack(&packed, &mut again).expect("what was packed can be unpacked");
    assert_eq!(again, parts);
});
