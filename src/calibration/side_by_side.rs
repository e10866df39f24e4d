//! The original and the quantized model on their way through the layers, half by half.

use super::quantized::Quantized;
use crate::error::Result;
use crate::model::{Choice, Hidden, States, Storage, Walk};

/// The two walks.
pub(super) struct SideBySide<'a> {
    pub(super) right: Walk<'a>,
    /// None where matrices are rounded for the inputs of the original: there is no other walk then.
    pub(super) own: Option<Walk<'a>>,
}

impl SideBySide<'_> {
    /// Runs layer `layer`, which is the next one. The quantized model rounds its matrices as it comes to them; what it chooses of
    /// experts holds for both, and is returned.
    ///
    /// # Errors
    /// When a weight cannot be read, a product is not finite, or the run is over.
    pub(super) fn step(
        &mut self,
        layer: usize,
        quantized: &Quantized<'_>,
        storage: &Storage,
    ) -> Result<Option<Vec<Vec<Choice>>>> {
        let right = &mut self.right;
        right.attend()?;
        let choices = match &mut self.own {
            None => {
                let choices = right.choices()?;
                right.feed(choices.as_deref())?;
                quantized.round_for_original(Some(layer), choices.as_deref())?;
                choices
            }
            Some(own) => {
                quantized.aim(States::copy_of(right.hidden(), storage)?);
                own.attend()?;
                let choices = own.choices()?;
                right.feed(choices.as_deref())?;
                quantized.aim(States::copy_of(right.hidden(), storage)?);
                own.feed(choices.as_deref())?;
                choices
            }
        };
        quantized.finish_layer(layer)?;
        Ok(choices)
    }

    /// States as they are now, those of the original first.
    pub(super) fn states(&self) -> Vec<&States> {
        [Some(&self.right), self.own.as_ref()].into_iter().flatten().map(Walk::hidden).collect()
    }

    /// States in front of the head, of the original and the quantized model.
    pub(super) fn finish(self) -> (Hidden, Option<Hidden>) {
        (self.right.finish(), self.own.map(Walk::finish))
    }
}
