//! Damage to finished results is found and named.

use std::path::Path;

use requant::pipeline::{self, Check};
use requant::plan::Options;

use crate::conversion::{Silent, convert, convert_with, model, settings};

/// Problems of all files, one string.
fn problems(output: &Path) -> String {
    let checks: Vec<Check> = pipeline::verify(output, &Silent).unwrap();
    checks.iter().flat_map(|check| check.problems.iter().map(|p| format!("{}: {p}\n", check.file))).collect()
}

/// Changes one byte of a file.
fn flip(path: &Path, at: u64) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at as usize] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_gguf_file() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("m.gguf");
    let manifest = convert(&model(), "q4_k_m", 2, &output).unwrap().manifest;
    assert_eq!(problems(&output), "");

    let good = std::fs::read(&output).unwrap();
    for number in [0, 7, manifest.tensors.len() - 1] {
        let tensor = &manifest.tensors[number];
        flip(&output, tensor.offset + tensor.bytes - 1);
        let found = problems(&output);
        assert!(found.contains(&tensor.name) && found.contains("sha256"), "{found}");
        assert_eq!(found.matches("tensor ").count(), 1, "{found}");
        std::fs::write(&output, &good).unwrap();
    }
    flip(&output, 100);
    assert!(problems(&output).contains("header"));

    let last = manifest.tensors.last().unwrap();
    std::fs::write(&output, &good[..(last.offset + last.bytes - 1) as usize]).unwrap();
    let (found, last) = (problems(&output), &last.name);
    assert!(found.contains("truncated") && found.contains(&good.len().to_string()), "{found}");
    assert!(found.contains(last.as_str()), "{found}");

    std::fs::write(&output, [good.as_slice(), b"tail"].concat()).unwrap();
    assert!(problems(&output).contains("4 bytes too long"));

    std::fs::remove_file(&output).unwrap();
    assert!(problems(&output).contains("missing"));
}

#[test]
fn a_renamed_file_with_its_manifest() {
    let directory = tempfile::tempdir().unwrap();
    convert(&model(), "q4_0", 2, &directory.path().join("m.gguf")).unwrap();
    for suffix in ["", ".manifest.json"] {
        let name = |stem: &str| directory.path().join(format!("{stem}{suffix}"));
        std::fs::rename(name("m.gguf"), name("other.gguf")).unwrap();
    }
    assert_eq!(problems(&directory.path().join("other.gguf")), "");
}

#[test]
fn a_split_set_from_any_member() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("m.gguf");
    let options =
        Options { output_name: "m.gguf".into(), split_max_bytes: Some(1_000_000), ..Options::default() };
    let outcome = convert_with(&model(), &settings("q8_0", 2), &options, &output, &Silent).unwrap();
    let files = &outcome.manifest.files;
    let member = directory.path().join(&files[1].name);
    assert_eq!(problems(&member), "");
    assert_eq!(problems(&output), "");
    std::fs::remove_file(directory.path().join(&files[0].name)).unwrap();
    let found = problems(&member);
    assert!(found.contains(&files[0].name) && found.contains("missing"), "{found}");
}

#[test]
fn an_mlx_directory() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("m");
    let manifest = convert(&model(), "mlx-4bit", 2, &output).unwrap().manifest;
    assert_eq!(problems(&output), "");
    let tensor = &manifest.tensors[3];
    flip(&output.join(&tensor.file), tensor.offset);
    let found = problems(&output);
    assert!(found.contains(&tensor.name), "{found}");
    flip(&output.join(&tensor.file), tensor.offset);
    flip(&output.join("config.json"), 3);
    assert!(problems(&output).contains("config.json"));
    std::fs::remove_file(output.join("tokenizer.json")).unwrap();
    assert!(problems(&output).contains("tokenizer.json: missing"));
}

#[test]
fn no_manifest_no_verdict() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("m.gguf");
    assert!(pipeline::verify(&output, &Silent).unwrap_err().to_string().contains("no such file"));
    std::fs::write(&output, b"GGUF").unwrap();
    let error = pipeline::verify(&output, &Silent).unwrap_err().to_string();
    assert!(error.contains("m.gguf.manifest.json"), "{error}");
    std::fs::write(directory.path().join("m.gguf.manifest.json"), b"{").unwrap();
    let error = pipeline::verify(&output, &Silent).unwrap_err().to_string();
    assert!(error.contains("manifest.json") && error.contains("not a manifest"), "{error}");
}
