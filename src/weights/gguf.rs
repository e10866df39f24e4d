//! A `deepseek2` GGUF, one file or a split set, as a weight store.
//!
//! Source of names: llama.cpp `gguf-py/gguf/tensor_mapping.py`.

use std::path::Path;

use requant_formats::container::gguf::{self, Metadata};

use super::gguf_config;
use super::packed::{Home, PackedStore, Place, Stored};
use crate::arch::{self, Config, Ffn, LayerRole, Role};
use crate::error::{Error, Result};
use crate::source::{LocalDirectory, Source, SourceReader};

/// What follows the layer in the name of an unsplit `kv_b_proj`.
const UNSPLIT: &str = ".attn_kv_b.weight";

/// A GGUF model.
pub(super) struct Gguf {
    pub(super) store: PackedStore,
    pub(super) metadata: Metadata,
    /// Name of its (first) file.
    pub(super) name: String,
}

/// Opens the file at `path`, and the other files of its set.
///
/// # Errors
/// When a file is missing, damaged or cut off, or the architecture is not one of ours.
pub(super) fn open(path: &Path) -> Result<Gguf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let source: Box<dyn Source> = Box::new(LocalDirectory::open(directory)?);
    let names = gguf::split::siblings(&name).unwrap_or_else(|| vec![name.clone()]);
    let mut headers = Vec::with_capacity(names.len());
    let mut stored = Vec::new();
    for name in &names {
        let Some(file) = source.find(name) else {
            let message =
                format!("not found beside {}; the split set has {} files", path.display(), names.len());
            return Err(Error::checkpoint(name, message));
        };
        let mut reader = SourceReader::new(&*source, file);
        let header = gguf::read(&mut reader, source.files()[file].len_bytes).map_err(|error| {
            reader.take_error().unwrap_or_else(|| Error::format(directory.join(name))(error))
        })?;
        for tensor in &header.tensors {
            stored.push(stored_tensor(&header, tensor, file, name)?);
        }
        headers.push(header);
    }
    if headers.len() > 1 {
        gguf::split::check(&headers).map_err(Error::format(path))?;
    }
    let metadata = headers.swap_remove(0).metadata;

    let has_output = stored.iter().any(|tensor| tensor.name == "output.weight");
    let embedding = stored.iter().find(|tensor| tensor.name == "token_embd.weight");
    let vocab = embedding.and_then(|tensor| tensor.shape.first().copied()).unwrap_or(0);
    let config = gguf_config::config(&metadata, &name, vocab, !has_output)?;
    let family = arch::find(&config)?;
    let spec = family.spec(&Config::new(&config)).map_err(|error| {
        Error::checkpoint(&name, format!("its hyper-parameters, spelled as in config.json: {error}"))
    })?;
    let expected = family.expected(&spec);
    // Files from before May 2025 keep the projection whole.
    let is_unsplit = stored.iter().any(|tensor| tensor.name.ends_with(UNSPLIT));
    let home = |role| match role {
        Role::Layer(layer, LayerRole::KvB) if is_unsplit => {
            Some(Home::Whole(format!("blk.{layer}{UNSPLIT}")))
        }
        _ => home(role),
    };
    Ok(Gguf { store: PackedStore::new(source, spec, &expected, stored, home)?, metadata, name })
}

fn stored_tensor(header: &gguf::Gguf, tensor: &gguf::TensorInfo, file: usize, name: &str) -> Result<Stored> {
    let codec = tensor.ggml_type.codec().ok_or_else(|| Error::Unsupported {
        what: format!("{name}: tensor {}: type {}", tensor.name, tensor.ggml_type),
        hint: "this version has no decoder for it".into(),
    })?;
    // GGUF states the innermost dimension first.
    let shape: Vec<usize> = tensor.shape.iter().rev().map(|&extent| extent as usize).collect();
    let cols = shape.last().copied().unwrap_or(1);
    let row_bytes = cols as u64 / tensor.ggml_type.block_len_elems() * tensor.ggml_type.block_len_bytes();
    let offset_bytes = header.data_offset_bytes + tensor.offset_bytes;
    let places = vec![Place { file, offset_bytes, row_bytes: row_bytes as usize }];
    Ok(Stored { name: tensor.name.clone(), shape, codec, places })
}

/// Where llama.cpp puts a tensor.
fn home(role: Role) -> Option<Home> {
    let (layer, role) = match role {
        Role::TokenEmbedding => return Some(Home::Whole("token_embd.weight".into())),
        Role::OutputNorm => return Some(Home::Whole("output_norm.weight".into())),
        Role::Output => return Some(Home::Whole("output.weight".into())),
        Role::Layer(layer, role) => (layer, role),
    };
    let name = |suffix: &str| format!("blk.{layer}.{suffix}");
    let whole = |suffix: &str| Some(Home::Whole(name(suffix)));
    match role {
        LayerRole::AttentionNorm => whole("attn_norm.weight"),
        LayerRole::Q => whole("attn_q.weight"),
        LayerRole::QA => whole("attn_q_a.weight"),
        LayerRole::QANorm => whole("attn_q_a_norm.weight"),
        LayerRole::QB => whole("attn_q_b.weight"),
        LayerRole::KvA => whole("attn_kv_a_mqa.weight"),
        LayerRole::KvANorm => whole("attn_kv_a_norm.weight"),
        LayerRole::KvB => Some(Home::KeyValue(name("attn_k_b.weight"), name("attn_v_b.weight"))),
        LayerRole::AttentionOutput => whole("attn_output.weight"),
        LayerRole::FfnNorm => whole("ffn_norm.weight"),
        LayerRole::Dense(ffn) => whole(&format!("ffn_{}.weight", short(ffn))),
        LayerRole::Router => whole("ffn_gate_inp.weight"),
        LayerRole::RouterBias => whole("exp_probs_b.bias"),
        LayerRole::Expert(expert, ffn) => {
            Some(Home::Stacked(name(&format!("ffn_{}_exps.weight", short(ffn))), expert))
        }
        LayerRole::Shared(ffn) => whole(&format!("ffn_{}_shexp.weight", short(ffn))),
        LayerRole::MtpEmbedding
        | LayerRole::MtpEmbeddingNorm
        | LayerRole::MtpHiddenNorm
        | LayerRole::MtpProjection
        | LayerRole::MtpHeadNorm
        | LayerRole::MtpHead => None,
    }
}

fn short(ffn: Ffn) -> &'static str {
    match ffn {
        Ffn::Gate => "gate",
        Ffn::Up => "up",
        Ffn::Down => "down",
    }
}
