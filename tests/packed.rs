//! Packed Hugging Face results (compressed-tensors, GPTQ, AWQ), read here by their definitions, element by
//! element, and held against what the library reads from them and against their source.

use std::collections::BTreeMap;
use std::path::Path;

use requant::artifact::Artifact;
use requant::checkpoint::{Encoding, TileReader};
use requant::opened::Opened;
use requant::plan::{self, Options, Rules, TARGETS};
use requant_formats::Dtype;
use requant_formats::codec::fp8::{F8E4M3, Fp8};
use requant_formats::container::safetensors;
use serde_json::Value;

use crate::conversion::{Silent, convert, convert_with, model, open, settings};

/// A stored tensor.
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Stored {
    fn word(&self, row: usize, col: usize) -> u32 {
        let at = 4 * (row * self.shape[1] + col);
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }

    /// Element `at`, row by row.
    fn number(&self, at: usize) -> f32 {
        let half = |at: usize| u16::from_le_bytes(self.bytes[2 * at..][..2].try_into().unwrap());
        match self.dtype {
            Dtype::F32 => f32::from_le_bytes(self.bytes[4 * at..][..4].try_into().unwrap()),
            Dtype::BF16 => half::bf16::from_bits(half(at)).to_f32(),
            Dtype::F16 => half::f16::from_bits(half(at)).to_f32(),
            Dtype::F8_E4M3 => F8E4M3::to_f32(self.bytes[at]),
            other => panic!("{other}"),
        }
    }
}

fn read_all(directory: &Path) -> BTreeMap<String, Stored> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let header = safetensors::read_header(&mut bytes.as_slice(), bytes.len() as u64).unwrap();
        for entry in header.tensors {
            let start = header.data_offset_bytes as usize;
            // Views of a mapped file must be aligned.
            assert!(
                (start + entry.begin_bytes as usize).is_multiple_of(entry.dtype.size_bytes()),
                "{entry:?}"
            );
            let bytes = bytes[start + entry.begin_bytes as usize..start + entry.end_bytes as usize].to_vec();
            all.insert(entry.name, Stored { dtype: entry.dtype, shape: entry.shape, bytes });
        }
    }
    all
}

fn bf16(value: f32) -> f32 {
    half::bf16::from_f32(value).to_f32()
}

fn f16(value: f32) -> f32 {
    half::f16::from_f32(value).to_f32()
}

/// Decodes the weight of a module by the definition of its format.
fn decode(all: &BTreeMap<String, Stored>, stem: &str, method: &str, rows: usize, cols: usize) -> Vec<f32> {
    let part = |suffix: &str| all.get(&format!("{stem}.{suffix}"));
    let needed = |suffix: &str| part(suffix).unwrap_or_else(|| panic!("{stem}.{suffix}"));
    let elements = (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col)));
    if method != "compressed-tensors" {
        let (codes, zeros, scales) = (needed("qweight"), needed("qzeros"), needed("scales"));
        let group_len = cols / scales.shape[0];
        return elements
            .map(|(row, col)| {
                let group = col / group_len;
                let (code, zero) = if method == "gptq" {
                    let zero = zeros.word(group, row / 8) >> (4 * (row % 8)) & 15;
                    (codes.word(col / 8, row) >> (4 * (col % 8)) & 15, zero + 1)
                } else {
                    // Nibble n of a word is column ORDER[n].
                    const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
                    let nibble = 4 * ORDER.iter().position(|&column| column == row % 8).unwrap();
                    (codes.word(col, row / 8) >> nibble & 15, zeros.word(group, row / 8) >> nibble & 15)
                };
                f16(scales.number(group * rows + row) * (code as f32 - zero as f32))
            })
            .collect();
    }
    let (codes, scales) = (needed("weight_packed"), needed("weight_scale"));
    let (zeros, global) = (part("weight_zero_point"), part("weight_global_scale"));
    let groups = scales.shape[1];
    elements
        .map(|(row, col)| {
            let group = col / (cols / groups);
            if codes.dtype == Dtype::U8 {
                let code = codes.bytes[(row * cols + col) / 2] >> (4 * (col % 2)) & 15;
                let magnitude = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][usize::from(code & 7)];
                let number = if code < 8 { magnitude } else { -magnitude };
                let scale = match global {
                    Some(global) => scales.number(row * groups + group) / global.number(0),
                    None => (f32::from(scales.bytes[row * groups + group]) - 127.0).exp2(),
                };
                return bf16(number * scale);
            }
            let code = codes.word(row, col / 8) >> (4 * (col % 8)) & 15;
            let zero = zeros.map_or(8, |zeros| zeros.word(row / 8, group) >> (4 * (row % 8)) & 15);
            bf16(scales.number(row * groups + group) * (code as f32 - zero as f32))
        })
        .collect()
}

