use std::collections::BTreeSet;

use serde_json::json;

use super::*;
use crate::pipeline::{ErrorReport, FileRecord, ModelRecord, SourceRecord, TensorError, TensorRecord};

/// Elements without an end.
const VOID: [&str; 1] = ["meta"];

/// Walks through a page as XML, which it is but for `meta` and the first line: every element ends where it must, attributes have
/// quotes, and no `<`, `>` or stray `&` is left in text. Returns the names of elements.
fn elements(page: &str) -> BTreeSet<String> {
    let mut rest = page.strip_prefix("<!doctype html>\n").unwrap();
    let (mut open, mut names) = (Vec::<&str>::new(), BTreeSet::new());
    while let Some(at) = rest.find('<') {
        // Style sheets have characters of their own.
        check_text(&rest[..at], open.last() == Some(&"style"));
        let end = at + rest[at..].find('>').unwrap();
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "in front of {}", &rest[..rest.len().min(80)]);
            continue;
        }
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        let is_closed = attributes.ends_with('/');
        check_attributes(attributes.trim_end_matches('/'));
        names.insert(name.to_owned());
        if !is_closed && !VOID.contains(&name) {
            open.push(name);
        }
    }
    assert!(open.is_empty() && rest == "\n", "{open:?} {rest:?}");
    names
}

fn check_text(text: &str, is_style: bool) {
    assert!(is_style || !text.contains('>'), "{text}");
    for after in text.split('&').skip(1) {
        let name = after.split(';').next().unwrap();
        assert!(matches!(name, "amp" | "lt" | "gt" | "quot" | "#39" | "plusmn"), "&{name}");
    }
}

fn check_attributes(attributes: &str) {
    let mut rest = attributes.trim();
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("{rest}"));
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{name}");
        assert!(!name.starts_with("on"), "{name}");
        let (value, after) = after.split_once('"').unwrap();
        check_text(value, false);
        let is_address = value.contains("://");
        assert!(!is_address || (name == "xmlns" && value == "http://www.w3.org/2000/svg"), "{value}");
        rest = after.trim_start();
    }
}

/// A result with `layers` layers of `experts` experts, named by `name`.
fn manifest(layers: usize, experts: usize, name: &dyn Fn(&str) -> String) -> Manifest {
    let mut tensors = Vec::new();
    let mut errors = Vec::new();
    let mut add = |stem: String, type_name: &str, rows: usize| {
        for part in ["weight", "scales", "biases"] {
            tensors.push(TensorRecord {
                name: name(&format!("{stem}.{part}")),
                type_name: type_name.to_owned(),
                shape: vec![rows, 64],
                file: "model-00001-of-00001.safetensors".to_owned(),
                offset: 0,
                bytes: if type_name == "affine6_g64" { 48 } else { 32 } * rows as u64,
                sha256: "ab".repeat(32),
            });
        }
        errors.push(TensorError {
            name: name(&format!("{stem}.weight")),
            type_name: type_name.to_owned(),
            parameters: 64 * rows as u64,
            relative_error: Some(0.01 + 0.001 * (rows % 7) as f64),
            cosine: Some(0.9999),
        });
    };
    for layer in 0..layers {
        let bits = if layer < layers / 2 { "affine4_g64" } else { "affine6_g64" };
        add(format!("model.layers.{layer}.self_attn.o_proj"), bits, 64 + layer);
        for expert in 0..experts {
            for matrix in ["gate_proj", "up_proj", "down_proj"] {
                add(format!("model.layers.{layer}.mlp.experts.{expert}.{matrix}"), bits, 128);
            }
        }
    }
    let against_layers: Vec<Value> = (0..layers)
        .map(|layer| {
            let experts: Vec<Value> = (0..experts)
                .map(|expert| json!({"expert": expert, "tokens": 100, "original_tokens": 100 + expert, "agreement": 0.9}))
                .collect();
            json!({"layer": layer, "relative_error": 0.001 * (layer + 1) as f64, "cosine": 0.99999,
                "routing_agreement": if experts.is_empty() { Value::Null } else { json!(0.97) }, "experts": experts})
        })
        .collect();
    let mut against = json!({"perplexity": 5.1, "perplexity_error": 0.02, "mean_kld": 0.0123, "mean_kld_error": 0.0004,
        "median_kld": 0.004, "p90_kld": 0.02, "p95_kld": 0.04, "p99_kld": 0.11, "p999_kld": 0.4, "max_kld": 2.5,
        "top1_agreement": 0.953, "top1_agreement_error": 0.001, "perplexity_ratio": 1.004});
    against["layers"] = against_layers.into();
    let validation = json!({"text": name("text.txt"), "context": 512, "windows": 8, "max_kld": 0.05, "passed": true,
        "perplexity": 5.12, "perplexity_error": 0.02, "against": against});
    Manifest {
        manifest_version: 1,
        requant_version: "0.1.0".to_owned(),
        command: vec!["requant".to_owned(), "convert".to_owned(), name("/models/V3")],
        format: name("mlx-4bit"),
        recipe: Some(name("[[rule]]\ntarget = \"x\"\n")),
        imatrix: None,
        calibration: None,
        damped: Vec::new(),
        source: name("/models/V3"),
        model: Some(ModelRecord { license: Some(name("mit")), ..ModelRecord::default() }),
        source_files: vec![SourceRecord { name: name("a.safetensors"), bytes: 5, sha256: None }],
        is_directory: true,
        files: vec![FileRecord { name: name("model.safetensors"), bytes: 5, sha256: "ab".repeat(32) }],
        error_report: Some(ErrorReport {
            relative_error: Some(0.011),
            cosine: Some(0.9999),
            tensors: errors,
        }),
        validation: Some(validation),
        tensors,
    }
}

