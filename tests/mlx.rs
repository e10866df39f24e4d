//! The fixture converted to MLX, against the files of `mlx_lm convert`.

use serde_json::Value;

use crate::conversion::{convert, fixtures, model, names, sha256};

/// Files that mlx-lm writes through `transformers`; the source's own are carried instead.
const NOT_COMPARED: [&str; 3] = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];

#[test]
fn files_equal_those_of_mlx_lm() {
    let mut formats = 0;
    for name in names(&fixtures().join("goldens/mlx")) {
        let Some(format) = name.strip_suffix(".json") else { continue };
        let golden = std::fs::read(fixtures().join("goldens/mlx").join(&name)).unwrap();
        let golden: Value = serde_json::from_slice(&golden).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("out");
        convert(&model(), format, 2, &output).unwrap();
        for (name, expected) in golden["files"].as_object().unwrap() {
            if NOT_COMPARED.contains(&name.as_str()) {
                continue;
            }
            let bytes = std::fs::read(output.join(name)).unwrap();
            assert_eq!(bytes.len() as u64, expected[0].as_u64().unwrap(), "{format} {name}");
            assert_eq!(sha256(&bytes), expected[1].as_str().unwrap(), "{format} {name}");
        }
        formats += 1;
    }
    assert_eq!(formats, 16);
}

#[test]
fn tokenizer_files_are_the_source_s_own() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("out");
    convert(&model(), "mlx-4bit", 1, &output).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        let ours = std::fs::read(output.join(name)).unwrap();
        assert_eq!(ours, std::fs::read(model().join(name)).unwrap(), "{name}");
    }
}
