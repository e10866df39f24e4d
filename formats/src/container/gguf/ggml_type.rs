//! The tensor types of ggml: number in the file, block length, bytes per block.
//!
//! Source: ggml's `ggml.h` (numbers) and `ggml-common.h` (blocks). Numbers that are missing
//! belonged to types that ggml has removed.

use crate::codec::{self, Codec};
use crate::error::{FormatError, Result};

/// How a tensor's elements are stored, with ggml's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(non_camel_case_types, missing_docs, reason = "ggml's own names; the blocks are in TABLE")]
pub enum GgmlType {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ2_XXS,
    IQ2_XS,
    IQ3_XXS,
    IQ1_S,
    IQ4_NL,
    IQ3_S,
    IQ2_S,
    IQ4_XS,
    I8,
    I16,
    I32,
    I64,
    F64,
    IQ1_M,
    BF16,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
    Q1_0,
    Q2_0,
}

/// Type, number, name, elements per block, bytes per block; in declaration order.
const TABLE: &[(GgmlType, u32, &str, u64, u64)] = &[
    (GgmlType::F32, 0, "F32", 1, 4),
    (GgmlType::F16, 1, "F16", 1, 2),
    (GgmlType::Q4_0, 2, "Q4_0", 32, 18),
    (GgmlType::Q4_1, 3, "Q4_1", 32, 20),
    (GgmlType::Q5_0, 6, "Q5_0", 32, 22),
    (GgmlType::Q5_1, 7, "Q5_1", 32, 24),
    (GgmlType::Q8_0, 8, "Q8_0", 32, 34),
    (GgmlType::Q8_1, 9, "Q8_1", 32, 36),
    (GgmlType::Q2_K, 10, "Q2_K", 256, 84),
    (GgmlType::Q3_K, 11, "Q3_K", 256, 110),
    (GgmlType::Q4_K, 12, "Q4_K", 256, 144),
    (GgmlType::Q5_K, 13, "Q5_K", 256, 176),
    (GgmlType::Q6_K, 14, "Q6_K", 256, 210),
    (GgmlType::Q8_K, 15, "Q8_K", 256, 292),
    (GgmlType::IQ2_XXS, 16, "IQ2_XXS", 256, 66),
    (GgmlType::IQ2_XS, 17, "IQ2_XS", 256, 74),
    (GgmlType::IQ3_XXS, 18, "IQ3_XXS", 256, 98),
    (GgmlType::IQ1_S, 19, "IQ1_S", 256, 50),
    (GgmlType::IQ4_NL, 20, "IQ4_NL", 32, 18),
    (GgmlType::IQ3_S, 21, "IQ3_S", 256, 110),
    (GgmlType::IQ2_S, 22, "IQ2_S", 256, 82),
    (GgmlType::IQ4_XS, 23, "IQ4_XS", 256, 136),
    (GgmlType::I8, 24, "I8", 1, 1),
    (GgmlType::I16, 25, "I16", 1, 2),
    (GgmlType::I32, 26, "I32", 1, 4),
    (GgmlType::I64, 27, "I64", 1, 8),
    (GgmlType::F64, 28, "F64", 1, 8),
    (GgmlType::IQ1_M, 29, "IQ1_M", 256, 56),
    (GgmlType::BF16, 30, "BF16", 1, 2),
    (GgmlType::TQ1_0, 34, "TQ1_0", 256, 54),
    (GgmlType::TQ2_0, 35, "TQ2_0", 256, 66),
    (GgmlType::MXFP4, 39, "MXFP4", 32, 17),
    (GgmlType::NVFP4, 40, "NVFP4", 64, 36),
    (GgmlType::Q1_0, 41, "Q1_0", 128, 18),
    (GgmlType::Q2_0, 42, "Q2_0", 64, 18),
];

impl GgmlType {
    /// Every type, in the order of their numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }

    /// The type with this number.
    ///
    /// # Errors
    /// [`FormatError::Unsupported`] for a number that ggml does not (or no longer) use.
    pub fn from_id(id: u32) -> Result<Self> {
        TABLE.iter().find(|row| row.1 == id).map(|row| row.0).ok_or_else(|| FormatError::Unsupported {
            what: format!("ggml type {id}"),
            supported: TABLE.iter().map(|row| row.2).collect::<Vec<_>>().join(", "),
        })
    }

    /// The type with this name, in any case: `"Q4_K"`, `"q4_k"`.
    pub fn find(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.2.eq_ignore_ascii_case(name)).map(|row| row.0)
    }

    /// The number in the file.
    pub fn id(self) -> u32 {
        self.row().1
    }

    /// The name, which is also that of its codec.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Elements in a block; rows are whole blocks.
    pub fn block_len_elems(self) -> u64 {
        self.row().3
    }

    /// Bytes of a block.
    pub fn block_len_bytes(self) -> u64 {
        self.row().4
    }

    /// The codec of this type, for the types this crate can encode and decode.
    pub fn codec(self) -> Option<&'static dyn Codec> {
        codec::find(self.name())
    }

    fn row(self) -> &'static (Self, u32, &'static str, u64, u64) {
        &TABLE[self as usize]
    }
}

impl std::fmt::Display for GgmlType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_declaration_order_and_round_trips() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, index);
            assert_eq!(GgmlType::from_id(row.1).unwrap(), row.0);
            assert_eq!(GgmlType::find(&row.2.to_lowercase()), Some(row.0));
        }
        assert!(TABLE.is_sorted_by_key(|row| row.1));
    }

    #[test]
    fn codecs_agree_with_the_table() {
        for ggml_type in GgmlType::all() {
            let Some(codec) = ggml_type.codec() else { continue };
            let [part] = codec.parts() else { panic!("{ggml_type}: a block is one part") };
            let (group, block) = (codec.group_len_elems() as u64, ggml_type.block_len_elems());
            assert_eq!(group % block, 0, "{ggml_type}");
            assert_eq!(
                part.bytes_per_group as u64,
                group / block * ggml_type.block_len_bytes(),
                "{ggml_type}"
            );
        }
    }

    #[test]
    fn removed_numbers_are_an_error_that_lists_the_names() {
        for id in [4, 5, 31, 36, 43, u32::MAX] {
            let text = GgmlType::from_id(id).unwrap_err().to_string();
            assert!(text.contains(&id.to_string()) && text.contains("Q4_K"), "{text}");
        }
    }
}
