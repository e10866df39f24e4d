//! One malformed header per error.

use super::*;

/// A header under construction: text for magic and strings, numbers little-endian.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn start(tensors: u64, entries: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(3).u64(tensors).u64(entries)
    }
    fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }
    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    fn string(mut self, text: &str) -> Self {
        self = self.u64(text.len() as u64);
        self.0.extend(text.as_bytes());
        self
    }
    fn tensor(mut self, name: &str, shape: &[u64], ggml_type: u32, offset: u64) -> Self {
        self = self.string(name).u32(shape.len() as u32);
        for &extent in shape {
            self = self.u64(extent);
        }
        self.u32(ggml_type).u64(offset)
    }
    fn zeros(mut self, count: usize) -> Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }
    fn read(&self) -> Result<Gguf> {
        read(&mut &self.0[..], self.0.len() as u64)
    }
}

fn assert_error(result: Result<Gguf>, expected: &[&str]) {
    let text = result.unwrap_err().to_string();
    for part in expected {
        assert!(text.contains(part), "{text}\n without {part}");
    }
}

#[test]
fn reads_version_2_and_3() {
    for version in [2, 3] {
        let bytes = Bytes(b"GGUF".to_vec()).u32(version).u64(1).u64(1).string("k").u32(7).u8(1);
        let bytes = bytes.tensor("t", &[32, 2], 2, 0);
        let padding = bytes.0.len().next_multiple_of(32) - bytes.0.len();
        let gguf = bytes.zeros(padding + 36).read().unwrap();
        assert_eq!(gguf.version, version);
        assert_eq!(gguf.metadata.get("k"), Some(&Value::Bool(true)));
        let tensor = gguf.tensor("t").unwrap();
        assert_eq!((tensor.len_elems(), tensor.len_bytes), (64, 36));
        assert_eq!(gguf.file_len_bytes(), gguf.data_offset_bytes + 64);
    }
}

#[test]
fn alignment_comes_from_metadata() {
    let bytes = Bytes::start(1, 1).string(ALIGNMENT_KEY).u32(4).u32(256).tensor("t", &[1], 0, 0);
    let padding = 256 - bytes.0.len();
    let gguf = bytes.zeros(padding + 4).read().unwrap();
    assert_eq!((gguf.alignment_bytes, gguf.data_offset_bytes), (256, 256));
    for value in [0, 3, 33, 1 << 21] {
        let bytes = Bytes::start(0, 1).string(ALIGNMENT_KEY).u32(4).u32(value);
        assert_error(bytes.read(), &[ALIGNMENT_KEY, &value.to_string(), "power of two"]);
    }
    let wrong_type = Bytes::start(0, 1).string(ALIGNMENT_KEY).u32(10).u64(32);
    assert_error(wrong_type.read(), &[ALIGNMENT_KEY, "U64(32)", "a u32"]);
}

#[test]
fn malformed_starts_are_errors() {
    assert_error(Bytes::default().read(), &["GGUF magic", "needs 4 bytes but only 0"]);
    assert_error(Bytes(b"GGML1234".to_vec()).read(), &["GGUF magic", "\"GGML\"", "\"GGUF\""]);
    for version in [0, 1, 4] {
        let text = format!("GGUF version {version} is not supported");
        assert_error(Bytes(b"GGUF".to_vec()).u32(version).read(), &[&text, "versions 2 and 3"]);
    }
    let big_endian = Bytes(b"GGUF".to_vec()).u32(3u32.swap_bytes());
    assert_error(big_endian.read(), &["a big-endian file"]);
    assert_error(Bytes(b"GGUF".to_vec()).u32(3).u64(0).read(), &["number of metadata entries", "truncated"]);
}

#[test]
fn counts_that_lie_are_errors_and_cost_nothing() {
    let array = |element_type, count| Bytes::start(0, 1).string("k").u32(9).u32(element_type).u64(count);
    for count in [1 << 20, 1 << 60, u64::MAX] {
        assert_error(Bytes::start(0, count).read(), &["metadata entries", "truncated"]);
        assert_error(Bytes::start(count, 0).read(), &["tensor entries", "truncated"]);
        assert_error(Bytes::start(0, 1).u64(count).zeros(40).read(), &["metadata key 0", "truncated"]);
        for element_type in [0, 5, 7, 8, 12] {
            assert_error(array(element_type, count).read(), &["k: needs", "truncated"]);
        }
        // Not even when the length of the file lies too: nothing is allocated before it arrives.
        for bytes in [array(0, count), array(8, count), Bytes::start(0, count), Bytes::start(count, 0)] {
            assert!(read(&mut &bytes.0[..], u64::MAX).is_err());
        }
    }
    let at_the_cap = array(0, MAX_HEADER_LEN_BYTES - 64);
    assert_error(read(&mut &at_the_cap.0[..], u64::MAX), &["k: needs 65536 bytes but only 0"]);
    let over_the_cap = array(0, MAX_HEADER_LEN_BYTES);
    assert_error(
        read(&mut &over_the_cap.0[..], u64::MAX),
        &["k: found", "a header of at most 268435456 bytes"],
    );
}

