//! How much of the error of rounding is left of each choice when it is rounded with feedback.
//!
//! It depends on how columns of inputs hang together, not on the type. Sums of the outer products of the inputs of a layer are
//! kept until the next layer comes by; those of all experts are one.

use std::collections::{BTreeMap, BTreeSet};

use crate::calibration::gram::{Square, gram};
use crate::calibration::inputs::Kind;
use crate::calibration::left_by_feedback;
use crate::checkpoint::Matrix;
use crate::error::Result;
use crate::family::Role;

/// Of all choices.
#[derive(Debug, Default)]
pub(super) struct Relief {
    layer: Option<usize>,
    /// Inputs of this layer that are in a sum.
    seen: BTreeSet<Kind>,
    /// Sums of this layer, and rows of choices that are multiplied with their inputs.
    sums: BTreeMap<Kind, (Square, BTreeMap<usize, usize>)>,
    /// By choice: rows, and the same times what is left of the error.
    rows: BTreeMap<usize, (f64, f64)>,
}

impl Relief {
    /// `rows` rows of a choice are multiplied with `inputs`, as the weight with this role is.
    ///
    /// # Errors
    /// When the inputs cannot be read.
    pub(super) fn add(
        &mut self,
        (choice, rows): (usize, usize),
        (role, kind): (Role, Kind),
        inputs: &dyn Matrix,
    ) -> Result<()> {
        let layer = match role {
            Role::Layer(layer, _) => Some(layer),
            _ => None,
        };
        if layer != self.layer {
            self.close();
            self.layer = layer;
        }
        let all = match kind {
            Kind::Expert(_) => Kind::Expert(0),
            Kind::Inner(Some(_)) => Kind::Inner(Some(0)),
            kind => kind,
        };
        let cols = inputs.cols();
        let (sum, of_choices) =
            self.sums.entry(all).or_insert_with(|| (Square::new(cols, cols), BTreeMap::new()));
        if self.seen.insert(kind) {
            sum.add(1.0, &gram(inputs)?);
        }
        *of_choices.entry(choice).or_default() += rows;
        Ok(())
    }

    /// `rows` rows of a choice have errors that count as `sum` says.
    pub(super) fn know(&mut self, choice: usize, rows: usize, sum: &Square) {
        let left = left_by_feedback(sum);
        let known = self.rows.entry(choice).or_default();
        *known = (known.0 + rows as f64, known.1 + rows as f64 * left);
    }

    /// No more inputs of this layer come.
    fn close(&mut self) {
        self.seen.clear();
        for (_, (sum, of_choices)) in std::mem::take(&mut self.sums) {
            let left = left_by_feedback(&sum);
            for (choice, rows) in of_choices {
                let known = self.rows.entry(choice).or_default();
                *known = (known.0 + rows as f64, known.1 + rows as f64 * left);
            }
        }
    }

    /// What is left of the error of each of `choices` choices: 1 where nothing is known.
    pub(super) fn finish(mut self, choices: usize) -> Vec<f64> {
        self.close();
        let left = |choice: usize| self.rows.get(&choice).map_or(1.0, |(rows, left)| left / rows);
        (0..choices).map(left).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{Ffn, LayerRole};
    use crate::model::{States, Storage};

    fn inputs(cols: usize, value: impl Fn(usize, usize) -> f32) -> States {
        let mut states = States::new(&Storage::Memory, 64, cols).unwrap();
        let values: Vec<f32> = (0..64)
            .flat_map(|row| (0..cols).map(move |col| (row, col)))
            .map(|(row, col)| value(row, col))
            .collect();
        states.write(0, &values).unwrap();
        states
    }

    #[test]
    fn choices_get_the_mean_of_their_rows_and_experts_are_one() {
        // Columns that are all the same, and columns that have nothing in common.
        let (same, apart) =
            (inputs(64, |_, _| 1.0), inputs(64, |row, col| if row == col { 8.0 } else { 0.0 }));
        let gate =
            |layer, expert| (Role::Layer(layer, LayerRole::Expert(expert, Ffn::Gate)), Kind::Expert(expert));
        let mut relief = Relief::default();
        relief.add((0, 10), gate(1, 0), &same).unwrap();
        relief.add((0, 10), gate(1, 1), &same).unwrap();
        // Of another layer, so a sum of its own; given twice, it counts once in the sum.
        relief.add((1, 30), gate(0, 0), &apart).unwrap();
        relief.add((0, 20), gate(0, 0), &apart).unwrap();
        let left = relief.finish(3);
        let little = left_by_feedback(&gram(&same).unwrap());
        assert!(little < 0.05 && (left[1] - 1.0).abs() < 1e-5);
        assert!((left[0] - (20.0 * little + 20.0) / 40.0).abs() < 1e-5, "{left:?}");
        assert_eq!(left[2], 1.0);
    }
}
