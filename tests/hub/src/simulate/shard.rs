//! Shards: a safetensors header that is kept, and data that is made up when it is read.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

use super::noise::Noise;
use super::tensors::Tensor;
use crate::content::Content;

/// A safetensors file.
pub(crate) struct Shard {
    header: Vec<u8>,
    tensors: Vec<Placed>,
    len: u64,
    noise: Arc<Noise>,
}

/// A tensor and its bytes' place in the file.
pub(crate) struct Placed {
    pub(crate) tensor: Tensor,
    start: u64,
    end: u64,
    seed: u64,
}

impl Shard {
    pub(crate) fn new(tensors: Vec<Tensor>, noise: &Arc<Noise>) -> Shard {
        let mut json = "{\"__metadata__\":{\"format\":\"pt\"}".to_string();
        let mut offset = 0;
        for tensor in &tensors {
            let end = offset + tensor.len_bytes();
            let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
            let (name, dtype, shape) = (&tensor.name, tensor.dtype, shape.join(","));
            let _ = write!(
                json,
                ",\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":[{shape}],\"data_offsets\":[{offset},{end}]}}"
            );
            offset = end;
        }
        json.push('}');
        json.push_str(&" ".repeat(json.len().next_multiple_of(8) - json.len()));
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.extend_from_slice(json.as_bytes());

        let mut start = header.len() as u64;
        let placed = tensors.into_iter().map(|tensor| {
            let end = start + tensor.len_bytes();
            let placed = Placed { start, end, seed: seed_of(&tensor.name), tensor };
            start = end;
            placed
        });
        let tensors: Vec<Placed> = placed.collect();
        Shard {
            len: tensors.last().map_or(header.len() as u64, |last| last.end),
            header,
            tensors,
            noise: Arc::clone(noise),
        }
    }

    pub(crate) fn tensors(&self) -> &[Placed] {
        &self.tensors
    }
}

impl Content for Shard {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "read past the end of a shard"));
        }
        let mut offset = offset;
        if let Some(header) = usize::try_from(offset).ok().and_then(|start| self.header.get(start..)) {
            let (piece, rest) = buffer.split_at_mut(header.len().min(buffer.len()));
            piece.copy_from_slice(&header[..piece.len()]);
            offset += piece.len() as u64;
            buffer = rest;
        }
        let first = self.tensors.partition_point(|placed| placed.end <= offset);
        for placed in &self.tensors[first..] {
            if buffer.is_empty() {
                break;
            }
            let left = usize::try_from(placed.end - offset).unwrap_or(usize::MAX);
            let (piece, rest) = buffer.split_at_mut(left.min(buffer.len()));
            self.noise.fill(placed.tensor.dtype, placed.seed, offset - placed.start, piece);
            offset += piece.len() as u64;
            buffer = rest;
        }
        Ok(())
    }
}

/// Fills shards in order; a shard is full when the next tensor would take it past `shard_bytes`.
pub(crate) fn split(tensors: Vec<Tensor>, shard_bytes: u64) -> Vec<Vec<Tensor>> {
    let (mut shards, mut filled) = (Vec::new(), 0);
    let mut current: Vec<Tensor> = Vec::new();
    for tensor in tensors {
        if !current.is_empty() && filled + tensor.len_bytes() > shard_bytes {
            shards.push(std::mem::take(&mut current));
            filled = 0;
        }
        filled += tensor.len_bytes();
        current.push(tensor);
    }
    if !current.is_empty() {
        shards.push(current);
    }
    shards
}

/// FNV-1a, which is the same in every release of the compiler.
fn seed_of(name: &str) -> u64 {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, mix)
}
