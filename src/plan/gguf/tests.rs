//! Whole headers against llama.cpp's: `fixtures/make_gguf_plan_goldens.py` made the goldens.
//!
//! A variant's tensors are never read here, so the checkpoint is its small files and a
//! safetensors header that announces every expected tensor.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::*;
use crate::family::{self, Config};
use crate::source::{Source, SourceFile};

const VARIANTS: [&str; 5] = ["layers61", "experts8", "ragged", "plain", "expert1"];

/// A directory that holds only what a plan reads.
struct Headers {
    location: String,
    files: Vec<SourceFile>,
    contents: Vec<Vec<u8>>,
}

impl Source for Headers {
    fn location(&self) -> String {
        self.location.clone()
    }

    fn files(&self) -> &[SourceFile] {
        &self.files
    }

    fn read_at(&self, file: usize, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
        let start = offset_bytes as usize;
        buf.copy_from_slice(&self.contents[file][start..start + buf.len()]);
        Ok(())
    }
}

fn golden_directory(variant: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/goldens/gguf-plan").join(variant)
}

fn golden(variant: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden_directory(variant).join("golden.json")).unwrap()).unwrap()
}

/// The checkpoint of a variant; `change` can edit its small files.
fn checkpoint(variant: &str, change: impl FnOnce(&mut BTreeMap<String, Vec<u8>>)) -> Opened {
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for entry in std::fs::read_dir(golden_directory(variant)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name != "golden.json" {
            files.insert(name, std::fs::read(path).unwrap());
        }
    }
    change(&mut files);
    let mut config: Value = serde_json::from_slice(&files["config.json"]).unwrap();
    // Tensors are announced in BF16, so that no scales are needed.
    config.as_object_mut().unwrap().remove("quantization_config");
    files.insert("config.json".into(), config.to_string().into_bytes());
    let family = family::find(&config).unwrap();
    let spec = family.spec(&Config::new(&config)).unwrap();
    let mut header = serde_json::Map::new();
    let mut end = 0usize;
    for tensor in family.expected(&spec) {
        if spec.embedding.tied && tensor.name == "lm_head.weight" {
            continue;
        }
        let begin = end;
        end += tensor.shape.iter().product::<usize>() * 2;
        let entry = serde_json::json!({"dtype": "BF16", "shape": tensor.shape, "data_offsets": [begin, end]});
        header.insert(tensor.name, entry);
    }
    let json = Value::Object(header).to_string();
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.bytes());
    let shard_len_bytes = (bytes.len() + end) as u64;
    files.insert("model.safetensors".into(), bytes);

    let directory = golden(variant)["directory"].as_str().unwrap().to_owned();
    let described = files.iter().map(|(name, content)| SourceFile {
        name: name.clone(),
        len_bytes: if name == "model.safetensors" { shard_len_bytes } else { content.len() as u64 },
        sha256: None,
        modified: None,
    });
    let source = Headers {
        location: format!("/somewhere/{directory}/"),
        files: described.collect(),
        contents: files.values().cloned().collect(),
    };
    Opened::from_source(Box::new(source)).unwrap()
}

