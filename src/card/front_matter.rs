//! The front matter of a card: YAML between two lines of hyphens.

use crate::pipeline::{Manifest, ModelRecord};
use crate::plan::Target;

/// What a model is listed under whose card does not say it: every family here writes text.
const PIPELINE: &str = "text-generation";
/// Words that YAML readers take for something else than text.
const WORDS: [&str; 9] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];

/// The front matter, with both lines.
pub(super) fn front_matter(manifest: &Manifest, model: &ModelRecord, target: Option<&dyn Target>) -> String {
    let mut yaml = "---\n".to_owned();
    let mut entry = |key: &str, value: Option<&str>| {
        if let Some(value) = value {
            yaml += &format!("{key}: {}\n", scalar(value));
        }
    };
    entry("base_model", model.base_model.as_deref());
    entry("base_model_relation", model.base_model.as_ref().map(|_| "quantized"));
    entry("license", model.license.as_deref());
    entry("license_name", model.license_name.as_deref());
    entry("license_link", model.license_link.as_deref());
    let family = target.map(|target| target.family().to_ascii_lowercase());
    entry("library_name", family.as_deref().map(library));
    entry("pipeline_tag", Some(model.pipeline_tag.as_deref().unwrap_or(PIPELINE)));
    let mut list = |key: &str, items: &[&str]| {
        if !items.is_empty() {
            yaml += &format!("{key}:\n");
            items.iter().for_each(|item| yaml += &format!("- {}\n", scalar(item)));
        }
    };
    list("language", &model.languages.iter().map(String::as_str).collect::<Vec<_>>());
    let imatrix = manifest.imatrix.as_ref().map(|_| "imatrix");
    let tags: Vec<&str> =
        family.as_deref().into_iter().chain(["quantized", "requant"]).chain(imatrix).collect();
    list("tags", &tags);
    yaml + "---\n"
}

/// What the hub calls the library that loads results of a family.
fn library(family: &str) -> &str {
    match family {
        "gguf" | "mlx" => family,
        _ => "transformers",
    }
}

/// `text` as YAML that every reader takes for this text.
fn scalar(text: &str) -> String {
    let is_plain_char = |c: char| c.is_ascii_alphanumeric() || "._/-".contains(c);
    let is_word = WORDS.iter().any(|word| text.eq_ignore_ascii_case(word));
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(is_plain_char);
    // JSON's strings are YAML's, apart from characters that YAML wants written as numbers.
    if is_plain && !is_word { text.to_owned() } else { quoted(text) }
}

fn quoted(text: &str) -> String {
    let mut yaml = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => yaml.push_str("\\\""),
            '\\' => yaml.push_str("\\\\"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                yaml.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => yaml.push(c),
        }
    }
    yaml.push('"');
    yaml
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written is what our own reader of cards reads.
    #[test]
    fn scalars_survive() {
        for text in [
            "mit",
            "apache-2.0",
            "org/Name-1.5",
            "no",
            "Yes",
            "null",
            "1.5",
            "",
            " a",
            "a: b",
            "- x",
            "#x",
            "a #b",
            "'q'",
            "\"q\"",
            "tab\tnew\nline",
            "\\",
            "---",
            "é漢",
            "\u{85}\u{2028}",
            "*a",
            "&a",
            "!x",
            "%x",
            "@x",
            "{a}",
            "[a]",
            "a,b",
        ] {
            let yaml = format!("---\nlicense: {0}\nlanguage:\n- {0}\n---\n", scalar(text));
            let card = crate::plan::front_matter(yaml.as_bytes()).unwrap();
            assert_eq!(card["license"], text, "{yaml}");
            assert_eq!(card["language"][0], text, "{yaml}");
        }
        assert_eq!(scalar("apache-2.0"), "apache-2.0");
        assert_eq!(scalar("no"), "\"no\"");
    }
}
