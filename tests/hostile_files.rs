//! Files that somebody made to do harm: endless or huge small files, pipes and devices in their place, explosive
//! contents, absurd numbers, names that lead out of their directory. Each is refused by name, soon, and in little memory.

use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use requant::checkpoint::Checkpoint;
use requant::source::LocalDirectory;
use requant_formats::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::conversion::{convert, model};
use crate::maker::{self, Size, Storage};
use crate::served::text;

/// Most memory a command may ask for here: 3 GB, a third of what today's largest config takes as values.
const MEMORY_KIB: &str = "3000000";

/// Runs the program with an upper bound on memory; above it the process aborts.
fn requant(arguments: &[&str]) -> Output {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("ulimit -v {MEMORY_KIB} && ulimit -c 0 && exec \"$0\" \"$@\""));
    command.arg(env!("CARGO_BIN_EXE_requant")).args(arguments).env("HF_HUB_OFFLINE", "1").process_group(0);
    let mut child = command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .stdin(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > Duration::from_secs(200) {
            child.kill().unwrap();
            panic!("{arguments:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

/// What a command says that must fail; it must name `words`, be short, and be no panic.
#[track_caller]
fn refused(arguments: &[&str], words: &[&str]) -> String {
    let output = requant(arguments);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {:?} {error}", output.status);
    for word in words {
        assert!(error.contains(word), "{arguments:?}: no {word:?} in: {error}");
    }
    assert!(!error.contains("panicked"), "{error}");
    assert!(error.len() < 4000, "{} bytes: {}", error.len(), &error[..200]);
    error
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A copy of the trained model that can be changed.
fn copy() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(model()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
    directory
}

/// A file that is 64 GB long and takes no room.
fn sparse(path: &Path) {
    let _ = std::fs::remove_file(path);
    std::fs::File::create(path).unwrap().set_len(64 << 30).unwrap();
}

fn fifo(path: &Path) {
    let _ = std::fs::remove_file(path);
    let made = Command::new("mkfifo").arg(path).status().unwrap();
    assert!(made.success());
}

/// For each file: which command reads it.
const READ_BY: &[(&str, &str)] = &[
    ("config.json", "q4_k_m"),
    ("model.safetensors.index.json", "q4_k_m"),
    ("tokenizer.json", "q4_k_m"),
    ("tokenizer_config.json", "q4_k_m"),
    ("special_tokens_map.json", "q4_k_m"),
    ("README.md", "q4_k_m"),
    ("generation_config.json", "q4_k_m"),
    ("chat_template.jinja", "q4_k_m"),
    ("chat_template.json", "q4_k_m"),
    ("generation_config.json", "mlx-4bit"),
    ("tokenizer.json", "mlx-4bit"),
    ("tokenizer.model", "mlx-4bit"),
    ("merges.txt", "compressed-tensors-w4a16"),
    ("configuration_deepseek.py", "gptq-4bit-128g"),
    ("qwen.tiktoken", "mlx-4bit"),
];

#[test]
fn huge_small_files_of_a_checkpoint() {
    for (name, format) in READ_BY {
        let directory = copy();
        sparse(&directory.path().join(name));
        refused(&["plan", path(directory.path()), "--to", format], &[name, "68719476736", "at most"]);
    }
    let text = model().with_file_name("text").join("heldout.txt");
    let directory = copy();
    sparse(&directory.path().join("config.json"));
    refused(&["inspect", path(directory.path())], &["config.json", "at most"]);
    refused(&["perplexity", path(directory.path()), "--text", path(&text)], &["config.json", "at most"]);
}

#[test]
fn what_is_no_file_in_the_place_of_one() {
    // Those that are found by the end of their name are not missed when they are no files.
    let named = READ_BY.iter().filter(|(name, _)| !name.ends_with(".py") && !name.ends_with(".tiktoken"));
    for (name, format) in named {
        let directory = copy();
        let file = directory.path().join(name);
        let _ = std::fs::remove_file(&file);
        std::fs::create_dir(&file).unwrap();
        refused(&["plan", path(directory.path()), "--to", format], &[name, "a directory"]);
        std::fs::remove_dir(&file).unwrap();
        fifo(&file);
        refused(&["plan", path(directory.path()), "--to", format], &[name, "a named pipe"]);
        std::fs::remove_file(&file).unwrap();
        symlink("/dev/zero", &file).unwrap();
        refused(&["plan", path(directory.path()), "--to", format], &[name, "a device"]);
    }
}

#[test]
fn files_named_on_the_command_line() {
    let directory = tempfile::tempdir().unwrap();
    let huge = directory.path().join("huge");
    sparse(&huge);
    let source = model();
    let source = path(&source);
    let elsewhere = tempfile::tempdir().unwrap();
    let output = elsewhere.path().join("m.gguf");
    for (file, word) in
        [(path(&huge), "at most"), ("/dev/zero", "a device"), (path(directory.path()), "a directory")]
    {
        refused(&["plan", source, "--to", "q4_k_m", "--recipe", file], &[file, word]);
        refused(&["perplexity", source, "--text", file], &[file, word]);
        refused(&["perplexity", source, "--tokens", file], &[file, word]);
        refused(&["verify", source, "--sums", file], &[file, word]);
        let validate =
            ["convert", source, "--to", "q4_k_m", "-o", path(&output), "--validate", file, "--quiet"];
        refused(&validate, &[file, word]);
        assert!(!output.exists());
    }
    // A text to validate with is read again later, so that it cannot be a pipe. Others can: `--recipe <(command)`.
    let pipe = directory.path().join("pipe");
    fifo(&pipe);
    let validate =
        ["convert", source, "--to", "q4_k_m", "-o", path(&output), "--validate", path(&pipe), "--quiet"];
    refused(&validate, &["a named pipe"]);
    let recipe = "[[rule]]\ntarget = \"token_embd.weight\"\ntype = \"q8_0\"\n";
    let plan = ["plan", source, "--to", "q4_k_m", "--recipe", path(&pipe)];
    let planned = std::thread::scope(|scope| {
        scope.spawn(|| std::fs::write(&pipe, recipe).unwrap());
        requant(&plan)
    });
    assert!(planned.status.success(), "{}", text(&planned.stderr));
}

#[test]
fn manifest_and_journal() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("m.gguf");
    convert(&model(), "q4_0", 2, &output).unwrap();
    let manifest = directory.path().join("m.gguf.manifest.json");
    sparse(&manifest);
    refused(&["verify", path(&output)], &["m.gguf.manifest.json", "at most"]);
    std::fs::write(&manifest, format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000))).unwrap();
    refused(&["verify", path(&output)], &["m.gguf.manifest.json", "levels"]);

    let second = directory.path().join("n.gguf");
    sparse(&directory.path().join("n.gguf.journal"));
    let source = model();
    let words = ["n.gguf.journal", "at most"];
    refused(&["convert", path(&source), "--to", "q4_0", "-o", path(&second), "--quiet"], &words);
}

#[test]
fn json_that_is_deep_or_has_millions_of_values() {
    for name in ["config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"] {
        for (content, word) in [
            (format!("{{\"a\": {}0{}}}", "[".repeat(1_000_000), "]".repeat(1_000_000)), "levels"),
            (format!("{{\"a\": [{}0]}}", "0,".repeat(9_000_000)), "values"),
            ("{\"a\": 1e999}".to_owned(), "number out of range"),
            (format!("{{\"{}\": ", "k".repeat(10 << 20)), "JSON"),
        ] {
            let directory = copy();
            std::fs::write(directory.path().join(name), content).unwrap();
            let error = refused(&["plan", path(directory.path()), "--to", "q4_k_m"], &[name]);
            // What a tokenizer's definition does not use is not looked at.
            let is_other = error.contains("EOF while parsing") || error.contains("missing field `model`");
            assert!(error.contains(word) || is_other, "{name}: no {word} in {error}");
        }
    }
}

#[test]
fn front_matter_that_explodes() {
    let laughs = (1..12).fold("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned(), |text, level| {
        let before = format!("*a{}", level - 1);
        text + &format!("a{level}: &a{level} [{}]\n", [before.as_str(); 10].join(", "))
    });
    for yaml in ["- ".repeat(32_000), "[".repeat(32_000), laughs, format!("{}: x", "k".repeat(10 << 20))] {
        let directory = copy();
        std::fs::write(directory.path().join("README.md"), format!("---\n{yaml}\n---\n")).unwrap();
        refused(&["plan", path(directory.path()), "--to", "q4_k_m"], &["README.md: front matter is"]);
    }
}

