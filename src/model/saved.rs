//! A walk on the disk: the states behind its last layer, so that a run that was stopped goes on from there.
//!
//! ```text
//! FILE    one line of JSON, [`Head`]
//!         `own_bytes` bytes of whoever saves
//!         the states of each stream, row after row, f32, little-endian
//!         u128    fingerprint of everything before it
//! ```
//!
//! It is written under a temporary name, synced and renamed: the walk behind an earlier layer is there, or this one.
//! Everything is read and held against the fingerprint before any of it is used.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::states::{BLOCK_ROWS, States, Storage};
use crate::disk::{Appender, Disk, DiskFile, with_suffix};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;

/// Bytes of the first line, at most.
const MOST_HEAD_BYTES: usize = 1 << 20;
/// Bytes of the fingerprint.
const CHECK_BYTES: u64 = 16;
/// Models that walk side by side, at most.
const MOST_STREAMS: usize = 2;

/// The first line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Head {
    /// What the walk is part of. Only the same request goes on with it.
    request: Value,
    /// Layers that are done.
    layers: usize,
    /// Tokens and columns of each stream.
    rows: usize,
    cols: usize,
    /// Models that walk side by side.
    streams: usize,
    own_bytes: u64,
}

impl Head {
    /// Bytes of all states, if they can be.
    fn states_bytes(&self) -> Option<u64> {
        let values = self.rows.checked_mul(self.cols)?.checked_mul(self.streams)?;
        (values as u64).checked_mul(size_of::<f32>() as u64)
    }
}

/// Where a walk is saved, and what it is part of.
#[derive(Debug, Clone)]
pub struct Saved {
    disk: Disk,
    path: PathBuf,
    request: Value,
}

/// A walk that was saved.
pub struct Stopped {
    /// Layers that are done.
    pub layers: usize,
    /// Of each model.
    pub states: Vec<States>,
    /// What [`Saved::write`] was given with them.
    pub own: Vec<u8>,
}

/// What is at the place of a walk.
pub enum There {
    /// None, or not a whole one: it counts for nothing.
    Nothing,
    /// One of this request.
    Walk(Stopped),
    /// One of another request: what that was.
    Other(Value),
}

impl Saved {
    /// At `path`, part of what `request` says.
    pub fn new(disk: Disk, path: PathBuf, request: Value) -> Self {
        Self { disk, path, request }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the request differs from `other`: the first key that is not the same, and what it was and is.
    pub fn difference(&self, other: &Value) -> String {
        let (Value::Object(now), Value::Object(was)) = (&self.request, other) else {
            return format!("{other}, now {}", self.request);
        };
        let keys = now.keys().chain(was.keys().filter(|key| !now.contains_key(*key)));
        let said = |of: Option<&Value>| of.map_or_else(|| "not given".to_owned(), Value::to_string);
        let mut others = keys.filter(|key| now.get(*key) != was.get(*key));
        others.next().map_or_else(String::new, |key| {
            format!("{key} was {}, now {}", said(was.get(key)), said(now.get(key)))
        })
    }

    /// Replaces what was saved before by `states` behind the first `layers` layers, and `own`. It is on the disk
    /// afterwards.
    ///
    /// # Errors
    /// When it cannot be written; what was saved before is still there then.
    pub fn write(&self, layers: usize, states: &[&States], own: &[u8]) -> Result<()> {
        let (rows, cols) = states.first().map_or((0, 0), |states| (states.rows(), states.cols()));
        let request = self.request.clone();
        let head = Head { request, layers, rows, cols, streams: states.len(), own_bytes: own.len() as u64 };
        let mut line =
            serde_json::to_vec(&head).map_err(|error| Error::io(&self.path, "encode")(error.into()))?;
        line.push(b'\n');
        let temporary = with_suffix(&self.path, ".new");
        self.disk.remove(&temporary)?;
        let mut check = Fingerprint::new();
        let mut file = Appender::new(self.disk.create_new(&temporary)?, 0);
        let mut put = |bytes: &[u8]| {
            check.update(bytes);
            file.append(bytes)
        };
        put(&line)?;
        put(own)?;
        for states in states {
            for rows in states.blocks() {
                let bytes: Vec<u8> =
                    states.read(rows)?.iter().flat_map(|value| value.to_le_bytes()).collect();
                put(&bytes)?;
            }
        }
        let check = check.finish();
        file.append(&check.to_le_bytes())?;
        file.file().sync()?;
        self.disk.rename(&temporary, &self.path)?;
        self.disk.sync_parent(&self.path)
    }

    /// What is there; states are kept in `storage`.
    ///
    /// # Errors
    /// When the system refuses, or a scratch file cannot be made.
    pub fn read(&self, storage: &Storage) -> Result<There> {
        if !self.path.is_file() {
            return Ok(There::Nothing);
        }
        let file = self.disk.open_to_read(&self.path)?;
        let len = self.path.metadata().map_err(Error::io(&self.path, "look at"))?.len();
        let Some((head, start)) = head(&file, len)? else { return Ok(There::Nothing) };
        let wanted = head.states_bytes().and_then(|states| {
            states.checked_add(head.own_bytes)?.checked_add(CHECK_BYTES)?.checked_add(start)
        });
        if wanted != Some(len) || head.streams > MOST_STREAMS {
            return Ok(There::Nothing);
        }
        if head.request != self.request {
            return Ok(There::Other(head.request));
        }
        let mut check = Fingerprint::new();
        let mut at = 0;
        let mut next = |bytes: &mut [u8]| -> Result<()> {
            file.read_exact_at(bytes, at)?;
            at += bytes.len() as u64;
            check.update(bytes);
            Ok(())
        };
        next(&mut vec![0; start as usize])?;
        let mut own = vec![0; head.own_bytes as usize];
        next(&mut own)?;
        let mut all = Vec::with_capacity(head.streams);
        let mut bytes = vec![0; BLOCK_ROWS.min(head.rows) * head.cols * size_of::<f32>()];
        for _ in 0..head.streams {
            let mut states = States::new(storage, head.rows, head.cols)?;
            for rows in states.blocks() {
                let bytes = &mut bytes[..rows.len() * head.cols * size_of::<f32>()];
                next(bytes)?;
                let (values, _) = bytes.as_chunks();
                let values: Vec<f32> = values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
                states.write(rows.start, &values)?;
            }
            all.push(states);
        }
        let mut stated = [0; CHECK_BYTES as usize];
        file.read_exact_at(&mut stated, len - CHECK_BYTES)?;
        if u128::from_le_bytes(stated) != check.finish() {
            return Ok(There::Nothing);
        }
        Ok(There::Walk(Stopped { layers: head.layers, states: all, own }))
    }

    /// Removes it, and what a write that was cut off has left.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn remove(&self) -> Result<()> {
        self.disk.remove(&with_suffix(&self.path, ".new"))?;
        self.disk.remove(&self.path)
    }
}

