//! A model whose headers have been read, whatever it is stored as: a Hugging Face checkpoint, a GGUF file or split set, an
//! MLX directory. There is one opener, and what it gives is what plans are made from and what is evaluated.
//!
//! Opening reads headers only. What a forward pass needs beside them is worked out when it is asked for the first time: a
//! GGUF file of which that fails can still become another GGUF type.

use std::ops::Deref;
use std::path::Path;
use std::sync::OnceLock;

use requant_formats::container::gguf::Value as GgufValue;
use serde_json::Value;

use crate::checkpoint::{Catalogue, Checkpoint, GgufModel, Headers, WeightStore};
use crate::error::{Error, Result};
use crate::family::{self, Ecosystem, Family, Spec};
use crate::source::{self, Source};
use crate::tokenizer::{SPECIAL_TOKENS_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer};

mod gguf;
mod gguf_aside;
mod gguf_cuts;
mod gguf_patterns;
mod gguf_special;
mod gguf_tokenizer;
mod mlx;
mod packed;

/// An opened model.
pub struct Opened {
    container: Container,
    /// Weights that do not lie as a checkpoint has them.
    packed: OnceLock<packed::PackedStore>,
}

enum Container {
    Checkpoint(Box<Checkpoint>),
    Gguf(GgufModel),
    Mlx(Box<Mlx>),
}

/// An MLX model.
struct Mlx {
    catalogue: Catalogue,
    config: Value,
    family: &'static Family,
    spec: Spec,
}

impl Opened {
    /// Reads the headers of what is at `path`.
    ///
    /// # Errors
    /// When it is none of the three, or is damaged or cut off; a checkpoint or MLX model of an unknown family.
    pub fn open(path: &Path) -> Result<Self> {
        if is_gguf(path) {
            return Ok(GgufModel::open(path)?.into());
        }
        let metadata = std::fs::metadata(path).map_err(Error::io(path, "open"))?;
        if metadata.is_dir() {
            return Self::from_source(source::open_directory(path)?);
        }
        let message = format!(
            "{}: neither a directory with a checkpoint or an MLX model nor a .gguf file",
            path.display()
        );
        Err(Error::Request(message))
    }

    /// A checkpoint or an MLX model, from wherever its files are.
    ///
    /// # Errors
    /// As [`Opened::open`].
    pub fn from_source(source: Box<dyn Source>) -> Result<Self> {
        let headers = Headers::read(source.into())?;
        if !headers.is_mlx() {
            return Ok(Checkpoint::new(headers)?.into());
        }
        let Headers { source, config, family, spec, tensors, .. } = headers;
        let catalogue = Catalogue::new(source, tensors);
        Ok(Self::new(Container::Mlx(Box::new(Mlx { catalogue, config, family, spec }))))
    }

    /// The same, if it can be evaluated.
    ///
    /// # Errors
    /// As [`Opened::store`].
    pub fn evaluable(self) -> Result<Self> {
        self.store()?;
        Ok(self)
    }

    fn new(container: Container) -> Self {
        Self { container, packed: OnceLock::new() }
    }

    /// Its tensors.
    pub fn catalogue(&self) -> &Catalogue {
        match &self.container {
            Container::Checkpoint(checkpoint) => checkpoint,
            Container::Gguf(model) => model.catalogue(),
            Container::Mlx(model) => &model.catalogue,
        }
    }

    /// What a checkpoint has beside its tensors, when it is one.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        match &self.container {
            Container::Checkpoint(checkpoint) => Some(checkpoint),
            Container::Gguf(_) | Container::Mlx(_) => None,
        }
    }

    /// What a GGUF file has beside its tensors, when it is one.
    pub fn gguf(&self) -> Option<&GgufModel> {
        match &self.container {
            Container::Gguf(model) => Some(model),
            Container::Checkpoint(_) | Container::Mlx(_) => None,
        }
    }

    /// Whose names and arrangement its tensors have.
    pub fn ecosystem(&self) -> Ecosystem {
        match &self.container {
            Container::Checkpoint(_) => Ecosystem::Hf,
            Container::Gguf(_) => Ecosystem::Gguf,
            Container::Mlx(_) => Ecosystem::Mlx,
        }
    }

    /// The family that it is of.
    ///
    /// # Errors
    /// When a GGUF file has an architecture that is not known.
    pub fn family(&self) -> Result<&'static Family> {
        match &self.container {
            Container::Checkpoint(checkpoint) => Ok(checkpoint.family()),
            Container::Mlx(model) => Ok(model.family),
            Container::Gguf(model) => {
                let name = model.metadata().get("general.architecture").and_then(GgufValue::as_str);
                family::of_architecture(name.unwrap_or_default()).ok_or_else(|| Error::Unsupported {
                    what: format!("{}: general.architecture {name:?}", gguf::name(model)),
                    hint: format!("known are {}", family::architectures().join(", ")),
                })
            }
        }
    }

    /// Its weights, by what they are for.
    ///
    /// # Errors
    /// When it cannot be evaluated: hyper-parameters or tensors of a GGUF file or an MLX model that are missing,
    /// contradict each other, or are unknown.
    pub fn store(&self) -> Result<&dyn WeightStore> {
        if let Container::Checkpoint(checkpoint) = &self.container {
            return Ok(&**checkpoint);
        }
        if let Some(store) = self.packed.get() {
            return Ok(store);
        }
        let store = match &self.container {
            Container::Gguf(model) => gguf::store(model)?,
            Container::Mlx(model) => mlx::store(&model.catalogue, &model.config, model.family, &model.spec)?,
            // Returned above.
            Container::Checkpoint(checkpoint) => return Ok(&**checkpoint),
        };
        Ok(self.packed.get_or_init(|| store))
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// When there is none, or it cannot be used.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.container {
            Container::Checkpoint(_) | Container::Mlx(_) => tokenizer(self.catalogue().source()),
            Container::Gguf(model) => gguf_tokenizer::rebuild(model.metadata(), &gguf::name(model)),
        }
    }
}

impl From<Checkpoint> for Opened {
    fn from(checkpoint: Checkpoint) -> Self {
        Self::new(Container::Checkpoint(Box::new(checkpoint)))
    }
}

impl From<GgufModel> for Opened {
    fn from(model: GgufModel) -> Self {
        Self::new(Container::Gguf(model))
    }
}

impl Deref for Opened {
    type Target = Catalogue;

    fn deref(&self) -> &Catalogue {
        self.catalogue()
    }
}

/// Whether `path` is that of a GGUF file, there or not: no repository has such a name.
pub fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gguf") && !path.is_dir()
}

/// Values of `tokenizer.ggml.pre` that llama.cpp reads.
pub fn pre_tokenizers() -> impl Iterator<Item = &'static str> {
    gguf_cuts::names()
}

/// The tokenizer that lies beside the weights of `source`.
///
/// # Errors
/// When there is none, or one of its files cannot be used; the file is named.
pub fn tokenizer(source: &dyn Source) -> Result<Tokenizer> {
    let Some(json) = source.read_small(TOKENIZER_FILE)? else {
        let message = format!("not found in {}: text cannot be turned into tokens", source.location());
        return Err(Error::checkpoint(TOKENIZER_FILE, message));
    };
    let config = source.read_small(TOKENIZER_CONFIG_FILE)?;
    let special_tokens = source.read_small(SPECIAL_TOKENS_FILE)?;
    Tokenizer::new(&json, config.as_deref(), special_tokens.as_deref())
}
