//! Models in object stores: the bytes of a local conversion, whatever the store does on the way, or a named error.

use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use crate::bucket::{Bucket, Fault, sums};
use crate::conversion::{convert, model, names, sha256};
use crate::recorder::Random;
use crate::served::text;

pub(crate) const URL: &str = "s3://models/org/tiny";
const SHARD: &str = "org/tiny/model-00002-of-00004.safetensors";

/// A store with the model, and a directory with its list of digests.
struct Desk {
    bucket: Bucket,
    home: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("SUMS"), sums(&model())).unwrap();
        Self { bucket: Bucket::start().with(&model(), "org/tiny"), home }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.bucket.run(self.home.path(), arguments)
    }

    fn convert(&self, more: &[&str]) -> Output {
        let arguments = ["convert", URL, "--to", "q4_0", "-o", "m.gguf", "--sums", "SUMS", "-q"];
        self.run(&[&arguments[..], more].concat())
    }

    fn succeeds(&self, output: &Output) {
        assert!(output.status.success(), "{}", text(&output.stderr));
        let found = sha256(&std::fs::read(self.home.path().join("m.gguf")).unwrap());
        assert_eq!(found, local());
        assert_eq!(names(self.home.path()), ["SUMS", "m.gguf", "m.gguf.manifest.json"]);
    }

    fn refused(&self, output: &Output, words: &[&str]) -> String {
        let error = text(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{error}");
        assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
        assert!(!error.contains("secret"), "{error}");
        assert!(!self.home.path().join("m.gguf").exists());
        error
    }

    fn again(&self) {
        for name in ["m.gguf", "m.gguf.manifest.json"] {
            std::fs::remove_file(self.home.path().join(name)).unwrap();
        }
    }
}

/// Digest of a local conversion of the model under the name that it has in the store.
fn local() -> String {
    crate::served::local_digest("q4_0")
}

