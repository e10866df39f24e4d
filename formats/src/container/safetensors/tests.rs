//! One malformed header per error, and what must be accepted.

use super::*;

/// A file: length prefix, JSON, zeros for the tensors.
fn file(json: &str, data_len_bytes: usize) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.resize(bytes.len() + data_len_bytes, 0);
    bytes
}

fn read(bytes: &[u8]) -> Result<Header> {
    read_header(&mut &bytes[..], bytes.len() as u64)
}

#[test]
fn reads_tensors_in_offset_order_with_metadata() {
    let json = r#"{"b":{"dtype":"F8_E4M3","shape":[2,3],"data_offsets":[4,10]},
        "__metadata__":{"format":"pt"},
        "s":{"dtype":"F8_E8M0","shape":[],"data_offsets":[10,11]},
        "a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4],"unknown":[{}]},
        "empty":{"dtype":"F32","shape":[7,0],"data_offsets":[4,4]}}   "#;
    let header = read(&file(json, 11)).unwrap();
    let seen: Vec<_> = header
        .tensors
        .iter()
        .map(|entry| {
            (entry.name.as_str(), entry.dtype, entry.shape.as_slice(), entry.begin_bytes, entry.end_bytes)
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("a", Dtype::BF16, &[2][..], 0, 4),
            ("empty", Dtype::F32, &[7, 0], 4, 4),
            ("b", Dtype::F8_E4M3, &[2, 3], 4, 10),
            ("s", Dtype::F8_E8M0, &[], 10, 11),
        ]
    );
    assert_eq!(header.metadata, BTreeMap::from([("format".into(), "pt".into())]));
    assert_eq!(header.data_offset_bytes, 8 + json.len() as u64);
    assert_eq!(header.file_len_bytes(), 8 + json.len() as u64 + 11);
    assert_eq!(header.tensor("b").unwrap().len_bytes(), 6);
    assert_eq!(header.tensor("c"), None);
}

#[test]
fn accepts_no_tensors_and_null_metadata() {
    for json in ["{}", r#"{"__metadata__":null}"#] {
        let header = read(&file(json, 0)).unwrap();
        assert!(header.tensors.is_empty() && header.metadata.is_empty());
    }
}

#[test]
fn leaves_the_reader_at_the_first_tensor_byte() {
    let mut bytes = file(r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#, 0);
    bytes.extend([7, 9]);
    let mut reader = &bytes[..];
    read_header(&mut reader, bytes.len() as u64).unwrap();
    assert_eq!(reader, [7, 9]);
}

#[test]
fn every_malformed_json_is_an_error_that_names_its_cause() {
    let cases: &[(&str, usize, &[&str])] = &[
        ("[]", 0, &["invalid type: sequence", "JSON object"]),
        ("{", 0, &["EOF while parsing"]),
        ("{} {}", 0, &["trailing characters"]),
        (r#"{"__metadata__":{"a":1}}"#, 0, &["entry \"__metadata__\"", "expected a string"]),
        (r#"{"a":{"dtype":"F32","shape":[1]}}"#, 4, &["entry \"a\"", "missing field `data_offsets`"]),
        (r#"{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#, 4, &["entry \"a\"", "F99", "F8_E4M3"]),
        (r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4, &["entry \"a\"", "-1"]),
        (
            r#"{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}"#,
            1,
            &["dtype \"F4\" of tensor \"a\"", "BF16"],
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
            2,
            &["duplicate entry \"a\""],
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
            4,
            &["offsets of tensor \"a\"", "[0, 4]", "8 bytes for [2] of F32"],
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[4,3]}}"#,
            4,
            &["offsets of tensor \"a\"", "[4, 3]", "0 bytes"],
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}"#,
            4,
            &["shape of tensor \"a\"", "more than 2^64"],
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#,
            3,
            &["tensor \"b\"", "begin 1", "overlaps", "begin 2"],
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}}"#,
            4,
            &["tensor \"b\"", "begin 3", "hole", "begin 2"],
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#,
            5,
            &["3 bytes that belong to no tensor"],
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"F32","shape":[2],"data_offsets":[2,10]}}"#,
            7,
            &["tensor \"b\"", "needs 10 bytes but only 7", "truncated"],
        ),
    ];
    for (json, data_len_bytes, expected) in cases {
        let text = read(&file(json, *data_len_bytes)).unwrap_err().to_string();
        for part in *expected {
            assert!(text.contains(part), "{json}\n gave {text}\n without {part}");
        }
    }
}

#[test]
fn lengths_that_lie_are_errors_and_cost_nothing() {
    let too_long = (MAX_HEADER_LEN_BYTES + 1).to_le_bytes();
    let longest = MAX_HEADER_LEN_BYTES.to_le_bytes();
    let cases: &[(&[u8], u64, &str)] = &[
        (&[], 0, "length prefix: needs 8 bytes but only 0"),
        (&[1, 2, 3], 3, "length prefix: needs 8 bytes but only 3"),
        (&[1, 2, 3], 1 << 40, "length prefix: needs 8 bytes but only 3"),
        (&too_long, 1 << 40, "at most 100000000 bytes"),
        (&[0xff; 8], u64::MAX, "at most 100000000 bytes"),
        (&longest, 8, "header: needs 100000000 bytes but only 0"),
        (&longest, 1 << 40, "header: needs 100000000 bytes but only 0"),
    ];
    for (bytes, file_len_bytes, expected) in cases {
        let text = read_header(&mut &bytes[..], *file_len_bytes).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
    let mut not_utf8 = file("{}", 0);
    not_utf8[8] = 0xff;
    assert!(read(&not_utf8).unwrap_err().to_string().contains("invalid utf-8"));
}

#[test]
fn a_failing_reader_is_an_error() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("disk on fire"))
        }
    }
    let text = read_header(&mut Broken, 100).unwrap_err().to_string();
    assert!(text.contains("disk on fire"), "{text}");
}