#[test]
fn malformed_metadata_is_an_error() {
    let entry = |key: &str| Bytes::start(0, 1).string(key);
    assert_error(entry("").u32(0).u8(0).zeros(9).read(), &["metadata key 0", "empty"]);
    let twice = Bytes::start(0, 2).string("k").u32(0).u8(0).string("k").u32(0).u8(0);
    assert_error(twice.read(), &["metadata key", "\"k\" twice"]);
    assert_error(entry("k").u32(13).u8(0).read(), &["k: value type 13 is not supported"]);
    assert_error(entry("k").u32(9).u32(9).u64(0).read(), &["elements of k: value type 9", "do not nest"]);
    assert_error(entry("k").u32(7).u8(2).read(), &["k: found boolean 2", "0 or 1"]);
    assert_error(entry("k").u32(8).u64(2).u8(0xc3).u8(0x28).read(), &["k: found invalid utf-8", "UTF-8"]);
    assert_error(entry("k").u32(8).u64(9).u8(0).read(), &["k: needs 9 bytes but only 1"]);
    assert_error(entry("k").u32(4).u8(0).read(), &["k: needs 4 bytes but only 1"]);
}

#[test]
fn malformed_tensors_are_errors() {
    let tensor = |name: &str, shape: &[u64], ggml_type, offset| {
        Bytes::start(1, 0).tensor(name, shape, ggml_type, offset).zeros(64)
    };
    assert_error(
        tensor(&"n".repeat(64), &[1], 0, 0).read(),
        &["name of tensor \"nnn", "64 bytes", "fewer than 64"],
    );
    assert_error(tensor("t", &[1; 5], 0, 0).read(), &["tensor \"t\"", "5 dimensions"]);
    assert_error(tensor("t", &[1], 4, 0).read(), &["ggml type 4 of tensor \"t\"", "Q4_K"]);
    assert_error(tensor("t", &[31], 2, 0).read(), &["shape of tensor \"t\"", "multiple of 32"]);
    assert_error(tensor("t", &[1 << 33, 1 << 33], 0, 0).read(), &["shape of tensor \"t\"", "2^62"]);
    assert_error(tensor("t", &[0, u64::MAX, 2], 0, 0).read(), &["shape of tensor \"t\"", "2^62"]);
    assert_error(tensor("t", &[1], 0, 32).read(), &["offset of tensor \"t\"", "found 32", "expected 0"]);
    assert_error(tensor("t", &[1 << 20], 0, 0).read(), &["tensor \"t\": needs 4194304 bytes", "truncated"]);

    let two = |name: &str, offset, zeros| {
        Bytes::start(2, 0).tensor("t", &[1], 0, 0).tensor(name, &[1], 0, offset).zeros(zeros)
    };
    assert_error(two("t", 32, 99).read(), &["tensor name", "\"t\" twice"]);
    assert_error(two("u", 4, 99).read(), &["offset of tensor \"u\"", "found 4", "expected 32"]);
    assert_error(two("u", 64, 99).read(), &["offset of tensor \"u\"", "found 64", "expected 32"]);
    // 24 bytes of header and 2 x 33 of entries: data begins at 96.
    assert_error(two("u", 32, 6 + 35).read(), &["tensor \"u\": needs 36 bytes but only 35"]);
    assert_error(two("u", 32, 5).read(), &["padding before the tensors: needs 96 bytes but only 95"]);
    assert_eq!(two("u", 32, 6 + 36).read().unwrap().data_offset_bytes, 96);

    let huge = Bytes::start(3, 0).tensor("a", &[1 << 62], 24, 0).tensor("b", &[1 << 61], 24, 1 << 62);
    let huge = huge.tensor("c", &[1 << 61], 24, (1 << 62) + (1 << 61));
    assert_error(huge.read(), &["offset of tensor \"c\"", "2^63"]);
}

#[test]
fn the_writer_refuses_what_ggml_would_not_read() {
    let spec = |name: &str, shape: &[u64]| TensorSpec {
        name: name.into(),
        shape: shape.into(),
        ggml_type: GgmlType::Q4_K,
    };
    let cases = [
        (vec![spec(&"n".repeat(64), &[256])], "fewer than 64 bytes"),
        (vec![spec("a", &[256]), spec("a", &[256])], "\"a\" twice"),
        (vec![spec("a", &[256, 1, 1, 1, 1])], "at most 4 dimensions"),
        (vec![spec("a", &[256, 0])], "none of them 0"),
        (vec![spec("a", &[255])], "multiple of 256"),
        (vec![spec("a", &[256, 1 << 60])], "2^62"),
    ];
    for (tensors, expected) in cases {
        let text = write_header(Metadata::new(), tensors).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
    let mut metadata = Metadata::new();
    metadata.set(ALIGNMENT_KEY, 48u32);
    assert!(write_header(metadata, Vec::new()).unwrap_err().to_string().contains("power of two"));
}
