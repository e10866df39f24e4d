//! Model cards: in directories, of any result, the same whatever machine or run made it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use requant::pipeline::{Manifest, manifest_path};

use crate::conversion::{fixtures, model, names, sha256};
use crate::served::{ID, Served, text};
use crate::shares::tree;

fn requant(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_requant")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    output
}

fn refused(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_requant")).args(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    text(&output.stderr)
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A copy of the trained model whose card says more, with its terms.
fn licensed(root: &Path, front_matter: &str) -> PathBuf {
    let directory = root.join("Tiny-Model");
    std::fs::create_dir(&directory).unwrap();
    for name in names(&model()) {
        std::fs::copy(model().join(&name), directory.join(&name)).unwrap();
    }
    std::fs::write(directory.join("README.md"), format!("---\n{front_matter}---\n# Tiny\n")).unwrap();
    std::fs::write(directory.join("LICENSE-MODEL"), "Be kind.\n").unwrap();
    directory
}

const FRONT_MATTER: &str =
    "license: other\nlicense_name: kind\nlicense_link: LICENSE-MODEL\nlanguage: [en, no]\n";

#[test]
fn every_directory_has_a_card_that_verify_holds_against_the_manifest() {
    let directory = tempfile::tempdir().unwrap();
    let source = licensed(directory.path(), FRONT_MATTER);
    for (format, library, tag, run) in [
        ("mlx-4bit", "mlx", "mlx", "mlx_lm.generate --model ."),
        ("compressed-tensors-w4a16", "transformers", "compressed-tensors", "vllm serve ."),
        ("gptq-4bit-32g", "transformers", "gptq", "vllm serve ."),
        ("awq-4bit-32g", "transformers", "awq", "vllm serve ."),
    ] {
        let output = directory.path().join(format);
        requant(&[
            "convert",
            path(&source),
            "--to",
            format,
            "-o",
            path(&output),
            "-q",
            "--base-model",
            "org/Tiny",
        ]);
        let card = std::fs::read_to_string(output.join("README.md")).unwrap();
        let front = "---\nbase_model: org/Tiny\nbase_model_relation: quantized\nlicense: other\nlicense_name: kind\n\
                     license_link: LICENSE-MODEL\n";
        let rest = format!(
            "library_name: {library}\npipeline_tag: text-generation\nlanguage:\n- en\n- \"no\"\ntags:\n- {tag}\n- quantized\n- requant\n---\n"
        );
        assert!(card.starts_with(&format!("{front}{rest}")), "{card}");
        assert!(
            card.contains(run) && card.contains(&format!("requant convert Tiny-Model --to {format}\n")),
            "{card}"
        );
        assert!(!card.contains(path(directory.path())), "{card}");
        let manifest = Manifest::read(&manifest_path(&output)).unwrap();
        for file in &manifest.files {
            let is_in_table =
                card.contains(&format!("| `{}` | {} | `{}` |", file.name, file.bytes, file.sha256));
            assert_eq!(is_in_table, file.name != "README.md", "{}", file.name);
        }
        assert!(manifest.files.iter().any(|file| file.name == "LICENSE-MODEL"));
        assert_eq!(std::fs::read(output.join("LICENSE-MODEL")).unwrap(), b"Be kind.\n");
        // The command prints the same, and damage is found.
        assert_eq!(text(&requant(&["card", path(&output)]).stdout), card);
        requant(&["verify", path(&output), "-q"]);
        std::fs::write(output.join("README.md"), card + "x").unwrap();
        let verify = Command::new(env!("CARGO_BIN_EXE_requant"))
            .args(["verify", path(&output), "-q"])
            .output()
            .unwrap();
        assert!(text(&verify.stdout).contains("README.md: 1 bytes too long"), "{}", text(&verify.stdout));
    }
}

/// The sums are those of the conversion, however parts and scales are stored.
#[test]
fn bits_are_those_that_convert_states() {
    let directory = tempfile::tempdir().unwrap();
    for format in [
        "q4_k_m",
        "mlx-mixed-3-6",
        "mlx-mxfp4",
        "compressed-tensors-nvfp4",
        "compressed-tensors-fp8-block",
        "gptq-4bit-32g",
    ] {
        let output = directory.path().join(format);
        let run = requant(&["convert", path(&model()), "--to", format, "-o", path(&output), "-q", "--json"]);
        let run: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
        let stated = format!(" {:.3} bits per weight", run["bits_per_weight"].as_f64().unwrap());
        let card = text(&requant(&["card", path(&output)]).stdout);
        assert!(card.contains(&stated), "{format}: {stated} in {card}");
    }
}

#[test]
fn a_gguf_file_has_a_card_only_when_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let source = licensed(directory.path(), FRONT_MATTER);
    let output = directory.path().join("out");
    std::fs::create_dir(&output).unwrap();
    let file = output.join("tiny model.gguf");
    requant(&["convert", path(&source), "--to", "Q4_K_M", "-o", path(&file), "-q", "--error-report"]);
    assert_eq!(names(&output), ["tiny model.gguf", "tiny model.gguf.manifest.json"]);
    let card = text(&requant(&["card", path(&file)]).stdout);
    assert!(card.starts_with("---\nlicense: other\n") && card.contains("library_name: gguf\n"), "{card}");
    assert!(card.contains("llama-server -m 'tiny model.gguf'"), "{card}");
    assert!(
        card.contains("# Tiny-Model in q4\\_k\\_m\n") && card.contains("5.226 bits per weight"),
        "{card}"
    );
    assert!(
        card.contains(&sha256(&std::fs::read(&file).unwrap()))
            && card.contains("Relative error of all weights")
    );
    let known = text(&requant(&["card", path(&file), "--base-model", "org/Tiny"]).stdout);
    assert!(known.starts_with("---\nbase_model: org/Tiny\nbase_model_relation: quantized\n"), "{known}");

    // Made from the GGUF file, it says what the file says.
    let again = output.join("again.gguf");
    requant(&["convert", path(&file), "--to", "q4_0", "--allow-requantize", "-o", path(&again), "-q"]);
    let card = text(&requant(&["card", path(&again)]).stdout);
    assert!(card.contains("license_name: kind\n") && card.contains("language:\n- en\n- \"no\"\n"), "{card}");
}

