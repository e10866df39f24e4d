//! The fixture converted to GGUF, against the files of `convert_hf_to_gguf.py --outtype f32` and
//! `llama-quantize`.

use requant::plan::{Options, Rule, Rules};
use requant_formats::container::gguf;
use serde_json::Value;

use crate::conversion::{Silent, convert, convert_with, fixtures, model, names, settings, sha256};

/// The golden listing is of the converter's output, before llama-quantize sorts the tensors.
const NOT_A_TARGET: &str = "converted";

#[test]
fn files_equal_those_of_llama_cpp() {
    let mut formats = 0;
    for name in names(&fixtures().join("goldens/gguf")) {
        let format = name.strip_suffix(".json").unwrap();
        if format == NOT_A_TARGET {
            continue;
        }
        let golden = std::fs::read(fixtures().join("goldens/gguf").join(&name)).unwrap();
        let golden: Value = serde_json::from_slice(&golden).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("model.gguf");
        let outcome = convert(&model(), format, 3, &output).unwrap();
        let bytes = std::fs::read(&output).unwrap();
        assert_eq!(bytes.len() as u64, golden["size"].as_u64().unwrap(), "{format}");
        assert_eq!(sha256(&bytes), golden["sha256"].as_str().unwrap(), "{format}");
        assert_eq!(outcome.manifest.files[0].sha256, golden["sha256"].as_str().unwrap(), "{format}");
        formats += 1;
    }
    assert_eq!(formats, 22);
}

#[test]
fn splits_hold_the_tensors_of_the_whole() {
    let directory = tempfile::tempdir().unwrap();
    let whole = convert(&model(), "q4_k_m", 2, &directory.path().join("whole.gguf")).unwrap();
    let options =
        Options { output_name: "model.gguf".into(), split_max_bytes: Some(1_000_000), ..Options::default() };
    let output = directory.path().join("model.gguf");
    let split = convert_with(&model(), &settings("q4_k_m", 2), &options, &output, &Silent).unwrap();
    let files: Vec<&str> = split.manifest.files.iter().map(|file| file.name.as_str()).collect();
    assert!(files.len() >= 3, "{files:?}");
    assert_eq!(files[0], format!("model-00001-of-{:05}.gguf", files.len()));
    let headers: Vec<gguf::Gguf> = files
        .iter()
        .map(|name| {
            let bytes = std::fs::read(directory.path().join(name)).unwrap();
            gguf::read(&mut bytes.as_slice(), bytes.len() as u64).unwrap()
        })
        .collect();
    gguf::split::check(&headers).unwrap();
    let digests = |manifest: &requant::pipeline::Manifest| -> Vec<(String, String)> {
        manifest.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.sha256.clone())).collect()
    };
    assert_eq!(digests(&split.manifest), digests(&whole.manifest));
    assert!(!output.exists());
}

/// llama-quantize has no file type of NVFP4, but writes it with `--tensor-type`.
#[test]
fn nvfp4_files_equal_those_of_llama_cpp() {
    let golden = std::fs::read(fixtures().join("goldens/gguf-tensor-type/nvfp4.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("model.gguf");
    let rules = Rules::new(vec![Rule::from_argument(".*=nvfp4").unwrap()]);
    let options = Options { rules, ..Options::default() };
    convert_with(&model(), &settings("q8_0", 2), &options, &output, &Silent).unwrap();
    let bytes = std::fs::read(&output).unwrap();
    let file = gguf::read(&mut bytes.as_slice(), bytes.len() as u64).unwrap();
    for row in golden["tensors"].as_array().unwrap() {
        let tensor = file.tensors.iter().find(|tensor| row[0] == tensor.name.as_str()).unwrap();
        let from = usize::try_from(file.data_offset_bytes + tensor.offset_bytes).unwrap();
        let blocks = &bytes[from..][..usize::try_from(tensor.len_bytes).unwrap()];
        assert_eq!(tensor.ggml_type.name(), row[1], "{}", tensor.name);
        assert_eq!(sha256(blocks), row[5].as_str().unwrap(), "{}", tensor.name);
    }
    assert_eq!(sha256(&bytes), golden["sha256"].as_str().unwrap());
    requant::opened::Opened::open(&output).unwrap().evaluable().unwrap();
}

#[test]
fn kimi_k2_is_deepseek_v3_by_another_name() {
    let directory = tempfile::tempdir().unwrap();
    // The directory's name becomes that of the model.
    let kimi = directory.path().join(model().file_name().unwrap());
    std::fs::create_dir(&kimi).unwrap();
    for name in names(&model()) {
        std::fs::copy(model().join(&name), kimi.join(&name)).unwrap();
    }
    let config = std::fs::read_to_string(kimi.join("config.json")).unwrap();
    let renamed = config.replace("\"model_type\": \"deepseek_v3\"", "\"model_type\": \"kimi_k2\"");
    assert_ne!(config, renamed);
    std::fs::write(kimi.join("config.json"), renamed).unwrap();
    let of = |model: &std::path::Path, name: &str| {
        convert(model, "q4_k_m", 2, &directory.path().join(name)).unwrap().manifest.files[0].sha256.clone()
    };
    assert_eq!(of(&kimi, "kimi.gguf"), of(&model(), "v3.gguf"));
}
