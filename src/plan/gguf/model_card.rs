//! The front matter of a model card (README.md) as JSON.
//!
//! Source: llama.cpp `gguf-py/gguf/metadata.py` (`load_model_card`), which reads YAML 1.1; this
//! reads 1.2, and takes care of the two differences model cards are known for, as the source
//! does: a list entry `no` is Norwegian, and tabs count as two spaces.

use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// File name of the model card.
pub(super) const MODEL_CARD: &str = "README.md";

/// The mapping between the two `---` lines at the top; empty when there is none.
///
/// # Errors
/// Front matter that is not YAML.
pub(super) fn parse(bytes: &[u8]) -> Result<Map<String, Value>> {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.lines();
    if lines.next() != Some("---") {
        return Ok(Map::new());
    }
    let mut yaml = String::new();
    for line in lines.take_while(|line| *line != "---") {
        yaml.push_str(line);
        yaml.push('\n');
    }
    let yaml = yaml.replace("- no\n", "- \"no\"\n").replace('\t', "  ");
    let documents = Yaml::load_from_str(&yaml)
        .map_err(|error| Error::checkpoint(MODEL_CARD, format!("front matter is not valid YAML: {error}")))?;
    match documents.first().map(json) {
        Some(Value::Object(map)) => Ok(map),
        _ => Ok(Map::new()),
    }
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

    #[test]
    fn broken_yaml_is_an_error_that_names_the_file() {
        let error = parse(b"---\na: [1\n---\n").unwrap_err().to_string();
        assert!(error.starts_with("README.md: front matter"), "{error}");
    }
}
