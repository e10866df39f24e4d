//! A directory that is one input.
//!
//! ```text
//! ==== config.json
//! {...}
//! ==== model.safetensors
//! {"name": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
//! ```
//!
//! Of a safetensors file there is the header's JSON; its length comes before it, and zeros behind it, as many as the
//! largest number in `data_offsets` says.

use requant::source::{Source, SourceFile};
use requant::{Error, Result};
use serde_json::Value;

const MARK: &str = "==== ";
/// Most zeros behind a header.
const MAX_DATA_BYTES: u64 = 1 << 40;

/// The directory.
pub(crate) struct Files {
    files: Vec<SourceFile>,
    contents: Vec<Vec<u8>>,
}

impl Files {
    pub(crate) fn parse(input: &[u8]) -> Self {
        let text = String::from_utf8_lossy(input);
        let mut entries: Vec<(String, Vec<u8>, u64)> = Vec::new();
        for part in format!("\n{text}").split(&format!("\n{MARK}")).skip(1) {
            let (name, content) = part.split_once('\n').unwrap_or((part, ""));
            let content = content.as_bytes().to_vec();
            entries.push(if name.ends_with(".safetensors") {
                let len_bytes = 8 + content.len() as u64 + data_bytes(&content);
                let prefix = (content.len() as u64).to_le_bytes();
                (name.to_owned(), [&prefix[..], &content].concat(), len_bytes)
            } else {
                let len_bytes = content.len() as u64;
                (name.to_owned(), content, len_bytes)
            });
        }
        entries.sort();
        entries.dedup_by(|a, b| a.0 == b.0);
        let file = |entry: &(String, Vec<u8>, u64)| SourceFile {
            name: entry.0.clone(),
            len_bytes: entry.2,
            sha256: None,
            modified: None,
        };
        Self {
            files: entries.iter().map(file).collect(),
            contents: entries.into_iter().map(|entry| entry.1).collect(),
        }
    }
}

fn data_bytes(header: &[u8]) -> u64 {
    let Ok(Value::Object(tensors)) = serde_json::from_slice(header) else { return 0 };
    let ends = tensors.values().filter_map(|tensor| tensor.get("data_offsets")?.get(1)?.as_u64());
    ends.max().unwrap_or(0).min(MAX_DATA_BYTES)
}

impl Source for Files {
    fn location(&self) -> String {
        "input/Model-7B".to_owned()
    }

    fn files(&self) -> &[SourceFile] {
        &self.files
    }

    fn read_at(&self, file: usize, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset_bytes.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.files[file].len_bytes) {
            return Err(Error::io(self.files[file].name.clone(), "read")(
                std::io::ErrorKind::UnexpectedEof.into(),
            ));
        }
        let content = &self.contents[file];
        let start = usize::try_from(offset_bytes).map_or(content.len(), |start| start.min(content.len()));
        let there = (content.len() - start).min(buf.len());
        buf[..there].copy_from_slice(&content[start..start + there]);
        buf[there..].fill(0);
        Ok(())
    }
}
