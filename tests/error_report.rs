//! The error report, against a naive computation from the files.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use requant::checkpoint::TileReader;
use requant::pipeline::{self, ErrorReport, Manifest, Settings};
use requant::plan::{self, Blueprint, Options, OutputTensor};

use crate::conversion::{Silent, convert_with, model, open, settings};
use crate::faults::StopAfter;

fn reporting(format: &str, threads: usize) -> Settings {
    Settings { error_report: true, ..settings(format, threads) }
}

fn report(format: &str, threads: usize, output: &Path) -> (ErrorReport, Manifest) {
    let outcome =
        convert_with(&model(), &reporting(format, threads), &Options::default(), output, &Silent).unwrap();
    (outcome.manifest.error_report.clone().unwrap(), outcome.manifest)
}

/// The source's weights in the order of an output tensor.
fn source_weights(tensor: &OutputTensor) -> Vec<f32> {
    let source = open(&model()).unwrap();
    let (mut reader, mut tile, mut all) = (TileReader::default(), Vec::new(), Vec::new());
    for piece in &tensor.pieces {
        let (_, cols) = source.tensors()[piece.source].matrix();
        reader.read(&source, piece.source, piece.rows.clone(), &mut tile).unwrap();
        if !piece.turn.is_none() {
            (0..cols).for_each(|col| all.extend(tile.iter().skip(col).step_by(cols)));
        } else {
            all.extend(&tile);
        }
    }
    all
}

/// What the files have, decoded by the plain decoder.
fn written_weights(tensor: &OutputTensor, blueprint: &Blueprint, output: &Path) -> Vec<f32> {
    let parts: Vec<Vec<u8>> = tensor
        .placements
        .iter()
        .map(|placement| {
            let name = &blueprint.files[placement.file].name;
            let path = if name.is_empty() { output.to_owned() } else { output.join(name) };
            let start = placement.offset_bytes as usize;
            std::fs::read(path).unwrap()[start..start + placement.len_bytes as usize].to_vec()
        })
        .collect();
    let mut weights = vec![0.0; tensor.len_elems() as usize];
    tensor.codec.decode_scalar(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>(), &mut weights);
    weights
}

#[test]
fn errors_are_those_of_the_files() {
    for format in ["q4_k_m", "q2_k", "mlx-4bit", "bf16"] {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("m");
        let (report, _) = report(format, 3, &output);
        let source = open(&model()).unwrap();
        let blueprint = plan::blueprint(&source, format, &Options::default()).unwrap();
        assert_eq!(report.tensors.len(), blueprint.tensors.len());
        for tensor in &blueprint.tensors {
            let found = report.tensors.iter().find(|found| found.name == tensor.names[0]).unwrap();
            let (x, y) = (source_weights(tensor), written_weights(tensor, &blueprint, &output));
            let sum = |term: &dyn Fn(f64, f64) -> f64| -> f64 {
                x.iter().zip(&y).map(|(&x, &y)| term(f64::from(x), f64::from(y))).sum()
            };
            let (xx, yy) = (sum(&|x, _| x * x), sum(&|_, y| y * y));
            let error = (sum(&|x, y| (y - x) * (y - x)) / xx).sqrt();
            let cosine = sum(&|x, y| x * y) / (xx * yy).sqrt();
            // Sums of up to 400,000 products in f64, added in another order.
            assert!(
                (found.relative_error.unwrap() - error).abs() <= 1e-11 * error,
                "{format} {}",
                found.name
            );
            assert!((found.cosine.unwrap() - cosine).abs() <= 1e-11, "{format} {}", found.name);
            assert_eq!((&found.type_name, found.parameters), (&tensor.type_name, tensor.len_elems()));
        }
        let errors: Vec<f64> = report.tensors.iter().map(|tensor| tensor.relative_error.unwrap()).collect();
        assert!(errors.is_sorted_by(|a, b| a >= b), "{format}");
        let (worst, least) = (errors[0], errors[errors.len() - 1]);
        assert!(least == 0.0 && worst > report.relative_error.unwrap(), "{format}");
    }
}

#[test]
fn what_loses_nothing_has_no_error() {
    let directory = tempfile::tempdir().unwrap();
    let (report, _) = report("f32", 2, &directory.path().join("m.gguf"));
    assert!(
        report.tensors.iter().all(|tensor| tensor.relative_error == Some(0.0) && tensor.cosine == Some(1.0))
    );
    assert_eq!((report.relative_error, report.cosine), (Some(0.0), Some(1.0)));
}

#[test]
fn other_layouts_are_measured_too() {
    let directory = tempfile::tempdir().unwrap();
    // Finer groups, smaller errors; the prediction layer is carried in 16 bit.
    let mean = |format: &str| report(format, 2, &directory.path().join(format)).0.relative_error.unwrap();
    let (coarse, fine) = (mean("gptq-4bit-64g"), mean("gptq-4bit-32g"));
    assert!(0.02 < fine && fine < coarse && coarse < 0.15, "{fine} {coarse}");
    let (awq, nvfp4) = (mean("awq-4bit-64g"), mean("compressed-tensors-nvfp4"));
    assert!((0.02..0.15).contains(&awq) && (0.02..0.15).contains(&nvfp4), "{awq} {nvfp4}");
    assert_eq!(mean("compressed-tensors-fp8-block"), 0.0);
}

#[test]
fn a_report_does_not_depend_on_threads_or_interruptions() {
    for (format, name) in [("q4_k_m", "m.gguf"), ("mlx-4bit", "m")] {
        let whole = tempfile::tempdir().unwrap();
        let (_, expected) = report(format, 1, &whole.path().join(name));
        let (_, threaded) = report(format, 5, &whole.path().join(format!("other-{name}")));
        assert_eq!(threaded.error_report, expected.error_report);
        for after in [1, 300_000, 2_000_000, 3_500_000] {
            let directory = tempfile::tempdir().unwrap();
            let output = directory.path().join(name);
            let source = open(&model()).unwrap();
            let blueprint = plan::blueprint(&source, format, &Options::default()).unwrap();
            let stop = AtomicBool::new(false);
            let progress = StopAfter { after, done: 0.into(), stop: &stop };
            let stopped =
                pipeline::convert(&source, &blueprint, &output, &reporting(format, 2), &progress, &stop);
            assert!(matches!(stopped, Err(requant::Error::Interrupted)));
            // Without the report it is another request: nothing of it would be there for what is done.
            let error = convert_with(&model(), &settings(format, 2), &Options::default(), &output, &Silent);
            let error = error.err().unwrap().to_string();
            assert!(error.contains("--error-report was given, now not given"), "{error}");
            let (_, resumed) = report(format, 2, &output);
            assert_eq!(resumed, expected);
        }
    }
}

#[test]
fn manifests_keep_it() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("m.gguf");
    let (report, _) = report("q4_0", 2, &output);
    let read = Manifest::read(&pipeline::manifest_path(&output)).unwrap().error_report.unwrap();
    for (read, written) in read.tensors.iter().zip(&report.tensors) {
        assert_eq!(read.name, written.name);
        // serde_json reads a number to within one unit in the last place.
        let (read, written) = (read.relative_error.unwrap(), written.relative_error.unwrap());
        assert!((read - written).abs() <= f64::EPSILON * written);
    }
}
