//! One result written by several shares: in any order, at once, killed, repeated, on a hub; `join` makes of them the
//! bytes that one machine writes, or names what is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use requant::disk::Disk;
use requant::pipeline::{
    self, Asked, Joined, Joining, Progress, Settings, Share, ShareOutcome, ShareState, Standing,
};
use requant::plan::{self, Options};
use requant::{Error, Result};
use requant_formats::Dtype;

use crate::conversion::{Silent, convert_with, model, names, open, settings};
use crate::faults::StopAfter;
use crate::maker::{self, Size, Storage};
use crate::recorder::Random;

/// What is below a directory: names with bytes.
pub(crate) fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(
                tree(&path)
                    .into_iter()
                    .map(|(name, bytes)| (Path::new(path.file_name().unwrap()).join(name), bytes)),
            );
        } else {
            found.insert(path.file_name().unwrap().into(), std::fs::read(&path).unwrap());
        }
    }
    found
}

/// A conversion that is dealt out.
pub(crate) struct Dealt {
    pub(crate) model: PathBuf,
    pub(crate) settings: Settings,
    pub(crate) options: Options,
    pub(crate) name: &'static str,
}

impl Dealt {
    pub(crate) fn new(format: &str, name: &'static str) -> Self {
        Self { model: model(), settings: settings(format, 2), options: Options::default(), name }
    }

    /// What one machine leaves.
    pub(crate) fn whole(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join(self.name);
        convert_with(&self.model, &self.settings, &self.options, &output, &Silent).unwrap();
        tree(directory.path())
    }

    pub(crate) fn share(&self, root: &Path, job: u32, jobs: u32) -> Result<ShareOutcome> {
        self.share_with(root, job, jobs, &Silent, &AtomicBool::new(false))
    }

    /// Shares that succeed.
    pub(crate) fn shares(&self, root: &Path, numbers: impl IntoIterator<Item = u32>, jobs: u32) {
        for job in numbers {
            self.share(root, job, jobs).unwrap();
        }
    }

    pub(crate) fn share_with(
        &self,
        root: &Path,
        job: u32,
        jobs: u32,
        progress: &dyn Progress,
        stop: &AtomicBool,
    ) -> Result<ShareOutcome> {
        let source = open(&self.model)?;
        let blueprint = plan::blueprint(&source, &self.settings.format, &self.options)?;
        let output = root.join(self.name);
        let asked = Asked { share: Share { job, jobs }, array: None, before_work: &|| Ok(()) };
        pipeline::convert_share(&source, &blueprint, &output, &self.settings, &asked, progress, stop)
    }

    pub(crate) fn join(&self, root: &Path) -> Result<Joined> {
        let Settings { force, card, ref disk, .. } = self.settings;
        let joining = Joining { threads: 2, force, card, disk: disk.clone() };
        pipeline::join(&root.join(self.name), &joining, &Silent, &AtomicBool::new(false))
    }

    /// A share that is stopped once so many bytes are through.
    fn stopped_share(&self, root: &Path, job: u32, jobs: u32, after: u64) {
        let stop = AtomicBool::new(false);
        let progress = StopAfter { after, done: 0.into(), stop: &stop };
        let stopped = self.share_with(root, job, jobs, &progress, &stop);
        assert!(matches!(stopped, Err(Error::Interrupted)), "{stopped:?}");
    }

    fn standing(&self, root: &Path) -> Vec<(bool, bool)> {
        match pipeline::standing(&root.join(self.name)).unwrap() {
            Standing::Shares(shares) => shares.iter().map(|share| (share.is_done, share.is_begun)).collect(),
            other => panic!("{other:?}"),
        }
    }
}

/// Numbers from 1 to `count` in some order.
pub(crate) fn shuffled(count: u32, random: &mut Random) -> Vec<u32> {
    let mut numbers: Vec<u32> = (1..=count).collect();
    for at in (1..numbers.len()).rev() {
        numbers.swap(at, random.below(at + 1));
    }
    numbers
}

