//! Conversions without `-o`, and those that are only shown.

use std::path::Path;
use std::process::{Command, Output};

use crate::conversion::{model, names};
use crate::served::text;

fn requant(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_requant")).args(arguments).current_dir(directory).output().unwrap()
}

#[test]
fn a_result_is_called_after_the_model_and_the_format() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let model = model();
    let model = model.to_str().unwrap();
    for (to, name) in [("Q4_0", "tiny-deepseek-v3-Q4_0.gguf"), ("mlx-4bit", "tiny-deepseek-v3-mlx-4bit")] {
        let done = requant(here, &["convert", model, "--to", to]);
        assert!(done.status.success(), "{}", text(&done.stderr));
        assert!(text(&done.stderr).contains(&format!("writing {name}")), "{}", text(&done.stderr));
        assert!(here.join(name).exists(), "{:?}", names(here));
        assert!(requant(here, &["verify", name]).status.success());
        // What is there stays, as with -o.
        let again = requant(here, &["convert", model, "--to", to, "-q"]);
        assert_eq!(again.status.code(), Some(1));
        assert!(
            text(&again.stderr).contains(name) && text(&again.stderr).contains("--force"),
            "{}",
            text(&again.stderr)
        );
        assert!(requant(here, &["convert", model, "--to", to, "--force", "-q"]).status.success());
    }
    // Of a GGUF file: its type goes.
    let requantized = requant(
        here,
        &["convert", "tiny-deepseek-v3-Q4_0.gguf", "--to", "q8_0", "--allow-requantize", "--json"],
    );
    assert!(requantized.status.success(), "{}", text(&requantized.stderr));
    let said: serde_json::Value = serde_json::from_slice(&requantized.stdout).unwrap();
    assert_eq!(said["output"], "tiny-deepseek-v3-Q8_0.gguf");
    // The same bytes as with a name.
    let named = requant(here, &["convert", model, "--to", "q4_0", "--outfile", "named.gguf", "-q"]);
    assert!(named.status.success(), "{}", text(&named.stderr));
    assert_eq!(
        std::fs::read(here.join("named.gguf")).unwrap(),
        std::fs::read(here.join("tiny-deepseek-v3-Q4_0.gguf")).unwrap()
    );
}

#[test]
fn a_result_without_a_name_keeps_away_from_its_source() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let model = model();
    let of_type = requant(here, &["convert", model.to_str().unwrap(), "--to", "q4_0", "-q"]);
    assert!(of_type.status.success());
    let same = requant(here, &["convert", "tiny-deepseek-v3-Q4_0.gguf", "--to", "q4_0", "-q", "--force"]);
    assert_eq!(same.status.code(), Some(1));
    assert!(text(&same.stderr).contains("the source"), "{}", text(&same.stderr));
    let inside = requant(&model, &["convert", ".", "--to", "mlx-4bit", "-q"]);
    assert_eq!(inside.status.code(), Some(1));
    assert!(!model.join("tiny-deepseek-v3-mlx-4bit").exists());
    let nameless = requant(here, &["convert", "/", "--to", "q4_0", "-q"]);
    assert!(nameless.status.code() != Some(0) && !nameless.stderr.is_empty());
}

#[test]
fn a_dry_run_is_a_plan() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let model = model();
    let model = model.to_str().unwrap();
    for options in [&["--json"][..], &[], &["--jobs", "3", "--json"], &["--tensor-type", "attn=q8_0"]] {
        let plan = requant(here, &[&["plan", model, "--to", "q4_k_m"], options].concat());
        for output in [&[][..], &["-o", "m.gguf", "--force", "--error-report"]] {
            let dry = [&["convert", model, "--to", "q4_k_m", "--dry-run"], options, output].concat();
            let dry = requant(here, &dry);
            assert!(dry.status.success(), "{}", text(&dry.stderr));
            assert_eq!(text(&dry.stdout), text(&plan.stdout));
        }
    }
    assert_eq!(names(here), Vec::<String>::new());
    let share = requant(here, &["convert", model, "--to", "q4_0", "--dry-run", "--job", "1/2"]);
    assert_eq!(share.status.code(), Some(2));
}