/// Changes a JSON file of a copy of the model, and plans.
#[track_caller]
fn refused_with(name: &str, words: &[&str], change: impl FnOnce(&mut Value)) {
    let directory = copy();
    let file = directory.path().join(name);
    let mut value: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(&file, value.to_string()).unwrap();
    refused(&["plan", path(directory.path()), "--to", "q4_k_m"], words);
}

#[test]
fn tokenizers_that_explode() {
    let doubling = json!({"type": "Replace", "pattern": {"String": "3"}, "content": "33"});
    let all = json!({"type": "Replace", "pattern": {"Regex": "(?s)."}, "content": "x".repeat(1 << 20)});
    for normalizer in [json!({"type": "Sequence", "normalizers": vec![doubling; 200]}), all] {
        refused_with("tokenizer.json", &["tokenizer.json", "normalizer"], |tokenizer| {
            tokenizer["normalizer"] = normalizer;
        });
    }
    refused_with("tokenizer.json", &["tokenizer.json", "merges"], |tokenizer| {
        let longest = tokenizer["model"]["vocab"]
            .as_object()
            .unwrap()
            .keys()
            .max_by_key(|key| key.len())
            .unwrap()
            .clone();
        tokenizer["model"]["merges"] = json!([[longest, longest]]);
    });
}

