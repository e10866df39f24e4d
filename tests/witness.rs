//! A local source that changes while it is converted, or between a stop and the resume, and what is stated about
//! its files: never a mixture, and the manifest names the digest of the bytes that were used.

use std::fs::{File, FileTimes};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use requant::pipeline::{self, Manifest, Outcome, Progress, manifest_path};
use requant::plan::{self, Options};
use requant::{Error, Result};
use requant_formats::Dtype;

use crate::conversion::{Silent, convert, names, open, settings, sha256};
use crate::faults::StopAfter;
use crate::maker::{self, Size, Storage};
use crate::requantize::requantize;
use crate::served::Served;

const SHARD: &str = "model-00001-of-00001.safetensors";
const EARLY: &str = "model.embed_tokens.weight";
const DROPPED: &str = "model.layers.2.enorm.weight";

/// A checkpoint of FP8 weights in a directory of its own.
fn checkpoint() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    maker::checkpoint(Size::default(), Storage::Fp8(Dtype::F8_E4M3)).write(directory.path());
    maker::copy_tokenizer(directory.path());
    directory
}

/// Flips bits of byte number `at` of a tensor, in place; the time of the last change stays what it was.
fn flip(directory: &Path, tensor: &str, at: u64) {
    let path = directory.join(SHARD);
    let bytes = std::fs::read(&path).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_len as usize]).unwrap();
    let start = header[tensor]["data_offsets"][0].as_u64().unwrap();
    flip_byte(&path, 8 + header_len + start + at);
}

fn flip_byte(path: &Path, at: u64) {
    let modified = path.metadata().unwrap().modified().unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    file.set_times(FileTimes::new().set_modified(modified)).unwrap();
}

/// Does something once so many bytes are through, and again never.
struct Meddler<'a> {
    after: u64,
    done: AtomicU64,
    meddled: AtomicBool,
    meddle: &'a (dyn Fn() + Sync),
}

impl Progress for Meddler<'_> {
    fn stage(&self, _: &str, _: u64) {}
    fn advance(&self, bytes: u64) {
        if self.done.fetch_add(bytes, Ordering::Relaxed) + bytes >= self.after
            && !self.meddled.swap(true, Ordering::Relaxed)
        {
            (self.meddle)();
        }
    }
}

/// Converts, and calls `meddle` once `after` bytes of the source are through.
fn meddled(
    source: &Path,
    format: &str,
    output: &Path,
    after: u64,
    meddle: &(dyn Fn() + Sync),
) -> Result<Outcome> {
    let source = open(source).unwrap();
    let blueprint = plan::blueprint(&source, format, &Options::default()).unwrap();
    let progress = Meddler { after, done: 0.into(), meddled: false.into(), meddle };
    let stop = AtomicBool::new(false);
    let result = pipeline::convert(&source, &blueprint, output, &settings(format, 1), &progress, &stop);
    assert!(progress.meddled.load(Ordering::Relaxed));
    result
}

fn bytes_in(source: &Path, format: &str) -> u64 {
    let directory = tempfile::tempdir().unwrap();
    convert(source, format, 1, &directory.path().join("m")).unwrap().bytes_in
}

fn assert_refused(result: Result<Outcome>, output: &Path, words: &[&str]) {
    let error = match result {
        Ok(_) => panic!("it was sealed"),
        Err(error) => error,
    };
    assert!(matches!(error, Error::Changed { .. }), "{error}");
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
    assert!(!output.exists() && !manifest_path(output).exists());
}

fn source_digests(manifest: &Manifest) -> Vec<(String, Option<String>)> {
    manifest.source_files.iter().map(|file| (file.name.clone(), file.sha256.clone())).collect()
}

/// The manifest names the digest that each file of the source has.
fn assert_digests(manifest: &Manifest, source: &Path, expected: &[&str]) {
    let found = source_digests(manifest);
    for name in expected {
        assert!(found.iter().any(|(found, _)| found == name), "{name}: {found:?}");
    }
    for (name, digest) in found {
        assert_eq!(digest, Some(sha256(&std::fs::read(source.join(&name)).unwrap())), "{name}");
    }
}

