//! Exponentials of many numbers at once: softmax, gated units and soft caps as loops that compile to vectors.
//!
//! `exp` is the polynomial of Cephes' `expf` (single/expf.c: argument reduced by ln 2 in two parts, degree 7),
//! within two units of the last place of e^x. Sums run in a fixed number of lanes, so that results are the same
//! on every CPU.

use requant_formats::dispatch::{self, Kernel};

use crate::family::Activation;

/// Numbers that are added side by side.
const LANES: usize = 16;

/// Beyond these, e^x is clamped: it would be zero or infinite.
const LOWEST: f32 = -87.3;
const HIGHEST: f32 = 88.3;
/// Adding this to a small number leaves its nearest integer in the low bits.
const ROUNDER: f32 = 12_582_912.0;
/// ln 2 as a number of few bits and the rest.
const LN_2: (f32, f32) = (355.0 / 512.0, -2.121_944_4e-4);
/// Coefficients of `(e^r - 1 - r) / r^2`, highest power first.
const COEFFICIENTS: [f32; 6] =
    [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5];

/// Of the tanh form of the Gaussian error unit (arXiv 1606.08415).
const SQRT_2_BY_PI: f32 = 0.797_884_6;
const GELU_CUBE: f32 = 0.044_715;
/// Taylor coefficients of `tanh(x) / x` in `x^2`, highest power first.
const TANH_SERIES: [f32; 5] = [62.0 / 2835.0, -17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0, 1.0];

/// e^x, NaN for NaN.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Comparisons rather than `clamp`, so that NaN stays; it has no integer, but what it is multiplied with
    // does not matter.
    let x = if x < LOWEST { LOWEST } else { x };
    let x = if x > HIGHEST { HIGHEST } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUNDER;
    let n = rounded - ROUNDER;
    let r = x - n * LN_2.0 - n * LN_2.1;
    let mut power = COEFFICIENTS[0];
    for coefficient in &COEFFICIENTS[1..] {
        power = power * r + coefficient;
    }
    let power = power * r * r + r + 1.0;
    power * f32::from_bits(rounded.to_bits().wrapping_add(127) << 23)
}

/// Softmax of `scores * scale`, in place.
pub(crate) fn softmax(scores: &mut [f32], scale: f32) {
    dispatch::run(Softmax(scores, scale));
}

struct Softmax<'a>(&'a mut [f32], f32);

impl Kernel for Softmax<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Self(scores, scale) = self;
        let mut most = [f32::NEG_INFINITY; LANES];
        let (chunks, rest) = scores.as_chunks::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                most[lane] = if chunk[lane] > most[lane] { chunk[lane] } else { most[lane] };
            }
        }
        let largest = most.iter().chain(rest).fold(f32::NEG_INFINITY, |largest, &score| largest.max(score));
        let mut sums = [0.0; LANES];
        let (chunks, rest) = scores.as_chunks_mut::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                chunk[lane] = exp((chunk[lane] - largest) * scale);
                sums[lane] += chunk[lane];
            }
        }
        for (score, sum) in rest.iter_mut().zip(&mut sums) {
            *score = exp((*score - largest) * scale);
            *sum += *score;
        }
        let sum: f32 = sums.iter().sum();
        for score in scores {
            *score /= sum;
        }
    }
}

/// `activation(gate) * up`, element by element.
pub(crate) fn gated(activation: Activation, gate: &[f32], up: &[f32], inner: &mut [f32]) {
    match activation {
        Activation::Silu => dispatch::run(Swiglu(gate, up, inner)),
        Activation::GeluTanh => dispatch::run(Geglu(gate, up, inner)),
    }
}

struct Swiglu<'a>(&'a [f32], &'a [f32], &'a mut [f32]);

impl Kernel for Swiglu<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Self(gate, up, inner) = self;
        for ((inner, &gate), &up) in inner.iter_mut().zip(gate).zip(up) {
            *inner = gate / (1.0 + exp(-gate)) * up;
        }
    }
}

struct Geglu<'a>(&'a [f32], &'a [f32], &'a mut [f32]);

