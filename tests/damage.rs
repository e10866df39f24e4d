//! Bytes of an unfinished result that changed before it is gone on with: the result is right all the same.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use requant::Error;
use requant::pipeline::{self, Manifest, Outcome, Progress};
use requant::plan::{self, Options};

use crate::conversion::{Silent, convert, model, names, open, settings};
use crate::faults::StopAfter;

/// Formats with one file, with two kinds of rows, with a directory, and with rows in short pieces.
const FORMATS: [(&str, &str); 4] =
    [("q4_0", "m.gguf"), ("q4_k_m", "m.gguf"), ("mlx-4bit", "m"), ("gptq-4bit-64g", "m")];

/// Records what is said about damage.
#[derive(Default)]
struct Listener(Mutex<Vec<usize>>);

impl Progress for Listener {
    fn stage(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn damaged(&self, jobs: usize) {
        self.0.lock().unwrap().push(jobs);
    }
}

/// Stops a conversion once so many bytes of the source are through.
fn stopped(format: &str, output: &Path, after: u64) {
    let source = open(&model()).unwrap();
    let blueprint = plan::blueprint(&source, format, &Options::default()).unwrap();
    let stop = AtomicBool::new(false);
    let progress = StopAfter { after, done: 0.into(), stop: &stop };
    let result = pipeline::convert(&source, &blueprint, output, &settings(format, 2), &progress, &stop);
    assert!(matches!(result, Err(Error::Interrupted)), "{:?}", result.err());
    assert!(stop.load(Ordering::Relaxed));
}

fn resumed(format: &str, output: &Path) -> (Outcome, Vec<usize>) {
    let listener = Listener::default();
    let source = open(&model()).unwrap();
    let blueprint = plan::blueprint(&source, format, &Options::default()).unwrap();
    let stop = AtomicBool::new(false);
    let outcome =
        pipeline::convert(&source, &blueprint, output, &settings(format, 2), &listener, &stop).unwrap();
    (outcome, listener.0.into_inner().unwrap())
}

fn expected(format: &str, name: &str) -> Manifest {
    let directory = tempfile::tempdir().unwrap();
    convert(&model(), format, 2, &directory.path().join(name)).unwrap().manifest
}

/// Files of an unfinished result.
fn partials(output: &Path) -> Vec<PathBuf> {
    let partial = output.with_file_name(format!("{}.partial", output.file_name().unwrap().to_str().unwrap()));
    if !partial.is_dir() {
        return vec![partial];
    }
    names(&partial).iter().map(|name| partial.join(name)).collect()
}

fn assert_whole(output: &Path, found: &Manifest, expected: &Manifest) {
    assert_eq!((&found.files, &found.tensors), (&expected.files, &expected.tensors));
    for check in pipeline::verify(output, &Silent).unwrap() {
        assert!(check.problems.is_empty(), "{}: {:?}", check.file, check.problems);
    }
}

#[test]
fn a_flipped_byte_anywhere_in_an_unfinished_result_does_not_get_into_the_finished_one() {
    for (format, name) in FORMATS {
        let expected = expected(format, name);
        let mut told = 0;
        for place in 0..6u64 {
            let directory = tempfile::tempdir().unwrap();
            let output = directory.path().join(name);
            stopped(format, &output, 4_000_000);
            for path in partials(&output) {
                let mut bytes = std::fs::read(&path).unwrap();
                if bytes.is_empty() {
                    continue;
                }
                let at = (bytes.len() as u64 - 1) * place / 5;
                bytes[at as usize] ^= 0x10;
                std::fs::write(&path, bytes).unwrap();
            }
            let (outcome, listened) = resumed(format, &output);
            assert_whole(&output, &outcome.manifest, &expected);
            assert_eq!(listened.iter().sum::<usize>(), outcome.redone);
            told += outcome.redone;
        }
        assert!(told > 0, "{format}: no flipped byte met a finished job");
    }
}

#[test]
fn zeros_where_a_power_cut_left_them_are_written_again() {
    for (format, name) in FORMATS {
        let expected = expected(format, name);
        // The header, everything, the second half.
        for zeros in [0..4096, 0..usize::MAX, usize::MAX / 2..usize::MAX] {
            let directory = tempfile::tempdir().unwrap();
            let output = directory.path().join(name);
            stopped(format, &output, 4_000_000);
            for path in partials(&output) {
                let mut bytes = std::fs::read(&path).unwrap();
                let start = if zeros.start == 0 { 0 } else { bytes.len() / 2 };
                let end = zeros.end.min(bytes.len());
                bytes[start..end].fill(0);
                std::fs::write(&path, bytes).unwrap();
            }
            let (outcome, _) = resumed(format, &output);
            assert_whole(&output, &outcome.manifest, &expected);
        }
    }
}

#[test]
fn what_is_not_damaged_is_not_done_again() {
    for (format, name) in FORMATS {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join(name);
        stopped(format, &output, 4_000_000);
        let (outcome, listened) = resumed(format, &output);
        assert_eq!((outcome.redone, listened), (0, vec![]));
        assert_whole(&output, &outcome.manifest, &expected(format, name));
    }
}
