//! Which errors in rows of the embedding count: the sum of the outer products of their gradients.

use super::{SEED, Settings, Sink, backward};
use crate::calibration::gram::{Square, gram};
use crate::calibration::inputs::WithFactors;
use crate::checkpoint::WeightStore;
use crate::error::Result;
use crate::family::Role;
use crate::model::Storage;
use crate::model::linear::{Input, Picks};
use crate::model::states::States;

/// The sum over tokens of the outer products of the gradients of the loss for the rows of the embedding that they look up, `[D, D]`.
/// Where the table is the output head too, those of its rows in the head are added, of all rows together.
///
/// # Errors
/// When a weight cannot be read, a product is not finite, or states cannot be kept.
pub fn lookups(store: &dyn WeightStore, settings: Settings<'_>) -> Result<Vec<f32>> {
    let Settings { tokens, context, storage, observer, .. } = settings;
    let hidden = store.spec().hidden;
    let mut looks = Looks {
        is_tied: store.spec().embedding.tied,
        sum: Square::new(hidden, hidden),
        head: vec![0.0; tokens.len()],
        inputs: None,
        storage: storage.clone(),
    };
    backward(store, tokens, context, SEED, &storage, &mut looks, observer)?;
    Ok(looks.sum.data)
}

/// Adds up.
struct Looks {
    is_tied: bool,
    sum: Square,
    /// For each token the sum of the squares of the gradients of its logits.
    head: Vec<f32>,
    /// What the head is multiplied with.
    inputs: Option<States>,
    storage: Storage,
}

impl Sink for Looks {
    fn product(&mut self, role: Role, _: usize, x: &Input, _: Option<&Picks>, dy: &States) -> Result<()> {
        if role != Role::Output || !self.is_tied {
            return Ok(());
        }
        for rows in dy.blocks() {
            let dy_TC = dy.read(rows.clone())?;
            for (sum, dy_C) in self.head[rows].iter_mut().zip(dy_TC.chunks_exact(dy.cols().max(1))) {
                *sum += dy_C.iter().map(|dy| dy * dy).sum::<f32>();
            }
        }
        if self.inputs.is_none() {
            self.inputs = Some(States::copy_of(x.states(), &self.storage)?);
        }
        Ok(())
    }

    fn lookup(&mut self, _: &[u32], scale: f32, gradient: &States) -> Result<()> {
        let of_rows = gram(gradient)?;
        self.sum.add(scale * scale, &of_rows);
        if let Some(of) = &self.inputs {
            let picks: Vec<(usize, f32)> = self.head.iter().map(|square| square.sqrt()).enumerate().collect();
            self.sum.add(1.0, &gram(&WithFactors { of, picks: Some(&picks) })?);
        }
        Ok(())
    }
}
