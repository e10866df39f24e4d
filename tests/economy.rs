//! What a measurement costs: every weight is read once, memory stays within what is allowed.

use std::process::Command;
use std::sync::{Arc, Mutex};

use requant::checkpoint::WeightStore;
use requant::evaluate::{Bos, Windows};
use requant::family::{LayerRole, Role};
use requant::model::{self, Storage, Unobserved, Workload, order_of_need, peak_ram_bytes, scratch_bytes};
use requant::opened::Opened;
use requant::source::{LocalDirectory, Source, SourceFile};
use requant_formats::Dtype;
use serde_json::Value;

use crate::conversion::{convert, fixtures, model as fixture};
use crate::maker;

/// Notes what is read.
struct Counting {
    inner: LocalDirectory,
    /// File, offset, length.
    reads: Mutex<Vec<(usize, u64, u64)>>,
}

impl Source for Counting {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn files(&self) -> &[SourceFile] {
        self.inner.files()
    }

    fn read_at(&self, file: usize, offset_bytes: u64, buf: &mut [u8]) -> requant::Result<()> {
        self.reads.lock().unwrap().push((file, offset_bytes, buf.len() as u64));
        self.inner.read_at(file, offset_bytes, buf)
    }
}

/// With states in memory, and with states on the disk. Heads of 96 rows do not fit the pieces in which rows are
/// decoded.
#[test]
fn every_weight_is_read_once() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    std::fs::create_dir(&source).unwrap();
    maker::checkpoint(maker::Size::default(), maker::Storage::Fp8(Dtype::F8_E4M3)).write(&source);
    maker::copy_tokenizer(&source);
    let mut paths = vec![source.clone()];
    for format in ["mlx-4bit-g32", "awq-4bit-32g", "gptq-4bit-32g"] {
        paths.push(directory.path().join(format));
        convert(&source, format, 2, &paths[paths.len() - 1]).unwrap();
    }
    for path in paths {
        let inner = LocalDirectory::open(&path).unwrap();
        let source = Arc::new(Counting { inner, reads: Mutex::default() });
        let opened = Opened::from_source(Box::new(Arc::clone(&source))).unwrap();
        let store = opened.store().unwrap();
        let tokens: Vec<u32> = (0..48 * 20).map(|i: u32| i * 7919 % 320).collect();
        for storage in [Storage::Memory, Storage::Scratch(directory.path().to_owned())] {
            source.reads.lock().unwrap().clear();
            let hidden = model::forward(store, &tokens, 48, &storage, &mut Unobserved).unwrap();
            model::logits(store, &hidden, &[20, 47]).unwrap();
            check_reads(store, &source.reads.lock().unwrap(), &format!("{} {storage:?}", path.display()));
        }
    }
}

/// Every weight was read whole and once, those of experts perhaps not at all.
fn check_reads(store: &dyn WeightStore, reads: &[(usize, u64, u64)], what: &str) {
    let mut bytes = 0;
    // The first is the embedding, of which rows are read.
    for role in order_of_need(store, 0, false).into_iter().skip(1).flatten() {
        for extent in store.extents(role).unwrap() {
            let inside = reads
                .iter()
                .filter(|(file, offset, _)| *file == extent.file && extent.range.contains(offset));
            let read: u64 = inside.map(|(_, _, len)| len).sum();
            let times = match role {
                // No token went there.
                Role::Layer(_, LayerRole::Expert(..)) => 0..=1,
                _ => 1..=1,
            };
            let len = extent.range.end - extent.range.start;
            assert!(
                times.contains(&(read / len)) && read.is_multiple_of(len),
                "{what} {role:?}: {read} bytes of {len}"
            );
            bytes += read;
        }
    }
    assert!(bytes > 200_000, "{bytes}");
}

/// The estimate that `--memory` goes by, against what the system says of a process: never above, and not so far
/// below that it would say nothing. What states would take is then taken of the disk.
#[test]
fn memory_is_what_was_allowed() {
    let text = fixtures().join("text/heldout.txt");
    let directory = tempfile::tempdir().unwrap();
    let result = directory.path().join("m.gguf");
    convert(&fixture(), "q4_0", 2, &result).unwrap();
    let source = Opened::open(&fixture()).unwrap();
    let whole = std::fs::read_to_string(&text).unwrap();
    let windows = Windows::new(&source.tokenizer().unwrap(), &whole, 512, Bos::Auto).unwrap().len();
    for (path, models, predictions) in [(&fixture(), 1, 1), (&result, 2, 0)] {
        let (spec, tokens) = (source.store().unwrap().spec(), windows * 512);
        let load = Workload { tokens, context: 512, scored: windows * 255, models, predictions };
        let mut peaks = Vec::new();
        for (storage, disk) in [
            (Storage::Memory, 0),
            (Storage::Scratch(directory.path().to_owned()), scratch_bytes(spec, &load)),
        ] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
            let allowed = pool.install(|| peak_ram_bytes(spec, &load, &storage));
            let mut command = Command::new(env!("CARGO_BIN_EXE_requant"));
            command.arg("perplexity").arg(path).arg("--text").arg(&text);
            command.args(["--threads", "2", "--json", "-q", "--memory", &allowed.to_string()]);
            command.arg("--scratch").arg(directory.path());
            if models == 2 {
                command.arg("--against").arg(fixture());
            }
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(report["scratch_bytes"], disk);
            let peak = report["peak_rss_bytes"].as_u64().unwrap();
            println!("{models} models, {storage:?}: {peak} of {allowed}");
            assert!(peak <= allowed, "{models} models, {storage:?}: {peak} of {allowed}");
            peaks.push((peak, allowed));
        }
        let [(most, allowed), (least, least_allowed)] = peaks[..] else { unreachable!() };
        assert!(2 * (most - least) > allowed - least_allowed, "{peaks:?}");
    }
}
