//! Pools of plausible numbers, one for each type, from which all tensors are cut.

/// Bytes of each pool: a multiple of every element size.
const POOL_BYTES: usize = 4 << 20;
/// Where a tensor may begin in its pool: a multiple of every element size too.
const STEP_BYTES: u64 = 16;

/// The pools.
pub(crate) struct Noise {
    fp8: Vec<u8>,
    bf16: Vec<u8>,
    f32: Vec<u8>,
}

impl Noise {
    pub(crate) fn new() -> Noise {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let fp8 = (0..POOL_BYTES).map(|_| e4m3(random.bell() * 120.0)).collect();
        // The upper half of an f32: about a normal distribution of width 0.02.
        let bf16 = (0..POOL_BYTES / 2)
            .flat_map(|_| ((random.bell() * 0.02).to_bits() >> 16).to_le_bytes()[..2].to_vec())
            .collect();
        let f32 = (0..POOL_BYTES / 4).flat_map(|_| (1e-4 + 9e-4 * random.unit()).to_le_bytes()).collect();
        Noise { fp8, bf16, f32 }
    }

    /// Fills `buffer` with a tensor's bytes from `offset` on; `seed` tells tensors apart.
    pub(crate) fn fill(&self, dtype: &str, seed: u64, offset: u64, mut buffer: &mut [u8]) {
        let pool = match dtype {
            "F8_E4M3" => &self.fp8,
            "BF16" => &self.bf16,
            _ => &self.f32,
        };
        let begin = (seed % (POOL_BYTES as u64 / STEP_BYTES)) * STEP_BYTES;
        let mut at = ((begin + offset) % POOL_BYTES as u64) as usize;
        while !buffer.is_empty() {
            let (piece, rest) = buffer.split_at_mut(buffer.len().min(POOL_BYTES - at));
            piece.copy_from_slice(&pool[at..at + piece.len()]);
            (buffer, at) = (rest, 0);
        }
    }
}

/// The E4M3 code nearest to `value`, which saturates at 448; so never NaN.
fn e4m3(value: f32) -> u8 {
    let sign = if value < 0.0 { 0x80 } else { 0 };
    let magnitude = value.abs().min(448.0);
    // Eight mantissa steps for each power of two, from 2^-6; below that steps of 2^-9.
    let exponent = (magnitude.max(f32::MIN_POSITIVE).log2().floor() as i32).max(-6);
    let steps = (magnitude / 2f32.powi(exponent - 3)).round() as i32;
    let code = ((exponent + 6) * 8 + steps).min(0x7e);
    sign | code as u8
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Between 0 and 1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }

    /// About normal with deviation 1: four uniform numbers added.
    fn bell(&mut self) -> f32 {
        let bits = self.next();
        let sum: u64 = (0..4).map(|part| (bits >> (16 * part)) & 0xffff).sum();
        (sum as f32 / 65_536.0 - 2.0) * 3f32.sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_some_values() {
        for (value, code) in [
            (0.0, 0x00),
            (2f32.powi(-9), 0x01),
            (2f32.powi(-6), 0x08),
            (1.0, 0x38),
            (-1.0, 0xb8),
            (15.9, 0x58),
            (448.0, 0x7e),
            (1e9, 0x7e),
        ] {
            assert_eq!(e4m3(value), code, "{value}");
        }
    }

    #[test]
    fn nothing_is_nan_or_infinite() {
        let noise = Noise::new();
        assert!(noise.fp8.iter().all(|code| code & 0x7f != 0x7f));
        assert!(noise.bf16.chunks_exact(2).all(|pair| pair[1] & 0x7f != 0x7f));
        let scale = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        assert!(noise.f32.chunks_exact(4).all(|bytes| (9e-5..2e-3).contains(&scale(bytes))));
    }
}
