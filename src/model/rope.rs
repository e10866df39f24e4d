//! Rotary position embedding, with the extensions to longer contexts.
//!
//! Pair `i` of the `dim` columns that turn is columns `2i` and `2i + 1`, or `i` and `i + dim / 2`; at position `p` it
//! turns by `p * f_i` with `f_i = theta^(-2i / dim)`, divided by a stored divisor where the model has them (Llama 3,
//! LongRoPE). YaRN (arXiv 2309.00071) divides `f_i` by `factor` for pairs that turn less than `beta_slow` times within
//! the original context, leaves those that turn more than `beta_fast` times, and blends linearly in `i` between.
//! Linear scaling divides them all. Angles are taken in f32, as transformers does.

use super::linear::vector;
use crate::checkpoint::WeightStore;
use crate::error::Result;
use crate::family::{Attention, Divisors, Latent, Pairing, Role, Rotary, Scaling, Yarn};

/// Sine and cosine of every position and pair.
pub(crate) struct Rope {
    /// `[positions, pairs]` of (cosine, sine).
    table: Vec<(f32, f32)>,
    pairs: usize,
    pairing: Pairing,
}

/// The tables of a model: of its layers, and of those with a sliding window.
pub(crate) struct Ropes {
    full: Rope,
    sliding: Option<Rope>,
}

/// The weights that hold a model's divisors of frequencies, for windows of `context` tokens.
pub(crate) fn divisors_role(rotary: &Rotary, context: usize) -> Option<Role> {
    match rotary.divisors {
        Divisors::Absent | Divisors::ByWavelength(_) => None,
        Divisors::Always => Some(Role::RopeDivisors),
        Divisors::ByContext { original_context } if context as u64 > original_context => {
            Some(Role::RopeDivisorsLong)
        }
        Divisors::ByContext { .. } => Some(Role::RopeDivisorsShort),
    }
}

impl Ropes {
    /// Tables for the positions of windows of `context` tokens, of which `positions` are used.
    ///
    /// # Errors
    /// When divisors cannot be read.
    pub(crate) fn new(store: &dyn WeightStore, context: usize, positions: usize) -> Result<Self> {
        let table = |rotary: &Rotary| -> Result<Rope> {
            let divisors = match rotary.divisors {
                Divisors::ByWavelength(own) => Some(own.divisors(rotary)),
                _ => divisors_role(rotary, context).map(|role| vector(store, role)).transpose()?,
            };
            Ok(Rope::new(rotary, divisors.as_deref(), positions))
        };
        let spec = store.spec();
        let sliding = match &spec.attention {
            Attention::Grouped(grouped) => {
                let own = grouped.sliding.as_ref().filter(|sliding| *sliding.rope != spec.rope);
                own.map(|sliding| table(&sliding.rope)).transpose()?
            }
            Attention::Latent(_) => None,
        };
        Ok(Self { full: table(&spec.rope)?, sliding })
    }

    /// The table of a layer.
    pub(crate) fn of(&self, is_sliding: bool) -> &Rope {
        self.sliding.as_ref().filter(|_| is_sliding).unwrap_or(&self.full)
    }
}

impl Rope {
    /// Tables for positions below `positions`.
    fn new(rotary: &Rotary, divisors: Option<&[f32]>, positions: usize) -> Self {
        let frequencies = frequencies(rotary, divisors);
        let amplitude = (rotary.yarn().map_or(1.0, Yarn::amplitude) * rotary.amplitude) as f32;
        let angle = |position: usize, frequency: f32| position as f32 * frequency;
        let row = |position| {
            let angles = frequencies.iter().map(move |&frequency| angle(position, frequency));
            angles.map(|angle| (angle.cos() * amplitude, angle.sin() * amplitude))
        };
        let table = (0..positions).flat_map(row).collect();
        Self { table, pairs: frequencies.len(), pairing: rotary.pairing }
    }

