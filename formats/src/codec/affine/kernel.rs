//! The fast encoder and decoder.
//!
//! Eight groups share a vector while their scales and biases are worked out (three divisions
//! each); then each group's weights are divided side by side. Every weight sees the scalar
//! code's operations in the scalar code's order. Only the extremes are searched in another
//! order, which finds the same two numbers (a zero's sign apart, which nothing depends on).
//!
//! Measured on one AVX2 core of an AMD EPYC: 4 bits, groups of 64, 1.6 G weights/s to encode and
//! 1.7 G to decode (f16 scales: 0.45 G), against 0.11 and 0.10 for the plain code.

use super::pack::{pack, unpack};
use super::scalar::{load, parameters, store};
use super::{EPSILON, Scale};
use crate::dispatch::{self, Kernel};
use crate::rounding::{bf16_bits_to_f32, f16_bits_to_f32, f32_to_bf16_bits, f32_to_f16_bits};

/// Groups whose scales are worked out together.
const BATCH: usize = 8;
/// Lanes of the search for extremes.
const LANES: usize = 16;
/// 2^23: adding it to a number from 0 to 255 rounds that to an integer, ties to even, in the
/// lowest byte.
const ROUND_MAGIC: f32 = 8_388_608.0;

pub(super) fn encode<const BITS: usize, const GROUP: usize>(scale: Scale, src: &[f32], dst: [&mut [u8]; 3]) {
    let [weight, scales, biases] = dst;
    dispatch::run(Encode::<BITS, GROUP> { scale, src, weight, scales, biases });
}

pub(super) fn decode<const BITS: usize, const GROUP: usize>(scale: Scale, src: [&[u8]; 3], dst: &mut [f32]) {
    let [weight, scales, biases] = src;
    match scale {
        Scale::Bf16 => {
            let round = |value| bf16_bits_to_f32(f32_to_bf16_bits(value));
            dispatch::run(Decode::<BITS, GROUP, _> { scale, weight, scales, biases, dst, round });
        }
        Scale::F16 => {
            let round = |value| f16_bits_to_f32(f32_to_f16_bits(value));
            dispatch::run(Decode::<BITS, GROUP, _> { scale, weight, scales, biases, dst, round });
        }
        Scale::F32 => {
            let round = |value| value;
            dispatch::run(Decode::<BITS, GROUP, _> { scale, weight, scales, biases, dst, round });
        }
    }
}

struct Encode<'a, const BITS: usize, const GROUP: usize> {
    scale: Scale,
    src: &'a [f32],
    weight: &'a mut [u8],
    scales: &'a mut [u8],
    biases: &'a mut [u8],
}

impl<const BITS: usize, const GROUP: usize> Kernel for Encode<'_, BITS, GROUP> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let number_len = self.scale.len_bytes();
        let batches = self.src.chunks(BATCH * GROUP);
        let codes = self.weight.chunks_mut(BATCH * GROUP * BITS / 8);
        let scales = self.scales.chunks_mut(BATCH * number_len);
        let biases = self.biases.chunks_mut(BATCH * number_len);
        for (((batch, codes), scales), biases) in batches.zip(codes).zip(scales).zip(biases) {
            let groups = batch.as_chunks::<GROUP>().0;
            let (steps, edges) = batch_parameters::<BITS, GROUP>(groups);
            let numbers = steps.iter().zip(&edges);
            let stored = scales.chunks_exact_mut(number_len).zip(biases.chunks_exact_mut(number_len));
            for ((&step, &bias), (scale_bytes, bias_bytes)) in numbers.zip(stored) {
                store(self.scale, step, scale_bytes);
                store(self.scale, bias, bias_bytes);
            }
            let codes = codes.chunks_exact_mut(GROUP * BITS / 8);
            for (((group, codes), &step), &bias) in groups.iter().zip(codes).zip(&steps).zip(&edges) {
                encode_group::<BITS, GROUP>(group, step, bias, codes);
            }
        }
    }
}

