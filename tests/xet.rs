//! Xet storage: where it is asked for, whole files and ranges come from it; whatever it does, the bytes are right.

use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use test_hub::{Action, Bytes, Cut, Fault, Host, Repo, RepoFile};

use crate::conversion::{model, names, sha256};
use crate::served::{ID, Served, text};

const FILE: &str = "weights.bin";
/// One piece of a request.
const PIECE: usize = 16 << 20;
/// A run against a storage that does not answer takes no longer, the timeout being 2 s.
const BOUND: Duration = Duration::from_secs(15);

/// Bytes that cannot be packed, and differ everywhere.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| next()).collect();
    bytes.truncate(len);
    bytes
}

/// A hub with one large file, in Xet storage as well.
struct Storage {
    served: Served,
    bytes: Vec<u8>,
}

impl Storage {
    fn of(bytes: Vec<u8>) -> Self {
        let repo = Repo::empty(ID).file(FILE, bytes.clone()).unwrap().file("config.json", "{}").unwrap();
        Self { served: Served::repo(repo.in_xet(Cut::SMALL).unwrap()), bytes }
    }

    /// Three megabytes.
    fn small() -> Self {
        Self::of(noise(3_000_001, 1))
    }

    fn command(&self, more: &[&str]) -> Command {
        self.served.command(&[&["fetch", ID, "-o", "m"], more].concat())
    }

    /// `requant fetch --xet` brings the right bytes; gives what it says.
    #[track_caller]
    fn fetch(&self, more: &[&str]) -> String {
        let output = self.command(&[&["--xet"], more].concat()).output().unwrap();
        self.check(&output)
    }

