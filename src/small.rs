//! Small files, and how long each may be: config, index, tokenizer, model card, recipe, lists, manifest, journal.
//!
//! Such a file is read whole, so its length must not decide how much memory is taken: somebody else chose it. It is
//! held against the cap of its kind before anything is allocated, and again while bytes arrive, because a file can
//! grow meanwhile. JSON is counted before it is parsed: `[0,0,...]` takes forty times its length as values.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

const MIB: u64 = 1 << 20;
/// Most values in a JSON file. The largest tokenizers have two million.
const MAX_JSON_VALUES: u64 = 8_000_000;
/// Most characters of somebody else's text in a message.
const MAX_SHOWN_CHARS: usize = 200;
/// Deepest nesting of JSON; serde_json's own limit is 128, and real files have less than ten levels.
const MAX_JSON_DEPTH: u32 = 64;

/// A cap and what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cap {
    /// What such a file is, for messages.
    pub what: &'static str,
    /// Most bytes.
    pub max_bytes: u64,
}

/// A text to measure on, or token ids.
pub const TEXT: Cap = Cap { what: "a text", max_bytes: 1024 * MIB };
/// Rules in TOML.
pub const RECIPE: Cap = Cap { what: "a recipe", max_bytes: 16 * MIB };
/// Digests as sha256sum writes them.
pub const SUMS: Cap = Cap { what: "a list of checksums", max_bytes: 64 * MIB };
/// What a result consists of: about 500 bytes a tensor.
pub const MANIFEST: Cap = Cap { what: "a manifest", max_bytes: 1024 * MIB };
/// Which jobs are done: less than 256 bytes each.
pub const JOURNAL: Cap = Cap { what: "a journal", max_bytes: 256 * MIB };
/// What shares of a result agree on: about 500 bytes a tensor and 100 a job.
pub const SHARE_PLAN: Cap = Cap { what: "the plan of shares", max_bytes: 1024 * MIB };
/// What a share says that is done: 200 bytes for each file of the source.
pub const SHARE: Cap = Cap { what: "what a share says", max_bytes: 64 * MIB };
/// A token, a commit, the record of a download.
pub const LINE: Cap = Cap { what: "a file of a few lines", max_bytes: 64 << 10 };

/// Files of a checkpoint by the end of their name; the first that fits counts. Two to ten times as much as the
/// largest that are published have.
const CAPS: &[(&str, Cap)] = &[
    ("tokenizer_config.json", Cap { what: "a tokenizer's configuration", max_bytes: 64 * MIB }),
    ("special_tokens_map.json", Cap { what: "a list of special tokens", max_bytes: 16 * MIB }),
    ("added_tokens.json", Cap { what: "a list of added tokens", max_bytes: 16 * MIB }),
    ("chat_template.jinja", Cap { what: "a chat template", max_bytes: 4 * MIB }),
    ("chat_template.json", Cap { what: "a chat template", max_bytes: 4 * MIB }),
    ("generation_config.json", Cap { what: "a generation configuration", max_bytes: MIB }),
    ("tokenizer.json", Cap { what: "a tokenizer", max_bytes: 128 * MIB }),
    ("tokenizer.model", Cap { what: "a tokenizer", max_bytes: 128 * MIB }),
    ("tiktoken.model", Cap { what: "a tokenizer", max_bytes: 128 * MIB }),
    (".tiktoken", Cap { what: "a tokenizer", max_bytes: 128 * MIB }),
    ("vocab.json", Cap { what: "a vocabulary", max_bytes: 128 * MIB }),
    ("vocab.txt", Cap { what: "a vocabulary", max_bytes: 128 * MIB }),
    ("merges.txt", Cap { what: "a list of merges", max_bytes: 128 * MIB }),
    (".safetensors.index.json", Cap { what: "an index of shards", max_bytes: 128 * MIB }),
    ("config.json", Cap { what: "a model's configuration", max_bytes: 32 * MIB }),
    ("README.md", Cap { what: "a model card", max_bytes: 16 * MIB }),
    (".py", Cap { what: "a program", max_bytes: 16 * MIB }),
];
/// Any other file.
const OTHER: Cap = Cap { what: "a small file", max_bytes: 16 * MIB };

/// The cap of a checkpoint's file called `name`.
pub fn cap_of(name: &str) -> Cap {
    CAPS.iter().find(|(ending, _)| name.ends_with(ending)).map_or(OTHER, |(_, cap)| *cap)
}

impl Cap {
    /// Holds a length against the cap; `place` is for the message.
    ///
    /// # Errors
    /// A length above it.
    pub fn check(self, place: &str, len_bytes: u64) -> Result<()> {
        if len_bytes <= self.max_bytes {
            return Ok(());
        }
        Err(Error::checkpoint(
            place,
            format!("found {len_bytes} bytes, expected at most {} for {}", self.max_bytes, self.what),
        ))
    }

