//! What describes a model: config.json, directories, GGUF metadata, tokenizers.

use std::io::Write;

use requant::artifact::Artifact;
use requant::checkpoint::GgufModel;
use requant::family::{self, Config};
use requant::opened::Opened;
use requant::tokenizer::{Fingerprint, Tokenizer};

use crate::files::Files;

/// config.json either is refused, or the tensors that it implies can be listed.
pub(crate) fn config(bytes: &[u8]) {
    let Ok(config) = requant::small::json::<serde_json::Value>("config.json", bytes) else { return };
    let Ok(family) = family::find(&config) else { return };
    let Ok(spec) = family.spec(&Config::new(&config)) else { return };
    // Listing millions takes a second each; that there are no more is what counts.
    let experts = spec.ffn.moe.as_ref().map_or(1, |moe| moe.experts.max(1));
    if spec.layers.saturating_mul(experts) < 2000 {
        assert!(!family.expected(&spec).is_empty());
    }
}

/// A directory either is refused, or every tensor of it lies in its file.
pub(crate) fn checkpoint(bytes: &[u8]) {
    let _ = Artifact::from_source(&Files::parse(bytes)).map(|artifact| artifact.parameters());
    let Ok(model) = Opened::from_source(Box::new(Files::parse(bytes))) else { return };
    let _ = model.store().map(|store| store.spec().layers);
    let Some(checkpoint) = model.checkpoint() else { return };
    for tensor in checkpoint.tensors() {
        let len_bytes = checkpoint.source().files()[tensor.file].len_bytes;
        assert!(tensor.offset_bytes + tensor.len_bytes <= len_bytes, "{}", tensor.name);
    }
}

/// A GGUF file either is refused, or its model and tokenizer can be put together.
pub(crate) fn gguf_model(bytes: &[u8]) {
    let Ok(mut file) = tempfile::Builder::new().suffix(".gguf").tempfile() else { return };
    if file.write_all(bytes).is_err() {
        return;
    }
    let _ = GgufModel::open(file.path()).map(|model| model.catalogue().tensors().len());
    let _ = Artifact::open(file.path()).map(|artifact| artifact.parameters());
    if let Ok(model) = Opened::open(file.path())
        && let Ok(tokenizer) = model.tokenizer()
    {
        let _ = tokenizer.encode("a b", true);
    }
}

/// A tokenizer either is refused, or a text can be cut by it, or is refused. Parts of an input, divided by lines of
/// `====`, are tokenizer.json, tokenizer_config.json and special_tokens_map.json.
pub(crate) fn tokenizer(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.split("\n====\n").map(str::as_bytes);
    let definition = parts.next().unwrap_or_default();
    let Ok(tokenizer) = Tokenizer::new(definition, parts.next(), parts.next()) else { return };
    let _ = Fingerprint::of(&tokenizer);
    if let Ok(ids) = tokenizer.encode("Hello, w\u{f6}rld 1234  \n", false) {
        let _ = tokenizer.decode(&ids);
    }
}
