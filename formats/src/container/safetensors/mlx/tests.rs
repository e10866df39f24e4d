//! What the MLX writer refuses. Its bytes are compared with MLX's in `tests/containers.rs`.

use super::*;
use crate::dtype::Dtype;

fn spec(name: &str, shape: &[usize]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype: Dtype::F32, shape: shape.into() }
}

#[test]
fn refuses_what_cannot_be_written() {
    let cases = [
        (vec![spec("a", &[1]), spec("a", &[2])], "\"a\" (reserved or used twice)"),
        (vec![spec("__metadata__", &[1])], "\"__metadata__\" (reserved or used twice)"),
        (vec![spec("a", &[3, 0])], "at least one element"),
        (vec![spec("a", &[usize::MAX, 2])], "more than 2^64 bytes"),
        (vec![spec("a", &[1 << 61]), spec("b", &[1 << 61])], "less than 2^64 bytes"),
    ];
    for (tensors, expected) in cases {
        let text = write_header(&tensors, &BTreeMap::new()).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn no_tensors_is_a_valid_file() {
    let (header, bytes) = write_header(&[], &BTreeMap::new()).unwrap();
    assert_eq!(&bytes[8..], br#"{"__metadata__":null}"#);
    assert_eq!(super::super::read_header(&mut &bytes[..], bytes.len() as u64).unwrap(), header);
}
