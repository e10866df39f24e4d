//! The front matter of a model card (README.md) as JSON.
//!
//! Source: llama.cpp `gguf-py/gguf/metadata.py` (`load_model_card`), which reads YAML 1.1; this
//! reads 1.2, and takes care of the two differences model cards are known for, as the source
//! does: a list entry `no` is Norwegian, and tabs count as two spaces.

use std::collections::HashMap;

use saphyr::{LoadableYamlNode, Scalar, Yaml};
use saphyr_parser::{Event, Parser};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// File name of the model card.
pub(super) const MODEL_CARD: &str = "README.md";
/// Longest front matter; those of cards with thousands of evaluations have somewhat less than 1 MB.
const MAX_LEN_BYTES: usize = 4 << 20;
/// Most bytes with every alias replaced by what it stands for.
const MAX_EXPANDED_BYTES: usize = 16 << 20;
/// What a node costs apart from its text.
const NODE_BYTES: usize = 16;
/// Deepest nesting; the parser's recursion has no limit of its own.
const MAX_DEPTH: usize = 64;

/// The mapping between the two `---` lines at the top; empty when there is none.
///
/// # Errors
/// Front matter that is not YAML, too long, nested too deeply, or multiplied by aliases.
pub(crate) fn parse(bytes: &[u8]) -> Result<Map<String, Value>> {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.lines();
    if lines.next() != Some("---") {
        return Ok(Map::new());
    }
    let mut yaml = String::new();
    for line in lines.take_while(|line| *line != "---") {
        if yaml.len() + line.len() > MAX_LEN_BYTES {
            return Err(refused(&format!("longer than {MAX_LEN_BYTES} bytes")));
        }
        yaml.push_str(line);
        yaml.push('\n');
    }
    let yaml = yaml.replace("- no\n", "- \"no\"\n").replace('\t', "  ");
    check(&yaml)?;
    let documents = Yaml::load_from_str(&yaml)
        .map_err(|error| Error::checkpoint(MODEL_CARD, format!("front matter is not valid YAML: {error}")))?;
    match documents.first().map(json) {
        Some(Value::Object(map)) => Ok(map),
        _ => Ok(Map::new()),
    }
}

fn refused(why: &str) -> Error {
    Error::checkpoint(
        MODEL_CARD,
        format!("front matter is {why}: shorten it (what is between the two lines ---)"),
    )
}

/// Walks through the YAML without building it.
///
/// # Errors
/// What would take too much memory or stack. What is no YAML is left to whoever builds it.
fn check(yaml: &str) -> Result<()> {
    let mut total_bytes = 0usize;
    // What is open: number of its anchor, and the total when it began.
    let mut open: Vec<(usize, usize)> = Vec::new();
    let mut anchors: HashMap<usize, usize> = HashMap::new();
    for event in Parser::new_from_str(yaml) {
        let Ok((event, _)) = event else { return Ok(()) };
        match event {
            Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) => {
                open.push((anchor, total_bytes));
                total_bytes += NODE_BYTES;
                if open.len() > MAX_DEPTH {
                    return Err(refused(&format!("nested more than {MAX_DEPTH} levels deep")));
                }
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some((anchor, start)) = open.pop() {
                    anchors.insert(anchor, total_bytes - start);
                }
            }
            Event::Scalar(text, _, anchor, _) => {
                anchors.insert(anchor, text.len() + NODE_BYTES);
                total_bytes += text.len() + NODE_BYTES;
            }
            Event::Alias(anchor) => {
                total_bytes = total_bytes
                    .saturating_add(anchors.get(&anchor).copied().unwrap_or_default() + NODE_BYTES);
            }
            _ => {}
        }
        if total_bytes > MAX_EXPANDED_BYTES {
            return Err(refused(&format!("more than {MAX_EXPANDED_BYTES} bytes with its aliases replaced")));
        }
    }
    Ok(())
}

