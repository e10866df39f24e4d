//! Architectures of GGUF files: what llama.cpp knows of each without being told.
//!
//! - `keys`: typed access to the hyper-parameters of a file
//! - `latent`, `grouped` (with `rotary`): the keys of a file to a [`Spec`]
//! - `write`: a [`Spec`] to the keys of a file
//!
//! Source: llama.cpp `src/models/*.cpp`, `src/llama-model.cpp` (`llama_model_rope_type`, `load_hparams`, `LLM_TYPE_70B`).

use requant_formats::container::gguf::{Metadata, Value};
use serde_json::Value as Json;

use super::{Activation, Config, Family, Pairing, Presence, Spec, architectures, of_architecture};
use crate::error::{Error, Result};

mod grouped;
mod keys;
mod latent;
mod rotary;
pub(super) mod write;

pub use keys::Contents;
pub(super) use write::Keys as Written;

/// Key of the architecture's name.
const ARCHITECTURE_KEY: &str = "general.architecture";
/// Layers that make llama.cpp take a model of some architectures for one of 70 billion parameters.
const LAYERS_OF_70B: usize = 80;

/// What files of an architecture have in common.
pub struct Architecture {
    /// `general.architecture`.
    pub name: &'static str,
    pub(super) attention: Kind,
    pub(super) pairing: Pairing,
    pub(super) activation: Activation,
    pub(super) experts: Experts,
    pub(super) head_norms: Presence,
    /// Whether norms of queries and keys go over all heads together.
    pub(super) whole_norms: bool,
    /// Whether heads have a score for no token.
    pub(super) sinks: Presence,
    /// Whether YaRN's range ends at whole numbers, in the models themselves.
    pub(super) truncates: bool,
    pub(super) windows: Windows,
    /// What is particular to Gemma: scaled embeddings, norms behind the blocks, and the number of layers of the model
    /// whose queries are scaled by hidden / heads.
    pub(super) gemma: Option<usize>,
    /// Caps of scores and logits where the file does not say.
    pub(super) caps: Option<(f64, f64)>,
    /// Whether files may hold divisors of frequencies.
    pub(super) has_divisors: bool,
    pub(super) dense_biases: Presence,
    /// Whether the output head may have a bias.
    pub(super) has_output_bias: bool,
    /// Whether positions may have dimensions (M-RoPE).
    pub(super) has_sections: bool,
    /// Whether a model is taken for one of 70 billion parameters, of those with 80 layers.
    pub(super) is_70b: fn(&Size) -> bool,
    /// Whether the converter keeps prediction layers.
    pub(super) keeps_predictors: bool,
    /// Whether files begin with the keys of every architecture.
    pub(super) states_common: bool,
    /// What the converter does with tokenizers beyond reading tokenizer.json.
    pub vocabulary: Vocabulary,
    /// Writes the keys of this architecture behind those of every one.
    pub(super) keys: fn(&mut Written) -> Result<()>,
    /// Refuses what llama.cpp would not open though the keys are right.
    pub(super) loadable: fn(&Spec) -> Result<()>,
}

/// What llama.cpp's converter does with the tokenizers of an architecture beyond reading tokenizer.json.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vocabulary {
    /// It takes SentencePiece's tokenizer.model, where there is one, instead.
    pub prefers_sentence_piece: bool,
    /// It says how an embedding model pools, which modules.json shows.
    pub states_pooling: bool,
    /// Without one it writes no file.
    pub needs_sentence_piece: bool,
    /// Rows of the embedding beyond the tokens of tokenizer.json are cut off, which it counts twice where they are added.
    pub cuts_embedding: bool,
    /// It keeps `add_prefix_space` of tokenizer_config.json.
    pub states_space_prefix: bool,
    /// It says of SentencePiece's vocabulary that no space is put before a text.
    pub denies_space_prefix: bool,
    /// Models called so become classifiers there.
    pub rerankers: &'static [&'static str],
    /// Kinds of special tokens that it finds by their text, which have to be there.
    pub special: &'static [(&'static str, &'static str)],
    /// Models with a vocabulary of this size begin without a token for it, whatever their files say.
    pub size_without_bos: Option<usize>,
}

/// Kinds of attention.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Latent,
    Grouped,
}

/// Experts of an architecture with grouped queries, in every layer if there are any.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Experts {
    /// None.
    Never,
    /// As many as the file says, perhaps none: softmax, weights normalized, as wide as a dense block.
    Perhaps,
    /// Softmax, weights normalized.
    Normalized,
    /// Softmax, weights as they are, as wide as a dense block.
    Plain,
    /// Sigmoid and bias, weights normalized.
    Sigmoid,
    /// Softmax of the chosen; biases of router and experts.
    Chosen,
    /// Softmax; a shared expert with a gate.
    GatedShared,
    /// Behind some dense layers; sigmoid and bias; shared experts.
    Biased,
}