impl Kernel for Geglu<'_> {
    type Output = ();
    /// `x / 2 (1 + tanh(u))` is `x / (1 + exp(-2u))`.
    #[inline(always)]
    fn run(self) {
        let Self(gate, up, inner) = self;
        for ((inner, &gate), &up) in inner.iter_mut().zip(gate).zip(up) {
            let u = SQRT_2_BY_PI * (gate + GELU_CUBE * gate * gate * gate);
            *inner = gate / (1.0 + exp(-2.0 * u)) * up;
        }
    }
}

/// `cap * tanh(value * scale / cap)`, in place.
pub(crate) fn soft_cap(values: &mut [f32], scale: f32, cap: f32) {
    dispatch::run(SoftCap(values, scale, cap));
}

struct SoftCap<'a>(&'a mut [f32], f32, f32);

impl Kernel for SoftCap<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Self(values, scale, cap) = self;
        for value in values {
            *value = cap * tanh(*value * scale / cap);
        }
    }
}

/// tanh x: its series where `1 - 2 / (exp(2x) + 1)` would cancel.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let square = x * x;
    let mut series = TANH_SERIES[0];
    for coefficient in &TANH_SERIES[1..] {
        series = series * square + coefficient;
    }
    let far = 1.0 - 2.0 / (exp(2.0 * x) + 1.0);
    if square < 0.0625 { series * x } else { far }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_of_the_last_place() {
        for step in -870_000..=880_000 {
            let x = step as f32 / 10_000.0;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.0 * f64::from(f32::EPSILON), "{x}: {error}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 1.3e-38 && exp(f32::INFINITY) > 2e38);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn softmax_is_that_of_the_definition_at_every_length() {
        for len in 1..70 {
            let scores: Vec<f32> = (0..len).map(|at| ((at * 37 % 23) as f32 - 11.0) * 0.4).collect();
            let powers: Vec<f64> = scores.iter().map(|&score| (f64::from(score) * 0.7).exp()).collect();
            let sum: f64 = powers.iter().sum();
            let mut found = scores.clone();
            softmax(&mut found, 0.7);
            for (found, power) in found.iter().zip(&powers) {
                // Two roundings of 2^-24 each in the argument, which is below 8, come first.
                assert!((f64::from(*found) / (power / sum) - 1.0).abs() < 2e-6, "{len}");
            }
        }
    }

    #[test]
    fn a_nan_among_the_scores_is_not_lost() {
        for at in 0..20 {
            let mut scores = [0.5; 20];
            scores[at] = f32::NAN;
            softmax(&mut scores, 1.0);
            assert!(scores.iter().all(|score| score.is_nan()), "{at}");
        }
    }

    #[test]
    fn gated_units_at_their_landmarks() {
        let gate = [0.0, 1.0, -100.0, 100.0, f32::NAN];
        let mut inner = [0.0; 5];
        gated(Activation::Silu, &gate, &[2.0; 5], &mut inner);
        for (found, expected) in inner.iter().zip([0.0, 2.0 * 0.731_058_6, 0.0, 200.0]) {
            assert!((found - expected).abs() < 1e-6, "{found}");
        }
        assert!(inner[4].is_nan());
        gated(Activation::GeluTanh, &gate, &[2.0; 5], &mut inner);
        // Values of torch's `gelu(approximate="tanh")`.
        for (found, expected) in inner.iter().zip([0.0, 2.0 * 0.841_192, 0.0, 200.0]) {
            assert!((found - expected).abs() < 1e-6, "{found}");
        }
        assert!(inner[4].is_nan());
    }

    #[test]
    fn a_soft_cap_is_that_of_the_definition() {
        for step in -4000..=4000 {
            let x = step as f32 / 200.0;
            let mut found = [x, f32::NAN];
            soft_cap(&mut found, 0.5, 3.0);
            let exact = 3.0 * (f64::from(x) * 0.5 / 3.0).tanh();
            // The worst is where the series ends: 2e-7 of the exponential, doubled, against a value of 0.25.
            assert!((f64::from(found[0]) - exact).abs() <= 1e-6 * exact.abs(), "{x}: {} {exact}", found[0]);
            assert!(found[1].is_nan());
        }
    }
}