/// YAML as JSON; what JSON lacks becomes null.
fn json(node: &Yaml) -> Value {
    match node {
        Yaml::Value(Scalar::Boolean(value)) => Value::from(*value),
        Yaml::Value(Scalar::Integer(value)) => Value::from(*value),
        Yaml::Value(Scalar::FloatingPoint(value)) => Value::from(value.into_inner()),
        Yaml::Value(Scalar::String(value)) => Value::from(value.as_ref()),
        Yaml::Sequence(items) => items.iter().map(json).collect(),
        Yaml::Mapping(entries) => {
            let keyed =
                entries.iter().filter_map(|(key, value)| Some((key.as_str()?.to_owned(), json(value))));
            Value::Object(keyed.collect())
        }
        Yaml::Tagged(_, inner) => json(inner),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_stands_between_the_lines() {
        let card = parse(
            b"---\nlicense: mit\nlanguage:\n- no\n- en\ntags: [a, \"b\"]\nempty:\nnumber: 1.5\nnested:\n  x: 1\n---\nx: y\n",
        )
        .unwrap();
        let expected = serde_json::json!({"license": "mit", "language": ["no", "en"], "tags": ["a", "b"],
            "empty": null, "number": 1.5, "nested": {"x": 1}});
        assert_eq!(Value::Object(card), expected);
    }

    #[test]
    fn without_front_matter_there_is_nothing() {
        for text in ["", "# Title\n---\na: b\n", "---\n---\n", "---\njust text\n---\n"] {
            assert!(parse(text.as_bytes()).unwrap().is_empty(), "{text}");
        }
    }

    /// What a card says that makes the parser work hard: levels, aliases, length.
    #[test]
    fn what_would_explode_is_refused() {
        let laughs = (1..20).fold("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned(), |text, level| {
            let before = format!("*a{}", level - 1);
            text + &format!("a{level}: &a{level} [{}]\n", [before.as_str(); 10].join(", "))
        });
        let long = format!("a: &a \"{}\\n\"\nb: [{}]\n", "x".repeat(100_000), "*a, ".repeat(99_000));
        for (yaml, why) in [
            ("- ".repeat(32_000), "levels"),
            ("[".repeat(500_000), "recursion limit"),
            ("{a: ".repeat(100_000), "recursion limit"),
            ("? ".repeat(100_000), "levels"),
            ((0..5000).fold(String::new(), |text, level| text + &" ".repeat(level % 150) + "a:\n"), "levels"),
            (laughs, "aliases"),
            (long, "aliases"),
            (format!("{}: 1", "k".repeat(10 << 20)), "longer"),
            ("k: v\n".repeat(1 << 20), "longer"),
        ] {
            let error = parse(format!("---\n{yaml}\n---\n").as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("README.md: front matter is") && error.contains(why), "{error}");
            assert!(error.len() < 300, "{} bytes", error.len());
        }
    }

    /// Cards of models that many people have evaluated.
    #[test]
    fn a_card_with_thousands_of_results_is_read() {
        let result = "  - task:\n      type: Classification\n    dataset:\n      name: \"A: B (c)\"\n      config: default\n    \
                      metrics:\n    - {type: accuracy, value: 71.2}\n";
        let yaml = format!(
            "tags: [mteb, 'it''s']\nlanguage:\n- no\nsummary: |\n  # not a comment\n  x: y\nempty: ~\n? complex\n: 1\n\
             model-index:\n- name: m\n  results:\n{}",
            result.repeat(20_000)
        );
        let card = parse(format!("---\n{yaml}---\n{}", "# Text\n---\n".repeat(100_000)).as_bytes()).unwrap();
        assert_eq!(card["model-index"][0]["results"].as_array().unwrap().len(), 20_000);
        assert_eq!(card["summary"], "# not a comment\nx: y\n");
    }

    #[test]
    fn anchors_within_reason_are_read() {
        let card = parse(b"---\na: &x [1, 2]\nb: *x\n---\n").unwrap();
        assert_eq!(Value::Object(card), serde_json::json!({"a": [1, 2], "b": [1, 2]}));
    }

    #[test]
    fn broken_yaml_is_an_error_that_names_the_file() {
        let error = parse(b"---\na: [1\n---\n").unwrap_err().to_string();
        assert!(error.starts_with("README.md: front matter"), "{error}");
    }
}