    #[track_caller]
    fn check(&self, output: &Output) -> String {
        let said = text(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert!(!said.contains("panicked"), "{said}");
        assert!(std::fs::read(self.served.path("m").join(FILE)).unwrap() == self.bytes, "{said}");
        said
    }

    /// Bytes of the file that came as plain ranges.
    fn plain_bytes(&self) -> u64 {
        self.served.hub.body_bytes_of(FILE)
    }

    fn asked(&self, host: Host, path: &str) -> usize {
        let requests = self.served.hub.requests();
        requests.iter().filter(|request| request.host == host && request.path.contains(path)).count()
    }
}

fn status(code: u16) -> Action {
    Action::Status { code, retry_after: None, text: "no".to_owned() }
}

#[test]
fn only_where_it_is_asked_for() {
    let mut storage = Storage::small();
    let said = storage.check(&storage.command(&[]).output().unwrap());
    assert!(!said.contains("Xet"), "{said}");
    assert_eq!((storage.asked(Host::Cas, ""), storage.asked(Host::Hub, "xet-read-token")), (0, 0));
    assert_eq!(storage.plain_bytes(), storage.bytes.len() as u64);

    storage.served.set("HF_HUB_DISABLE_XET", "1");
    let error = storage.served.failure(&["fetch", ID, "-o", "n", "--xet"]);
    assert!(error.contains("--xet") && error.contains("HF_HUB_DISABLE_XET"), "{error}");
    assert!(!storage.served.path("n").exists());
}

#[test]
fn whole_files_and_nothing_is_left_of_it() {
    for (connections, version, len) in [("1", 2, 3_000_001), ("8", 2, 40_000_000), ("1", 1, 2 * PIECE + 5)] {
        let mut storage = Storage::of(noise(len, 7));
        storage.served.set("HF_TOKEN", "hf_secret");
        let temporary = tempfile::tempdir().unwrap();
        storage.served.set("TMPDIR", temporary.path().to_str().unwrap());
        if version == 1 {
            storage.served.hub.add_fault(Fault::new("/v2/", status(404)));
        }
        let said = storage.fetch(&["--connections", connections]);
        assert!(!said.contains("Xet"), "{said}");
        assert_eq!(storage.plain_bytes(), 0, "{connections} {version}");
        assert_eq!(storage.asked(Host::Hub, "xet-read-token"), 1);
        assert!(storage.asked(Host::Cas, &format!("/v{version}/reconstructions/")) > 0);
        assert!(storage.asked(Host::Cdn, "/xorbs/") >= len >> 20);
        // The user's token is for the hub only; and nobody is told about the transfer.
        for request in storage.served.hub.requests() {
            assert_ne!(request.method, "POST", "{request:?}");
            assert_eq!(request.had_token, request.host != Host::Cdn, "{request:?}");
        }
        assert!(!storage.served.path("home").exists(), "{:?}", names(&storage.served.path("home")));
        assert!(names(temporary.path()).is_empty(), "{:?}", names(temporary.path()));
    }
}

#[test]
fn a_conversion_is_that_of_plain_ranges() {
    let served = Served::repo(Repo::from_directory(ID, &model()).unwrap().in_xet(Cut::SMALL).unwrap());
    let convert = |output: &str, more: &[&str]| {
        let arguments = ["convert", ID, "--to", "q4_k_m", "--connections", "1", "-o", output];
        let output_of_run = served.run(&[&arguments[..], more].concat());
        assert!(output_of_run.status.success(), "{}", text(&output_of_run.stderr));
        sha256(&std::fs::read(served.path(output)).unwrap())
    };
    let expected = convert("plain.gguf", &[]);
    served.hub.clear_requests();
    assert_eq!(convert("xet.gguf", &["--xet"]), expected);
    // Headers come as plain ranges, weights do not.
    let shard = "model-00002-of-00004.safetensors";
    let plain = served.hub.body_bytes_of(shard);
    assert!((1..=64 << 10).contains(&plain), "{plain}");
}

#[test]
fn what_breaks_once_is_tried_again() {
    for action in [Action::Drop { after_bytes: 1000 }, status(503), status(429), Action::Refuse] {
        for path in ["/xorbs/", "/reconstructions/"] {
            let storage = Storage::small();
            storage.served.hub.add_fault(Fault::new(path, action.clone()).times(1));
            let said = storage.fetch(&["--connections", "1"]);
            assert_eq!(storage.plain_bytes(), 0, "{action:?} {path}: {said}");
            assert!(!said.contains("Xet"), "{said}");
        }
    }
}

#[test]
fn what_is_broken_costs_seconds_and_is_said() {
    let long = Duration::from_secs(60);
    for (path, action, word) in [
        ("/xorbs/", Action::Drop { after_bytes: 1000 }, "Xet storage: "),
        ("/xorbs/", status(500), "Xet storage: "),
        ("/xorbs/", status(403), "Xet storage: "),
        ("/xorbs/", Action::Stall { after_bytes: 1000, pause: long }, "Xet storage: "),
        ("/xorbs/", Action::Truncate { missing_bytes: 10, claims_less: true }, "Xet storage: "),
        ("/reconstructions/", status(401), "Xet storage: "),
        ("/reconstructions/", status(503), "Xet storage: "),
        ("/reconstructions/", Action::Late { pause: long }, "Xet storage: "),
        ("xet-read-token", status(403), "403"),
        ("xet-read-token", status(500), "500"),
        ("xet-read-token", Action::Late { pause: long }, "Xet storage: "),
        ("xet-read-token", Action::Refuse, "Xet storage: "),
    ] {
        let storage = Storage::small();
        storage.served.hub.add_fault(Fault::new(path, action.clone()));
        let started = Instant::now();
        let said = storage.fetch(&[]);
        assert!(started.elapsed() < BOUND, "{path} {action:?}: {:?}", started.elapsed());
        assert_eq!(storage.plain_bytes(), storage.bytes.len() as u64, "{path} {action:?}");
        assert!(said.contains(word), "{action:?}: {said}");
        assert_eq!(said.matches("not asked again").count(), 1, "{said}");
        // Links with signatures are nobody's business.
        assert!(!said.contains("Signature"), "{said}");
    }
}

#[test]
fn plain_ranges_go_on_from_the_first_missing_byte() {
    let storage = Storage::of(noise(40_000_000, 3));
    // The first piece has sixteen xorbs, more or less.
    storage.served.hub.add_fault(Fault::new("/xorbs/", status(500)).skip(22));
    let said = storage.fetch(&["--connections", "1"]);
    let from: usize = said
        .split("plain ranges from byte ")
        .nth(1)
        .and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next())
        .and_then(|digits| digits.parse().ok())
        .unwrap_or_else(|| panic!("{said}"));
    assert!((PIECE..storage.bytes.len()).contains(&from), "{said}");
    assert_eq!(storage.plain_bytes(), (storage.bytes.len() - from) as u64, "{said}");
}

