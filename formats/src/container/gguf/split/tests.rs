//! Names, sizes and consistency of sets. The bytes are compared with those of
//! `llama-gguf-split` in `tests/containers.rs`.

use super::super::{GgmlType, write_header};
use super::*;

fn floats(lens: &[u64]) -> Vec<TensorSpec> {
    let spec =
        |(index, &len)| TensorSpec { name: format!("t{index}"), shape: vec![len], ggml_type: GgmlType::F32 };
    lens.iter().enumerate().map(spec).collect()
}

#[test]
fn sizes_are_decimal_and_whole() {
    assert_eq!(parse_max_size("48G").unwrap(), 48_000_000_000);
    assert_eq!(parse_max_size("500M").unwrap(), 500_000_000);
    for text in ["", "G", "48", "48.5G", "0M", "-1G", "+1G", "1 G", "48GB", "99999999999999G", "4é"] {
        let error = parse_max_size(text).unwrap_err().to_string();
        assert!(error.contains("48G"), "{error}");
    }
}

#[test]
fn names_round_trip() {
    assert_eq!(file_name("m/model", 0, 12), "m/model-00001-of-00012.gguf");
    let all = siblings("x-of-y/model-00002-of-00003.gguf").unwrap();
    assert_eq!(all.len(), 3);
    assert_eq!(all[0], "x-of-y/model-00001-of-00003.gguf");
    assert_eq!(siblings(&all[2]).as_ref(), Some(&all));
    for name in [
        "model.gguf",
        "model-00004-of-00003.gguf",
        "model-00000-of-00003.gguf",
        "model-1-of-3.gguf",
        "model-00001-of-00003.bin",
        "model-00001-of-99999.gguf",
        "model-+0001-of-00003.gguf",
        "-of-.gguf",
    ] {
        assert_eq!(siblings(name), None, "{name}");
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let mut metadata = Metadata::new();
    let text = plan(metadata.clone(), floats(&[9, 8]), 63).unwrap_err().to_string();
    assert!(text.contains("64 bytes") && text.contains("\"t0\""), "{text}");
    let text = plan(metadata.clone(), floats(&[8; 70_000]), 32).unwrap_err().to_string();
    assert!(text.contains("files") && text.contains("70000"), "{text}");
    metadata.set(super::super::ALIGNMENT_KEY, 64u32);
    let text = plan(metadata, floats(&[8]), 32).unwrap_err().to_string();
    assert!(text.contains("alignment 64"), "{text}");
}

#[test]
fn a_set_is_checked_as_a_whole() {
    let mut metadata = Metadata::new();
    metadata.set("general.name", "x");
    // Keys of an earlier split do not survive.
    metadata.set(COUNT_KEY, 77u16);
    let parts = plan(metadata, floats(&[8, 8, 8, 20, 1]), 64).unwrap();
    let counts: Vec<_> = parts.iter().map(|part| part.tensors.len()).collect();
    assert_eq!(counts, [2, 1, 1, 1]);
    let write = |part: Part| write_header(part.metadata, part.tensors).unwrap().0;
    let files: Vec<_> = parts.into_iter().map(write).collect();
    check(&files).unwrap();

    let broken = |change: fn(&mut Vec<Gguf>)| {
        let mut files = files.clone();
        change(&mut files);
        check(&files).unwrap_err().to_string()
    };
    let cases: [(String, &str); 5] = [
        (broken(|files| files.swap(1, 2)), "split.no in file 2"),
        (broken(|files| drop(files.pop())), "split.count in file 1"),
        (broken(|files| drop(files[0].metadata.remove(NO_KEY))), "found nothing, expected 0"),
        (broken(|files| drop(files[3].tensors.pop())), "split.tensors.count in the split set"),
        (broken(|files| files[1].tensors[0].name = "t0".into()), "\"t0\" twice"),
    ];
    for (text, expected) in cases {
        assert!(text.contains(expected), "{text}");
    }
}
