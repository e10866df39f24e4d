//! Builds the catalogue: reads config, index and headers, and holds them against each other.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use rayon::prelude::*;
use requant_formats::Dtype;
use requant_formats::container::safetensors;
use serde_json::Value;

use super::quantization::{self, Quantization};
use super::{BlockScale, Catalogue, Checkpoint, Encoding, ScaleFormat, SourceTensor, packed, stacks};
use crate::error::{Error, Result};
use crate::family::{self, Config, Expected, Family, MLX_MARKS, Spec};
use crate::small;
use crate::source::{self, Source};

const CONFIG: &str = "config.json";
const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// Headers read at once.
const HEADER_READS: usize = 16;
/// What the scale of `X.weight` is called: DeepSeek's name, and that of others.
const SCALE_SUFFIXES: [&str; 2] = ["_scale_inv", "_scale"];
/// Endings of tensors that no weight is made of: scales of activations and of the key-value cache, position
/// tables.
const UNUSED_SUFFIXES: [&str; 6] =
    [".input_scale", ".input_global_scale", ".output_scale", ".k_scale", ".v_scale", ".rotary_emb.inv_freq"];

/// Config, index and headers of a model in safetensors, before its tensors are held against them.
pub(crate) struct Headers {
    pub(crate) source: Arc<dyn Source>,
    pub(crate) config: Value,
    pub(crate) family: &'static Family,
    pub(crate) spec: Spec,
    pub(crate) tensors: Vec<SourceTensor>,
    quantization: Option<Quantization>,
}

impl Headers {
    /// Reads them. What config.json says is checked before the headers are read.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the model is of an unknown family or quantized in an unknown way.
    pub(crate) fn read(source: Arc<dyn Source>) -> Result<Self> {
        let config = required_json(&*source, CONFIG)?;
        let family = family::find(&config)?;
        let text = family.text(&config);
        let spec = family.spec(&Config::new(&text))?;
        spec.check_size(CONFIG)?;
        let quantization = match &config {
            config if says_mlx(config) => None,
            // It may be said of all of the model, or of the text model alone.
            config if config.get("quantization_config").is_some() => quantization::parse(config)?,
            _ => quantization::parse(&text)?,
        };
        drop(text);
        let tensors = read_headers(&*source)?;
        let family = family.named(|name| tensors.iter().any(|tensor| tensor.name == name));
        Ok(Self { source, config, family, spec, tensors, quantization })
    }

    /// Whether this is an MLX model: its config says how it is quantized, or its tensors have MLX's names.
    pub(crate) fn is_mlx(&self) -> bool {
        let has_mark = |name: &str| MLX_MARKS.iter().any(|mark| name.contains(mark));
        says_mlx(&self.config) || self.tensors.iter().any(|tensor| has_mark(&tensor.name))
    }
}

/// Whether config.json has MLX's section about quantization.
fn says_mlx(config: &Value) -> bool {
    config.get("quantization").is_some()
}

/// See [`Checkpoint::open`].
pub(super) fn checkpoint(headers: Headers) -> Result<Checkpoint> {
    let Headers { source, config, family, spec, tensors, quantization } = headers;
    let mut tensors = stacks::split(&*source, tensors, family.stacks())?;
    let expected = family.expected(&spec);
    let joined = match &quantization {
        Some(quantization) => packed::join(&*source, &mut tensors, &expected, quantization)?,
        None => HashSet::new(),
    };
    assign_roles(&*source, family, &mut tensors, &expected, &joined)?;
    check_complete(&*source, &tensors, &expected)?;
    attach_scales(&*source, &mut tensors, quantization.as_ref())?;

    let by_role =
        tensors.iter().enumerate().filter_map(|(id, tensor)| tensor.role.map(|role| (role, id))).collect();
    Ok(Checkpoint { catalogue: Catalogue { source, tensors }, config, family, spec, by_role })
}

