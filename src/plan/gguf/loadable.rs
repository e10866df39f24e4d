//! Limits of llama.cpp: a file beyond them could be written, but neither llama-quantize nor any
//! other of its programs would open it.
//!
//! Source: llama.cpp `src/llama-model.cpp` (`load_hparams`), `src/llama-hparams.h`,
//! `src/models/deepseek2.cpp`.

use requant_formats::container::gguf::Metadata;

use super::hparams::ARCHITECTURE;
use crate::arch::ArchSpec;
use crate::error::{Error, Result};

const MAX_LAYERS: usize = 512;
const MAX_EXPERTS: usize = 1024;

/// Checks hyper-parameters that were written to `metadata`.
///
/// # Errors
/// [`Error::Unsupported`] naming the key of config.json.
pub(super) fn check(metadata: &Metadata, spec: &ArchSpec) -> Result<()> {
    let written = |name: &str| {
        metadata.get(&format!("{ARCHITECTURE}.{name}")).and_then(|value| value.as_u64()).unwrap_or(0)
    };
    let (groups, top) = (written("expert_group_count"), written("expert_group_used_count"));
    let &ArchSpec { layers, experts, vocab, .. } = spec;
    let refuse = |key: &str, found: String, limit: &str| {
        Err(Error::Unsupported {
            what: format!("config.json: {key} {found}"),
            hint: format!("llama.cpp opens deepseek2 files only with {limit}"),
        })
    };
    if layers > MAX_LAYERS {
        return refuse("num_hidden_layers", layers.to_string(), "512 layers at most");
    }
    if experts > MAX_EXPERTS {
        return refuse("n_routed_experts", experts.to_string(), "1024 experts at most");
    }
    if groups >= experts as u64 {
        return refuse("n_group", groups.to_string(), "fewer groups than experts");
    }
    if groups > 1 && !(1..groups).contains(&top) {
        return refuse("topk_group", top.to_string(), "fewer chosen groups than groups");
    }
    // The "lite" models are recognized by their size.
    let is_lite = matches!(layers, 26 | 27) || layers == 48 && vocab == 128_256;
    if spec.latent()?.q_lora.is_none() && !is_lite {
        return refuse("q_lora_rank", "null".into(), "a low-rank query projection, or 26 or 27 layers");
    }
    Ok(())
}