    /// Reads the whole of `reader`, which stands for `place` and ends within the cap.
    ///
    /// # Errors
    /// When it cannot be read, or does not end.
    pub fn read_from(self, place: &Path, reader: impl Read) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        reader.take(self.max_bytes + 1).read_to_end(&mut bytes).map_err(Error::io(place, "read"))?;
        self.check(&place.display().to_string(), bytes.len() as u64)?;
        Ok(bytes)
    }
}

/// Reads the file at `path`, which is at most as long as `cap` says.
///
/// # Errors
/// When it cannot be read, is longer, or is no ordinary file: a directory, a pipe, a device.
pub fn read(path: &Path, cap: Cap) -> Result<Vec<u8>> {
    let file = open(path)?;
    let len_bytes = file.metadata().map_err(Error::io(path, "stat"))?.len();
    cap.check(&path.display().to_string(), len_bytes)?;
    cap.read_from(path, file)
}

/// As [`read`], for what the user has named: a pipe will do as well, as the shell makes one of `<(command)`.
///
/// # Errors
/// As there.
pub fn read_given(path: &Path, cap: Cap) -> Result<Vec<u8>> {
    if path.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo()) {
        return cap.read_from(path, File::open(path).map_err(Error::io(path, "open"))?);
    }
    read(path, cap)
}

/// The text that `bytes`, read from `path`, are.
///
/// # Errors
/// When they are not UTF-8.
pub fn text(path: &Path, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let place = path.display();
        Error::Request(format!("{place}: not UTF-8 text: {}", error.utf8_error()))
    })
}

/// As [`read`], for text.
///
/// # Errors
/// As there, and when it is not UTF-8.
pub fn read_text(path: &Path, cap: Cap) -> Result<String> {
    text(path, read(path, cap)?)
}

/// Opens an ordinary file. Never waits: a pipe without a writer would be waited for otherwise.
///
/// # Errors
/// When it cannot be opened, or is a directory, a pipe, a device.
pub fn open(path: &Path) -> Result<File> {
    // Before it is opened, since to open a device can do something.
    check_ordinary(path, &path.metadata().map_err(Error::io(path, "open"))?)?;
    let mut options = File::options();
    options.read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    let file = options.open(path).map_err(Error::io(path, "open"))?;
    check_ordinary(path, &file.metadata().map_err(Error::io(path, "stat"))?)?;
    Ok(file)
}

fn check_ordinary(path: &Path, metadata: &std::fs::Metadata) -> Result<()> {
    match not_ordinary(metadata) {
        None => Ok(()),
        Some(kind) => {
            Err(Error::Request(format!("{}: is {kind}, expected an ordinary file", path.display())))
        }
    }
}

/// What something is that is not an ordinary file.
pub fn not_ordinary(metadata: &std::fs::Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    if kind.is_file() {
        None
    } else if kind.is_dir() {
        Some("a directory")
    } else if kind.is_fifo() {
        Some("a named pipe")
    } else if kind.is_socket() {
        Some("a socket")
    } else {
        Some("a device")
    }
}

/// The beginning of a text that somebody else chose, in quotes, for a message.
pub fn shown(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => format!("{:?}... ({} bytes)", &text[..end], text.len()),
        None => format!("{text:?}"),
    }
}

/// A text for a message: as it is if it is short, else as [`shown`].
pub fn brief(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_SHOWN_CHARS { text.into() } else { shown(text).into() }
}

/// Holds JSON against the limits of this file before somebody parses it; `place` is for the message.
///
/// # Errors
/// Too many values, too deep nesting.
pub fn check_json(place: &str, bytes: &[u8]) -> Result<()> {
    check_json_up_to(place, bytes, MAX_JSON_VALUES)
}

/// As [`check_json`], with another limit to how many values there are.
///
/// # Errors
/// As there.
pub fn check_json_up_to(place: &str, bytes: &[u8], max_values: u64) -> Result<()> {
    let values = count_json(bytes).map_err(|message| Error::checkpoint(place, message))?;
    if values > max_values {
        let message = format!("has {values} values, expected at most {max_values}");
        return Err(Error::checkpoint(place, message));
    }
    Ok(())
}

/// Parses JSON that somebody else wrote; `place` is for the message.
///
/// # Errors
/// As [`check_json`], and when it is no JSON, or other JSON than `T`.
pub fn json<T: DeserializeOwned>(place: &str, bytes: &[u8]) -> Result<T> {
    check_json(place, bytes)?;
    serde_json::from_slice(bytes)
        .map_err(|error| Error::checkpoint(place, format!("is not valid JSON: {error}")))
}

