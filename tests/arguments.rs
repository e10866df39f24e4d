//! Options, MODEL and numbers that make no sense: errors before any work.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use requant_formats::Dtype;
use serde_json::Value;
use test_hub::{Content, Repo, RepoFile};

use crate::conversion::{convert, fixtures, model};
use crate::maker::{self, Size, Storage};
use crate::served::{ID, Served, text};

fn requant(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_requant")).args(arguments).output().unwrap()
}

fn cores() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

#[test]
fn more_threads_than_cores_are_capped_and_that_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let (model, output) = (model(), directory.path().join("m.gguf"));
    let (model, output) = (model.to_str().unwrap(), output.to_str().unwrap());
    let said = format!("--threads 9999: this machine offers {} core", cores());
    let plan = |threads: &str| -> Value {
        let output = requant(&["plan", model, "--to", "q4_0", "--json", "-q", "--threads", threads]);
        assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    assert_eq!(plan("9999")["peak_ram_bytes"], plan(&cores().to_string())["peak_ram_bytes"]);
    let heldout = directory.path().join("t");
    let whole = std::fs::read_to_string(fixtures().join("text/heldout.txt")).unwrap();
    std::fs::write(&heldout, &whole[..3000]).unwrap();
    for command in [
        &["plan", model, "--to", "q4_0"][..],
        &["convert", model, "--to", "q4_0", "-o", output],
        &["perplexity", model, "--text", heldout.to_str().unwrap(), "-c", "64"],
    ] {
        let started = Instant::now();
        let done = requant(&[command, &["--threads", "9999"]].concat());
        assert!(done.status.success(), "{}", text(&done.stderr));
        assert_eq!(text(&done.stderr).matches(&said).count(), 1, "{}", text(&done.stderr));
        assert!(started.elapsed() < Duration::from_secs(120));
        let few = requant(
            &[command, &["--threads", "1", "--force"][..if command[0] == "convert" { 3 } else { 2 }]]
                .concat(),
        );
        assert!(few.status.success() && !text(&few.stderr).contains("--threads"), "{}", text(&few.stderr));
    }
    let quiet =
        requant(&["convert", model, "--to", "q4_0", "-o", output, "--force", "-q", "--threads", "9999"]);
    assert!(quiet.status.success() && quiet.stderr.is_empty(), "{}", text(&quiet.stderr));
}

/// The library may be given any number: a thread without work would only look for some.
#[test]
fn a_run_on_far_too_many_threads_ends() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    std::fs::create_dir(&source).unwrap();
    maker::checkpoint(Size::default(), Storage::Plain(Dtype::BF16)).write(&source);
    maker::copy_tokenizer(&source);
    let started = Instant::now();
    let many = convert(&source, "q4_0", 9999, &directory.path().join("many.gguf")).unwrap();
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    let one = convert(&source, "q4_0", 1, &directory.path().join("one.gguf")).unwrap();
    assert_eq!(many.manifest.files[0].sha256, one.manifest.files[0].sha256);
}

#[test]
fn a_pre_tokenizer_is_one_that_llama_cpp_knows() {
    let model = model();
    let model = model.to_str().unwrap();
    for (name, near) in [("qwen-2", "qwen2"), ("deepseek_v3", "deepseek-v3"), ("Llama-bpe", "llama-bpe")] {
        let output = requant(&["plan", model, "--to", "q4_0", "--tokenizer-pre", name]);
        assert_eq!(output.status.code(), Some(2));
        let message = text(&output.stderr);
        assert!(message.contains(&format!("'{name}'")), "{message}");
        let tip = message.lines().find(|line| line.contains("similar")).unwrap_or_default();
        assert!(tip.contains(&format!("'{near}'")), "{message}");
    }
    for name in requant::opened::pre_tokenizers().step_by(9) {
        let output = requant(&["plan", model, "--to", "q4_0", "--tokenizer-pre", name]);
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
    }
    assert_eq!(requant::opened::pre_tokenizers().count(), 91);
}

