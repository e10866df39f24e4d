//! What matrices of a layer are multiplied with.

use std::borrow::Cow;
use std::ops::Range;

use crate::checkpoint::Matrix;
use crate::error::Result;
use crate::family::{Ffn, LayerRole, Role};
use crate::model::States;

/// An input that several matrices of a layer may share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Of attention: normed hidden states.
    Attention,
    /// The low-rank query.
    QueryLatent,
    /// The low-rank key and value.
    ValueLatent,
    /// What the heads of attention say.
    Heads,
    /// Of the feed-forward block: normed hidden states.
    Ffn,
    /// The rows of these that go to an expert.
    Expert(usize),
    /// What gate and up projection make of them: the block's own (`None`), or an expert's.
    Inner(Option<usize>),
    /// The same of shared experts.
    SharedInner,
    /// Of the output head: normed hidden states.
    Output,
}

impl Kind {
    /// Of the matrix with this role, if it is one that is multiplied.
    pub(crate) fn of(role: Role, has_query_latent: bool) -> Option<Self> {
        let own = match role {
            Role::Output => return Some(Self::Output),
            Role::Layer(_, own) => own,
            _ => return None,
        };
        Some(match own {
            LayerRole::Q | LayerRole::K | LayerRole::V | LayerRole::QA | LayerRole::KvA => Self::Attention,
            LayerRole::QB if has_query_latent => Self::QueryLatent,
            LayerRole::KvB => Self::ValueLatent,
            LayerRole::AttentionOutput => Self::Heads,
            LayerRole::Router | LayerRole::SharedGate => Self::Ffn,
            LayerRole::Dense(Ffn::Gate | Ffn::Up) | LayerRole::Shared(Ffn::Gate | Ffn::Up) => Self::Ffn,
            LayerRole::Expert(expert, Ffn::Gate | Ffn::Up) => Self::Expert(expert),
            LayerRole::Dense(Ffn::Down) => Self::Inner(None),
            LayerRole::Expert(expert, Ffn::Down) => Self::Inner(Some(expert)),
            LayerRole::Shared(Ffn::Down) => Self::SharedInner,
            _ => return None,
        })
    }
}

/// Some rows of a matrix, with factors.
pub(super) struct Picked<'a> {
    pub(super) of: &'a States,
    pub(super) picks: &'a [(usize, f32)],
}

impl Matrix for Picked<'_> {
    fn rows(&self) -> usize {
        self.picks.len()
    }

    fn cols(&self) -> usize {
        self.of.cols()
    }

    fn read(&self, rows: Range<usize>) -> Result<Cow<'_, [f32]>> {
        let mut data = Vec::with_capacity(rows.len() * self.of.cols());
        for &(row, _) in &self.picks[rows] {
            data.extend_from_slice(&self.of.read(row..row + 1)?);
        }
        Ok(data.into())
    }

    fn picks(&self) -> Option<&[(usize, f32)]> {
        Some(self.picks)
    }
}

/// A matrix whose rows have the factors of others.
pub(crate) struct WithFactors<'a> {
    pub(crate) of: &'a States,
    pub(crate) picks: Option<&'a [(usize, f32)]>,
}

impl Matrix for WithFactors<'_> {
    fn rows(&self) -> usize {
        self.of.rows()
    }

    fn cols(&self) -> usize {
        self.of.cols()
    }

    fn read(&self, rows: Range<usize>) -> Result<Cow<'_, [f32]>> {
        self.of.read(rows)
    }

    fn picks(&self) -> Option<&[(usize, f32)]> {
        self.picks
    }
}
