//! Bytes and values of MLX itself: `fixtures/make_mlx_fp_goldens.py` says how they were made.

use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::*;
use crate::codec::find;

fn read(name: &str) -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/goldens/codecs");
    std::fs::read(root.join(name)).unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn round(dtype: &str) -> fn(f32) -> f32 {
    match dtype {
        "bf16" => Bf16::round,
        "f16" => F16::round,
        _ => F32::round,
    }
}

fn splitmix(index: u64) -> u64 {
    let z = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// `patterns()` of the script.
fn patterns(dtype: &str) -> Vec<f32> {
    let single = |first: f32| (0..32).map(move |at| if at == 0 { first } else { 0.0 });
    if dtype == "f32" {
        let mut values: Vec<f32> =
            (1..=1u64 << 17).map(|index| f32::from_bits((splitmix(index) >> 32) as u32)).collect();
        for largest in [6.0f32, 448.0] {
            let base = largest.to_bits();
            for exponent in -120i32..=118 {
                for step in -90..=90 {
                    let bits = base.wrapping_add_signed((exponent << 23) + step);
                    values.extend(single(f32::from_bits(bits)));
                }
            }
        }
        return values;
    }
    let value = |bits: u16| if dtype == "f16" { f16_bits_to_f32(bits) } else { bf16_bits_to_f32(bits) };
    let all = 0..=u16::MAX;
    let mut values: Vec<f32> = all.clone().map(value).collect();
    values.extend(all.map(|bits| value(bits.wrapping_mul(40_503))));
    values.extend((0..32_768).flat_map(|bits| single(value(bits))));
    values
}

/// `stress()` of `make_codec_goldens.py`, rounded.
fn stress() -> Vec<f32> {
    (0..1usize << 20)
        .map(|i| {
            let bits = splitmix(i as u64 + 1);
            let sum = (0..4).map(|part| (bits >> (16 * part) & 0xffff) as i32).sum::<i32>() - 131_070;
            let exponent = (i / 32 * 7 % 11) as i32 - 5;
            let row = (i / 1024) as f32;
            sum as f32 * f32::exp2(-22.0) * f32::exp2(exponent as f32) * (1.0 + row / 1000.0)
        })
        .collect()
}

fn input(name: &str, dtype: &str) -> Vec<f32> {
    let values = match name {
        "patterns" => return patterns(dtype),
        "stress" => stress(),
        file => read(&format!("inputs/{file}.f32"))
            .as_chunks()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect(),
    };
    values.into_iter().map(round(dtype)).collect()
}

#[test]
fn bytes_and_values_are_mlxs() {
    let index: Value = serde_json::from_slice(&read("mlx_fp/index.json")).unwrap();
    let entries = index["entries"].as_array().unwrap();
    for entry in entries {
        let text = |key: &str| entry[key].as_str().unwrap();
        let (name, mode, dtype) = (text("input"), text("mode"), text("dtype"));
        let suffix = if dtype == "bf16" { String::new() } else { format!("_{dtype}") };
        let codec = find(&format!("mlx_{mode}{suffix}")).unwrap();
        let src = input(name, dtype);
        let groups = src.len() / codec.group_len_elems();
        let mut parts: Vec<Vec<u8>> =
            codec.parts().iter().map(|part| vec![0xaa; part.bytes_per_group * groups]).collect();
        let mut slices: Vec<&mut [u8]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
        codec.encode(&src, &mut slices);
        let what = format!("{name} as {}", codec.name());
        if let Some(file) = entry["file"].as_str() {
            let golden = read(file);
            let (weight, scales) = golden.split_at(parts[0].len());
            assert!(parts[1] == scales, "{what}: scales");
            let group_len = codec.parts()[0].bytes_per_group;
            for (at, (ours, golden)) in parts[0].chunks(group_len).zip(weight.chunks(group_len)).enumerate() {
                assert_eq!(ours, golden, "{what}: group {at}");
            }
        }
        assert_eq!(sha256(&parts.concat()), text("sha256"), "{what}");
        let mut values = vec![0.5; src.len()];
        codec.decode(&[&parts[0], &parts[1]], &mut values);
        let values: Vec<u8> = values
            .iter()
            .flat_map(|value| if value.is_nan() { f32::NAN.to_le_bytes() } else { value.to_le_bytes() })
            .collect();
        assert_eq!(sha256(&values), text("decoded_sha256"), "{what}: decoded");
    }
    // Five inputs, three modes, three dtypes.
    assert_eq!(entries.len(), 45);
}

#[test]
fn every_scale_byte_is_its_power_of_two() {
    for byte in 0..=254u8 {
        assert_eq!(f64::from(power_of_byte::<F32>(byte)), f64::from(i32::from(byte) - 127).exp2());
    }
    assert_eq!(power_of_byte::<F32>(255), f32::INFINITY);
    assert_eq!(power_of_byte::<F16>(150), f32::INFINITY);
    assert_eq!(power_of_byte::<F16>(100), 0.0);
}

#[test]
fn what_is_not_a_number_makes_its_group_zeros() {
    // As mlx 0.32.4 does on x86-64: the scale becomes zero, and no code is nearer than the first.
    let mut src = [1.0f32; 32];
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        src[5] = odd;
        for (name, scale) in [("mlx_mxfp4", 0), ("mlx_mxfp4_f16", 0), ("mlx_mxfp4_f32", 128)] {
            let (mut codes, mut scales) = ([0xaau8; 16], [0xaau8]);
            find(name).unwrap().encode(&src, &mut [&mut codes, &mut scales]);
            assert_eq!((codes, scales), ([0; 16], [scale]), "{name}: {odd}");
        }
    }
}

#[test]
#[should_panic(expected = "mlx_nvfp4: 8 weights")]
fn half_a_group_is_a_bug() {
    find("mlx_nvfp4").unwrap().encode(&[0.0; 8], &mut [&mut [0; 4], &mut [0; 1]]);
}