#[test]
fn absurd_numbers_in_config() {
    let directory = copy();
    let file = directory.path().join("config.json");
    let good: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let error_of = |change: &dyn Fn(&mut Value)| {
        let mut config = good.clone();
        change(&mut config);
        std::fs::write(&file, config.to_string()).unwrap();
        let source = LocalDirectory::open(directory.path()).unwrap();
        let error = Checkpoint::open(Box::new(source)).err().expect("the config is absurd").to_string();
        assert!(error.contains("config.json") && error.len() < 1000, "{error}");
        error
    };
    let dimensions = [
        "num_hidden_layers",
        "n_routed_experts",
        "hidden_size",
        "vocab_size",
        "num_attention_heads",
        "kv_lora_rank",
        "moe_intermediate_size",
        "intermediate_size",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        "num_experts_per_tok",
    ];
    let absurd = [
        json!(1_000_000_000),
        json!(1_000_000_000_000_u64),
        json!(1_u64 << 62),
        json!(u64::MAX),
        json!(0),
        json!(-1),
        json!(1.5),
        json!(1e300),
        json!("7168"),
        json!([]),
        json!({}),
        json!(true),
        json!("9".repeat(1 << 20)),
    ];
    for key in dimensions {
        for value in &absurd {
            let error = error_of(&|config| config[key] = value.clone());
            assert!(error.contains(key), "{error}");
        }
    }
    // Within the bounds of each, but not together.
    let error = error_of(&|config| {
        config["num_hidden_layers"] = json!(10_000);
        config["n_routed_experts"] = json!(65_536);
    });
    assert!(error.contains("experts"), "{error}");
    for (key, value) in [
        ("first_k_dense_replace", json!(-1)),
        ("n_shared_experts", json!(1e9)),
        ("n_group", json!(0)),
        ("topk_group", json!(1 << 30)),
        ("routed_scaling_factor", json!("x")),
        ("rms_norm_eps", json!([])),
        ("num_nextn_predict_layers", json!(1 << 20)),
        ("model_type", json!("x".repeat(1 << 20))),
    ] {
        let error = error_of(&|config| config[key] = value.clone());
        assert!(error.contains(key), "{error}");
    }
    for block in [json!([0, 0]), json!([1_u64 << 63, 1]), json!([128]), json!("x"), json!([-1, 128])] {
        let error = error_of(&|config| config["quantization_config"]["weight_block_size"] = block.clone());
        assert!(error.contains("weight_block_size"), "{error}");
    }
}

#[test]
fn an_index_stays_in_its_directory() {
    let directory = tempfile::tempdir().unwrap();
    let inner = directory.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let mut checkpoint = maker::checkpoint(Size::default(), Storage::Fp8(Dtype::F8_E4M3));
    checkpoint.write(&inner);
    let shard = "model-00001-of-00001.safetensors";
    // Where the names lead there is such a shard.
    std::fs::copy(inner.join(shard), directory.path().join(shard)).unwrap();
    let absolute = directory.path().join(shard).display().to_string();
    for name in [format!("../{shard}"), absolute, format!("./{shard}"), "/dev/zero".into(), String::new()] {
        checkpoint.extra_index =
            checkpoint.tensors.iter().map(|tensor| (tensor.name.clone(), name.clone())).collect();
        checkpoint.write(&inner);
        refused(&["plan", path(&inner), "--to", "mlx-4bit"], &["model.safetensors.index.json", &name]);
    }
}

