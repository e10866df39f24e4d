//! The GGUF families with grouped-query attention: what llama.cpp knows of each without being told.
//!
//! A family is one row of [`FAMILIES`].
//!
//! Source: llama.cpp `src/models/{llama,qwen2,qwen2moe,qwen3,qwen3moe,phi3,gemma2,gemma3,glm4-moe}.cpp`,
//! `src/llama-model.cpp` (`llama_model_rope_type`).

use super::gguf_keys::ARCHITECTURE_KEY;
use crate::arch::{Activation, Pairing};
use crate::error::{Error, Result};

/// What files of a family have in common.
pub(super) struct Family {
    /// `general.architecture`.
    pub(super) architecture: &'static str,
    pub(super) pairing: Pairing,
    pub(super) activation: Activation,
    pub(super) experts: Experts,
    pub(super) head_norms: HeadNorms,
    pub(super) windows: Windows,
    /// What is particular to Gemma: scaled embeddings, norms behind the blocks, and the number of layers of the model
    /// whose queries are scaled by hidden / heads.
    pub(super) gemma: Option<usize>,
    /// Caps of scores and logits where the file does not say.
    pub(super) caps: Option<(f64, f64)>,
    /// Whether files may hold divisors of frequencies.
    pub(super) has_divisors: bool,
    /// Name of the norm before the feed-forward block.
    pub(super) ffn_norm: &'static str,
    /// Whether gate and up projection of a dense block are one matrix.
    pub(super) is_gate_in_up: bool,
    /// Whether dense blocks may have biases.
    pub(super) has_dense_biases: bool,
    /// Whether the output head may have a bias.
    pub(super) has_output_bias: bool,
    /// Whether positions may have dimensions (M-RoPE).
    pub(super) has_sections: bool,
}

/// Experts of a family, in every layer if there are any.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Experts {
    /// None.
    Never,
    /// As many as the file says, perhaps none: softmax, weights normalized, as wide as a dense block.
    Perhaps,
    /// Softmax, weights normalized.
    Normalized,
    /// Softmax; a shared expert with a gate.
    GatedShared,
    /// Behind some dense layers; sigmoid and bias; shared experts.
    Biased,
}

/// Norms of query and key heads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadNorms {
    Never,
    Always,
    /// Where a layer has them.
    Perhaps,
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

/// A dense family with the most common choices.
const fn plain(architecture: &'static str) -> Family {
    Family {
        architecture,
        pairing: Pairing::Halves,
        activation: Activation::Silu,
        experts: Experts::Never,
        head_norms: HeadNorms::Never,
        windows: Windows::Never,
        gemma: None,
        caps: None,
        has_divisors: false,
        ffn_norm: "ffn_norm",
        is_gate_in_up: false,
        has_dense_biases: false,
        has_output_bias: false,
        has_sections: false,
    }
}

/// Every family of this kind that can be evaluated.
const FAMILIES: &[Family] = &[
    Family {
        pairing: Pairing::Adjacent,
        experts: Experts::Perhaps,
        has_divisors: true,
        has_dense_biases: true,
        ..plain("llama")
    },
    Family { has_output_bias: true, ..plain("qwen2") },
    Family { experts: Experts::GatedShared, ..plain("qwen2moe") },
    Family { head_norms: HeadNorms::Always, ..plain("qwen3") },
    Family { head_norms: HeadNorms::Always, experts: Experts::Normalized, ..plain("qwen3moe") },
    Family { windows: Windows::Every, has_divisors: true, is_gate_in_up: true, ..plain("phi3") },
    Family {
        activation: Activation::GeluTanh,
        windows: Windows::AllBut(2, Some(4096)),
        gemma: Some(46),
        caps: Some((50.0, 30.0)),
        ..plain("gemma2")
    },
    Family {
        activation: Activation::GeluTanh,
        head_norms: HeadNorms::Always,
        windows: Windows::AllBut(6, None),
        gemma: Some(62),
        ..plain("gemma3")
    },
    Family {
        experts: Experts::Biased,
        head_norms: HeadNorms::Perhaps,
        ffn_norm: "post_attention_norm",
        has_sections: true,
        ..plain("glm4moe")
    },
];

/// Finds the family of `file`.
///
/// # Errors
/// [`Error::Unsupported`] naming the families there are.
pub(super) fn find(architecture: &str, file: &str) -> Result<&'static Family> {
    FAMILIES.iter().find(|family| family.architecture == architecture).ok_or_else(|| {
        let known: Vec<&str> = FAMILIES.iter().map(|family| family.architecture).collect();
        Error::Unsupported {
            what: format!("{file}: {ARCHITECTURE_KEY} {architecture:?}"),
            hint: format!(
                "this version evaluates GGUF files of {}, {}",
                super::gguf_latent::ARCHITECTURE,
                known.join(", ")
            ),
        }
    })
}
