//! Importance matrices that `requant calibrate` makes, against those of llama-imatrix.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use requant::imatrix::Imatrix;
use serde_json::Value;

use crate::conversion::{fixtures, model};

/// What llama-imatrix was given: so many bytes of the text (fixtures/make_imatrix_goldens.py).
const GOLDEN_BYTES: usize = 26_000;

fn requant(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_requant")).args(words).output().unwrap()
}

fn succeed(words: &[&str]) -> Value {
    let output = requant(&[words, &["--json", "-q"]].concat());
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn fail(words: &[&str]) -> (i32, String) {
    let output = requant(words);
    assert!(!output.status.success(), "{words:?}");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// A folder, with a text that begins at some byte.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn text(&self, name: &str, bytes: std::ops::Range<usize>) -> String {
        let whole = std::fs::read(fixtures().join("text/heldout.txt")).unwrap();
        std::fs::write(self.path(name), &whole[bytes]).unwrap();
        self.path(name)
    }
}

fn names(imatrix: &Imatrix) -> Vec<String> {
    imatrix.names().map(str::to_owned).collect()
}

fn importance(imatrix: &Imatrix, name: &str) -> Vec<f32> {
    imatrix.importance(name, 0..imatrix.len(name).unwrap()).unwrap()
}

#[test]
fn values_are_those_of_llama_imatrix() {
    let place = Place::new();
    let (model, text, output) = (model(), place.text("text.txt", 0..GOLDEN_BYTES), place.path("i.gguf"));
    let found = succeed(&["calibrate", model.to_str().unwrap(), "--text", &text, "-o", &output]);
    assert_eq!(found["chunks"], 17);
    let (ours, golden) = (
        Imatrix::open(Path::new(&output)).unwrap(),
        Imatrix::open(&fixtures().join("goldens/imatrix/imatrix.gguf")).unwrap(),
    );
    assert_eq!(names(&ours), names(&golden));
    assert_eq!(ours.chunks, golden.chunks);
    let mut compared = 0;
    for name in ours.names() {
        let [counts, expected] = [&ours, &golden].map(|imatrix| imatrix.sums(name, 512).unwrap().counts);
        assert_eq!(counts.len(), expected.len(), "{name}");
        let (values, golden) = (importance(&ours, name), importance(&golden, name));
        let part = values.len() / counts.len();
        for (matrix, (count, expected)) in counts.iter().zip(&expected).enumerate() {
            // Two scores of a router that differ in their last bit may change places.
            assert!(count.abs_diff(*expected) <= 1, "{name} {matrix}: {count} {expected}");
            if count != expected {
                continue;
            }
            for column in matrix * part..(matrix + 1) * part {
                // The tool multiplies in f32, in another order.
                let error = (values[column] - golden[column]).abs() / golden[column];
                assert!(error <= 1e-3, "{name} column {column}: {} {}", values[column], golden[column]);
                compared += 1;
            }
        }
    }
    assert!(compared > 20_000, "{compared}");
}

#[test]
fn a_gguf_file_gives_what_its_checkpoint_gives_on_any_number_of_threads() {
    let place = Place::new();
    let (model, text) = (model(), place.text("text.txt", 0..6_000));
    let model = model.to_str().unwrap();
    let f32 = place.path("f32.gguf");
    let output = requant(&["convert", model, "--to", "f32", "-o", &f32, "-q"]);
    assert!(output.status.success());
    let run = |source: &str, threads: &str| {
        let output = place.path("i.gguf");
        let words = ["calibrate", source, "--text", &text, "-o", &output, "--force", "--process-output"];
        succeed(&[&words[..], &["--threads", threads]].concat());
        std::fs::read(output).unwrap()
    };
    let first = run(model, "1");
    assert!(first.windows(13).any(|window| window == b"output.weight"));
    assert!(first == run(model, "2") && first == run(&f32, "2"));
}

/// Killed behind any layer, the same command goes on with the next one and gives the same bytes; another one says so.
#[test]
fn a_killed_run_goes_on_behind_the_last_layer_that_was_done() {
    let place = Place::new();
    let (model, text, output) = (model(), place.text("text.txt", 0..12_000), place.path("i.gguf"));
    let words = ["calibrate", model.to_str().unwrap(), "-o", &output, "--process-output", "--text", &text];
    succeed(&words);
    let expected = std::fs::read(&output).unwrap();
    std::fs::remove_file(&output).unwrap();
    let walk = place.path("i.gguf.walk");
    let layers_done = || {
        let bytes = std::fs::read(&walk).ok()?;
        let line = bytes.split(|&byte| byte == b'\n').next()?;
        serde_json::from_slice::<Value>(line).ok()?["layers"].as_u64()
    };
    for layers in [1, 2] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_requant")).args(words).arg("-q").spawn().unwrap();
        while layers_done().is_none_or(|done| done < layers) {
            assert!(child.try_wait().unwrap().is_none(), "{layers}: too fast to be killed");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!Path::new(&output).exists());
        let done = layers_done().unwrap();
        let other = place.text("other.txt", 30_000..42_000);
        let (_, error) = fail(&[&words[..6], &[other.as_str()]].concat());
        assert!(error.contains("tokens") && error.contains("--restart"), "{error}");
        let again = requant(&words);
        let said = String::from_utf8(again.stderr).unwrap();
        assert!(again.status.success(), "{said}");
        assert!(said.contains(&format!("{done} of 3 layers are done")), "{said}");
        assert!(done == 3 || said.contains(&format!("layer {} of 3", done + 1)), "{said}");
        assert!(!said.contains(&format!("layer {done} of 3")), "{said}");
        assert!(std::fs::read(&output).unwrap() == expected && !Path::new(&walk).exists());
        // Thrown away, a run of another request leaves no trace.
        std::fs::remove_file(&output).unwrap();
    }
    std::fs::write(&walk, "not a walk").unwrap();
    succeed(&[&words[..], &["--restart"]].concat());
    assert!(std::fs::read(&output).unwrap() == expected && !Path::new(&walk).exists());
}

