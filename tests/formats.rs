//! Values of `--to`: the list of them, the help that sums it up, and what a typo is told.

use std::process::{Command, Output};

use requant::plan::TARGETS;
use serde_json::Value;

use crate::conversion::model;
use crate::served::text;

fn requant(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_requant")).args(arguments).env_remove("COLUMNS").output().unwrap()
}

fn help(arguments: &[&str]) -> String {
    let output = requant(arguments);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn a_mistyped_format_is_told_the_nearest() {
    let directory = tempfile::tempdir().unwrap();
    let (model, output) = (model(), directory.path().join("m"));
    let (model, output) = (model.to_str().unwrap(), output.to_str().unwrap());
    for (typed, near) in [
        ("q4km", "did you mean q4_k_m?"),
        ("Q4-K-M", "did you mean q4_k_m?"),
        ("w4a16", "compressed-tensors-w4a16"),
        ("mlx", "did you mean mlx-4bit,"),
        ("MLX4bit", "did you mean mlx-4bit?"),
        ("gguf", "did you mean q4_k_m,"),
        ("vllm", "compressed-tensors-w4a16"),
        ("awq", "awq-4bit-128g"),
        ("iq4xs", "iq4_xs"),
        ("q9_9", "q4_k_m, mlx-4bit"),
        ("", "q4_k_m, mlx-4bit"),
    ] {
        for command in [&["convert", "-o", output][..], &["plan"]] {
            let refused = requant(&[command, &[model, "--to", typed]].concat());
            let message = text(&refused.stderr);
            assert_eq!(refused.status.code(), Some(2), "{typed}: {message}");
            assert!(refused.stdout.is_empty());
            assert!(message.contains(near) && message.contains(&format!("{typed:?}")), "{typed}: {message}");
            assert!(message.contains("requant formats"), "{message}");
            assert!(message.lines().count() <= 2 && message.len() < 240, "{message}");
        }
    }
    let long = requant(&["plan", model, "--to", &"q4_k_m".repeat(2000)]);
    assert!(long.status.code() == Some(2) && long.stderr.len() < 600, "{}", text(&long.stderr));
    assert!(std::fs::read_dir(directory.path()).unwrap().next().is_none());
}

#[test]
fn formats_lists_what_can_be_written() {
    let output = requant(&["formats", "--json"]);
    assert!(output.status.success());
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let listed = listed["formats"].as_array().unwrap();
    let names: Vec<&str> = listed.iter().map(|format| format["name"].as_str().unwrap()).collect();
    let known: Vec<&str> =
        TARGETS.iter().flat_map(|target| target.formats()).map(|format| format.name).collect();
    assert_eq!(names, known);
    let table = help(&["formats"]);
    for name in names {
        assert!(table.lines().any(|line| line.trim_start().starts_with(name)), "{name}");
    }
    for (name, group, bits, is_directory, matrix, reader) in [
        ("f32", "GGUF", 32.0, false, "no", "llama.cpp"),
        ("q8_0", "GGUF", 8.5, false, "no", "llama.cpp"),
        ("q4_k_m", "GGUF", 4.5, false, "helps", "llama.cpp"),
        ("q2_k_s", "GGUF", 2.625, false, "wanted", "llama.cpp"),
        ("iq2_xxs", "GGUF", 2.0625, false, "wanted", "llama.cpp"),
        ("iq3_xs", "GGUF", 3.4375, false, "wanted", "llama.cpp"),
        ("iq3_m", "GGUF", 3.4375, false, "helps", "llama.cpp"),
        ("tq1_0", "GGUF", 1.6875, false, "no", "llama.cpp"),
        ("mlx-4bit", "MLX", 4.5, true, "no", "mlx-lm"),
        ("mlx-mixed-3-6", "MLX", 3.5, true, "no", "mlx-lm"),
        ("mlx-bf16", "MLX", 16.0, true, "no", "mlx-lm"),
        ("compressed-tensors-w4a16", "compressed-tensors", 4.125, true, "no", "vLLM"),
        ("gptq-4bit-128g-asym", "GPTQ", 4.15625, true, "no", "GPTQModel"),
        ("awq-4bit-32g", "AWQ", 4.625, true, "no", "vLLM"),
    ] {
        let found = listed.iter().find(|format| format["name"] == name).unwrap();
        assert_eq!(found["group"], group, "{found}");
        assert_eq!(found["bits_per_weight"], bits, "{found}");
        assert_eq!(found["is_directory"], is_directory, "{found}");
        assert_eq!(found["importance_matrix"], matrix, "{found}");
        assert_eq!(found["read_by"][0], reader, "{found}");
    }
}

#[test]
fn formats_can_be_asked_for_a_group_or_a_part_of_a_name() {
    let table = help(&["formats", "MLX"]);
    assert!(table.contains("mlx-4bit") && !table.contains("q4_k_m") && !table.contains("awq"), "{table}");
    let table = help(&["formats", "gguf"]);
    assert!(table.contains("q4_k_m") && !table.contains("mlx"), "{table}");
    let table = help(&["formats", "nvfp4"]);
    assert!(
        ["nvfp4", "mlx-nvfp4", "compressed-tensors-nvfp4"].iter().all(|name| table.contains(name)),
        "{table}"
    );
    let none = requant(&["formats", "q4km"]);
    assert!(none.status.code() == Some(2) && text(&none.stderr).contains("q4_k_m"), "{}", text(&none.stderr));
}

#[test]
fn the_help_of_convert_has_formats_in_a_line_for_each_group() {
    let help = help(&["convert", "--help"]);
    for target in TARGETS {
        let (family, usual) = (target.family(), target.usual()[0]);
        let is_line = |line: &&str| line.trim_start().starts_with(family) && line.contains(usual);
        let lines: Vec<&str> = help.lines().filter(is_line).collect();
        let [line] = lines.as_slice() else { panic!("{}: {lines:?}", target.family()) };
        assert!(line.len() <= 80, "{line}");
    }
    assert!(help.contains("requant formats"));
    for heading in [
        "Types and size:",
        "Checks:",
        "Hub and object stores:",
        "Several machines:",
        "Threads, memory, disk:",
    ] {
        assert!(help.lines().any(|line| line == heading), "{heading}: {help}");
    }
    let examples = help.lines().filter(|line| line.trim_start().starts_with("requant convert ")).count();
    assert_eq!(examples, 2);
    // Nothing is lost under the headings.
    for option in
        ["--to", "--output", "--imatrix", "--recipe", "--job", "--validate", "--spool", "--sums", "--quiet"]
    {
        assert!(help.contains(option), "{option}");
    }
}

#[test]
fn the_help_fits_a_screen() {
    for arguments in [&["--help"][..], &["-h"], &["help"]] {
        let help = help(arguments);
        assert!(help.lines().count() <= 24, "{} lines: {help}", help.lines().count());
        assert!(help.lines().all(|line| line.chars().count() <= 80), "{help}");
    }
}
