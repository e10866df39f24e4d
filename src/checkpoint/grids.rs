//! Groups of a packed weight that another format holds exactly: multiples of a step, and 4-bit floats under a power of two, stay what
//! they are.

use std::ops::Range;

use requant_formats::codec::{Codec, Grid};

use super::{Catalogue, Encoding, TileReader};

impl TileReader {
    /// Writes groups anew that `rows` of weight `id`, which were just read, have in codes of 4 bits, where `codec`
    /// can hold them exactly. `parts` are those rows as `codec` has encoded them; where it cannot, they stay.
    pub fn keep_grids(
        &self,
        catalogue: &Catalogue,
        id: usize,
        rows: Range<usize>,
        codec: &dyn Codec,
        parts: &mut [&mut [u8]],
    ) {
        let tensor = &catalogue.tensors()[id];
        let Encoding::Packed(packed) = &tensor.encoding else { return };
        let (own_len, group_len) = (packed.codec.group_len_elems(), codec.group_len_elems());
        // Single numbers hold no multiples of a step.
        if group_len == 1 || !own_len.is_multiple_of(group_len) {
            return;
        }
        let cols = tensor.matrix().1;
        let mut codes = vec![0; own_len];
        for (at, row) in rows.enumerate() {
            for own in 0..cols / own_len {
                let first = (at * cols + own * own_len) / group_len;
                if let Some(power) = self.powers(catalogue, id, row, own, &mut codes) {
                    for (codes, group) in codes.chunks_exact(group_len).zip(first..) {
                        codec.encode_powers(power, codes, &mut places(codec, parts, group));
                    }
                } else if let Some(grid) = self.grid(catalogue, id, row, own, &mut codes) {
                    for (codes, group) in grid.codes.chunks_exact(group_len).zip(first..) {
                        codec.encode_grid(Grid { codes, ..grid }, &mut places(codec, parts, group));
                    }
                } else {
                    return;
                }
            }
        }
    }
}

/// The bytes of one group in each part.
fn places<'a>(codec: &dyn Codec, parts: &'a mut [&mut [u8]], group: usize) -> Vec<&'a mut [u8]> {
    let of_part = parts.iter_mut().zip(codec.parts());
    let of_part = of_part.map(|(bytes, part)| {
        let len = part.bytes_per_group;
        &mut bytes[group * len..(group + 1) * len]
    });
    of_part.collect()
}
