//! Looks into what is there: a GGUF file or split set, a safetensors directory or file. Headers only.

use std::io::BufReader;
use std::path::Path;

use rayon::prelude::*;
use requant_formats::FormatError;
use requant_formats::container::{gguf, safetensors};
use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::source::{self, LocalDirectory, Source, SourceFile, SourceReader};

mod group;

const CONFIG: &str = "config.json";
/// Headers read at once.
const HEADER_READS: usize = 16;

/// One logical tensor of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorSummary {
    /// Name; for a quantized MLX matrix without the name of the part.
    pub name: String,
    /// Type: `Q4_K`, `F8_E4M3`, `affine4_g64`.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Logical shape, outermost dimension first.
    pub shape: Vec<u64>,
    /// Bytes of all parts together.
    pub bytes: u64,
    /// File that holds it.
    pub file: String,
    /// Whether its elements are weights of the model (scales are not).
    #[serde(skip)]
    pub is_weight: bool,
}

impl TensorSummary {
    /// Number of weights.
    pub fn parameters(&self) -> u64 {
        if self.is_weight { self.shape.iter().product() } else { 0 }
    }
}

/// What an artifact contains.
#[derive(Debug, Clone, PartialEq)]
pub struct Artifact {
    /// `"GGUF"` or `"safetensors"`.
    pub container: &'static str,
    /// Metadata of the container or of config.json, in file order.
    pub metadata: Vec<(String, Value)>,
    /// Files with tensors: name and length.
    pub files: Vec<(String, u64)>,
    /// Logical tensors in file order.
    pub tensors: Vec<TensorSummary>,
}

impl Artifact {
    /// Reads the headers at `path`.
    ///
    /// # Errors
    /// When `path` is neither a GGUF file nor something with safetensors in it, or a header is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(Error::io(path, "open"))?;
        if metadata.is_dir() {
            return Self::from_source(&*source::open_directory(path)?);
        }
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("gguf") => open_gguf(&LocalDirectory::open(parent)?, name),
            Some("safetensors") => {
                let source = LocalDirectory::open(parent)?;
                let file = find(&source, &name)?;
                open_safetensors(&source, &[file], None)
            }
            _ => Err(Error::Request(format!(
                "{}: neither a directory nor a .gguf or .safetensors file",
                path.display()
            ))),
        }
    }

    /// Reads the headers of the safetensors files in `source`, and its config.json.
    ///
    /// # Errors
    /// When there are none, or one is damaged.
    pub fn from_source(source: &dyn Source) -> Result<Self> {
        let is_shard = |&file: &usize| source.files()[file].name.ends_with(".safetensors");
        let shards: Vec<usize> = (0..source.files().len()).filter(is_shard).collect();
        if shards.is_empty() {
            let message =
                format!("{}: no .safetensors file in it: {}", source.location(), source::what_it_is(source));
            return Err(Error::Request(message));
        }
        let config = source.read_small(CONFIG)?.map(|bytes| {
            serde_json::from_slice::<Value>(&bytes).map_err(|error| {
                Error::checkpoint(place(source, CONFIG), format!("is not valid JSON: {error}"))
            })
        });
        open_safetensors(source, &shards, config.transpose()?)
    }

    /// Weights in all tensors.
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().map(TensorSummary::parameters).sum()
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes).sum()
    }
}

fn open_gguf(source: &dyn Source, name: String) -> Result<Artifact> {
    let first = place(source, &name);
    let names = gguf::split::siblings(&name).unwrap_or_else(|| vec![name]);
    let mut artifact =
        Artifact { container: "GGUF", metadata: Vec::new(), files: Vec::new(), tensors: Vec::new() };
    let mut headers = Vec::new();
    for name in names {
        let file = find(source, &name)?;
        let header = read_header(source, file, |reader, len_bytes| gguf::read(reader, len_bytes))?;
        artifact.tensors.extend(header.tensors.iter().map(|tensor| TensorSummary {
            name: tensor.name.clone(),
            type_name: tensor.ggml_type.name().to_owned(),
            // GGUF states the innermost dimension first.
            shape: tensor.shape.iter().rev().copied().collect(),
            bytes: tensor.len_bytes,
            file: name.clone(),
            is_weight: true,
        }));
        artifact.files.push((name, source.files()[file].len_bytes));
        headers.push(header);
    }
    if headers.len() > 1 {
        gguf::split::check(&headers).map_err(Error::format(first))?;
    }
    if let Some(first) = headers.first() {
        artifact.metadata =
            first.metadata.iter().map(|(key, value)| (key.to_owned(), group::gguf_value(value))).collect();
    }
    Ok(artifact)
}

fn open_safetensors(source: &dyn Source, shards: &[usize], config: Option<Value>) -> Result<Artifact> {
    // More threads than cores: a source far away answers late, not slowly.
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(HEADER_READS.min(shards.len().max(1)))
        .build()
        .map_err(|error| Error::Request(format!("cannot start threads: {error}")))?;
    let read = |&shard: &usize| {
        read_header(source, shard, |reader, len_bytes| safetensors::read_header(reader, len_bytes))
    };
    let headers: Vec<_> = pool.install(|| shards.par_iter().map(read).collect::<Result<_>>())?;
    let mut artifact =
        Artifact { container: "safetensors", metadata: Vec::new(), files: Vec::new(), tensors: Vec::new() };
    let mut stored = Vec::new();
    for (&shard, header) in shards.iter().zip(headers) {
        let SourceFile { name, len_bytes, .. } = &source.files()[shard];
        stored.extend(header.tensors.into_iter().map(|tensor| (name.clone(), tensor)));
        artifact.files.push((name.clone(), *len_bytes));
    }
    artifact.tensors = group::logical_tensors(stored, config.as_ref());
    if let Some(Value::Object(config)) = config {
        artifact.metadata = config.into_iter().collect();
    }
    Ok(artifact)
}

/// Reads a header with `parse`; an error names the file.
fn read_header<T>(
    source: &dyn Source,
    file: usize,
    parse: impl Fn(&mut BufReader<&mut SourceReader<'_>>, u64) -> std::result::Result<T, FormatError>,
) -> Result<T> {
    let SourceFile { name, len_bytes, .. } = &source.files()[file];
    let header = source::read_header(source, file, |reader| parse(&mut BufReader::new(reader), *len_bytes))?;
    header.map_err(Error::format(place(source, name)))
}

fn find(source: &dyn Source, name: &str) -> Result<usize> {
    source.find(name).ok_or_else(|| {
        Error::io(place(source, name), "open")(std::io::Error::from(std::io::ErrorKind::NotFound))
    })
}

fn place(source: &dyn Source, name: &str) -> String {
    format!("{}/{name}", source.location())
}