pub(crate) fn assert_same(root: &Path, expected: &BTreeMap<PathBuf, Vec<u8>>, context: &str) {
    let found = tree(root);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{context}");
    for (name, bytes) in expected {
        assert!(found[name] == *bytes, "{}: {context}", name.display());
    }
}

/// Kinds of results: one file, a split set, directories, rows in short pieces, factors that tensors share.
fn kinds() -> Vec<Dealt> {
    let split =
        Options { split_max_bytes: Some(700_000), output_name: "m.gguf".into(), ..Options::default() };
    vec![
        Dealt::new("q4_k_m", "m.gguf"),
        Dealt { options: split, ..Dealt::new("q8_0", "m.gguf") },
        Dealt::new("mlx-4bit", "m"),
        Dealt::new("gptq-4bit-64g", "m"),
        Dealt::new("compressed-tensors-nvfp4", "m"),
    ]
}

#[test]
fn shares_in_any_order_make_what_one_machine_makes() {
    let mut random = Random(5);
    for dealt in kinds() {
        let expected = dealt.whole();
        for jobs in [2, 3, 7] {
            let directory = tempfile::tempdir().unwrap();
            let order = shuffled(jobs, &mut random);
            let context = format!("{} in {order:?}", dealt.settings.format);
            for &job in &order {
                let outcome = dealt.share(directory.path(), job, jobs).unwrap();
                assert_eq!((outcome.state, outcome.redone), (ShareState::Done, 0), "{context}");
                assert!(!directory.path().join(dealt.name).exists());
            }
            let joined = dealt.join(directory.path()).unwrap();
            assert!(joined.is_new);
            assert_same(directory.path(), &expected, &context);
            // Once more nothing happens.
            assert!(!dealt.join(directory.path()).unwrap().is_new);
            assert_same(directory.path(), &expected, &context);
        }
    }
}

#[test]
fn an_error_report_is_that_of_one_machine() {
    let mut dealt = Dealt::new("q4_k_m", "m.gguf");
    dealt.settings.error_report = true;
    let expected = dealt.whole();
    let directory = tempfile::tempdir().unwrap();
    dealt.shares(directory.path(), 1..=5, 5);
    dealt.join(directory.path()).unwrap();
    // With every bit of its numbers.
    assert_same(directory.path(), &expected, "error report");
}

#[test]
fn shares_that_are_stopped_go_on_and_what_is_done_is_not_done_again() {
    let mut random = Random(11);
    for dealt in kinds() {
        let expected = dealt.whole();
        let directory = tempfile::tempdir().unwrap();
        for job in shuffled(3, &mut random) {
            dealt.stopped_share(directory.path(), job, 3, 1 + random.below(900_000) as u64);
        }
        assert!(dealt.standing(directory.path()).iter().all(|&(is_done, is_begun)| !is_done && is_begun));
        let error = dealt.join(directory.path()).unwrap_err().to_string();
        assert!(error.contains("3 of 3 shares are not done") && error.contains("not running"), "{error}");
        for job in shuffled(3, &mut random) {
            assert_eq!(dealt.share(directory.path(), job, 3).unwrap().state, ShareState::Done);
            assert_eq!(dealt.share(directory.path(), job, 3).unwrap().state, ShareState::WasDone);
        }
        dealt.join(directory.path()).unwrap();
        assert_same(directory.path(), &expected, &dealt.settings.format);
    }
}

#[test]
fn more_shares_than_there_is_work_for_end_at_once() {
    let model = tempfile::tempdir().unwrap();
    let size = Size { layers: 1, ..Size::default() };
    maker::checkpoint(size, Storage::Plain(Dtype::BF16)).write(model.path());
    maker::copy_tokenizer(model.path());
    let dealt = Dealt { model: model.path().into(), ..Dealt::new("q4_0", "m.gguf") };
    let expected = dealt.whole();
    let directory = tempfile::tempdir().unwrap();
    let outcomes: Vec<ShareOutcome> =
        (1..=50).map(|job| dealt.share(directory.path(), job, 50).unwrap()).collect();
    assert!(outcomes.iter().filter(|outcome| outcome.bytes_in == 0).count() > 10);
    dealt.join(directory.path()).unwrap();
    assert_same(directory.path(), &expected, "50 shares");
}

