//! What a run leaves behind when it is stopped, fails, or meets another one.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use requant::Error;
use requant::pipeline::{self, Progress};
use requant::plan::{self, Options};
use requant_formats::Dtype;

use crate::conversion::{Silent, convert, convert_with, model, names, open, settings};
use crate::maker::{self, Size, Storage};

/// Sets a flag once `after` bytes are done, as Ctrl-C does.
pub(crate) struct StopAfter<'a> {
    pub(crate) after: u64,
    pub(crate) done: std::sync::atomic::AtomicU64,
    pub(crate) stop: &'a AtomicBool,
}

impl Progress for StopAfter<'_> {
    fn stage(&self, _: &str, _: u64) {}
    fn advance(&self, bytes: u64) {
        if self.done.fetch_add(bytes, Ordering::Relaxed) + bytes >= self.after {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

#[test]
fn an_interrupted_run_leaves_nothing_final_and_the_next_one_goes_on() {
    for (format, name) in [("q4_k_m", "m.gguf"), ("mlx-4bit", "m")] {
        let whole = tempfile::tempdir().unwrap();
        let expected = convert(&model(), format, 2, &whole.path().join(name)).unwrap().manifest;
        for after in [1, 300_000, 3_000_000] {
            let directory = tempfile::tempdir().unwrap();
            let output = directory.path().join(name);
            let source = open(&model()).unwrap();
            let blueprint = plan::blueprint(&source, format, &Options::default()).unwrap();
            let stop = AtomicBool::new(false);
            let progress = StopAfter { after, done: 0.into(), stop: &stop };
            let result =
                pipeline::convert(&source, &blueprint, &output, &settings(format, 2), &progress, &stop);
            assert!(matches!(result, Err(Error::Interrupted)), "{:?}", result.err());
            assert_eq!(names(directory.path()), [format!("{name}.journal"), format!("{name}.partial")]);
            let resumed = convert(&model(), format, 2, &output).unwrap().manifest;
            assert_eq!(resumed, expected);
            // The manifest of a directory lies inside it.
            let beside = (!output.is_dir()).then(|| format!("{name}.manifest.json"));
            let expected: Vec<String> = [name.to_owned()].into_iter().chain(beside).collect();
            assert_eq!(names(directory.path()), expected);
        }
    }
}

#[test]
fn another_request_does_not_touch_an_unfinished_one() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("m.gguf");
    let source = open(&model()).unwrap();
    let blueprint = plan::blueprint(&source, "q4_k_m", &Options::default()).unwrap();
    let stop = AtomicBool::new(false);
    let progress = StopAfter { after: 1_000_000, done: 0.into(), stop: &stop };
    let stopped = pipeline::convert(&source, &blueprint, &output, &settings("q4_k_m", 1), &progress, &stop);
    assert!(stopped.is_err());
    let error = convert(&model(), "q8_0", 1, &output).err().unwrap().to_string();
    assert!(error.contains("q4_k_m") && error.contains("--restart"), "{error}");
    assert_eq!(names(directory.path()), ["m.gguf.journal", "m.gguf.partial"]);
    let restarted = pipeline::Settings { restart: true, ..settings("q8_0", 1) };
    convert_with(&model(), &restarted, &Options::default(), &output, &Silent).unwrap();
    assert_eq!(names(directory.path()), ["m.gguf", "m.gguf.manifest.json"]);
}

#[test]
fn bytes_do_not_depend_on_the_number_of_threads() {
    for format in ["q4_k_m", "mlx-4bit-g32"] {
        let runs: Vec<_> = [1, 2, 7]
            .iter()
            .map(|&threads| {
                let directory = tempfile::tempdir().unwrap();
                convert(&model(), format, threads, &directory.path().join("m")).unwrap().manifest
            })
            .collect();
        assert!(runs.windows(2).all(|pair| pair[0] == pair[1]), "{format}");
    }
}

#[test]
fn an_existing_output_is_kept_unless_forced() {
    let directory = tempfile::tempdir().unwrap();
    for (format, name) in [("q8_0", "m.gguf"), ("mlx-4bit", "m")] {
        let output = directory.path().join(name);
        if format == "q8_0" {
            std::fs::write(&output, b"precious").unwrap();
        } else {
            convert(&model(), "mlx-8bit", 1, &output).unwrap();
        }
        let error = convert(&model(), format, 1, &output).err().unwrap().to_string();
        assert!(error.contains("exists") && error.contains("--force"), "{error}");
        let forced = pipeline::Settings { force: true, ..settings(format, 1) };
        for _ in 0..2 {
            convert_with(&model(), &forced, &Options::default(), &output, &Silent).unwrap();
        }
        let checks = pipeline::verify(&output, &Silent).unwrap();
        assert!(checks.iter().all(|check| check.problems.is_empty()), "{checks:?}");
    }
    let left = names(directory.path());
    assert_eq!(left, ["m", "m.gguf", "m.gguf.manifest.json"]);
}

#[test]
fn what_is_no_result_is_not_replaced_however_it_is_forced() {
    let directory = tempfile::tempdir().unwrap();
    let (file, folder) = (directory.path().join("file"), directory.path().join("folder"));
    std::fs::write(&file, b"precious").unwrap();
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("inside"), b"precious").unwrap();
    for (format, output) in [("mlx-4bit", &file), ("mlx-4bit", &folder), ("q8_0", &folder)] {
        let forced = pipeline::Settings { force: true, ..settings(format, 1) };
        let error = convert_with(&model(), &forced, &Options::default(), output, &Silent).err().unwrap();
        assert!(error.to_string().contains("exists and is a"), "{error}");
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    assert_eq!(std::fs::read(folder.join("inside")).unwrap(), b"precious");
    assert_eq!(names(directory.path()), ["file", "folder"]);
}

#[test]
fn leftovers_of_a_killed_run_do_not_get_in_the_way() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("m.gguf.partial"), b"half").unwrap();
    std::fs::write(directory.path().join("m.gguf.lock"), b"").unwrap();
    convert(&model(), "q4_0", 1, &directory.path().join("m.gguf")).unwrap();
    assert_eq!(names(directory.path()), ["m.gguf", "m.gguf.manifest.json"]);
}

