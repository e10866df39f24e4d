//! A file as Xet storage keeps it: cut into chunks, packed into xorbs.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use xet_core_structures::merklehash::{compute_data_hash, file_hash, xorb_hash};
use xet_core_structures::xorb_object::{CompressionScheme, serialize_chunk};

use crate::content::{Bytes, Content};

/// Longest chunk a client accepts.
const MAX_CHUNK_BYTES: usize = 128 << 10;

/// How files are cut. The real storage looks at the content for its borders; here lengths only vary around a mean.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// Mean length of a chunk, at most 96 KiB.
    pub chunk_bytes: usize,
    /// Chunks of a xorb.
    pub xorb_chunks: usize,
}

impl Cut {
    /// As on the real one: xorbs of 64 MiB.
    pub const REAL: Cut = Cut { chunk_bytes: 64 << 10, xorb_chunks: 1024 };
    /// Small pieces, so that small files have several xorbs.
    pub const SMALL: Cut = Cut { chunk_bytes: 16 << 10, xorb_chunks: 64 };

    /// Length of chunk number `index` of a file.
    fn chunk_len(self, index: usize) -> usize {
        let quarter = self.chunk_bytes / 4;
        (self.chunk_bytes - quarter + index % 3 * quarter).clamp(1, MAX_CHUNK_BYTES)
    }
}

/// A file in Xet storage.
pub(crate) struct Stored {
    /// The hash of the file.
    pub(crate) hash: String,
    pub(crate) len_bytes: u64,
    pub(crate) xorbs: Vec<Xorb>,
}

/// Consecutive chunks, packed.
pub(crate) struct Xorb {
    pub(crate) hash: String,
    pub(crate) chunks: Vec<Chunk>,
    /// The packed chunks one after the other, without the table of contents that clients do not ask for.
    pub(crate) packed: Arc<dyn Content>,
}

/// Where a chunk is.
pub(crate) struct Chunk {
    /// Bytes of the file.
    pub(crate) file: Range<u64>,
    /// Bytes of the packed xorb, with the chunk's header.
    pub(crate) packed: Range<u64>,
}

impl Stored {
    /// Cuts and packs `content`, which is then in memory, packed.
    pub(crate) fn new(content: &dyn Content, cut: Cut) -> io::Result<Stored> {
        let len_bytes = content.len();
        let (mut xorbs, mut all_hashes) = (Vec::new(), Vec::new());
        let (mut start, mut index) = (0, 0);
        while start < len_bytes {
            let (mut packed, mut chunks, mut hashes) = (Vec::new(), Vec::new(), Vec::new());
            while start < len_bytes && chunks.len() < cut.xorb_chunks.max(1) {
                let len = (cut.chunk_len(index) as u64).min(len_bytes - start);
                let mut bytes = vec![0; len as usize];
                content.read_at(start, &mut bytes)?;
                let packed_start = packed.len() as u64;
                serialize_chunk(&bytes, &mut packed, CompressionScheme::Auto).map_err(io::Error::other)?;
                hashes.push((compute_data_hash(&bytes), len));
                chunks.push(Chunk { file: start..start + len, packed: packed_start..packed.len() as u64 });
                start += len;
                index += 1;
            }
            packed.shrink_to_fit();
            xorbs.push(Xorb { hash: xorb_hash(&hashes).hex(), chunks, packed: Arc::new(Bytes(packed)) });
            all_hashes.extend(hashes);
        }
        Ok(Stored { hash: file_hash(&all_hashes).hex(), len_bytes, xorbs })
    }

    /// The chunks that hold `range` of the file, xorb by xorb.
    pub(crate) fn pieces(&self, range: &Range<u64>) -> impl Iterator<Item = Piece<'_>> {
        let range = range.clone();
        self.xorbs.iter().filter_map(move |xorb| {
            let start = xorb.chunks.partition_point(|chunk| chunk.file.end <= range.start);
            let end = xorb.chunks.partition_point(|chunk| chunk.file.start < range.end);
            (start < end).then_some(Piece { xorb, chunks: start..end })
        })
    }
}

/// Consecutive chunks of a xorb.
pub(crate) struct Piece<'a> {
    pub(crate) xorb: &'a Xorb,
    pub(crate) chunks: Range<usize>,
}

impl Piece<'_> {
    /// Bytes of the file.
    pub(crate) fn file(&self) -> Range<u64> {
        let chunks = &self.xorb.chunks[self.chunks.clone()];
        chunks[0].file.start..chunks[chunks.len() - 1].file.end
    }

    /// Bytes of the packed xorb.
    pub(crate) fn packed(&self) -> Range<u64> {
        let chunks = &self.xorb.chunks[self.chunks.clone()];
        chunks[0].packed.start..chunks[chunks.len() - 1].packed.end
    }
}

#[cfg(test)]
mod tests {
    use xet_core_structures::xorb_object::deserialize_chunks;

    use super::*;

    #[test]
    fn packed_chunks_are_the_file_again() {
        // Half of it packs well.
        let bytes: Vec<u8> =
            (0..300_000_u32).map(|i| if i % 2 == 0 { 7 } else { (i.wrapping_mul(i) >> 7) as u8 }).collect();
        let cut = Cut { chunk_bytes: 4096, xorb_chunks: 10 };
        let stored = Stored::new(&Bytes(bytes.clone()), cut).unwrap();
        assert!(stored.xorbs.len() > 5 && stored.hash.len() == 64);
        for range in [0..300_000, 5..6, 40_000..140_001, 299_999..300_000] {
            let mut found = Vec::new();
            let pieces: Vec<Piece> = stored.pieces(&range).collect();
            for piece in &pieces {
                let packed = piece.packed();
                let mut part = vec![0; (packed.end - packed.start) as usize];
                piece.xorb.packed.read_at(packed.start, &mut part).unwrap();
                found.extend(deserialize_chunks(&mut part.as_slice()).unwrap().0);
            }
            let start = pieces[0].file().start;
            assert!(start <= range.start && pieces[pieces.len() - 1].file().end >= range.end);
            let skip = (range.start - start) as usize;
            let len = (range.end - range.start) as usize;
            assert!(found[skip..skip + len] == bytes[range.start as usize..range.end as usize], "{range:?}");
        }
    }
}
