//! Shares at the edges: what they keep beside the result is damaged or lost, nothing is left to do, they race, and their
//! source is of another kind.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Barrier, Mutex};

use requant::Error;
use requant::pipeline::{self, Asked, Share, ShareState};
use requant::plan::{self, Options};
use test_hub::{Repo, RepoFile};

use crate::arguments::Huge;
use crate::conversion::{Silent, convert, model, names, open};
use crate::recorder::Random;
use crate::served::{ID, Served, text};
use crate::shares::{Dealt, assert_same};

/// Bytes of a record of a journal without an error report: number, two fingerprints, check.
const RECORD_BYTES: usize = 4 + 16 + 16 + 16;

#[test]
fn a_share_whose_journal_has_lost_a_record_is_not_done_though_it_is_sealed() {
    let dealt = Dealt::new("q4_0", "m.gguf");
    let expected = dealt.whole();
    let directory = tempfile::tempdir().unwrap();
    dealt.shares(directory.path(), 1..=2, 2);
    // As two processes leave it that did one share at once, where there are no locks.
    let journal = directory.path().join("m.gguf.shares/2-of-2.journal");
    let mut bytes = std::fs::read(&journal).unwrap();
    let records = bytes.iter().position(|&byte| byte == b'\n').unwrap() + 1;
    bytes.copy_within(records + RECORD_BYTES..records + 2 * RECORD_BYTES, records);
    std::fs::write(&journal, bytes).unwrap();
    let error = dealt.join(directory.path()).unwrap_err().to_string();
    assert!(error.contains("1 of 2 shares are not done: 2 (not running, "), "{error}");
    assert_eq!(dealt.share(directory.path(), 1, 2).unwrap().state, ShareState::WasDone);
    assert_eq!(dealt.share(directory.path(), 2, 2).unwrap().state, ShareState::Done);
    assert_eq!(dealt.share(directory.path(), 2, 2).unwrap().state, ShareState::WasDone);
    dealt.join(directory.path()).unwrap();
    assert_same(directory.path(), &expected, "a lost record");
}

#[test]
fn a_damaged_plan_of_shares_is_named_and_never_becomes_a_result() {
    let dealt = Dealt::new("mlx-4bit", "m");
    let expected = dealt.whole();
    let mut random = Random(41);
    let directory = tempfile::tempdir().unwrap();
    dealt.shares(directory.path(), 1..=3, 3);
    let plan = directory.path().join("m.shares/plan");
    for name in ["content", "skeleton.json"] {
        let sound = std::fs::read(plan.join(name)).unwrap();
        for round in 0..60 {
            let mut bytes = sound.clone();
            match round {
                0 => drop(bytes.pop()),
                1 => bytes.push(b'\n'),
                _ => {
                    let at = random.below(bytes.len());
                    // A digit that stays one says something else, and nothing that makes no sense.
                    bytes[at] ^= if bytes[at].is_ascii_digit() { 1 } else { 1 << random.below(8) };
                }
            }
            std::fs::write(plan.join(name), bytes).unwrap();
            let error = dealt.join(directory.path()).unwrap_err().to_string();
            assert!(error.contains("skeleton.json") && error.contains("run any share again"), "{error}");
            assert!(!directory.path().join("m").exists());
        }
        // The way out that the message gives.
        std::fs::remove_dir_all(&plan).unwrap();
        assert_eq!(dealt.share(directory.path(), 2, 3).unwrap().state, ShareState::WasDone);
        assert!(std::fs::read(plan.join(name)).unwrap() == sound);
    }
    let sound = std::fs::read(plan.join("request.json")).unwrap();
    for at in (0..sound.len()).filter(|&at| sound[at].is_ascii_digit()) {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        std::fs::write(plan.join("request.json"), bytes).unwrap();
        let error = dealt.join(directory.path()).err();
        let Some(error) = error else { panic!("digit {at} of request.json says nothing") };
        assert!(error.to_string().contains("/m"), "{error}");
    }
    std::fs::write(plan.join("request.json"), sound).unwrap();
    dealt.join(directory.path()).unwrap();
    assert_same(directory.path(), &expected, "a damaged plan");
}

#[test]
fn nothing_is_asked_of_a_share_that_has_nothing_to_do() {
    let dealt = Dealt::new("q4_0", "m.gguf");
    let directory = tempfile::tempdir().unwrap();
    let source = open(&dealt.model).unwrap();
    let blueprint = plan::blueprint(&source, "q4_0", &Options::default()).unwrap();
    let run = |job: u32, before_work: &dyn Fn() -> requant::Result<()>| {
        let asked = Asked { share: Share { job, jobs: 2 }, array: None, before_work };
        let (output, stop) = (directory.path().join("m.gguf"), AtomicBool::new(false));
        pipeline::convert_share(&source, &blueprint, &output, &dealt.settings, &asked, &Silent, &stop)
    };
    let refuse = || Err(Error::Request("no room".into()));
    // Before work there is nothing yet.
    assert_eq!(run(1, &refuse).unwrap_err().to_string(), "no room");
    assert_eq!(names(directory.path()), Vec::<String>::new());
    assert_eq!(run(1, &|| Ok(())).unwrap().state, ShareState::Done);
    assert_eq!(run(2, &refuse).unwrap_err().to_string(), "no room");
    assert_eq!(run(2, &|| Ok(())).unwrap().state, ShareState::Done);
    assert_eq!(run(2, &refuse).unwrap().state, ShareState::WasDone);
    dealt.join(directory.path()).unwrap();
    assert_eq!(run(1, &refuse).unwrap().state, ShareState::WasJoined);
}

