//! GGUF files converted to other GGUF types, against the files of `llama-quantize`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use requant::imatrix::Imatrix;
use requant::opened::Opened;
use requant::pipeline::{self, Outcome, Progress};
use requant::plan::{self, Blueprint, Options};
use requant::{Error, Result};
use requant_formats::container::gguf::{self, Metadata, TensorSpec, Value as GgufValue, write_header};
use serde_json::Value;

use crate::conversion::{Silent, convert, convert_with, fixtures, model, names, settings, sha256};

/// Leave to quantize a second time.
fn allowed() -> Options {
    Options { allow_requantize: true, output_name: "m.gguf".into(), ..Options::default() }
}

fn blueprint(source: &Path, format: &str, options: &Options) -> Result<Blueprint> {
    plan::blueprint(&Opened::open(source)?, format, options)
}

fn requantize_with(source: &Path, format: &str, options: &Options, output: &Path) -> Result<Outcome> {
    let source = Opened::open(source)?;
    let blueprint = plan::blueprint(&source, format, options)?;
    let (settings, stop) = (settings(format, 2), AtomicBool::new(false));
    pipeline::convert(source.catalogue(), &blueprint, output, &settings, &Silent, &stop)
}

pub(crate) fn requantize(source: &Path, format: &str, output: &Path) -> Outcome {
    requantize_with(source, format, &allowed(), output).unwrap()
}

/// The fixture as F32, and from that as `format`.
fn fixture(directory: &Path, format: &str) -> PathBuf {
    let path = |format: &str| directory.join(format!("{format}.gguf"));
    convert(&model(), "f32", 2, &path("f32")).unwrap();
    if format != "f32" {
        requantize(&path("f32"), format, &path(format));
    }
    path(format)
}

