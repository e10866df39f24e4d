//! Runs that are stopped before every single step they take on the disk: killed there, or with the power cut in
//! five ways. Whatever is left, nothing under a final name is less than a whole result, and the same command goes
//! on to the same bytes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use requant::disk::Disk;
use requant::fetch;
use requant::opened::Opened;
use requant::pipeline::{self, Card, Manifest, Pinned, Settings};
use requant::plan::{self, Options};
use requant::source::hub::{Environment, HubCache, HubId, Repository};
use requant::source::{Deposit, Remote, Spool, Streamed};
use requant::{Error, Result};
use requant_formats::Dtype;
use test_hub::{Hub, Repo};

use crate::conversion::{Silent, settings};
use crate::family_goldens;
use crate::maker::{self, Size, Storage};
use crate::recorder::{Fault, Loss, Recorder};

const ID: &str = "org/small";

/// A small checkpoint in three shards, some scales in other shards than their weights.
pub(crate) fn small(directory: &Path) {
    let size = Size { hidden: 128, experts: 4, layers: 2, expert_width: 128, kv_lora: 128 };
    let mut checkpoint = maker::checkpoint(size, Storage::Fp8(Dtype::F8_E4M3));
    checkpoint.indexed = true;
    let count = checkpoint.tensors.len();
    for (number, tensor) in checkpoint.tensors.iter_mut().enumerate() {
        tensor.shard = if tensor.name.ends_with("scale_inv") { 2 } else { 2 * number / count };
    }
    checkpoint.write(directory);
    maker::copy_tokenizer(directory);
}

/// A directory in memory where there is one: what is really on a disk does not matter here.
pub(crate) fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// Something that is run, stopped and run again, and writes below a directory.
pub(crate) struct Case<'a> {
    /// What is there before.
    pub(crate) prepare: &'a dyn Fn(&Path),
    pub(crate) run: &'a dyn Fn(&Path, &Disk) -> Result<()>,
    /// What must hold after a stop, before the next run; given what a run without a stop leaves.
    pub(crate) after: &'a dyn Fn(&Path, &Tree),
}