fn page_of(manifest: &Manifest, title: &str) -> String {
    let facts = vec![("seconds", "12.5".to_owned())];
    page(&Subject { title, facts, manifest: Some(manifest), measured: None }).unwrap()
}

#[test]
fn a_page_has_everything_that_was_measured() {
    let manifest = manifest(6, 4, &str::to_owned);
    let page = page_of(&manifest, "V3-mlx-4bit");
    elements(&page);
    for part in [
        "<h1>V3-mlx-4bit</h1>",
        "<h2>Origin and checks</h2>",
        "requant convert /models/V3",
        "<h2>Sizes</h2>",
        "Bits per weight by layer",
        "<h2>Error of the weights</h2>",
        "Worst tensors",
        "<h2>Predictions</h2>",
        "0.012300 &plusmn; 0.000400",
        "99.9 %",
        "Error of the hidden state after each layer",
        "Choices of experts that are the original&#39;s",
        "Experts whose tokens changed most",
        "<h2>Files</h2>",
        "0 of 1 with a known SHA-256",
        "at most 0.05 was asked for",
    ] {
        let part = part.replace("original&#39;s", "original's");
        assert!(page.contains(&part), "{part}");
    }
    assert_eq!(page.matches("<svg ").count(), 5);
    assert_eq!(page, page_of(&manifest, "V3-mlx-4bit"));
}

#[test]
fn what_was_not_measured_is_not_there() {
    let mut manifest = manifest(2, 0, &str::to_owned);
    (manifest.error_report, manifest.validation, manifest.recipe) = (None, None, None);
    let page = page_of(&manifest, "m");
    elements(&page);
    for part in ["Error of the weights", "Predictions", "Recipe", "NaN", "null"] {
        assert!(!page.contains(part), "{part}");
    }
    assert!(page.contains("no (--error-report)") && page.contains("no (--validate)"));
    let measured = json!({"perplexity": 58.2, "perplexity_error": 1.2, "windows": 3});
    let alone =
        super::page(&Subject { title: "m", facts: Vec::new(), manifest: None, measured: Some(&measured) });
    let alone = alone.unwrap();
    elements(&alone);
    assert!(
        alone.contains("58.2000 &plusmn; 1.2000") && !alone.contains("<svg ") && !alone.contains("Sizes")
    );
}

#[test]
fn nothing_from_elsewhere_becomes_part_of_the_page() {
    let hostile = |text: &str| {
        format!("{text}</title></style></code><script>alert(\"1\")</script><img src='x' onerror=y>&\u{202e}")
    };
    let tame = elements(&page_of(&manifest(3, 2, &str::to_owned), "m"));
    let page = page_of(&manifest(3, 2, &hostile), &hostile("m"));
    assert_eq!(elements(&page), tame);
    assert!(!page.contains("<script") && !page.contains("<img") && !page.contains('\u{202e}'));
    assert!(page.contains("&lt;script&gt;alert(&quot;1&quot;)"));
}

/// 61 layers of 256 experts, everything measured.
#[test]
fn a_full_size_page_is_small() {
    let page = page_of(&manifest(61, 256, &str::to_owned), "V3");
    assert!(page.len() < 500_000, "{} bytes", page.len());
    elements(&page);
}