/// Parses a JSON file that must be there.
fn required_json(source: &dyn Source, name: &str) -> Result<Value> {
    let Some(bytes) = source.read_small(name)? else {
        let message = format!("not found in {}: {}", source.location(), source::what_it_is(source));
        return Err(Error::checkpoint(name, message));
    };
    small::json(name, &bytes)
}

/// The tensors of every shard, in the order of files and offsets, checked against the index.
fn read_headers(source: &dyn Source) -> Result<Vec<SourceTensor>> {
    let index = source.read_small(INDEX)?.map(|bytes| read_index(source, &bytes)).transpose()?;
    let shards = match &index {
        Some(index) => index.shards.clone(),
        None => vec![single_shard(source)?],
    };
    // More threads than cores: a source far away answers late, not slowly.
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(HEADER_READS.min(shards.len().max(1)))
        .build()
        .map_err(|error| Error::Request(format!("cannot start threads: {error}")))?;
    let headers: Vec<safetensors::Header> =
        pool.install(|| shards.par_iter().map(|&shard| read_header(source, shard)).collect::<Result<_>>())?;

    let mut tensors = Vec::new();
    let mut seen: HashMap<String, usize> = HashMap::new();
    for (&file, header) in shards.iter().zip(headers) {
        for entry in header.tensors {
            let shard_name = &source.files()[file].name;
            if let Some(&other) = seen.get(&entry.name) {
                let other = &source.files()[other].name;
                let message = format!("tensor {} is also in {other}; keep one of them", entry.name);
                return Err(Error::checkpoint(shard_name, message));
            }
            seen.insert(entry.name.clone(), file);
            tensors.push(SourceTensor {
                offset_bytes: header.data_offset_bytes + entry.begin_bytes,
                len_bytes: entry.len_bytes(),
                name: entry.name,
                dtype: entry.dtype,
                shape: entry.shape,
                file,
                role: None,
                encoding: Encoding::Plain,
            });
        }
    }
    if let Some(index) = index {
        index.check(source, &seen)?;
    }
    Ok(tensors)
}

fn read_header(source: &dyn Source, shard: usize) -> Result<safetensors::Header> {
    let file = &source.files()[shard];
    let header =
        source::read_header(source, shard, |reader| safetensors::read_header(reader, file.len_bytes))?;
    header.map_err(|error| Error::checkpoint(&file.name, error.to_string()))
}

/// The one shard of a checkpoint without an index.
fn single_shard(source: &dyn Source) -> Result<usize> {
    if let Some(id) = source.find(SINGLE) {
        return Ok(id);
    }
    let shards: Vec<usize> =
        (0..source.files().len()).filter(|&id| source.files()[id].name.ends_with(".safetensors")).collect();
    match shards.as_slice() {
        &[only] => Ok(only),
        [] => {
            let (place, what) = (source.location(), source::what_it_is(source));
            Err(Error::checkpoint(INDEX, format!("neither it nor {SINGLE} is in {place}: {what}")))
        }
        many => {
            let message =
                format!("not found in {}, but {} shards are: get it too", source.location(), many.len());
            Err(Error::checkpoint(INDEX, message))
        }
    }
}

/// `model.safetensors.index.json`.
struct Index {
    /// File ids of the shards, ascending.
    shards: Vec<usize>,
    /// Tensor name to file id.
    weight_map: BTreeMap<String, usize>,
}

impl Index {
    fn check(&self, source: &dyn Source, seen: &HashMap<String, usize>) -> Result<()> {
        let shard_name = |file: usize| &source.files()[file].name;
        for (name, &file) in &self.weight_map {
            match seen.get(name) {
                Some(&found) if found == file => {}
                Some(&found) => {
                    let message = format!(
                        "tensor {name}: the index says {}, found in {}",
                        shard_name(file),
                        shard_name(found)
                    );
                    return Err(Error::checkpoint(INDEX, message));
                }
                None => {
                    let message = format!("tensor {name} is not in this shard though {INDEX} says so");
                    return Err(Error::checkpoint(shard_name(file), message));
                }
            }
        }
        let extra = seen.iter().filter(|(name, _)| !self.weight_map.contains_key(*name)).min();
        if let Some((name, &file)) = extra {
            let message = format!("tensor {name} is in this shard but not in {INDEX}");
            return Err(Error::checkpoint(shard_name(file), message));
        }
        Ok(())
    }
}

