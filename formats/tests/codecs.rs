//! What every codec must hold to: the suite iterates `CODECS`, so a new format is tested by
//! being registered. Exact bytes are compared with what the reference tools made, where
//! `fixtures/goldens/codecs` has them.

use std::path::PathBuf;

use proptest::prelude::*;
use requant_formats::codec::{self, fp8};
use requant_formats::dispatch::{Level, with_at_most};
use requant_formats::{CODECS, Codec, Dtype};
use serde_json::Value;
use sha2::{Digest, Sha256};

const LEVELS: [Level; 3] = [Level::Portable, Level::Avx2, Level::Avx512];

fn empty_parts(codec: &dyn Codec, len_elems: usize) -> Vec<Vec<u8>> {
    let groups = len_elems / codec.group_len_elems();
    // Not zeros: every byte must be written.
    codec.parts().iter().map(|part| vec![0xa5; groups * part.bytes_per_group]).collect()
}

fn encode(codec: &dyn Codec, scalar: bool, src: &[f32]) -> Vec<Vec<u8>> {
    let mut parts = empty_parts(codec, src.len());
    let mut slices: Vec<&mut [u8]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
    if scalar {
        codec.encode_scalar(src, &mut slices);
    } else {
        codec.encode(src, &mut slices);
    }
    parts
}

/// Decoded values as bits, with one kind of NaN: which one an operation gives is the CPU's choice.
fn decode(codec: &dyn Codec, scalar: bool, parts: &[Vec<u8>], len_elems: usize) -> Vec<u32> {
    let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    let mut values = vec![f32::MAX; len_elems];
    if scalar {
        codec.decode_scalar(&slices, &mut values);
    } else {
        codec.decode(&slices, &mut values);
    }
    values.into_iter().map(|v| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }).collect()
}

/// Encodes and decodes at every level of this CPU, and holds the results to the scalar ones.
fn check(codec: &dyn Codec, src: &[f32], kind: &str) {
    let name = format!("{} of {kind}", codec.name());
    let expected = encode(codec, true, src);
    let values = decode(codec, true, &expected, src.len());
    for level in LEVELS {
        with_at_most(level, || {
            let parts = encode(codec, false, src);
            for (at, (part, expected)) in parts.iter().zip(&expected).enumerate() {
                let len = codec.parts()[at].bytes_per_group;
                for (group, (part, expected)) in part.chunks(len).zip(expected.chunks(len)).enumerate() {
                    let input = &src[group * codec.group_len_elems()..][..codec.group_len_elems()];
                    assert_eq!(part, expected, "{name} at {level:?}: part {at} of group {group}: {input:?}");
                }
            }
            assert!(
                decode(codec, false, &parts, src.len()) == values,
                "{name} at {level:?} decodes otherwise"
            );
        });
    }
}

/// Numbers with a fixed seed: splitmix64.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Four uniform numbers summed: near enough to a normal one of variance 1/3.
    fn normal(&mut self) -> f32 {
        let bits = self.bits();
        (0..4).map(|i| (bits >> (16 * i) & 0xffff) as f32 / 32_768.0 - 1.0).sum::<f32>() / 2.0
    }

    fn pick(&mut self, values: &[f32]) -> f32 {
        values[self.bits() as usize % values.len()]
    }
}

/// One kind of input each; `v` makes a weight from the random numbers and the 32-weight block
/// it is in.
type Maker = fn(&mut Random, usize) -> f32;

