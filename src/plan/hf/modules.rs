//! Which modules are quantized, and how to tell an engine which are not.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::family::{Family, Spec};
use crate::plan::numbered;

/// What the name of the module with a layer's routed experts ends in.
pub(super) const EXPERTS: &str = ".experts";

/// Names of linear layers, without `.weight`.
#[derive(Debug, Clone, Default)]
pub(in crate::plan) struct Modules {
    /// Quantized ones, with their type.
    quantized: BTreeMap<String, &'static str>,
    kept: BTreeSet<String>,
    prediction_layers: Range<usize>,
    /// What the names of modules in layers begin with.
    layers_prefix: String,
}

impl Modules {
    pub(super) fn new(family: &Family, spec: &Spec) -> Self {
        let prediction_layers = spec.layers..spec.layers + spec.mtp_layers;
        Self { prediction_layers, layers_prefix: family.layers_prefix(), ..Self::default() }
    }

    pub(super) fn quantized(&mut self, name: &str, type_name: &'static str) {
        self.quantized.insert(name.to_owned(), type_name);
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
        let is_alone = |name: &str| !layers.iter().any(|layer| name.starts_with(&self.in_layer(*layer)));
        let mut patterns: BTreeSet<String> =
            layers.iter().map(|layer| format!("{}.*", escaped(&self.in_layer(*layer)))).collect();
        let kept = self.kept.iter().map(String::as_str).filter(|name| is_alone(name));
        patterns.extend(general(kept, self.quantized.keys().map(String::as_str)));
        patterns.into_iter().collect()
    }

    /// Types in use, `default` first, each but the default with regular expressions for its modules' names.
    pub(in crate::plan) fn types(&self, default: &'static str) -> Vec<(&'static str, Vec<String>)> {
        let others: BTreeSet<&'static str> =
            self.quantized.values().copied().filter(|&name| name != default).collect();
        let mut types = vec![(default, Vec::new())];
        for of_type in others {
            let (own, rest): (Vec<_>, Vec<_>) =
                self.quantized.iter().partition(|(_, name)| **name == of_type);
            let rest =
                rest.into_iter().map(|(name, _)| name.as_str()).chain(self.kept.iter().map(String::as_str));
            let patterns = general(own.into_iter().map(|(name, _)| name.as_str()), rest);
            types.push((of_type, patterns.into_iter().collect()));
        }
        types
    }

    /// Texts that are part of the name of every kept module and of no quantized one, for engines that look
    /// for those; modules for which there is no such text are left out. Where it is as clear without the number of the
    /// layer there is a text without it too: AutoAWQ (`models/base.py`) sees names inside a layer.
    pub(in crate::plan) fn kept_substrings(&self) -> Vec<String> {
        let layers: Vec<String> = self.kept_layers().into_iter().map(|layer| self.in_layer(layer)).collect();
        let is_clear = |text: &str| !self.quantized.keys().any(|taken| taken.contains(text));
        let others = self.kept.iter().filter(|name| !layers.iter().any(|text| name.starts_with(text)));
        let inside = |name: &str| Some(name.strip_prefix(&self.layers_prefix)?.split_once('.')?.1.to_owned());
        let mut texts: BTreeSet<String> = others
            .flat_map(|name| [Some(name.clone()), inside(name)])
            .flatten()
            .filter(|text| is_clear(text))
            .collect();
        texts.extend(layers);
        texts.into_iter().collect()
    }

    /// The same with the routed experts of a layer as one module, `model.layers.N.mlp.experts`, for engines that fuse
    /// them and ask for that name; layers whose experts are not all alike stay as they are.
    pub(in crate::plan) fn with_fused_experts(&self) -> Self {
        let mut types: BTreeMap<&str, BTreeSet<Option<&'static str>>> = BTreeMap::new();
        let quantized = self.quantized.iter().map(|(name, type_name)| (name, Some(*type_name)));
        for (name, type_name) in quantized.chain(self.kept.iter().map(|name| (name, None))) {
            if let Some(experts) = experts_of(name) {
                types.entry(experts).or_default().insert(type_name);
            }
        }
        let fused = |name: &String| match experts_of(name).filter(|&experts| types[experts].len() == 1) {
            Some(experts) => experts.to_owned(),
            None => name.clone(),
        };
        Self {
            quantized: self.quantized.iter().map(|(name, type_name)| (fused(name), *type_name)).collect(),
            kept: self.kept.iter().map(fused).collect(),
            prediction_layers: self.prediction_layers.clone(),
            layers_prefix: self.layers_prefix.clone(),
        }
    }

    /// What the names of modules in this layer begin with.
    fn in_layer(&self, layer: usize) -> String {
        format!("{}{layer}.", self.layers_prefix)
    }

    /// Prediction layers of which nothing is quantized.
    fn kept_layers(&self) -> Vec<usize> {
        let is_kept = |layer: &usize| {
            let prefix = self.in_layer(*layer);
            self.kept.iter().any(|name| name.starts_with(&prefix))
                && !self.quantized.keys().any(|name| name.starts_with(&prefix))
        };
        self.prediction_layers.clone().filter(is_kept).collect()
    }
}

/// The module that holds a routed expert's linear layer, when the name is that of one.
fn experts_of(name: &str) -> Option<&str> {
    let (holder, expert) = name.split_once(EXPERTS)?;
    expert.starts_with('.').then(|| &name[..holder.len() + EXPERTS.len()])
}

