//! What a measurement costs: every weight is read once, memory stays within what is allowed.

use std::process::Command;
use std::sync::{Arc, Mutex};

use requant::arch::{LayerRole, Role};
use requant::evaluate::{self, Bos, Request, Windows};
use requant::model::{Unobserved, Workload, order_of_need, peak_ram_bytes};
use requant::source::{LocalDirectory, Source, SourceFile};
use requant::weights::Model;
use requant_formats::Dtype;
use serde_json::Value;

use crate::conversion::{convert, fixtures, model};
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

/// Heads of 96 rows do not fit the pieces in which rows are decoded.
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
        let model = Model::from_source(Box::new(Arc::clone(&source))).unwrap();
        let store = model.store();
        source.reads.lock().unwrap().clear();
        let windows = Windows::from_tokens((0..48 * 20).map(|i: u32| i * 7919 % 320).collect(), 48);
        let request = Request { model: store, original: None, windows: &windows, memory_bytes: None };
        evaluate::measure(&request, &mut Unobserved).unwrap();
        let reads = source.reads.lock().unwrap();
        let mut bytes = 0;
        // The first is the embedding, of which rows are read.
        for role in order_of_need(store, false).into_iter().skip(1).flatten() {
            for extent in store.extents(role).unwrap() {
                let inside = reads
                    .iter()
                    .filter(|(file, offset, _)| *file == extent.file && extent.range.contains(offset));
                let read: u64 = inside.map(|(_, _, len)| len).sum();
                let times = match role {
                    // No token went there.
                    Role::Layer(_, LayerRole::Expert(..)) => 0..=1,
                    // The final norm: a vector, read for the head and for the prediction layer.
                    Role::OutputNorm => 1..=2,
                    _ => 1..=1,
                };
                let len = extent.range.end - extent.range.start;
                assert!(
                    times.contains(&(read / len)) && read.is_multiple_of(len),
                    "{path:?} {role:?}: {read} bytes of {len}"
                );
                bytes += read;
            }
        }
        assert!(bytes > 200_000, "{bytes}");
    }
}

/// The estimate that `--memory` goes by, against what the system says of a process: never above, and not so far
/// below that it would say nothing.
#[test]
fn memory_is_what_was_allowed() {
    let text = fixtures().join("text/heldout.txt");
    let directory = tempfile::tempdir().unwrap();
    let result = directory.path().join("m.gguf");
    convert(&model(), "q4_0", 2, &result).unwrap();
    let source = Model::open(&model()).unwrap();
    let whole = std::fs::read_to_string(&text).unwrap();
    let windows = Windows::new(&source.tokenizer().unwrap(), &whole, 512, Bos::Auto).unwrap().len();
    for (path, models, predictions) in [(&model(), 1, 1), (&result, 2, 0)] {
        let mut peaks = Vec::new();
        for (count, passes) in [(windows, 1), (8, windows.div_ceil(8) as u64)] {
            let tokens = count * 512;
            let load = Workload { tokens, context: 512, scored: count * 255, models, predictions };
            let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
            let allowed = pool.install(|| peak_ram_bytes(source.store().spec(), &load));
            let mut command = Command::new(env!("CARGO_BIN_EXE_requant"));
            command.arg("perplexity").arg(path).arg("--text").arg(&text);
            command.args(["--threads", "2", "--json", "-q", "--memory", &allowed.to_string()]);
            if models == 2 {
                command.arg("--against").arg(model());
            }
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(report["passes"], passes);
            let peak = report["peak_rss_bytes"].as_u64().unwrap();
            println!("{models} models, {count} windows: {peak} of {allowed}");
            assert!(peak <= allowed, "{models} models, {count} windows: {peak} of {allowed}");
            peaks.push((peak, allowed));
        }
        let [(most, allowed), (least, least_allowed)] = peaks[..] else { unreachable!() };
        assert!(2 * (most - least) > allowed - least_allowed, "{peaks:?}");
    }
}
