//! Encoding with the importance of columns: bytes are those of llama.cpp's quantizers with an importance matrix, and the
//! fast code's are the plain code's.

use std::path::PathBuf;

use requant_formats::codec;
use requant_formats::dispatch::{Level, with_at_most};
use requant_formats::{CODECS, Codec};
use serde_json::Value;
use sha2::{Digest, Sha256};

const ROW: usize = 1024;

fn read(path: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/goldens/codecs").join(path);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn floats(path: &str) -> Vec<f32> {
    read(path).as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Sum of four uniform numbers, about normal.
    fn normal(&mut self) -> f32 {
        let bits = self.bits();
        let sum = (0..4).map(|part| (bits >> (16 * part) & 0xffff) as i32).sum::<i32>() - 131_070;
        sum as f32 * f32::exp2(-16.0)
    }
}

/// The first rows of the input without a file: defined by `stress()` in `fixtures/make_codec_goldens.py`.
fn stress(rows: usize) -> Vec<f32> {
    let mut random = Random(0);
    let value = |i: usize| {
        let exponent = (i / 32 * 7 % 11) as i32 - 5;
        let row = (i / ROW) as f32;
        random.normal() * f32::exp2(-6.0) * f32::exp2(exponent as f32) * (1.0 + row / 1000.0)
    };
    (0..rows * ROW).map(value).collect()
}

fn encode(codec: &dyn Codec, scalar: bool, importance: &[f32], src: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0xa5; src.len() / codec.group_len_elems() * codec.parts()[0].bytes_per_group];
    if scalar {
        codec.encode_weighted_scalar(importance, src, &mut [&mut bytes]);
    } else {
        codec.encode_weighted(importance, src, &mut [&mut bytes]);
    }
    bytes
}

#[test]
fn bytes_are_llama_cpps() {
    let index: Value = serde_json::from_slice(&read("importance/index.json")).unwrap();
    let mut types = std::collections::BTreeSet::new();
    for entry in index.as_array().unwrap() {
        let [kind, input, importance] =
            ["type", "input", "importance"].map(|key| entry[key].as_str().unwrap());
        let codec = codec::find(kind).unwrap_or_else(|| panic!("no codec {kind}"));
        assert!(codec.weighs(), "{kind}");
        let rows = entry["rows"].as_u64().unwrap() as usize;
        let mut src = if input == "stress" { stress(rows) } else { floats(&format!("inputs/{input}.f32")) };
        assert_eq!(src.len(), rows * ROW);
        // Blocks with errors that are no numbers, which ggml refuses, are zeros.
        for block in entry["left_out"].as_array().into_iter().flatten() {
            src[256 * block.as_u64().unwrap() as usize..][..256].fill(0.0);
        }
        let importances = floats(&format!("importance/{importance}.f32"));
        for scalar in [true, false] {
            let ours = encode(codec, scalar, &importances, &src);
            let digest: String = Sha256::digest(&ours).iter().map(|byte| format!("{byte:02x}")).collect();
            let way = if scalar { "plain" } else { "fast" };
            assert_eq!(digest, entry["sha256"].as_str().unwrap(), "{input} as {kind}, {importance}, {way}");
        }
        types.insert(kind.to_owned());
    }
    let weighing = CODECS.iter().filter(|codec| codec.weighs()).count();
    assert_eq!(types.len(), weighing, "{types:?}");
}

#[test]
fn fast_equals_plain_at_every_width_of_rows_and_level() {
    let mut random = Random(7);
    for codec in CODECS.iter().filter(|codec| codec.weighs()) {
        let group = codec.group_len_elems();
        for (blocks, rows) in [(1, 1), (1, 3), (2, 5), (3, 1), (5, 2), (7, 3), (9, 9)] {
            let columns = blocks * group;
            for kind in 0..6 {
                let importance: Vec<f32> = (0..columns)
                    .map(|column| match kind {
                        0 => random.normal().powi(2),
                        1 if column % 3 == 0 => 0.0,
                        2 if column / group == blocks - 1 => 0.0,
                        3 => f32::exp2((column % 40) as f32 - 20.0),
                        _ => random.normal().abs() + 0.01,
                    })
                    .collect();
                let src: Vec<f32> = (0..rows * columns)
                    .map(|at| match kind {
                        4 if at % 64 < 32 => 0.0,
                        4 => random.normal() * 1e-30,
                        5 if at / 32 % 3 == 0 => [f32::MAX, -1e-40, 3.0e38, 1.0][at % 4],
                        5 if at / 32 % 3 == 1 => 0.5,
                        _ => random.normal(),
                    })
                    .collect();
                let expected = encode(*codec, true, &importance, &src);
                for level in [Level::Portable, Level::Avx2, Level::Avx512] {
                    let found = with_at_most(level, || encode(*codec, false, &importance, &src));
                    let len = codec.parts()[0].bytes_per_group;
                    for (at, (found, expected)) in found.chunks(len).zip(expected.chunks(len)).enumerate() {
                        assert_eq!(
                            found,
                            expected,
                            "{} at {level:?}, {rows} rows of {columns}, kind {kind}: group {at}: {:?}",
                            codec.name(),
                            &src[at * group..][..group]
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_codec_without_weighing_gives_the_same_bytes() {
    for codec in CODECS.iter().filter(|codec| !codec.weighs() && codec.parts().len() == 1) {
        let columns = 2 * codec.group_len_elems();
        let mut random = Random(1);
        let src: Vec<f32> = (0..3 * columns).map(|_| random.normal()).collect();
        let importance: Vec<f32> = (0..columns).map(|_| random.normal().abs()).collect();
        let mut plain = vec![0; src.len() / codec.group_len_elems() * codec.parts()[0].bytes_per_group];
        codec.encode(&src, &mut [&mut plain]);
        assert_eq!(encode(*codec, false, &importance, &src), plain, "{}", codec.name());
    }
}
