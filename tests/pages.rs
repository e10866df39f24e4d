//! `--report`: pages about conversions and measurements.

use std::path::Path;
use std::process::{Command, Output};

use crate::conversion::{fixtures, model, names};
use crate::served::text;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_requant")).args(arguments).output().unwrap()
}

fn requant(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The first words of the held-out text.
fn words(directory: &Path) -> std::path::PathBuf {
    let words = directory.join("words.txt");
    let whole = std::fs::read_to_string(fixtures().join("text/heldout.txt")).unwrap();
    std::fs::write(&words, whole.chars().take(1500).collect::<String>()).unwrap();
    words
}

#[test]
fn conversions_and_measurements_are_reported() {
    let directory = tempfile::tempdir().unwrap();
    let (output, page) = (directory.path().join("m.gguf"), directory.path().join("m.html"));
    let words = words(directory.path());
    let source = model();
    let convert = ["convert", path(&source), "--to", "q4_k_m", "-o", path(&output), "-q", "--error-report"];
    let validate = ["--validate", path(&words), "--validate-context", "128", "--report", path(&page)];
    requant(&[&convert[..], &validate[..]].concat());
    let html = std::fs::read_to_string(&page).unwrap();
    for part in [
        "<h1>m.gguf</h1>",
        "Worst tensors",
        "By layer and kind",
        "KL divergence from the original",
        "blk.1.attn",
    ] {
        assert!(html.contains(part), "{part}");
    }
    assert_eq!(names(directory.path()), ["m.gguf", "m.gguf.manifest.json", "m.html", "words.txt"]);

    // An earlier page is replaced; what is printed stays as it is.
    let perplexity = ["perplexity", path(&output), "--text", path(&words), "--context", "128", "-q"];
    let options = ["--against", path(&source), "--report", path(&page)];
    let printed = requant(&[&perplexity[..], &options[..]].concat());
    assert!(printed.starts_with("perplexity ") && printed.contains("KL divergence"), "{printed}");
    let html = std::fs::read_to_string(&page).unwrap();
    for part in ["Choices of experts that are the original's", "<h2>Sizes</h2>", "words.txt", "Worst tensors"]
    {
        assert!(html.contains(part), "{part}");
    }
    let alone = requant(&[&perplexity[..], &["--report", path(&page), "--json"]].concat());
    let alone: serde_json::Value = serde_json::from_str(&alone).unwrap();
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.contains(&format!("{:.4} &plusmn;", alone["perplexity"].as_f64().unwrap())));
}

#[test]
fn nothing_else_is_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("model");
    std::fs::create_dir(&source).unwrap();
    for name in names(&model()) {
        std::fs::copy(model().join(&name), source.join(&name)).unwrap();
    }
    let output = directory.path().join("out");
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("text.html"), "some words").unwrap();
    std::fs::create_dir(at("d.html")).unwrap();
    for (page, why) in [
        (at("page.txt"), "ends in .html"),
        (source.join("page.html"), "lies in, the source"),
        (output.join("page.html"), "lies in, the result"),
        (at("text.html"), "the text of --validate"),
        (at("d.html"), "is a directory"),
        (at("nowhere/page.html"), "does not exist"),
    ] {
        let words = at("text.html");
        let options = ["--validate", path(&words), "--report", path(&page)];
        let convert = ["convert", path(&source), "--to", "mlx-4bit", "-o", path(&output)];
        let refused = run(&[&convert[..], &options[..]].concat());
        assert!(
            !refused.status.success() && text(&refused.stderr).contains(why),
            "{why}: {}",
            text(&refused.stderr)
        );
        assert!(!output.exists());
    }
    let refused = run(&[
        "perplexity",
        path(&source),
        "--text",
        path(&at("text.html")),
        "--report",
        path(&at("text.html")),
    ]);
    assert!(text(&refused.stderr).contains("the text"), "{}", text(&refused.stderr));
    let share = [
        "convert",
        path(&source),
        "--to",
        "mlx-4bit",
        "-o",
        path(&output),
        "--job",
        "1/2",
        "--report",
        "x.html",
    ];
    let refused = run(&share);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("--report: measures a whole result"), "{}", text(&refused.stderr));
}