#[test]
fn the_manifest_names_the_digest_of_every_source_file() {
    let source = checkpoint();
    let directory = tempfile::tempdir().unwrap();
    for (format, name) in
        [("q4_0", "a.gguf"), ("mlx-4bit-g32", "b"), ("compressed-tensors-nvfp4", "c"), ("f32", "q8.gguf")]
    {
        let manifest = convert(source.path(), format, 2, &directory.path().join(name)).unwrap().manifest;
        assert_digests(
            &manifest,
            source.path(),
            &[SHARD, "config.json", "model.safetensors.index.json", "tokenizer.json"],
        );
    }
    let again = requantize(&directory.path().join("q8.gguf"), "q4_0", &directory.path().join("again.gguf"));
    assert_digests(&again.manifest, directory.path(), &["q8.gguf"]);
    // In shards that share weights and scales, and with more threads than shards.
    let spread = tempfile::tempdir().unwrap();
    let mut checkpoint = maker::checkpoint(Size::default(), Storage::Fp8(Dtype::F8_E4M3));
    checkpoint.spread(5);
    checkpoint.write(spread.path());
    maker::copy_tokenizer(spread.path());
    for format in ["q4_k_m", "nvfp4"] {
        let output = directory.path().join(format!("{format}.gguf"));
        let manifest = convert(spread.path(), format, 7, &output).unwrap().manifest;
        assert_digests(&manifest, spread.path(), &["model-00004-of-00005.safetensors"]);
    }
}

#[test]
fn a_shard_rewritten_after_it_was_read_is_not_sealed() {
    for (tensor, format) in [
        (EARLY, "q4_0"),
        ("model.layers.1.mlp.experts.0.up_proj.weight", "q4_k_m"),
        ("model.layers.1.mlp.experts.0.up_proj.weight_scale_inv", "mlx-4bit-g32"),
        ("model.layers.1.mlp.experts.0.up_proj.weight_scale_inv", "compressed-tensors-nvfp4"),
        (DROPPED, "q4_0"),
    ] {
        let source = checkpoint();
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("m");
        let all = bytes_in(source.path(), format);
        let result = meddled(source.path(), format, &output, all, &|| flip(source.path(), tensor, 1));
        // A dropped tensor may not have been read by then: the digest is that of the file as it is then.
        let result = match result {
            Ok(outcome) if tensor == DROPPED => {
                assert_digests(&outcome.manifest, source.path(), &[SHARD]);
                continue;
            }
            result => result,
        };
        assert_refused(result, &output, &[SHARD, "--restart"]);
        assert_eq!(names(directory.path()), ["m.journal", "m.partial"], "work is kept");
    }
}

#[test]
fn whenever_a_shard_is_rewritten_nothing_is_mixed() {
    let mut refused = 0;
    for eighth in 1..=8 {
        for tensor in [EARLY, "model.layers.0.mlp.down_proj.weight", "lm_head.weight"] {
            let source = checkpoint();
            let directory = tempfile::tempdir().unwrap();
            let output = directory.path().join("m.gguf");
            let after = bytes_in(source.path(), "q4_0") * eighth / 8;
            match meddled(source.path(), "q4_0", &output, after, &|| flip(source.path(), tensor, 2)) {
                Err(error) => {
                    assert!(matches!(error, Error::Changed { .. }), "{error}");
                    refused += 1;
                }
                Ok(outcome) => {
                    assert_digests(&outcome.manifest, source.path(), &[SHARD]);
                    let fresh =
                        convert(source.path(), "q4_0", 2, &directory.path().join("fresh.gguf")).unwrap();
                    assert_eq!(outcome.manifest.tensors[0].sha256, fresh.manifest.tensors[0].sha256);
                    assert_eq!(outcome.manifest.files[0].sha256, fresh.manifest.files[0].sha256);
                }
            }
        }
    }
    assert!(refused > 0);
}