/// Rows of a weight as the library reads them, in pieces of 37.
fn read(checkpoint: &Opened, id: usize) -> Vec<f32> {
    let (rows, _) = checkpoint.tensors()[id].matrix();
    let (mut reader, mut tile, mut values) = (TileReader::default(), Vec::new(), Vec::new());
    for start in (0..rows).step_by(37) {
        reader.read(checkpoint, id, start..rows.min(start + 37), &mut tile).unwrap();
        values.extend_from_slice(&tile);
    }
    values
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn formats() -> impl Iterator<Item = &'static str> {
    let families = TARGETS.iter().filter(|target| !["GGUF", "MLX"].contains(&target.family()));
    families.flat_map(|target| target.formats()).map(|format| format.name)
}

#[test]
fn every_format_holds_what_its_definition_says_and_reads_back() {
    let source = open(&model()).unwrap();
    let work = tempfile::tempdir().unwrap();
    for format in formats() {
        let output = work.path().join(format);
        let outcome = convert(&model(), format, 2, &output).unwrap();
        let again = convert(&model(), format, 1, &work.path().join("again")).unwrap();
        assert_eq!(outcome.manifest.tensors, again.manifest.tensors, "{format} with one thread");
        std::fs::remove_dir_all(work.path().join("again")).unwrap();

        let result = open(&output).unwrap();
        let config: Value =
            serde_json::from_slice(&std::fs::read(output.join("config.json")).unwrap()).unwrap();
        let method = config["quantization_config"]["quant_method"].as_str().unwrap();
        let stored = read_all(&output);
        let mut packed = 0;
        for (id, tensor) in result.tensors().iter().enumerate() {
            if tensor.role.is_none() {
                continue;
            }
            let values = read(&result, id);
            let original = read(&source, source.checkpoint().unwrap().by_role(tensor.role.unwrap()).unwrap());
            if let Encoding::Packed(_) = tensor.encoding {
                packed += 1;
                let (rows, cols) = tensor.matrix();
                let stem = tensor.name.strip_suffix(".weight").unwrap();
                let expected = decode(&stored, stem, method, rows, cols);
                assert!(bits(&values) == bits(&expected), "{format}: {}", tensor.name);
                let error: f64 = values.iter().zip(&original).map(|(a, b)| f64::from(a - b).powi(2)).sum();
                let power: f64 = original.iter().map(|value| f64::from(*value).powi(2)).sum();
                // 4 bits over the range of a group of normal weights: 0.07 to 0.12; one group per row more.
                assert!(
                    (error / power).sqrt() < 0.2,
                    "{format}: {}: {}",
                    tensor.name,
                    (error / power).sqrt()
                );
            } else if tensor.scale().is_none() {
                let expected: Vec<f32> = original.iter().map(|&value| bf16(value)).collect();
                let expected = if tensor.dtype == Dtype::F32 { original } else { expected };
                assert!(bits(&values) == bits(&expected), "{format}: {}", tensor.name);
            } else {
                assert!(bits(&values) == bits(&original), "{format}: {}", tensor.name);
            }
        }
        assert_eq!(packed == 0, format.ends_with("fp8-block"), "{format}: {packed} packed weights");
    }
}

