//! The order of tensors in files that MLX writes on Linux: that of a libstdc++ hash map.
//!
//! MLX collects the tensors in a `std::unordered_map<std::string, array>` and writes them
//! as it iterates. With libstdc++ that order is a pure function of the names and of the
//! order of insertion, so it can be replayed:
//!
//! - all elements form one singly linked list; a bucket is a stretch of it and remembers
//!   the node *before* its first one;
//! - a new element goes to the front of its bucket's stretch, or, when the bucket is empty,
//!   to the front of the whole list;
//! - when elements outnumber buckets, the bucket count grows (to the library's next prime
//!   at or above twice the count) and the list is rebuilt by the same two rules, walking
//!   the old list from front to back.
//!
//! The hash is 64-bit MurmurHash2 as libstdc++ has it (`std::_Hash_bytes`, seed
//! `0xc70f6907`). Apple's MLX uses another library and so another order; files of both
//! read the same. Source: the documented behaviour of libstdc++'s `hashtable.h`, measured with GCC 12 and
//! with files of mlx 0.32.4.

const SEED: u64 = 0xc70f_6907;
const MULTIPLIER: u64 = 0xc6a4_a793_5bd1_e995;

/// Bucket counts that a growing map passes through; the first element makes it 13.
const BUCKET_COUNTS: &[u64] = &[
    1, 13, 29, 59, 127, 257, 541, 1109, 2357, 5087, 10273, 20753, 42043, 85229, 172_933, 351_061, 712_697,
    1_447_153, 2_938_679, 5_967_347,
];

/// Where the list begins: not an element.
const BEFORE_BEGIN: usize = usize::MAX;
/// End of the list, or an empty bucket.
const NONE: usize = usize::MAX - 1;

/// Positions of `names` in the order in which MLX writes them, when inserted as given.
///
/// Names must be distinct. `names[order[0]]` is the first tensor of the file.
pub fn file_order<'a>(names: impl IntoIterator<Item = &'a [u8]>) -> Vec<usize> {
    let mut map = HashMapOrder::new();
    for name in names {
        map.insert(hash(name));
    }
    map.iter().collect()
}

/// The links of the hash map, without its elements.
struct HashMapOrder {
    hashes: Vec<u64>,
    next: Vec<usize>,
    first: usize,
    /// Per bucket, the node before its first one.
    before: Vec<usize>,
    /// Position in [`BUCKET_COUNTS`].
    growth: usize,
}

impl HashMapOrder {
    fn new() -> Self {
        Self { hashes: Vec::new(), next: Vec::new(), first: NONE, before: vec![NONE], growth: 0 }
    }

    fn insert(&mut self, hash: u64) {
        // A fresh map has one bucket but grows at once, to hold eleven or more.
        if self.growth == 0 || self.hashes.len() >= self.before.len() {
            self.grow();
        }
        let node = self.hashes.len();
        self.hashes.push(hash);
        self.next.push(NONE);
        self.link(node);
    }

    fn grow(&mut self) {
        // Past the table (5.9 million names) the count stays: slower, never wrong to read.
        self.growth = (self.growth + 1).min(BUCKET_COUNTS.len() - 1);
        let nodes: Vec<_> = self.iter().collect();
        self.before = vec![NONE; BUCKET_COUNTS[self.growth] as usize];
        self.first = NONE;
        for node in nodes {
            self.link(node);
        }
    }

    fn link(&mut self, node: usize) {
        let bucket = self.bucket(node);
        match self.before[bucket] {
            NONE => {
                self.next[node] = self.first;
                if self.first != NONE {
                    let displaced = self.bucket(self.first);
                    self.before[displaced] = node;
                }
                self.first = node;
                self.before[bucket] = BEFORE_BEGIN;
            }
            BEFORE_BEGIN => {
                self.next[node] = self.first;
                self.first = node;
            }
            previous => {
                self.next[node] = self.next[previous];
                self.next[previous] = node;
            }
        }
    }

    fn bucket(&self, node: usize) -> usize {
        (self.hashes[node] % self.before.len() as u64) as usize
    }

    fn iter(&self) -> impl Iterator<Item = usize> {
        std::iter::successors((self.first != NONE).then_some(self.first), |&node| {
            (self.next[node] != NONE).then_some(self.next[node])
        })
    }
}

/// `std::hash<std::string>` of libstdc++ on a 64-bit machine.
fn hash(bytes: &[u8]) -> u64 {
    let mix = |value: u64| value ^ (value >> 47);
    let mut hash = SEED ^ (bytes.len() as u64).wrapping_mul(MULTIPLIER);
    let (words, tail) = bytes.as_chunks::<8>();
    for word in words {
        let data = mix(u64::from_le_bytes(*word).wrapping_mul(MULTIPLIER)).wrapping_mul(MULTIPLIER);
        hash = (hash ^ data).wrapping_mul(MULTIPLIER);
    }
    if !tail.is_empty() {
        let mut word = [0; 8];
        word[..tail.len()].copy_from_slice(tail);
        hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(MULTIPLIER);
    }
    mix(mix(hash).wrapping_mul(MULTIPLIER))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Printed by `std::hash<std::string>` of GCC 12.2.
    #[test]
    fn hash_equals_libstdcxx() {
        assert_eq!(hash(b""), 0x553e_9390_1e46_2a6e);
        assert_eq!(hash(b"a"), 0x454d_dee4_88c1_ed6b);
        assert_eq!(hash(b"abcdefgh"), 0x783d_b3e3_8db8_98bb);
        assert_eq!(hash(b"model.layers.0.mlp.gate.weight"), 0x3d71_57e5_3979_ac94);
    }

    #[test]
    fn order_is_a_permutation_at_every_size() {
        for len in (0..600).chain([1108, 1109, 1110, 5000]) {
            let names: Vec<_> = (0..len).map(|index| format!("tensor.{index}")).collect();
            let mut order = file_order(names.iter().map(|name| name.as_bytes()));
            order.sort_unstable();
            assert_eq!(order, (0..len).collect::<Vec<_>>());
        }
    }
}
