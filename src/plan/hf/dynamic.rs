//! `dynamic` of GPTQModel's configuration: regular expressions for modules that are treated otherwise.
//!
//! GPTQModel and vLLM look for the first expression that matches the start of a module's name. vLLM fuses the routed
//! experts of a layer and asks for `model.layers.N.mlp.experts` alone; GPTQModel asks for each. Sources: GPTQModel 7.7.0
//! `quantization/config.py` (`dynamic_get`), vLLM 0.32.0 `quantization/utils/gptq_utils.py`, `auto_gptq.py`.

use serde_json::{Map, Value, json};

use super::modules::{EXPERTS, Modules, escaped};

/// "-:" for what is not quantized.
pub(in crate::plan) fn left_out(modules: &Modules) -> Map<String, Value> {
    let patterns = modules.with_fused_experts().kept_patterns();
    patterns.into_iter().map(|pattern| (format!("-:{}", whole(&pattern)), json!({}))).collect()
}

/// "+:" and what holds there instead, for modules of another type than `default`.
///
/// # Errors
/// Those of `said`, which gives what holds for a type.
pub(in crate::plan) fn overridden<E>(
    modules: &Modules,
    default: &'static str,
    said: impl Fn(&'static str) -> Result<Value, E>,
) -> Result<Map<String, Value>, E> {
    let mut entries = Map::new();
    for (type_name, patterns) in modules.with_fused_experts().types(default) {
        let other = said(type_name)?;
        entries.extend(patterns.iter().map(|pattern| (format!("+:{}", whole(pattern)), other.clone())));
    }
    Ok(entries)
}

/// An expression for a whole name, and, where the name is that of a layer's experts, for each of them.
fn whole(pattern: &str) -> String {
    let inside = if pattern.ends_with(&escaped(EXPERTS)) { r"(\..*)?" } else { "" };
    format!("{pattern}{inside}$")
}