#[test]
fn files_replaced_cut_off_or_removed_are_noticed() {
    let replace = |source: &Path, change: &dyn Fn(&mut Vec<u8>)| {
        let path = source.join(SHARD);
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::write(source.join("new"), bytes).unwrap();
        std::fs::rename(source.join("new"), path).unwrap();
    };
    type Meddle<'a> = (&'a str, &'a (dyn Fn(&Path) + Sync));
    let cases: [Meddle<'_>; 5] = [
        (SHARD, &|source| replace(source, &|bytes| *bytes.last_mut().unwrap() ^= 1)),
        (SHARD, &|source| replace(source, &|bytes| bytes.push(0))),
        (SHARD, &|source| std::fs::remove_file(source.join(SHARD)).unwrap()),
        ("config.json", &|source| flip_byte(&source.join("config.json"), 1)),
        ("tokenizer.json", &|source| std::fs::write(source.join("tokenizer.json"), "{}").unwrap()),
    ];
    for (name, meddle) in cases {
        let source = checkpoint();
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("m.gguf");
        let all = bytes_in(source.path(), "q4_0");
        let result = meddled(source.path(), "q4_0", &output, all, &|| meddle(source.path()));
        assert_refused(result, &output, &[name, "--restart"]);
    }
    // Cut off before it is digested: that no more can be read is a change like any other.
    let source = checkpoint();
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("m.gguf");
    let cut = || {
        File::options().write(true).open(source.path().join("tokenizer.json")).unwrap().set_len(2).unwrap()
    };
    let result = meddled(source.path(), "q4_0", &output, 1, &cut);
    assert_refused(result, &output, &["tokenizer.json", "--restart"]);
    // An equal copy under the same name is the same source; so is one that was only touched.
    let source = checkpoint();
    let directory = tempfile::tempdir().unwrap();
    let all = bytes_in(source.path(), "q4_0");
    let copy = || replace(source.path(), &|_| ());
    let outcome = meddled(source.path(), "q4_0", &directory.path().join("m.gguf"), all, &copy).unwrap();
    assert_digests(&outcome.manifest, source.path(), &[SHARD]);
    // Cut off early: whoever reads past the end says so.
    let cut =
        || File::options().write(true).open(source.path().join(SHARD)).unwrap().set_len(100_000).unwrap();
    let error = meddled(source.path(), "q4_0", &directory.path().join("n.gguf"), 1, &cut).err().unwrap();
    assert!(error.to_string().contains(SHARD), "{error}");
    assert!(!directory.path().join("n.gguf").exists());
}

fn stopped(source: &Path, format: &str, output: &Path, after: u64) {
    let opened = open(source).unwrap();
    let blueprint = plan::blueprint(&opened, format, &Options::default()).unwrap();
    let stop = AtomicBool::new(false);
    let progress = StopAfter { after, done: 0.into(), stop: &stop };
    let result = pipeline::convert(&opened, &blueprint, output, &settings(format, 1), &progress, &stop);
    assert!(matches!(result, Err(Error::Interrupted)));
}

#[test]
fn a_file_changed_between_a_stop_and_the_resume_is_named() {
    for (tensor, format) in [
        (EARLY, "q4_0"),
        (EARLY, "mlx-4bit-g32"),
        ("model.layers.0.mlp.down_proj.weight_scale_inv", "q4_k_m"),
        ("model.layers.0.mlp.up_proj.weight_scale_inv", "compressed-tensors-nvfp4"),
    ] {
        let source = checkpoint();
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("m");
        stopped(source.path(), format, &output, bytes_in(source.path(), format) - 1);
        flip(source.path(), tensor, 0);
        let result = convert(source.path(), format, 2, &output);
        // Where tensors share a factor on their scales, the other one is not what it was either.
        let named =
            if format.ends_with("nvfp4") { "_proj.weight" } else { tensor.trim_end_matches("_scale_inv") };
        assert_refused(result, &output, &[SHARD, named, "earlier run", "--restart"]);
        // Put back as it was, the same command goes on with what was kept.
        flip(source.path(), tensor, 0);
        let resumed = convert(source.path(), format, 2, &output).unwrap().manifest;
        let fresh = convert(source.path(), format, 2, &directory.path().join("fresh")).unwrap().manifest;
        assert_eq!(resumed.tensors.len(), fresh.tensors.len());
        assert!(resumed.tensors.iter().zip(&fresh.tensors).all(|(a, b)| a.sha256 == b.sha256));
        assert_digests(&resumed, source.path(), &[SHARD]);
    }
}