#[test]
fn a_second_run_on_the_same_output_stops_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let lock = std::fs::File::create(directory.path().join("m.gguf.lock")).unwrap();
    lock.lock().unwrap();
    let error = convert(&model(), "q4_0", 1, &directory.path().join("m.gguf")).err().unwrap().to_string();
    assert!(error.contains("another requant"), "{error}");
    assert_eq!(names(directory.path()), ["m.gguf.lock"]);
}

#[test]
fn a_weight_that_is_not_finite_is_named_and_nothing_is_left() {
    let name = "model.layers.1.mlp.experts.3.up_proj.weight";
    let mut checkpoint = maker::checkpoint(Size::default(), Storage::Fp8(Dtype::F8_E4M3));
    // E4M3's NaN, at row 1 of 256 columns.
    checkpoint.tensor(name).bytes[256 + 5] = 0x7f;
    let source = tempfile::tempdir().unwrap();
    checkpoint.write(source.path());
    maker::copy_tokenizer(source.path());
    let directory = tempfile::tempdir().unwrap();
    for (format, output) in [("q4_0", "m.gguf"), ("mlx-4bit-g32", "m")] {
        let error =
            convert(source.path(), format, 2, &directory.path().join(output)).err().unwrap().to_string();
        for word in [name, "row 1, column 5", "NaN", "model-00001-of-00001.safetensors"] {
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(names(directory.path()), Vec::<String>::new());
    }
}

#[test]
fn an_output_without_a_home_is_an_error_that_names_it() {
    let error = convert(&model(), "q4_0", 1, Path::new("/nowhere/m.gguf")).err().unwrap().to_string();
    assert!(error.contains("/nowhere"), "{error}");
}

#[test]
fn a_shard_that_shrinks_after_the_plan_is_an_error() {
    let source = tempfile::tempdir().unwrap();
    maker::checkpoint(Size::default(), Storage::Plain(Dtype::BF16)).write(source.path());
    maker::copy_tokenizer(source.path());
    let shard = source.path().join("model-00001-of-00001.safetensors");
    let opened = open(source.path()).unwrap();
    let blueprint = plan::blueprint(&opened, "q4_0", &Options::default()).unwrap();
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &bytes[..bytes.len() / 2]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("m.gguf");
    let stop = AtomicBool::new(false);
    let result = pipeline::convert(&opened, &blueprint, &output, &settings("q4_0", 2), &Silent, &stop);
    let error = result.err().unwrap().to_string();
    assert!(error.contains("model-00001-of-00001.safetensors"), "{error}");
    assert_eq!(names(directory.path()), Vec::<String>::new());
}

/// Puts a file at a path once something was converted.
struct Intruder<'a>(&'a Path);

impl Progress for Intruder<'_> {
    fn stage(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {
        std::fs::write(self.0, b"precious").unwrap();
    }
}

#[test]
fn a_file_that_appears_while_a_run_goes_on_is_kept_and_so_is_the_work() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("m.gguf");
    let (settings, options) = (settings("q4_0", 2), Options::default());
    let error = convert_with(&model(), &settings, &options, &output, &Intruder(&output)).err().unwrap();
    assert!(error.to_string().contains("exists; --force"), "{error}");
    assert_eq!(std::fs::read(&output).unwrap(), b"precious");
    std::fs::remove_file(&output).unwrap();
    convert(&model(), "q4_0", 2, &output).unwrap();
    assert_eq!(names(directory.path()), ["m.gguf", "m.gguf.manifest.json"]);
    let checks = pipeline::verify(&output, &Silent).unwrap();
    assert!(checks.iter().all(|check| check.problems.is_empty()), "{checks:?}");
}
