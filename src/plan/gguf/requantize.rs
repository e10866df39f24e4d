//! A GGUF source to another GGUF type: the bytes of `llama-quantize [--allow-requantize] IN OUT TYPE`.
//!
//! - Metadata is the source's, `general.quantization_version` and `general.file_type` moved to its end; a split
//!   set becomes one file. Strings end at their first NUL, as they do there.
//! - Tensors are sorted by layer and name. One that has the chosen type already is copied, and so is one that
//!   is never quantized (norms, routers, vectors), whatever its type.
//! - Any other tensor that is quantized already, Q8_0 included, needs [`Options::allow_requantize`].
//! - Rules mean what `llama-quantize --tensor-type` means.
//! - The choice of types depends on the architecture; for those of the known families it was compared with
//!   llama-quantize's, type by type (`fixtures/goldens/requantize`).
//!
//! Source: llama.cpp `src/llama-quant.cpp` (`llama_model_quantize_impl`), `src/models/*.cpp` (`LLM_TYPE_70B`).

use requant_formats::container::gguf::{
    ALIGNMENT_KEY, Array, DEFAULT_ALIGNMENT_BYTES, GgmlType, Metadata, Value, split,
};

use super::file_type::FileType;
use super::layout::Typed;
use super::names::Planned;
use super::{QUANTIZATION_VERSION, imatrix, layout, mix, overrides};
use crate::checkpoint::GgufModel;
use crate::error::{Error, Result};
use crate::family::{self, Architecture, Size, Turn};
use crate::plan::{Blueprint, Choice, Choices, Options, OutputTensor, Piece, Rounding};

/// Works out the file of type `file_type`.
///
/// # Errors
/// An architecture whose mixes are not known, metadata that lacks what they ask for, tensors that would be
/// quantized a second time without leave, what [`layout::place`] refuses.
pub(super) fn blueprint(file_type: &FileType, source: &GgufModel, options: &Options) -> Result<Blueprint> {
    let path = source.path().display();
    if let Some(pre) = &options.tokenizer_pre {
        let message =
            format!("--tokenizer-pre {pre}: {path} has a vocabulary, which is carried over as it is");
        return Err(Error::Request(message));
    }
    let keys = Keys { metadata: source.metadata(), place: path.to_string() };
    let architecture = keys.architecture()?;
    let size = keys.size(architecture.name)?;
    let tensors = source.catalogue().tensors();

    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by(|&a, &b| {
        let key = |id: usize| (mix::layer(&tensors[id].name), &tensors[id].name);
        key(a).cmp(&key(b))
    });
    let planned: Vec<Planned> = order
        .iter()
        .map(|&id| Planned {
            name: tensors[id].name.clone(),
            shape: tensors[id].shape.clone(),
            pieces: vec![Piece {
                source: id,
                rows: 0..tensors[id].matrix().0,
                turn: Turn::None,
                unscaled: false,
            }],
            rounding: Rounding::Exact,
            content: None,
        })
        .collect();
    let stored: Vec<GgmlType> = order.iter().map(|&id| source.types()[id]).collect();
    let mut rules = overrides::resolve(&options.rules, file_type, source.catalogue(), &planned)?;
    for (found, stored) in rules.iter_mut().zip(&stored) {
        // What a recipe ignores stays as it is.
        if let Some((number, ggml_type)) = found
            && options.rules.get(*number).is_some_and(|rule| rule.choice == Choice::Ignore)
        {
            *ggml_type = *stored;
        }
    }
    let forced: Vec<Option<GgmlType>> = rules.iter().map(|found| found.map(|found| found.1)).collect();
    let mix = Mix { file_type, architecture, size, forced: &forced, has_imatrix: options.imatrix.is_some() };
    let types = mix.types(&planned, &stored, &keys.place)?;
    if !options.allow_requantize {
        check_not_again(file_type, &planned, &stored, &types, &keys.place)?;
    }
    let mut metadata = metadata(source.metadata(), file_type)?;
    imatrix::add(&mut metadata, options);
    let typed = planned.into_iter().zip(types).zip(rules).zip(stored).map(
        |(((planned, ggml_type), found), stored)| Typed {
            planned,
            ggml_type,
            rule: found.map(|found| found.0),
            is_stored: stored == ggml_type,
        },
    );
    let typed = typed.collect();
    let (tensors, files) = layout::place(metadata, typed, options)?;
    Ok(Blueprint {
        is_directory: false,
        tensors,
        files,
        sidecars: Vec::new(),
        dropped: Vec::new(),
        kept: Vec::new(),
    })
}

/// Types that a budget may choose from for `tensors`, which are the result's.
pub(super) fn choices(source: &GgufModel, options: &Options, tensors: &[OutputTensor]) -> Vec<Choices> {
    let stored = |output: &OutputTensor| {
        let piece = output.pieces.first()?;
        source.types().get(piece.source).copied()
    };
    let tied_embeddings = !tensors.iter().any(|tensor| tensor.names[0] == mix::OUTPUT);
    let is_head = |name: &str| !options.choose_head && mix::is_head(name, tied_embeddings);
    overrides::choices_again(tensors, stored, is_head, options.allow_requantize)
}

/// What decides on types.
struct Mix<'a> {
    file_type: &'a FileType,
    architecture: &'static Architecture,
    size: Size,
    /// Types that rules give, in file order.
    forced: &'a [Option<GgmlType>],
    has_imatrix: bool,
}

