//! Which modules are quantized, and how to tell an engine which are not.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::prediction_layers;
use crate::arch::ArchSpec;

/// Names of linear layers, without `.weight`.
#[derive(Debug, Clone, Default)]
pub(in crate::plan) struct Modules {
    quantized: BTreeSet<String>,
    kept: BTreeSet<String>,
    prediction_layers: Range<usize>,
}

impl Modules {
    pub(super) fn new(spec: &ArchSpec) -> Self {
        Self { prediction_layers: prediction_layers(spec), ..Self::default() }
    }

    pub(super) fn quantized(&mut self, name: &str) {
        self.quantized.insert(name.to_owned());
    }

    pub(super) fn kept(&mut self, name: &str) {
        self.kept.insert(name.to_owned());
    }

    /// Regular expressions for whole names that match what is kept and nothing that is quantized.
    ///
    /// Names that differ in their numbers only are one expression where all of them are kept, and a
    /// prediction layer that is kept whole is one too.
    pub(in crate::plan) fn kept_patterns(&self) -> Vec<String> {
        let layers = self.kept_layers();
        let taken: BTreeSet<String> = self.quantized.iter().map(|name| any_number(name)).collect();
        let mut patterns = BTreeMap::new();
        for layer in &layers {
            patterns.insert(format!(r"model\.layers\.{layer}\..*"), ());
        }
        for name in
            self.kept.iter().filter(|name| !layers.iter().any(|layer| name.starts_with(&in_layer(*layer))))
        {
            let general = any_number(name);
            let pattern = if taken.contains(&general) { escaped(name) } else { general };
            patterns.insert(pattern, ());
        }
        patterns.into_keys().collect()
    }

    /// Texts that are part of the name of every kept module and of no quantized one, for engines that look
    /// for those; modules for which there is no such text are left out.
    pub(in crate::plan) fn kept_substrings(&self) -> Vec<String> {
        let layers = self.kept_layers();
        let mut texts: Vec<String> = layers.iter().map(|layer| in_layer(*layer)).collect();
        let others = self.kept.iter().filter(|name| !texts.iter().any(|text| name.starts_with(text)));
        let clear = others.filter(|name| !self.quantized.iter().any(|taken| taken.contains(name.as_str())));
        let clear: Vec<String> = clear.cloned().collect();
        texts.extend(clear);
        texts.sort();
        texts
    }

    /// Prediction layers of which nothing is quantized.
    fn kept_layers(&self) -> Vec<usize> {
        let is_kept = |layer: &usize| {
            let prefix = in_layer(*layer);
            self.kept.iter().any(|name| name.starts_with(&prefix))
                && !self.quantized.iter().any(|name| name.starts_with(&prefix))
        };
        self.prediction_layers.clone().filter(is_kept).collect()
    }
}

fn in_layer(layer: usize) -> String {
    format!("model.layers.{layer}.")
}

/// A regular expression for the name.
fn escaped(name: &str) -> String {
    name.replace('.', r"\.")
}

/// A regular expression for the name with any numbers where it has some.
fn any_number(name: &str) -> String {
    let parts = name
        .split('.')
        .map(|part| if part.bytes().all(|byte| byte.is_ascii_digit()) { r"\d+" } else { part });
    parts.collect::<Vec<_>>().join(r"\.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules() -> Modules {
        let mut modules = Modules { prediction_layers: 2..3, ..Modules::default() };
        for name in [
            "model.layers.0.mlp.down_proj",
            "model.layers.1.self_attn.o_proj",
            "model.layers.1.mlp.gate_proj",
        ] {
            modules.quantized(name);
        }
        for name in [
            "lm_head",
            "model.layers.0.self_attn.o_proj",
            "model.layers.1.mlp.gate",
            "model.layers.1.mlp.experts.0.up_proj",
            "model.layers.1.mlp.experts.1.up_proj",
            "model.layers.2.eh_proj",
            "model.layers.2.mlp.gate",
        ] {
            modules.kept(name);
        }
        modules
    }

    #[test]
    fn patterns_match_what_is_kept_and_nothing_else() {
        assert_eq!(
            modules().kept_patterns(),
            [
                "lm_head",
                r"model\.layers\.0\.self_attn\.o_proj",
                r"model\.layers\.2\..*",
                r"model\.layers\.\d+\.mlp\.experts\.\d+\.up_proj",
                r"model\.layers\.\d+\.mlp\.gate",
            ]
        );
    }

    #[test]
    fn a_text_that_quantized_names_have_too_is_left_out() {
        let texts = modules().kept_substrings();
        assert!(
            texts.contains(&"model.layers.2.".to_owned()) && texts.contains(&"lm_head".to_owned()),
            "{texts:?}"
        );
        assert!(!texts.contains(&"model.layers.1.mlp.gate".to_owned()), "{texts:?}");
    }
}