#[test]
fn options_that_mean_nothing_for_the_request_are_errors() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let model = model();
    let model = model.to_str().unwrap();
    let (gguf, output, heldout, ids) = (at("m.gguf"), at("out"), at("text"), at("ids"));
    convert(Path::new(model), "q8_0", 2, Path::new(&gguf)).unwrap();
    std::fs::write(&heldout, "a text that is long enough").unwrap();
    std::fs::write(&ids, "[1, 2, 3, 4, 5, 6, 7, 8]").unwrap();
    let of_hub: &[&[&str]] = &[
        &["--revision", "main"],
        &["--cache-dir", "x"],
        &["--connections", "2"],
        &["--spool", "x"],
        &["--spool-limit", "1G"],
        &["--keep-source"],
    ];
    let cases: [(&[&str], &[&[&str]]); 12] = [
        (&["plan", model, "--to", "q4_0"], of_hub),
        (&["plan", &gguf, "--to", "q8_0"], of_hub),
        (&["convert", model, "--to", "q4_0", "-o", &output], of_hub),
        (&["convert", &gguf, "--to", "q8_0", "-o", &output], of_hub),
        (&["perplexity", model, "--text", &heldout], of_hub),
        (&["perplexity", model, "--text", &heldout, "--against", &gguf], of_hub),
        (&["perplexity", model, "--text", &heldout, "--against", "org/name"], &of_hub[..1]),
        (&["inspect", model], &of_hub[..3]),
        (&["verify", &gguf], &of_hub[..2]),
        (
            &["plan", model, "--to", "mlx-4bit"],
            &[&["--tokenizer-pre", "qwen2"], &["--split-max-size", "1G"], &["--allow-requantize"]],
        ),
        (
            &["convert", model, "--to", "q4_0", "-o", &output],
            &[&["--allow-requantize"], &["--validate-context", "64"], &["--max-kld", "1"]],
        ),
        (&["perplexity", model, "--tokens", &ids], &[&["--bos", "always"]]),
    ];
    for (command, options) in cases {
        for option in options {
            let done = requant(&[command, option].concat());
            let message = text(&done.stderr);
            assert_eq!(done.status.code(), Some(2), "{command:?} {option:?}: {message}");
            assert!(message.contains(option[0]) || message.contains("--validate"), "{option:?}: {message}");
            assert!(done.stdout.is_empty());
        }
    }
    for (option, why) in [("--revision", "is on this machine"), ("--spool", "is on this machine")] {
        let message = text(&requant(&["plan", model, "--to", "q4_0", option, "x"]).stderr);
        assert!(message.contains(why) && message.contains(model), "{message}");
    }
    assert!(!Path::new(&output).exists());
    // Checked against lists, records and the hub.
    let copy = at("copy");
    std::fs::create_dir(&copy).unwrap();
    for option in [["--revision", "main"], ["--cache-dir", "x"]] {
        let done = requant(&[&["verify", &copy, "--sums", &ids][..], &option].concat());
        assert_eq!(done.status.code(), Some(2), "{}", text(&done.stderr));
    }
    let done = requant(&["verify", &copy, "--against", "org/name", "--cache-dir", "x"]);
    assert_eq!(done.status.code(), Some(2), "{}", text(&done.stderr));
    // On the hub they all mean something.
    let served = Served::model();
    served.json(&[
        "plan",
        ID,
        "--to",
        "q4_0",
        "--revision",
        "main",
        "--connections",
        "2",
        "--spool-limit",
        "1G",
    ]);
    served.json(&[
        "convert",
        ID,
        "--to",
        "q4_0",
        "-o",
        "m.gguf",
        "--spool",
        "sp",
        "--keep-source",
        "--cache-dir",
        "c",
    ]);
}

