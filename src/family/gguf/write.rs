//! Hyper-parameters of a GGUF, key for key as llama.cpp's converter writes them.
//!
//! First the keys of every architecture, in the order of `TextModel.set_gguf_parameters`, then those that the
//! architecture adds. A key that is set twice stays at its first place. The converter reads config.json through
//! transformers, so that the defaults there stand in for absent keys.
//!
//! Limits are those of llama.cpp: a file beyond them could be written, but neither llama-quantize nor any other of its
//! programs would open it.
//!
//! Source: llama.cpp `conversion/base.py` (`TextModel.set_gguf_parameters`), `src/llama-model.cpp` (`load_hparams`),
//! `src/llama-hparams.h`.

use requant_formats::container::gguf::{Metadata, Value};

use super::Architecture;
use crate::error::{Error, Result};
use crate::family::{Attention, Config, Grouped, Heads, Spec};

const MAX_LAYERS: usize = 512;
const MAX_EXPERTS: usize = 1024;

/// The keys of one file on their way.
pub(in crate::family) struct Keys<'a> {
    metadata: &'a mut Metadata,
    architecture: &'static str,
    pub(in crate::family) config: &'a Config<'a>,
    pub(in crate::family) spec: &'a Spec,
}

/// Appends the hyper-parameters to `metadata`.
///
/// # Errors
/// Names the key of config.json whose value has the wrong type or is out of range.
pub(super) fn add(
    architecture: &Architecture,
    metadata: &mut Metadata,
    config: &Config,
    spec: &Spec,
) -> Result<()> {
    let mut keys = Keys { metadata, architecture: architecture.name, config, spec };
    if architecture.states_common {
        keys.of_every_architecture(architecture)?;
    }
    (architecture.keys)(&mut keys)
}

impl<'a> Keys<'a> {
    /// `TextModel.set_gguf_parameters`.
    fn of_every_architecture(&mut self, architecture: &Architecture) -> Result<()> {
        let has_local_base = architecture.has_local_base();
        let (config, spec) = (self.config, self.spec);
        let blocks = (spec.layers + architecture.predictors(spec)) as u64;
        self.count("block_count", blocks, "num_hidden_layers")?;
        let context = config.count_or("max_position_embeddings", 4096)?;
        self.count("context_length", context, "max_position_embeddings")?;
        self.count("embedding_length", spec.hidden as u64, "hidden_size")?;
        let width = config.count_or("intermediate_size", 0)?;
        self.count("feed_forward_length", width, "intermediate_size")?;
        let Heads { query, key_value } = spec.heads();
        self.count("attention.head_count", query as u64, "num_attention_heads")?;
        self.count("attention.head_count_kv", key_value as u64, "num_key_value_heads")?;
        let rope = self.rope();
        self.rope_scaling(rope.as_ref())?;
        let theta = match &rope {
            Some(rope) if rope.get("rope_theta").is_some() => rope.number_or("rope_theta", 0.0)?,
            _ if has_local_base => spec.rope.theta,
            _ => config.number_or("rope_theta", 10000.0)?,
        };
        self.float("rope.freq_base", theta);
        if has_local_base && let Attention::Grouped(Grouped { sliding: Some(sliding), .. }) = &spec.attention
        {
            self.float("rope.freq_base_swa", sliding.rope.theta);
        }
        self.float("attention.layer_norm_rms_epsilon", spec.norms.eps);
        if let Some(moe) = &spec.ffn.moe {
            self.count("expert_count", moe.experts as u64, "n_routed_experts")?;
            self.count("expert_used_count", *moe.per_token.of(0) as u64, "num_experts_per_tok")?;
        }
        Ok(())
    }

