//! Groups of a packed weight that another format holds exactly: multiples of a step stay what they are.

use std::ops::Range;

use requant_formats::codec::{Codec, Grid};

use super::{Catalogue, Encoding, TileReader};

impl TileReader {
    /// Writes groups anew that `rows` of weight `id`, which were just read, have as multiples of a step, where `codec`
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
                let Some(grid) = self.grid(catalogue, id, row, own, &mut codes) else { return };
                for (number, codes) in grid.codes.chunks_exact(group_len).enumerate() {
                    let group = (at * cols + own * own_len) / group_len + number;
                    let mut places: Vec<&mut [u8]> = parts
                        .iter_mut()
                        .zip(codec.parts())
                        .map(|(bytes, part)| {
                            &mut bytes[group * part.bytes_per_group..(group + 1) * part.bytes_per_group]
                        })
                        .collect();
                    codec.encode_grid(Grid { codes, ..grid }, &mut places);
                }
            }
        }
    }
}