fn goldens(name: &str) -> serde_json::Map<String, Value> {
    let path = fixtures().join("goldens/requantize").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn error(result: Result<Blueprint>) -> String {
    result.err().map_or_else(|| "no error".into(), |error| error.to_string())
}

#[test]
fn files_equal_those_of_llama_quantize() {
    let directory = tempfile::tempdir().unwrap();
    let f32 = fixture(directory.path(), "f32");
    let output = directory.path().join("m.gguf");
    let mut compared = 0;
    let mut compare = |source: &Path, format: &str, expected: &Value| {
        let digest = requantize(source, format, &output).manifest.files[0].sha256.clone();
        assert_eq!(digest, expected.as_str().unwrap(), "{} to {format}", source.display());
        assert_eq!(digest, sha256(&std::fs::read(&output).unwrap()));
        std::fs::remove_file(&output).unwrap();
        compared += 1;
    };
    for (kind, golden) in goldens("fixture.json") {
        let source = directory.path().join(format!("{kind}.gguf"));
        requantize(&f32, &kind, &source);
        assert_eq!(sha256(&std::fs::read(&source).unwrap()), golden["sha256"].as_str().unwrap(), "{kind}");
        for (format, expected) in golden["made"].as_object().unwrap() {
            compare(&source, format, expected);
        }
    }
    // The same files as from the checkpoint itself.
    for name in names(&fixtures().join("goldens/gguf")) {
        let golden: Value =
            serde_json::from_slice(&std::fs::read(fixtures().join("goldens/gguf").join(&name)).unwrap())
                .unwrap();
        if let Some(format) = name.strip_suffix(".json").filter(|&format| format != "converted") {
            compare(&f32, format, &golden["sha256"]);
        }
    }
    assert_eq!(compared, 190);
}

/// A file of zeros behind the golden header `name`.
fn zeros(directory: &Path, name: &str, len_bytes: u64) -> PathBuf {
    let path = directory.join(format!("{name}.gguf"));
    std::fs::copy(fixtures().join("goldens/requantize").join(format!("{name}.header")), &path).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(len_bytes).unwrap();
    path
}

#[test]
fn mixes_of_other_architectures_are_those_of_llama_quantize() {
    let directory = tempfile::tempdir().unwrap();
    let (mut models, mut architectures) = (0, std::collections::BTreeSet::new());
    for (name, golden) in goldens("headers.json") {
        let source = zeros(directory.path(), &name, golden["bytes"].as_u64().unwrap());
        for (format, expected) in golden["made"].as_object().unwrap() {
            let blueprint = blueprint(&source, format, &allowed()).unwrap();
            let found = (blueprint.files[0].len_bytes, sha256(&blueprint.files[0].header));
            let expected = (expected[0].as_u64().unwrap(), expected[1].as_str().unwrap().to_owned());
            assert_eq!(found, expected, "{name} to {format}");
        }
        for (format, expected) in golden["sha256"].as_object().unwrap() {
            let outcome = requantize(&source, format, &directory.path().join(format!("{name}-{format}")));
            assert_eq!(outcome.manifest.files[0].sha256, expected.as_str().unwrap(), "{name} to {format}");
        }
        let model = Opened::open(&source).unwrap();
        let architecture =
            model.gguf().unwrap().metadata().get("general.architecture").and_then(GgufValue::as_str);
        architectures.insert(architecture.unwrap().to_owned());
        models += 1;
    }
    assert_eq!(models, 27);
    // Every architecture that is accepted has a model here.
    let source = unknown_architecture(directory.path());
    let message = error(blueprint(&source, "q4_0", &allowed()));
    let known = message.split("the mixes of types of ").nth(1).unwrap().split(" are known").next().unwrap();
    let known: std::collections::BTreeSet<String> = known.split(", ").map(str::to_owned).collect();
    assert_eq!(known, architectures);
}

#[test]
fn mixes_of_few_bits_are_those_of_llama_quantize() {
    let directory = tempfile::tempdir().unwrap();
    let headers = goldens("headers.json");
    let (mut compared, mut refused) = (0, 0);
    for (name, golden) in goldens("types.json") {
        let source = zeros(directory.path(), &name, headers[&name]["bytes"].as_u64().unwrap());
        let opened = Opened::open(&source).unwrap();
        // One that knows every column.
        let path = directory.path().join(format!("{name}.dat"));
        std::fs::write(&path, crate::imatrix::ones(opened.catalogue().tensors())).unwrap();
        let imatrix = Some(Imatrix::open(&path).unwrap().into());
        let options = Options { imatrix, ..allowed() };
        for (format, expected) in golden.as_object().unwrap() {
            let planned = plan::blueprint(&opened, format, &options);
            let Some(expected) = expected.as_str() else {
                let message = error(planned);
                assert!(message.contains("no stand-in") && message.contains("--tensor-type"), "{message}");
                refused += 1;
                continue;
            };
            let tensors = planned.unwrap().tensors;
            let lines: String =
                tensors.iter().map(|tensor| format!("{} {}\n", tensor.names[0], tensor.type_name)).collect();
            assert_eq!(sha256(lines.as_bytes()), expected, "{name} to {format}:\n{lines}");
            compared += 1;
        }
    }
    assert_eq!((compared, refused), (27 * 14 - 2, 2));
}

/// A small file; `change` may spoil it.
fn small(path: &Path, change: impl FnOnce(&mut Metadata, &mut Vec<TensorSpec>)) -> PathBuf {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "llama");
    metadata.set("llama.block_count", 1u32);
    metadata.set("llama.attention.head_count", 4u32);
    let tensor = |name: &str, ggml_type| TensorSpec { name: name.into(), shape: vec![256, 2], ggml_type };
    let mut tensors = vec![
        tensor("token_embd.weight", gguf::GgmlType::F16),
        tensor("blk.0.ffn_down.weight", gguf::GgmlType::Q8_0),
        tensor("blk.0.ffn_up.weight", gguf::GgmlType::Q8_0),
    ];
    change(&mut metadata, &mut tensors);
    let (header, mut bytes) = write_header(metadata, tensors).unwrap();
    bytes.resize(header.file_len_bytes() as usize, 0);
    std::fs::write(path, bytes).unwrap();
    path.to_owned()
}

fn unknown_architecture(directory: &Path) -> PathBuf {
    small(&directory.join("unknown.gguf"), |metadata, _| metadata.set("general.architecture", "falcon"))
}

