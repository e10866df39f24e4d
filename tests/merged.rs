//! GGUF files that keep gate and up projection of the experts in one tensor.

use std::path::Path;

use requant::model::{self, Storage, Unobserved};
use requant::opened::Opened;
use requant_formats::container::gguf::{self, TensorSpec};

use crate::conversion::{convert, fixtures, model as fixture};
use crate::maker;
use crate::requantize::requantize;

/// The file at `from` with merged projections.
fn merge(from: &Path, to: &Path) {
    let file = std::fs::read(from).unwrap();
    let header = gguf::read(&mut file.as_slice(), file.len() as u64).unwrap();
    let content = |name: &str| {
        let tensor = header.tensors.iter().find(|tensor| tensor.name == name).unwrap();
        &file[(header.data_offset_bytes + tensor.offset_bytes) as usize..][..tensor.len_bytes as usize]
    };
    let mut specs = Vec::new();
    let mut contents: Vec<Vec<u8>> = Vec::new();
    for tensor in &header.tensors {
        let (name, mut shape) = (tensor.name.clone(), tensor.shape.clone());
        if name.contains("ffn_up_exps") {
            continue;
        }
        if !name.contains("ffn_gate_exps") {
            contents.push(content(&name).to_vec());
            specs.push(TensorSpec { name, shape, ggml_type: tensor.ggml_type });
            continue;
        }
        let (gate, up) = (content(&name), content(&name.replace("gate", "up")));
        let expert = tensor.len_bytes as usize / shape[2] as usize;
        let both = gate.chunks(expert).zip(up.chunks(expert)).flat_map(|(gate, up)| [gate, up].concat());
        contents.push(both.collect());
        shape[1] *= 2;
        specs.push(TensorSpec { name: name.replace("gate", "gate_up"), shape, ggml_type: tensor.ggml_type });
    }
    maker::gguf(to, header.metadata.clone(), specs, &contents);
}

fn logits(path: &Path) -> Vec<f32> {
    let opened = Opened::open(path).unwrap();
    let store = opened.store().unwrap();
    let ids: Vec<u32> = (0..96).map(|at: u32| at * 7919 % store.spec().embedding.vocab as u32).collect();
    let hidden = model::forward(store, &ids, 48, &Storage::Memory, &mut Unobserved).unwrap();
    model::logits(store, &hidden, &[20, 47, 60, 95]).unwrap()
}

/// llama-perplexity gives the merged file the estimate of the other, too (fixtures/README.md); of the families with
/// grouped queries it takes none so.
#[test]
fn merged_projections_are_the_same_model() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    convert(&fixture(), "f32", 2, &at("apart.gguf")).unwrap();
    merge(&at("apart.gguf"), &at("merged.gguf"));
    assert_eq!(logits(&at("merged.gguf")), logits(&at("apart.gguf")));
    for name in ["apart", "merged"] {
        requantize(&at(&format!("{name}.gguf")), "q8_0", &at(&format!("{name}-q8_0.gguf")));
    }
    assert_eq!(logits(&at("merged-q8_0.gguf")), logits(&at("apart-q8_0.gguf")));
    assert_ne!(logits(&at("merged-q8_0.gguf")), logits(&at("merged.gguf")));
    merge(&fixtures().join("goldens/forward/gqa/qwen3moe.gguf"), &at("other.gguf"));
    let error = Opened::open(&at("other.gguf")).and_then(Opened::evaluable).err().unwrap().to_string();
    assert!(error.contains("blk.0.ffn_gate_exps.weight") && error.contains("missing"), "{error}");
}