    /// `rope_scaling`, or `rope_parameters` of newer exports; of layers without a sliding window where these have their own.
    pub(in crate::family) fn rope(&self) -> Option<Config<'a>> {
        let section =
            self.config.section("rope_scaling").or_else(|| self.config.section("rope_parameters"))?;
        Some(section.section("full_attention").unwrap_or(section))
    }

    /// A whole key.
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// Sets a count; `source` is the key of config.json that it comes from.
    ///
    /// # Errors
    /// When GGUF's counts cannot hold it.
    pub(in crate::family) fn count(&mut self, name: &str, value: u64, source: &str) -> Result<()> {
        let value = u32::try_from(value)
            .map_err(|_| self.config.invalid(source, &value.to_string(), "a number below 2^32"))?;
        self.metadata.set(self.key(name), value);
        Ok(())
    }

    /// Sets a number. GGUF's floats are f32; Python rounds to nearest, as `as` does.
    pub(in crate::family) fn float(&mut self, name: &str, value: f64) {
        self.metadata.set(self.key(name), value as f32);
    }

    /// Sets a flag.
    pub(in crate::family) fn flag(&mut self, name: &str, value: bool) {
        self.metadata.set(self.key(name), value);
    }

    /// YaRN, or all frequencies divided by a factor.
    fn rope_scaling(&mut self, rope: Option<&Config>) -> Result<()> {
        let Some(rope) = rope.filter(|rope| rope.get("factor").is_some()) else { return Ok(()) };
        match rope.text("rope_type").or_else(|| rope.text("type")) {
            Some("yarn") => {}
            Some("linear") => {
                self.metadata.set(self.key("rope.scaling.type"), "linear");
                self.float("rope.scaling.factor", rope.number_or("factor", 0.0)?);
                return Ok(());
            }
            _ => return Ok(()),
        }
        self.metadata.set(self.key("rope.scaling.type"), "yarn");
        self.float("rope.scaling.factor", rope.number_or("factor", 0.0)?);
        let original = "original_max_position_embeddings";
        self.count("rope.scaling.original_context_length", rope.dimension(original)? as u64, original)?;
        let attention =
            if rope.get("attention_factor").is_some() { "attention_factor" } else { "attn_factor" };
        for (name, source) in [
            ("rope.scaling.yarn_ext_factor", "extrapolation_factor"),
            ("rope.scaling.yarn_attn_factor", attention),
            ("rope.scaling.yarn_beta_fast", "beta_fast"),
            ("rope.scaling.yarn_beta_slow", "beta_slow"),
        ] {
            if rope.get(source).is_some() {
                self.float(name, rope.number_or(source, 0.0)?);
            }
        }
        Ok(())
    }

    /// How the router turns logits into weights; absent when config.json does not say.
    ///
    /// # Errors
    /// For a way that llama.cpp does not have.
    pub(in crate::family) fn gating(&mut self) -> Result<()> {
        let Some(value) = self.config.get("scoring_func") else { return Ok(()) };
        let id: u32 = match value.as_str() {
            Some("softmax") => 1,
            Some("sigmoid") => 2,
            Some("sqrtsoftplus") => 4,
            _ => {
                let found = value.to_string();
                return Err(self.config.invalid("scoring_func", &found, "\"sigmoid\" or \"softmax\""));
            }
        };
        self.metadata.set(self.key("expert_gating_func"), id);
        Ok(())
    }
}

/// Checks hyper-parameters that were written to `metadata`.
///
/// # Errors
/// [`Error::Unsupported`] naming the key of config.json.
pub(super) fn check_loadable(architecture: &Architecture, metadata: &Metadata, spec: &Spec) -> Result<()> {
    let written = |name: &str| {
        metadata.get(&format!("{}.{name}", architecture.name)).and_then(Value::as_u64).unwrap_or(0)
    };
    let (groups, top) = (written("expert_group_count"), written("expert_group_used_count"));
    let (layers, experts) = (spec.layers + architecture.predictors(spec), spec.experts());
    let refuse = |key: &str, found: String, limit: &str| Err(beyond(architecture.name, key, &found, limit));
    if layers > MAX_LAYERS {
        return refuse("num_hidden_layers", layers.to_string(), "512 layers at most");
    }
    if experts > MAX_EXPERTS {
        return refuse("n_routed_experts", experts.to_string(), "1024 experts at most");
    }
    if groups > 0 && groups >= experts as u64 {
        return refuse("n_group", groups.to_string(), "fewer groups than experts");
    }
    if groups > 1 && !(1..groups).contains(&top) {
        return refuse("topk_group", top.to_string(), "fewer chosen groups than groups");
    }
    (architecture.loadable)(spec)
}

/// The error for what llama.cpp does not open.
pub(in crate::family) fn beyond(architecture: &str, key: &str, found: &str, limit: &str) -> Error {
    Error::Unsupported {
        what: format!("config.json: {key} {found}"),
        hint: format!("llama.cpp opens {architecture} files only with {limit}"),
    }
}
