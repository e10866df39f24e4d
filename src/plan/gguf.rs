//! GGUF as llama.cpp writes it: the bytes of `convert_hf_to_gguf.py --outtype f32` followed by
//! `llama-quantize TYPE`.
//!
//! - `names`, `mix`, `file_type`, `overrides`: which tensors, in which order, of which type
//! - `general` (with `model_card`, `model_id`, `origins`, `size_label`): what the model is, beside its hyper-parameters,
//!   which the family writes
//! - `vocabulary`, `special` (with `template_processing`), `chat_template`: its tokenizer
//! - `imatrix`: what an importance matrix says about each tensor
//! - `layout`: where every byte goes
//! - `requantize`: the same for a GGUF source, as `llama-quantize` alone

use requant_formats::container::gguf::{GgmlType, Metadata};
use serde_json::Value;

use super::{Blueprint, Choices, Format, ImportanceUse, Options, Target, checkpoint_of};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::family::{Size, Vocabulary};
use crate::opened::Opened;
use crate::small;
use crate::tokenizer::sentence_piece::SENTENCE_PIECE_FILE;
use crate::tokenizer::{Definition, SPECIAL_TOKENS_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer};

mod chat_template;
mod file_type;
mod general;
mod imatrix;
mod layout;
mod mix;
mod model_card;
mod model_id;
mod names;
mod origins;
mod overrides;
mod requantize;
mod sentence_piece;
mod size_label;
mod special;
mod template_processing;
mod vocabulary;

use file_type::FileType;
use layout::Typed;
pub(crate) use model_card::parse as front_matter;

/// The vocabulary of models whose tokenizer is code.
const TIKTOKEN_FILE: &str = "tiktoken.model";
/// How an embedding model of sentence-transformers pools.
const POOLING_FILE: &str = "modules.json";
/// The way out for models that are something else.
const GENERATES: &str = "this version writes GGUF files of models that generate text";
/// Version of the block formats (`GGML_QNT_VERSION`).
const QUANTIZATION_VERSION: u32 = 2;

/// GGUF.
pub(super) struct GgufTarget;

impl Target for GgufTarget {
    fn family(&self) -> &'static str {
        "GGUF"
    }

    fn types(&self) -> Vec<&'static str> {
        overrides::types().map(GgmlType::name).collect()
    }

    fn formats(&self) -> &'static [Format] {
        file_type::FORMATS
    }

    fn usual(&self) -> &'static [&'static str] {
        &["q4_k_m", "q8_0", "q6_k", "q5_k_m", "iq4_xs", "q3_k_m", "bf16"]
    }

    fn bits_per_weight(&self, format: &Format) -> f64 {
        file_type::find(format).map_or(32.0, FileType::bits_per_weight)
    }

    fn readers(&self, format: &Format) -> &'static [&'static str] {
        let is_new = file_type::find(format).is_ok_and(|file_type| {
            matches!(file_type.base, GgmlType::NVFP4 | GgmlType::Q1_0 | GgmlType::Q2_0)
        });
        if is_new { &["llama.cpp"] } else { &["llama.cpp", "Ollama", "LM Studio"] }
    }

    fn importance(&self, format: &Format) -> ImportanceUse {
        file_type::find(format).map_or(ImportanceUse::Unused, FileType::importance)
    }

    fn is_directory(&self) -> bool {
        false
    }

    fn takes_gguf(&self) -> bool {
        true
    }

    fn weighs_errors(&self) -> bool {
        true
    }

    fn blueprint(&self, format: &Format, source: &Opened, options: &Options) -> Result<Blueprint> {
        let file_type = file_type::find(format)?;
        if let Some(model) = source.gguf() {
            return requantize::blueprint(file_type, model, options);
        }
        let source = checkpoint_of(source, format)?;
        let planned = names::tensors(source)?;
        let mut metadata = metadata(source, &planned, options)?;
        // llama-quantize sets these two last, so they stand at the end.
        metadata.set("general.quantization_version", QUANTIZATION_VERSION);
        metadata.set("general.file_type", file_type.id);
        imatrix::add(&mut metadata, options);

        let spec = source.spec();
        let size = Size::of(source.family().gguf, spec);
        let model = mix::Model {
            layers: size.blocks,
            experts: size.experts,
            tied_embeddings: spec.embedding.tied,
            shared_heads: size.shares_heads(),
            is_70b: source.family().gguf.takes_for_70b(&size),
            has_imatrix: options.imatrix.is_some(),
        };
        let extents: Vec<Vec<u64>> = planned.iter().map(names::Planned::ne).collect();
        let named: Vec<(&str, &[u64])> =
            planned.iter().zip(&extents).map(|(tensor, ne)| (tensor.name.as_str(), ne.as_slice())).collect();
        let overrides = overrides::resolve(&options.rules, file_type, source, &planned)?;
        let forced: Vec<Option<GgmlType>> =
            overrides.iter().map(|found| found.map(|found| found.1)).collect();
        let types = mix::types(file_type, model, &named, &forced)?;
        let typed = planned.into_iter().zip(types).zip(overrides).map(|((planned, ggml_type), found)| {
            Typed { planned, ggml_type, rule: found.map(|found| found.0), is_stored: false }
        });
        let typed = typed.collect();

        let (tensors, files) = layout::place(metadata, typed, options)?;
        let dropped = names::dropped(source);
        Ok(Blueprint { is_directory: false, tensors, files, sidecars: Vec::new(), dropped, kept: Vec::new() })
    }

    fn choices(
        &self,
        format: &Format,
        source: &Opened,
        options: &Options,
        blueprint: &Blueprint,
    ) -> Result<Vec<Choices>> {
        if file_type::find(format)?.base.block_len_elems() == 1 {
            return Ok(Vec::new());
        }
        if let Some(model) = source.gguf() {
            return Ok(requantize::choices(model, options, &blueprint.tensors));
        }
        let tied = checkpoint_of(source, format)?.spec().embedding.tied;
        Ok(overrides::choices(&blueprint.tensors, tied, options.choose_head))
    }
}