#[test]
fn texts_together_are_texts_one_after_the_other() {
    let place = Place::new();
    let model = model();
    let model = model.to_str().unwrap();
    let (a, b) = (place.text("a.txt", 0..4_000), place.text("b.txt", 8_000..14_000));
    let [both, one, two] = ["both.gguf", "one.gguf", "two.gguf"].map(|name| place.path(name));
    let together = succeed(&["calibrate", model, "--text", &a, "--text", &b, "-o", &both]);
    assert_eq!(together["datasets"], serde_json::json!([a, b]));
    succeed(&["calibrate", model, "--text", &a, "-o", &one]);
    succeed(&["calibrate", model, "--text", &b, "--in-file", &one, "-o", &two]);
    let [both, two] = [both, two].map(|path| Imatrix::open(Path::new(&path)).unwrap());
    assert_eq!((names(&both), both.chunks, &both.datasets), (names(&two), two.chunks, &two.datasets));
    for name in both.names() {
        let [x, y] = [&both, &two].map(|imatrix| imatrix.sums(name, 512).unwrap());
        assert_eq!(x.counts, y.counts, "{name}");
        // Sums are rounded to f32 once more.
        let same = |(x, y): (&f32, &f32)| (x - y).abs() <= 4.0 * f32::EPSILON * x.abs();
        assert!(x.sums.iter().zip(&y.sums).all(same), "{name}");
    }
    // In the older format, which has one count for a stack.
    let dat = place.path("both.dat");
    let words =
        ["calibrate", model, "--in-file", &place.path("both.gguf"), "-o", &dat, "--output-format", "dat"];
    succeed(&words);
    let dat = Imatrix::open(Path::new(&dat)).unwrap();
    assert_eq!((names(&dat), dat.chunks), (names(&both), both.chunks));
    for name in both.names() {
        for (x, y) in importance(&both, name).into_iter().zip(importance(&dat, name)) {
            assert!((x - y).abs() <= 4.0 * f32::EPSILON * x, "{name}: {x} {y}");
        }
    }
}

#[test]
fn experts_that_no_token_reached_are_reported_and_count_once() {
    let place = Place::new();
    let (model, text, output) = (model(), place.text("text.txt", 0..2_000), place.path("i.gguf"));
    let words = [
        "calibrate",
        model.to_str().unwrap(),
        "--text",
        &text,
        "-c",
        "8",
        "--max-tokens",
        "8",
        "-o",
        &output,
    ];
    let found = succeed(&words);
    assert_eq!((&found["tokens"], &found["chunks"]), (&8.into(), &1.into()));
    let unseen = found["unseen"].as_array().unwrap();
    assert!(!unseen.is_empty());
    let imatrix = Imatrix::open(Path::new(&output)).unwrap();
    for entry in unseen {
        let name = entry["name"].as_str().unwrap();
        assert!(name.contains("_exps"), "{name}");
        let counts = imatrix.sums(name, 8).unwrap().counts;
        for matrix in entry["matrices"].as_array().unwrap() {
            assert_eq!(counts[matrix.as_u64().unwrap() as usize], 0, "{name}");
        }
        assert!(importance(&imatrix, name).contains(&1.0));
    }
    let output = requant(&[&words[..], &["--force", "-q"]].concat());
    let page = String::from_utf8(output.stdout).unwrap();
    assert!(page.contains("matrices of experts that no token reached"), "{page}");
}

#[test]
fn what_cannot_be_done_is_said_first() {
    let place = Place::new();
    let model = model();
    let model = model.to_str().unwrap();
    let (text, short) = (place.text("text.txt", 0..4_000), place.text("short.txt", 0..40));
    let output = place.path("i.gguf");
    let golden: PathBuf = fixtures().join("goldens/imatrix/imatrix.gguf");
    let cases: [(&[&str], i32, &str); 6] = [
        (&["--text", &short, "-o", &output], 1, "fewer than one window"),
        (&["-o", &output], 2, "--text"),
        (&["--text", &text, "-o", &text], 1, "a text"),
        (&["--text", &place.path("none"), "-o", &output], 1, "none"),
        (&["--in-file", golden.to_str().unwrap(), "--process-output", "-o", &output], 2, "--process-output"),
        (&["--in-file", &text, "-o", &output], 1, "neither"),
    ];
    for (words, expected, message) in cases {
        let (code, said) = fail(&[&["calibrate", model], words].concat());
        assert!(code == expected && said.contains(message), "{words:?}: {code} {said}");
        assert!(!Path::new(&output).exists());
    }
    std::fs::write(&output, b"mine").unwrap();
    let (code, said) = fail(&["calibrate", model, "--text", &text, "-o", &output]);
    assert!(code == 1 && said.contains("exists"), "{said}");
    assert_eq!(std::fs::read(&output).unwrap(), b"mine");
}