/// Layers with a sliding window.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Windows {
    Never,
    /// All, if the file has a window.
    Every,
    /// All but every `.0`th, with this window where the file has none.
    AllBut(usize, Option<usize>),
}

/// What llama-quantize asks of a model's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Layers, prediction layers included.
    pub blocks: usize,
    /// Prediction layers.
    pub predictors: usize,
    /// Routed experts.
    pub experts: usize,
    /// Query heads of the first layer.
    pub heads: usize,
    /// Its heads of keys and values.
    pub kv_heads: usize,
}

impl Size {
    /// Of a model that is about to be written, with its prediction layers if the architecture keeps them.
    pub fn of(architecture: &Architecture, spec: &Spec) -> Self {
        let heads = spec.heads();
        let predictors = architecture.predictors(spec);
        Self {
            blocks: spec.layers + predictors,
            predictors,
            experts: spec.experts(),
            heads: heads.query,
            kv_heads: heads.key_value,
        }
    }

    /// Whether four query heads or more share a key and a value (`n_gqa`).
    pub fn shares_heads(&self) -> bool {
        self.heads.checked_div(self.kv_heads).is_some_and(|shared| shared >= 4)
    }
}

impl Architecture {
    /// A dense architecture with grouped queries and the most common choices.
    pub(super) const fn plain(name: &'static str) -> Self {
        Self {
            name,
            attention: Kind::Grouped,
            pairing: Pairing::Halves,
            activation: Activation::Silu,
            experts: Experts::Never,
            head_norms: Presence::Never,
            whole_norms: false,
            sinks: Presence::Never,
            truncates: true,
            windows: Windows::Never,
            gemma: None,
            caps: None,
            has_divisors: false,
            dense_biases: Presence::Never,
            has_output_bias: false,
            has_sections: false,
            is_70b: |_| false,
            keeps_predictors: false,
            states_common: true,
            vocabulary: Vocabulary {
                prefers_sentence_piece: false,
                needs_sentence_piece: false,
                cuts_embedding: false,
                states_pooling: false,
                states_space_prefix: false,
                denies_space_prefix: false,
                rerankers: &[],
                special: &[],
                size_without_bos: None,
            },
            keys: |_| Ok(()),
            loadable: |_| Ok(()),
        }
    }

    /// Whether layers with a sliding window have rotary positions of their own, which are not scaled.
    fn has_local_base(&self) -> bool {
        matches!(self.windows, Windows::AllBut(..)) && self.caps.is_none() && self.gemma.is_some()
    }

    /// Whether files keep prediction layers.
    pub fn keeps_predictors(&self) -> bool {
        self.keeps_predictors
    }

    /// Prediction layers that a file counts.
    fn predictors(&self, spec: &Spec) -> usize {
        if self.keeps_predictors { spec.mtp_layers } else { 0 }
    }

    /// Whether llama.cpp takes a model for one of 70 billion parameters (`LLM_TYPE_70B`).
    pub fn takes_for_70b(&self, size: &Size) -> bool {
        size.blocks.checked_sub(size.predictors) == Some(LAYERS_OF_70B) && (self.is_70b)(size)
    }

    /// Reads and checks the hyper-parameters of `file`.
    ///
    /// # Errors
    /// A key that is missing, out of range, of the wrong type or unknown; what this version cannot evaluate.
    pub fn spec(&self, metadata: &Metadata, file: &str, contents: &Contents) -> Result<Spec> {
        match self.attention {
            Kind::Latent => latent::spec(self, metadata, file, contents),
            Kind::Grouped => grouped::spec(self, metadata, file, contents),
        }
    }

    /// Appends the hyper-parameters of a checkpoint to `metadata`, key for key as llama.cpp's converter does.
    ///
    /// # Errors
    /// Names the key of config.json whose value has the wrong type or is out of range, or beyond what llama.cpp opens.
    pub fn write(&self, metadata: &mut Metadata, config: &Json, spec: &Spec) -> Result<()> {
        write::add(self, metadata, &Config::new(config), spec)?;
        write::check_loadable(self, metadata, spec)
    }
}

/// The family of a file that is to be evaluated.
///
/// # Errors
/// [`Error::Unsupported`] naming the architectures there are.
pub fn architecture_of(metadata: &Metadata, file: &str) -> Result<&'static Family> {
    let name = name_of(metadata);
    of_architecture(name).ok_or_else(|| Error::Unsupported {
        what: format!("{file}: {ARCHITECTURE_KEY} {name:?}"),
        hint: format!("this version evaluates GGUF files of {}", architectures().join(", ")),
    })
}

/// The name of a file's architecture.
pub(super) fn name_of(metadata: &Metadata) -> &str {
    metadata.get(ARCHITECTURE_KEY).and_then(Value::as_str).unwrap_or("(none)")
}