#[test]
fn a_second_rounding_needs_leave() {
    let directory = tempfile::tempdir().unwrap();
    let source = small(&directory.path().join("s.gguf"), |_, _| ());
    let strict = Options { allow_requantize: false, ..allowed() };
    let message = error(blueprint(&source, "q4_0", &strict));
    for part in ["s.gguf", "blk.0.ffn_down.weight is Q8_0", "Q4_0", "1 more", "--allow-requantize"] {
        assert!(message.contains(part), "{message}");
    }
    // To floats, too; but not where nothing changes.
    assert!(error(blueprint(&source, "f32", &strict)).contains("--allow-requantize"));
    let same = requantize_with(&source, "q8_0", &strict, &directory.path().join("m.gguf")).unwrap();
    let types: Vec<&str> = same.manifest.tensors.iter().map(|tensor| tensor.type_name.as_str()).collect();
    assert_eq!(types, ["Q8_0", "Q8_0", "Q8_0"]);
    blueprint(&source, "q4_0", &allowed()).unwrap();
}

#[test]
fn what_cannot_be_done_is_said_first() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let good = small(&path("good.gguf"), |_, _| ());
    let cut = path("cut.gguf");
    let bytes = std::fs::read(&good).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() - 40]).unwrap();
    let text = path("text.gguf");
    std::fs::write(&text, "not a model").unwrap();
    let split = small(&path("alone.gguf"), |metadata, _| metadata.set("split.count", 3u16));
    let iq = small(&path("iq.gguf"), |_, tensors| tensors[1].ggml_type = gguf::GgmlType::Q8_K);
    let beyond = small(&path("beyond.gguf"), |_, tensors| tensors[1].name = "blk.1.ffn_down.weight".into());
    let headless = small(&path("headless.gguf"), |metadata, _| {
        metadata.remove("llama.attention.head_count");
    });
    let aligned = small(&path("aligned.gguf"), |metadata, _| metadata.set("general.alignment", 64u32));
    let unknown = unknown_architecture(directory.path());
    let pre = Options { tokenizer_pre: Some("llama-bpe".into()), ..allowed() };
    for (source, format, options, parts) in [
        (&cut, "q4_0", allowed(), ["cut.gguf", "blk.0.ffn_up.weight"]),
        (&text, "q4_0", allowed(), ["text.gguf", "GGUF"]),
        (&path("absent.gguf"), "q4_0", allowed(), ["absent.gguf", "not found"]),
        (&split, "q4_0", allowed(), ["alone.gguf", "3 files of a split set"]),
        (&path("m-00001-of-00002.gguf"), "q4_0", allowed(), ["m-00001-of-00002.gguf", "2 files"]),
        (&iq, "q4_0", allowed(), ["blk.0.ffn_down.weight", "Q8_K"]),
        (&beyond, "q4_0", allowed(), ["blk.1.ffn_down.weight", "llama.block_count"]),
        (&headless, "q4_0", allowed(), ["headless.gguf", "llama.attention.head_count is missing"]),
        (&aligned, "q4_0", allowed(), ["general.alignment", "64"]),
        (&unknown, "q4_0", allowed(), ["\"falcon\"", "llama-quantize"]),
        (&good, "mlx-4bit", allowed(), ["good.gguf", "convert the checkpoint it was made from"]),
        (&good, "q4_9", allowed(), ["q4_9", "q4_0"]),
        (&good, "q4_0", pre, ["--tokenizer-pre llama-bpe", "good.gguf"]),
    ] {
        let message = error(blueprint(source, format, &options));
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
}

#[test]
fn weights_that_are_not_finite_are_found_even_when_copied() {
    let directory = tempfile::tempdir().unwrap();
    let source = small(&directory.path().join("s.gguf"), |_, _| ());
    let mut bytes = std::fs::read(&source).unwrap();
    let header = gguf::read(&mut bytes.as_slice(), bytes.len() as u64).unwrap();
    let tensor = header.tensor("blk.0.ffn_up.weight").unwrap();
    let at = (header.data_offset_bytes + tensor.offset_bytes) as usize;
    // The scale of the first Q8_0 block, infinite, and a code that is not zero.
    bytes[at..at + 3].copy_from_slice(&[0x00, 0x7c, 1]);
    std::fs::write(&source, bytes).unwrap();
    for format in ["q8_0", "q4_0"] {
        let output = directory.path().join("m.gguf");
        let message = requantize_with(&source, format, &allowed(), &output).err().unwrap().to_string();
        assert!(message.contains("blk.0.ffn_up.weight") && message.contains("inf"), "{message}");
        assert_eq!(names(directory.path()), ["s.gguf"]);
    }
}

