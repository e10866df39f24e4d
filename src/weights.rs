//! Any model this crate reads or writes, ready to be evaluated: a Hugging Face checkpoint, a GGUF file or
//! split set, an MLX directory. All of them are [`WeightStore`]s and have a [`Tokenizer`].

use std::path::Path;

use crate::checkpoint::{Checkpoint, WeightStore};
use crate::error::{Error, Result};
use crate::source::{LocalDirectory, Source};
use crate::tokenizer::{SPECIAL_TOKENS_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer};

mod gguf;
mod gguf_aside;
mod gguf_cuts;
mod gguf_patterns;
mod gguf_special;
mod gguf_tokenizer;
mod mlx;
mod packed;

/// A model whose headers have been read and checked.
pub struct Model {
    weights: Weights,
}

enum Weights {
    Checkpoint(Box<Checkpoint>),
    Gguf(gguf::Gguf),
    Mlx(packed::PackedStore),
}

impl Model {
    /// Reads the headers of what is at `path`.
    ///
    /// # Errors
    /// When it is none of the three, is damaged or cut off, or is of an unknown architecture.
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(Error::io(path, "open"))?;
        if metadata.is_dir() {
            return Self::from_source(Box::new(LocalDirectory::open(path)?));
        }
        if path.extension().is_some_and(|extension| extension == "gguf") {
            return Ok(Self { weights: Weights::Gguf(gguf::open(path)?) });
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
    /// As [`Model::open`].
    pub fn from_source(source: Box<dyn Source>) -> Result<Self> {
        let weights = if mlx::is_mlx(&*source)? {
            Weights::Mlx(mlx::open(source)?)
        } else {
            Weights::Checkpoint(Box::new(Checkpoint::open(source)?))
        };
        Ok(Self { weights })
    }

    /// Its weights.
    pub fn store(&self) -> &dyn WeightStore {
        match &self.weights {
            Weights::Checkpoint(checkpoint) => &**checkpoint,
            Weights::Gguf(gguf) => &gguf.store,
            Weights::Mlx(store) => store,
        }
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// When there is none, or it cannot be used.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.weights {
            Weights::Checkpoint(checkpoint) => tokenizer(checkpoint.source()),
            Weights::Gguf(gguf) => gguf_tokenizer::rebuild(&gguf.metadata, &gguf.name),
            Weights::Mlx(store) => tokenizer(store.source()),
        }
    }
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
