//! The fixture converted to MLX, against the files of `mlx_lm convert`.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use requant::checkpoint::Checkpoint;
use requant::pipeline::{self, Progress, Settings};
use requant::plan::{self, Options};
use requant::source::LocalDirectory;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Files that mlx-lm writes through `transformers`; the source's own are carried instead.
const NOT_COMPARED: [&str; 3] = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];

struct Silent;

impl Progress for Silent {
    fn stage(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// Size and digest of a file.
fn record(path: &Path) -> (u64, String) {
    let bytes = std::fs::read(path).unwrap();
    let digest = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    (bytes.len() as u64, digest)
}

fn convert(format: &str, threads: usize, output: &Path) {
    let source = LocalDirectory::open(&fixtures().join("tiny-deepseek-v3")).unwrap();
    let source = Checkpoint::open(Box::new(source)).unwrap();
    let blueprint = plan::blueprint(&source, format, &Options::default()).unwrap();
    let settings = Settings { threads, force: false, command: Vec::new(), format: format.into() };
    pipeline::convert(&source, &blueprint, output, &settings, &Silent, &AtomicBool::new(false)).unwrap();
}

#[test]
fn files_equal_those_of_mlx_lm() {
    let mut formats = 0;
    for entry in std::fs::read_dir(fixtures().join("goldens/mlx")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let format = path.file_stem().unwrap().to_str().unwrap();
        let golden: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("out");
        convert(format, 2, &output);
        for (name, expected) in golden["files"].as_object().unwrap() {
            if NOT_COMPARED.contains(&name.as_str()) {
                continue;
            }
            let (len, digest) = record(&output.join(name));
            assert_eq!(len, expected[0].as_u64().unwrap(), "{format} {name}");
            assert_eq!(digest, expected[1].as_str().unwrap(), "{format} {name}");
        }
        formats += 1;
    }
    assert_eq!(formats, 7);
}

#[test]
fn tokenizer_files_are_the_source_s_own() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("out");
    convert("mlx-4bit", 1, &output);
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        let ours = std::fs::read(output.join(name)).unwrap();
        assert_eq!(ours, std::fs::read(fixtures().join("tiny-deepseek-v3").join(name)).unwrap(), "{name}");
    }
}
