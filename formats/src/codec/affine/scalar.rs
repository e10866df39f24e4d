//! The plain encoder and decoder, one weight at a time: what the fast ones are tested against.

use half::{bf16, f16};

use super::{EPSILON, Scale};

/// f16 NaN that MLX's own conversion makes, sign apart.
const F16_NAN: u16 = 0x7d00;

pub(super) fn encode(bits: usize, group_len: usize, scale: Scale, src: &[f32], dst: [&mut [u8]; 3]) {
    let [weight, scales, biases] = dst;
    let number_len = scale.len_bytes();
    let codes = weight.chunks_exact_mut(group_len * bits / 8);
    let numbers = scales.chunks_exact_mut(number_len).zip(biases.chunks_exact_mut(number_len));
    for ((group, codes), (scale_bytes, bias_bytes)) in src.chunks_exact(group_len).zip(codes).zip(numbers) {
        let (step, bias) = parameters(group, bits);
        codes.fill(0);
        for (index, &value) in group.iter().enumerate() {
            let code = code(value, step, bias, bits);
            for bit in 0..bits {
                let at = index * bits + bit;
                codes[at / 8] |= (code >> bit & 1) << (at % 8);
            }
        }
        store(scale, step, scale_bytes);
        store(scale, bias, bias_bytes);
    }
}

pub(super) fn decode(bits: usize, group_len: usize, scale: Scale, src: [&[u8]; 3], dst: &mut [f32]) {
    let [weight, scales, biases] = src;
    let number_len = scale.len_bytes();
    let codes = weight.chunks_exact(group_len * bits / 8);
    let numbers = scales.chunks_exact(number_len).zip(biases.chunks_exact(number_len));
    for ((group, codes), (step, bias)) in dst.chunks_exact_mut(group_len).zip(codes).zip(numbers) {
        let (step, bias) = (load(scale, step), load(scale, bias));
        for (index, value) in group.iter_mut().enumerate() {
            let mut code = 0u8;
            for bit in 0..bits {
                let at = index * bits + bit;
                code |= (codes[at / 8] >> (at % 8) & 1) << bit;
            }
            let sum = round(scale, round(scale, f32::from(code) * step) + bias);
            *value = if sum.is_nan() { f32::NAN } else { sum };
        }
    }
}

/// Scale and bias of a group.
pub(super) fn parameters(group: &[f32], bits: usize) -> (f32, f32) {
    let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
    for &value in group {
        if high < value {
            high = value;
        }
        if value < low {
            low = value;
        }
    }
    let steps = ((1u32 << bits) - 1) as f32;
    let from_low = low.abs() > high.abs();
    let mut step = (high - low) / steps;
    if step < EPSILON {
        step = EPSILON;
    }
    if !from_low {
        step = -step;
    }
    let edge = if from_low { low } else { high };
    let count = (edge / step).round_ties_even();
    let (step, bias) = if count != 0.0 { (edge / count, edge) } else { (step, 0.0) };
    if step.is_nan() {
        // Which NaN an operation makes depends on the CPU: this is the one of x86-64.
        return (if low == high { f32::NAN } else { -f32::NAN }, bias);
    }
    (step, bias)
}

fn code(value: f32, step: f32, bias: f32, bits: usize) -> u8 {
    let code = ((value - bias) / step).round_ties_even();
    if code.is_nan() { 0 } else { code.clamp(0.0, ((1u32 << bits) - 1) as f32) as u8 }
}

/// Stores a scale or a bias.
#[inline(always)]
pub(super) fn store(scale: Scale, value: f32, bytes: &mut [u8]) {
    match scale {
        Scale::F32 => bytes.copy_from_slice(&value.to_le_bytes()),
        Scale::Bf16 if value.is_nan() => bytes.copy_from_slice(&bf16::NAN.to_le_bytes()),
        Scale::Bf16 => bytes.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
        Scale::F16 if value.is_nan() => {
            let sign = if value.is_sign_negative() { 0x8000 } else { 0 };
            bytes.copy_from_slice(&(F16_NAN | sign).to_le_bytes());
        }
        Scale::F16 => bytes.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
    }
}

/// Loads a scale or a bias.
#[inline(always)]
pub(super) fn load(scale: Scale, bytes: &[u8]) -> f32 {
    match (scale, bytes) {
        (Scale::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        (Scale::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
        (_, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
        _ => unreachable!("chunks have the length of a number"),
    }
}

fn round(scale: Scale, value: f32) -> f32 {
    match scale {
        Scale::F32 => value,
        Scale::F16 => f16::from_f32(value).to_f32(),
        Scale::Bf16 => bf16::from_f32(value).to_f32(),
    }
}