#[test]
fn split_sets_go_in_and_out() {
    let directory = tempfile::tempdir().unwrap();
    let f32 = fixture(directory.path(), "f32");
    let whole = requantize(&f32, "q4_k_m", &directory.path().join("whole.gguf")).manifest;
    let options = Options { split_max_bytes: Some(4_000_000), ..allowed() };
    let output = directory.path().join("m.gguf");
    let split = requantize_with(&f32, "bf16", &options, &output).unwrap().manifest;
    assert!(split.files.len() >= 3);
    let merged = directory.path().join("merged.gguf");
    for member in [&split.files[0], &split.files[1]] {
        let from_split = requantize(&directory.path().join(&member.name), "bf16", &merged).manifest;
        let from_whole = requantize(&f32, "bf16", &directory.path().join("bf16.gguf")).manifest;
        assert_eq!(from_split.files[0].sha256, from_whole.files[0].sha256);
        let sources: Vec<&str> = from_split.source_files.iter().map(|file| file.name.as_str()).collect();
        let members: Vec<&str> = split.files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(sources, members);
        for name in ["merged.gguf", "bf16.gguf"] {
            std::fs::remove_file(directory.path().join(name)).unwrap();
        }
    }
    let output_name = "q.gguf".into();
    let options = Options { split_max_bytes: Some(1_000_000), output_name, ..allowed() };
    let parts = requantize_with(&f32, "q4_k_m", &options, &directory.path().join("q.gguf")).unwrap().manifest;
    let digests = |manifest: &pipeline::Manifest| -> Vec<(String, String)> {
        manifest.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.sha256.clone())).collect()
    };
    assert_eq!(digests(&parts), digests(&whole));
}

#[test]
fn rules_choose_types_and_leave_what_they_ignore() {
    let directory = tempfile::tempdir().unwrap();
    let source = small(&directory.path().join("s.gguf"), |_, tensors| {
        tensors[2].ggml_type = gguf::GgmlType::BF16;
    });
    let recipe =
        "[[rule]]\ntarget = 'token_embd'\nignore = true\n[[rule]]\ntarget = 'ffn_up'\ntype = 'q6_k'\n";
    let rules = plan::Rules::from_toml(Path::new("r.toml"), recipe).unwrap();
    // What a rule gives the type that it has is not quantized a second time.
    let keep = plan::Rule::from_argument("ffn_down=q8_0").unwrap();
    let rules = plan::Rules::new(vec![keep]).then(rules);
    let options = Options { rules, allow_requantize: false, ..allowed() };
    let blueprint = blueprint(&source, "q4_0", &options).unwrap();
    let found: Vec<(&str, &str, Option<usize>)> = blueprint
        .tensors
        .iter()
        .map(|tensor| (tensor.names[0].as_str(), tensor.type_name.as_str(), tensor.rule))
        .collect();
    let expected = [
        ("token_embd.weight", "F16", Some(1)),
        ("blk.0.ffn_down.weight", "Q8_0", Some(0)),
        ("blk.0.ffn_up.weight", "Q6_K", Some(2)),
    ];
    assert_eq!(found, expected);
}

#[test]
fn rules_give_the_file_that_they_give_from_the_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let source = fixture(directory.path(), "f32");
    let rules = ["attn_kv_a=q8_0", r"blk\.[12]\.ffn_(up|gate)_exps=iq4_nl", "token_embd=q6_k"];
    let rules = rules.map(|rule| plan::Rule::from_argument(rule).unwrap()).to_vec();
    let options = Options { rules: plan::Rules::new(rules), ..allowed() };
    let made = |name: &str| directory.path().join(name);
    let settings = settings("q4_k_s", 2);
    let direct = convert_with(&model(), &settings, &options, &made("direct.gguf"), &Silent).unwrap();
    let again = requantize_with(&source, "q4_k_s", &options, &made("again.gguf")).unwrap();
    assert_eq!(again.manifest.files[0].sha256, direct.manifest.files[0].sha256);
}