/// A result in a directory, and its manifest.
fn result(name: &str, format: &str) -> (TempDir, PathBuf, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join(name);
    convert(&model(), format, 2, &output).unwrap();
    let inside = output.join("requant.manifest.json");
    let manifest =
        if inside.is_file() { inside } else { directory.path().join(format!("{name}.manifest.json")) };
    (directory, output, manifest)
}

#[test]
fn a_manifest_stays_in_its_directory() {
    for (name, format) in [("m.gguf", "q4_0"), ("m", "mlx-4bit")] {
        let (directory, output, manifest) = result(name, format);
        std::fs::write(directory.path().join("secret"), "of somebody else").unwrap();
        let good: Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
        for outside in ["/etc/passwd", "../secret", "a/../../secret", "..", "", "/"] {
            let mut bad = good.clone();
            let mut record = good["files"][0].clone();
            record["name"] = json!(outside);
            bad["files"].as_array_mut().unwrap().push(record);
            std::fs::write(&manifest, bad.to_string()).unwrap();
            let error = refused(&["verify", path(&output)], &["manifest.json", "below the directory"]);
            assert!(!error.contains("found"), "nothing is hashed: {error}");
        }
        type Change = fn(&mut Value);
        let changes: [(Change, &str); 8] = [
            (|m| m["files"][0]["sha256"] = json!("no"), "sha256"),
            (|m| m["files"][0]["bytes"] = json!(-1), "not a manifest"),
            (|m| m["tensors"][0]["offset"] = json!(u64::MAX), "beyond the end"),
            (|m| m["tensors"][0]["bytes"] = json!(u64::MAX), "beyond the end"),
            (|m| m["tensors"][0]["file"] = json!("../secret"), "no such file"),
            (
                |m| {
                    let tensors = m["tensors"].as_array().unwrap();
                    let largest =
                        tensors.iter().max_by_key(|tensor| tensor["bytes"].as_u64()).unwrap().clone();
                    m["tensors"] = json!(vec![largest; 1000]);
                },
                "overlap",
            ),
            (|m| m["files"] = json!([m["files"][0].clone(), m["files"][0].clone()]), "twice"),
            (
                |m| {
                    let mut huge = m["files"][0].clone();
                    huge["name"] = json!("x");
                    huge["bytes"] = json!(u64::MAX);
                    m["files"].as_array_mut().unwrap().push(huge);
                },
                "2^64",
            ),
        ];
        for (change, word) in changes {
            let mut bad = good.clone();
            change(&mut bad);
            std::fs::write(&manifest, bad.to_string()).unwrap();
            refused(&["verify", path(&output)], &["manifest.json", word]);
        }
        std::fs::write(&manifest, good.to_string()).unwrap();
        assert!(requant(&["verify", path(&output)]).status.success());
    }
}

#[test]
fn links_and_pipes_among_the_files_of_a_result() {
    let (directory, output, manifest) = result("m", "mlx-4bit");
    let good: Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    let file = output.join("config.json");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(directory.path().join("elsewhere"), &bytes).unwrap();

    std::fs::remove_file(&file).unwrap();
    symlink("../elsewhere", &file).unwrap();
    let verdict = requant(&["verify", path(&output)]);
    let found = text(&verdict.stdout);
    assert_eq!(verdict.status.code(), Some(1));
    assert!(found.contains("config.json: not checked") && found.contains("elsewhere"), "{found}");

    std::fs::remove_file(&file).unwrap();
    fifo(&file);
    let verdict = requant(&["verify", path(&output)]);
    assert!(text(&verdict.stdout).contains("a named pipe"), "{}", text(&verdict.stdout));

    // A link that stays inside is a file like any other.
    std::fs::remove_file(&file).unwrap();
    std::fs::write(output.join("copy"), &bytes).unwrap();
    symlink("copy", &file).unwrap();
    assert!(requant(&["verify", path(&output)]).status.success());
    assert!(good["files"].as_array().unwrap().len() > 2);
}

#[test]
fn a_list_of_checksums_stays_in_its_directory() {
    let directory = tempfile::tempdir().unwrap();
    let hash = "0".repeat(64);
    let list = directory.path().join("SHA256SUMS");
    std::fs::write(&list, format!("{hash}  /etc/passwd\n{hash}  ../x\n{hash}  SHA256SUMS\n")).unwrap();
    for arguments in
        [vec!["verify", path(directory.path()), "--sums", path(&list)], vec!["verify", path(&list)]]
    {
        let output = requant(&arguments);
        let found = text(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{found}");
        assert_eq!(found.matches("not checked").count(), 2, "{found}");
        assert_eq!(found.matches("found ").count(), 1, "{found}");
    }
}
