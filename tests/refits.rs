//! Budgets for GGUF files: what is in blocks may stay as it is, and becomes something else with leave only.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use requant::Result;
use requant::opened::Opened;
use requant::pipeline::{self, Outcome, Settings};
use requant::plan::budget::{self, Fitted, Watch};
use requant::plan::{self, Blueprint, Budget, Options, Rules};

use crate::budget::{described, fit};
use crate::conversion::{Silent, convert_with, fixtures, model, settings, sha256};
use crate::mixes::{WATCH, mean_error, of_type, rules};

fn allowed(options: Options) -> Options {
    Options { allow_requantize: true, ..options }
}

fn fit_file(path: &Path, format: &str, options: &Options, budget: Budget) -> Result<Fitted> {
    let source = Opened::open(path)?;
    budget::fit(&source, format, options, budget, 2, &WATCH, &AtomicBool::new(false))
}

fn requantize(path: &Path, format: &str, options: &Options, output: &Path) -> Outcome {
    let source = Opened::open(path).unwrap();
    let blueprint = plan::blueprint(&source, format, options).unwrap();
    let settings = Settings { error_report: true, ..settings(format, 2) };
    pipeline::convert(source.catalogue(), &blueprint, output, &settings, &Silent, &AtomicBool::new(false))
        .unwrap()
}

/// The fixture as a GGUF file.
fn file(directory: &Path, format: &str, options: &Options) -> PathBuf {
    let path = directory.join(format!("{format}.gguf"));
    convert_with(&model(), &settings(format, 2), options, &path, &Silent).unwrap();
    path
}

/// The same plan from the recipe that the choice is saved as.
fn from_recipe(path: &Path, format: &str, fitted: &Fitted, options: &Options) -> Options {
    let rules = Rules::from_toml(Path::new("r.toml"), &fitted.rules.to_toml(format)).unwrap();
    let options = Options { rules, ..options.clone() };
    let again = plan::blueprint(&Opened::open(path).unwrap(), format, &options).unwrap();
    assert_eq!(described(&again), described(&fitted.blueprint));
    options
}

