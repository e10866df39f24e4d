//! The plain encoder and decoder, one weight and one operation at a time: what the fast ones are tested against.

use half::{bf16, f16};

use super::WORD;
use crate::dtype::Dtype;

/// What is computed for a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Symmetric,
    Asymmetric,
    GptqSymmetric,
    GptqAsymmetric,
    Awq,
}

/// Number format of the scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Bf16,
    F16,
    F32,
}

impl Format {
    /// The nearest number of this format.
    pub(super) fn round(self, value: f32) -> f32 {
        match self {
            Self::Bf16 => bf16::from_f32(value).to_f32(),
            Self::F16 => f16::from_f32(value).to_f32(),
            Self::F32 => value,
        }
    }

    /// Its element type.
    pub(super) fn dtype(self) -> Dtype {
        match self {
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
            Self::F32 => Dtype::F32,
        }
    }

    fn bytes(self, value: f32) -> Vec<u8> {
        match self {
            Self::Bf16 => bf16::from_f32(value).to_le_bytes().to_vec(),
            Self::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
            Self::F32 => value.to_le_bytes().to_vec(),
        }
    }

    fn read(self, bytes: &[u8]) -> f32 {
        match self {
            Self::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Self::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Self::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        }
    }

    fn len_bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    fn epsilon(self) -> f32 {
        match self {
            Self::Bf16 => bf16::EPSILON.to_f32(),
            Self::F16 => f16::EPSILON.to_f32(),
            Self::F32 => f32::EPSILON,
        }
    }
}

pub(super) fn encode(kind: Kind, format: Format, group_len: usize, src: &[f32], dst: &mut [&mut [u8]]) {
    let codes_len = group_len.div_ceil(WORD) * 4;
    for (at, group) in src.chunks_exact(group_len).enumerate() {
        let (scale, zero, codes) = match kind {
            Kind::Symmetric | Kind::Asymmetric => compressed(kind == Kind::Symmetric, format, group),
            Kind::GptqSymmetric | Kind::GptqAsymmetric => gptq(kind == Kind::GptqSymmetric, group),
            Kind::Awq => awq(group),
        };
        let words = &mut dst[0][at * codes_len..(at + 1) * codes_len];
        words.fill(0);
        for (i, code) in codes.into_iter().enumerate() {
            words[i / 2] |= code << (4 * (i % 2));
        }
        let bytes = format.bytes(scale);
        dst[1][at * bytes.len()..][..bytes.len()].copy_from_slice(&bytes);
        if let Some(zeros) = dst.get_mut(2) {
            zeros[at] = zero;
        }
    }
}

pub(super) fn decode(format: Format, group_len: usize, src: &[&[u8]], dst: &mut [f32]) {
    let codes_len = group_len.div_ceil(WORD) * 4;
    for (at, group) in dst.chunks_exact_mut(group_len).enumerate() {
        let words = &src[0][at * codes_len..];
        let scale = format.read(&src[1][at * format.len_bytes()..]);
        let zero = src.get(2).map_or(8, |zeros| zeros[at]);
        for (i, value) in group.iter_mut().enumerate() {
            let code = words[i / 2] >> (4 * (i % 2)) & 15;
            *value = format.round((f32::from(code) - f32::from(zero)) * scale);
        }
    }
}

/// Smallest and largest number; infinities of the wrong sign when there is none.
fn extremes(group: &[f32]) -> (f32, f32) {
    let numbers = || group.iter().copied().filter(|value| !value.is_nan());
    (numbers().fold(f32::INFINITY, f32::min), numbers().fold(f32::NEG_INFINITY, f32::max))
}

/// `low` for NaN.
fn clamp(value: f32, low: f32, high: f32) -> f32 {
    value.max(low).min(high)
}

fn compressed(symmetric: bool, format: Format, group: &[f32]) -> (f32, u8, Vec<u8>) {
    let r = |value| format.round(value);
    let (low, high) = extremes(group);
    let (low, high) = (low.min(0.0), high.max(0.0));
    let (mut scale, zero) = if symmetric {
        (r(low.abs().max(high.abs()) / 7.5), 0.0)
    } else {
        let scale = r(r(high - low) / 15.0);
        let zero = r(-8.0 - r(low / scale));
        (scale, if zero.is_nan() { 0.0 } else { clamp(zero, -8.0, 7.0).round_ties_even() })
    };
    if scale == 0.0 {
        scale = format.epsilon();
    }
    let code = |&x: &f32| {
        let quotient = r(x / scale);
        let moved = if symmetric { quotient } else { r(quotient + zero) };
        (clamp(moved, -8.0, 7.0).round_ties_even() + 8.0) as u8
    };
    (scale, (zero + 8.0) as u8, group.iter().map(code).collect())
}

fn gptq(symmetric: bool, group: &[f32]) -> (f32, u8, Vec<u8>) {
    let (low, high) = extremes(group);
    let (mut low, mut high) = (low.min(0.0), high.max(0.0));
    if symmetric {
        high = low.abs().max(high);
        if low < 0.0 {
            low = -high;
        }
    }
    if low == 0.0 && high == 0.0 {
        (low, high) = (-1.0, 1.0);
    }
    let scale = (high - low) / 15.0;
    let zero = if symmetric { 8.0 } else { clamp((-low / scale).round_ties_even(), 0.0, 15.0) };
    let code = |&x: &f32| {
        let steps = if scale == 0.0 { 0.0 } else { (x / scale).round_ties_even() };
        clamp(steps + zero, 0.0, 15.0) as u8
    };
    (scale, zero as u8, group.iter().map(code).collect())
}

fn awq(group: &[f32]) -> (f32, u8, Vec<u8>) {
    let r = |value| Format::F16.round(value);
    let (low, high) = extremes(group);
    let scale = r(r(high - low).max(r(1e-5)) / 15.0);
    let zero = clamp(-r(low / scale).round_ties_even(), 0.0, 15.0);
    let code = |&x: &f32| clamp(r(r(x / scale).round_ties_even() + zero), 0.0, 15.0) as u8;
    (scale, zero as u8, group.iter().map(code).collect())
}