#[test]
fn a_model_in_every_kind_of_store_is_converted_as_a_local_one() {
    let desk = Desk::new();
    for url in [URL, "s3://models/org/tiny/", "gs://models/org/tiny", "az://models/org/tiny"] {
        let output = desk.run(&["convert", url, "--to", "q4_0", "-o", "m.gguf", "--sums", "SUMS", "-q"]);
        desk.succeeds(&output);
        let manifest = std::fs::read(desk.home.path().join("m.gguf.manifest.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(manifest["source"], url.trim_end_matches('/'));
        let files = manifest["source_files"].as_array().unwrap();
        for file in files {
            let bytes = std::fs::read(model().join(file["name"].as_str().unwrap())).unwrap();
            assert_eq!(file["sha256"], sha256(&bytes));
        }
        assert!(files.len() > 3);
        desk.again();
    }
    // Each shard came once for each of them, by ranges, beside its first bytes.
    let len = std::fs::metadata(model().join("model-00002-of-00004.safetensors")).unwrap().len();
    let sent = desk.bucket.sent(SHARD);
    assert!((4 * len..=4 * (len + (64 << 10))).contains(&sent), "{sent} of {len}");
    assert!(desk.bucket.asked().iter().all(|asked| asked.key.is_empty() || asked.range.is_some()));
}

#[test]
fn a_plan_reads_headers_only() {
    let desk = Desk::new();
    let output = desk.run(&["plan", URL, "--to", "q4_0", "--sums", "SUMS", "--jobs", "2", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    let shares = plan["shares"].as_array().unwrap();
    assert!(
        plan["download_bytes"].as_u64().unwrap() > 1_000_000
            && shares[0]["download_bytes"].as_u64() > Some(0)
    );
    assert!(desk.bucket.sent(SHARD) <= 64 << 10);
    assert_eq!(names(desk.home.path()), ["SUMS"]);
}

#[test]
fn an_unreliable_store_is_asked_again() {
    let desk = Desk::new();
    for seed in 0..3 {
        let mut random = Random(seed + 1);
        desk.bucket.fail(move |_| {
            // Seven in a row would be an error.
            match random.below(9) {
                0 => Some(Fault::Refuse(500, "InternalError")),
                1 => Some(Fault::Refuse(503, "SlowDown")),
                2 => Some(Fault::Refuse(429, "TooManyRequests")),
                3 => Some(Fault::CutAfter(random.below(30_000))),
                _ => None,
            }
        });
        desk.succeeds(&desk.convert(&[]));
        desk.again();
    }
    // A server that says nothing is left after the timeout that the environment gives.
    let silent = AtomicUsize::new(0);
    desk.bucket.fail(move |asked| {
        let is_first = asked.key == SHARD && silent.fetch_add(1, Ordering::Relaxed) == 1;
        is_first.then_some(Fault::Silence)
    });
    desk.succeeds(&desk.convert(&[]));
}

#[test]
fn damaged_bytes_come_again_or_are_named() {
    let desk = Desk::new();
    // Header, then weights: once each.
    let seen = AtomicUsize::new(0);
    desk.bucket.fail(move |asked| {
        let is_due = asked.key == SHARD && seen.fetch_add(1, Ordering::Relaxed) < 2;
        is_due.then_some(Fault::Flip)
    });
    desk.succeeds(&desk.convert(&[]));
    desk.again();
    desk.bucket.fail(|asked| (asked.key == SHARD && asked.range.unwrap().0 > 0).then_some(Fault::Flip));
    let digest = sha256(&desk.bucket.get(SHARD));
    desk.refused(&desk.convert(&[]), &["model-00002-of-00004.safetensors", "found digest", &digest]);
    // What is kept is gone on with.
    desk.bucket.fail(|_| None);
    desk.succeeds(&desk.convert(&[]));
    desk.again();
    for name in ["config.json", "tokenizer.json"] {
        desk.bucket.fail(move |asked| asked.key.ends_with(name).then_some(Fault::Flip));
        desk.refused(&desk.convert(&[]), &[name, "found digest"]);
    }
    // Another object than the one in the list.
    desk.bucket.fail(|_| None);
    let mut bytes = desk.bucket.get(SHARD);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    desk.bucket.put(SHARD, bytes);
    desk.refused(&desk.convert(&[]), &["model-00002-of-00004.safetensors", "found digest"]);
}

#[test]
fn refusals_are_named_and_at_once() {
    let desk = Desk::new();
    let start = std::time::Instant::now();
    for (name, url) in [
        ("AWS_ACCESS_KEY_ID", URL),
        ("GOOGLE_BEARER_TOKEN", "gs://models/org/tiny"),
        ("AZURE_STORAGE_TOKEN", "az://models/org/tiny"),
    ] {
        let arguments = ["convert", url, "--to", "q4_0", "-o", "m.gguf", "--sums", "SUMS"];
        let output = desk.bucket.command(desk.home.path(), &arguments).env(name, "nobody").output().unwrap();
        desk.refused(
            &output,
            &[url, "access was refused", "InvalidAccessKeyId", name.split_once('_').unwrap().0],
        );
        let other = url.replace("models", "nothing");
        let output = desk.run(&["plan", &other, "--to", "q4_0", "--sums", "SUMS"]);
        desk.refused(&output, &[&other, "no such bucket"]);
        let empty = url.replace("tiny", "nothing");
        let output = desk.run(&["plan", &empty, "--to", "q4_0", "--sums", "SUMS"]);
        desk.refused(&output, &[&empty, "no objects are there"]);
    }
    assert!(start.elapsed().as_secs() < 20);
    // Objects that are gone, replaced, or may not be read once the conversion has begun.
    for (fault, words) in [
        (Fault::Refuse(404, "NoSuchKey"), "not there any more"),
        (Fault::Refuse(412, "PreconditionFailed"), "changed since it was listed"),
        (Fault::Refuse(403, "AccessDenied"), "access was refused"),
        (Fault::Refuse(400, "Nonsense"), "Nonsense"),
        (Fault::Refuse(503, "SlowDown"), "8 attempts in a row brought nothing"),
    ] {
        desk.bucket.fail(move |asked| (asked.key == SHARD && asked.range.unwrap().0 > 0).then_some(fault));
        desk.refused(&desk.convert(&[]), &["model-00002-of-00004.safetensors", words]);
    }
    desk.bucket.fail(|_| None);
    desk.succeeds(&desk.convert(&[]));
    desk.again();
    // No credentials anywhere.
    let mut command = desk.bucket.command(desk.home.path(), &["plan", URL, "--to", "q4_0", "--sums", "SUMS"]);
    command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    command.env("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9");
    desk.refused(&command.output().unwrap(), &[URL, "attempts in a row", "AWS_SKIP_SIGNATURE=true"]);
    // Nobody listens.
    let Desk { bucket, home } = desk;
    let mut command = bucket.command(home.path(), &["plan", URL, "--to", "q4_0", "--sums", "SUMS"]);
    drop(bucket);
    command.env("AWS_ENDPOINT", "http://127.0.0.1:9");
    let error = text(&command.output().unwrap().stderr);
    assert!(error.contains(URL) && error.contains("8 attempts in a row brought nothing"), "{error}");
}

#[test]
fn an_object_that_is_replaced_meanwhile_is_not_mixed_with_the_one_before() {
    let desk = Desk::new();
    let shared = std::sync::Arc::new(std::sync::Mutex::new(None::<Vec<u8>>));
    let seen = std::sync::Arc::clone(&shared);
    desk.bucket.fail(move |asked| {
        // Long after the listing, and after the header.
        let is_late = asked.key == SHARD && asked.range.unwrap().1 > 64 << 10;
        if is_late {
            seen.lock().unwrap().get_or_insert_default();
        }
        is_late.then_some(Fault::CutAfter(1000))
    });
    let arguments =
        ["convert", URL, "--to", "q4_0", "-o", "m.gguf", "--sums", "SUMS", "-q", "--connections", "1"];
    let mut command = desk.bucket.command(desk.home.path(), &arguments);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    for _ in 0..6000 {
        if shared.lock().unwrap().is_some() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let mut bytes = desk.bucket.get(SHARD);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    desk.bucket.put(SHARD, bytes);
    let output = child.wait_with_output().unwrap();
    desk.refused(&output, &["model-00002-of-00004.safetensors", "changed since it was listed"]);
}

#[test]
fn every_file_has_a_digest_from_a_list_or_a_manifest() {
    let desk = Desk::new();
    let plan = ["plan", URL, "--to", "q4_0"];
    desk.refused(&desk.run(&plan), &[URL, "--sums FILE", "sha256sum"]);
    let list = std::fs::read_to_string(desk.home.path().join("SUMS")).unwrap();
    let with = |list: &str| {
        std::fs::write(desk.home.path().join("SUMS"), list).unwrap();
        desk.run(&[&plan[..], &["--sums", "SUMS"]].concat())
    };
    let without: String =
        list.lines().filter(|line| !line.contains("config.json")).map(|line| format!("{line}\n")).collect();
    desk.refused(&with(&without), &["SUMS says nothing about \"config.json\""]);
    desk.refused(
        &with(&format!("{list}{}  ./config.json\n", "0".repeat(64))),
        &["config.json is there twice"],
    );
    desk.refused(&with("nonsense\n"), &["SUMS", "line 1"]);
    desk.refused(&with(""), &["no checksums"]);
    // The list may lie there too, as may empty objects that stand for folders.
    desk.bucket.put("org/tiny/SUMS", list.clone().into_bytes());
    desk.bucket.put("org/tiny/", Vec::new());
    desk.bucket.put("org/tiny-other/config.json", b"{}".to_vec());
    assert!(with(&list.replace("  ", "  ./")).status.success());
    desk.bucket.put("org/tiny/more.bin", b"x".to_vec());
    desk.refused(&with(&list), &["says nothing about \"more.bin\""]);
    desk.bucket.remove("org/tiny/more.bin");
    desk.bucket.remove(SHARD);
    desk.refused(&with(&list), &["model-00002-of-00004.safetensors"]);

    // A result of requant has a manifest that says what its files are.
    let result = tempfile::tempdir().unwrap();
    let packed = result.path().join("packed");
    convert(&model(), "compressed-tensors-w4a16", 2, &packed).unwrap();
    let desk = Desk { bucket: Bucket::start().with(&packed, "packed"), home: tempfile::tempdir().unwrap() };
    let arguments = ["convert", "s3://models/packed", "--to", "q4_0", "-o", "m.gguf", "-q"];
    let output = desk.run(&arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    convert(&packed, "q4_0", 2, &result.path().join("m.gguf")).unwrap();
    let digest = |root: &Path| sha256(&std::fs::read(root.join("m.gguf")).unwrap());
    assert_eq!(digest(desk.home.path()), digest(result.path()));
    std::fs::remove_file(desk.home.path().join("m.gguf")).unwrap();
    std::fs::remove_file(desk.home.path().join("m.gguf.manifest.json")).unwrap();
    let mut config = desk.bucket.get("packed/config.json");
    config.push(b'\n');
    desk.bucket.put("packed/config.json", config);
    desk.refused(&desk.run(&arguments), &["config.json", "found digest"]);
}

#[test]
fn shares_read_from_a_store_and_a_stopped_one_goes_on() {
    let desk = Desk::new();
    for job in ["2/3", "1/3"] {
        let output = desk.convert(&["--job", job]);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    desk.bucket
        .fail(|asked| (asked.key == SHARD && asked.range.unwrap().0 > 0).then_some(Fault::CutAfter(100)));
    let mut command = desk.bucket.command(
        desk.home.path(),
        &["convert", URL, "--to", "q4_0", "-o", "m.gguf", "--sums", "SUMS", "-q", "--job", "3/3"],
    );
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(400));
    child.kill().unwrap();
    child.wait().unwrap();
    desk.bucket.fail(|_| None);
    let output = desk.convert(&["--job", "3/3"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    desk.succeeds(&desk.run(&["join", "m.gguf", "-q"]));
}

#[test]
fn what_object_stores_are_not_for_is_refused_by_name() {
    let desk = Desk::new();
    let held_out = crate::conversion::fixtures().join("text/heldout.txt");
    let (held_out, local) = (held_out.to_str().unwrap().to_owned(), model());
    let local = local.to_str().unwrap();
    let to = ["--to", "q4_0", "-o", "m.gguf"];
    let cases: &[(&[&str], &[&str])] = &[
        (
            &["convert", local, "--to", "q4_0", "-o", "s3://models/m.gguf"],
            &["s3://models/m.gguf", "file system"],
        ),
        (&["convert", local, "--to", "mlx-4bit", "-o", "gs://models/m"], &["gs://models/m", "file system"]),
        (
            &["convert", local, "--to", "q4_0", "-o", "az://models/m.gguf", "--job", "1/2"],
            &["az://", "file system"],
        ),
        (&["convert", local, "--to", "q4_0", "-o", "hf://me/m.gguf"], &["hf://me/m.gguf", "file system"]),
        (&["join", "s3://models/m.gguf"], &["s3://models/m.gguf", "file system"]),
        (&["status", "s3://models/m.gguf"], &["s3://models/m.gguf", "file system"]),
        (&["perplexity", URL, "--text", &held_out], &[URL, "plan and convert"]),
        (&["perplexity", local, "--text", &held_out, "--against", URL], &[URL, "plan and convert"]),
        (&["inspect", URL], &[URL]),
        (&["verify", URL], &[URL]),
        (&["fetch", URL, "-o", "d"], &[URL]),
        (&["plan", "s3://models/org/m.gguf", "--to", "q4_0"], &["m.gguf", "a single file"]),
        (&["plan", "s3://models/org//tiny", "--to", "q4_0"], &["no name of a folder", "BUCKET/FOLDER"]),
        (&["plan", "s3://", "--to", "q4_0"], &["no bucket"]),
        (&["plan", local, "--to", "q4_0", "--sums", "SUMS"], &["--sums", "object stores"]),
    ];
    for (arguments, words) in cases {
        desk.refused(&desk.run(arguments), words);
    }
    for option in [
        &["--validate", &held_out][..],
        &["--revision", "main"],
        &["--keep-source"],
        &["--xet"],
        &["--cache-dir", "d"],
        &["--sums", "no-such-list"],
    ] {
        let arguments = [&["convert", URL][..], &to, option].concat();
        desk.refused(&desk.run(&arguments), &[option[0].trim_start_matches("--sums")]);
    }
    assert_eq!(desk.bucket.asked().len(), 0);
    assert_eq!(names(desk.home.path()), ["SUMS"]);
}