    /// Columns that turn.
    pub(crate) fn dim(&self) -> usize {
        2 * self.pairs
    }

    /// Turns one head's rotary part in place.
    pub(crate) fn rotate(&self, position: usize, x_R: &mut [f32]) {
        self.for_each_pair(position, x_R, |a, b, (cos, sin)| {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        });
    }

    /// The gradient of what was turned from that of what came out, in place: the transposed map.
    pub(crate) fn rotate_back(&self, position: usize, x_R: &mut [f32]) {
        self.for_each_pair(position, x_R, |a, b, (cos, sin)| {
            (*a, *b) = (*a * cos + *b * sin, *b * cos - *a * sin);
        });
    }

    fn for_each_pair(&self, position: usize, x_R: &mut [f32], turn: impl Fn(&mut f32, &mut f32, (f32, f32))) {
        let row = &self.table[position * self.pairs..][..self.pairs];
        match self.pairing {
            Pairing::Adjacent => {
                for (pair, &angle) in x_R.as_chunks_mut().0.iter_mut().zip(row) {
                    let [a, b] = pair;
                    turn(a, b, angle);
                }
            }
            Pairing::Halves => {
                let (left, right) = x_R.split_at_mut(self.pairs);
                for ((a, b), &angle) in left.iter_mut().zip(right).zip(row) {
                    turn(a, b, angle);
                }
            }
        }
    }
}

/// Factor on the scores of latent attention: `1 / sqrt(key width)`, times YaRN's temperature.
pub(crate) fn score_scale(latent: &Latent, rotary: &Rotary) -> f32 {
    let scale = 1.0 / ((latent.nope_dim + rotary.dim) as f64).sqrt();
    let temperature = match rotary.yarn() {
        Some(yarn) if yarn.mscale_all_dim != 0.0 => yarn.attention_scale(yarn.mscale_all_dim),
        _ => 1.0,
    };
    (scale * temperature * temperature) as f32
}

/// Turn per position of every pair.
fn frequencies(rotary: &Rotary, divisors: Option<&[f32]>) -> Vec<f32> {
    let dim = rotary.dim;
    let plain = |pair: usize| {
        if rotary.sections.is_some_and(|sections| !sections.turns(pair)) {
            return 0.0;
        }
        let frequency = 1.0 / (rotary.theta as f32).powf((2 * pair) as f32 / dim as f32);
        divisors.and_then(|divisors| divisors.get(pair)).map_or(frequency, |divisor| frequency / divisor)
    };
    let pairs = 0..dim / 2;
    match &rotary.scaling {
        None => pairs.map(plain).collect(),
        Some(Scaling::Linear(factor)) => pairs.map(|pair| plain(pair) / *factor as f32).collect(),
        Some(Scaling::Yarn(yarn)) => {
            let (low, high) = blend_range(yarn, dim, rotary.theta);
            let blend = |pair: usize| {
                let interpolated = (((pair as f64 - low) / (high - low)).clamp(0.0, 1.0)) as f32;
                plain(pair) / yarn.factor as f32 * interpolated + plain(pair) * (1.0 - interpolated)
            };
            pairs.map(blend).collect()
        }
    }
}

