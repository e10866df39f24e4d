//! GGUF files with a prediction layer: they measure what the checkpoint with it does, and convert to others.

use std::path::Path;

use requant::checkpoint::WeightStore;
use requant::evaluate::{self, Report, Request};
use requant::family::{Ffn, LayerRole, Role};
use requant::model::Unobserved;
use requant::opened::Opened;
use requant_formats::container::gguf::{self, GgmlType, TensorSpec};

use crate::comparison::heldout;
use crate::conversion::{convert, model};
use crate::maker;
use crate::requantize::requantize;

/// The whole of a weight.
fn values(store: &dyn WeightStore, role: Role) -> Vec<f32> {
    let weight = store.weight(role).unwrap();
    let mut values = vec![0.0; weight.rows * weight.cols];
    store.read_rows(&weight, 0..weight.rows, &mut values).unwrap();
    values
}

/// Names, shapes (innermost dimension first) and values of the prediction layer as llama.cpp has them.
fn prediction_layer(store: &dyn WeightStore) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let spec = store.spec();
    let (layer, latent) = (spec.layers, spec.latent().unwrap());
    let moe = spec.ffn.moe.as_ref().unwrap();
    let own = |role| values(store, Role::Layer(layer, role));
    let (hidden, rank, query) = (spec.hidden, latent.q_lora.unwrap(), latent.nope_dim + spec.rope.dim);
    let (lora, nope, v) = (latent.kv_lora, latent.nope_dim, latent.v_dim);
    let key_value = own(LayerRole::KvB);
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for head in key_value.chunks((nope + v) * lora) {
        keys.extend((0..lora).flat_map(|col| (0..nope).map(move |row| head[row * lora + col])));
        values.extend(&head[nope * lora..]);
    }
    let mut tensors = vec![
        ("attn_norm.weight", vec![hidden], own(LayerRole::AttentionNorm)),
        ("attn_q_a.weight", vec![hidden, rank], own(LayerRole::QA)),
        ("attn_q_a_norm.weight", vec![rank], own(LayerRole::QANorm)),
        ("attn_q_b.weight", vec![rank, latent.heads * query], own(LayerRole::QB)),
        ("attn_kv_a_mqa.weight", vec![hidden, lora + spec.rope.dim], own(LayerRole::KvA)),
        ("attn_kv_a_norm.weight", vec![lora], own(LayerRole::KvANorm)),
        ("attn_k_b.weight", vec![nope, lora, latent.heads], keys),
        ("attn_v_b.weight", vec![lora, v, latent.heads], values),
        ("attn_output.weight", vec![latent.heads * v, hidden], own(LayerRole::AttentionOutput)),
        ("ffn_norm.weight", vec![hidden], own(LayerRole::FfnNorm)),
        ("ffn_gate_inp.weight", vec![hidden, moe.experts], own(LayerRole::Router)),
        ("exp_probs_b.bias", vec![moe.experts], own(LayerRole::RouterBias)),
        ("nextn.embed_tokens.weight", vec![hidden, spec.embedding.vocab], own(LayerRole::MtpEmbedding)),
        ("nextn.enorm.weight", vec![hidden], own(LayerRole::MtpEmbeddingNorm)),
        ("nextn.hnorm.weight", vec![hidden], own(LayerRole::MtpHiddenNorm)),
        ("nextn.eh_proj.weight", vec![2 * hidden, hidden], own(LayerRole::MtpProjection)),
        ("nextn.shared_head_norm.weight", vec![hidden], own(LayerRole::MtpHeadNorm)),
        ("nextn.shared_head_head.weight", vec![hidden, spec.embedding.vocab], own(LayerRole::MtpHead)),
    ];
    let width = *moe.width.of(layer);
    for (ffn, name, shared) in [
        (Ffn::Gate, "ffn_gate_exps.weight", "ffn_gate_shexp.weight"),
        (Ffn::Up, "ffn_up_exps.weight", "ffn_up_shexp.weight"),
        (Ffn::Down, "ffn_down_exps.weight", "ffn_down_shexp.weight"),
    ] {
        let shape = |width: usize| if ffn == Ffn::Down { vec![width, hidden] } else { vec![hidden, width] };
        let all = (0..moe.experts).flat_map(|expert| own(LayerRole::Expert(expert, ffn))).collect();
        tensors.push((name, [shape(width), vec![moe.experts]].concat(), all));
        tensors.push((shared, shape(moe.shared_width(layer)), own(LayerRole::Shared(ffn))));
    }
    let named = |(name, shape, values)| (format!("blk.{layer}.{name}"), shape, values);
    tensors.into_iter().map(named).collect()
}

/// The file of an F32 conversion, counting the prediction layer; with its tensors too, if they are given.
fn write(path: &Path, main: &Path, layer: &[(String, Vec<usize>, Vec<f32>)]) {
    let file = std::fs::read(main).unwrap();
    let header = gguf::read(&mut file.as_slice(), file.len() as u64).unwrap();
    let mut metadata = header.metadata.clone();
    let blocks = metadata.get("deepseek2.block_count").and_then(gguf::Value::as_u64).unwrap() as u32;
    metadata.set("deepseek2.block_count", blocks + 1);
    metadata.set("deepseek2.nextn_predict_layers", 1u32);
    let mut specs = Vec::new();
    let mut contents: Vec<Vec<u8>> = Vec::new();
    for tensor in &header.tensors {
        let (name, shape, ggml_type) = (tensor.name.clone(), tensor.shape.clone(), tensor.ggml_type);
        specs.push(TensorSpec { name, shape, ggml_type });
        let from = (header.data_offset_bytes + tensor.offset_bytes) as usize;
        contents.push(file[from..][..tensor.len_bytes as usize].to_vec());
    }
    for (name, shape, values) in layer {
        let shape = shape.iter().map(|&dim| dim as u64).collect();
        specs.push(TensorSpec { name: name.clone(), shape, ggml_type: GgmlType::F32 });
        contents.push(values.iter().flat_map(|value| value.to_le_bytes()).collect());
    }
    maker::gguf(path, metadata, specs, &contents);
}

fn measure(path: &Path) -> Report {
    let model = Opened::open(path).unwrap();
    let windows = heldout(&model, 4);
    let request = Request {
        model: model.store().unwrap(),
        original: None,
        windows: &windows,
        memory_bytes: None,
        scratch: None,
    };
    evaluate::measure(&request, &mut Unobserved).unwrap()
}

#[test]
fn a_file_with_the_prediction_layer_measures_what_the_checkpoint_does() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    convert(&model(), "f32", 2, &at("main.gguf")).unwrap();
    let source = Opened::open(&model()).unwrap();
    let layer = prediction_layer(source.store().unwrap());
    write(&at("whole.gguf"), &at("main.gguf"), &layer);
    let expected = measure(&model());
    assert!(expected.prediction.is_some());
    assert_eq!(measure(&at("whole.gguf")), expected);
    // Counted but not there, as converters can leave it out.
    write(&at("trunk.gguf"), &at("main.gguf"), &[]);
    let trunk = measure(&at("trunk.gguf"));
    assert_eq!((trunk.perplexity, trunk.prediction), (expected.perplexity.clone(), None));

    requantize(&at("whole.gguf"), "q8_0", &at("q8_0.gguf"));
    let quantized = measure(&at("q8_0.gguf"));
    let (exact, found) = (expected.prediction.unwrap(), quantized.prediction.unwrap());
    let ratio = found.perplexity.perplexity / exact.perplexity.perplexity;
    // 8 bits change the perplexity of the model by 0.00014 of itself.
    assert!((ratio - 1.0).abs() < 2e-3, "{ratio}");
}
