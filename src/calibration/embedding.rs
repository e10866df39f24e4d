//! Rounds the embedding table. Its rows are looked up, not multiplied, so what an error in them costs is taken from the
//! gradient of the loss: `H` is the sum of the outer products of gradients of rows.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use super::gram::Square;
use super::quantized::Ready;
use super::rounding::{Correction, Feedback, Lengths, Task};
use super::targets::Target;
use crate::checkpoint::WeightStore;
use crate::error::{Error, Result};
use crate::family::Role;
use crate::pipeline::{Damped, Desk};
use crate::plan::Blueprint;

/// Rows that are looked up, as they are stored.
pub(super) type Stored = HashMap<usize, Vec<f32>>;

/// Rounds the table that `target` writes under `h`, job by job: all rows of a large vocabulary would be gigabytes. Gives the
/// rows of `tokens`, and adds to `damped` when `h` left directions open.
///
/// # Errors
/// When a row cannot be read, `h` holds no numbers, or the run is over.
pub(super) fn round(
    store: &dyn WeightStore,
    blueprint: &Blueprint,
    (target, desk): (&Target, &dyn Desk),
    mut h: Square,
    tokens: &[u32],
    damped: &mut Vec<Damped>,
) -> Result<Stored> {
    let weight = store.weight(Role::TokenEmbedding)?;
    let cols = weight.cols;
    let wanted: BTreeSet<usize> = tokens.iter().map(|&token| token as usize).collect();
    if h.mean_diagonal() == 0.0 {
        (0..cols).for_each(|column| h.data[column * cols + column] = 1.0);
    }
    let mut found = Stored::new();
    for (&tensor, jobs) in &target.outputs {
        let output = &blueprint.tensors[tensor];
        let feedback = Feedback::new(&h, Lengths::of(output.codec)).ok_or_else(|| {
            let message = format!(
                "tensor {}: squares of its gradients are beyond f32, so it cannot be calibrated; convert without --calibrate",
                weight.name
            );
            Error::checkpoint(&weight.file, message)
        })?;
        if feedback.is_damped() {
            damped.push(Damped { name: weight.name.clone(), damping: feedback.damping });
        }
        let task = Task {
            output,
            tensor_scale: desk.tensor_scale(output)?,
            feedback: &feedback,
            correction: Correction::None,
            mean: h.mean_diagonal() as f32,
        };
        for (number, rows) in jobs {
            let read = |rows: Range<usize>, tile: &mut [f32]| store.read_rows(&weight, rows, tile);
            let mut stored = vec![0.0; rows.len() * cols];
            let encoded = task.encode(rows.clone(), &read, &mut stored)?.behind(target.first);
            desk.encode(&[*number], Arc::new(Ready(vec![encoded])))?;
            for &row in wanted.range(rows.clone()) {
                found.insert(row, stored[(row - rows.start) * cols..][..cols].to_vec());
            }
        }
    }
    Ok(found)
}
