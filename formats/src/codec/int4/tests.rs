//! What the conformance suite cannot see: worked examples, and what the references' second pass does.

use super::awq::Awq;
use super::number::{F16, Number};
use super::{ChannelScale, Scheme, int4_channel};
use crate::codec::{self, Codec};

fn encode(codec: &dyn Codec, src: &[f32]) -> Vec<Vec<u8>> {
    let groups = src.len() / codec.group_len_elems();
    let mut parts: Vec<Vec<u8>> =
        codec.parts().iter().map(|part| vec![0; groups * part.bytes_per_group]).collect();
    let mut slices: Vec<&mut [u8]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
    codec.encode(src, &mut slices);
    parts
}

#[test]
fn a_symmetric_group_by_hand() {
    let mut weights = [0.0f32; 32];
    // The scale is 15 / 7.5 = 2; -15 / 2 is clamped, ties go to even.
    weights[..8].copy_from_slice(&[-15.0, 15.0, 1.0, 3.0, -1.0, -5.0, 0.0, 12.0]);
    let parts = encode(codec::find("ct_int4_g32_f32").unwrap(), &weights);
    let codes = [0, 15, 8, 10, 8, 6, 8, 14];
    let word = codes.iter().rev().fold(0u32, |word, code| word << 4 | code);
    assert_eq!(parts[0][..4], word.to_le_bytes());
    assert_eq!(parts[0][4..], [0x88; 12]);
    assert_eq!(parts[1], 2.0f32.to_le_bytes());
}

#[test]
fn zero_points_of_each_asymmetric_scheme() {
    let mut weights = [0.0f32; 32];
    (weights[0], weights[1]) = (-5.0, 10.0);
    for (name, zero) in [("ct_int4_asym_g32_f32", 5), ("gptq_int4_asym_g32", 5), ("awq_int4_g32", 5)] {
        let parts = encode(codec::find(name).unwrap(), &weights);
        assert_eq!(parts[2], [zero], "{name}");
        assert_eq!(parts[0][0], 0xf0, "{name}");
        assert_eq!(parts[0][1], 0x55, "{name}");
    }
}

#[test]
fn codecs_of_other_lengths_are_made_once_and_found_by_name() {
    let codec = int4_channel(7168, true, ChannelScale::Bf16);
    assert_eq!((codec.name(), codec.group_len_elems()), ("ct_int4_channel_7168", 7168));
    assert!(std::ptr::addr_eq(codec, codec::find("CT_INT4_channel_7168").unwrap()));
    let asymmetric = int4_channel(24, false, ChannelScale::F16);
    assert_eq!((asymmetric.name(), asymmetric.parts().len()), ("ct_int4_asym_channel_24_f16", 3));
    let long = codec::find("gptq_int4_asym_g4096").unwrap();
    assert_eq!((long.group_len_elems(), long.parts()[2].name), (4096, "qzeros"));
    assert_eq!(codec::find("ct_int4_g16_f32").unwrap().parts()[1].bytes_per_group, 4);
    for name in [
        "ct_int4_channel_0",
        "ct_int4_channel_",
        "ct_int4_channel_07",
        "ct_int4_channel_+7",
        "awq_int4_g64_f16",
    ] {
        assert!(codec::find(name).is_none(), "{name}");
    }
}

#[test]
fn unfilled_words_end_in_zeros() {
    let codec = int4_channel(10, true, ChannelScale::Bf16);
    let parts = encode(codec, &[1.0; 10]);
    assert_eq!(parts[0], [0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0]);
}

/// AutoAWQ dequantizes every weight and finds its code again from that. All finite scales
/// whose largest product is finite, all zero points, all codes.
#[test]
fn the_second_pass_of_autoawq_changes_no_code() {
    for bits in 1..0x7c00u16 {
        let scale = F16::load(&bits.to_le_bytes());
        if F16::round(15.0 * scale).is_infinite() {
            continue;
        }
        for zero in 0..16u8 {
            let scaled_zero = F16::round(f32::from(zero) * scale);
            for code in 0..16u8 {
                let weight = F16::round((f32::from(code) - f32::from(zero)) * scale);
                let again = F16::round(F16::round(weight + scaled_zero) / scale).round_ties_even();
                assert_eq!(again, f32::from(code), "scale {scale:e}, zero {zero}");
            }
        }
    }
}

#[test]
fn awq_of_positive_weights_saturates_as_the_reference_does() {
    let parameters = Awq::parameters(3.0, 3.0);
    assert_eq!(parameters.zero, 0);
    assert_eq!(parameters.scale, F16::round(F16::round(1e-5) / 15.0));
}

/// Lengths that the kernels do not know, and rows that are no multiple of anything.
#[test]
fn made_codecs_are_fast_and_plain_the_same() {
    let weights: Vec<f32> = (0..7 * 1000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 * 1e-8 - 0.06 - (i / 500) as f32 * 0.01)
        .collect();
    for name in [
        "ct_int4_g16",
        "ct_int4_asym_channel_1000_f16",
        "gptq_int4_asym_g40",
        "awq_int4_g7",
        "ct_int4_g256_f32",
    ] {
        let codec = codec::find(name).unwrap();
        let weights = &weights[..weights.len() / codec.group_len_elems() * codec.group_len_elems()];
        let fast = encode(codec, weights);
        let mut plain: Vec<Vec<u8>> = fast.iter().map(|part| vec![0xa5; part.len()]).collect();
        let mut slices: Vec<&mut [u8]> = plain.iter_mut().map(Vec::as_mut_slice).collect();
        codec.encode_scalar(weights, &mut slices);
        assert_eq!(fast, plain, "{name}");
        let slices: Vec<&[u8]> = fast.iter().map(Vec::as_slice).collect();
        let (mut values, mut expected) = (vec![0.0; weights.len()], vec![1.0; weights.len()]);
        codec.decode(&slices, &mut values);
        codec.decode_scalar(&slices, &mut expected);
        assert_eq!(values, expected, "{name}");
    }
}
