//! Rotary position embedding, interleaved, with YaRN's context extension.
//!
//! Pair `i` of a head is columns `2i` and `2i + 1`; at position `p` it turns by `p * f_i` with
//! `f_i = theta^(-2i / dim)`. YaRN (arXiv 2309.00071) divides `f_i` by `factor` for pairs that turn
//! less than `beta_slow` times within the original context, leaves those that turn more than
//! `beta_fast` times, and blends linearly in `i` between. Angles are taken in f32, as transformers does.

use crate::arch::{ArchSpec, Yarn};

/// Sine and cosine of every position and pair.
pub(super) struct Rope {
    /// `[positions, pairs]` of (cosine, sine).
    table: Vec<(f32, f32)>,
    pairs: usize,
}

impl Rope {
    /// Tables for positions below `context`.
    pub(super) fn new(spec: &ArchSpec, context: usize) -> Self {
        let frequencies = frequencies(spec);
        let amplitude = spec.yarn.as_ref().map_or(1.0, amplitude) as f32;
        let angle = |position: usize, frequency: f32| position as f32 * frequency;
        let row = |position| {
            let angles = frequencies.iter().map(move |&frequency| angle(position, frequency));
            angles.map(|angle| (angle.cos() * amplitude, angle.sin() * amplitude))
        };
        Self { table: (0..context).flat_map(row).collect(), pairs: frequencies.len() }
    }

    /// Turns one head's rotary part in place.
    pub(super) fn rotate(&self, position: usize, x_R: &mut [f32]) {
        let row = &self.table[position * self.pairs..][..self.pairs];
        for (pair, &(cos, sin)) in x_R.chunks_exact_mut(2).zip(row) {
            let (a, b) = (pair[0], pair[1]);
            pair[0] = a * cos - b * sin;
            pair[1] = b * cos + a * sin;
        }
    }
}

/// Factor on attention scores: `1 / sqrt(key width)`, times YaRN's temperature.
pub(super) fn score_scale(spec: &ArchSpec) -> f32 {
    let scale = 1.0 / ((spec.nope_dim + spec.rope_dim) as f64).sqrt();
    let temperature = match &spec.yarn {
        Some(yarn) if yarn.mscale_all_dim != 0.0 => mscale(yarn.factor, yarn.mscale_all_dim),
        _ => 1.0,
    };
    (scale * temperature * temperature) as f32
}

/// Factor on sine and cosine.
fn amplitude(yarn: &Yarn) -> f64 {
    if yarn.mscale != 0.0 && yarn.mscale_all_dim != 0.0 {
        mscale(yarn.factor, yarn.mscale) / mscale(yarn.factor, yarn.mscale_all_dim)
    } else {
        mscale(yarn.factor, 1.0)
    }
}

fn mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// Turn per position of every pair.
fn frequencies(spec: &ArchSpec) -> Vec<f32> {
    let dim = spec.rope_dim;
    let plain = |pair: usize| 1.0 / (spec.rope_theta as f32).powf((2 * pair) as f32 / dim as f32);
    let Some(yarn) = &spec.yarn else { return (0..dim / 2).map(plain).collect() };
    let (low, high) = blend_range(yarn, dim, spec.rope_theta);
    (0..dim / 2)
        .map(|pair| {
            let interpolated = (((pair as f64 - low) / (high - low)).clamp(0.0, 1.0)) as f32;
            plain(pair) / yarn.factor as f32 * interpolated + plain(pair) * (1.0 - interpolated)
        })
        .collect()
}

/// Pairs between which YaRN blends.
fn blend_range(yarn: &Yarn, dim: usize, theta: f64) -> (f64, f64) {
    let pair_with_turns = |turns: f64| {
        let context = yarn.original_context as f64;
        dim as f64 * (context / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln())
    };
    let low = pair_with_turns(yarn.beta_fast).floor().max(0.0);
    let high = pair_with_turns(yarn.beta_slow).ceil().min((dim - 1) as f64);
    if low == high { (low, high + 0.001) } else { (low, high) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yarn() -> Yarn {
        Yarn {
            factor: 40.0,
            original_context: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: 1.0,
            mscale_all_dim: 1.0,
        }
    }

    #[test]
    fn the_published_model_blends_from_pair_10_to_23() {
        assert_eq!(blend_range(&yarn(), 64, 10000.0), (10.0, 23.0));
        assert_eq!(amplitude(&yarn()), 1.0);
        let older = Yarn { mscale: 0.707, mscale_all_dim: 0.707, ..yarn() };
        assert_eq!(amplitude(&older), 1.0);
        let without = Yarn { mscale_all_dim: 0.0, ..yarn() };
        assert!((amplitude(&without) - 1.368_887_9).abs() < 1e-6);
    }

    #[test]
    fn rotation_keeps_length_and_depends_on_distance() {
        let rope = Rope { table: (0..8).map(|p| ((p as f32).cos(), (p as f32).sin())).collect(), pairs: 1 };
        let dot = |p: usize, q: usize| {
            let (mut a, mut b) = ([1.0, 2.0], [-0.5, 3.0]);
            rope.rotate(p, &mut a);
            rope.rotate(q, &mut b);
            a[0] * b[0] + a[1] * b[1]
        };
        assert!((dot(5, 3) - dot(7, 5)).abs() < 1e-5);
        assert!((dot(0, 0) - 5.5).abs() < 1e-6);
    }
}