const INPUTS: &[(&str, Maker)] = &[
    ("ordinary", |r, _| r.normal() * 0.02),
    ("zeros", |_, _| 0.0),
    ("negative zeros", |_, _| -0.0),
    ("both zeros", |r, _| r.pick(&[0.0, -0.0])),
    ("constant", |_, _| 0.37),
    ("constant blocks", |_, block| block as f32 - 3.0),
    ("constant negative", |_, _| -1.5e-3),
    ("some blocks zero", |r, block| if block % 3 == 1 { 0.0 } else { r.normal() }),
    ("some blocks small", |r, block| r.normal() * [1.0, 1e-4, 1e-9, 1e-20][block % 4]),
    ("few values", |r, _| r.pick(&[0.0, 0.25, -0.25, 0.5, -0.5, 1.0, -1.0])),
    ("rounding ties", |r, _| (r.bits() % 33) as f32 * 0.5 - 8.0),
    ("outliers", |r, _| if r.bits().is_multiple_of(32) { r.normal() * 100.0 } else { r.normal() * 0.01 }),
    ("positive", |r, _| 3.0 + r.normal()),
    ("negative", |r, _| -300.0 + r.normal()),
    ("far from zero", |r, _| 1000.0 + r.normal() * 1e-4),
    ("fp8", |r, _| <fp8::F8E4M3 as fp8::Fp8>::to_f32(r.bits() as u8 & 0xbf) * 1.7e-4),
    ("subnormal", |r, _| f32::from_bits(r.bits() as u32 & 0x807f_ffff)),
    ("tiny", |r, _| r.normal() * 1e-38),
    ("huge", |r, _| r.normal() * 2e38),
    ("any finite", |r, _| {
        let v = f32::from_bits(r.bits() as u32);
        if v.is_finite() { v } else { 1.0 }
    }),
    ("edges", |r, _| {
        r.pick(&[0.0, -0.0, 1e-45, -1e-45, 1.2e-38, -1.2e-38, 9.9e-16, 1e-15, -1e-15, 1.0, 3.4e38, -3.4e38])
    }),
    ("with NaN", |r, _| if r.bits().is_multiple_of(50) { f32::NAN } else { r.normal() }),
    ("with infinities", |r, _| match r.bits() % 99 {
        0 => f32::INFINITY,
        1 => f32::NEG_INFINITY,
        _ => r.normal(),
    }),
    ("NaN only", |_, _| f32::NAN),
];

#[test]
fn fast_equals_scalar_on_every_kind_of_input_and_length() {
    for codec in CODECS {
        for (kind, (name, make)) in INPUTS.iter().enumerate() {
            let mut random = Random(kind as u64);
            // Lengths around the batches of every instruction set, and none at all.
            for groups in [0, 1, 2, 3, 5, 9, 40] {
                let len = groups * codec.group_len_elems();
                let src: Vec<f32> = (0..len).map(|i| make(&mut random, i / 32)).collect();
                check(*codec, &src, name);
            }
        }
    }
}

#[test]
fn decoding_any_bytes_is_the_same_fast_and_scalar() {
    let mut random = Random(7);
    for codec in CODECS {
        let len = 16 * codec.group_len_elems();
        let mut parts = empty_parts(*codec, len);
        for _ in 0..200 {
            parts.iter_mut().flatten().for_each(|byte| *byte = random.bits() as u8);
            let expected = decode(*codec, true, &parts, len);
            for level in LEVELS {
                let values = with_at_most(level, || decode(*codec, false, &parts, len));
                assert!(values == expected, "{} at {level:?}", codec.name());
            }
        }
    }
}

