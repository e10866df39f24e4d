//! NVFP4 of compressed-tensors: groups of 16 weights as 4-bit floats (e2m1) with one FP8 (e4m3) scale, and one
//! factor for the whole tensor.
//!
//! `r` rounds to BF16, which the weights must already be:
//!
//! ```text
//! global  = r(r(1 / max |x|) * 2688) over the tensor; 1 where that is infinite
//! scale   = e4m3(min(global * r(max |x| / 6), 448)) over the group, 0.125 where that is 0
//! code    = e2m1(x / (scale / global))
//! decoded = r(e2m1[code] * (scale / global))
//! ```
//!
//! All roundings are to nearest, ties to even; 2688 is 448 * 6. Byte layout, two parts: `weight_packed`, 8 bytes a group,
//! weight `2 i` in the low nibble of byte `i`; `weight_scale`, one byte. The factor is F32.
//!
//! Source: compressed-tensors 0.20.0, `quantization/utils/helpers.py` (`generate_gparam`, `calculate_qparams`),
//! `quantization/lifecycle/forward_helpers.py`, `compressors/nvfp4`, for BF16 weights on the CPU. A Python number
//! divided by a tensor is a product with the rounded reciprocal there, hence two roundings.
//!
//! The fast encoder does 1.9 G weights/s and the decoder 4.1 G on one AVX-512 core of an AMD EPYC, the plain ones 0.10 and 0.23.

use super::fp8::{F8E4M3, Fp8};
use super::{Codec, Ladder, Part, e2m1};
use crate::dispatch::{self, Kernel};
use crate::dtype::Dtype;
use crate::rounding::{bf16_bits_to_f32, f32_to_bf16_bits};

const GROUP: usize = 16;
/// Bytes of codes per group.
const CODES: usize = GROUP / 2;
/// Groups whose scales are worked out together.
const BATCH: usize = 16;
/// What stands for a scale of zero.
const LEAST_SCALE: f32 = 0.125;

const PARTS: &[Part] = &[
    Part { name: "weight_packed", dtype: Dtype::U8, bytes_per_group: CODES },
    Part { name: "weight_scale", dtype: Dtype::F8_E4M3, bytes_per_group: 1 },
];

/// The codec; see the module.
pub(super) struct CtNvfp4;

#[inline(always)]
fn round(value: f32) -> f32 {
    bf16_bits_to_f32(f32_to_bf16_bits(value))
}

/// The code of a group's scale.
#[inline(always)]
fn scale(max_abs: f32, global: f32) -> u8 {
    let scale = global * round(max_abs / 6.0);
    let code = F8E4M3::from_f32(scale);
    if code == 0 { F8E4M3::from_f32(LEAST_SCALE) } else { code }
}

fn check(len_elems: usize, codes: usize, scales: usize) {
    assert!(len_elems.is_multiple_of(GROUP), "ct_nvfp4: {len_elems} weights");
    assert_eq!((codes, scales), (len_elems / 2, len_elems / GROUP), "ct_nvfp4: lengths of parts");
}

impl Codec for CtNvfp4 {
    fn name(&self) -> &'static str {
        "ct_nvfp4"
    }

    fn group_len_elems(&self) -> usize {
        GROUP
    }

    fn parts(&self) -> &'static [Part] {
        PARTS
    }

    fn encode(&self, src: &[f32], dst: &mut [&mut [u8]]) {
        self.encode_under(1.0, src, dst);
    }

    fn decode(&self, src: &[&[u8]], dst: &mut [f32]) {
        self.decode_under(1.0, src, dst);
    }

    fn tensor_scale(&self, max_abs: f32) -> Option<f32> {
        let largest = round(max_abs).max(f32::MIN_POSITIVE);
        let global = round(round(1.0 / largest) * 2688.0);
        Some(if global.is_finite() { global } else { 1.0 })
    }

    fn encode_under(&self, tensor_scale: f32, src: &[f32], dst: &mut [&mut [u8]]) {
        let [codes, scales] = dst else { panic!("ct_nvfp4: two parts") };
        check(src.len(), codes.len(), scales.len());
        dispatch::run(Encode { global: tensor_scale, src, codes, scales });
    }

    fn decode_under(&self, tensor_scale: f32, src: &[&[u8]], dst: &mut [f32]) {
        let &[codes, scales] = src else { panic!("ct_nvfp4: two parts") };
        check(dst.len(), codes.len(), scales.len());
        dispatch::run(Decode { global: tensor_scale, codes, scales, dst });
    }

    fn ladder(&self) -> Option<Ladder> {
        Some(Ladder { codes: 16, even: false })
    }

    fn put_codes(&self, codes: &[u8], dst: &mut [&mut [u8]]) {
        e2m1::pack(codes, dst[0]);
    }

    fn encode_scalar(&self, src: &[f32], dst: &mut [&mut [u8]]) {
        let [codes, scales] = dst else { panic!("ct_nvfp4: two parts") };
        check(src.len(), codes.len(), scales.len());
        encode_scalar(1.0, src, codes, scales);
    }

    fn decode_scalar(&self, src: &[&[u8]], dst: &mut [f32]) {
        let &[codes, scales] = src else { panic!("ct_nvfp4: two parts") };
        check(dst.len(), codes.len(), scales.len());
        decode_scalar(1.0, codes, scales, dst);
    }
}