/// Everything llama.cpp's converter says about the model, in its order.
fn metadata(source: &Checkpoint, planned: &[names::Planned], options: &Options) -> Result<Metadata> {
    let read = |name: &str| source.source().read_small(name);
    let card = match read(model_card::MODEL_CARD)? {
        Some(bytes) => model_card::parse(&bytes)?,
        None => serde_json::Map::new(),
    };
    // A broken generation_config.json is no reason to stop, as in llama.cpp.
    let generation = read(general::GENERATION_CONFIG)?
        .and_then(|bytes| small::json(general::GENERATION_CONFIG, &bytes).ok());

    let mut metadata = Metadata::new();
    let architecture = source.family().gguf;
    metadata.set("general.architecture", architecture.name);
    metadata.set("general.type", "model");
    let inputs = general::Inputs {
        card: &card,
        config: source.config(),
        generation: &generation.unwrap_or(Value::Null),
        directory: &source.source().model_name(),
        counts: size_label::Counts::of(planned),
    };
    general::add(&mut metadata, &inputs)?;
    let text = source.family().text(source.config());
    architecture.write(&mut metadata, &text, source.spec())?;

    check_files(source, architecture.vocabulary)?;
    tokenizer(&mut metadata, source, options)?;
    Ok(metadata)
}

/// Everything it says about the tokenizer.
fn tokenizer(metadata: &mut Metadata, source: &Checkpoint, options: &Options) -> Result<()> {
    let read = |name: &str| source.source().read_small(name);
    let (architecture, vocab) = (source.family().gguf, source.spec().embedding.vocab);
    let habits = architecture.vocabulary;
    if habits.needs_sentence_piece && source.source().find(SENTENCE_PIECE_FILE).is_none() {
        let message = format!(
            "not found in {}; llama.cpp takes the vocabulary of this family from it alone",
            source.source().location()
        );
        return Err(Error::checkpoint(SENTENCE_PIECE_FILE, message));
    }
    let pieces = if habits.prefers_sentence_piece { read(SENTENCE_PIECE_FILE)? } else { None };
    let (file, config) = (read(TOKENIZER_FILE)?, read(TOKENIZER_CONFIG_FILE)?);
    let (definition, tokenizer_config);
    match (pieces, file) {
        (None, None) => return Err(no_tokenizer(source)),
        (Some(pieces), file) => {
            let json = |name: &str, bytes: Option<Vec<u8>>| -> Result<Option<Value>> {
                bytes.map(|bytes| small::json(name, &bytes)).transpose()
            };
            tokenizer_config = json(TOKENIZER_CONFIG_FILE, config)?;
            let added = json(sentence_piece::ADDED_TOKENS_FILE, read(sentence_piece::ADDED_TOKENS_FILE)?)?;
            definition = file.map(|bytes| small::json::<Definition>(TOKENIZER_FILE, &bytes)).transpose()?;
            add_space_prefix(metadata, habits, tokenizer_config.as_ref());
            let inputs = sentence_piece::Inputs {
                vocab,
                pieces: &pieces,
                added: added.as_ref(),
                config: tokenizer_config.as_ref(),
                pre: options.tokenizer_pre.as_deref(),
            };
            sentence_piece::add(metadata, &inputs)?;
        }
        (None, Some(file)) => {
            let tokenizer = Tokenizer::new(&file, config.as_deref(), read(SPECIAL_TOKENS_FILE)?.as_deref())?;
            let inputs = vocabulary::Inputs {
                architecture: architecture.name,
                vocab,
                pre: options.tokenizer_pre.as_deref(),
            };
            add_space_prefix(metadata, habits, tokenizer.config());
            if habits.cuts_embedding {
                check_rows(&tokenizer, vocab)?;
            }
            vocabulary::add(metadata, &tokenizer, &inputs)?;
            definition = Some(tokenizer.definition().clone());
            tokenizer_config = tokenizer.config().cloned();
        }
    }
    let is_sentence_piece = metadata.get("tokenizer.ggml.scores").is_some();
    let sources = special::Sources {
        definition: definition.as_ref(),
        tokenizer_config: tokenizer_config.as_ref(),
        config: source.config(),
        end: is_sentence_piece.then_some(vocab),
        named: habits.special,
    };
    special::add(metadata, &sources)?;
    let (jinja, json) = (read(chat_template::JINJA_FILE)?, read(chat_template::JSON_FILE)?);
    let template = chat_template::find(tokenizer_config.as_ref(), jinja.as_deref(), json.as_deref())?;
    chat_template::add(metadata, &template);
    if let Some(definition) = &definition {
        special::add_normalizer(metadata, &definition.normalizer);
    }
    if habits.denies_space_prefix && is_sentence_piece {
        metadata.set("tokenizer.ggml.add_space_prefix", false);
    }
    if habits.size_without_bos == Some(vocab) {
        metadata.set("tokenizer.ggml.add_bos_token", false);
    }
    Ok(())
}

