//! An importance matrix beside a conversion, as `llama-quantize --imatrix FILE` uses it.
//!
//! - A tensor that the file says nothing about is rounded as without one.
//! - Sums for another number of columns are an error, but for the embeddings, where they are left alone.
//! - Tensors in the codebooks of less than three bits and of IQ3_XXS need one; only embeddings and the output head do without,
//!   where ggml can.
//! - Four keys at the end of the metadata say which file it was; longer texts are cut off at 127 bytes, as there.
//!
//! Source: llama.cpp `tools/quantize/quantize.cpp`, `src/llama-quant.cpp` (`llama_model_quantize_impl`,
//! `tensor_requires_imatrix`), `ggml/src/ggml.c` (`ggml_quantize_requires_imatrix`).

use requant_formats::container::gguf::{GgmlType, Metadata};

use super::mix;
use super::names::Planned;
use crate::error::{Error, Result};
use crate::plan::{Importance, Options};

/// Most bytes of a text in the metadata.
const MAX_TEXT_BYTES: usize = 127;

/// Says which importance matrix was used, if one was.
pub(super) fn add(metadata: &mut Metadata, options: &Options) {
    let Some(imatrix) = &options.imatrix else { return };
    metadata.set("quantize.imatrix.file", cut(&imatrix.path().to_string_lossy()));
    if let Some(dataset) = imatrix.datasets.first() {
        metadata.set("quantize.imatrix.dataset", cut(dataset));
    }
    metadata.set("quantize.imatrix.entries_count", imatrix.names().len() as u32);
    if imatrix.chunks > 0 {
        metadata.set("quantize.imatrix.chunks_count", imatrix.chunks);
    }
}

/// Whether llama-quantize makes matrices of this type with an importance matrix only.
pub(super) fn is_needed(ggml_type: GgmlType) -> bool {
    is_always_needed(ggml_type) || matches!(ggml_type, GgmlType::IQ1_M | GgmlType::IQ2_S | GgmlType::IQ3_XXS)
}

/// Whether ggml does.
fn is_always_needed(ggml_type: GgmlType) -> bool {
    matches!(ggml_type, GgmlType::IQ1_S | GgmlType::IQ2_XXS | GgmlType::IQ2_XS)
}

/// Refuses to make the tensor `name`, of whose columns nothing is known, in a type that needs that.
///
/// # Errors
/// Names the tensor, and says how an importance matrix is made.
pub(super) fn check_not_needed(options: &Options, name: &str, ggml_type: GgmlType) -> Result<()> {
    let is_exempt = mix::is_embedding_or_head(name) && !is_always_needed(ggml_type);
    if !is_needed(ggml_type) || is_exempt {
        return Ok(());
    }
    Err(Error::Request(match &options.imatrix {
        None => format!(
            "{name} becomes {ggml_type}, which is made with an importance matrix only: `requant calibrate MODEL --text FILE -o \
             imatrix.gguf` makes one, --imatrix imatrix.gguf uses it"
        ),
        Some(imatrix) => format!(
            "{}: nothing about {name}, which becomes {ggml_type}, and this is made with an importance matrix only: make one \
             that knows it (`requant calibrate`), or give it another type: --tensor-type '{name}=q2_k'",
            imatrix.path().display()
        ),
    }))
}

fn cut(text: &str) -> String {
    let end = (0..=text.len().min(MAX_TEXT_BYTES)).rev().find(|&end| text.is_char_boundary(end));
    text[..end.unwrap_or(0)].to_owned()
}

/// What is known of the columns of `planned`, which becomes `ggml_type`.
///
/// # Errors
/// Sums for another number of columns.
pub(super) fn of(options: &Options, planned: &Planned, ggml_type: GgmlType) -> Result<Option<Importance>> {
    let Some(imatrix) = &options.imatrix else { return Ok(None) };
    let Some(found) = imatrix.len(&planned.name).filter(|_| ggml_type.block_len_elems() > 1) else {
        return Ok(None);
    };
    let extent = |at: usize| planned.ne().get(at).copied().unwrap_or(1);
    let expected = extent(0) * extent(2);
    if found as u64 != expected {
        if planned.name == "token_embd.weight" {
            return Ok(None);
        }
        let message = format!(
            "{}: found {found} columns, expected {expected} ({} in {} matrices): it was made of another model",
            planned.name,
            extent(0),
            extent(2)
        );
        return Err(Error::checkpoint(imatrix.path().display().to_string(), message));
    }
    let weighs = ggml_type.codec().is_some_and(requant_formats::Codec::weighs);
    Ok(weighs.then(|| Importance { imatrix: imatrix.clone(), name: planned.name.clone() }))
}
