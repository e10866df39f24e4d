//! Bytes of MLX itself, and the fast code against the plain one.

use std::path::Path;

use super::*;
use crate::codec::find;
use crate::rounding::{bf16_bits_to_f32, f16_bits_to_f32, f32_to_bf16_bits, f32_to_f16_bits};

const BITS: [usize; 6] = [2, 3, 4, 5, 6, 8];
const GROUPS: [usize; 3] = [32, 64, 128];

fn golden(name: &str) -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/goldens/codecs");
    std::fs::read(root.join(name)).unwrap()
}

/// The parts of `src` encoded, one after the other.
fn encoded(codec: &dyn Codec, scalar: bool, src: &[f32]) -> Vec<u8> {
    let groups = src.len() / codec.group_len_elems();
    let mut parts: Vec<Vec<u8>> =
        codec.parts().iter().map(|part| vec![0xaa; part.bytes_per_group * groups]).collect();
    let mut slices: Vec<&mut [u8]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
    if scalar {
        codec.encode_scalar(src, &mut slices);
    } else {
        codec.encode(src, &mut slices);
    }
    parts.concat()
}

fn decoded(codec: &dyn Codec, scalar: bool, mut bytes: &[u8], len_elems: usize) -> Vec<f32> {
    let groups = len_elems / codec.group_len_elems();
    let mut parts = Vec::new();
    for part in codec.parts() {
        let (head, tail) = bytes.split_at(part.bytes_per_group * groups);
        parts.push(head);
        bytes = tail;
    }
    let mut dst = vec![0.5; len_elems];
    if scalar {
        codec.decode_scalar(&parts, &mut dst);
    } else {
        codec.decode(&parts, &mut dst);
    }
    dst
}

fn bits_of(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Values of every magnitude with zeros, ties, infinities and NaNs among them.
fn hostile(len: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut values: Vec<f32> = (0..len)
        .map(|index| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let bits = (state >> 32) as u32;
            match (index / 256) % 5 {
                0 => f32::from_bits(bits),
                1 => f32::from_bits((bits & 0x807f_ffff) | 0x3c00_0000),
                2 => (bits % 41) as f32 * 0.5 - 10.0,
                3 if bits.is_multiple_of(97) => f32::NAN,
                3 if bits.is_multiple_of(89) => -0.0,
                3 => (bits as i32 as f32) * 1e-17,
                _ => f32::from_bits(0x3f80_0000 | (index as u32 / 128)),
            }
        })
        .collect();
    values[..128].fill(f32::INFINITY);
    values[128..256].fill(f32::NEG_INFINITY);
    values[256..384].fill(f32::NAN);
    values[384..512].fill(-0.0);
    values
}

#[test]
fn encodes_to_the_bytes_of_mlx() {
    for input in ["regular", "nasty", "extreme"] {
        let bytes = golden(&format!("inputs/{input}.f32"));
        let src: Vec<f32> = bytes
            .as_chunks()
            .0
            .iter()
            .map(|bytes| bf16_bits_to_f32(f32_to_bf16_bits(f32::from_le_bytes(*bytes))))
            .collect();
        for (bits, group) in BITS.iter().flat_map(|bits| GROUPS.map(|group| (bits, group))) {
            let codec = find(&format!("affine{bits}_g{group}")).unwrap();
            let expected = golden(&format!("mlx/{input}.b{bits}.g{group}.bin"));
            assert!(encoded(codec, true, &src) == expected, "{input} {} scalar", codec.name());
            assert!(encoded(codec, false, &src) == expected, "{input} {} fast", codec.name());
        }
    }
}

#[test]
fn fast_equals_scalar_at_every_length() {
    let values = hostile(1 << 13);
    for codec in AFFINE.iter().copied() {
        let group = codec.group_len_elems();
        let round: fn(f32) -> f32 = match codec.parts()[1].dtype {
            Dtype::BF16 => |value| bf16_bits_to_f32(f32_to_bf16_bits(value)),
            Dtype::F16 => |value| f16_bits_to_f32(f32_to_f16_bits(value)),
            _ => |value| value,
        };
        let rounded: Vec<f32> = values.iter().map(|&value| round(value)).collect();
        for len in [0, group, 7 * group, 8 * group, 9 * group, rounded.len()] {
            let bytes = encoded(codec, true, &rounded[..len]);
            assert!(encoded(codec, false, &rounded[..len]) == bytes, "{} encode {len}", codec.name());
            let plain = decoded(codec, true, &bytes, len);
            let fast = decoded(codec, false, &bytes, len);
            assert!(bits_of(&fast) == bits_of(&plain), "{} decode {len}", codec.name());
        }
        // Any bytes decode, and to the same values both ways.
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let plain = decoded(codec, true, &bytes, 16 * group);
        assert!(bits_of(&decoded(codec, false, &bytes, 16 * group)) == bits_of(&plain), "{}", codec.name());
    }
}

#[test]
fn rounds_product_and_sum_to_the_scale_dtype() {
    // One group of 60000, -60000 and zeros; scales, biases and values as mlx 0.32.4 gives them.
    let mut src = [0.0; 32];
    for (name, top, expected) in [
        ("affine4_g32", 59904.0, [59904.0, -52224.0, 0.0]),
        ("affine4_g32_f16", 60000.0, [60000.0, f32::NEG_INFINITY, 0.0]),
        ("affine4_g32_f32", 60000.0, [60000.0, -52500.0, 0.0]),
    ] {
        let codec = find(name).unwrap();
        src[..2].copy_from_slice(&[top, -top]);
        let bytes = encoded(codec, false, &src);
        assert_eq!(decoded(codec, false, &bytes, 32)[..3], expected, "{name}");
    }
}

#[test]
fn error_is_at_most_half_a_step_and_the_larger_end_is_exact() {
    let src: Vec<f32> = (0..256).map(|index: i32| ((index * 37) % 101) as f32 / 64.0 - 0.5).collect();
    for codec in AFFINE.iter().copied().filter(|codec| codec.name().ends_with("_f32")) {
        let bytes = encoded(codec, false, &src);
        let back = decoded(codec, false, &bytes, src.len());
        let bits = 8 * codec.parts()[0].bytes_per_group / codec.group_len_elems();
        // The exact edge moves the step by up to half a step over the range; 1e-6 is f32 noise.
        let steps = ((1 << bits) - 1) as f32;
        for (src, back) in src.chunks(codec.group_len_elems()).zip(back.chunks(codec.group_len_elems())) {
            let high = src.iter().copied().fold(f32::MIN, f32::max);
            let low = src.iter().copied().fold(f32::MAX, f32::min);
            let bound = (high - low) / steps + 1e-6;
            for (a, b) in src.iter().zip(back) {
                assert!((a - b).abs() <= bound, "{}: {a} became {b}", codec.name());
            }
            let edge = if low.abs() > high.abs() { low } else { high };
            assert!(back.contains(&edge), "{}: {edge} is lost", codec.name());
        }
    }
}

#[test]
#[should_panic(expected = "affine4_g64: 32 weights")]
fn half_a_group_is_a_bug() {
    encoded(find("affine4_g64").unwrap(), false, &[0.0; 32]);
}