/// What engines ask a configuration about modules: GPTQModel and vLLM take the first expression that matches from the
/// start of a name, AutoAWQ and vLLM look for parts of it, AutoAWQ in the name inside the layer; vLLM asks for all
/// experts of a layer by what holds them.
#[test]
fn engines_find_what_is_kept() {
    let no_experts = "[[rule]]\ntarget = '\\.mlp\\.experts\\.'\nignore = true\n";
    let work = tempfile::tempdir().unwrap();
    for (format, recipe, keeps_experts) in [
        // The experts' rows of 64 are no whole groups of 128.
        ("gptq-4bit-128g", None, true),
        ("awq-4bit-128g", None, true),
        ("gptq-4bit-64g", None, false),
        ("awq-4bit-64g", None, false),
        ("gptq-4bit-32g-asym", Some(no_experts), true),
        ("awq-4bit-32g", Some(no_experts), true),
    ] {
        let output = work.path().join(format);
        let mut options = Options::default();
        if let Some(text) = recipe {
            options.rules = Rules::from_toml(Path::new("recipe.toml"), text).unwrap();
        }
        convert_with(&model(), &settings(format, 2), &options, &output, &Silent).unwrap();
        let config: Value =
            serde_json::from_slice(&std::fs::read(output.join("config.json")).unwrap()).unwrap();
        let section = &config["quantization_config"];
        let expressions = section["dynamic"].as_object().unwrap().keys().map(|key| {
            let expression = key.strip_prefix("-:").unwrap_or_else(|| panic!("{format}: {key}"));
            fancy_regex::Regex::new(&format!("^(?:{expression})")).unwrap()
        });
        let expressions: Vec<_> = expressions.collect();
        let is_left_out = |module: &str| {
            let by_expression = expressions.iter().any(|regex| regex.is_match(module).unwrap());
            if let Some(texts) = section["modules_to_not_convert"].as_array() {
                let by_text = texts.iter().any(|text| module.contains(text.as_str().unwrap()));
                assert_eq!(by_text, by_expression, "{format}: {module}");
                let number_and_rest =
                    module.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
                if let Some((_, inside)) =
                    number_and_rest.filter(|(number, inside)| *number != "3" && *inside != "mlp.gate")
                {
                    let by_text = texts.iter().any(|text| inside.contains(text.as_str().unwrap()));
                    assert_eq!(by_text, by_expression, "{format}: {inside}");
                }
            }
            by_expression
        };
        for name in read_all(&output).keys() {
            if let Some(module) = name.strip_suffix(".qweight") {
                assert!(!is_left_out(module), "{format}: {module}");
            } else if let Some(module) = name.strip_suffix("_proj.weight") {
                assert!(is_left_out(&format!("{module}_proj")), "{format}: {name}");
            }
        }
        assert!(is_left_out("lm_head") && is_left_out("model.layers.2.mlp.gate"), "{format}");
        for layer in [1, 2] {
            let experts = format!("model.layers.{layer}.mlp.experts");
            assert_eq!(is_left_out(&experts), keeps_experts, "{format}: {experts}");
        }
        if section["sym"] == Value::Bool(false) {
            // GPTQModel's condition for free zero points: itself in the list, 0.9.0 or later.
            let quantizers = section["meta"]["quantizer"].as_array().unwrap();
            assert!(quantizers.contains(&Value::from("gptqmodel:7.7.0")), "{format}: {quantizers:?}");
        }
    }
}

