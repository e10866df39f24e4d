//! DeepSeek-V3 as the hub has it, with bytes made up on demand: real names, shapes, types and shards, no disk.

mod metadata;
mod noise;
mod shard;
mod tensors;

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::content::{Bytes, Content};
use crate::digest::{sha256_of, sha256_of_all};
use crate::repo::{Commit, Repo, RepoFile};

pub use tensors::{Tensor, tensors};

/// How much of the model is made; widths are always the real ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dimensions {
    /// Dense layers, the first ones.
    pub dense_layers: usize,
    /// Layers with experts.
    pub moe_layers: usize,
    /// Routed experts of such a layer.
    pub experts: usize,
    /// With the layer for multi-token prediction, numbered after the others.
    pub mtp: bool,
    /// Rows of the embeddings.
    pub vocab: usize,
    /// Most bytes of tensors in a shard.
    pub shard_bytes: u64,
}

impl Dimensions {
    /// The whole model: 61 layers and the prediction layer, 163 shards, 688.6 GB.
    pub const FULL: Dimensions = Dimensions {
        dense_layers: 3,
        moe_layers: 58,
        experts: 256,
        mtp: true,
        vocab: 129_280,
        shard_bytes: 4_270_000_000,
    };

    /// A slice of the model, without the prediction layer.
    pub const fn slice(dense_layers: usize, moe_layers: usize, experts: usize) -> Dimensions {
        Dimensions { dense_layers, moe_layers, experts, mtp: false, ..Dimensions::FULL }
    }

    /// Layers without the prediction layer.
    pub const fn layers(&self) -> usize {
        self.dense_layers + self.moe_layers
    }
}

/// What `deepseek_v3` is to take from where.
pub struct Options<'a> {
    /// Directory of `tokenizer.json` and its companions; none: no tokenizer files.
    pub tokenizer: Option<&'a Path>,
    /// State the shards' true SHA-256, for which all their bytes are made once; else a made-up one.
    pub hashed: bool,
    /// Hears how many shards of how many are hashed.
    pub progress: &'a (dyn Fn(usize, usize) + Sync),
}

/// A repository with the model.
pub fn deepseek_v3(id: &str, dimensions: &Dimensions, options: &Options<'_>) -> io::Result<Repo> {
    let shards = shards(dimensions);
    let mut files = metadata::files(dimensions, &shards)?;
    if let Some(directory) = options.tokenizer {
        files.extend(metadata::tokenizer_files(directory)?);
    }
    let names: Vec<String> =
        (0..shards.len()).map(|index| metadata::shard_name(index, shards.len())).collect();
    let contents: Vec<Arc<dyn Content>> =
        shards.into_iter().map(|shard| Arc::new(shard) as Arc<dyn Content>).collect();
    let digests = if options.hashed {
        sha256_of_all(&contents, options.progress)?
    } else {
        let stated = |name: &String| sha256_of(format!("not the digest of {name} {dimensions:?}").as_bytes());
        names.iter().map(stated).collect()
    };
    for ((name, content), sha256) in names.iter().zip(contents).zip(digests) {
        files.push(RepoFile::lfs_with_digest(name, content, sha256));
    }
    Ok(Repo::new(id, Commit::new(files)))
}

fn shards(dimensions: &Dimensions) -> Vec<shard::Shard> {
    let noise = Arc::new(noise::Noise::new());
    let groups = shard::split(tensors(dimensions), dimensions.shard_bytes);
    groups.into_iter().map(|group| shard::Shard::new(group, &noise)).collect()
}

fn text_file(name: &str, value: &serde_json::Value) -> io::Result<RepoFile> {
    let text = serde_json::to_string_pretty(value)?;
    RepoFile::new(name, Arc::new(Bytes(text.into_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_full_model_is_as_large_as_the_real_one() {
        let shards = shards(&Dimensions::FULL);
        assert_eq!(shards.len(), 163);
        assert_eq!(shards.iter().map(|shard| shard.tensors().len()).sum::<usize>(), 91_991);
        let gib = shards.iter().map(Content::len).sum::<u64>() as f64 / f64::from(1 << 30);
        assert!((gib - 641.3).abs() < 0.1, "{gib} GiB");
    }

    #[test]
    fn any_part_of_a_shard_equals_that_part_of_the_whole() {
        let dimensions = Dimensions { vocab: 256, ..Dimensions::slice(0, 1, 1) };
        let shard = &shards(&dimensions)[0];
        let end = usize::try_from(shard.len().min(12 << 20)).unwrap();
        let mut whole = vec![0; end];
        shard.read_at(0, &mut whole).unwrap();
        for (start, len) in [(0, 100), (7, 1), (end - 5_000_001, 5_000_001), (300, 4 << 20), (4_000_003, 77)]
        {
            let mut part = vec![0; len];
            shard.read_at(start as u64, &mut part).unwrap();
            assert!(part == whole[start..start + len], "{start} {len}");
        }
    }
}
