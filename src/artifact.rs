//! Looks into what is there: a GGUF file or split set, a safetensors directory or file. Headers only.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use requant_formats::container::{gguf, safetensors};
use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};

mod group;

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
            return open_directory(path);
        }
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("gguf") => open_gguf(path),
            Some("safetensors") => open_safetensors(&[path.to_owned()], None),
            _ => Err(Error::Request(format!(
                "{}: neither a directory nor a .gguf or .safetensors file",
                path.display()
            ))),
        }
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

fn open_gguf(path: &Path) -> Result<Artifact> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let names = gguf::split::siblings(&name).unwrap_or_else(|| vec![name]);
    let mut artifact =
        Artifact { container: "GGUF", metadata: Vec::new(), files: Vec::new(), tensors: Vec::new() };
    let mut headers = Vec::new();
    for name in names {
        let member = path.with_file_name(&name);
        let (file, len_bytes) = open_file(&member)?;
        let header = gguf::read(&mut BufReader::new(file), len_bytes).map_err(Error::format(&member))?;
        artifact.tensors.extend(header.tensors.iter().map(|tensor| TensorSummary {
            name: tensor.name.clone(),
            type_name: tensor.ggml_type.name().to_owned(),
            // GGUF states the innermost dimension first.
            shape: tensor.shape.iter().rev().copied().collect(),
            bytes: tensor.len_bytes,
            file: name.clone(),
            is_weight: true,
        }));
        artifact.files.push((name, len_bytes));
        headers.push(header);
    }
    if headers.len() > 1 {
        gguf::split::check(&headers).map_err(Error::format(path))?;
    }
    if let Some(first) = headers.first() {
        artifact.metadata =
            first.metadata.iter().map(|(key, value)| (key.to_owned(), group::gguf_value(value))).collect();
    }
    Ok(artifact)
}

fn open_directory(path: &Path) -> Result<Artifact> {
    let mut shards = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io(path, "list"))? {
        let file = entry.map_err(Error::io(path, "list"))?.path();
        if file.extension().is_some_and(|extension| extension == "safetensors") {
            shards.push(file);
        }
    }
    shards.sort();
    if shards.is_empty() {
        return Err(Error::Request(format!("{}: no .safetensors file in it", path.display())));
    }
    let config_path = path.join("config.json");
    let config = match std::fs::read(&config_path) {
        Ok(bytes) => Some(serde_json::from_slice::<Value>(&bytes).map_err(|error| {
            Error::checkpoint(config_path.display().to_string(), format!("is not valid JSON: {error}"))
        })?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(Error::io(config_path, "read")(error)),
    };
    open_safetensors(&shards, config)
}

fn open_safetensors(shards: &[PathBuf], config: Option<Value>) -> Result<Artifact> {
    let mut artifact =
        Artifact { container: "safetensors", metadata: Vec::new(), files: Vec::new(), tensors: Vec::new() };
    let mut stored = Vec::new();
    for shard in shards {
        let (file, len_bytes) = open_file(shard)?;
        let name = shard.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let header =
            safetensors::read_header(&mut BufReader::new(file), len_bytes).map_err(Error::format(shard))?;
        stored.extend(header.tensors.into_iter().map(|tensor| (name.clone(), tensor)));
        artifact.files.push((name, len_bytes));
    }
    artifact.tensors = group::logical_tensors(stored, config.as_ref());
    if let Some(Value::Object(config)) = config {
        artifact.metadata = config.into_iter().collect();
    }
    Ok(artifact)
}

fn open_file(path: &Path) -> Result<(File, u64)> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let len_bytes = file.metadata().map_err(Error::io(path, "stat"))?.len();
    Ok((file, len_bytes))
}