/// Scales and biases of up to [`BATCH`] groups.
#[inline(always)]
fn batch_parameters<const BITS: usize, const GROUP: usize>(
    groups: &[[f32; GROUP]],
) -> ([f32; BATCH], [f32; BATCH]) {
    let (mut lows, mut highs) = ([0.0f32; BATCH], [0.0f32; BATCH]);
    for ((group, low), high) in groups.iter().zip(&mut lows).zip(&mut highs) {
        (*low, *high) = extremes(group);
    }
    let (mut steps, mut biases) = ([0.0f32; BATCH], [0.0f32; BATCH]);
    let count = ((1u32 << BITS) - 1) as f32;
    for lane in 0..BATCH {
        let (low, high) = (lows[lane], highs[lane]);
        let from_low = low.abs() > high.abs();
        let step = (high - low) / count;
        let step = if step < EPSILON { EPSILON } else { step };
        let step = if from_low { step } else { -step };
        let edge = if from_low { low } else { high };
        let to_edge = (edge / step).round_ties_even();
        let exact = edge / to_edge;
        steps[lane] = if to_edge == 0.0 { step } else { exact };
        biases[lane] = if to_edge == 0.0 { 0.0 } else { edge };
    }
    for (lane, group) in groups.iter().enumerate() {
        if steps[lane].is_nan() {
            (steps[lane], biases[lane]) = parameters(group, BITS);
        }
    }
    (steps, biases)
}

/// Smallest and largest number, NaNs passed over.
#[inline(always)]
fn extremes<const GROUP: usize>(group: &[f32; GROUP]) -> (f32, f32) {
    let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    for values in group.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            low[lane] = if values[lane] < low[lane] { values[lane] } else { low[lane] };
            high[lane] = if values[lane] > high[lane] { values[lane] } else { high[lane] };
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            low[lane] = if low[lane + width] < low[lane] { low[lane + width] } else { low[lane] };
            high[lane] = if high[lane + width] > high[lane] { high[lane + width] } else { high[lane] };
        }
        width /= 2;
    }
    (low[0], high[0])
}

#[inline(always)]
fn encode_group<const BITS: usize, const GROUP: usize>(
    group: &[f32; GROUP],
    step: f32,
    bias: f32,
    stream: &mut [u8],
) {
    let top = ((1u32 << BITS) - 1) as f32;
    let mut codes = [0u8; GROUP];
    for (&value, code) in group.iter().zip(&mut codes) {
        // Clamping to integers before or after rounding is the same; NaN becomes 0.
        let exact = (value - bias) / step;
        let exact = if exact > 0.0 { exact } else { 0.0 };
        let exact = if exact < top { exact } else { top };
        *code = (exact + ROUND_MAGIC).to_bits() as u8;
    }
    pack::<BITS>(&codes, stream);
}

struct Decode<'a, const BITS: usize, const GROUP: usize, R: Fn(f32) -> f32> {
    scale: Scale,
    weight: &'a [u8],
    scales: &'a [u8],
    biases: &'a [u8],
    dst: &'a mut [f32],
    round: R,
}

impl<const BITS: usize, const GROUP: usize, R: Fn(f32) -> f32> Kernel for Decode<'_, BITS, GROUP, R> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let number_len = self.scale.len_bytes();
        let streams = self.weight.chunks_exact(GROUP * BITS / 8);
        let numbers = self.scales.chunks_exact(number_len).zip(self.biases.chunks_exact(number_len));
        let groups = self.dst.as_chunks_mut::<GROUP>().0;
        for ((group, stream), (step, bias)) in groups.iter_mut().zip(streams).zip(numbers) {
            let (step, bias) = (load(self.scale, step), load(self.scale, bias));
            let mut codes = [0u8; GROUP];
            unpack::<BITS>(stream, &mut codes);
            for (value, &code) in group.iter_mut().zip(&codes) {
                let sum = (self.round)((self.round)(f32::from(code) * step) + bias);
                *value = if sum.is_nan() { f32::NAN } else { sum };
            }
        }
    }
}