/// Sets a flag once `after` bytes are done, as Ctrl-C does.
struct StopAfter<'a> {
    after: u64,
    done: AtomicU64,
    stop: &'a AtomicBool,
}

impl Progress for StopAfter<'_> {
    fn stage(&self, _: &str, _: u64) {}
    fn advance(&self, bytes: u64) {
        if self.done.fetch_add(bytes, Ordering::Relaxed) + bytes >= self.after {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_stopped_run_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let source = fixture(directory.path(), "q8_0");
    let expected = requantize(&source, "q6_k", &directory.path().join("whole.gguf")).manifest;
    let output = directory.path().join("m.gguf");
    let model = Opened::open(&source).unwrap();
    let blueprint = plan::blueprint(&model, "q6_k", &allowed()).unwrap();
    for after in [1, 1_000_000] {
        let stop = AtomicBool::new(false);
        let progress = StopAfter { after, done: 0.into(), stop: &stop };
        let settings = settings("q6_k", 2);
        let stopped = pipeline::convert(model.catalogue(), &blueprint, &output, &settings, &progress, &stop);
        assert!(matches!(stopped, Err(Error::Interrupted)), "{:?}", stopped.err());
    }
    assert!(names(directory.path()).contains(&"m.gguf.journal".to_owned()));
    // Another file is another request, though it lies in the same directory.
    let other = requantize_with(&directory.path().join("f32.gguf"), "q6_k", &allowed(), &output);
    assert!(other.err().unwrap().to_string().contains("f32.gguf"));
    let resumed = requantize(&source, "q6_k", &output).manifest;
    assert_eq!(resumed.files[0].sha256, expected.files[0].sha256);
    assert_eq!(resumed.tensors.len(), expected.tensors.len());
    assert_eq!(resumed.source, source.display().to_string());
    assert_eq!(resumed.source_files.len(), 1);
    assert_eq!(resumed.source_files[0].name, "q8_0.gguf");
    let checks = pipeline::verify(&output, &Silent).unwrap();
    assert!(checks.iter().all(|check| check.problems.is_empty()), "{checks:?}");
}

fn requant(arguments: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_requant")).args(arguments).output().unwrap()
}

#[test]
fn the_command_line_takes_gguf_files() {
    let directory = tempfile::tempdir().unwrap();
    let source = fixture(directory.path(), "q8_0");
    let source = source.to_str().unwrap();
    let output = directory.path().join("m.gguf");
    let output = output.to_str().unwrap();
    let refused = requant(&["plan", source, "--to", "q4_k_m"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--allow-requantize"));

    let json = |arguments: &[&str]| -> Value {
        let output = requant(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let request = [source, "--to", "q4_k_m", "--allow-requantize", "--json"];
    let plan = json(&[&["plan"][..], &request].concat());
    let text = fixtures().join("text/heldout.txt");
    let validate = ["-o", output, "--quiet", "--validate", text.to_str().unwrap()];
    let run = json(&[&["convert"][..], &request, &validate].concat());
    assert_eq!(run["bytes_out"], plan["bytes_out"]);
    assert_eq!(run["bytes_out"], output_len(output));
    assert_eq!(run["bytes_in"], plan["bytes_in"]);
    assert_eq!(plan["dropped"]["tensors"], 0);
    assert_eq!(plan["tensors_in"], plan["tensors_out"]);
    assert!(plan["types"]["Q4_K"]["tensors"].as_u64().unwrap() > 0);
    assert_eq!(json(&["verify", output, "--json"])["ok"], true);
    // Against Q8_0, whose own divergence from F32 is 0.00005, as Q4_K_M is against F32 (docs/quality.md).
    let divergence = run["validation"]["against"]["mean_kld"].as_f64().unwrap();
    assert!((0.0010..0.0018).contains(&divergence), "{divergence}");

    let plain = requant(&["plan", source, "--to", "q4_k_m", "--allow-requantize"]);
    let plain = String::from_utf8_lossy(&plain.stdout).into_owned();
    assert!(plain.contains("q8_0.gguf") && plain.contains("Q4_K"), "{plain}");
}

fn output_len(path: &str) -> u64 {
    std::fs::metadata(path).unwrap().len()
}
