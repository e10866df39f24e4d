//! What commands run a model over: several texts, standard input, a part of a text.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::conversion::{fixtures, model};
use crate::served::text;

fn requant(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_requant"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Who refuses before reading closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn measured(options: &[&str], input: &str) -> Value {
    let model = model();
    let arguments = [&["perplexity", model.to_str().unwrap(), "--json", "-q", "-c", "64"], options].concat();
    let output = requant(&arguments, input);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let mut value: Value = serde_json::from_slice(&output.stdout).unwrap();
    for key in ["seconds", "peak_rss_bytes"] {
        value.as_object_mut().unwrap().remove(key);
    }
    value
}

/// Two texts of which neither ends where a window does.
fn two_texts(directory: &Path) -> [String; 2] {
    let whole = std::fs::read_to_string(fixtures().join("text/heldout.txt")).unwrap();
    [("a.txt", &whole[..3000]), ("b.txt", &whole[5000..7000])].map(|(name, text)| {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    })
}

#[test]
fn a_text_can_come_from_standard_input() {
    let directory = tempfile::tempdir().unwrap();
    let [a, _] = two_texts(directory.path());
    let written = std::fs::read_to_string(&a).unwrap();
    let of_file = measured(&["--text", &a], "");
    assert_eq!(measured(&["--text", "-"], &written), of_file);
    assert_eq!(measured(&["-f", "-"], &written), of_file);
    assert_eq!(measured(&["-f", &a], ""), of_file);
    let model = model();
    let model = model.to_str().unwrap();
    let empty = requant(&["perplexity", model, "-f", "-", "-q"], "");
    assert!(!empty.status.success() && text(&empty.stderr).contains("0 tokens"), "{}", text(&empty.stderr));
    let twice = requant(&["perplexity", model, "-f", "-", "-f", "-"], &written);
    assert!(
        twice.status.code() == Some(2) && text(&twice.stderr).contains("only once"),
        "{}",
        text(&twice.stderr)
    );
}

#[test]
fn several_texts_are_measured_one_after_the_other() {
    let directory = tempfile::tempdir().unwrap();
    let [a, b] = two_texts(directory.path());
    let (of_a, of_b) = (measured(&["-f", &a], ""), measured(&["-f", &b], ""));
    let both = measured(&["-f", &a, "-f", &b], "");
    let number = |value: &Value, key: &str| value[key].as_f64().unwrap();
    for key in ["windows", "tokens", "scored"] {
        assert_eq!(number(&both, key), number(&of_a, key) + number(&of_b, key), "{key}");
    }
    let log = |value: &Value| number(value, "perplexity").ln() * number(value, "scored");
    let mean = (log(&of_a) + log(&of_b)) / number(&both, "scored");
    // Sums of the same numbers, in another order.
    assert!((number(&both, "perplexity").ln() - mean).abs() < 1e-9, "{both}");

    let model = model();
    let model = model.to_str().unwrap();
    let ids = directory.path().join("ids.json");
    for (option, value) in [("--tokens", ids.to_str().unwrap()), ("--stride", "32")] {
        let refused = requant(&["perplexity", model, "-f", &a, "-f", &b, "-c", "64", option, value], "");
        assert_eq!(refused.status.code(), Some(2));
        assert!(text(&refused.stderr).contains(option), "{}", text(&refused.stderr));
    }
    assert!(!ids.exists());
    // A text that is too short is named.
    let short = directory.path().join("short.txt");
    std::fs::write(&short, "Too short.").unwrap();
    let refused = requant(&["perplexity", model, "-f", &a, "-f", short.to_str().unwrap(), "-q"], "");
    assert!(text(&refused.stderr).contains("short.txt"), "{}", text(&refused.stderr));
}

#[test]
fn so_many_windows_are_measured_as_chunks_says() {
    let directory = tempfile::tempdir().unwrap();
    let [a, b] = two_texts(directory.path());
    let of_three = measured(&["-f", &a, "--chunks", "3"], "");
    assert_eq!(of_three["windows"], 3);
    let ids = directory.path().join("ids.json");
    let all = measured(&["-f", &a, "--tokens", ids.to_str().unwrap()], "");
    assert!(all["windows"].as_u64().unwrap() > 3);
    assert_eq!(measured(&["-f", &a, "--chunks", "99999"], ""), all);
    assert_eq!(measured(&["--tokens", ids.to_str().unwrap(), "--chunks", "3"], ""), of_three);
    // Equal parts of several texts.
    let both = measured(&["-f", &a, "-f", &b, "--chunks", "4"], "");
    assert_eq!(both["windows"], 4);
    let [two_of_a, two_of_b] = [&a, &b].map(|text| measured(&["-f", text, "--chunks", "2"], ""));
    let log = |value: &Value| value["perplexity"].as_f64().unwrap().ln();
    assert!((log(&both) - (log(&two_of_a) + log(&two_of_b)) / 2.0).abs() < 1e-9);
    let model = model();
    let zero = requant(&["perplexity", model.to_str().unwrap(), "-f", &a, "--chunks", "0"], "");
    assert_eq!(zero.status.code(), Some(2));
}

#[test]
fn calibration_takes_the_same_texts() {
    let directory = tempfile::tempdir().unwrap();
    let [a, _] = two_texts(directory.path());
    let written = std::fs::read_to_string(&a).unwrap();
    let model = model();
    let made = |name: &str, options: &[&str], input: &str| -> (Vec<u8>, Value) {
        let output = directory.path().join(name);
        let common = [
            "calibrate",
            model.to_str().unwrap(),
            "-c",
            "64",
            "-q",
            "--json",
            "--output-format",
            "dat",
            "-o",
            output.to_str().unwrap(),
        ];
        let done = requant(&[&common, options].concat(), input);
        assert!(done.status.success(), "{}", text(&done.stderr));
        (std::fs::read(output).unwrap(), serde_json::from_slice(&done.stdout).unwrap())
    };
    let (_, of_tokens) = made("a.dat", &["--text", &a, "--max-tokens", "192"], "");
    let (_, of_chunks) = made("b.dat", &["-f", &a, "--chunks", "3"], "");
    let (_, of_input) = made("c.dat", &["-f", "-", "--chunks", "3"], &written);
    for found in [&of_tokens, &of_chunks, &of_input] {
        assert_eq!(found["chunks"], 3, "{found}");
        assert_eq!(found["tokens"], 192, "{found}");
        assert_eq!(found["entries"], of_tokens["entries"]);
    }
    assert_eq!(of_input["datasets"][0], "-");
}
