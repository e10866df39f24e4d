//! The tensors of a result as the family arranges them, made of pieces of a checkpoint.

use super::Piece;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::family::{Ecosystem, Output, Presence, Role, Tensor, outputs};

/// A tensor of a result, without its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Arranged {
    /// What it is for; the first of several.
    pub(super) role: Role,
    pub(super) name: String,
    /// Outermost dimension first.
    pub(super) shape: Vec<usize>,
    pub(super) pieces: Vec<Piece>,
}

/// The tensors that `ecosystem` has of a checkpoint, with prediction layers only where it keeps them, in the order in which modules hold them;
/// of the roles that `is_written` accepts.
///
/// # Errors
/// A tensor that the family requires and the checkpoint lacks.
pub(super) fn arranged(
    source: &Checkpoint,
    ecosystem: Ecosystem,
    is_written: impl Fn(Role) -> bool,
) -> Result<Vec<Arranged>> {
    let spec = source.spec();
    let tensors = source.family().tensors(spec);
    let keeps_predictors = ecosystem == Ecosystem::Gguf && source.family().gguf.keeps_predictors();
    let is_kept = |tensor: &&Tensor| {
        let is_predictor =
            !keeps_predictors && matches!(tensor.role, Role::Layer(layer, _) if layer >= spec.layers);
        let is_there = tensor.presence == Presence::Always || serving(source, tensor.role).is_some();
        !is_predictor && is_there && is_written(tensor.role)
    };
    let outputs = outputs(tensors.iter().filter(is_kept), ecosystem).into_iter();
    outputs.map(|output| of_output(source, output)).collect()
}

fn of_output(source: &Checkpoint, output: Output) -> Result<Arranged> {
    let Output { name, shape, parts } = output;
    let role = parts.first().map_or(Role::Output, |part| part.role);
    let piece = |part: crate::family::Part| {
        let position = serving(source, part.role).ok_or_else(|| {
            let message = format!("the tensor for {:?} is missing", part.role);
            Error::checkpoint(source.source().location(), message)
        })?;
        Ok(Piece { source: position, rows: part.rows, turn: part.turn, unscaled: false })
    };
    Ok(Arranged { role, name, shape, pieces: parts.into_iter().map(piece).collect::<Result<_>>()? })
}

/// The source tensor with this role; a tied output head is the token embedding.
fn serving(source: &Checkpoint, role: Role) -> Option<usize> {
    let is_tied = role == Role::Output && source.spec().embedding.tied;
    source.by_role(role).or_else(|| source.by_role(Role::TokenEmbedding).filter(|_| is_tied))
}