#[test]
fn inspect_counts_what_plan_states() {
    let source = open(&model()).unwrap();
    let work = tempfile::tempdir().unwrap();
    for format in formats() {
        let output = work.path().join(format);
        convert(&model(), format, 2, &output).unwrap();
        let blueprint = plan::blueprint(&source, format, &Options::default()).unwrap();
        let summary = plan::summary(&source, &blueprint, 0);
        let artifact = Artifact::open(&output).unwrap();
        assert_eq!(artifact.parameters(), summary.parameters, "{format}");
        let mut types: BTreeMap<String, u64> = BTreeMap::new();
        for tensor in &artifact.tensors {
            *types.entry(tensor.type_name.replace("_asym", "")).or_default() += tensor.bytes;
        }
        let mut planned: BTreeMap<String, u64> = BTreeMap::new();
        for (name, totals) in &summary.types {
            *planned.entry(name.replace("_asym", "")).or_default() += totals.bytes;
        }
        assert_eq!(types, planned, "{format}");
    }
}

#[test]
fn a_damaged_packing_is_named() {
    let work = tempfile::tempdir().unwrap();
    let damage = |format: &str, name: &str, change: &dyn Fn(&mut [u8])| -> String {
        let output = work.path().join("damaged");
        convert(&model(), format, 2, &output).unwrap();
        let file = output.join("model.safetensors");
        let mut bytes = std::fs::read(&file).unwrap();
        let header = safetensors::read_header(&mut bytes.as_slice(), bytes.len() as u64).unwrap();
        let entry = header.tensor(name).unwrap();
        let start = header.data_offset_bytes as usize;
        change(&mut bytes[start + entry.begin_bytes as usize..start + entry.end_bytes as usize]);
        std::fs::write(&file, bytes).unwrap();
        // Without its manifest, which tells of the damage first.
        std::fs::remove_file(requant::pipeline::manifest_path(&output)).unwrap();
        let error = convert(&output, "f32", 1, &work.path().join("out.gguf")).err().unwrap().to_string();
        std::fs::remove_dir_all(&output).unwrap();
        error
    };
    let stem = "model.layers.0.mlp.down_proj";
    let error = damage("compressed-tensors-w4a16", &format!("{stem}.weight_shape"), &|bytes| {
        bytes[0] = bytes[0].wrapping_add(1)
    });
    assert!(error.contains(stem) && error.contains("weight_shape"), "{error}");
    // Groups in the order of activations.
    let error = damage("gptq-4bit-128g", &format!("{stem}.g_idx"), &|bytes| bytes[0] = 1);
    assert!(error.contains(stem) && error.contains("g_idx"), "{error}");
}

/// Values of the weight with the same role in both, as the library reads them.
fn pairs(first: &Opened, second: &Opened, suffix: &str) -> Vec<(String, Vec<f32>, Vec<f32>)> {
    let tensors = first.tensors().iter().enumerate().filter(|(_, tensor)| tensor.name.ends_with(suffix));
    let both = tensors.filter_map(|(id, tensor)| {
        let other = second.checkpoint()?.by_role(tensor.role?)?;
        Some((tensor.name.clone(), read(first, id), read(second, other)))
    });
    both.collect()
}

#[test]
fn integers_become_integers_without_loss() {
    let work = tempfile::tempdir().unwrap();
    for (from, to) in [
        ("compressed-tensors-w4a16-g32", "gptq-4bit-32g"),
        ("gptq-4bit-64g", "awq-4bit-32g"),
        ("gptq-4bit-32g-asym", "awq-4bit-32g"),
        ("awq-4bit-32g", "gptq-4bit-32g-asym"),
        ("compressed-tensors-w4a16-asym-g32", "awq-4bit-32g"),
    ] {
        let (first, second) = (work.path().join("first"), work.path().join("second"));
        convert(&model(), from, 2, &first).unwrap();
        convert(&first, to, 2, &second).unwrap();
        let (first_model, second_model) = (open(&first).unwrap(), open(&second).unwrap());
        let all = pairs(&first_model, &second_model, "_proj.weight");
        assert!(all.len() > 100, "{}", all.len());
        for (name, before, after) in all {
            if !name.contains("layers.3.") {
                // What differs is the reader's rounding of products, to BF16 or F16.
                let close = before.iter().zip(&after).all(|(a, b)| (a - b).abs() <= a.abs() / 256.0);
                assert!(close, "{from} to {to}: {name}");
            }
        }
        std::fs::remove_dir_all(&first).unwrap();
        std::fs::remove_dir_all(&second).unwrap();
    }
}

