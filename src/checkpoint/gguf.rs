//! A GGUF file or split set of any architecture as a catalogue: every tensor packed in blocks of its own type.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use requant_formats::Dtype;
use requant_formats::container::gguf::{self, GgmlType, Gguf, Metadata, TensorInfo, split};
use requant_formats::layout::ROW_MAJOR;

use super::{Catalogue, Encoding, Packed, SourceTensor};
use crate::error::{Error, Result};
use crate::source::{LocalDirectory, Source, SourceReader};

/// A GGUF model whose headers have been read and checked.
pub struct GgufModel {
    catalogue: Catalogue,
    metadata: Metadata,
    types: Vec<GgmlType>,
    path: PathBuf,
}

impl GgufModel {
    /// Opens the file at `path`, and the other files of its set when its name is that of a split.
    ///
    /// # Errors
    /// When a file is missing, damaged or cut off, does not belong to the set, or has a tensor of a type
    /// without a decoder.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let names = split::siblings(&name).unwrap_or_else(|| vec![name]);
        let source = LocalDirectory::open_files(directory, &names)?;
        let mut headers = Vec::with_capacity(names.len());
        let (mut tensors, mut types) = (Vec::new(), Vec::new());
        for name in &names {
            let Some(file) = source.find(name) else {
                if names.len() == 1 {
                    return Err(Error::io(path, "open")(std::io::ErrorKind::NotFound.into()));
                }
                let message =
                    format!("not found beside {}; the split set has {} files", path.display(), names.len());
                return Err(Error::checkpoint(name, message));
            };
            let header = read_header(&source, file, &directory.join(name))?;
            for tensor in &header.tensors {
                tensors.push(source_tensor(&header, tensor, file, name)?);
                types.push(tensor.ggml_type);
            }
            headers.push(header);
        }
        check_set(&headers, path)?;
        let metadata = headers.swap_remove(0).metadata;
        let catalogue = Catalogue { source: Arc::new(source), tensors };
        Ok(Self { catalogue, metadata, types, path: path.to_owned() })
    }

    /// Its tensors, in the order of files and offsets.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Metadata of its first file.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Types of [`Catalogue::tensors`].
    pub fn types(&self) -> &[GgmlType] {
        &self.types
    }

    /// The file that was asked for.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn read_header(source: &dyn Source, file: usize, path: &Path) -> Result<Gguf> {
    let mut reader = SourceReader::new(source, file);
    gguf::read(&mut reader, source.files()[file].len_bytes)
        .map_err(|error| reader.take_error().unwrap_or_else(|| Error::format(path)(error)))
}

/// The headers are one complete set.
fn check_set(headers: &[Gguf], path: &Path) -> Result<()> {
    if headers.len() > 1 {
        return split::check(headers).map_err(Error::format(path));
    }
    let count = headers.first().and_then(|header| header.metadata.get(split::COUNT_KEY)?.as_u64());
    match count {
        Some(count) if count > 1 => {
            let message = format!(
                "it is one of {count} files of a split set, but is not called NAME-00001-of-{count:05}.gguf: give \
                 the files of the set their names back"
            );
            Err(Error::checkpoint(path.display().to_string(), message))
        }
        _ => Ok(()),
    }
}

fn source_tensor(header: &Gguf, tensor: &TensorInfo, file: usize, name: &str) -> Result<SourceTensor> {
    let codec = tensor.ggml_type.codec().ok_or_else(|| Error::Unsupported {
        what: format!("{name}: tensor {}: type {}", tensor.name, tensor.ggml_type),
        hint: "this version has no decoder for it; take a file of another type of the same model".into(),
    })?;
    Ok(SourceTensor {
        name: tensor.name.clone(),
        dtype: Dtype::U8,
        // GGUF states the innermost dimension first.
        shape: tensor.shape.iter().rev().map(|&extent| extent as usize).collect(),
        file,
        offset_bytes: header.data_offset_bytes + tensor.offset_bytes,
        len_bytes: tensor.len_bytes,
        role: None,
        encoding: Encoding::Packed(Packed { codec, layout: ROW_MAJOR, own: 0, companions: Vec::new() }),
    })
}