#[test]
fn sources_of_every_kind_are_dealt_out() {
    let place = tempfile::tempdir().unwrap();
    let mut cases = Vec::new();
    for (format, name) in [("q8_0", "s.gguf"), ("compressed-tensors-w4a16", "ct"), ("gptq-4bit-64g", "gptq")]
    {
        convert(&model(), format, 2, &place.path().join(name)).unwrap();
        cases.push((name, "q4_0", "m.gguf"));
    }
    cases.push(("ct", "compressed-tensors-nvfp4", "m"));
    for (source, format, name) in cases {
        let options = Options { allow_requantize: true, ..Options::default() };
        let dealt = Dealt { model: place.path().join(source), options, ..Dealt::new(format, name) };
        let expected = dealt.whole();
        for jobs in [2, 5] {
            let directory = tempfile::tempdir().unwrap();
            dealt.shares(directory.path(), (1..=jobs).rev(), jobs);
            dealt.join(directory.path()).unwrap();
            assert_same(directory.path(), &expected, &format!("{source} to {format}"));
        }
    }
}

/// Shares of two requests begin at the same moment: those of one of them do their work, all of the others are told.
#[test]
fn of_two_requests_that_race_one_wins() {
    let requests = [Dealt::new("q4_0", "m.gguf"), Dealt::new("q8_0", "m.gguf")];
    let whole = requests.each_ref().map(Dealt::whole);
    for round in 0..4 {
        let directory = tempfile::tempdir().unwrap();
        let (barrier, failed) = (Barrier::new(6), Mutex::new([Vec::new(), Vec::new()]));
        std::thread::scope(|scope| {
            for number in 0..6 {
                let (root, requests, barrier, failed) = (directory.path(), &requests, &barrier, &failed);
                scope.spawn(move || {
                    barrier.wait();
                    let request = number % 2;
                    if let Err(error) = requests[request].share(root, 1 + number as u32 / 2, 3) {
                        failed.lock().unwrap()[request].push(error.to_string());
                    }
                });
            }
        });
        let failed = failed.into_inner().unwrap();
        let winner = usize::from(!failed[0].is_empty());
        let is_busy = |error: &String| error.contains("another requant does share");
        // A share of the winner may have met one of the other, which held its number for a moment.
        assert!(failed[winner].iter().all(is_busy), "{failed:?}");
        assert_eq!(failed[1 - winner].len(), 3, "{failed:?}");
        assert!(failed[1 - winner].iter().all(|e| is_busy(e) || e.contains("another request")), "{failed:?}");
        requests[winner].shares(directory.path(), 1..=3, 3);
        requests[winner].join(directory.path()).unwrap();
        assert_same(directory.path(), &whole[winner], &format!("round {round}"));
    }
}

/// Files beside the result that a join takes for shares of its own only if they are.
#[test]
fn files_of_other_shares_do_not_count() {
    let (dealt, other) = (Dealt::new("q4_0", "m.gguf"), Dealt::new("q8_0", "m.gguf"));
    let expected = dealt.whole();
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    dealt.shares(ours.path(), [1], 2);
    other.shares(theirs.path(), 1..=2, 2);
    let copy = |from: &Path, name: &str, to: &str| {
        let folder = ours.path().join("m.gguf.shares");
        std::fs::copy(from.join("m.gguf.shares").join(name), folder.join(to)).unwrap();
    };
    let missing = || {
        let error = dealt.join(ours.path()).unwrap_err().to_string();
        assert!(error.contains("1 of 2 shares are not done: 2 (not "), "{error}");
    };
    // Of another request, and of this one with another number.
    for (from, number) in [(theirs.path(), 2), (ours.path(), 1)] {
        for end in ["journal", "json"] {
            copy(from, &format!("{number}-of-2.{end}"), &format!("2-of-2.{end}"));
        }
        missing();
    }
    // One of three shares of the same request.
    let thirds = tempfile::tempdir().unwrap();
    dealt.shares(thirds.path(), [2], 3);
    copy(thirds.path(), "2-of-3.journal", "2-of-2.journal");
    copy(thirds.path(), "2-of-3.json", "2-of-2.json");
    missing();
    assert_eq!(dealt.share(ours.path(), 2, 2).unwrap().state, ShareState::Done);
    dealt.join(ours.path()).unwrap();
    assert_same(ours.path(), &expected, "foreign files");
}

#[test]
fn a_share_of_a_hub_keeps_what_it_has_downloaded_and_needs_room_for_that() {
    // Files that are not read need no room.
    let huge = RepoFile::lfs_with_digest("huge.bin", Arc::new(Huge), "0".repeat(64));
    let served = Served::repo(Repo::from_directory(ID, &model()).unwrap().with_file(huge));
    let share = |job: &str| {
        let arguments = ["convert", ID, "--to", "q4_0", "-o", "m.gguf", "--keep-source", "--job", job];
        let output = served.run(&[&arguments[..], &["--quiet"]].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    share("1/2");
    served.hub.clear_requests();
    let before = served.hub.body_bytes_sent();
    share("2/2");
    assert!(served.hub.body_bytes_sent() > before);
    let joined = served.run(&["join", "m.gguf", "--quiet"]);
    assert!(joined.status.success(), "{}", text(&joined.stderr));
    // What both have read is in the cache now: nothing comes again.
    let before = served.hub.body_bytes_sent();
    served.json(&["convert", &format!("hf://{ID}"), "--to", "q4_0", "-o", "again.gguf"]);
    assert!(served.hub.body_bytes_sent() - before < 100_000, "{}", served.hub.body_bytes_sent() - before);
    let digest = |name: &str| crate::conversion::sha256(&std::fs::read(served.path(name)).unwrap());
    assert_eq!(digest("m.gguf"), digest("again.gguf"));
    assert!(names(&served.path("")).iter().all(|name| !name.contains("shares") && !name.contains("spool")));
}
