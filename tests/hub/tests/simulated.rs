//! The made-up checkpoint as it is served: its index, headers, sizes and digests agree.

use std::collections::BTreeMap;

use test_hub::simulate::{Dimensions, Options, deepseek_v3, tensors};
use test_hub::{Hub, sha256_hex};

use crate::client::{get, link};

#[test]
fn a_small_slice_is_consistent() {
    let dimensions =
        Dimensions { vocab: 512, shard_bytes: 60_000_000, mtp: true, ..Dimensions::slice(0, 1, 2) };
    let options = Options { tokenizer: None, hashed: true, progress: &|_, _| () };
    let repo = deepseek_v3("o/n", &dimensions, &options).unwrap();
    let main = repo.main().unwrap();
    for file in main.files().iter().filter(|file| file.name().ends_with(".safetensors")) {
        assert_eq!(file.sha256(), Some(sha256_hex(file.content().as_ref()).unwrap().as_str()));
    }
    assert_eq!(deepseek_v3("o/n", &dimensions, &options).unwrap().main().unwrap().sha(), main.sha());

    let hub = Hub::start(vec![repo]).unwrap();
    let small = |name: &str| {
        let reply = get(&format!("{}/o/n/resolve/main/{name}", hub.url()), &[]).unwrap();
        get(&format!("{}{}", hub.url(), reply.header("Location").unwrap()), &[]).unwrap().json()
    };
    assert_eq!(small("config.json")["num_hidden_layers"], 1);
    assert_eq!(small("config.json")["num_nextn_predict_layers"], 1);
    let index = small("model.safetensors.index.json");
    let mut shards: BTreeMap<&str, serde_json::Value> = BTreeMap::new();
    let expected = tensors(&dimensions);
    for tensor in &expected {
        let shard = index["weight_map"][&tensor.name].as_str().unwrap();
        let header = shards.entry(shard).or_insert_with(|| {
            let link = link(&hub, "o/n", shard);
            let len = get(&link, &["Range: bytes=0-7"]).unwrap().body;
            let end = u64::from_le_bytes(len.try_into().unwrap()) + 7;
            get(&link, &[&format!("Range: bytes=8-{end}")]).unwrap().json()
        });
        let entry = &header[&tensor.name];
        assert_eq!(entry["dtype"], tensor.dtype);
        assert_eq!(entry["shape"], serde_json::json!(tensor.shape));
        let offset = |i: usize| entry["data_offsets"][i].as_u64().unwrap();
        assert_eq!(offset(1) - offset(0), tensor.len_bytes());
    }
    assert_eq!(index["weight_map"].as_object().unwrap().len(), expected.len());
    assert!(shards.len() > 3, "{}", shards.len());
}
