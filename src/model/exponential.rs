//! Exponentials of many numbers at once: softmax, gated units, soft caps and sums over a vocabulary as loops that compile to
//! vectors.
//!
//! `exp` is the polynomial of Cephes' `expf` (single/expf.c: argument reduced by ln 2 in two parts, degree 7),
//! within two units of the last place of e^x. `exp_f64` is Taylor's to degree 9 behind the same reduction, within
//! 1e-11 of e^x: what is summed over a vocabulary and then compared with another such sum needs more than 24 bits.
//! Sums run in a fixed number of lanes, so that results are the same on every CPU.

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

/// The same in f64: the range, ln 2 as a number of 24 bits and the rest, and `1 / k!` from 9 down to 0.
const LOWEST_F64: f64 = -708.0;
const ROUNDER_F64: f64 = 6_755_399_441_055_744.0;
const LN_2_F64: (f64, f64) = (0.693_147_182_464_599_6, -1.904_654_299_957_768e-9);
const TAYLOR: [f64; 10] = [
    1.0 / 362_880.0,
    1.0 / 40_320.0,
    1.0 / 5_040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    0.5,
    1.0,
    1.0,
];

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

/// e^x of a number that is not above zero, NaN for NaN.
#[inline(always)]
fn exp_f64(x: f64) -> f64 {
    let x = if x < LOWEST_F64 { LOWEST_F64 } else { x };
    let rounded = x * std::f64::consts::LOG2_E + ROUNDER_F64;
    let n = rounded - ROUNDER_F64;
    let r = x - n * LN_2_F64.0 - n * LN_2_F64.1;
    let mut power = TAYLOR[0];
    for coefficient in &TAYLOR[1..] {
        power = power * r + coefficient;
    }
    power * f64::from_bits(rounded.to_bits().wrapping_add(1023) << 52)
}

/// The largest of `values` and `least`.
pub(crate) fn largest(values: &[f32], least: f32) -> f32 {
    dispatch::run(Largest(values, least))
}

struct Largest<'a>(&'a [f32], f32);

impl Kernel for Largest<'_> {
    type Output = f32;
    #[inline(always)]
    fn run(self) -> f32 {
        let Self(values, least) = self;
        let mut most = [least; LANES];
        let (chunks, rest) = values.as_chunks::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                most[lane] = if chunk[lane] > most[lane] { chunk[lane] } else { most[lane] };
            }
        }
        most.iter().chain(rest).fold(least, |most, &value| most.max(value))
    }
}

/// The sum of `exp(value - largest)`; no value is above `largest`.
pub(crate) fn sum_of_powers(values: &[f32], largest: f32) -> f64 {
    dispatch::run(SumOfPowers(values, largest))
}

struct SumOfPowers<'a>(&'a [f32], f32);

impl Kernel for SumOfPowers<'_> {
    type Output = f64;
    #[inline(always)]
    fn run(self) -> f64 {
        let Self(values, largest) = self;
        let largest = f64::from(largest);
        let mut sums = [0.0; LANES];
        let (chunks, rest) = values.as_chunks::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                sums[lane] += exp_f64(f64::from(chunk[lane]) - largest);
            }
        }
        for (&value, sum) in rest.iter().zip(&mut sums) {
            *sum += exp_f64(f64::from(value) - largest);
        }
        sums.iter().sum()
    }
}

/// The sums of `exp(value - largest)`, and of that times `value - other`; no value is above `largest`.
pub(crate) fn weighted_sums_of_powers(values: &[f32], others: &[f32], largest: f32) -> (f64, f64) {
    dispatch::run(WeightedSums(values, others, largest))
}

struct WeightedSums<'a>(&'a [f32], &'a [f32], f32);

impl Kernel for WeightedSums<'_> {
    type Output = (f64, f64);
    #[inline(always)]
    fn run(self) -> (f64, f64) {
        let Self(values, others, largest) = self;
        let largest = f64::from(largest);
        let (mut sums, mut weighted) = ([0.0; LANES], [0.0; LANES]);
        let (chunks, rest) = values.as_chunks::<LANES>();
        let (other_chunks, other_rest) = others.as_chunks::<LANES>();
        for (chunk, others) in chunks.iter().zip(other_chunks) {
            for lane in 0..LANES {
                let power = exp_f64(f64::from(chunk[lane]) - largest);
                sums[lane] += power;
                weighted[lane] += power * (f64::from(chunk[lane]) - f64::from(others[lane]));
            }
        }
        for (at, (&value, &other)) in rest.iter().zip(other_rest).enumerate() {
            let power = exp_f64(f64::from(value) - largest);
            sums[at] += power;
            weighted[at] += power * (f64::from(value) - f64::from(other));
        }
        (sums.iter().sum(), weighted.iter().sum())
    }
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
        let largest = Largest(scores, f32::NEG_INFINITY).run();
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