fn options() -> Options {
    Options {
        rules: Default::default(),
        output_name: "model.gguf".into(),
        tokenizer_pre: Some("deepseek-v3".into()),
        ..Options::default()
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn headers_are_llama_cpps_byte_for_byte() {
    for variant in VARIANTS {
        let source = checkpoint(variant, |_| {});
        let golden = golden(variant);
        for (column, name) in golden["types"].as_array().unwrap().iter().enumerate() {
            let name = name.as_str().unwrap();
            let blueprint = crate::plan::blueprint(&source, name, &options()).unwrap();
            for (tensor, line) in blueprint.tensors.iter().zip(golden["tensors"].as_array().unwrap()) {
                let line: Vec<&str> = line.as_str().unwrap().split(' ').collect();
                let found = (tensor.names[0].as_str(), tensor.type_name.as_str());
                assert_eq!(found, (line[0], line[2 + column]), "{variant} {name}");
            }
            compare_metadata(variant, &blueprint.files[0].header, &golden["metadata"]);
            let expected = &golden["headers"][name];
            let file = &blueprint.files[0];
            assert_eq!(file.header.len() as u64, expected["len_bytes"], "{variant} {name}");
            assert_eq!(hex(&file.header), expected["sha256"].as_str().unwrap(), "{variant} {name}");
            assert_eq!(file.len_bytes, expected["file_len_bytes"], "{variant} {name}");
        }
    }
}

/// Names the first key that differs, which a hash does not.
fn compare_metadata(variant: &str, header: &[u8], golden: &Value) {
    let len_bytes = header.len() as u64;
    let mut padded = std::io::Cursor::new(header);
    let Ok(gguf) = requant_formats::container::gguf::read(&mut padded, u64::MAX / 2) else { return };
    let golden = golden.as_object().unwrap();
    assert!(gguf.data_offset_bytes == len_bytes);
    let keys: Vec<&str> = gguf.metadata.iter().map(|(key, _)| key).collect();
    assert_eq!(keys, golden.keys().collect::<Vec<_>>(), "{variant}");
    for ((key, value), (_, expected)) in gguf.metadata.iter().zip(golden) {
        let expected = &expected[1];
        if key == "general.file_type" || expected.is_array() {
            continue;
        }
        let text = expected.as_str();
        if let (Some(found), Some(expected)) = (value.as_str(), text) {
            assert_eq!(found, expected, "{variant} {key}");
        } else if let (Some(found), Some(expected)) = (value.as_u64(), expected.as_u64()) {
            assert_eq!(found, expected, "{variant} {key}");
        } else if let (Some(found), Some(expected)) = (value.as_f64(), expected.as_f64()) {
            assert!(found == expected, "{variant} {key}: {found} {expected}");
        }
    }
}

#[test]
fn pieces_cover_their_tensors() {
    for variant in VARIANTS {
        let source = checkpoint(variant, |_| {});
        let blueprint = crate::plan::blueprint(&source, "f32", &options()).unwrap();
        for tensor in &blueprint.tensors {
            let covered: u64 = tensor
                .pieces
                .iter()
                .map(|piece| (piece.rows.len() * source.tensors()[piece.source].matrix().1) as u64)
                .sum();
            assert_eq!(covered, tensor.len_elems(), "{variant} {:?}", tensor.names);
        }
        let read: std::collections::HashSet<usize> =
            blueprint.tensors.iter().flat_map(|tensor| &tensor.pieces).map(|piece| piece.source).collect();
        let dropped: usize = blueprint.dropped.iter().map(|group| group.tensors.len()).sum();
        assert_eq!(read.len() + dropped, source.tensors().len(), "{variant}");
    }
}

#[test]
fn splits_are_named_after_the_output_and_hold_every_tensor() {
    let source = checkpoint("experts8", |_| {});
    let whole = crate::plan::blueprint(&source, "q4_k_m", &options()).unwrap();
    let options = Options { split_max_bytes: Some(4_000_000), ..options() };
    let split = crate::plan::blueprint(&source, "q4_k_m", &options).unwrap();
    let count = split.files.len();
    assert!(count > 2 && !split.is_directory);
    assert_eq!(split.files[1].name, format!("model-00002-of-{count:05}.gguf"));
    assert_eq!(split.tensors.len(), whole.tensors.len());
    for (a, b) in split.tensors.iter().zip(&whole.tensors) {
        assert_eq!((&a.names, &a.type_name), (&b.names, &b.type_name));
        assert_eq!(a.placements[0].len_bytes, b.placements[0].len_bytes);
        let file = &split.files[a.placements[0].file];
        assert!(a.placements[0].offset_bytes >= file.header.len() as u64);
        assert!(a.placements[0].offset_bytes + a.placements[0].len_bytes <= file.len_bytes);
    }
}

#[test]
fn an_unknown_tokenizer_offers_a_way_out() {
    let source = checkpoint("ragged", |_| {});
    let options = Options { tokenizer_pre: None, ..options() };
    let error = crate::plan::blueprint(&source, "q8_0", &options).err().unwrap().to_string();
    assert!(error.contains("fingerprint") && error.contains("--tokenizer-pre NAME"), "{error}");
}

#[test]
fn broken_small_files_are_named() {
    for (file, content, expected) in [
        ("tokenizer.json", "{}", "tokenizer.json"),
        ("tokenizer_config.json", "[", "tokenizer_config.json"),
        ("README.md", "---\nlicense: 1.5\n---\n", "README.md: key license: found 1.5"),
        ("generation_config.json", "{\"top_k\": \"x\"}", "generation_config.json: key top_k"),
    ] {
        let source = checkpoint("ragged", |files| {
            files.insert(file.into(), content.into());
        });
        let error = crate::plan::blueprint(&source, "q8_0", &options()).err().unwrap().to_string();
        assert!(error.contains(expected), "{file}: {error}");
    }
    let source = checkpoint("ragged", |files| {
        files.remove("tokenizer.json");
    });
    let error = crate::plan::blueprint(&source, "q8_0", &options()).err().unwrap().to_string();
    assert!(error.starts_with("tokenizer.json: not found"), "{error}");
    let source = checkpoint("ragged", |files| {
        let bytes = files.remove("tokenizer.json").unwrap();
        files.insert("tiktoken.model".into(), bytes);
    });
    let error = crate::plan::blueprint(&source, "q8_0", &options()).err().unwrap().to_string();
    assert!(error.contains("tiktoken.model is not read"), "{error}");
}

#[test]
fn what_llama_cpp_would_not_open_is_refused() {
    for (key, value) in [
        ("q_lora_rank", serde_json::Value::Null),
        ("n_group", 4.into()),
        ("topk_group", 2.into()),
        ("num_hidden_layers", 513.into()),
    ] {
        let source = checkpoint("ragged", |files| {
            let mut config: Value = serde_json::from_slice(&files["config.json"]).unwrap();
            config[key] = value;
            files.insert("config.json".into(), config.to_string().into_bytes());
        });
        let error = crate::plan::blueprint(&source, "q8_0", &options()).err().unwrap().to_string();
        assert!(error.contains(key) && error.contains("llama.cpp opens"), "{key}: {error}");
    }
}
