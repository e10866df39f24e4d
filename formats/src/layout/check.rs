//! What the layouts ask of a matrix, and of tensors that say how it is cut.

use super::Matrix;
use super::words::WORD;
use crate::codec::Codec;
use crate::dtype::Dtype;
use crate::error::{FormatError, Result};

/// The first part of the codecs that a layout takes: codes in words of 32 bits, and what they are called.
pub(super) fn codes_are(matrix: Matrix<'_>, layout: &str, codes: &str) -> Result<()> {
    let fits = |codec: &dyn Codec| codec.parts()[0].name == codes && codec.parts()[0].dtype == Dtype::I32;
    if fits(matrix.codec) {
        return Ok(());
    }
    let fitting = crate::CODECS.iter().filter(|codec| fits(**codec));
    Err(FormatError::Unsupported {
        what: format!("codec {} in layout {layout}", matrix.codec.name()),
        supported: fitting.map(|codec| codec.name()).collect::<Vec<_>>().join(", "),
    })
}

/// Rows and columns of a matrix whose rows are whole groups, and whose number of rows is a multiple of `band`.
pub(super) fn rows_and_cols(matrix: Matrix<'_>, layout: &str, band: usize) -> Result<[usize; 2]> {
    let &[rows, cols] = matrix.shape else {
        return Err(FormatError::Invalid {
            what: format!("shape of a matrix in layout {layout}"),
            found: format!("{:?}", matrix.shape),
            expected: "two dimensions, [rows, columns]".into(),
        });
    };
    let group = matrix.codec.group_len_elems();
    if cols == 0 || !cols.is_multiple_of(group) {
        return Err(FormatError::Invalid {
            what: format!("columns of a matrix in layout {layout} with codec {}", matrix.codec.name()),
            found: cols.to_string(),
            expected: format!("a multiple of the group size {group}"),
        });
    }
    if !group.is_multiple_of(WORD) && (group != cols || band > 1) {
        return Err(FormatError::Invalid {
            what: format!("group size of codec {} in layout {layout}", matrix.codec.name()),
            found: group.to_string(),
            expected: format!("a multiple of {WORD}, or one group per row where the layout pads rows"),
        });
    }
    if !rows.is_multiple_of(band) {
        return Err(FormatError::Invalid {
            what: format!("rows of a matrix in layout {layout}"),
            found: rows.to_string(),
            expected: format!("a multiple of {band}, as many as are packed into one word"),
        });
    }
    Ok([rows, cols])
}

/// Compares a small tensor with what the matrix says it must hold.
pub(super) fn says(what: &str, found: &[i64], expected: &[i64]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(FormatError::Invalid {
        what: what.into(),
        found: format!("{found:?}"),
        expected: format!("{expected:?}, as the other tensors of this matrix say"),
    })
}

/// Checks that column `c` belongs to group `c / group_len`: GPTQ's `desc_act` orders columns otherwise.
pub(super) fn groups_in_order(g_idx: &[u8], group_len: usize) -> Result<()> {
    for (column, group) in g_idx.as_chunks().0.iter().enumerate() {
        let group = i32::from_le_bytes(*group);
        if usize::try_from(group) != Ok(column / group_len) {
            return Err(FormatError::Unsupported {
                what: format!("g_idx: column {column} in group {group} (activation order, desc_act)"),
                supported: format!(
                    "columns in their own order, here group {}; requantize the model with desc_act false",
                    column / group_len
                ),
            });
        }
    }
    Ok(())
}
