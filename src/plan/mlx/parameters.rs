//! The parameters of mlx-lm's model in its own order, and what they are made of.
//!
//! The order is that of `tree_flatten(model.parameters())`: attributes as the constructors set
//! them. It decides how tensors are dealt out to shards. It is the order in which the family has its tensors.

use requant_formats::codec::MlxMode;

use super::recipe::Quantization;
use crate::checkpoint::{Checkpoint, Encoding};
use crate::error::Result;
use crate::family::{Ecosystem, LayerRole, MlxRouter, Role};
use crate::plan::Piece;
use crate::plan::pieces::{Arranged, arranged};

/// Codecs of groups that are as MLX has them.
const KEPT: [(&str, MlxMode); 2] = [("ct_int4_g32", MlxMode::Affine), ("ct_mxfp4", MlxMode::Mxfp4)];
const EIGHT_BITS: Quantization = Quantization { mode: MlxMode::Affine, bits: 8, group_len: 64 };

/// One parameter, not yet quantized.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parameter {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) pieces: Vec<Piece>,
    /// Its module has `to_quantized`: linear layers and embeddings, not every router.
    pub(super) is_quantizable: bool,
    /// What the model's own `quant_predicate` makes of it.
    pub(super) own: Option<Quantization>,
    /// What it is in the checkpoint already, where mlx-lm carries that over.
    pub(super) kept: Option<Quantization>,
    /// `cast_predicate`: false for the router's correction bias.
    pub(super) is_cast: bool,
}

impl Parameter {
    /// Length of a row: the innermost dimension.
    pub(super) fn row_len(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Whether it is the output head.
    pub(super) fn is_head(&self) -> bool {
        self.name == "lm_head.weight"
    }

    /// Path of its module, under which config.json has what is particular to it.
    pub(super) fn module(&self) -> &str {
        self.name.rsplit_once('.').map_or(&*self.name, |(module, _)| module)
    }
}

/// All of them.
///
/// # Errors
/// When a tensor is missing, which opening the checkpoint already rules out.
pub(super) fn parameters(source: &Checkpoint) -> Result<Vec<Parameter>> {
    let has_head = source.family().mlx_has_head(source.spec());
    let is_written = |role| role != Role::Output || has_head;
    let arranged = arranged(source, Ecosystem::Mlx, is_written)?.into_iter();
    let router = source.family().mlx_router();
    let is_router = |role| matches!(role, Role::Layer(_, LayerRole::Router));
    let parameter = |Arranged { role, name, shape, pieces }| Parameter {
        is_quantizable: shape.len() > 1 && !(is_router(role) && router == MlxRouter::Kept),
        own: (is_router(role) && router == MlxRouter::EightBits).then_some(EIGHT_BITS),
        kept: kept(source, &pieces),
        is_cast: !matches!(role, Role::Layer(_, LayerRole::RouterBias)),
        name,
        shape,
        pieces,
    };
    Ok(arranged.map(parameter).collect())
}

/// What all of these pieces are in the checkpoint, where mlx-lm carries that over.
fn kept(source: &Checkpoint, pieces: &[Piece]) -> Option<Quantization> {
    let codec_of = |piece: &Piece| match &source.tensors()[piece.source].encoding {
        Encoding::Packed(packed) if piece.turn.is_none() => Some(packed.codec.name()),
        _ => None,
    };
    let first = pieces.first().and_then(codec_of).filter(|_| source.family().mlx_keeps_codes())?;
    let mode = KEPT.iter().find(|(name, _)| *name == first)?.1;
    let is_one = pieces.iter().all(|piece| codec_of(piece) == Some(first));
    is_one.then_some(Quantization { mode, bits: 4, group_len: 32 })
}
