//! Rounding one group whose sub-blocks have scales of their own, as multiples of the group's.
//!
//! Sub-blocks follow each other in the order of work. For each of them neighbours of the multiples that the format's search
//! has found are tried side by side, one in each lane, with feedback inside the sub-block; the one that loses least stays, and what
//! it has lost goes to the columns behind it.

use super::{Attempt, Panel, Spread};
use crate::codec::{Scales, TwoLevels, Units};
use crate::dispatch::{self, Kernel};

/// Candidates that are tried side by side.
const LANES: usize = 16;
/// Weights of a sub-block, at most.
const LONGEST: usize = 32;

/// Steps from the multiples that were found, of formats with minima: of the scale, and of the minimum.
const WITH_MINS: [(i16, i16); LANES] = [
    (0, 0),
    (0, -1),
    (0, 1),
    (-1, 0),
    (-1, -1),
    (-1, 1),
    (1, 0),
    (1, -1),
    (1, 1),
    (-2, 0),
    (-2, -1),
    (-2, 1),
    (2, 0),
    (2, -1),
    (2, 1),
    (-3, 0),
];
/// The same of those without.
const ALONE: [i16; LANES] = [0, -1, 1, -2, 2, -3, 3, -4, 4, -5, 5, -6, 6, -7, 7, 8];

/// What is tried for one sub-block.
struct Candidates {
    scales: [i16; LANES],
    mins: [i16; LANES],
    /// What a step of the code is worth, and what code 0 stands for.
    step: [f32; LANES],
    lowest: [f32; LANES],
}

impl Candidates {
    fn new(levels: &TwoLevels, scales: &Scales, sub: usize) -> Self {
        let mut found =
            Self { scales: [0; LANES], mins: [0; LANES], step: [0.0; LANES], lowest: [0.0; LANES] };
        let (least, most) = levels.scales;
        for lane in 0..LANES {
            let (more, min) = if levels.top_min > 0 { WITH_MINS[lane] } else { (ALONE[lane], 0) };
            let scale = (scales.scales[sub] + more).clamp(least, most);
            let min = (scales.mins[sub] + min).clamp(0, levels.top_min);
            (found.scales[lane], found.mins[lane]) = (scale, min);
            let step = scales.d * f32::from(scale);
            found.step[lane] = step;
            found.lowest[lane] = match levels.units {
                Units::From(zero) => step * -zero - scales.dmin * f32::from(min),
                Units::Table(_) => 0.0,
            };
        }
        found
    }
}

/// A group that is to be rounded.
pub(super) struct Group<'a> {
    pub(super) levels: &'a TwoLevels,
    /// How many codes there are.
    pub(super) codes: usize,
    pub(super) panel: Panel<'a>,
    /// Its first column in the panel.
    pub(super) first: usize,
    pub(super) wanted: &'a [f32],
}

impl Group<'_> {
    /// Rounds `row`, what is wanted with what earlier groups have lost added, under `scales`, whose multiples become those
    /// that lose least. Stops where the loss reaches `bound`.
    pub(super) fn round(&self, scales: &mut Scales, mut row: Vec<f32>, bound: f32, into: &mut Attempt) {
        let Self { levels, codes, panel, first, wanted } = *self;
        let (len, n) = (wanted.len(), panel.costs.len());
        into.codes.resize(len, 0);
        into.errors.resize(len, 0.0);
        into.cost = 0.0;
        for at in (0..len).step_by(levels.sub_len) {
            let own = at..at + levels.sub_len;
            let sub = usize::from(panel.places[first + at]) / levels.sub_len;
            let candidates = Candidates::new(levels, scales, sub);
            let shares = &panel.shares[(first + at) * n + first..];
            let (lane, cost) = dispatch::run(Sub {
                units: levels.units,
                top: (codes - 1) as f32,
                candidates: &candidates,
                shares: &shares[at..],
                n,
                costs: &panel.costs[first..][own.clone()],
                wanted: &wanted[own.clone()],
                row: &row[own.clone()],
                codes: &mut into.codes[own.clone()],
                errors: &mut into.errors[own.clone()],
            });
            into.cost += cost;
            if into.cost >= bound {
                return;
            }
            (scales.scales[sub], scales.mins[sub]) = (candidates.scales[lane], candidates.mins[lane]);
            dispatch::run(Spread {
                shares,
                n,
                later: own.end..len,
                errors: &into.errors[own],
                row: &mut row,
            });
        }
    }
}

/// Rounds the columns of one sub-block under all candidates.
struct Sub<'a> {
    units: Units,
    top: f32,
    candidates: &'a Candidates,
    /// From the first column on, rows `n` apart.
    shares: &'a [f32],
    n: usize,
    costs: &'a [f32],
    wanted: &'a [f32],
    row: &'a [f32],
    codes: &'a mut [u8],
    errors: &'a mut [f32],
}

impl Kernel for Sub<'_> {
    /// The candidate that loses least, and how much that is.
    type Output = (usize, f32);
    #[inline(always)]
    fn run(self) -> (usize, f32) {
        let Self { units, top, candidates, shares, n, costs, wanted, row, codes, errors } = self;
        let Candidates { step, lowest, .. } = candidates;
        let inverse = step.map(|step| if step == 0.0 { 0.0 } else { 1.0 / step });
        let len = wanted.len();
        let mut values = [[0.0f32; LANES]; LONGEST];
        let mut chosen = [[0.0f32; LANES]; LONGEST];
        let mut lost = [[0.0f32; LANES]; LONGEST];
        let mut cost = [0.0f32; LANES];
        for (values, &value) in values.iter_mut().zip(row) {
            *values = [value; LANES];
        }
        for column in 0..len {
            let value = values[column];
            let mut level = [0.0f32; LANES];
            let code = &mut chosen[column];
            match units {
                Units::From(_) => {
                    for lane in 0..LANES {
                        let nearest = ((value[lane] - lowest[lane]) * inverse[lane] + 0.5).floor();
                        code[lane] = nearest.clamp(0.0, top);
                        level[lane] = lowest[lane] + step[lane] * code[lane];
                    }
                }
                Units::Table(table) => {
                    let mut least = [f32::INFINITY; LANES];
                    for (number, unit) in table.iter().enumerate() {
                        for lane in 0..LANES {
                            let candidate = step[lane] * unit;
                            let distance = (candidate - value[lane]).abs();
                            let is_nearer = distance < least[lane];
                            least[lane] = if is_nearer { distance } else { least[lane] };
                            level[lane] = if is_nearer { candidate } else { level[lane] };
                            code[lane] = if is_nearer { number as f32 } else { code[lane] };
                        }
                    }
                }
            }
            let error = &mut lost[column];
            for lane in 0..LANES {
                let difference = value[lane] - level[lane];
                cost[lane] += costs[column] * difference * difference;
                error[lane] = wanted[column] - level[lane];
            }
            let error = *error;
            let shares = &shares[column * n..][..len];
            for (values, share) in values[column + 1..len].iter_mut().zip(&shares[column + 1..]) {
                for lane in 0..LANES {
                    values[lane] += error[lane] * share;
                }
            }
        }
        let mut best = 0;
        for lane in 1..LANES {
            if cost[lane] < cost[best] {
                best = lane;
            }
        }
        for column in 0..len {
            codes[column] = chosen[column][best] as u8;
            errors[column] = lost[column][best];
        }
        (best, cost[best])
    }
}