#[test]
fn measured_results_say_so() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("m.gguf");
    let words = directory.path().join("words.txt");
    let whole = std::fs::read_to_string(fixtures().join("text/heldout.txt")).unwrap();
    std::fs::write(&words, whole.chars().take(1500).collect::<String>()).unwrap();
    let arguments = ["--validate", path(&words), "--validate-context", "128", "-q"];
    requant(&[&["convert", path(&model()), "--to", "q4_k_m", "-o", path(&output)], &arguments[..]].concat());
    let manifest = Manifest::read(&manifest_path(&output)).unwrap();
    let found = &manifest.validation.unwrap()["against"]["mean_kld"];
    let card = text(&requant(&["card", path(&output)]).stdout);
    assert!(card.contains(&format!("| KL divergence, mean | {:.6} |", found.as_f64().unwrap())), "{card}");
    assert!(card.contains("on `words.txt` ("), "{card}");
}

#[test]
fn mlx_lm_s_card_and_none_on_request() {
    let directory = tempfile::tempdir().unwrap();
    let convert = |name: &str, card: &str| {
        let output = directory.path().join(name);
        requant(&["convert", path(&model()), "--to", "mlx-4bit", "-o", path(&output), "-q", "--card", card]);
        requant(&["verify", path(&output), "-q"]);
        output
    };
    let golden = std::fs::read(fixtures().join("goldens/mlx/mlx-4bit.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
    let of_mlx_lm = std::fs::read(convert("a", "mlx-lm").join("README.md")).unwrap();
    assert_eq!(sha256(&of_mlx_lm), golden["files"]["README.md"][1].as_str().unwrap());
    let none = convert("b", "none");
    assert!(!none.join("README.md").exists());
    let model = model();
    for (arguments, why) in [
        (["--to", "q4_0", "--card", "none"], "--card: is for directories"),
        (["--to", "gptq-4bit-32g", "--card", "mlx-lm"], "--card: mlx-lm writes no gptq-4bit-32g"),
        (["--to", "q4_0", "--base-model", "not an id"], "--base-model not an id: not a hub id"),
        (["--to", "q4_0", "--base-model", "org/m@main"], "--base-model org/m@main: not a hub id"),
    ] {
        let said = refused(&[&["convert", path(&model)], &arguments[..]].concat());
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn a_damaged_card_of_the_source_costs_the_license_alone() {
    let directory = tempfile::tempdir().unwrap();
    let source = licensed(directory.path(), "license: [mit\n");
    let output = directory.path().join("m");
    let said = requant(&["convert", path(&source), "--to", "mlx-4bit", "-o", path(&output)]);
    let said = text(&said.stderr);
    assert!(
        said.contains("README.md: front matter is not valid YAML") && said.contains("does not say"),
        "{said}"
    );
    let card = std::fs::read_to_string(output.join("README.md")).unwrap();
    assert!(card.starts_with("---\nlibrary_name: mlx\n"), "{card}");
}

/// Shares, another place, other threads: the same bytes, the card and what the manifest says of it included.
#[test]
fn shares_and_other_runs_give_the_same_card() {
    let directory = tempfile::tempdir().unwrap();
    let source = licensed(directory.path(), FRONT_MATTER);
    let mut cards: BTreeMap<String, usize> = BTreeMap::new();
    let mut add = |output: &Path| {
        let files = tree(output);
        *cards.entry(text(&files[Path::new("README.md")])).or_default() += 1;
        requant(&["verify", path(output), "-q"]);
    };
    let whole = directory.path().join("whole");
    let convert = ["convert", path(&source), "--to", "compressed-tensors-w4a16", "-q"];
    requant(&[&convert[..], &["-o", path(&whole), "--threads", "1"]].concat());
    add(&whole);
    let joined = directory.path().join("joined");
    for job in ["2/2", "1/2"] {
        requant(&[&convert[..], &["-o", path(&joined), "--job", job]].concat());
    }
    requant(&["join", path(&joined), "-q"]);
    add(&joined);
    // A share that comes late finds the result joined already.
    let late = requant(&[&convert[..], &["-o", path(&joined), "--job", "1/2", "--json"]].concat());
    assert!(text(&late.stdout).contains("was_joined"), "{}", text(&late.stdout));
    // And a result with a card may be replaced.
    requant(&[&convert[..], &["-o", path(&joined), "--force"]].concat());
    add(&joined);
    assert_eq!(cards.len(), 1, "{cards:?}");
}

#[test]
fn a_model_on_the_hub_is_the_base_model() {
    let served = Served::model();
    served.run(&["convert", ID, "--to", "mlx-4bit", "-o", "m", "-q"]);
    let card = std::fs::read_to_string(served.path("m").join("README.md")).unwrap();
    assert!(card.starts_with("---\nbase_model: org/tiny\nbase_model_relation: quantized\n"), "{card}");
    assert!(card.contains("requant convert org/tiny --to mlx-4bit\n"), "{card}");
}