/// Regular expressions for whole names that match all of `names` and none of `others`: names that differ in their
/// numbers only are one expression where none of `others` is like them; else those are one that differ in their layer
/// and whose other numbers are anything, such as the experts of some layers.
fn general<'a>(
    names: impl Iterator<Item = &'a str>,
    others: impl Iterator<Item = &'a str>,
) -> BTreeSet<String> {
    let others: Vec<&str> = others.collect();
    let taken: BTreeSet<String> = others.iter().map(|name| any_number(name)).collect();
    let taken_in_layers: BTreeSet<_> = others.iter().map(|name| any_number_in_layer(name)).collect();
    let mut patterns = BTreeSet::new();
    let mut layers: BTreeMap<(String, String), BTreeSet<usize>> = BTreeMap::new();
    for name in names {
        let general = any_number(name);
        let in_layer = any_number_in_layer(name);
        if !taken.contains(&general) {
            patterns.insert(general);
        } else if let ((before, Some(layer), after), false) = (&in_layer, taken_in_layers.contains(&in_layer))
        {
            layers.entry((before.clone(), after.clone())).or_default().insert(*layer);
        } else {
            patterns.insert(escaped(name));
        }
    }
    patterns.extend(layers.into_iter().map(|((before, after), layers)| {
        let layers: Vec<String> = layers.iter().map(ToString::to_string).collect();
        match layers.as_slice() {
            [layer] => format!("{before}{layer}{after}"),
            _ => format!("{before}({}){after}", layers.join("|")),
        }
    }));
    patterns
}

/// The number of a name's layer, and expressions for what is before it and, with any numbers, behind it.
fn any_number_in_layer(name: &str) -> (String, Option<usize>, String) {
    let (before, layer, after) = numbered(name);
    (escaped(before), layer, any_number(after))
}

/// A regular expression for the name.
pub(super) fn escaped(name: &str) -> String {
    name.replace('.', r"\.")
}

/// A regular expression for the name with any numbers where it has some.
fn any_number(name: &str) -> String {
    let parts = name.split('.').map(|part| if is_number(part) { r"\d+" } else { part });
    parts.collect::<Vec<_>>().join(r"\.")
}

fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules() -> Modules {
        let mut modules =
            Modules { prediction_layers: 2..3, layers_prefix: "model.layers.".into(), ..Modules::default() };
        for name in [
            "model.layers.0.mlp.down_proj",
            "model.layers.1.self_attn.o_proj",
            "model.layers.1.mlp.gate_proj",
        ] {
            modules.quantized(name, "4bit");
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
    fn experts_of_some_layers_are_one_pattern() {
        let mut modules = Modules::default();
        for layer in 3..7 {
            for expert in 0..300 {
                for name in ["gate", "down"] {
                    let name = format!("model.layers.{layer}.mlp.experts.{expert}.{name}_proj");
                    modules.quantized(&name, if layer == 5 { "coarse" } else { "fine" });
                }
            }
        }
        modules.quantized("model.layers.3.mlp.down_proj", "coarse");
        modules.quantized("model.layers.4.mlp.down_proj", "default");
        // An expert that is not like the others of its layer.
        modules.quantized("model.layers.6.mlp.experts.300.gate_proj", "coarse");
        let types = modules.types("default");
        assert_eq!(types.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["default", "coarse", "fine"]);
        assert_eq!(
            types[1].1,
            [
                r"model\.layers\.3\.mlp\.down_proj",
                r"model\.layers\.5\.mlp\.experts\.\d+\.down_proj",
                r"model\.layers\.5\.mlp\.experts\.\d+\.gate_proj",
                r"model\.layers\.6\.mlp\.experts\.300\.gate_proj",
            ]
        );
        assert_eq!(types[2].1.len(), 1 + 1 + 300);
        assert_eq!(types[2].1[0], r"model\.layers\.(3|4)\.mlp\.experts\.\d+\.gate_proj");
    }

    #[test]
    fn routed_experts_are_one_module_where_all_of_a_layer_are_alike() {
        let mut modules = modules();
        for name in ["model.layers.3.mlp.experts.0.up_proj", "model.layers.3.mlp.experts.0.down_proj"] {
            modules.quantized(name, "4bit");
        }
        for name in ["model.layers.4.mlp.experts.0.up_proj", "model.layers.4.mlp.experts.1.up_proj"] {
            modules.quantized(name, if name.contains(".0.") { "4bit" } else { "8bit" });
        }
        let fused = modules.with_fused_experts();
        // Layer 3's are quantized, so the expression names layer 1.
        assert!(fused.kept_patterns().contains(&r"model\.layers\.1\.mlp\.experts".to_owned()), "{fused:?}");
        assert!(fused.kept_substrings().contains(&"model.layers.1.mlp.experts".to_owned()), "{fused:?}");
        assert!(fused.quantized.contains_key("model.layers.3.mlp.experts"), "{fused:?}");
        assert!(fused.quantized.contains_key("model.layers.4.mlp.experts.1.up_proj"), "{fused:?}");
    }

    #[test]
    fn a_text_that_quantized_names_have_too_is_left_out() {
        let texts = modules().kept_substrings();
        assert!(
            texts.contains(&"model.layers.2.".to_owned()) && texts.contains(&"lm_head".to_owned()),
            "{texts:?}"
        );
        assert!(!texts.contains(&"model.layers.1.mlp.gate".to_owned()), "{texts:?}");
        // Inside a layer: layer 1's output projection is quantized, no layer's experts are.
        assert!(!texts.contains(&"self_attn.o_proj".to_owned()), "{texts:?}");
        assert!(texts.contains(&"mlp.experts.0.up_proj".to_owned()), "{texts:?}");
    }
}
