//! What the program says of itself: pages of the documentation, completions, manual pages, families.

use std::path::Path;
use std::process::{Command, Output};

use requant::family::FAMILIES;
use serde_json::Value;

use crate::conversion::names;
use crate::served::text;

/// Commands that are not for everyday use, and not in the help.
const HIDDEN: [&str; 2] = ["man", "reference"];

fn requant(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_requant")).args(arguments).output().unwrap()
}

fn printed(arguments: &[&str]) -> String {
    let output = requant(arguments);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// The commands in the help.
fn commands() -> Vec<String> {
    let help = printed(&["--help"]);
    let listed =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    listed
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next().map(str::to_owned))
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn pages_of_the_documentation_are_what_the_program_says() {
    for page in ["cli", "families"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/{page}.md"));
        let written = std::fs::read_to_string(&path).unwrap();
        let said = printed(&["reference", page]);
        let first = written.lines().zip(said.lines()).position(|(written, said)| written != said);
        assert!(
            written == said,
            "docs/{page}.md differs, first in line {:?}: requant reference {page} > docs/{page}.md",
            first.map(|line| line + 1)
        );
    }
}

#[test]
fn the_page_of_the_command_line_has_every_command_and_option() {
    let page = printed(&["reference", "cli"]);
    for command in commands().iter().filter(|name| *name != "help") {
        let section =
            page.split("\n## ").find(|section| section.starts_with(&format!("requant {command}\n")));
        let section = section.unwrap_or_else(|| panic!("no section for {command}"));
        let help = printed(&[command, "-h"]);
        let options = help.split_whitespace().filter(|word| word.starts_with("--") && word.len() > 2);
        let options: Vec<&str> =
            options.map(|word| word.trim_end_matches([',', ';', ')', ':', '.'])).collect();
        assert!(!options.is_empty());
        for option in options.into_iter().filter(|option| *option != "--help") {
            assert!(section.contains(option), "{command} {option}: {section}");
        }
    }
    assert!(page.lines().all(|line| !line.contains('\u{1b}')));
}

#[test]
fn families_are_those_of_the_registry() {
    let listed: Value = serde_json::from_str(&printed(&["families", "--json"])).unwrap();
    let listed_families = listed["families"].as_array().unwrap();
    assert_eq!(listed_families.len(), FAMILIES.len());
    let table = printed(&["families"]);
    let page = printed(&["reference", "families"]);
    for (family, listed) in FAMILIES.iter().zip(listed_families) {
        assert_eq!(listed["model_type"], family.model_type);
        assert_eq!(listed["architecture"], family.gguf.name);
        let sources = listed["sources"].as_object().unwrap();
        assert_eq!(sources.contains_key("checkpoint"), family.checkpoint.is_some(), "{listed}");
        assert_eq!(sources.contains_key("MLX"), family.checkpoint.is_some(), "{listed}");
        assert_eq!(sources["GGUF"]["targets"], serde_json::json!(["GGUF"]));
        if let Some(checkpoint) = sources.get("checkpoint") {
            let targets: Vec<&str> = requant::plan::TARGETS.iter().map(|target| target.family()).collect();
            assert_eq!(checkpoint["targets"], serde_json::json!(targets));
        }
        assert!(sources.values().all(|source| source["evaluated"] == true), "{listed}");
        let is_row =
            |line: &str, name: &str| line.split_whitespace().any(|word| word.trim_matches('`') == name);
        for text in [&table, &page] {
            assert!(text.lines().any(|line| is_row(line, family.model_type)), "{}", family.model_type);
        }
    }
    let methods = listed["quantization_methods"].as_array().unwrap();
    assert!(methods.iter().any(|method| method == "fp8") && methods.iter().any(|method| method == "gptq"));
}

#[test]
fn every_shell_gets_completions() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = printed(&["completions", shell]);
        for word in ["convert", "perplexity", "completions", "split-max-size"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        // Those of the other two do not complete values.
        assert!(script.contains("mlx-4bit") || ["elvish", "powershell"].contains(&shell), "{shell}");
    }
    let unknown = requant(&["completions", "tcsh"]);
    assert!(
        unknown.status.code() == Some(2) && text(&unknown.stderr).contains("zsh"),
        "{}",
        text(&unknown.stderr)
    );
}

/// A real bash reads the script, and completes commands, options and formats with it.
#[test]
fn bash_completes_with_them() {
    let script = printed(&["completions", "bash"]);
    let complete = |words: &str| {
        let line = format!(
            "{script}\nCOMP_WORDS=({words} ''); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1)); \
             _requant requant '' \"${{COMP_WORDS[COMP_CWORD-1]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        let done = Command::new("bash").args(["--norc", "-c", &line]).output().unwrap();
        assert!(done.status.success(), "{}", text(&done.stderr));
        text(&done.stdout).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let has = |found: &[String], word: &str| found.iter().any(|found| found == word);
    let first = complete("requant");
    assert!(has(&first, "convert") && has(&first, "formats"), "{first:?}");
    assert!(HIDDEN.iter().all(|name| !commands().iter().any(|command| command == name)));
    let formats = complete("requant convert --to");
    assert!(has(&formats, "q4_k_m") && has(&formats, "mlx-4bit") && !has(&formats, "--to"), "{formats:?}");
}

#[test]
fn manual_pages_are_written_for_every_command() {
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("share/man");
    let done = requant(&["man", pages.to_str().unwrap()]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let written = names(&pages);
    assert!(written.contains(&"requant.1".to_owned()), "{written:?}");
    for command in commands().iter().filter(|name| *name != "help") {
        let page = std::fs::read_to_string(pages.join(format!("requant-{command}.1"))).unwrap();
        assert!(page.contains(".SH NAME") && page.contains(".SH OPTIONS"), "{command}: {page}");
    }
    assert!(HIDDEN.iter().all(|name| !written.contains(&format!("requant-{name}.1"))), "{written:?}");
    // A file where a directory is wanted.
    let file = directory.path().join("f");
    std::fs::write(&file, "").unwrap();
    let refused = requant(&["man", file.to_str().unwrap()]);
    assert!(
        refused.status.code() == Some(1) && text(&refused.stderr).contains("f:"),
        "{}",
        text(&refused.stderr)
    );
}
