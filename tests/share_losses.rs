//! A share and the join, stopped before every step that they take on the disk: killed there, or with the power cut. The
//! same commands go on to the bytes that one machine writes.

use std::path::Path;
use std::time::Duration;

use requant::Error;
use requant::disk::Disk;
use requant::pipeline::Settings;
use requant::plan::Options;

use crate::powercut::{
    Case, Tree, in_turn, lasting, only_whole, passes, scratch, small, stop_everywhere, tree,
};
use crate::recorder::{Fault, Loss, Recorder};
use crate::shares::{Dealt, on_disk};

/// A file, a split set, a directory; each job is recorded as soon as it is done.
fn kinds(model: &Path) -> Vec<Dealt> {
    let split =
        Options { split_max_bytes: Some(300_000), output_name: "m.gguf".into(), ..Options::default() };
    let kinds = [
        ("q4_0", "m.gguf", Options::default()),
        ("q8_0", "m.gguf", split),
        ("mlx-4bit", "m", Options::default()),
    ];
    let dealt = kinds.into_iter().map(|(format, name, options)| {
        let mut dealt = Dealt { model: model.to_owned(), options, ..Dealt::new(format, name) };
        dealt.settings = Settings { sync_interval: Duration::ZERO, ..dealt.settings };
        dealt
    });
    dealt.collect()
}

/// The steps of one kind of result of three: together they take each in turn. All of them when `REQUANT_EVERY_LOSS` is
/// set.
fn of_kind(kind: usize) -> impl Fn(usize) -> Vec<Loss> {
    move |stop| {
        let is_due = stop % 3 == kind || std::env::var_os("REQUANT_EVERY_LOSS").is_some();
        if is_due { in_turn(stop) } else { Vec::new() }
    }
}

#[test]
fn a_share_and_the_join_are_stopped_anywhere() {
    let model = scratch();
    small(model.path());
    for (kind, dealt) in kinds(model.path()).into_iter().enumerate() {
        let whole = dealt.whole();
        let prepare = |root: &Path| dealt.shares(root, [3, 1], 3);
        let run = |root: &Path, disk: &Disk| {
            let dealt = on_disk(&dealt, disk);
            dealt.share(root, 2, 3)?;
            dealt.join(root)?;
            Ok(())
        };
        let after = |root: &Path, expected: &Tree| {
            assert!(*expected == whole);
            only_whole(root, expected);
        };
        stop_everywhere(&Case { prepare: &prepare, run: &run, after: &after }, &of_kind(kind));
    }
}

#[test]
fn the_first_share_of_all_is_stopped_anywhere() {
    let model = scratch();
    small(model.path());
    let dealt = &kinds(model.path())[0];
    let run = |root: &Path, disk: &Disk| {
        on_disk(dealt, disk).share(root, 1, 2)?;
        dealt.share(root, 2, 2)?;
        dealt.join(root)?;
        Ok(())
    };
    stop_everywhere(&Case { prepare: &|_| {}, run: &run, after: &only_whole }, &of_kind(1));
}

#[test]
fn a_join_over_an_old_result_leaves_it_or_the_new_one() {
    let model = scratch();
    small(model.path());
    let other = scratch();
    small(other.path());
    let shard = other.path().join("model-00001-of-00003.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    for (kind, mut dealt) in kinds(model.path()).into_iter().enumerate() {
        dealt.settings.force = true;
        let prepare = |root: &Path| {
            let old = Dealt { model: other.path().to_owned(), ..on_disk(&dealt, &Disk::default()) };
            old.shares(root, 1..=2, 2);
            old.join(root).unwrap();
            dealt.shares(root, 1..=2, 2);
        };
        let run = |root: &Path, disk: &Disk| on_disk(&dealt, disk).join(root).map(drop);
        let after = |root: &Path, _: &Tree| {
            let found = tree(root);
            let first = found.keys().find(|path| path.to_string_lossy().contains("-00001-of-0000"));
            let is_set = dealt.options.split_max_bytes.is_some();
            let first =
                first.filter(|_| is_set).map_or_else(|| root.join(dealt.name), |path| root.join(path));
            let first = first.to_string_lossy().replace(".partial", "");
            assert!(passes(Path::new(&first)), "{:?}", found.keys());
        };
        stop_everywhere(&Case { prepare: &prepare, run: &run, after: &after }, &of_kind(kind));
    }
}

/// Every step fails once, or from there on; then the same commands finish.
#[test]
fn failing_steps_of_shares_and_the_join_are_named_and_nothing_is_lost() {
    const EIO: i32 = 5;
    const ENOSPC: i32 = 28;
    let model = scratch();
    small(model.path());
    let dealt = &kinds(model.path())[0];
    let whole = dealt.whole();
    let run = |root: &Path, disk: &Disk| {
        let dealt = on_disk(dealt, disk);
        dealt.share(root, 1, 2)?;
        dealt.share(root, 2, 2)?;
        dealt.join(root)
    };
    let root = scratch();
    let recorder = Recorder::new(root.path(), None);
    run(root.path(), &recorder.disk()).unwrap();
    for step in (0..recorder.steps()).step_by(2) {
        for fault in [Fault::Once(EIO), Fault::From(ENOSPC)] {
            let root = scratch();
            let failed = run(root.path(), &Recorder::with_fault(root.path(), step, fault).disk());
            if let Err(error) = &failed {
                assert!(matches!(error, Error::Io { .. }), "{error}");
                assert!(error.to_string().contains(&*root.path().to_string_lossy()), "{error}");
                only_whole(root.path(), &whole);
                run(root.path(), &Disk::default()).unwrap();
            }
            let found = lasting(tree(root.path()));
            assert!(found == whole, "step {step}, {fault:?}, {failed:?}: {:?}", found.keys());
        }
    }
    let root = scratch();
    run(root.path(), &Recorder::with_fault(root.path(), 0, Fault::Short).disk()).unwrap();
    assert!(lasting(tree(root.path())) == whole);
}