#[test]
fn a_storage_that_has_worked_may_fail_twice() {
    // Three files one after the other, each with a failure in its second piece or later.
    let bytes = noise(PIECE + 2_000_000, 5);
    let mut repo = Repo::empty(ID);
    for name in ["a.bin", "b.bin", "c.bin", "d.bin"] {
        let content = [name.as_bytes(), &bytes].concat();
        repo = repo.file(name, content).unwrap();
    }
    let served = Served::repo(repo.in_xet(Cut::SMALL).unwrap());
    // A file that works, then the last xorbs of the others are gone.
    let last = |name: &str| served.hub.body_bytes_of(name);
    served.hub.add_fault(Fault::new("/xorbs/", status(500)).skip(20));
    let output = served.run(&["fetch", ID, "-o", "m", "--xet", "--connections", "1"]);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    for name in ["a.bin", "b.bin", "c.bin", "d.bin"] {
        let expected = [name.as_bytes(), &bytes].concat();
        assert!(std::fs::read(served.path("m").join(name)).unwrap() == expected, "{name}");
    }
    assert_eq!(last("a.bin"), 0, "{said}");
    assert_eq!(said.matches("going on with plain ranges").count(), 3, "{said}");
    assert_eq!(said.matches("not asked again").count(), 1, "{said}");
}

#[test]
fn tokens_that_expire_are_renewed() {
    let storage = Storage::of(noise(40_000_000, 9));
    // The client renews what is good for less than half a minute.
    storage.served.hub.set_xet_token_lifetime(Duration::from_secs(10));
    let said = storage.fetch(&["--connections", "2"]);
    assert_eq!(storage.plain_bytes(), 0, "{said}");
    assert!(storage.asked(Host::Hub, "xet-read-token") > 2);
}

#[test]
fn links_that_expire_are_asked_for_again() {
    let storage = Storage::small();
    // A refused link, once: as when it has expired between question and request.
    storage.served.hub.add_fault(Fault::new("/xorbs/", status(403)).times(1));
    let said = storage.fetch(&["--connections", "1"]);
    assert_eq!(storage.plain_bytes(), 0, "{said}");
    assert!(storage.asked(Host::Cas, "/reconstructions/") > 1);
}

#[test]
fn wrong_chunks_do_not_get_in() {
    // Inside a chunk that is stored as it is, nothing but the digest of the file can tell; in the header of a chunk
    // the client sees it.
    for (offset, seen_by_client) in [(5000, false), (0, true), (1, true), (4, true)] {
        let storage = Storage::small();
        storage.served.hub.add_fault(Fault::new("/xorbs/", Action::Corrupt { offset }));
        let said = storage.fetch(&["--connections", "1"]);
        assert_eq!(storage.plain_bytes(), storage.bytes.len() as u64, "{offset}: {said}");
        assert_eq!(said.contains("is not what the hub states"), !seen_by_client, "{offset}: {said}");
    }
}

#[test]
fn wrong_hashes_do_not_get_in() {
    let bytes = noise(3_000_001, 1);
    let content = |bytes: Vec<u8>| Arc::new(Bytes(bytes));
    let other = RepoFile::new("other.bin", content(noise(3_000_001, 2))).unwrap().in_xet(Cut::SMALL).unwrap();
    let unknown = "0123456789abcdef".repeat(4);
    for (hash, word, asked) in [
        (other.xet_hash().unwrap(), "is not what the hub states", true),
        (unknown.as_str(), "going on with plain ranges", true),
        ("../../v1/xorbs", "", false),
        ("zz", "", false),
    ] {
        let file = RepoFile::new(FILE, content(bytes.clone())).unwrap().with_xet_hash(hash);
        let repo = Repo::empty(ID).with_file(file).with_file(other.clone());
        let storage = Storage { served: Served::repo(repo), bytes: bytes.clone() };
        let said = storage.fetch(&["--connections", "1"]);
        assert!(said.contains(word), "{hash}: {said}");
        assert_eq!(storage.plain_bytes(), bytes.len() as u64, "{hash}: {said}");
        assert_eq!(storage.asked(Host::Cas, hash) > 0, asked, "{hash}");
    }
}