fn read_index(source: &dyn Source, bytes: &[u8]) -> Result<Index> {
    let value: Value = small::json(INDEX, bytes)?;
    let Some(map) = value.get("weight_map").and_then(Value::as_object) else {
        return Err(Error::checkpoint(INDEX, "key weight_map is missing or not an object"));
    };
    let mut weight_map = BTreeMap::new();
    for (name, shard) in map {
        let Some(shard) = shard.as_str() else {
            return Err(Error::checkpoint(
                INDEX,
                format!("tensor {name}: found {shard}, expected a file name"),
            ));
        };
        let Some(file) = source.find(shard) else {
            let message = format!("tensor {name}: shard {shard} is not in {}", source.location());
            return Err(Error::checkpoint(INDEX, message));
        };
        weight_map.insert(name.clone(), file);
    }
    let mut shards: Vec<usize> = weight_map.values().copied().collect();
    shards.sort_unstable();
    shards.dedup();
    Ok(Index { shards, weight_map })
}

/// Gives every tensor its role; a tensor nobody knows is an error.
/// `joined` are parts of packed weights.
fn assign_roles(
    source: &dyn Source,
    family: &Family,
    tensors: &mut [SourceTensor],
    expected: &[Expected],
    joined: &HashSet<usize>,
) -> Result<()> {
    let by_name: HashMap<&str, &Expected> = expected.iter().map(|e| (e.name.as_str(), e)).collect();
    for (id, tensor) in tensors.iter_mut().enumerate() {
        let file = &source.files()[tensor.file].name;
        if let Some(expected) = by_name.get(tensor.name.as_str()) {
            if tensor.shape != expected.shape {
                let message = format!(
                    "tensor {}: found shape {:?}, config.json implies {:?}",
                    tensor.name, tensor.shape, expected.shape
                );
                return Err(Error::checkpoint(file, message));
            }
            match (tensor.dtype, &tensor.encoding) {
                (_, Encoding::Packed(_)) => {}
                (Dtype::F8_E4M3 | Dtype::F8_E5M2 | Dtype::BF16 | Dtype::F16 | Dtype::F32, _) => {}
                (other, _) => {
                    let message = format!(
                        "tensor {}: found dtype {other}, expected F8_E4M3, F8_E5M2, BF16, F16 or F32",
                        tensor.name
                    );
                    return Err(Error::checkpoint(file, message));
                }
            }
            tensor.role = Some(expected.role);
        } else {
            let is_scale = scaled_name(&tensor.name).is_some_and(|weight| by_name.contains_key(weight));
            let is_unused = UNUSED_SUFFIXES.iter().any(|suffix| tensor.name.ends_with(suffix));
            let is_aside = family.aside(&tensor.name).is_some();
            if !is_scale && !is_unused && !is_aside && !joined.contains(&id) {
                let message = format!(
                    "tensor {} {:?} is unknown to this model family; it would be lost without a word",
                    tensor.name, tensor.shape
                );
                return Err(Error::checkpoint(file, message));
            }
        }
    }
    Ok(())
}

/// Every required tensor must be there.
fn check_complete(source: &dyn Source, tensors: &[SourceTensor], expected: &[Expected]) -> Result<()> {
    let present: HashMap<&str, ()> = tensors.iter().map(|tensor| (tensor.name.as_str(), ())).collect();
    let mut missing = expected.iter().filter(|e| e.required && !present.contains_key(e.name.as_str()));
    let Some(first) = missing.next() else { return Ok(()) };
    let others = missing.count();
    let more = if others == 0 { String::new() } else { format!(" (and {others} more)") };
    let place = if source.find(INDEX).is_some() { INDEX } else { SINGLE };
    let message = format!("tensor {} {:?} is missing{more}; config.json implies it", first.name, first.shape);
    Err(Error::checkpoint(place, message))
}

