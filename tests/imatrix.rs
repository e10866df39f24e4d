//! Conversions with an importance matrix, against the files of `llama-quantize --imatrix`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use requant::checkpoint::SourceTensor;
use serde_json::Value;

use crate::conversion::{self, fixtures, model};

fn goldens() -> PathBuf {
    fixtures().join("goldens/imatrix")
}

fn sha256(path: &Path) -> String {
    conversion::sha256(&std::fs::read(path).unwrap())
}

/// A folder with the importance matrices: their paths become part of a result as they are typed.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["imatrix.gguf", "imatrix.dat"] {
        std::fs::copy(goldens().join(name), folder.path().join(name)).unwrap();
    }
    folder
}

fn requant(folder: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_requant")).args(words).current_dir(folder).output().unwrap()
}

fn succeed(folder: &Path, words: &[&str]) -> String {
    let output = requant(folder, words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn fail(folder: &Path, words: &[&str]) -> (i32, String) {
    let output = requant(folder, words);
    assert!(!output.status.success(), "{words:?}");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// An importance matrix in the older format, in which every column of all matrices counts the same.
pub(crate) fn ones(tensors: &[SourceTensor]) -> Vec<u8> {
    let number = |value: usize| (value as i32).to_le_bytes().to_vec();
    let matrices = tensors.iter().filter(|tensor| tensor.shape.len() > 1);
    let entries: Vec<Vec<u8>> = matrices
        .map(|tensor| {
            let (name, shape) = (tensor.name.as_bytes(), &tensor.shape);
            let columns = shape[shape.len() - 1] * if shape.len() > 2 { shape[0] } else { 1 };
            let values = 1.0f32.to_le_bytes().repeat(columns);
            [number(name.len()), name.to_vec(), number(1), number(columns), values].concat()
        })
        .collect();
    [number(entries.len()), entries.concat()].concat()
}

fn index() -> Vec<Value> {
    let bytes = std::fs::read(goldens().join("index.json")).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[test]
fn files_equal_those_of_llama_quantize() {
    let (folder, model) = (folder(), model());
    let checkpoint = model.to_str().unwrap();
    succeed(folder.path(), &["convert", checkpoint, "--to", "f32", "-o", "f32.gguf", "-q"]);
    let mut compared = 0;
    for entry in index() {
        let kind = entry["type"].as_str().unwrap();
        let options: Vec<&str> =
            entry["options"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
        // From the checkpoint and from the file that llama-quantize was given.
        for source in [checkpoint, "f32.gguf"] {
            let words = ["convert", source, "--to", kind, "-o", "m.gguf", "-q", "--force"];
            succeed(folder.path(), &[&words[..], &options[..]].concat());
            let found = sha256(&folder.path().join("m.gguf"));
            assert_eq!(found, entry["sha256"].as_str().unwrap(), "{source} {kind} {options:?}");
            compared += 1;
        }
    }
    assert!(compared >= 78, "{compared}");
}

/// What llama-quantize refuses, before any work and with the way out.
#[test]
fn types_that_need_one_are_refused_without() {
    let (folder, model) = (folder(), model());
    let model = model.to_str().unwrap();
    let list = succeed(folder.path(), &["formats", "gguf", "--json"]);
    let list: Value = serde_json::from_str(&list).unwrap();
    let mut refused = Vec::new();
    for format in list["formats"].as_array().unwrap() {
        let name = format["name"].as_str().unwrap();
        if format["importance_matrix"] != "wanted" || name == "q2_k_s" {
            continue;
        }
        refused.push(name);
        let words = ["convert", model, "--to", name, "-o", "m.gguf", "-q"];
        let (code, message) = fail(folder.path(), &words);
        assert!(code == 1 && message.contains("blk.") && message.contains("becomes IQ"), "{name}: {message}");
        assert!(message.contains("requant calibrate") && message.contains("--imatrix"), "{name}: {message}");
        let part =
            ["--imatrix", "imatrix.gguf", "--include-weights", "lorem", "--include-weights", "ffn_down"];
        let (code, message) = fail(folder.path(), &[&words[..], &part].concat());
        assert!(code == 1 && message.contains("imatrix.gguf: nothing about blk.0."), "{name}: {message}");
        assert!(message.contains("--tensor-type"), "{name}: {message}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "{name}");
    }
    assert_eq!(refused, ["iq3_xs", "iq3_xxs", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s"]);
    // Embeddings and head do without where ggml can.
    let plan = ["plan", model, "--to", "q4_k_m", "--tensor-type"];
    succeed(folder.path(), &[&plan[..], &["token_embd=iq3_xxs"]].concat());
    let (_, message) = fail(folder.path(), &[&plan[..], &["token_embd=iq2_xs"]].concat());
    assert!(message.contains("token_embd.weight becomes IQ2_XS"), "{message}");
    let (_, message) = fail(folder.path(), &["plan", model, "--to", "q1_0"]);
    assert!(message.contains("blocks of Q1_0 (128) do not divide"), "{message}");
}

#[test]
fn the_manifest_and_the_plan_say_what_was_used() {
    let (folder, model) = (folder(), model());
    let model = model.to_str().unwrap();
    let options = ["--imatrix", "imatrix.gguf", "--exclude-weights", "ffn_down_exps"];
    let plan = succeed(folder.path(), &[&["plan", model, "--to", "q4_k_m"][..], &options[..]].concat());
    assert!(plan.contains("importance matrix imatrix.gguf: used for "), "{plan}");
    assert!(plan.contains("nothing about blk.1.ffn_down_exps.weight"), "{plan}");
    let words = ["convert", model, "--to", "q4_k_m", "-o", "m.gguf", "-q"];
    succeed(folder.path(), &[&words[..], &options[..]].concat());
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("m.gguf.manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["imatrix"]["file"], "imatrix.gguf");
    assert_eq!(manifest["imatrix"]["sha256"], sha256(&folder.path().join("imatrix.gguf")).as_str());
    assert!(manifest["imatrix"]["tensors"].as_u64().unwrap() > 10);
    succeed(folder.path(), &["verify", "m.gguf"]);
}

#[test]
fn what_does_not_belong_together_is_said_before_any_work() {
    let (folder, model) = (folder(), model());
    let model = model.to_str().unwrap();
    let bytes = std::fs::read(folder.path().join("imatrix.dat")).unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("cut", &bytes[..bytes.len() / 2]);
    write("empty", b"");
    write("text", b"Four score and seven years ago our fathers brought forth");
    // The first value of the first entry, behind three numbers and a name.
    let name_len = i32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
    let first = 4 + 4 + name_len + 8;
    for (name, value) in [("nan", f32::NAN), ("negative", -1.0), ("infinite", f32::INFINITY)] {
        let mut damaged = bytes.clone();
        damaged[first..first + 4].copy_from_slice(&value.to_le_bytes());
        write(name, &damaged);
    }
    // One entry for a tensor of the model, with one column too few.
    let entry = |name: &str, values: usize| {
        let number = |value: usize| (value as i32).to_le_bytes().to_vec();
        let values_bytes = 1.0f32.to_le_bytes().repeat(values);
        [number(1), number(name.len()), name.as_bytes().to_vec(), number(1), number(values), values_bytes]
            .concat()
    };
    write("other", &entry("blk.0.ffn_down.weight", 511));
    write("embeddings", &entry("token_embd.weight", 511));
    let cases = [
        ("cut", "ends before"),
        ("empty", "empty"),
        ("text", "neither a GGUF file nor an importance matrix"),
        ("nan", "expected a number"),
        ("negative", "expected a number"),
        ("infinite", "expected a number"),
        ("other", "found 511 columns, expected 512"),
        ("missing", "missing"),
        (".", "."),
    ];
    for (name, expected) in cases {
        let words = ["convert", model, "--to", "q4_k_m", "-o", "m.gguf", "-q", "--imatrix", name];
        let (code, message) = fail(folder.path(), &words);
        assert!(code == 1 && message.contains(name) && message.contains(expected), "{code}: {message}");
        assert!(!folder.path().join("m.gguf.partial").exists(), "{name}");
    }
    // Sums of embeddings never fit, so they are left alone.
    let words = ["convert", model, "--to", "q4_k_m", "-o", "m.gguf", "-q", "--imatrix", "embeddings"];
    succeed(folder.path(), &words);

    let mlx = ["plan", model, "--to", "mlx-4bit", "--imatrix", "imatrix.gguf"];
    assert!(matches!(fail(folder.path(), &mlx), (2, message) if message.contains("--imatrix")));
    let alone = ["plan", model, "--to", "q4_k_m", "--include-weights", "ffn"];
    assert_eq!(fail(folder.path(), &alone).0, 2);
    let nothing =
        ["plan", model, "--to", "q4_k_m", "--imatrix", "imatrix.gguf", "--include-weights", "lorem"];
    assert!(matches!(fail(folder.path(), &nothing), (1, message) if message.contains("leave nothing")));
    let onto =
        ["convert", model, "--to", "q4_k_m", "-o", "imatrix.gguf", "--force", "--imatrix", "imatrix.gguf"];
    assert!(matches!(fail(folder.path(), &onto), (1, message) if message.contains("importance matrix")));
    assert_eq!(sha256(&folder.path().join("imatrix.gguf")), sha256(&goldens().join("imatrix.gguf")));
}

#[test]
fn an_unfinished_run_does_not_go_on_with_another_importance_matrix() {
    let (folder, model) = (folder(), model());
    let model = model.to_str().unwrap();
    let words = ["convert", model, "--to", "q4_k_m", "-o", "m.gguf", "--imatrix", "imatrix.gguf"];
    // A directory where the manifest is to be stops the run at its very end.
    std::fs::create_dir(folder.path().join("m.gguf.manifest.json")).unwrap();
    let (_, message) = fail(folder.path(), &words);
    assert!(folder.path().join("m.gguf.journal").exists(), "{message}");
    let mut other = std::fs::read(folder.path().join("imatrix.gguf")).unwrap();
    let last = other.len() - 2;
    other[last] ^= 1;
    std::fs::write(folder.path().join("imatrix.gguf"), &other).unwrap();
    let (_, message) = fail(folder.path(), &words);
    assert!(message.contains("its options were other ones"), "{message}");
}