#[test]
fn what_no_finished_job_has_read_may_change_before_the_resume() {
    let source = checkpoint();
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("m.gguf");
    stopped(source.path(), "q4_0", &output, bytes_in(source.path(), "q4_0") - 1);
    flip(source.path(), DROPPED, 0);
    let resumed = convert(source.path(), "q4_0", 2, &output).unwrap().manifest;
    assert_digests(&resumed, source.path(), &[SHARD]);
    let fresh = convert(source.path(), "q4_0", 2, &directory.path().join("fresh.gguf")).unwrap().manifest;
    assert_eq!(resumed.files[0].sha256, fresh.files[0].sha256);
}

/// A fetched directory, as `requant fetch` leaves it, of the trained model.
fn fetched(served: &Served) -> PathBuf {
    assert!(served.run(&["fetch", crate::served::ID, "-o", "fetched"]).status.success());
    served.path("fetched")
}

#[test]
fn what_a_download_recorded_must_be_there() {
    let served = Served::model();
    let source = fetched(&served);
    let output = served.path("m.gguf");
    convert(&source, "q4_0", 2, &output).unwrap();
    let shard = source.join("model-00002-of-00004.safetensors");
    let len = shard.metadata().unwrap().len();
    flip_byte(&shard, len - 1);
    let output = served.path("n.gguf");
    let record = ".cache/huggingface/download/model-00002-of-00004.safetensors.metadata";
    assert_refused(
        convert(&source, "q4_0", 2, &output),
        &output,
        &["model-00002-of-00004", record, "Fetch it again"],
    );
    // Without the record nothing is stated.
    std::fs::remove_file(source.join(record)).unwrap();
    convert(&source, "q4_0", 2, &output).unwrap();
    // A configuration that was edited after the download is meant.
    let config = source.join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{text}\n")).unwrap();
    let now = std::time::SystemTime::now();
    let later = FileTimes::new().set_modified(now + std::time::Duration::from_secs(60));
    File::options().write(true).open(&config).unwrap().set_times(later).unwrap();
    convert(&source, "q4_0", 2, &served.path("o.gguf")).unwrap();
    // One that is damaged is not.
    let earlier = FileTimes::new().set_modified(now - std::time::Duration::from_secs(60));
    File::options().write(true).open(&config).unwrap().set_times(earlier).unwrap();
    let output = served.path("p.gguf");
    assert_refused(convert(&source, "q4_0", 2, &output), &output, &["config.json", "git blob id"]);
}

#[test]
fn blobs_of_a_cache_are_what_they_are_called() {
    let served = Served::model();
    let snapshot = served.fill_cache();
    convert(&snapshot, "q4_0", 2, &served.path("m.gguf")).unwrap();
    let name = "model-00003-of-00004.safetensors";
    let blob = std::fs::canonicalize(snapshot.join(name)).unwrap();
    flip_byte(&blob, blob.metadata().unwrap().len() - 1);
    let output = served.path("n.gguf");
    // Before its first weight is used.
    let error = convert(&snapshot, "q4_0", 2, &output).unwrap_err().to_string();
    assert!(error.contains(name) && error.contains("blobs"), "{error}");
    assert!(!output.exists() && !manifest_path(&output).exists());
}

#[test]
fn a_result_that_is_converted_again_is_what_its_manifest_says() {
    let source = checkpoint();
    let directory = tempfile::tempdir().unwrap();
    let first = directory.path().join("q8_0.gguf");
    convert(source.path(), "q8_0", 2, &first).unwrap();
    flip_byte(&first, first.metadata().unwrap().len() - 40);
    let output = directory.path().join("q4_0.gguf");
    let opened = requant::opened::Opened::open(&first).unwrap();
    let blueprint =
        plan::blueprint(&opened, "q4_0", &Options { allow_requantize: true, ..Options::default() }).unwrap();
    let stop = AtomicBool::new(false);
    let result =
        pipeline::convert(opened.catalogue(), &blueprint, &output, &settings("q4_0", 2), &Silent, &stop);
    assert_refused(result, &output, &["q8_0.gguf", "q8_0.gguf.manifest.json", "sha256"]);
}