/// Errors that rounding alone explains.
///
/// Single numbers: half a unit of the last stored mantissa bit, relative to the weight. Groups
/// with `b` whole bits per weight, beside its scales, have at least `2^b - 1` steps over twice the largest
/// magnitude, and a uniform error of `step / sqrt(12)`; scales of few bits of their own and
/// the clipping of one extreme add to it, which half as much again covers on normal weights. A scale and a minimum
/// in BF16 are off by up to 2^-8 each.
#[test]
fn round_trip_error_is_within_what_rounding_explains() {
    let mut random = Random(11);
    for codec in CODECS {
        let group = codec.group_len_elems();
        let src: Vec<f32> = (0..64 * group).map(|_| random.normal()).collect();
        let values = decode(*codec, false, &encode(*codec, false, &src), src.len());
        let values: Vec<f32> = values.into_iter().map(f32::from_bits).collect();
        if group == 1 {
            let (relative, absolute) = match codec.parts()[0].dtype {
                Dtype::F32 => (0.0, 0.0),
                Dtype::F16 => (f32::exp2(-11.0), f32::exp2(-25.0)),
                Dtype::BF16 => (f32::exp2(-8.0), 0.0),
                Dtype::F8_E4M3 => (f32::exp2(-4.0), f32::exp2(-10.0)),
                Dtype::F8_E5M2 => (f32::exp2(-3.0), f32::exp2(-17.0)),
                other => panic!("{}: no bound for {other}", codec.name()),
            };
            for (x, y) in src.iter().zip(&values) {
                let bound = (x.abs() * relative).max(absolute);
                assert!((x - y).abs() <= bound, "{}: {x} became {y}", codec.name());
            }
            continue;
        }
        // Codes that are floats, with scales of one byte: half a unit of the last mantissa bit relative to the
        // weight, or half a subnormal's unit. A power-of-two scale is up to twice what the largest weight
        // needs; an FP8 scale clips it by less than the first bound. BF16 quotients add 2^-8.
        if codec.parts().len() == 2 && codec.parts()[1].dtype.size_bytes() == 1 {
            let is_fp4 = codec.parts()[0].bytes_per_group * 2 == group;
            let (relative, unit) = if is_fp4 {
                (f32::exp2(-2.0), 0.5 / 6.0)
            } else {
                (f32::exp2(-4.0), f32::exp2(-9.0) / 448.0)
            };
            for (x, y) in src.chunks(group).zip(values.chunks(group)) {
                let largest = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                for (x, y) in x.iter().zip(y) {
                    let bound = (x.abs() * relative).max(largest * unit) * (1.0 + f32::exp2(-8.0));
                    assert!((x - y).abs() <= bound, "{}: {x} became {y}", codec.name());
                }
            }
            continue;
        }
        // Codes have a part of their own, or share it with two halves or as much in scales.
        let shared_bits = if codec.parts().len() == 1 { 32 } else { 0 };
        let bits = ((codec.parts()[0].bytes_per_group * 8 - shared_bits) / group).max(1);
        for (x, y) in src.chunks(group).zip(values.chunks(group)) {
            let largest = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let square = x.iter().zip(y).map(|(x, y)| (x - y) * (x - y)).sum::<f32>() / group as f32;
            let step = 2.0 * largest / ((1 << bits) - 1) as f32;
            let bound = 1.5 * step / 12f32.sqrt() + largest * f32::exp2(-7.0);
            assert!(square.sqrt() <= bound, "{}: rms {}", codec.name(), square.sqrt());
        }
    }
}

#[test]
fn zeros_stay_zeros() {
    for codec in CODECS {
        let src = vec![0.0; 3 * codec.group_len_elems()];
        let values = decode(*codec, false, &encode(*codec, false, &src), src.len());
        assert!(values.iter().all(|&bits| f32::from_bits(bits) == 0.0), "{}", codec.name());
    }
}