/// Softmax of `scores * scale` and `sink`, in place; what is left to the sink goes nowhere.
pub(crate) fn softmax_beside(scores: &mut [f32], scale: f32, sink: f32) {
    dispatch::run(SoftmaxBeside(scores, scale, sink));
}

struct SoftmaxBeside<'a>(&'a mut [f32], f32, f32);

impl Kernel for SoftmaxBeside<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Self(scores, scale, sink) = self;
        let largest = Largest(scores, f32::NEG_INFINITY).run() * scale;
        let largest = if sink > largest { sink } else { largest };
        let mut sums = [0.0; LANES];
        let (chunks, rest) = scores.as_chunks_mut::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                chunk[lane] = exp(chunk[lane] * scale - largest);
                sums[lane] += chunk[lane];
            }
        }
        for (score, sum) in rest.iter_mut().zip(&mut sums) {
            *score = exp(*score * scale - largest);
            *sum += *score;
        }
        let sum = sums.iter().sum::<f32>() + exp(sink - largest);
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
        Activation::Clamped => dispatch::run(Clamped(gate, up, inner)),
    }
}

/// Of [`Activation::Clamped`]: the factor in its sigmoid, and what it clamps to.
pub(crate) const CLAMPED_ALPHA: f32 = 1.702;
pub(crate) const CLAMPED_LIMIT: f32 = 7.0;

struct Clamped<'a>(&'a [f32], &'a [f32], &'a mut [f32]);

impl Kernel for Clamped<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Self(gate, up, inner) = self;
        for ((inner, &gate), &up) in inner.iter_mut().zip(gate).zip(up) {
            // Comparisons rather than `min`, so that NaN stays.
            let gate = if gate > CLAMPED_LIMIT { CLAMPED_LIMIT } else { gate };
            let up = if up > CLAMPED_LIMIT { CLAMPED_LIMIT } else { up };
            let up = if up < -CLAMPED_LIMIT { -CLAMPED_LIMIT } else { up };
            *inner = gate / (1.0 + exp(-CLAMPED_ALPHA * gate)) * (up + 1.0);
        }
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
    fn exp_f64_is_within_its_bound() {
        for step in 0..=1_400_000 {
            let x = -f64::from(step) / 2_000.0;
            let exact = x.exp();
            let error = (exp_f64(x) - exact).abs() / exact;
            assert!(error < 1e-11, "{x}: {error}");
        }
        assert_eq!(exp_f64(0.0), 1.0);
        assert!(exp_f64(f64::NEG_INFINITY) < 1e-300);
        assert!(exp_f64(f64::NAN).is_nan());
    }

    #[test]
    fn sums_are_those_of_the_definition_at_every_length() {
        for len in 1..70 {
            let values: Vec<f32> = (0..len).map(|at| ((at * 37 % 23) as f32 - 11.0) * 1.4).collect();
            let others: Vec<f32> = values.iter().map(|value| value * 0.9 + 0.3).collect();
            let most = largest(&values, -20.0);
            assert_eq!(most, values.iter().copied().fold(-20.0, f32::max));
            let powers: Vec<f64> =
                values.iter().map(|&value| (f64::from(value) - f64::from(most)).exp()).collect();
            let sum: f64 = powers.iter().sum();
            let differences = values.iter().zip(&others).map(|(&a, &b)| f64::from(a) - f64::from(b));
            let weighted: f64 = powers.iter().zip(differences.clone()).map(|(p, d)| p * d).sum();
            let scale: f64 = powers.iter().zip(differences).map(|(p, d)| p * d.abs()).sum();
            let found = weighted_sums_of_powers(&values, &others, most);
            assert!((sum_of_powers(&values, most) - sum).abs() <= 1e-11 * sum, "{len}");
            assert!((found.0 - sum).abs() <= 1e-11 * sum, "{len}");
            assert!((found.1 - weighted).abs() <= 1e-11 * scale, "{len}");
        }
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