#[test]
fn lies_about_lengths_do_not_get_in() {
    type Lie = fn(&mut Value);
    let lies: [(&str, Lie); 12] = [
        ("a term is longer", |answer| answer["terms"][0]["unpacked_length"] = json!(2_000_000)),
        ("a term is shorter", |answer| answer["terms"][0]["unpacked_length"] = json!(1)),
        ("a term is huge", |answer| answer["terms"][0]["unpacked_length"] = json!(1_000_000_000)),
        ("the first term is skipped over", |answer| answer["offset_into_first_range"] = json!(1_u64 << 40)),
        ("the range begins later", |answer| answer["offset_into_first_range"] = json!(7)),
        ("there are more chunks", |answer| answer["terms"][0]["range"]["end"] = json!(65)),
        ("there are fewer chunks", |answer| answer["terms"][0]["range"]["end"] = json!(3)),
        ("no terms", |answer| answer["terms"] = json!([])),
        ("the last term is missing", |answer| drop(answer["terms"].as_array_mut().unwrap().pop())),
        ("each term twice", |answer| {
            let terms = answer["terms"].as_array_mut().unwrap();
            *terms = terms.iter().flat_map(|term| [term.clone(), term.clone()]).collect();
        }),
        ("no xorbs", |answer| answer["xorbs"] = json!({})),
        ("the bytes are others", |answer| {
            for fetches in answer["xorbs"].as_object_mut().unwrap().values_mut() {
                fetches[0]["ranges"][0]["bytes"] = json!({ "start": 9, "end": 2000 });
            }
        }),
    ];
    for (name, lie) in lies {
        let storage = Storage::small();
        storage.served.hub.set_xet_edit(lie);
        let started = Instant::now();
        let said = storage.fetch(&["--connections", "1"]);
        assert!(started.elapsed() < BOUND, "{name}: {:?}", started.elapsed());
        // The bytes are the right ones all the same.
        let is_harmless = name == "there are fewer chunks";
        assert_eq!(said.contains("plain ranges"), !is_harmless, "{name}: {said}");
        assert_eq!(storage.plain_bytes() > 0, !is_harmless, "{name}");
    }
}

#[test]
fn a_signal_ends_a_run_that_waits_for_it() {
    for fault in [
        Fault::new("/xorbs/", Action::Stall { after_bytes: 1000, pause: Duration::from_secs(60) }),
        Fault::new("/reconstructions/", Action::Late { pause: Duration::from_secs(60) }),
        Fault::new("xet-read-token", Action::Late { pause: Duration::from_secs(60) }),
    ] {
        let mut storage = Storage::small();
        storage.served.set("HF_HUB_DOWNLOAD_TIMEOUT", "60");
        storage.served.hub.add_fault(fault);
        let child = storage.served.spawn(&["fetch", ID, "-o", "m", "--xet", "--connections", "1"]);
        let started = Instant::now();
        while storage.asked(Host::Hub, "/tree/") == 0 {
            assert!(started.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(700));
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
        let signalled = Instant::now();
        let output = child.wait_with_output().unwrap();
        let said = text(&output.stderr);
        assert!(signalled.elapsed() < Duration::from_secs(5), "{:?}", signalled.elapsed());
        assert!(output.status.code() == Some(1) && said.contains("interrupted"), "{said}");
        storage.served.hub.clear_faults();
        storage.fetch(&["--connections", "1"]);
        assert_eq!(storage.plain_bytes(), 0);
    }
}

#[test]
fn a_killed_run_is_gone_on_with_by_either_way() {
    for (first, second) in [(&["--xet"][..], &[][..]), (&[], &["--xet"])] {
        let storage = Storage::of(noise(40_000_000, 11));
        storage.served.hub.set_rate(Some(20_000_000));
        let arguments = [&["fetch", ID, "-o", "m", "--connections", "2"], first].concat();
        let mut child = storage.served.spawn(&arguments);
        let started = Instant::now();
        while storage.served.hub.body_bytes_sent() < 25_000_000 {
            assert!(started.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        storage.served.hub.set_rate(None);
        let before = storage.served.hub.body_bytes_sent();
        storage.check(&storage.command(second).output().unwrap());
        let came = storage.served.hub.body_bytes_sent() - before;
        assert!(came < 40_000_000, "{came}");
    }
}