/// The first line of a file of `len` bytes, and where it ends.
fn head(file: &DiskFile, len: u64) -> Result<Option<(Head, u64)>> {
    let mut bytes = vec![0; MOST_HEAD_BYTES.min(usize::try_from(len).unwrap_or(MOST_HEAD_BYTES))];
    file.read_exact_at(&mut bytes, 0)?;
    let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else { return Ok(None) };
    Ok(serde_json::from_slice(&bytes[..end]).ok().map(|head| (head, end as u64 + 1)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn states(storage: &Storage, rows: usize, factor: f32) -> States {
        let mut states = States::new(storage, rows, 3).unwrap();
        let values: Vec<f32> = (0..rows * 3).map(|at| at as f32 * factor).collect();
        states.write(0, &values).unwrap();
        states
    }

    #[test]
    fn what_was_saved_last_comes_back_wherever_states_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let saved = Saved::new(Disk::default(), directory.path().join("walk"), json!({"text": "a"}));
        assert!(matches!(saved.read(&Storage::Memory).unwrap(), There::Nothing));
        for storage in [Storage::Memory, Storage::Scratch(directory.path().to_owned())] {
            for layers in 1..3 {
                let (a, b) = (states(&storage, 1100, 0.5), states(&storage, 1100, layers as f32));
                saved.write(layers, &[&a, &b], b"own").unwrap();
                let There::Walk(found) = saved.read(&storage).unwrap() else { panic!("nothing") };
                assert_eq!(
                    (found.layers, found.own.as_slice(), found.states.len()),
                    (layers, &b"own"[..], 2)
                );
                for (found, expected) in found.states.iter().zip([&a, &b]) {
                    assert_eq!(*found.read(0..1100).unwrap(), *expected.read(0..1100).unwrap());
                }
            }
        }
        let other = Saved { request: json!({"text": "b"}), ..saved.clone() };
        assert!(
            matches!(other.read(&Storage::Memory).unwrap(), There::Other(was) if was == json!({"text": "a"}))
        );
        assert_eq!(other.difference(&json!({"text": "a"})), r#"text was "a", now "b""#);
        assert_eq!(other.difference(&json!({"text": "b", "tokens": 5})), "tokens was 5, now not given");
        saved.remove().unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_or_torn_walk_counts_for_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let saved = Saved::new(Disk::default(), directory.path().join("walk"), json!(1));
        saved.write(1, &[&states(&Storage::Memory, 2, 1.0)], b"own").unwrap();
        let whole = std::fs::read(saved.path()).unwrap();
        let is_used = |bytes: &[u8]| {
            std::fs::write(saved.path(), bytes).unwrap();
            matches!(saved.read(&Storage::Memory).unwrap(), There::Walk(_))
        };
        assert!(is_used(&whole));
        for len in 0..whole.len() {
            assert!(!is_used(&whole[..len]), "{len}");
            let zeroed = [&whole[..len], &vec![0; whole.len() - len]].concat();
            assert!(!is_used(&zeroed), "{len}");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            assert!(!is_used(&damaged), "{at}");
        }
        // More than any memory.
        let head =
            Head { request: json!(1), layers: 1, rows: usize::MAX, cols: 2, streams: 1, own_bytes: u64::MAX };
        assert!(!is_used(&[serde_json::to_vec(&head).unwrap(), b"\n".to_vec(), vec![0; 64]].concat()));
    }
}
