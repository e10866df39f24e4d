//! Moving packed codes: transposes, and eight rows' nibbles in one word.

/// Rows in a word.
pub(super) const WORD: usize = 8;
/// Elements of a tile of a transpose along each side: what one cache line holds of words.
const TILE: usize = 16;

/// Transposes a matrix of `N`-byte elements, `[rows, cols]` to `[cols, rows]`, tile by tile.
pub(super) fn transpose<const N: usize>(src: &[u8], rows: usize, cols: usize, dst: &mut [u8]) {
    let (src, dst) = (src.as_chunks::<N>().0, dst.as_chunks_mut::<N>().0);
    assert_eq!((src.len(), dst.len()), (rows * cols, rows * cols), "elements of a transpose");
    for first_row in (0..rows).step_by(TILE) {
        let end_row = rows.min(first_row + TILE);
        for first_col in (0..cols).step_by(TILE) {
            for col in first_col..cols.min(first_col + TILE) {
                let column = &mut dst[col * rows + first_row..col * rows + end_row];
                for (row, element) in column.iter_mut().enumerate() {
                    *element = src[(first_row + row) * cols + col];
                }
            }
        }
    }
}

/// Joins the nibbles of eight rows: `[rows, cols]` bytes below 16 to words `[ceil(rows / 8), cols]`, nibble `i` of a
/// word from row `order[i]` of the eight. Rows that are missing count as zeros.
pub(super) fn join_rows(nibbles: &[u8], cols: usize, order: [usize; WORD]) -> Vec<u8> {
    let mut words = vec![0u8; (nibbles.len() / cols).div_ceil(WORD) * cols * 4];
    for (rows, words) in nibbles.chunks(WORD * cols).zip(words.chunks_exact_mut(cols * 4)) {
        for (nibble, row) in order.into_iter().enumerate() {
            let Some(row) = rows.chunks_exact(cols).nth(row) else { continue };
            for (word, value) in words.as_chunks_mut().0.iter_mut().zip(row) {
                let joined = u32::from_le_bytes(*word) | u32::from(*value & 15) << (4 * nibble);
                *word = joined.to_le_bytes();
            }
        }
    }
    words
}

/// Undoes [`join_rows`].
pub(super) fn split_rows(words: &[u8], cols: usize, order: [usize; WORD], nibbles: &mut [u8]) {
    for (rows, words) in nibbles.chunks_mut(WORD * cols).zip(words.chunks_exact(cols * 4)) {
        for (nibble, row) in order.into_iter().enumerate() {
            let Some(row) = rows.chunks_exact_mut(cols).nth(row) else { continue };
            for (value, word) in row.iter_mut().zip(words.as_chunks().0) {
                *value = (u32::from_le_bytes(*word) >> (4 * nibble) & 15) as u8;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposes_of_ragged_shapes() {
        for (rows, cols) in [(0, 3), (1, 1), (16, 16), (17, 15), (40, 33)] {
            let src: Vec<u8> = (0..rows * cols * 2).map(|i| (i % 251) as u8).collect();
            let (mut there, mut back) = (vec![0; src.len()], vec![0; src.len()]);
            transpose::<2>(&src, rows, cols, &mut there);
            for row in 0..rows {
                for col in 0..cols {
                    let (at, to) = ((row * cols + col) * 2, (col * rows + row) * 2);
                    assert_eq!(src[at..at + 2], there[to..to + 2]);
                }
            }
            transpose::<2>(&there, cols, rows, &mut back);
            assert_eq!(back, src);
        }
    }

    #[test]
    fn eight_rows_make_a_word_and_missing_rows_are_zeros() {
        let nibbles: Vec<u8> = (0..10).collect();
        assert_eq!(join_rows(&nibbles, 1, [0, 1, 2, 3, 4, 5, 6, 7]), [0x10, 0x32, 0x54, 0x76, 0x98, 0, 0, 0]);
        let awq = [0, 2, 4, 6, 1, 3, 5, 7];
        let words = join_rows(&nibbles[..8], 1, awq);
        assert_eq!(words, [0x20, 0x64, 0x31, 0x75]);
        let mut back = vec![0xff; 8];
        split_rows(&words, 1, awq, &mut back);
        assert_eq!(back, nibbles[..8]);
    }
}