#[test]
fn a_model_that_looks_local_and_is_not_there_is_no_matter_for_the_hub() {
    let served = Served::model();
    std::fs::create_dir(served.path("tiny")).unwrap();
    std::os::unix::fs::symlink("nowhere", served.path("dangling")).unwrap();
    let absolute = served.path("nope");
    let absolute = absolute.to_str().unwrap();
    std::fs::write(served.path("heldout"), "text").unwrap();
    for name in [
        "tiny/model-00001.safetensors",
        "tiny/model.gguf",
        "model.gguf",
        "config.json",
        "tiny/pytorch_model.bin",
        "tiny/x.pt",
        "./nope",
        "../nope",
        "nope/",
        absolute,
        "a/b/c",
        "~/nope",
        "dangling",
    ] {
        for command in [
            &["plan", name, "--to", "q4_0"][..],
            &["convert", name, "--to", "q4_0", "-o", "m.gguf"],
            &["inspect", name],
            &["perplexity", name, "--text", "heldout"],
            &["perplexity", ID, "--text", "heldout", "--against", name],
            &["verify", name],
            &["fetch", name, "-o", "d"],
        ] {
            // What is here is no matter for a download.
            if name == "dangling" && command[0] == "fetch" {
                continue;
            }
            let message = served.failure(command);
            assert!(message.contains(name), "{command:?}: {message}");
        }
    }
    assert!(served.hub.requests().is_empty(), "the hub was asked");
    let message = served.failure(&["plan", "./nope", "--to", "q4_0"]);
    assert!(message.contains("no such file or directory"), "{message}");

    // Weights that are not read say so, as a file and in a directory.
    std::fs::write(served.path("tiny/pytorch_model.bin"), b"PK").unwrap();
    std::fs::copy(model().join("config.json"), served.path("tiny/config.json")).unwrap();
    std::fs::write(served.path("tiny/model.safetensors.part"), b"").unwrap();
    for command in [
        &["plan", "tiny/pytorch_model.bin", "--to", "q4_0"][..],
        &["inspect", "tiny/pytorch_model.bin"],
        &["perplexity", "tiny/pytorch_model.bin", "--text", "heldout"],
        &["inspect", "tiny"],
        &["plan", "tiny", "--to", "q4_0"],
    ] {
        let message = served.failure(command);
        assert!(message.contains("pickled") && message.contains("save_pretrained"), "{command:?}: {message}");
    }
    std::fs::write(served.path("tiny/model.safetensors"), b"").unwrap();
    let message = served.failure(&["plan", "tiny/model.safetensors", "--to", "q4_0"]);
    assert!(message.contains("name its directory, tiny"), "{message}");
}

/// A file that no disk has room for.
pub(crate) struct Huge;

impl Content for Huge {
    fn len(&self) -> u64 {
        1 << 50
    }

    fn read_at(&self, _: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        buffer.fill(0);
        Ok(())
    }
}

#[test]
fn too_little_room_has_a_flag_of_its_own() {
    let all = Repo::from_directory(ID, &model()).unwrap();
    let huge = RepoFile::lfs_with_digest("huge.bin", Arc::new(Huge), "0".repeat(64));
    let served = Served::repo(all.with_file(huge));
    for request in [
        &["fetch", ID, "-o", "d"][..],
        &["convert", ID, "--to", "q4_0", "-o", "m.gguf", "--keep-source"],
        &["convert", ID, "--to", "q4_0", "-o", "m.gguf", "--keep-source", "--force"],
    ] {
        if request[0] == "convert" {
            std::fs::write(served.path("m.gguf"), "old").unwrap();
        }
        let message = served.failure(request);
        let is_about_space = message.contains(" PB are needed") && message.contains("--ignore-space");
        assert!(is_about_space || message.contains("exists; --force"), "{message}");
        assert_eq!(
            is_about_space,
            !request.contains(&"convert") || request.contains(&"--force"),
            "{message}"
        );
    }
    served.json(&[
        "convert",
        ID,
        "--to",
        "q4_0",
        "-o",
        "m.gguf",
        "--keep-source",
        "--force",
        "--ignore-space",
    ]);
    for command in ["convert", "fetch", "perplexity"] {
        let help = text(&requant(&[command, "--help"]).stdout);
        assert!(help.contains("--ignore-space"), "{command}: {help}");
    }
    let help = text(&requant(&["convert", "--help"]).stdout);
    assert!(!help.contains("full disk"), "{help}");
    assert_eq!(served.run(&["fetch", ID, "-o", "d", "--force"]).status.code(), Some(2));
}