#[test]
fn missing_shares_are_named() {
    let dealt = Dealt::new("mlx-4bit", "m");
    let directory = tempfile::tempdir().unwrap();
    let nothing = dealt.join(directory.path()).unwrap_err().to_string();
    assert!(nothing.contains("nothing to join") && nothing.contains("m.shares"), "{nothing}");
    dealt.share(directory.path(), 2, 4).unwrap();
    dealt.stopped_share(directory.path(), 3, 4, 1);
    let error = dealt.join(directory.path()).unwrap_err().to_string();
    for words in ["3 of 4 shares are not done", "1 (not begun)", "3 (not running, ", "4 (not begun)"] {
        assert!(error.contains(words), "{error}");
    }
    let lock = std::fs::File::create(directory.path().join("m.shares/1-of-4.lock")).unwrap();
    lock.lock().unwrap();
    let error = dealt.join(directory.path()).unwrap_err().to_string();
    assert!(error.contains("1 (running, 0 %)"), "{error}");
    // And a second process with that number stops.
    let busy = dealt.share(directory.path(), 1, 4).unwrap_err().to_string();
    assert!(busy.contains("another requant does share 1 of 4"), "{busy}");
    drop(lock);
    assert!(!directory.path().join("m").exists());
    assert_eq!(dealt.standing(directory.path())[1], (true, true));
}

#[test]
fn bytes_that_changed_before_the_join_are_found_named_and_written_again() {
    for dealt in kinds() {
        let expected = dealt.whole();
        let directory = tempfile::tempdir().unwrap();
        dealt.shares(directory.path(), 1..=4, 4);
        let partials: Vec<PathBuf> = names(directory.path())
            .iter()
            .filter(|name| name.ends_with(".partial"))
            .map(|name| directory.path().join(name))
            .flat_map(|path| {
                if path.is_dir() {
                    names(&path).iter().map(|name| path.join(name)).collect()
                } else {
                    vec![path]
                }
            })
            .collect();
        for path in &partials {
            let mut bytes = std::fs::read(path).unwrap();
            // What belongs to no job is written anew; the middle belongs to one.
            bytes[3] ^= 0xff;
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(path, bytes).unwrap();
        }
        let error = dealt.join(directory.path()).unwrap_err().to_string();
        assert!(error.contains("damaged since") && error.contains("--job "), "{error}");
        assert!(!directory.path().join(dealt.name).exists());
        // The shares that it names, and no others, are to be done again.
        let again: BTreeSet<u32> = (1..=4).filter(|job| error.contains(&format!("{job}/4"))).collect();
        assert!(!again.is_empty(), "{error}");
        for job in 1..=4 {
            let outcome = dealt.share(directory.path(), job, 4).unwrap();
            let expected = if again.contains(&job) { ShareState::Done } else { ShareState::WasDone };
            assert_eq!((outcome.state, outcome.redone > 0), (expected, again.contains(&job)), "{error}");
        }
        dealt.join(directory.path()).unwrap();
        assert_same(directory.path(), &expected, &dealt.settings.format);
    }
}

#[test]
fn unfinished_files_that_are_gone_or_cut_are_every_share_s_again() {
    let dealt = Dealt::new("q4_0", "m.gguf");
    let expected = dealt.whole();
    for cut in [None, Some(100_000)] {
        let directory = tempfile::tempdir().unwrap();
        dealt.shares(directory.path(), 1..=2, 2);
        let partial = directory.path().join("m.gguf.partial");
        match cut {
            None => std::fs::remove_file(&partial).unwrap(),
            Some(len) => std::fs::File::options().write(true).open(&partial).unwrap().set_len(len).unwrap(),
        }
        let error = dealt.join(directory.path()).unwrap_err().to_string();
        assert!(error.contains("damaged since"), "{error}");
        dealt.shares(directory.path(), 1..=2, 2);
        dealt.join(directory.path()).unwrap();
        assert_same(directory.path(), &expected, "gone");
    }
}