/// Pairs between which YaRN blends.
fn blend_range(yarn: &Yarn, dim: usize, theta: f64) -> (f64, f64) {
    let pair_with_turns = |turns: f64| {
        let context = yarn.original_context as f64;
        dim as f64 * (context / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln())
    };
    let (mut low, mut high) = (pair_with_turns(yarn.beta_fast), pair_with_turns(yarn.beta_slow));
    if yarn.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, high) = (low.max(0.0), high.min((dim - 1) as f64));
    if low == high { (low, high + 0.001) } else { (low, high) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::Sections;

    fn yarn() -> Yarn {
        Yarn {
            factor: 40.0,
            original_context: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: 1.0,
            mscale_all_dim: 1.0,
            truncate: true,
        }
    }

    #[test]
    fn the_published_model_blends_from_pair_10_to_23() {
        assert_eq!(blend_range(&yarn(), 64, 10000.0), (10.0, 23.0));
        assert_eq!(yarn().amplitude(), 1.0);
        let (low, high) = blend_range(&Yarn { truncate: false, ..yarn() }, 64, 10000.0);
        assert!(10.0 < low && low < 11.0 && 22.0 < high && high < 23.0, "{low} {high}");
        let older = Yarn { mscale: 0.707, mscale_all_dim: 0.707, ..yarn() };
        assert_eq!(older.amplitude(), 1.0);
        let without = Yarn { mscale_all_dim: 0.0, ..yarn() };
        assert!((without.amplitude() - 1.368_887_9).abs() < 1e-6);
    }

    fn rotary(dim: usize, pairing: Pairing) -> Rotary {
        let theta = 100.0;
        let (scaling, amplitude, divisors) = (None, 1.0, Divisors::Absent);
        Rotary { dim, pairing, theta, scaling, amplitude, divisors, sections: None }
    }

    #[test]
    fn rotation_keeps_length_and_depends_on_distance() {
        let rope = Rope::new(&rotary(2, Pairing::Adjacent), None, 8);
        let dot = |p: usize, q: usize| {
            let (mut a, mut b) = ([1.0, 2.0], [-0.5, 3.0]);
            rope.rotate(p, &mut a);
            rope.rotate(q, &mut b);
            a[0] * b[0] + a[1] * b[1]
        };
        assert!((dot(5, 3) - dot(7, 5)).abs() < 1e-5);
        assert!((dot(0, 0) - 5.5).abs() < 1e-6);
    }

    #[test]
    fn the_two_pairings_are_one_rotation_of_columns_in_another_order() {
        let [adjacent, halves] =
            [Pairing::Adjacent, Pairing::Halves].map(|pairing| Rope::new(&rotary(6, pairing), None, 4));
        let mut a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let mut b = [1.0, 3.0, 5.0, 2.0, 4.0, 6.0];
        adjacent.rotate(3, &mut a);
        halves.rotate(3, &mut b);
        assert_eq!(a, [b[0], b[3], b[1], b[4], b[2], b[5]]);
    }

    #[test]
    fn divisors_and_linear_scaling_slow_pairs_down() {
        let plain = frequencies(&rotary(4, Pairing::Halves), None);
        assert_eq!(frequencies(&rotary(4, Pairing::Halves), Some(&[1.0, 8.0])), [plain[0], plain[1] / 8.0]);
        let linear = Rotary { scaling: Some(Scaling::Linear(4.0)), ..rotary(4, Pairing::Halves) };
        assert_eq!(frequencies(&linear, None), [plain[0] / 4.0, plain[1] / 4.0]);
    }

    /// Time, height and width are the same for text; the fourth section stands still, and the sections begin anew.
    #[test]
    fn pairs_of_the_fourth_section_do_not_turn() {
        let plain = rotary(10, Pairing::Halves);
        let with = |sections| Rotary { sections: Some(Sections(sections)), ..plain.clone() };
        let frequencies = |rotary: &Rotary| frequencies(rotary, None);
        assert_eq!(frequencies(&with([2, 2, 1, 0])), frequencies(&plain));
        let still: Vec<bool> = frequencies(&with([1, 1, 0, 1])).iter().map(|&turn| turn == 0.0).collect();
        assert_eq!(still, [false, false, true, false, false]);
    }

    #[test]
    fn the_long_divisors_are_those_of_contexts_beyond_the_original_one() {
        let divisors = Divisors::ByContext { original_context: 4096 };
        let rotary = Rotary { divisors, ..rotary(4, Pairing::Halves) };
        assert_eq!(divisors_role(&rotary, 4096), Some(Role::RopeDivisorsShort));
        assert_eq!(divisors_role(&rotary, 4097), Some(Role::RopeDivisorsLong));
    }
}