#[test]
fn names_are_unique_and_found_in_any_case() {
    for codec in CODECS {
        let found = codec::find(&codec.name().to_lowercase()).unwrap();
        assert_eq!(found.name(), codec.name());
        assert_eq!(CODECS.iter().filter(|other| other.name() == codec.name()).count(), 1, "{}", codec.name());
        let bytes: usize = codec.parts().iter().map(|part| part.bytes_per_group).sum();
        let stated: u64 = (0..codec.parts().len())
            .map(|part| codec::part_len_bytes(*codec, part, 5 * codec.group_len_elems() as u64))
            .sum();
        assert_eq!(stated, 5 * bytes as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Bit patterns, scales and offsets of all sizes, eight blocks that differ.
    #[test]
    fn fast_equals_scalar_on_arbitrary_weights(
        seed in any::<u64>(),
        exponents in prop::array::uniform8(-60i32..30),
        offsets in prop::array::uniform8(-4.0f32..4.0),
        groups in 1usize..6,
    ) {
        let mut random = Random(seed);
        for codec in CODECS {
            let src: Vec<f32> = (0..groups * codec.group_len_elems())
                .map(|i| {
                    let block = i / 32 % 8;
                    (random.normal() + offsets[block]) * (exponents[block] as f32).exp2()
                })
                .collect();
            check(*codec, &src, "arbitrary weights");
        }
    }
}

fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/goldens/codecs")
}

fn read(path: &str) -> Vec<u8> {
    let path = goldens().join(path);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The input without a file: defined by `stress()` in `fixtures/make_codec_goldens.py`.
fn stress() -> Vec<f32> {
    let mut random = Random(0);
    (0..1usize << 20)
        .map(|i| {
            let bits = random.bits();
            let sum = (0..4).map(|part| (bits >> (16 * part) & 0xffff) as i32).sum::<i32>() - 131_070;
            let exponent = (i / 32 * 7 % 11) as i32 - 5;
            let row = (i / 1024) as f32;
            sum as f32 * f32::exp2(-22.0) * f32::exp2(exponent as f32) * (1.0 + row / 1000.0)
        })
        .collect()
}

/// Blocks of 256 with errors that are no numbers, which ggml refuses, are zeros.
fn kept(mut src: Vec<f32>, left_out: &Value) -> Vec<f32> {
    for block in left_out.as_array().into_iter().flatten().filter_map(Value::as_u64) {
        src[256 * block as usize..][..256].fill(0.0);
    }
    src
}

/// Every code, sign and scale: blocks of splitmix64's numbers.
#[test]
fn gguf_blocks_of_any_bytes_decode_as_llama_cpps() {
    let index: Value = serde_json::from_slice(&read("index.json")).unwrap();
    let mut compared = 0;
    for (kind, entry) in index["decoded"].as_object().unwrap() {
        let codec = codec::find(kind).unwrap_or_else(|| panic!("no codec {kind}"));
        let (len, bytes) = (codec.group_len_elems(), codec.parts()[0].bytes_per_group);
        let blocks = entry["blocks"].as_u64().unwrap() as usize;
        let mut random = Random(0);
        let data: Vec<u8> = (0..blocks * bytes / 8).flat_map(|_| random.bits().to_le_bytes()).collect();
        let values = decode(codec, false, std::slice::from_ref(&data), blocks * len);
        let values: Vec<u8> = values.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        assert_eq!(sha256(&values), entry["sha256"].as_str().unwrap(), "{kind}");
        compared += 1;
    }
    assert!(compared >= 27, "only {compared} goldens");
}

#[test]
fn gguf_bytes_are_llama_cpps() {
    let index: Value = serde_json::from_slice(&read("index.json")).unwrap();
    let mut compared = 0;
    for entry in index["gguf"].as_array().unwrap() {
        let (input, kind) = (entry["input"].as_str().unwrap(), entry["type"].as_str().unwrap());
        let codec = codec::find(kind).unwrap_or_else(|| panic!("no codec {kind}"));
        let src = if input == "stress" { stress() } else { floats(&read(&format!("inputs/{input}.f32"))) };
        let raw: Vec<u8> = src.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(sha256(&raw), index["inputs"][input]["sha256"].as_str().unwrap(), "input {input}");
        let src = kept(src, &entry["left_out"]);

        let ours = encode(codec, false, &src);
        if let Some(file) = entry["file"].as_str() {
            let (group, golden) = (codec.parts()[0].bytes_per_group, read(file));
            assert_eq!(ours[0].len(), golden.len(), "{file}");
            for (at, (ours, golden)) in ours[0].chunks(group).zip(golden.chunks(group)).enumerate() {
                assert_eq!(ours, golden, "{file}: group {at}");
            }
        }
        assert_eq!(sha256(&ours[0]), entry["sha256"].as_str().unwrap(), "{input} as {kind}");
        let decoded: Vec<u8> =
            decode(codec, false, &ours, src.len()).iter().flat_map(|bits| bits.to_le_bytes()).collect();
        assert_eq!(sha256(&decoded), entry["decoded_sha256"].as_str().unwrap(), "{input} from {kind}");
        compared += 1;
    }
    assert!(compared >= 40, "only {compared} goldens");
}

#[test]
fn fp8_values_are_torchs() {
    let every_code: Vec<u8> = (0..=255).collect();
    for (name, file) in [("F8_E4M3", "fp8/e4m3fn.f32"), ("F8_E5M2", "fp8/e5m2.f32")] {
        let ours = decode(codec::find(name).unwrap(), false, std::slice::from_ref(&every_code), 256);
        let golden: Vec<u32> = floats(&read(file)).iter().map(|v| v.to_bits()).collect();
        assert_eq!(ours, golden, "{name}");
    }
    for (code, golden) in every_code.iter().zip(floats(&read("fp8/e8m0fnu.f32"))) {
        assert_eq!(fp8::e8m0_to_f32(*code).to_bits(), golden.to_bits(), "E8M0 {code}");
    }
}

/// Without rounding, products are what they are in f32; with it, they are these rounded.
#[test]
fn products_can_be_left_unrounded() {
    let mut random = Random(13);
    for name in ["ct_int4_g32", "ct_int4_asym_g64", "ct_int4_g128_f16", "ct_int4_channel_100", "Q4_K"] {
        let codec = codec::find(name).unwrap();
        let len = 4 * codec.group_len_elems();
        let weights: Vec<f32> = (0..len).map(|_| random.normal()).collect();
        let parts = encode(codec, true, &weights);
        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let mut found = vec![0.0; len];
        codec.decode_unrounded(1.0, &slices, &mut found);
        let mut codes = vec![0; codec.group_len_elems()];
        let mut exact = Vec::new();
        for group in 0..4 {
            let Some(grid) = codec.grid(&slices, group, &mut codes) else { break };
            let product = |&code: &u8| (f32::from(code) - f32::from(grid.zero)) * grid.step;
            exact.extend(grid.codes.iter().map(product));
        }
        let rounded = decode(codec, true, &parts, len);
        if exact.is_empty() {
            assert_eq!(found, rounded, "{name}");
            continue;
        }
        assert_eq!(found, exact, "{name}");
        assert_ne!(found, rounded, "{name}");
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= a.abs() / 256.0;
        assert!(found.iter().zip(&rounded).all(close), "{name}");
    }
}

/// Groups of 4-bit floats under a power of two: whoever gives one takes it back as it was, and whoever takes one holds exactly these
/// weights, the sign of zero included where it has one.
#[test]
fn powers_are_held_exactly() {
    let mut random = Random(12);
    let mut takers = Vec::new();
    for codec in CODECS.iter().filter(|codec| codec.group_len_elems() == 32) {
        for round in 0..50u32 {
            let codes: Vec<u8> = (0..32).map(|_| (random.bits() % 16) as u8).collect();
            let power = 100 + round as u8;
            let mut held = empty_parts(*codec, 32);
            let mut places: Vec<&mut [u8]> = held.iter_mut().map(Vec::as_mut_slice).collect();
            if !codec.encode_powers(power, &codes, &mut places) {
                assert!(
                    held.iter().flatten().all(|&byte| byte == 0xa5),
                    "{} wrote and said no",
                    codec.name()
                );
                continue;
            }
            let values = [0.0f32, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
            let exact = |&code: &u8| {
                let value = values[usize::from(code & 7)] * (f32::from(power) - 127.0).exp2();
                if code < 8 { value } else { -value }
            };
            let found = decode(*codec, true, &held, 32);
            assert_eq!(found, codes.iter().map(exact).collect::<Vec<_>>(), "{}", codec.name());
            let slices: Vec<&[u8]> = held.iter().map(Vec::as_slice).collect();
            let mut again = vec![0; 32];
            if let Some(found) = codec.powers(&slices, 0, &mut again) {
                assert_eq!((found, &again), (power, &codes), "{}", codec.name());
            }
            takers.push(codec.name());
        }
    }
    for name in ["MXFP4", "ct_mxfp4", "mlx_mxfp4", "mlx_mxfp4_f16", "mlx_mxfp4_f32"] {
        assert!(takers.contains(&name), "{name} takes none");
    }
    // What a half cannot hold.
    let half = codec::find("mlx_mxfp4_f16").unwrap();
    let mut parts = empty_parts(half, 32);
    let mut places: Vec<&mut [u8]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
    assert!(!half.encode_powers(60, &[1; 32], &mut places));
}

/// Groups of whole multiples of a step: whoever gives one takes it back as it was, and whoever takes one holds
/// exactly these weights.
#[test]
fn grids_are_held_exactly() {
    let mut random = Random(11);
    let mut takers = Vec::new();
    for codec in CODECS {
        let len = codec.group_len_elems();
        for round in 0..50 {
            let weights: Vec<f32> = (0..len).map(|_| random.normal()).collect();
            let parts = encode(*codec, true, &weights);
            let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            let mut codes = vec![0; len];
            if let Some(grid) = codec.grid(&slices, 0, &mut codes) {
                let mut again = empty_parts(*codec, len);
                let mut places: Vec<&mut [u8]> = again.iter_mut().map(Vec::as_mut_slice).collect();
                assert!(codec.encode_grid(grid, &mut places), "{}", codec.name());
                assert_eq!(again, parts, "{}", codec.name());
            }

            let codes: Vec<u8> =
                (0..len).map(|_| (random.bits() % 15) as u8 + u8::from(round % 2 == 0)).collect();
            // A step of few bits, so that its multiples are held too.
            let grid = codec::Grid { codes: &codes, zero: 8, step: 0.375 };
            let mut held = empty_parts(*codec, len);
            let mut places: Vec<&mut [u8]> = held.iter_mut().map(Vec::as_mut_slice).collect();
            if codec.encode_grid(grid, &mut places) {
                let expected: Vec<f32> = codes.iter().map(|&code| (f32::from(code) - 8.0) * 0.375).collect();
                let bits: Vec<u32> = expected.iter().map(|value| value.to_bits()).collect();
                let found = decode(*codec, true, &held, len);
                // Zero may have a sign.
                let same = |(a, b): (&u32, &u32)| a == b || (a << 1 == 0 && b << 1 == 0);
                assert!(found.iter().zip(&bits).all(same), "{}", codec.name());
                takers.push(codec.name());
            } else {
                assert!(
                    held.iter().flatten().all(|&byte| byte == 0xa5),
                    "{} wrote and said no",
                    codec.name()
                );
            }
        }
    }
    for name in [
        "Q4_0",
        "Q4_1",
        "Q5_0",
        "Q5_1",
        "Q8_0",
        "affine4_g64",
        "affine8_g32_f16",
        "ct_int4_g32",
        "gptq_int4_g128",
        "awq_int4_g64",
    ] {
        assert!(takers.contains(&name), "{name} takes none");
    }
    // A step that a half cannot hold.
    for name in ["Q4_0", "Q8_0", "gptq_int4_g32"] {
        let codec = codec::find(name).unwrap();
        let grid = codec::Grid { codes: &[8; 32], zero: 8, step: 1e-30 };
        let mut parts = empty_parts(codec, 32);
        let mut places: Vec<&mut [u8]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
        assert!(!codec.encode_grid(grid, &mut places), "{name}");
    }
}
