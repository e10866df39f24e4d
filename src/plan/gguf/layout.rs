//! Places the tensors in one file or in splits.
//!
//! Splits are what `llama-gguf-split --split-max-size` makes of the single file; their prefix is
//! the output's name without `.gguf`. Source: llama.cpp `tools/gguf-split/gguf-split.cpp`.

use requant_formats::container::gguf::{GgmlType, Metadata, TensorSpec, split, write_header};
use requant_formats::layout::ROW_MAJOR;

use super::imatrix;
use super::names::Planned;
use crate::error::{Error, Result};
use crate::plan::{Options, OutputFile, OutputTensor, Placement};

/// A tensor of the result with its type, and the rule that gave it, if one did.
pub(super) struct Typed {
    pub(super) planned: Planned,
    pub(super) ggml_type: GgmlType,
    pub(super) rule: Option<usize>,
    /// Whether the source has it in this type already.
    pub(super) is_stored: bool,
}

/// Builds headers and placements for `tensors`, each with its type, in file order.
///
/// # Errors
/// What GGUF or llama-gguf-split does not allow: a split smaller than the first tensor, for
/// instance.
pub(super) fn place(
    metadata: Metadata,
    tensors: Vec<Typed>,
    options: &Options,
) -> Result<(Vec<OutputTensor>, Vec<OutputFile>)> {
    let refuse = |error| Error::format(&options.output_name)(error);
    let specs = tensors.iter().map(|typed| TensorSpec {
        name: typed.planned.name.clone(),
        shape: typed.planned.ne(),
        ggml_type: typed.ggml_type,
    });
    let parts = match options.split_max_bytes {
        None => vec![split::Part { metadata, tensors: specs.collect() }],
        Some(limit) => split::plan(metadata, specs.collect(), limit).map_err(refuse)?,
    };

    let is_split = options.split_max_bytes.is_some();
    let prefix = options.output_name.strip_suffix(".gguf").unwrap_or(&options.output_name);
    // split::plan refuses more than 65,535 files.
    let count = u16::try_from(parts.len()).unwrap_or(u16::MAX);
    let mut files = Vec::with_capacity(parts.len());
    let mut placements = Vec::with_capacity(tensors.len());
    for (number, part) in (0..count).zip(parts) {
        let (gguf, header) = write_header(part.metadata, part.tensors).map_err(refuse)?;
        placements.extend(gguf.tensors.iter().map(|tensor| Placement {
            file: usize::from(number),
            offset_bytes: gguf.data_offset_bytes + tensor.offset_bytes,
            len_bytes: tensor.len_bytes,
        }));
        let name = if is_split { split::file_name(prefix, number, count) } else { String::new() };
        files.push(OutputFile { name, header, len_bytes: gguf.file_len_bytes() });
    }

    let outputs = tensors.into_iter().zip(placements).map(|(typed, placement)| {
        let Typed { planned, ggml_type, rule, is_stored } = typed;
        let codec = ggml_type.codec().ok_or_else(|| Error::Unsupported {
            what: format!("tensor {}: type {ggml_type}", planned.name),
            hint: "this version has no encoder for it".into(),
        })?;
        let importance = imatrix::of(options, &planned, ggml_type)?;
        if importance.is_none() && !is_stored {
            imatrix::check_not_needed(options, &planned.name, ggml_type)?;
        }
        Ok(OutputTensor {
            names: vec![planned.name],
            shape: planned.shape,
            type_name: ggml_type.to_string(),
            codec,
            layout: ROW_MAJOR,
            rounding: planned.rounding,
            pieces: planned.pieces,
            scale_sources: Vec::new(),
            is_weight: planned.content.is_none(),
            content: planned.content,
            placements: vec![placement],
            rule,
            importance,
        })
    });
    Ok((outputs.collect::<Result<_>>()?, files))
}