pub(crate) type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// Every file below `root` with its content; a link with its target.
pub(crate) fn tree(root: &Path) -> Tree {
    let mut found = Tree::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let name = path.strip_prefix(root).unwrap().to_owned();
            if metadata.is_dir() {
                directories.push(path);
            } else if metadata.is_symlink() {
                found.insert(name, std::fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes());
            } else {
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

pub(crate) fn names(tree: &Tree) -> Vec<&PathBuf> {
    tree.keys().collect()
}

/// The same without times of downloads and locks.
pub(crate) fn lasting(tree: Tree) -> Tree {
    let is_lock = |path: &Path| path.to_string_lossy().ends_with("lock");
    let without_time = |path: &Path, bytes: Vec<u8>| {
        let is_record = path.extension().is_some_and(|extension| extension == "metadata");
        let lines = if is_record { 2 } else { usize::MAX };
        bytes.split_inclusive(|&byte| byte == b'\n').take(lines).collect::<Vec<_>>().concat()
    };
    let files = tree.into_iter().filter(|(path, _)| !is_lock(path));
    files.map(|(path, bytes)| (path.clone(), without_time(&path, bytes))).collect()
}

/// So many runs in a row that nothing stopped, and so many steps behind the last stop, say that the end of a run is passed.
const WHOLE_RUNS: usize = 3;
const STEPS_BEHIND: usize = 40;

/// Stops the case before every step. `losses` says what is lost at a step.
pub(crate) fn stop_everywhere(case: &Case<'_>, losses: &dyn Fn(usize) -> Vec<Loss>) {
    let root = scratch();
    (case.prepare)(root.path());
    let whole = Recorder::new(root.path(), None);
    (case.run)(root.path(), &whole.disk()).unwrap();
    let expected = lasting(tree(root.path()));
    let steps = whole.steps();
    assert!(steps > 20, "{steps}");
    let (mut stopped, mut runs) = (0, 0);
    // A run takes fewer steps the more jobs are recorded at once: none is stopped by steps that only the first one took.
    let (mut last_stop, mut whole_runs) = (0, 0);
    for stop in 0..steps {
        if whole_runs >= WHOLE_RUNS && stop > last_stop + STEPS_BEHIND {
            break;
        }
        for loss in losses(stop) {
            let root = scratch();
            (case.prepare)(root.path());
            let recorder = Recorder::new(root.path(), Some(stop));
            let first = (case.run)(root.path(), &recorder.disk());
            stopped += usize::from(recorder.is_off());
            (last_stop, whole_runs) = if recorder.is_off() { (stop, 0) } else { (last_stop, whole_runs + 1) };
            runs += 1;
            recorder.lose(loss);
            let context = format!("step {stop} of {steps}, {loss:?}, first: {first:?}\n{}", recorder.last());
            (case.after)(root.path(), &expected);
            let left = lasting(tree(root.path()));
            let second = (case.run)(root.path(), &Disk::default());
            let found = lasting(tree(root.path()));
            // A run that was stopped after its last word has nothing left to do.
            let was_complete = left == expected;
            assert!(second.is_ok() || was_complete, "{context}\nsecond: {second:?}\n{:?}", names(&left));
            assert_eq!(names(&found), names(&expected), "{context}");
            let same = found.iter().filter(|(path, bytes)| expected[*path] != **bytes);
            let other: Vec<&PathBuf> = same.map(|(path, _)| path).collect();
            assert!(other.is_empty(), "{other:?}: {context}");
        }
    }
    assert!(2 * stopped > runs, "{stopped} of {runs}");
}

/// All losses, each at every step when `REQUANT_EVERY_LOSS` is set, else one after the other.
pub(crate) fn in_turn(stop: usize) -> Vec<Loss> {
    let seed = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(stop as u64 + 1);
    let all = [Loss::Nothing, Loss::Everything, Loss::Content, Loss::Zeroed, Loss::Some(seed)];
    if std::env::var_os("REQUANT_EVERY_LOSS").is_some() {
        return [&all[..], &[Loss::Some(seed ^ 2), Loss::Some(seed ^ 4)]].concat();
    }
    vec![all[stop % all.len()]]
}

/// The same at one step of 37, for runs that talk to a hub and take longer; at every step when
/// `REQUANT_EVERY_LOSS` is set.
fn now_and_then(stop: usize) -> Vec<Loss> {
    let is_due = stop.is_multiple_of(37) || std::env::var_os("REQUANT_EVERY_LOSS").is_some();
    if is_due { in_turn(stop) } else { Vec::new() }
}

fn recording(format: &str, disk: &Disk, force: bool) -> Settings {
    // Each job is recorded as soon as it is done, so that there is something to go on with.
    let (disk, card) = (disk.clone(), Some(card as Card));
    Settings { disk, card, sync_interval: Duration::ZERO, force, ..settings(format, 2) }
}

/// A card that follows from what is in the result.
fn card(manifest: &Manifest) -> String {
    format!("{:?}\n", manifest.files)
}

fn convert(source: Opened, settings: &Settings, options: &Options, output: &Path) -> Result<()> {
    let blueprint = plan::blueprint(&source, &settings.format, options)?;
    pipeline::convert(&source, &blueprint, output, settings, &Silent, &AtomicBool::new(false)).map(drop)
}

fn local(model: &Path) -> Result<Opened> {
    Opened::open(model)
}

/// Whether `verify` finds a result at `path` that is whole.
pub(crate) fn passes(path: &Path) -> bool {
    let checks = pipeline::verify(path, &Silent);
    checks.is_ok_and(|checks| checks.iter().all(|check| check.problems.is_empty()))
}

/// Whatever has a final name is whole and is the result.
pub(crate) fn only_whole(root: &Path, expected: &Tree) {
    let found = lasting(tree(root));
    let is_final = |path: &Path| expected.contains_key(path);
    for (path, bytes) in found.iter().filter(|(path, _)| is_final(path)) {
        assert!(expected[path] == *bytes, "{} is there and not whole", path.display());
    }
}

#[test]
fn a_gguf_file_and_a_split_set_and_a_directory() {
    let model = scratch();
    small(model.path());
    let split =
        Options { split_max_bytes: Some(300_000), output_name: "m.gguf".into(), ..Options::default() };
    let cases = [
        ("q4_0", "m.gguf", Options::default()),
        ("q8_0", "m.gguf", split),
        // With mlx-lm's card and with one that is written last.
        ("mlx-4bit", "m", Options::default()),
        ("mlx-4bit", "m", Options { leaves_card: true, ..Options::default() }),
    ];
    for (format, name, options) in cases {
        let run = |root: &Path, disk: &Disk| {
            let settings = recording(format, disk, false);
            convert(local(model.path())?, &settings, &options, &root.join(name))
        };
        stop_everywhere(&Case { prepare: &|_| {}, run: &run, after: &only_whole }, &in_turn);
    }
}

/// The divisors of rotary frequencies have no weights that they come from, and no job writes them.
#[test]
fn a_gguf_file_with_a_tensor_that_follows_from_the_hyper_parameters() {
    let model = scratch();
    let model = family_goldens::checkpoint(model.path(), "llama-c", &family_goldens::golden("llama-c"));
    let run = |root: &Path, disk: &Disk| {
        let settings = recording("q8_0", disk, false);
        convert(local(&model)?, &settings, &Options::default(), &root.join("m.gguf"))
    };
    stop_everywhere(&Case { prepare: &|_| {}, run: &run, after: &only_whole }, &in_turn);
}

#[test]
fn over_an_old_result_either_it_or_the_new_one_is_there() {
    let model = scratch();
    small(model.path());
    let split =
        Options { split_max_bytes: Some(300_000), output_name: "m.gguf".into(), ..Options::default() };
    let cases = [
        ("q4_0", "m.gguf", Options::default()),
        ("q4_0", "m.gguf", split),
        // With mlx-lm's card and with one that is written last.
        ("mlx-4bit", "m", Options::default()),
        ("mlx-4bit", "m", Options { leaves_card: true, ..Options::default() }),
    ];
    for (format, name, options) in cases {
        // The old one has the same names and other bytes.
        let other = scratch();
        let mut changed = maker::checkpoint(
            Size { hidden: 128, experts: 4, layers: 2, expert_width: 128, kv_lora: 128 },
            Storage::Plain(Dtype::BF16),
        );
        changed.tensors[0].bytes[0] ^= 1;
        changed.write(other.path());
        maker::copy_tokenizer(other.path());
        let prepare = |root: &Path| {
            let settings = recording(format, &Disk::default(), false);
            convert(local(other.path()).unwrap(), &settings, &options, &root.join(name)).unwrap();
        };
        let run = |root: &Path, disk: &Disk| {
            let settings = recording(format, disk, true);
            convert(local(model.path())?, &settings, &options, &root.join(name))
        };
        let after = |root: &Path, _: &Tree| {
            let first = if options.split_max_bytes.is_some() {
                let found = tree(root);
                let first = found.keys().find(|path| path.to_string_lossy().contains("-00001-of-"));
                root.join(first.unwrap())
            } else {
                root.join(name)
            };
            assert!(passes(&first), "{:?}: {:?}", names(&tree(root)), pipeline::verify(&first, &Silent));
        };
        stop_everywhere(&Case { prepare: &prepare, run: &run, after: &after }, &in_turn);
    }
}

/// What the library needs to know of `hub`, with a cache below `root`.
fn environment(hub: &Hub, root: &Path) -> Environment {
    let cache = root.join("cache");
    Environment::from_lookup(&|name| match name {
        "HF_ENDPOINT" => Some(hub.url()),
        "HF_HOME" | "HF_HUB_CACHE" => Some(cache.display().to_string()),
        _ => None,
    })
    .unwrap()
}

/// The repository as a streamed source, as the command line opens it, with as little room as there may be: the
/// largest shard.
fn streamed(hub: &Hub, root: &Path, disk: &Disk, keep_source: bool) -> Result<(Streamed, Pinned)> {
    streamed_through(hub, root, disk, keep_source, &|largest| largest)
}

/// The same with another limit, given the largest shard.
fn streamed_through(
    hub: &Hub,
    root: &Path,
    disk: &Disk,
    keep_source: bool,
    limit_bytes: &dyn Fn(u64) -> u64,
) -> Result<(Streamed, Pinned)> {
    let environment = environment(hub, root);
    let id = HubId::parse(ID).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let repository = Arc::new(Repository::open(&environment, &id, &stop)?);
    let cache = HubCache::new(environment.cache_dir).written_with(disk.clone());
    let commit = repository.commit().to_owned();
    let cached: Result<Vec<_>> =
        repository.files().iter().map(|file| cache.find(ID, &commit, file)).collect();
    let pinned = Pinned { repo: ID.into(), revision: "main".into(), commit };
    let deposit = keep_source.then(|| -> Deposit {
        let (repository, pinned) = (Arc::clone(&repository), pinned.clone());
        Box::new(move |file, path| {
            cache.deposit(&pinned.repo, &pinned.commit, "main", &repository.files()[file], path)
        })
    });
    let largest = repository.files().iter().map(|file| file.len_bytes).max().unwrap();
    let source = Streamed::new(repository, cached?, 2, stop);
    let spool = Spool::open(disk, &root.join("m.gguf.spool"), limit_bytes(largest))?;
    Ok((source.with_spool(spool, deposit), pinned))
}

fn hub() -> (Hub, tempfile::TempDir) {
    let model = scratch();
    small(model.path());
    (Hub::start(vec![Repo::from_directory(ID, model.path()).unwrap()]).unwrap(), model)
}

#[test]
fn straight_from_a_hub_and_into_the_cache() {
    let (hub, _model) = hub();
    for keep_source in [false, true] {
        let run = |root: &Path, disk: &Disk| {
            let (source, pinned) = streamed(&hub, root, disk, keep_source)?;
            let settings = Settings { pinned: Some(pinned), ..recording("q4_0", disk, false) };
            let source = Opened::from_source(Box::new(source))?;
            convert(source, &settings, &Options::default(), &root.join("m.gguf"))
        };
        // Blobs of the cache have names that vouch for their content: they must be whole as well.
        stop_everywhere(&Case { prepare: &|_| {}, run: &run, after: &only_whole }, &now_and_then);
    }
}

/// What finished jobs have read is not read again, and is still to be in the cache.
#[test]
fn a_run_that_keeps_its_source_keeps_what_an_earlier_run_has_read() {
    let (hub, _model) = hub();
    let run = |root: &Path, disk: &Disk, keep_source: bool| {
        let (source, pinned) = streamed(&hub, root, disk, keep_source)?;
        let settings = Settings { pinned: Some(pinned), ..recording("q4_0", disk, false) };
        convert(Opened::from_source(Box::new(source))?, &settings, &Options::default(), &root.join("m.gguf"))
    };
    let straight = scratch();
    run(straight.path(), &Disk::default(), true).unwrap();
    let expected = lasting(tree(straight.path()));
    let whole = scratch();
    let recorder = Recorder::new(whole.path(), None);
    run(whole.path(), &recorder.disk(), false).unwrap();
    assert!(!whole.path().join("cache").exists());
    let mut stopped = 0;
    for before_the_end in [120, 160, 200] {
        let root = scratch();
        let first = Recorder::new(root.path(), Some(recorder.steps() - before_the_end));
        // Far enough from the end that nothing is sealed; runs differ by some steps all the same.
        if run(root.path(), &first.disk(), false).is_ok() {
            continue;
        }
        stopped += 1;
        run(root.path(), &Disk::default(), true).unwrap();
        let found = lasting(tree(root.path()));
        assert_eq!(names(&found), names(&expected), "{before_the_end}");
        assert!(found == expected, "{before_the_end}");
    }
    assert!(stopped > 0);
}

#[test]
fn a_spool_smaller_than_a_shard_is_an_error_and_what_is_done_stays() {
    let (hub, _model) = hub();
    let root = scratch();
    let run = |disk: &Disk, limit_bytes: &dyn Fn(u64) -> u64| {
        let (source, pinned) = streamed_through(&hub, root.path(), disk, false, limit_bytes)?;
        let settings = Settings { pinned: Some(pinned), ..recording("q4_0", disk, false) };
        convert(
            Opened::from_source(Box::new(source))?,
            &settings,
            &Options::default(),
            &root.path().join("m.gguf"),
        )
    };
    run(&Recorder::new(root.path(), Some(250)).disk(), &|largest| largest).unwrap_err();
    let begun = names(&tree(root.path())).len();
    assert!(begun > 3, "{begun}");
    let error = run(&Disk::default(), &|largest| largest - 1).unwrap_err().to_string();
    assert!(error.contains("safetensors") && error.contains("largest file"), "{error}");
    assert!(root.path().join("m.gguf.partial").exists() && root.path().join("m.gguf.journal").exists());
    run(&Disk::default(), &|largest| largest).unwrap();
}

#[test]
fn fetched_to_a_directory() {
    let (hub, _model) = hub();
    let run = |root: &Path, disk: &Disk| {
        let stop = AtomicBool::new(false);
        let environment = environment(&hub, root);
        let repository = Repository::open(&environment, &HubId::parse(ID).unwrap(), &stop)?;
        let cached = vec![None; repository.files().len()];
        let request = fetch::Request {
            location: repository.location(),
            commit: repository.commit(),
            files: repository.files(),
            cached: &cached,
            remote: Some(&repository),
            output: &root.join("model"),
            disk,
            connections: 2,
            ignore_space: false,
        };
        fetch::fetch(&request, &Silent, &stop).map(drop)
    };
    stop_everywhere(&Case { prepare: &|_| {}, run: &run, after: &only_whole }, &now_and_then);
}

/// Every step fails once, or from there on; then the same command finishes.
#[test]
fn failing_steps_are_named_and_nothing_is_lost() {
    const EIO: i32 = 5;
    const ENOSPC: i32 = 28;
    let model = scratch();
    small(model.path());
    for (format, name) in [("q4_0", "m.gguf"), ("mlx-4bit", "m")] {
        let run = |root: &Path, disk: &Disk| {
            let settings = recording(format, disk, false);
            convert(local(model.path())?, &settings, &Options::default(), &root.join(name))
        };
        let root = scratch();
        let whole = Recorder::new(root.path(), None);
        run(root.path(), &whole.disk()).unwrap();
        let expected = tree(root.path());
        for step in 0..whole.steps() {
            for fault in [Fault::Once(EIO), Fault::From(ENOSPC)] {
                let root = scratch();
                let recorder = Recorder::with_fault(root.path(), step, fault);
                let failed = run(root.path(), &recorder.disk());
                if let Err(error) = &failed {
                    assert!(matches!(error, Error::Io { .. }), "{error}");
                    assert!(error.to_string().contains(&*root.path().to_string_lossy()), "{error}");
                    only_whole(root.path(), &expected);
                    if lasting(tree(root.path())) != expected {
                        run(root.path(), &Disk::default()).unwrap();
                    }
                }
                let found = lasting(tree(root.path()));
                assert!(found == expected, "step {step}, {fault:?}, {failed:?}: {:?}", names(&found));
            }
        }
        // Short writes and interruptions are no faults at all.
        let root = scratch();
        run(root.path(), &Recorder::with_fault(root.path(), 0, Fault::Short).disk()).unwrap();
        assert!(tree(root.path()) == expected);
    }
}
