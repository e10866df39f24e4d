//! Types chosen by what they cost the model on a text: `--calibrate` with a size budget.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

use crate::conversion::{fixtures, model};

fn requant(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_requant")).args(words).output().unwrap()
}

fn succeed(words: &[&str]) -> Value {
    let output = requant(&[words, &["--json", "-q"]].concat());
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A folder with a text to calibrate on and another to measure on.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        let whole = std::fs::read(fixtures().join("text/heldout.txt")).unwrap();
        // Both begin and end with whole characters.
        std::fs::write(place.path("known.txt"), &whole[..40_000]).unwrap();
        std::fs::write(place.path("unseen.txt"), &whole[60_000..66_000]).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn word(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Mean KL divergence from the fixture of a conversion of it, on the text that it has not seen.
    fn divergence(&self, format: &str, output: &str, more: &[&str]) -> f64 {
        let (model, output, text) = (model(), self.word(output), self.word("unseen.txt"));
        let model = model.to_str().unwrap();
        succeed(&[&["convert", model, "--to", format, "-o", &output], more].concat());
        let found = succeed(&["perplexity", &output, "--text", &text, "--against", model, "-c", "128"]);
        found["against"]["mean_kld"].as_f64().unwrap()
    }

    /// `plan` with a budget, by sensitivity.
    fn plan(&self, format: &str, size: &str, more: &[&str]) -> Value {
        let (model, text) = (model(), self.word("known.txt"));
        let words = ["plan", model.to_str().unwrap(), "--to", format, "--target-size", size];
        succeed(&[&words[..], &["--calibrate", &text, "--calibrate-context", "128"], more].concat())
    }
}

/// Bytes of a format's own mix.
fn size(format: &str) -> String {
    succeed(&["plan", model().to_str().unwrap(), "--to", format])["bytes_out"].to_string()
}

/// At the size of a fixed mix: by the errors of weights, by sensitivity, and by that with error feedback.
#[test]
fn what_is_chosen_by_sensitivity_diverges_less() {
    let place = Place::new();
    let text = place.word("known.txt");
    for (format, suffix, by_choice, by_both) in [("q4_k_m", ".gguf", 0.6, 0.2), ("mlx-3bit", "", 0.4, 0.1)] {
        let (size, recipe) = (size(format), place.word(&format!("{format}.toml")));
        let name = |kind: &str| format!("{format}-{kind}{suffix}");
        place.plan(format, &size, &["--save-recipe", &recipe]);
        let by_weights = place.divergence(format, &name("weights"), &["--target-size", &size]);
        let chosen = place.divergence(format, &name("chosen"), &["--recipe", &recipe]);
        let of_text = ["--calibrate", &text, "--calibrate-context", "128", "--calibrate-tokens", "8192"];
        let both =
            place.divergence(format, &name("both"), &[&["--target-size", &size], &of_text[..]].concat());
        let fixed = place.divergence(format, &name("fixed"), &of_text);
        println!("{format}: weights {by_weights:.6}, chosen {chosen:.6}, both {both:.6}, fixed {fixed:.6}");
        assert!(chosen < by_choice * by_weights, "{format}: {chosen} of {by_weights}");
        assert!(both < by_both * by_weights, "{format}: {both} of {by_weights}");
        assert!(both < fixed, "{format}: {both} of {fixed}");
    }
}

/// Plans say what tensors are worth; neither that nor the choice depends on the number of threads, and a conversion with
/// the same text makes the same choice.
#[test]
fn the_choice_is_the_same_at_any_number_of_threads_and_in_a_conversion() {
    let place = Place::new();
    let size = size("q3_k_m");
    let of_text = ["--calibrate-tokens", "2048"];
    let plans = ["1", "3"]
        .map(|threads| place.plan("q3_k_m", &size, &[&of_text[..], &["--threads", threads]].concat()));
    for key in ["recipe", "sensitivities", "rules", "bytes_out"] {
        assert_eq!(plans[0][key], plans[1][key], "{key}");
    }
    let found = plans[0]["sensitivities"].as_array().unwrap();
    let kappa = |name: &str| found.iter().find(|tensor| tensor["name"] == name).unwrap()["kappa"].clone();
    for name in ["token_embd.weight", "output.weight", "blk.1.ffn_down_exps.weight", "blk.0.attn_k_b.weight"]
    {
        assert!(kappa(name).as_f64().unwrap() > 0.0, "{name}");
    }
    let (model, output, text) = (model(), place.word("r.gguf"), place.word("known.txt"));
    let words = ["convert", model.to_str().unwrap(), "--to", "q3_k_m", "-o", &output, "--target-size", &size];
    let more = ["--calibrate", &text, "--calibrate-context", "128", "--threads", "2"];
    let value = succeed(&[&words[..], &more, &of_text].concat());
    let manifest = std::fs::read(value["manifest"].as_str().unwrap()).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["recipe"], plans[0]["recipe"]);
}

#[test]
fn texts_that_do_not_do_are_said_first() {
    let place = Place::new();
    let (model, text) = (model(), place.word("known.txt"));
    let words = ["plan", model.to_str().unwrap(), "--to", "q4_k_m"];
    for (more, parts) in [
        (
            &["--target-bpw", "4.5", "--calibrate-tokens", "4096"][..],
            &["--calibrate-tokens", "there is none"][..],
        ),
        (
            &["--target-bpw", "4.5", "--calibrate", &text, "--calibrate-context", "100000"],
            &["known.txt", "fewer than one window"],
        ),
    ] {
        let output = requant(&[&words[..], more].concat());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && parts.iter().all(|part| error.contains(part)), "{error}");
    }
}