/// Counts values of JSON without building them, and refuses too many levels.
fn count_json(bytes: &[u8]) -> std::result::Result<u64, String> {
    let (mut values, mut depth) = (0u64, 0u32);
    let (mut in_string, mut escaped) = (false, false);
    for &byte in bytes {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                values += 1;
                depth += 1;
                if depth > MAX_JSON_DEPTH {
                    return Err(format!("is nested more than {MAX_JSON_DEPTH} levels deep"));
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' => values += 1,
            _ => {}
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_a_checkpoint_has_a_cap() {
        for (name, what) in [
            ("config.json", "configuration"),
            ("generation_config.json", "generation"),
            ("tokenizer_config.json", "tokenizer's configuration"),
            ("model.safetensors.index.json", "index"),
            ("qwen.tiktoken", "tokenizer"),
            ("modeling_deepseek.py", "program"),
            ("anything", "small file"),
        ] {
            let cap = cap_of(name);
            assert!(cap.what.contains(what), "{name}: {cap:?}");
            assert!(cap.check(name, cap.max_bytes).is_ok());
            let error = cap.check(name, cap.max_bytes + 1).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(&cap.max_bytes.to_string()), "{error}");
        }
    }

    #[test]
    fn what_does_not_end_is_not_read_to_the_end() {
        let cap = Cap { what: "a test", max_bytes: 1000 };
        let error = cap.read_from(Path::new("zeros"), std::io::repeat(0)).unwrap_err().to_string();
        assert_eq!(error, "zeros: found 1001 bytes, expected at most 1000 for a test");
        assert_eq!(cap.read_from(Path::new("zeros"), &[7; 1000][..]).unwrap(), [7; 1000]);
    }

    #[test]
    fn only_ordinary_files_are_opened() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        for (path, kind) in
            [(directory.path(), "a directory"), (&pipe, "a named pipe"), (Path::new("/dev/zero"), "a device")]
        {
            let error = read(path, LINE).unwrap_err().to_string();
            assert!(error.contains(&path.display().to_string()) && error.contains(kind), "{error}");
        }
    }

    /// As large as the largest that are published, and larger.
    #[test]
    fn what_published_models_have_is_read() {
        let list = |entry: &str, count: usize| {
            (0..count).map(|number| entry.replace('#', &number.to_string())).collect::<Vec<_>>().join(",")
        };
        let expert = "\"model.layers.60.mlp.experts.#.down_proj.weight_scale_inv\":\"model-00001-of-00163.safetensors\"";
        let module = "\"model.layers.#.self_attn.kv_a_proj_with_mqa\"";
        for (name, text) in [
            ("model.safetensors.index.json", format!("{{\"weight_map\":{{{}}}}}", list(expert, 1_000_000))),
            ("config.json", format!("{{\"modules_to_not_convert\":[{}]}}", list(module, 100_000))),
            (
                "tokenizer_config.json",
                format!("{{\"chat_template\":\"{}\"}}", "{%- if x %}[{".repeat(100_000)),
            ),
            ("chat_template.json", format!("{{\"chat_template\":\"{}\"}}", "{{ '[' }}".repeat(100_000))),
            ("tokenizer.json", format!("{{\"merges\":[{}]}}", list("[\"a#\",\"b#\"]", 2_000_000))),
        ] {
            cap_of(name).check(name, text.len() as u64).unwrap();
            check_json(name, text.as_bytes()).unwrap();
        }
    }

    #[test]
    fn a_pipe_that_the_user_has_named_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::from(0o600)).unwrap();
        let cap = Cap { what: "a test", max_bytes: 1000 };
        let through = |bytes: &[u8]| {
            std::thread::scope(|scope| {
                // Fails when the other end has read enough.
                scope.spawn(|| drop(std::fs::write(&pipe, bytes)));
                read_given(&pipe, cap)
            })
        };
        assert_eq!(through(&[7; 1000]).unwrap(), [7; 1000]);
        let error = through(&vec![7; 1 << 20]).unwrap_err().to_string();
        assert!(error.contains("expected at most 1000"), "{error}");
        assert!(read_given(Path::new("/dev/zero"), cap).is_err());
    }

    #[test]
    fn json_is_counted_before_it_is_parsed() {
        let parse = |text: &str| json::<serde_json::Value>("f", text.as_bytes());
        assert!(parse(&format!("{}{}", "[".repeat(64), "]".repeat(64))).is_ok());
        let error = parse(&"[".repeat(100_000)).unwrap_err().to_string();
        assert!(error.contains("f: is nested"), "{error}");
        let error = parse(&format!("[{}0]", "0,".repeat(9_000_000))).unwrap_err().to_string();
        assert!(error.contains("f: has 9000001 values"), "{error}");
        // Not in strings.
        assert!(parse(&format!(r#"{{"\"{}": "\\"}}"#, "[,".repeat(5_000_000))).is_ok());
        assert!(parse("{").unwrap_err().to_string().contains("f: is not valid JSON"));
    }
}
