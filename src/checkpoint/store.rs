//! Weights by what they are for, as rows of f32, whatever they are stored as.
//!
//! A [`WeightStore`] speaks the shapes of [`Role`], which are those of Hugging Face checkpoints. A
//! container that arranges weights otherwise (stacked experts, a split or transposed `kv_b_proj`)
//! puts its rows back into this order. Norms are what the model multiplies with, 1 added where it does so.

use std::borrow::Cow;
use std::ops::Range;

use super::{Checkpoint, Encoding, TileReader, packed_rows};
use crate::error::{Error, Result};
use crate::family::{Role, Spec};
use crate::source::Extent;

/// A weight of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weight {
    /// What it is for.
    pub role: Role,
    /// Name in its container, for messages.
    pub name: String,
    /// File it is in, for messages.
    pub file: String,
    /// Rows; 1 for a vector.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Rows that are decoded together: reading a part of them costs as much as reading all.
    pub unit_rows: usize,
}

/// Something that inputs are multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Watched {
    /// The weight with this role.
    Weight(Role),
    /// Rows of a layer's [`crate::family::LayerRole::KvB`] that make the keys of a head, when they are applied to
    /// queries: layer, head.
    KeyHead(usize, usize),
    /// Those that make its values, when they are applied to what attention makes of the latents: layer, head.
    ValueHead(usize, usize),
}

/// Rows of numbers, wherever they are kept.
pub trait Matrix: Sync {
    /// Number of rows.
    fn rows(&self) -> usize;

    /// Number of columns.
    fn cols(&self) -> usize;

    /// Some rows, one after the other.
    ///
    /// # Errors
    /// When they are kept in a file that cannot be read.
    fn read(&self, rows: Range<usize>) -> Result<Cow<'_, [f32]>>;

    /// Of rows that are picked out of those of all tokens: their tokens, ascending, and the factor on what becomes of each.
    fn picks(&self) -> Option<&[(usize, f32)]> {
        None
    }
}

/// Learns what weights are multiplied with.
pub trait Watcher: Sync {
    /// Whether it is to be told of [`Watcher::saw`].
    fn wants_sums(&self) -> bool {
        true
    }

    /// Sums of the squares of each column of an input of so many rows. Called once for each weight that is used.
    fn saw(&self, watched: Watched, sums: &[f64], rows: usize) {
        let _ = (watched, sums, rows);
    }

    /// The weight with this role is about to be multiplied with `input`: none of its rows has been read for that. Where the
    /// product is added to the hidden states of all tokens, `hidden` are these as they are before.
    ///
    /// # Errors
    /// Of the watcher's own; they end the run.
    fn meets(&self, role: Role, input: &dyn Matrix, hidden: Option<&dyn Matrix>) -> Result<()> {
        let _ = (role, input, hidden);
        Ok(())
    }
}

/// A model's weights as f32.
pub trait WeightStore: Sync {
    /// The model's hyper-parameters.
    fn spec(&self) -> &Spec;

    /// The weight with this role.
    ///
    /// # Errors
    /// When the model has none.
    fn weight(&self, role: Role) -> Result<Weight>;

    /// Decodes `rows` of a weight into `tile`, which has exactly their length. Called from several
    /// threads.
    ///
    /// # Errors
    /// When they cannot be read, or hold NaN or infinity; names the tensor and the file.
    fn read_rows(&self, weight: &Weight, rows: Range<usize>, tile: &mut [f32]) -> Result<()>;

    /// The tensor that has the rows of this weight one after the other, and the number of the first; `None` where they
    /// lie otherwise.
    fn stored(&self, role: Role) -> Option<(String, usize)> {
        let _ = role;
        None
    }

    /// Who is to learn what the weights are multiplied with.
    fn watcher(&self) -> Option<&dyn Watcher> {
        None
    }

    /// Every byte that [`WeightStore::read_rows`] may read for the weight with this role, scales included.
    ///
    /// # Errors
    /// When the model has none.
    fn extents(&self, role: Role) -> Result<Vec<Extent>>;
}

/// A store whose weights are watched.
pub struct Watching<'a> {
    /// The weights.
    pub store: &'a dyn WeightStore,
    /// Who learns what they are multiplied with.
    pub watcher: &'a dyn Watcher,
}

impl WeightStore for Watching<'_> {
    fn spec(&self) -> &Spec {
        self.store.spec()
    }

    fn weight(&self, role: Role) -> Result<Weight> {
        self.store.weight(role)
    }

    fn read_rows(&self, weight: &Weight, rows: Range<usize>, tile: &mut [f32]) -> Result<()> {
        self.store.read_rows(weight, rows, tile)
    }

    fn stored(&self, role: Role) -> Option<(String, usize)> {
        self.store.stored(role)
    }

    fn watcher(&self) -> Option<&dyn Watcher> {
        Some(self.watcher)
    }

    fn extents(&self, role: Role) -> Result<Vec<Extent>> {
        self.store.extents(role)
    }
}

impl Checkpoint {
    /// Position of the tensor that serves as `role`: a tied output head is the token embedding.
    fn serving(&self, role: Role) -> Result<usize> {
        let tied = role == Role::Output && self.spec().embedding.tied;
        let found =
            self.by_role(role).or_else(|| if tied { self.by_role(Role::TokenEmbedding) } else { None });
        found.ok_or_else(|| {
            let message = format!("no tensor serves as {role:?}; the forward pass needs it");
            Error::checkpoint(self.source().location(), message)
        })
    }
}

impl WeightStore for Checkpoint {
    fn spec(&self) -> &Spec {
        self.spec()
    }

    fn weight(&self, role: Role) -> Result<Weight> {
        let id = self.serving(role)?;
        let tensor = &self.tensors()[id];
        let (rows, cols) = tensor.matrix();
        let file = self.source().files()[tensor.file].name.clone();
        let unit_rows = match &tensor.encoding {
            Encoding::Packed(packed) => packed_rows::unit_rows(self, id, packed),
            Encoding::Plain | Encoding::Scaled(_) => 1,
        };
        Ok(Weight { role, name: tensor.name.clone(), file, rows, cols, unit_rows })
    }

    fn read_rows(&self, weight: &Weight, rows: Range<usize>, tile: &mut [f32]) -> Result<()> {
        TileReader::default().read_into(self, self.serving(weight.role)?, rows, tile)?;
        self.spec().raise(weight.role, tile);
        Ok(())
    }

    fn stored(&self, role: Role) -> Option<(String, usize)> {
        Some((self.tensors()[self.serving(role).ok()?].name.clone(), 0))
    }

    fn extents(&self, role: Role) -> Result<Vec<Extent>> {
        let tensor = &self.tensors()[self.serving(role)?];
        let own = Extent { file: tensor.file, range: tensor.span(), is_small: tensor.shape.len() < 2 };
        let companions = tensor.companion_spans(self.tensors());
        let companions =
            companions.map(|(stored, range)| Extent { file: stored.file, range, is_small: true });
        Ok([own].into_iter().chain(companions).collect())
    }
}