fn encode_scalar(global: f32, src: &[f32], codes: &mut [u8], scales: &mut [u8]) {
    for (at, group) in src.chunks_exact(GROUP).enumerate() {
        let numbers = group.iter().filter(|value| !value.is_nan());
        let max_abs = numbers.fold(0.0f32, |most, value| most.max(value.abs()));
        scales[at] = F8E4M3::from_f32((global * round(max_abs / 6.0)).min(448.0));
        if scales[at] == 0 {
            scales[at] = F8E4M3::from_f32(LEAST_SCALE);
        }
        let divisor = F8E4M3::to_f32(scales[at]) / global;
        for (i, pair) in group.chunks_exact(2).enumerate() {
            let (low, high) =
                (e2m1::encode_scalar(pair[0] / divisor), e2m1::encode_scalar(pair[1] / divisor));
            codes[at * CODES + i] = low | high << 4;
        }
    }
}

fn decode_scalar(global: f32, codes: &[u8], scales: &[u8], dst: &mut [f32]) {
    for (at, value) in dst.iter_mut().enumerate() {
        let code = codes[at / 2] >> (4 * (at % 2)) & 15;
        let factor = F8E4M3::to_f32(scales[at / GROUP]) / global;
        *value = round(e2m1::decode_scalar(code) * factor);
    }
}

struct Encode<'a> {
    global: f32,
    src: &'a [f32],
    codes: &'a mut [u8],
    scales: &'a mut [u8],
}

impl Kernel for Encode<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let batches = self.src.chunks(BATCH * GROUP);
        let codes = self.codes.chunks_mut(BATCH * CODES);
        let scales = self.scales.chunks_mut(BATCH);
        for ((batch, codes), scales) in batches.zip(codes).zip(scales) {
            let groups = batch.as_chunks::<GROUP>().0;
            let mut largest = [0.0f32; BATCH];
            for (group, largest) in groups.iter().zip(&mut largest) {
                *largest = e2m1::max_abs(group);
            }
            let (mut stored, mut divisors) = ([0u8; BATCH], [0.0f32; BATCH]);
            for lane in 0..BATCH {
                stored[lane] = scale(largest[lane], self.global);
                divisors[lane] = F8E4M3::to_f32(stored[lane]) / self.global;
            }
            scales.copy_from_slice(&stored[..scales.len()]);
            let codes = codes.as_chunks_mut::<CODES>().0;
            for ((group, bytes), divisor) in groups.iter().zip(codes).zip(divisors) {
                let mut codes = [0u8; GROUP];
                for (value, code) in group.iter().zip(&mut codes) {
                    *code = e2m1::encode(value / divisor);
                }
                e2m1::pack(&codes, bytes);
            }
        }
    }
}

struct Decode<'a> {
    global: f32,
    codes: &'a [u8],
    scales: &'a [u8],
    dst: &'a mut [f32],
}

impl Kernel for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let groups = self.dst.as_chunks_mut::<GROUP>().0;
        let bytes = self.codes.as_chunks::<CODES>().0;
        for ((group, bytes), &scale) in groups.iter_mut().zip(bytes).zip(self.scales) {
            let factor = F8E4M3::to_f32(scale) / self.global;
            let mut codes = [0u8; GROUP];
            e2m1::unpack(bytes, &mut codes);
            for (value, code) in group.iter_mut().zip(codes) {
                *value = round(e2m1::decode(code) * factor);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn under_a_factor_fast_equals_scalar() {
        let weights: Vec<f32> = (0..37 * GROUP as u32)
            .map(|i| round((i.wrapping_mul(2_654_435_761) >> 8) as f32 * 1e-9 - 0.008) * (i / 16 % 5) as f32)
            .collect();
        let max_abs = weights.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        for global in [CtNvfp4.tensor_scale(max_abs).unwrap(), 1.0, 3.7e-3, 6e9] {
            let mut fast = (vec![0; weights.len() / 2], vec![0; weights.len() / GROUP]);
            let mut plain = fast.clone();
            CtNvfp4.encode_under(global, &weights, &mut [&mut fast.0, &mut fast.1]);
            encode_scalar(global, &weights, &mut plain.0, &mut plain.1);
            assert_eq!(fast, plain, "{global}");
            let mut values = (vec![0.0; weights.len()], vec![0.0; weights.len()]);
            CtNvfp4.decode_under(global, &[&fast.0, &fast.1], &mut values.0);
            decode_scalar(global, &fast.0, &fast.1, &mut values.1);
            assert_eq!(values.0, values.1, "{global}");
        }
    }

    #[test]
    fn the_factor_is_rounded_twice_and_never_infinite() {
        // 2688 / 1.1015625 = 2440.17 would round to 2448.
        assert_eq!(CtNvfp4.tensor_scale(1.101_562_5), Some(2432.0));
        assert_eq!(CtNvfp4.tensor_scale(0.0), Some(1.0));
        assert_eq!(CtNvfp4.tensor_scale(f32::INFINITY), Some(0.0));
    }
}