/// The weight that a tensor of this name would be the scale of.
fn scaled_name(name: &str) -> Option<&str> {
    SCALE_SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix))
}

/// Joins every FP8 weight with its scale.
fn attach_scales(
    source: &dyn Source,
    tensors: &mut [SourceTensor],
    quantization: Option<&Quantization>,
) -> Result<()> {
    let scales: HashMap<String, usize> = tensors
        .iter()
        .enumerate()
        .filter_map(|(id, tensor)| Some((scaled_name(&tensor.name)?.to_owned(), id)))
        .collect();
    for id in 0..tensors.len() {
        let tensor = &tensors[id];
        if tensor.role.is_none() || matches!(tensor.encoding, Encoding::Packed(_)) {
            continue;
        }
        let file = &source.files()[tensor.file].name;
        let is_fp8 = matches!(tensor.dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2);
        let scale = scales.get(&tensor.name).copied();
        match (is_fp8, scale, quantization) {
            (false, None, _) => {}
            (false, Some(scale), _) => {
                let message = format!(
                    "tensor {} is {} but has a scale, {}: which of the two is wrong?",
                    tensor.name, tensor.dtype, tensors[scale].name
                );
                return Err(Error::checkpoint(file, message));
            }
            (true, None, _) => {
                let message = format!(
                    "tensor {} is {} but its scale {}{} is missing from the checkpoint",
                    tensor.name, tensor.dtype, tensor.name, SCALE_SUFFIXES[0]
                );
                return Err(Error::checkpoint(file, message));
            }
            (true, Some(_), None) => {
                let message = format!(
                    "quantization_config is missing, but tensor {} in {file} is {}",
                    tensor.name, tensor.dtype
                );
                return Err(Error::checkpoint(CONFIG, message));
            }
            (true, Some(scale), Some(quantization)) => {
                let scale = block_scale(source, tensor, scale, &tensors[scale], quantization)?;
                tensors[id].encoding = Encoding::Scaled(scale);
            }
        }
    }
    Ok(())
}

/// Checks the scale tensor of one FP8 weight: a scale per block where the config has blocks, else per
/// row or for the whole tensor.
fn block_scale(
    source: &dyn Source,
    weight: &SourceTensor,
    scale_id: usize,
    scale: &SourceTensor,
    quantization: &Quantization,
) -> Result<BlockScale> {
    let file = &source.files()[scale.file].name;
    let (rows, cols) = weight.matrix();
    let [block_rows, block_cols] = match (quantization.block, scale.shape.as_slice()) {
        (Some([block_rows, block_cols]), found) => {
            let shape = [rows.div_ceil(block_rows), cols.div_ceil(block_cols)];
            if *found != shape {
                let message = format!(
                    "tensor {}: found shape {found:?}, expected {shape:?} for a {rows} x {cols} weight in blocks of {block_rows} x {block_cols}",
                    scale.name
                );
                return Err(Error::checkpoint(file, message));
            }
            [block_rows, block_cols]
        }
        (None, [] | [1] | [1, 1]) => [rows, cols],
        (None, &[scales] | &[scales, 1]) if scales == rows => [1, cols],
        (None, found) => {
            let message = format!(
                "tensor {}: found shape {found:?}, expected [1] or [{rows}, 1] for a {rows} x {cols} weight, \
                 since quantization_config has no weight_block_size",
                scale.name
            );
            return Err(Error::checkpoint(file, message));
        }
    };
    let format = match scale.dtype {
        Dtype::F32 | Dtype::BF16 | Dtype::F16 => ScaleFormat::Float,
        Dtype::F8_E8M0 => ScaleFormat::E8m0,
        Dtype::U8 if quantization.scales_are_e8m0 => ScaleFormat::E8m0,
        other => {
            let message =
                format!("tensor {}: found dtype {other}, expected F32, BF16, F16 or F8_E8M0", scale.name);
            return Err(Error::checkpoint(file, message));
        }
    };
    Ok(BlockScale { tensor: scale_id, block_rows, block_cols, format, rounds: quantization.rounds })
}