/// Refuses a vocabulary of which llama.cpp's converter cuts off rows of the embedding and not their tokens: llama.cpp does not open
/// such a file.
fn check_rows(tokenizer: &Tokenizer, vocab: usize) -> Result<()> {
    let definition = tokenizer.definition();
    let counted = definition.model.vocab.len + definition.added_tokens.len();
    if counted >= vocab {
        return Ok(());
    }
    Err(Error::Unsupported {
        what: format!("{TOKENIZER_FILE}: {counted} tokens for {vocab} rows of the embedding"),
        hint: format!(
            "llama.cpp reads such a model of this family only with SentencePiece's {SENTENCE_PIECE_FILE}"
        ),
    })
}

/// `add_prefix_space` of tokenizer_config.json, where the converter keeps it.
fn add_space_prefix(metadata: &mut Metadata, habits: Vocabulary, config: Option<&Value>) {
    let prefix = config.and_then(|config| config.get("add_prefix_space")).and_then(Value::as_bool);
    if let Some(prefix) = prefix.filter(|_| habits.states_space_prefix) {
        metadata.set("tokenizer.ggml.add_space_prefix", prefix);
    }
}

/// Refuses files beside the weights that llama.cpp's converter would make something else of than this version does.
fn check_files(source: &Checkpoint, habits: Vocabulary) -> Result<()> {
    let is_there = |name: &str| source.source().find(name).is_some();
    if habits.states_pooling && is_there(POOLING_FILE) {
        return Err(Error::Unsupported {
            what: format!(
                "{POOLING_FILE}, the mark of an embedding model, in {}",
                source.source().location()
            ),
            hint: GENERATES.into(),
        });
    }
    let card = source.source().read_small(model_card::MODEL_CARD)?.unwrap_or_default();
    let card = String::from_utf8_lossy(&card).to_lowercase();
    let config = source.config().get("_name_or_path").and_then(Value::as_str);
    let names = [source.source().model_name(), config.unwrap_or_default().to_owned()];
    let is_called = |name: &&str| {
        card.contains(&format!("# {name}")) || names.iter().any(|own| own.to_lowercase().contains(*name))
    };
    if let Some(name) = habits.rerankers.iter().find(|name| is_called(name)) {
        return Err(Error::Unsupported {
            what: format!("{name}, of which llama.cpp makes a classifier, in {}", source.source().location()),
            hint: GENERATES.into(),
        });
    }
    Ok(())
}

/// What a model card alone says about a model, as the number of `general.*` keys that follow from it.
///
/// # Errors
/// As planning a GGUF file.
pub(crate) fn general_metadata(card: &[u8]) -> Result<usize> {
    let card = model_card::parse(card)?;
    let inputs = general::Inputs {
        card: &card,
        config: &Value::Null,
        generation: &Value::Null,
        directory: "Model-7B",
        counts: size_label::Counts::of(&[]),
    };
    let mut metadata = Metadata::new();
    general::add(&mut metadata, &inputs)?;
    Ok(metadata.len())
}

/// There is no tokenizer.json.
fn no_tokenizer(source: &Checkpoint) -> Error {
    let location = source.source().location();
    let message = if source.source().find(TIKTOKEN_FILE).is_some() {
        format!(
            "not found in {location}, and {TIKTOKEN_FILE} is not read: GGUF files carry the tokenizer; put the \
             tokenizer.json there that transformers makes of it (TikTokenConverter)"
        )
    } else {
        format!("not found in {location}; GGUF files carry the tokenizer")
    };
    Error::checkpoint(TOKENIZER_FILE, message)
}

#[cfg(test)]
mod tests;
