//! `convert --calibrate`: results that are better than rounded ones, the same whatever happens on the way.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::conversion::{fixtures, model, sha256};

/// Tokens to calibrate with: a few windows.
const TOKENS: &str = "8192";

fn requant(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_requant")).args(words).output().unwrap()
}

fn succeed(words: &[&str]) -> Value {
    let output = requant(&[words, &["--json", "-q"]].concat());
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn fail(words: &[&str]) -> String {
    let output = requant(words);
    assert!(!output.status.success(), "{words:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// A folder with a text to calibrate on and another to measure on.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        let whole = std::fs::read(fixtures().join("text/heldout.txt")).unwrap();
        // Both halves begin with whole characters.
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

    /// Converts the fixture; `more` are options.
    fn convert(&self, format: &str, output: &str, more: &[&str]) -> Value {
        let (model, output) = (model(), self.word(output));
        succeed(&[&["convert", model.to_str().unwrap(), "--to", format, "-o", &output], more].concat())
    }

    fn calibrated(&self, format: &str, output: &str, more: &[&str]) -> Value {
        let text = self.word("known.txt");
        self.convert(format, output, &[&["--calibrate", &text, "--calibrate-tokens", TOKENS], more].concat())
    }

    /// A result against the fixture, on the text that it has not seen.
    fn measured(&self, output: &str) -> Value {
        let (model, output, text) = (model(), self.word(output), self.word("unseen.txt"));
        let model = model.to_str().unwrap();
        succeed(&["perplexity", &output, "--text", &text, "--against", model, "-c", "128"])
    }

    /// Its mean KL divergence.
    fn divergence(&self, output: &str) -> f64 {
        self.measured(output)["against"]["mean_kld"].as_f64().unwrap()
    }
}

fn digest(path: &Path) -> String {
    sha256(&std::fs::read(path).unwrap())
}

/// Less than so much of what rounding loses is left, in formats of every kind.
#[test]
fn results_are_nearer_to_their_source_than_rounded_ones() {
    let place = Place::new();
    for (format, most) in [
        ("q4_k_s", 0.3),
        ("q2_k", 0.12),
        ("iq4_xs", 0.35),
        ("mlx-4bit", 0.18),
        ("compressed-tensors-w4a16-g64", 0.18),
        ("compressed-tensors-nvfp4", 0.2),
        ("gptq-4bit-64g", 0.35),
    ] {
        let [rounded, calibrated] =
            ["rounded", "calibrated"].map(|name| format!("{format}.{name}{}", suffix(format)));
        let plain = place.convert(format, &rounded, &[]);
        let found = place.calibrated(format, &calibrated, &[]);
        assert_eq!(found["bytes_out"], plain["bytes_out"], "{format}");
        let [plain, found] = [&rounded, &calibrated].map(|name| place.divergence(name));
        println!("{format}: {found:.6} of {plain:.6}: {:.3}", found / plain);
        assert!(found < most * plain, "{format}: {found} of {plain}");
    }
}

fn suffix(format: &str) -> &'static str {
    let is_directory = ["mlx", "compressed", "gptq", "awq"].iter().any(|target| format.starts_with(target));
    if is_directory { "" } else { ".gguf" }
}

/// Each for itself, matrices are better than rounded as well; making good what was lost before them is better still.
#[test]
fn matrices_that_make_good_what_was_lost_are_better_than_each_for_itself() {
    let place = Place::new();
    place.convert("q2_k", "r.gguf", &[]);
    let parallel = place.calibrated("q2_k", "p.gguf", &["--calibrate-mode", "parallel"]);
    let sequential = place.calibrated("q2_k", "s.gguf", &[]);
    let [rounded, alone, together] = ["r.gguf", "p.gguf", "s.gguf"].map(|name| place.divergence(name));
    assert!(together < alone && alone < rounded, "{together} {alone} {rounded}");
    for (value, mode) in [(parallel, "parallel"), (sequential, "sequential")] {
        let manifest = std::fs::read(value["manifest"].as_str().unwrap()).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        let record = &manifest["calibration"];
        assert_eq!(record["mode"], mode);
        assert_eq!((&record["tokens"], &record["context"]), (&8192.into(), &512.into()));
        assert_eq!(record["texts"][0]["sha256"], digest(&place.path("known.txt")));
    }
}

/// The prediction layer, where the format keeps it, is calibrated as well: its own predictions are nearer to the source's, and
/// its drafts are accepted as often.
#[test]
fn the_prediction_layer_is_calibrated() {
    let place = Place::new();
    place.convert("compressed-tensors-w4a16-g64", "rounded", &[]);
    place.calibrated("compressed-tensors-w4a16-g64", "calibrated", &[]);
    let [rounded, calibrated] = ["rounded", "calibrated"].map(|name| place.measured(name));
    let of = |value: &Value, key: &str| value.pointer(key).unwrap().as_f64().unwrap();
    let [rounded_kld, kld] = [&rounded, &calibrated].map(|value| of(value, "/against/mtp/mean_kld"));
    println!("{kld:.6} of {rounded_kld:.6}");
    assert!(kld < 0.5 * rounded_kld, "{kld} of {rounded_kld}");
    let accepted = [of(&calibrated, "/mtp/top1_agreement"), of(&calibrated, "/against/mtp/top1_agreement")];
    assert!((accepted[0] - accepted[1]).abs() < 0.01 * accepted[1], "{accepted:?}");
}

/// A GGUF file holds the experts of a layer in one tensor; each of them is calibrated for itself there too.
#[test]
fn experts_that_are_stacked_in_the_source_are_calibrated() {
    let place = Place::new();
    place.convert("q8_0", "source.gguf", &[]);
    let (source, text) = (place.word("source.gguf"), place.word("known.txt"));
    let convert = |output: &str, more: &[&str]| {
        let output = place.word(output);
        let words = ["convert", &source, "--to", "q4_k_s", "--allow-requantize", "-o", &output];
        succeed(&[&words[..], more].concat())
    };
    convert("rounded.gguf", &[]);
    convert("calibrated.gguf", &["--calibrate", &text, "--calibrate-tokens", TOKENS]);
    let [rounded, calibrated] = ["rounded.gguf", "calibrated.gguf"].map(|name| place.divergence(name));
    assert!(calibrated < 0.4 * rounded, "{calibrated} of {rounded}");
}

/// The text that ships with the program is a text of another kind than the one that is measured on, and still better than none.
#[test]
fn the_text_that_ships_with_the_program_is_used_in_equal_parts() {
    let place = Place::new();
    place.convert("q4_0", "r.gguf", &[]);
    let more = ["--calibrate", "default", "--calibrate-tokens", "6144", "--calibrate-context", "256"];
    let found = place.convert("q4_0", "d.gguf", &more);
    let manifest = std::fs::read(found["manifest"].as_str().unwrap()).unwrap();
    let record = &serde_json::from_slice::<Value>(&manifest).unwrap()["calibration"];
    assert_eq!((&record["tokens"], &record["texts"][0]["file"]), (&6144.into(), &"default".into()));
    let [rounded, calibrated] = ["r.gguf", "d.gguf"].map(|name| place.divergence(name));
    assert!(calibrated < 0.8 * rounded, "{calibrated} of {rounded}");
}

#[test]
fn bytes_do_not_depend_on_the_number_of_threads() {
    let place = Place::new();
    for (threads, output) in [("1", "one.gguf"), ("3", "three.gguf")] {
        place.calibrated("q3_k_m", output, &["--threads", threads]);
    }
    assert_eq!(digest(&place.path("one.gguf")), digest(&place.path("three.gguf")));
}

/// Killed a few times on the way, the same command comes to the same bytes; with another text it says so.
#[test]
fn a_killed_run_is_gone_on_with() {
    let place = Place::new();
    place.calibrated("q4_0", "straight.gguf", &[]);
    let (model, text, output) = (model(), place.word("known.txt"), place.word("killed.gguf"));
    let words = ["convert", model.to_str().unwrap(), "--to", "q4_0", "-o", &output, "-q", "--calibrate"];
    for milliseconds in [300, 900, 1800] {
        let more = [text.as_str(), "--calibrate-tokens", TOKENS];
        let mut child = Command::new(env!("CARGO_BIN_EXE_requant")).args(words).args(more).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    if place.path("killed.gguf.partial").exists() {
        let other = place.word("unseen.txt");
        let error = fail(&[&words[..], &[&other, "--calibrate-tokens", TOKENS]].concat());
        assert!(error.contains("--calibrate") && error.contains("--restart"), "{error}");
        let error = fail(&words[..7]);
        assert!(error.contains("--calibrate") && error.contains("--restart"), "{error}");
        place.calibrated("q4_0", "killed.gguf", &[]);
    }
    assert_eq!(digest(&place.path("killed.gguf")), digest(&place.path("straight.gguf")));
    let verified = succeed(&["verify", &output]);
    assert!(verified.to_string().contains("killed.gguf"));
}

/// Layers that the walk kept for `output` has behind it, if there is one.
fn layers_done(place: &Place, output: &str) -> Option<u64> {
    let bytes = std::fs::read(place.path(&format!("{output}.walk"))).ok()?;
    let line = bytes.split(|&byte| byte == b'\n').next()?;
    serde_json::from_slice::<Value>(line).ok()?["layers"].as_u64()
}

/// Killed behind any layer, the same command begins with the next one; what was kept and is damaged, or speaks of jobs that are,
/// counts for nothing. The bytes are the same each time.
#[test]
fn a_run_goes_on_behind_the_last_layer_that_was_done() {
    let place = Place::new();
    let all = [(1, ""), (2, ""), (2, "walk"), (1, "partial")];
    for (mode, cases) in [("sequential", &all[..]), ("parallel", &all[1..2])] {
        let (model, text, output) = (model(), place.word("known.txt"), place.word("killed.gguf"));
        let more = ["--calibrate", &text, "--calibrate-tokens", "3072", "--calibrate-mode", mode];
        let straight = format!("straight-{mode}.gguf");
        place.convert("q4_0", &straight, &more);
        let expected = digest(&place.path(&straight));
        let words = ["convert", model.to_str().unwrap(), "--to", "q4_0", "-o", &output];
        let words = [&words[..], &more].concat();
        for &(layers, damage) in cases {
            let mut child =
                Command::new(env!("CARGO_BIN_EXE_requant")).args(&words).arg("-q").spawn().unwrap();
            while layers_done(&place, "killed.gguf").is_none_or(|done| done < layers) {
                assert!(child.try_wait().unwrap().is_none(), "{mode} {layers}: too fast to be killed");
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            child.kill().unwrap();
            child.wait().unwrap();
            let done = layers_done(&place, "killed.gguf").unwrap();
            if !damage.is_empty() {
                let path = place.path(&format!("killed.gguf.{damage}"));
                let mut bytes = std::fs::read(&path).unwrap();
                let at = bytes.len() / 2;
                bytes[at] ^= 1;
                std::fs::write(&path, bytes).unwrap();
            }
            let again = requant(&words);
            let said = String::from_utf8(again.stderr).unwrap();
            assert!(again.status.success(), "{mode} {layers} {damage}: {said}");
            let first = said.lines().find(|line| line.starts_with("layer ")).unwrap_or_default();
            // A byte in the middle may be one of a job that needs no calibration.
            let next = if damage == "walk" { 1 } else { done + 1 };
            let is_right = damage == "partial" || first.starts_with(&format!("layer {next} of "));
            assert!(done == 3 || is_right, "{mode} {layers} {damage}: {said}");
            assert_eq!(digest(&place.path("killed.gguf")), expected, "{mode} {layers} {damage}");
            let left: Vec<_> = std::fs::read_dir(place.folder.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| name.starts_with("killed.gguf."))
                .collect();
            assert_eq!(left, ["killed.gguf.manifest.json"]);
            ["killed.gguf", "killed.gguf.manifest.json"]
                .iter()
                .for_each(|name| std::fs::remove_file(place.path(name)).unwrap());
        }
    }
}

/// What `plan` says of a calibration grows as it should, and a run keeps to the memory that it says.
#[test]
fn a_plan_says_what_a_calibration_takes() {
    let place = Place::new();
    let (model, text) = (model(), place.word("known.txt"));
    let plan = |more: &[&str]| {
        let words = ["plan", model.to_str().unwrap(), "--to", "q4_0", "--calibrate", &text];
        succeed(&[&words[..], more].concat())["calibration"].clone()
    };
    let number = |value: &Value, key: &str| value.pointer(key).unwrap().as_f64().unwrap();
    let (half, whole) = (plan(&["--calibrate-tokens", "2048"]), plan(&["--calibrate-tokens", "4096"]));
    for (key, times) in [("/flops/forward", 2.0), ("/flops/sums", 2.0), ("/flops/rounding", 1.0)] {
        assert!((number(&whole, key) / number(&half, key) - times).abs() < 1e-9, "{key}");
    }
    assert_eq!(number(&whole, "/tokens"), 4096.0);
    // Two models, 256 columns, f32, the old and the new.
    assert_eq!(number(&whole, "/kept_bytes"), 4096.0 * 256.0 * 4.0 * 2.0 * 2.0);
    let parallel = plan(&["--calibrate-tokens", "4096", "--calibrate-mode", "parallel"]);
    for key in ["/flops/forward", "/flops/sums", "/flops/rounding"] {
        assert!(number(&parallel, key) < number(&whole, key), "{key}");
    }
    assert!(number(&whole, "/seconds") > 0.0 && number(&whole, "/flops_per_second") > 1e8);
    let error =
        fail(&["plan", model.to_str().unwrap(), "--to", "q4_0", "--calibrate", &text, "--memory", "90M"]);
    assert!(error.contains("--memory") && error.contains("--calibrate-tokens"), "{error}");

    let found = place.convert("q4_0", "o.gguf", &["--calibrate", &text, "--calibrate-tokens", "4096"]);
    assert!(number(&found, "/peak_rss_bytes") < number(&whole, "/peak_ram_bytes"), "{found}");
}

#[test]
fn what_cannot_be_calibrated_is_refused_at_once() {
    let place = Place::new();
    let (model, text) = (model(), place.word("known.txt"));
    let model = model.to_str().unwrap();
    let convert = |more: &[&str]| {
        let output = place.word("none.gguf");
        let error = fail(&[&["convert", model, "-o", &output], more].concat());
        assert!(!place.path("none.gguf.partial").exists(), "{more:?}");
        error
    };
    let short = place.word("short.txt");
    std::fs::write(&short, "Too short a text.").unwrap();
    let error = convert(&["--to", "q4_0", "--calibrate", &short]);
    assert!(error.contains("short.txt"), "{error}");
    let error = convert(&["--to", "q4_0", "--calibrate", &place.word("missing.txt")]);
    assert!(error.contains("missing.txt"), "{error}");
    let error = convert(&["--to", "q4_0", "--calibrate-tokens", "4096"]);
    assert!(error.contains("--calibrate"), "{error}");
    let error = convert(&["--to", "f16", "--calibrate", &text]);
    assert!(error.contains("--calibrate") && error.contains("without it"), "{error}");
    let error = convert(&["--to", "iq3_s", "--calibrate", &text]);
    assert!(error.contains("becomes IQ3_S") && error.contains("--imatrix"), "{error}");
    let error = convert(&["--to", "q4_0", "--calibrate", &text, "--job", "1/2"]);
    assert!(error.contains("--calibrate") && error.contains("share"), "{error}");
    let error = convert(&["--to", "q4_0", "--calibrate", &text, "--imatrix", "i.gguf"]);
    assert!(error.contains("--imatrix"), "{error}");
}
