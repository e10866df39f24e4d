//! What a conversion starts from: a [`Catalogue`] of stored tensors, each with what its bytes mean.
//!
//! - A [`Checkpoint`] is a Hugging Face checkpoint: config, index and shard headers, checked against each
//!   other. When it opens, every tensor the model family expects is there with the right shape, every FP8
//!   weight has its scale, and nothing unknown is left over.
//! - A [`GgufModel`] is a GGUF file or split set, of any architecture.
//!
//! Opening one reads no tensor data.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

use requant_formats::layout::ROW_MAJOR;
use requant_formats::{Codec, Dtype};
use serde_json::Value;

use crate::error::Result;
use crate::family::{Family, Role, Spec};
use crate::source::Source;

mod catalogue;
mod encoding;
mod gguf;
mod grids;
mod packed;
mod packed_rows;
mod quantization;
mod read;
mod stacks;
mod store;
mod witness;

pub(crate) use catalogue::Headers;
pub use encoding::{BlockScale, Encoding, Packed, ScaleFormat};
pub use gguf::GgufModel;
pub use quantization::quantization_methods;
pub(crate) use read::check_finite;

pub use read::TileReader;
pub use store::{Matrix, Watched, Watcher, Watching, Weight, WeightStore};
pub use witness::{Extent, Unit};

/// One tensor of the catalogue.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceTensor {
    /// Name in the checkpoint.
    pub name: String,
    /// Stored element type; of a packed weight, that of its codes.
    pub dtype: Dtype,
    /// Shape, outermost dimension first; of a packed weight, the logical one.
    pub shape: Vec<usize>,
    /// File id in the source.
    pub file: usize,
    /// Absolute offset in that file.
    pub offset_bytes: u64,
    /// Length.
    pub len_bytes: u64,
    /// What it is for; `None` for scales and for tensors no target uses (`inv_freq` tables).
    pub role: Option<Role>,
    /// What its bytes mean.
    pub encoding: Encoding,
}

impl SourceTensor {
    /// The tensor as a matrix: leading dimensions folded into rows; a vector is one row.
    pub fn matrix(&self) -> (usize, usize) {
        match self.shape.split_last() {
            None => (1, 1),
            Some((&cols, leading)) => (leading.iter().product(), cols),
        }
    }

    /// The block scale of an FP8 weight.
    pub fn scale(&self) -> Option<BlockScale> {
        match self.encoding {
            Encoding::Scaled(scale) => Some(scale),
            Encoding::Plain | Encoding::Packed(_) => None,
        }
    }

    /// Positions of the other tensors that its weights are decoded with: scales, zero points.
    pub fn companions(&self) -> &[usize] {
        match &self.encoding {
            Encoding::Plain => &[],
            Encoding::Scaled(scale) => std::slice::from_ref(&scale.tensor),
            Encoding::Packed(packed) => &packed.companions,
        }
    }

    /// Where in their files the other tensors lie that its weights are decoded with, from the first byte to the last; `tensors` are those of
    /// its catalogue.
    pub fn companion_spans<'a>(
        &'a self,
        tensors: &'a [SourceTensor],
    ) -> impl Iterator<Item = (&'a SourceTensor, std::ops::Range<u64>)> {
        self.companions().iter().enumerate().map(move |(at, &other)| {
            let stored = &tensors[other];
            let end = match &self.encoding {
                Encoding::Packed(packed) => {
                    let number = if at < packed.own { at } else { at + 1 };
                    let runs = packed.runs(&self.shape, number);
                    runs.offset_bytes + runs.span_bytes()
                }
                Encoding::Plain | Encoding::Scaled(_) => stored.len_bytes,
            };
            (stored, stored.offset_bytes..stored.offset_bytes + end.max(stored.len_bytes))
        })
    }

    /// Where in its file it lies, from the first byte to the last.
    pub fn span(&self) -> std::ops::Range<u64> {
        let end = match &self.encoding {
            Encoding::Packed(packed) => {
                let runs = packed.runs(&self.shape, packed.own);
                runs.offset_bytes + runs.span_bytes()
            }
            Encoding::Plain | Encoding::Scaled(_) => 0,
        };
        self.offset_bytes..self.offset_bytes + end.max(self.len_bytes)
    }

    /// The codec of a packed tensor that is one part, row after row: a GGUF tensor.
    pub fn row_major(&self) -> Option<&'static dyn Codec> {
        match &self.encoding {
            Encoding::Packed(packed)
                if packed.layout.name() == ROW_MAJOR.name() && packed.companions.is_empty() =>
            {
                Some(packed.codec)
            }
            _ => None,
        }
    }

    /// Number of elements.
    pub fn len_elems(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product()
    }
}

/// Stored tensors and where their bytes come from: all that decoding needs.
pub struct Catalogue {
    source: Arc<dyn Source>,
    tensors: Vec<SourceTensor>,
}

impl Catalogue {
    pub(crate) fn new(source: Arc<dyn Source>, tensors: Vec<SourceTensor>) -> Self {
        Self { source, tensors }
    }

    /// The same, to be kept.
    pub(crate) fn shared_source(&self) -> Arc<dyn Source> {
        Arc::clone(&self.source)
    }

    /// Where the bytes come from.
    pub fn source(&self) -> &dyn Source {
        &*self.source
    }

    /// Every tensor, scales included, in the order of files and offsets.
    pub fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    /// Bytes of tensor `id` and of those that it is decoded with.
    pub fn stored_bytes(&self, id: usize) -> u64 {
        let tensor = &self.tensors[id];
        let companions = tensor.companions().iter().map(|&other| self.tensors[other].len_bytes);
        tensor.len_bytes + companions.sum::<u64>()
    }
}

/// A checkpoint whose headers have been read and checked: a [`Catalogue`] whose tensors have roles.
pub struct Checkpoint {
    catalogue: Catalogue,
    config: Value,
    family: &'static Family,
    spec: Spec,
    by_role: HashMap<Role, usize>,
}

impl Checkpoint {
    /// Reads config, index and headers from `source` and checks them.
    ///
    /// # Errors
    /// Names the tensor and the file that contradict each other, and what was expected.
    pub fn open(source: Box<dyn Source>) -> Result<Self> {
        Self::new(Headers::read(source.into())?)
    }

    /// Holds headers that have been read against each other.
    pub(crate) fn new(headers: Headers) -> Result<Self> {
        catalogue::checkpoint(headers)
    }

    /// config.json as it is, key order kept.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The model family.
    pub fn family(&self) -> &'static Family {
        self.family
    }

    /// Resolved hyper-parameters.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Position of the tensor with this role.
    pub fn by_role(&self, role: Role) -> Option<usize> {
        self.by_role.get(&role).copied()
    }
}

impl Deref for Checkpoint {
    type Target = Catalogue;

    fn deref(&self) -> &Catalogue {
        &self.catalogue
    }
}
