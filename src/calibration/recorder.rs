//! Keeps what matrices of the original are multiplied with, for one layer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::gram::{Square, gram};
use super::inputs::{Kind, WithFactors};
use crate::checkpoint::{Matrix, Watcher, WeightStore};
use crate::error::Result;
use crate::family::Role;
use crate::model::{States, Storage};

/// Looks at the original model.
pub(super) struct Recorder<'a> {
    store: &'a dyn WeightStore,
    storage: Storage,
    seen: Mutex<Seen>,
}

/// What was seen of a layer.
#[derive(Default)]
pub(super) struct Seen {
    /// What somebody will ask for.
    wanted: BTreeSet<Kind>,
    pub(super) inputs: BTreeMap<Kind, States>,
    /// Sum of the outer products of what is inside all experts, and the number of rows.
    pub(super) inner: Option<(Square, usize)>,
}

impl<'a> Recorder<'a> {
    pub(super) fn new(store: &'a dyn WeightStore, storage: Storage) -> Self {
        Self { store, storage, seen: Mutex::default() }
    }

    /// Forgets everything; from now on inputs of these kinds are kept.
    pub(super) fn begin(&self, mut wanted: BTreeSet<Kind>) {
        // Rows of it go to experts.
        if wanted.iter().any(|kind| matches!(kind, Kind::Expert(_))) {
            wanted.insert(Kind::Ffn);
        }
        *self.seen() = Seen { wanted, ..Seen::default() };
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher for Recorder<'_> {
    fn wants_sums(&self) -> bool {
        false
    }

    fn meets(&self, role: Role, input: &dyn Matrix, _: Option<&dyn Matrix>) -> Result<()> {
        let Some(kind) = Kind::of(role, has_query_latent(self.store)) else { return Ok(()) };
        let mut seen = self.seen();
        if !seen.wanted.contains(&kind) || seen.inputs.contains_key(&kind) || matches!(kind, Kind::Expert(_))
        {
            return Ok(());
        }
        let kept = States::copy_of(input, &self.storage)?;
        if let Kind::Inner(Some(_)) = kind {
            // The factors of picks are on what comes out of the expert.
            let sum = gram(&WithFactors { of: &kept, picks: None })?;
            match &mut seen.inner {
                None => seen.inner = Some((sum, kept.rows())),
                Some((all, rows)) => {
                    all.add(1.0, &sum);
                    *rows += kept.rows();
                }
            }
        }
        seen.inputs.insert(kind, kept);
        Ok(())
    }
}

/// Whether queries come from a latent of lower rank.
pub(crate) fn has_query_latent(store: &dyn WeightStore) -> bool {
    matches!(&store.spec().attention, crate::family::Attention::Latent(latent) if latent.q_lora.is_some())
}