impl Mix<'_> {
    /// The type of each tensor, in file order; `stored` are those that they have.
    fn types(&self, planned: &[Planned], stored: &[GgmlType], place: &str) -> Result<Vec<GgmlType>> {
        let Self { file_type, architecture, size, forced, has_imatrix } = *self;
        let beyond =
            planned.iter().find(|tensor| mix::layer(&tensor.name).is_some_and(|layer| layer >= size.blocks));
        if let Some(tensor) = beyond {
            let message = format!(
                "tensor {} lies beyond the {} layers of {}.block_count",
                tensor.name, size.blocks, architecture.name
            );
            return Err(Error::checkpoint(place, message));
        }
        let model = mix::Model {
            layers: size.blocks,
            experts: size.experts,
            tied_embeddings: !planned.iter().any(|tensor| tensor.name == mix::OUTPUT),
            shared_heads: size.shares_heads(),
            is_70b: architecture.takes_for_70b(&size),
            has_imatrix,
        };
        let extents: Vec<Vec<u64>> = planned.iter().map(Planned::ne).collect();
        let named: Vec<(&str, &[u64])> =
            planned.iter().zip(&extents).map(|(tensor, ne)| (tensor.name.as_str(), ne.as_slice())).collect();
        let chosen = mix::types(file_type, model, &named, forced)?.into_iter().zip(&named).zip(stored);
        Ok(chosen
            .map(
                |((chosen, (name, ne)), &stored)| {
                    if mix::can_be_quantized(name, ne) { chosen } else { stored }
                },
            )
            .collect())
    }
}

/// No tensor is quantized a second time.
fn check_not_again(
    file_type: &FileType,
    planned: &[Planned],
    stored: &[GgmlType],
    types: &[GgmlType],
    place: &str,
) -> Result<()> {
    let again = |((_, stored), chosen): &((&Planned, &GgmlType), &GgmlType)| {
        stored.block_len_elems() > 1 && stored != chosen
    };
    let mut again = planned.iter().zip(stored).zip(types).filter(again);
    let Some(((tensor, stored), chosen)) = again.next() else { return Ok(()) };
    let others = again.count();
    Err(Error::Request(format!(
        "{place}: tensor {} is {stored} already and would become {chosen} in {} ({others} more would change their \
         type, too); what rounding has lost is lost: convert the original model, or say --allow-requantize",
        tensor.name, file_type.format.name
    )))
}

/// The source's metadata as llama-quantize writes it.
fn metadata(source: &Metadata, file_type: &FileType) -> Result<Metadata> {
    if let Some(alignment) = source.get(ALIGNMENT_KEY)
        && alignment.as_u64() != Some(DEFAULT_ALIGNMENT_BYTES)
    {
        return Err(Error::Unsupported {
            what: format!("{ALIGNMENT_KEY} {alignment:?}"),
            hint: format!("llama-quantize writes files with {DEFAULT_ALIGNMENT_BYTES} only"),
        });
    }
    let mut metadata = Metadata::new();
    for (key, value) in source.iter() {
        metadata.set(key, up_to_nul(value));
    }
    metadata.set("general.quantization_version", QUANTIZATION_VERSION);
    metadata.set("general.file_type", file_type.id);
    for key in [split::NO_KEY, split::COUNT_KEY, split::TENSORS_COUNT_KEY] {
        metadata.remove(key);
    }
    Ok(metadata)
}

/// Strings cut off at their first NUL, where C strings end.
fn up_to_nul(value: &Value) -> Value {
    let cut = |text: &String| text.split('\0').next().unwrap_or_default().to_owned();
    match value {
        Value::String(text) => Value::String(cut(text)),
        Value::Array(Array::String(texts)) => Value::Array(Array::String(texts.iter().map(cut).collect())),
        other => other.clone(),
    }
}

/// Looks things up in the metadata of the file at `place`.
struct Keys<'a> {
    metadata: &'a Metadata,
    place: String,
}

impl Keys<'_> {
    fn architecture(&self) -> Result<&'static Architecture> {
        let name = self.metadata.get("general.architecture").and_then(Value::as_str).unwrap_or("(none)");
        let family = family::of_architecture(name).ok_or_else(|| Error::Unsupported {
            what: format!("{}: general.architecture {name:?}", self.place),
            hint: format!(
                "the mixes of types of {} are known; llama-quantize has those of others",
                family::architectures().join(", ")
            ),
        })?;
        Ok(family.gguf)
    }

    fn size(&self, architecture: &str) -> Result<Size> {
        let count = |key: &str| self.count(&format!("{architecture}.{key}"));
        let missing = |key: &str| {
            Error::checkpoint(&self.place, format!("metadata key {architecture}.{key} is missing"))
        };
        let heads = count("attention.head_count")?.ok_or_else(|| missing("attention.head_count"))?;
        Ok(Size {
            blocks: count("block_count")?.ok_or_else(|| missing("block_count"))?,
            predictors: count("nextn_predict_layers")?.unwrap_or(0),
            experts: count("expert_count")?.unwrap_or(0),
            heads,
            kv_heads: count("attention.head_count_kv")?.unwrap_or(heads),
        })
    }

    /// A number, or the first of an array with one for each layer.
    fn count(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let first = match value {
            Value::Array(Array::U32(counts)) => counts.first().map(|&count| u64::from(count)),
            Value::Array(Array::I32(counts)) => counts.first().and_then(|&count| count.try_into().ok()),
            other => other.as_u64(),
        };
        let count = first.and_then(|count| usize::try_from(count).ok());
        count.map(Some).ok_or_else(|| {
            Error::checkpoint(&self.place, format!("metadata key {key}: found {value:?}, expected a count"))
        })
    }
}
