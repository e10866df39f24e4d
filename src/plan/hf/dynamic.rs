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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_of_another_type_are_told_by_name_and_together() {
        let mut modules = Modules::default();
        for expert in ["0.up_proj", "1.up_proj"] {
            modules.quantized(&format!("model.layers.1.mlp.experts.{expert}"), "4bit-32g");
            modules.quantized(&format!("model.layers.2.mlp.experts.{expert}"), "4bit-64g");
        }
        modules.quantized("model.layers.1.mlp.shared_experts.up_proj", "4bit-32g");
        modules.kept("model.layers.1.mlp.gate");
        let said = |name| Ok::<_, std::convert::Infallible>(json!(name));
        let entries = overridden(&modules, "4bit-64g", said).unwrap();
        let keys: Vec<&str> = entries.keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            [
                r"+:model\.layers\.1\.mlp\.experts(\..*)?$",
                r"+:model\.layers\.\d+\.mlp\.shared_experts\.up_proj$",
            ]
        );
        let left_out = left_out(&modules);
        assert_eq!(left_out.keys().collect::<Vec<_>>(), [r"-:model\.layers\.\d+\.mlp\.gate$"]);
    }
}