#[test]
fn an_unquantized_gguf_file_gets_the_mix_of_the_checkpoint_it_was_made_from() {
    let directory = tempfile::tempdir().unwrap();
    let source = file(directory.path(), "f32", &Options::default());
    for (format, bits) in [("q4_k_m", 4.4), ("q3_k_m", 4.0), ("mxfp4_moe", 5.5)] {
        let budget = Budget::BitsPerWeight(bits);
        let fitted = fit_file(&source, format, &Options::default(), budget).unwrap();
        let of_checkpoint = fit(format, &Options::default(), budget, 2).unwrap();
        assert_eq!(fitted.rules, of_checkpoint.rules, "{format}");
        assert_eq!(fitted.mean_error.to_bits(), of_checkpoint.mean_error.to_bits(), "{format}");

        // And the same file, whichever way it is asked for.
        let recipe = from_recipe(&source, format, &fitted, &Options::default());
        let (mine, theirs) = (directory.path().join("mine.gguf"), directory.path().join("theirs.gguf"));
        requantize(&source, format, &recipe, &mine);
        let options = Options { rules: of_checkpoint.rules, ..Options::default() };
        convert_with(&model(), &settings(format, 2), &options, &theirs, &Silent).unwrap();
        let digest = |path: &Path| sha256(&std::fs::read(path).unwrap());
        assert_eq!(digest(&mine), digest(&theirs), "{format}");
        for path in [mine, theirs] {
            std::fs::remove_file(pipeline::manifest_path(&path)).unwrap();
            std::fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn blocks_stay_as_they_are_where_that_fits_and_no_leave_is_given() {
    let directory = tempfile::tempdir().unwrap();
    let source = file(directory.path(), "q8_0", &rules(&["ffn_(gate|up)=f16", "attn_output=bf16"]));
    let model = Opened::open(&source).unwrap();
    let is_free =
        |name: &str| name.contains("attn_output") || name.contains("ffn_gate") || name.contains("ffn_up");
    let all: u64 = model.catalogue().tensors().iter().map(|tensor| tensor.len_bytes).sum();
    let mut last = f64::INFINITY;
    for share in [72, 75, 78] {
        let size = all * share / 100;
        let fitted = fit_file(&source, "q4_k_m", &Options::default(), Budget::Bytes(size)).unwrap();
        assert!(
            fitted.blueprint.len_bytes() <= size && fitted.mean_error < last,
            "{share}: {}",
            fitted.mean_error
        );
        last = fitted.mean_error;
        let recipe = from_recipe(&source, "q4_k_m", &fitted, &Options::default());
        let output = directory.path().join(format!("{share}.gguf"));
        let report = requantize(&source, "q4_k_m", &recipe, &output).manifest.error_report.unwrap();
        for tensor in
            &model.catalogue().tensors().iter().zip(model.gguf().unwrap().types()).collect::<Vec<_>>()
        {
            let (name, own) = (tensor.0.name.as_str(), tensor.1.name());
            let found = of_type(&fitted.blueprint, name);
            assert!(found == own || is_free(name) && !name.contains("gate_inp"), "{name}: {own} to {found}");
            if found == own {
                let error = report.tensors.iter().find(|error| error.name == name).unwrap();
                assert_eq!(error.relative_error, Some(0.0), "{name}");
            }
        }
        assert_eq!(of_type(&fitted.blueprint, "output.weight"), "Q8_0");
    }
    // Nothing is left to choose where all is in blocks, and the way out is named.
    let blocks = file(directory.path(), "q5_0", &Options::default());
    let message =
        |options: &Options, budget| fit_file(&blocks, "q4_k_m", options, budget).err().unwrap().to_string();
    let error = message(&Options::default(), Budget::BitsPerWeight(5.0));
    assert!(error.contains("nothing to choose") && error.contains("--allow-requantize"), "{error}");
    let error =
        fit_file(&source, "q4_k_m", &Options::default(), Budget::Bytes(1000)).err().unwrap().to_string();
    assert!(error.contains("too small") && error.contains("--allow-requantize"), "{error}");
    // A rule that needs leave does not get it from a budget, and that is found before anything is measured.
    let options = rules(&["attn_q_a=q4_k"]);
    let read = AtomicU64::new(0);
    let watch = Watch {
        begin: &|_| (),
        advance: &|bytes| {
            read.fetch_add(bytes, Ordering::Relaxed);
        },
    };
    let budget = Budget::BitsPerWeight(7.5);
    let error =
        budget::fit(&model, "q4_k_m", &options, budget, 2, &watch, &AtomicBool::new(false)).err().unwrap();
    assert!(
        error.to_string().contains("attn_q_a") && error.to_string().contains("--allow-requantize"),
        "{error}"
    );
    assert_eq!(read.load(Ordering::Relaxed), 0);
}

#[test]
fn with_leave_a_stored_type_is_one_of_the_choices_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let source = file(directory.path(), "q6_k", &Options::default());
    let own_bytes = std::fs::metadata(&source).unwrap().len();
    let leave = allowed(Options::default());
    let stored = Opened::open(&source).unwrap();

    let whole = fit_file(&source, "q4_k_m", &leave, Budget::Bytes(own_bytes)).unwrap();
    assert_eq!(whole.mean_error, 0.0);
    let kinds = |blueprint: &Blueprint| -> BTreeSet<String> {
        blueprint.tensors.iter().map(|tensor| tensor.type_name.clone()).collect()
    };
    assert!(kinds(&whole.blueprint).contains("Q6_K"));

    let mut last = 0.0;
    for share in [95, 80, 70, 60] {
        let size = own_bytes * share / 100;
        let fitted = fit_file(&source, "q4_k_m", &leave, Budget::Bytes(size)).unwrap();
        assert!(fitted.blueprint.len_bytes() <= size, "{share}");
        assert!(fitted.mean_error > last, "{share}: {} {last}", fitted.mean_error);
        last = fitted.mean_error;
        let recipe = from_recipe(&source, "q4_k_m", &fitted, &leave);
        let output = directory.path().join(format!("{share}.gguf"));
        let report = requantize(&source, "q4_k_m", &recipe, &output).manifest.error_report.unwrap();
        let mut kept = 0;
        for (tensor, own) in stored.catalogue().tensors().iter().zip(stored.gguf().unwrap().types()) {
            let error = report.tensors.iter().find(|error| error.name == tensor.name).unwrap();
            if of_type(&fitted.blueprint, &tensor.name) == own.name() {
                assert_eq!(error.relative_error, Some(0.0), "{}", tensor.name);
                kept += usize::from(own.block_len_elems() > 1);
            }
        }
        assert!((1..50).contains(&kept) || share < 80, "{share}: {kept}");
        // No mix of ours is worse than the format's own at its size.
        crate::results::measure(&output, 1).unwrap();
    }
    let fixed = directory.path().join("fixed.gguf");
    let report = requantize(&source, "q4_k_m", &leave, &fixed).manifest.error_report.unwrap();
    let size = std::fs::metadata(&fixed).unwrap().len();
    let fitted = fit_file(&source, "q4_k_m", &leave, Budget::Bytes(size)).unwrap();
    assert!(fitted.mean_error < mean_error(&report));
}

#[test]
fn files_of_other_architectures_and_split_sets_are_fitted() {
    let directory = tempfile::tempdir().unwrap();
    let headers = std::fs::read(fixtures().join("goldens/requantize/headers.json")).unwrap();
    let headers: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&headers).unwrap();
    for (name, golden) in headers {
        let path = directory.path().join(format!("{name}.gguf"));
        std::fs::copy(fixtures().join("goldens/requantize").join(format!("{name}.header")), &path).unwrap();
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(golden["bytes"].as_u64().unwrap())
            .unwrap();
        let leave = allowed(Options::default());
        match fit_file(&path, "q4_k_m", &leave, Budget::BitsPerWeight(9.0)) {
            Ok(fitted) => {
                assert_eq!(fitted.mean_error, 0.0, "{name}: all is zero");
                from_recipe(&path, "q4_k_m", &fitted, &leave);
            }
            Err(error) => assert!(
                name == "llama-rows-of-40" && error.to_string().contains("nothing to choose"),
                "{name}: {error}"
            ),
        }
        std::fs::remove_file(path).unwrap();
    }
    let options =
        Options { output_name: "set.gguf".into(), split_max_bytes: Some(3_000_000), ..Options::default() };
    convert_with(&model(), &settings("f16", 2), &options, &directory.path().join("set.gguf"), &Silent)
        .unwrap();
    let first = directory.path().join("set-00001-of-00003.gguf");
    let fitted = fit_file(&first, "q4_k_m", &Options::default(), Budget::BitsPerWeight(4.4)).unwrap();
    let whole = file(directory.path(), "f16", &Options::default());
    let other = fit_file(&whole, "q4_k_m", &Options::default(), Budget::BitsPerWeight(4.4)).unwrap();
    assert_eq!(fitted.rules, other.rules);
}

#[test]
fn the_command_line_takes_a_file_and_gives_its_recipe() {
    let directory = tempfile::tempdir().unwrap();
    file(directory.path(), "f16", &Options::default());
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_requant"));
        let output = command.args(arguments).arg("--json").current_dir(directory.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let budget = ["--to", "q4_k_m", "--target-bpw", "4.4"];
    let plan = run(&[&["plan", "f16.gguf", "--save-recipe", "r.toml"][..], &budget].concat());
    let whole = run(&[&["convert", "f16.gguf", "-o", "a.gguf"][..], &budget].concat());
    run(&["convert", "f16.gguf", "-o", "b.gguf", "--to", "q4_k_m", "--recipe", "r.toml"]);
    let read = |name: &str| std::fs::read(directory.path().join(name)).unwrap();
    assert!(read("a.gguf") == read("b.gguf"));
    assert_eq!(
        (&plan["bytes_out"], plan["bits_per_weight"].as_f64().unwrap() <= 4.4),
        (&whole["bytes_out"], true)
    );
    let again = run(&["plan", "f16.gguf", "--to", "q4_k_m", "--recipe", "r.toml"]);
    assert_eq!((&again["types"], &again["bytes_out"]), (&plan["types"], &plan["bytes_out"]));
}