#[test]
fn integers_become_gguf_and_mlx_blocks_without_loss() {
    let work = tempfile::tempdir().unwrap();
    let first = work.path().join("first");
    convert(&model(), "compressed-tensors-w4a16-g32", 2, &first).unwrap();
    let source = open(&first).unwrap();
    for (to, name) in
        [("q4_0", "m.gguf"), ("q8_0", "m.gguf"), ("mlx-4bit-g32", "mlx"), ("mlx-8bit-g32", "mlx")]
    {
        let output = work.path().join(name);
        convert(&first, to, 2, &output).unwrap();
        let result = Opened::open(&output).unwrap();
        let mut compared = 0;
        for (id, tensor) in source.tensors().iter().enumerate() {
            // The key half of kv_b_proj is transposed, so that its groups run the other way.
            let (Encoding::Packed(_), false) = (&tensor.encoding, tensor.name.contains("kv_b_proj")) else {
                continue;
            };
            let weight = result.store().unwrap().weight(tensor.role.unwrap()).unwrap();
            let mut after = vec![0.0; weight.rows * weight.cols];
            result.store().unwrap().read_rows(&weight, 0..weight.rows, &mut after).unwrap();
            // MLX rounds the product of code and scale, which is as large as the group's largest weight, to BF16
            // before it adds the bias; a step is an eighth of that weight.
            let groups = read(&source, id);
            let close = groups.chunks(32).zip(after.chunks(32)).all(|(before, after)| {
                let largest = before.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                before.iter().zip(after).all(|(a, b)| (a - b).abs() <= largest / 100.0)
            });
            assert!(close, "{to}: {}", tensor.name);
            compared += 1;
        }
        assert!(compared > 100, "{compared}");
        std::fs::remove_file(requant::pipeline::manifest_path(&output)).unwrap();
        if output.is_dir() { std::fs::remove_dir_all(&output) } else { std::fs::remove_file(&output) }
            .unwrap();
    }
}

#[test]
fn powers_of_two_become_other_powers_of_two_without_loss() {
    let work = tempfile::tempdir().unwrap();
    let first = work.path().join("first");
    convert(&model(), "compressed-tensors-mxfp4", 2, &first).unwrap();
    let source = open(&first).unwrap();
    for (to, name, only) in [
        ("mxfp4_moe", "m.gguf", ".experts."),
        ("mlx-mxfp4", "mlx", "_proj."),
        ("compressed-tensors-mxfp4", "again", "_proj."),
    ] {
        let output = work.path().join(name);
        convert(&first, to, 2, &output).unwrap();
        let result = Opened::open(&output).unwrap();
        let mut compared = 0;
        for (id, tensor) in source.tensors().iter().enumerate() {
            let is_meant = tensor.name.contains(only) && !tensor.name.contains("kv_b_proj");
            let (Encoding::Packed(_), true) = (&tensor.encoding, is_meant) else { continue };
            let weight = result.store().unwrap().weight(tensor.role.unwrap()).unwrap();
            let mut after = vec![0.0; weight.rows * weight.cols];
            result.store().unwrap().read_rows(&weight, 0..weight.rows, &mut after).unwrap();
            // Equal as numbers: zeros may lose their sign.
            assert!(read(&source, id) == after, "{to}: {}", tensor.name);
            compared += 1;
        }
        assert!(compared >= 96, "{to}: {compared}");
    }
}
