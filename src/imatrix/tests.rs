use std::io::Write;

use requant_formats::container::gguf::{Array, GgmlType, Metadata, TensorSpec, Value, write_header};

use super::*;

/// A file in today's format with the given sums and counts.
fn written(entries: &[(&str, Vec<f32>, Vec<f32>)]) -> Vec<u8> {
    let mut metadata = Metadata::new();
    metadata.set("general.type", "imatrix");
    metadata.set(gguf::DATASETS_KEY, Value::Array(Array::String(vec!["a.txt".into(), "b.txt".into()])));
    metadata.set(gguf::CHUNK_COUNT_KEY, 7u32);
    metadata.set(gguf::CHUNK_SIZE_KEY, 512u32);
    let spec =
        |name: String, len: usize| TensorSpec { name, shape: vec![len as u64], ggml_type: GgmlType::F32 };
    let specs = entries.iter().flat_map(|(name, sums, counts)| {
        [spec(format!("{name}.in_sum2"), sums.len()), spec(format!("{name}.counts"), counts.len())]
    });
    let (header, mut bytes) = write_header(metadata, specs.collect()).unwrap();
    for (number, values) in entries.iter().flat_map(|(_, sums, counts)| [sums, counts]).enumerate() {
        bytes.resize((header.data_offset_bytes + header.tensors[number].offset_bytes) as usize, 0);
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    bytes.resize(header.file_len_bytes() as usize, 0);
    bytes
}

fn open(bytes: &[u8]) -> Result<(tempfile::NamedTempFile, Imatrix)> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let imatrix = Imatrix::open(file.path())?;
    Ok((file, imatrix))
}

#[test]
fn sums_are_divided_by_their_counts_and_experts_without_tokens_count_once() {
    let entries = [
        ("stack", vec![2.0, 4.0, 5.0, 7.0, 9.0, 12.0], vec![2.0, 0.0, 3.0]),
        ("matrix", vec![10.0, 20.0, 30.0], vec![10.0]),
    ];
    let (_file, imatrix) = open(&written(&entries)).unwrap();
    assert_eq!(imatrix.datasets, ["a.txt", "b.txt"]);
    assert_eq!((imatrix.chunks, imatrix.names().len(), imatrix.len("stack")), (7, 2, Some(6)));
    assert_eq!(imatrix.importance("stack", 0..6).unwrap(), [1.0, 2.0, 1.0, 1.0, 3.0, 4.0]);
    assert_eq!(imatrix.importance("stack", 4..6).unwrap(), [3.0, 4.0]);
    assert_eq!(imatrix.importance("matrix", 1..3).unwrap(), [2.0, 3.0]);
    assert!(imatrix.len("other").is_none());
    imatrix.importance("other", 0..1).unwrap_err();
    imatrix.importance("matrix", 1..4).unwrap_err();
}

#[test]
fn a_file_that_changes_while_it_is_used_is_named() {
    let (mut file, imatrix) = open(&written(&[("m", vec![1.0; 64], vec![1.0])])).unwrap();
    imatrix.importance("m", 0..64).unwrap();
    file.write_all(b"more").unwrap();
    let error = imatrix.importance("m", 0..64).unwrap_err().to_string();
    assert!(error.contains("written to"), "{error}");
}

#[test]
fn what_makes_no_sense_is_named() {
    let cases: [(&str, Vec<f32>, Vec<f32>, &str); 5] = [
        ("m", vec![1.0, f32::NAN], vec![1.0], "column 1 counts NaN"),
        ("m", vec![1.0, -1.0], vec![1.0], "column 1 counts -1"),
        ("m", vec![1.0; 3], vec![1.0; 2], "do not belong together"),
        ("m", vec![1.0; 2], vec![-1.0], "a count of -1"),
        ("m", vec![1.0; 2], vec![f32::INFINITY], "a count of inf"),
    ];
    for (name, sums, counts, expected) in cases {
        let error = open(&written(&[(name, sums, counts)])).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let whole = written(&[("m", vec![1.0; 64], vec![1.0])]);
    for len in [0, 3, 4, 20, 100, whole.len() - 40] {
        open(&whole[..len]).unwrap_err();
    }
}

#[test]
fn any_bytes_give_an_answer() {
    let gguf = written(&[("m", vec![1.0; 8], vec![1.0, 2.0])]);
    let name = b"blk.0.weight";
    let numbers = |values: &[i32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let dat = [numbers(&[1, name.len() as i32]), name.to_vec(), numbers(&[3, 2, 0, 0, 5, 0])].concat();
    open(&dat).unwrap();
    let mut state = 1u32;
    let mut random = |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % below
    };
    for whole in [gguf, dat] {
        for _ in 0..3000 {
            let mut bytes = whole.clone();
            for _ in 0..1 + random(3) {
                let at = random(bytes.len());
                bytes[at] = random(256) as u8;
            }
            bytes.truncate(bytes.len() - random(4).saturating_sub(2));
            if let Ok((_file, imatrix)) = open(&bytes) {
                for name in imatrix.names() {
                    let len = imatrix.len(name).unwrap();
                    assert_eq!(imatrix.importance(name, 0..len).unwrap().len(), len);
                }
            }
        }
    }
}