#[test]
fn a_share_of_another_request_stops_and_says_what_is_different() {
    let dealt = Dealt::new("q4_0", "m.gguf");
    let directory = tempfile::tempdir().unwrap();
    dealt.share(directory.path(), 1, 3).unwrap();
    let before = tree(directory.path());
    let other_model = tempfile::tempdir().unwrap();
    maker::checkpoint(Size::default(), Storage::Fp8(Dtype::F8_E4M3)).write(other_model.path());
    maker::copy_tokenizer(other_model.path());
    let touched = tempfile::tempdir().unwrap();
    for name in names(&model()) {
        std::fs::copy(model().join(&name), touched.path().join(&name)).unwrap();
    }
    let mut reporting = Dealt::new("q4_0", "m.gguf");
    reporting.settings.error_report = true;
    let tied = Options { tokenizer_pre: Some("llama-bpe".into()), ..Options::default() };
    let cases: [(Dealt, u32, &[&str]); 6] = [
        (Dealt::new("q4_0", "m.gguf"), 4, &["they were 3, now 4"]),
        (Dealt::new("q8_0", "m.gguf"), 3, &["--to was q4_0, now q8_0"]),
        (Dealt { model: other_model.path().into(), ..Dealt::new("q4_0", "m.gguf") }, 3, &["the model was"]),
        (Dealt { model: touched.path().into(), ..Dealt::new("q4_0", "m.gguf") }, 3, &["the model was"]),
        (Dealt { options: tied, ..Dealt::new("q4_0", "m.gguf") }, 3, &["options"]),
        (reporting, 3, &["--error-report was not given, now given"]),
    ];
    for (other, jobs, words) in cases {
        let error = other.share(directory.path(), 2, jobs).unwrap_err().to_string();
        let words = [words, &["another request", "m.gguf.shares"]].concat();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    let left = tree(directory.path());
    assert!(left == before, "{:?}", left.keys());
    // The same place with other files in it.
    let moving = tempfile::tempdir().unwrap();
    let place = moving.path().join("model");
    std::fs::create_dir(&place).unwrap();
    for name in names(&model()) {
        std::fs::copy(model().join(&name), place.join(&name)).unwrap();
    }
    let dealt = Dealt { model: place.clone(), ..Dealt::new("q4_0", "m.gguf") };
    let directory = tempfile::tempdir().unwrap();
    dealt.share(directory.path(), 1, 2).unwrap();
    let shard = place.join("model-00003-of-00004.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    let error = dealt.share(directory.path(), 2, 2).unwrap_err().to_string();
    assert!(error.contains("files of the source have changed") && error.contains("same copy"), "{error}");
}

#[test]
fn whole_runs_and_shares_keep_apart() {
    let dealt = Dealt::new("q4_0", "m.gguf");
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("m.gguf");
    dealt.share(directory.path(), 1, 2).unwrap();
    let restart = Settings { restart: true, ..settings("q4_0", 2) };
    for settings in [&dealt.settings, &restart] {
        let error = convert_with(&model(), settings, &dealt.options, &output, &Silent).err().unwrap();
        let error = error.to_string();
        assert!(error.contains("shares of it are there") && error.contains("m.gguf.shares"), "{error}");
    }
    dealt.share(directory.path(), 2, 2).unwrap();
    dealt.join(directory.path()).unwrap();
    assert_eq!(names(directory.path()), ["m.gguf", "m.gguf.manifest.json"]);

    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("m.gguf");
    let source = open(&model()).unwrap();
    let blueprint = plan::blueprint(&source, "q4_0", &Options::default()).unwrap();
    let stop = AtomicBool::new(false);
    let progress = StopAfter { after: 1_000_000, done: 0.into(), stop: &stop };
    pipeline::convert(&source, &blueprint, &output, &dealt.settings, &progress, &stop).unwrap_err();
    let before = tree(directory.path());
    let error = dealt.share(directory.path(), 1, 2).unwrap_err().to_string();
    assert!(error.contains("an unfinished run of one machine is there"), "{error}");
    assert!(tree(directory.path()) == before);
}

#[test]
fn an_old_result_is_replaced_when_that_is_asked_for_and_only_once_all_is_joined() {
    for mut dealt in kinds() {
        let expected = dealt.whole();
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join(dealt.name);
        // The same names, other bytes.
        let old = tempfile::tempdir().unwrap();
        for name in names(&model()) {
            std::fs::copy(model().join(&name), old.path().join(&name)).unwrap();
        }
        let shard = old.path().join("model-00002-of-00004.safetensors");
        let mut bytes = std::fs::read(&shard).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&shard, bytes).unwrap();
        convert_with(old.path(), &dealt.settings, &dealt.options, &output, &Silent).unwrap();
        let before = tree(directory.path());
        let error = dealt.share(directory.path(), 1, 2).unwrap_err().to_string();
        assert!(error.contains("exists; --force"), "{error}");
        assert!(tree(directory.path()) == before);
        dealt.settings.force = true;
        for job in [1, 2] {
            dealt.share(directory.path(), job, 2).unwrap();
            assert!(before.iter().all(|(name, bytes)| tree(directory.path())[name] == *bytes));
        }
        dealt.settings.force = false;
        let error = dealt.join(directory.path()).unwrap_err().to_string();
        assert!(error.contains("exists; --force"), "{error}");
        dealt.settings.force = true;
        dealt.join(directory.path()).unwrap();
        assert_same(directory.path(), &expected, &dealt.settings.format);
    }
}

#[test]
fn a_share_that_comes_after_the_join_has_nothing_to_do() {
    let dealt = Dealt::new("mlx-4bit", "m");
    let directory = tempfile::tempdir().unwrap();
    dealt.shares(directory.path(), 1..=2, 2);
    dealt.join(directory.path()).unwrap();
    let before = tree(directory.path());
    assert_eq!(dealt.share(directory.path(), 2, 2).unwrap().state, ShareState::WasJoined);
    assert!(tree(directory.path()) == before);
    // Another request does not count as joined.
    let other = Dealt::new("mlx-8bit", "m").share(directory.path(), 2, 2).unwrap_err().to_string();
    assert!(other.contains("exists; --force"), "{other}");
}

#[test]
fn a_source_that_changes_between_shares_is_found_by_their_digests() {
    // Every file is read by both shares, and its times are put back.
    let model = tempfile::tempdir().unwrap();
    let mut checkpoint = maker::checkpoint(Size::default(), Storage::Fp8(Dtype::F8_E4M3));
    checkpoint.indexed = false;
    checkpoint.write(model.path());
    maker::copy_tokenizer(model.path());
    let dealt = Dealt { model: model.path().into(), ..Dealt::new("q4_0", "m.gguf") };
    let directory = tempfile::tempdir().unwrap();
    dealt.share(directory.path(), 1, 2).unwrap();
    let shard = model.path().join("model.safetensors");
    let modified = shard.metadata().unwrap().modified().unwrap();
    let mut bytes = std::fs::read(&shard).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    let file = std::fs::File::options().write(true).open(&shard).unwrap();
    file.set_times(std::fs::FileTimes::new().set_modified(modified)).unwrap();
    dealt.share(directory.path(), 2, 2).unwrap();
    let error = dealt.join(directory.path()).unwrap_err().to_string();
    assert!(error.contains("model.safetensors") && error.contains("the source was"), "{error}");
    assert!(!directory.path().join("m.gguf").exists());
}

/// A disk for shares, for tests elsewhere.
pub(crate) fn on_disk(dealt: &Dealt, disk: &Disk) -> Dealt {
    Dealt {
        model: dealt.model.clone(),
        settings: Settings { disk: disk.clone(), ..dealt.settings.clone() },
        options: dealt.options.clone(),
        name: dealt.name,
    }
}
