//! Plain element types: the ones safetensors headers name.

use crate::error::{FormatError, Result};

/// Element type of a stored tensor, with the spelling of safetensors headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(non_camel_case_types, reason = "the spelling of the safetensors format")]
pub enum Dtype {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// IEEE half.
    F16,
    /// Upper half of an `f32`.
    BF16,
    /// OCP FP8 E4M3 without infinities (`float8_e4m3fn`).
    F8_E4M3,
    /// OCP FP8 E5M2.
    F8_E5M2,
    /// OCP E8M0 exponent-only scale.
    F8_E8M0,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// 16-bit signed integer.
    I16,
    /// 8-bit signed integer.
    I8,
    /// 32-bit unsigned integer.
    U32,
    /// 16-bit unsigned integer.
    U16,
    /// 8-bit unsigned integer.
    U8,
    /// Byte-sized boolean.
    BOOL,
}

/// Every dtype with its safetensors name and its width.
const TABLE: &[(Dtype, &str, usize)] = &[
    (Dtype::F64, "F64", 8),
    (Dtype::F32, "F32", 4),
    (Dtype::F16, "F16", 2),
    (Dtype::BF16, "BF16", 2),
    (Dtype::F8_E4M3, "F8_E4M3", 1),
    (Dtype::F8_E5M2, "F8_E5M2", 1),
    (Dtype::F8_E8M0, "F8_E8M0", 1),
    (Dtype::I64, "I64", 8),
    (Dtype::I32, "I32", 4),
    (Dtype::I16, "I16", 2),
    (Dtype::I8, "I8", 1),
    (Dtype::U32, "U32", 4),
    (Dtype::U16, "U16", 2),
    (Dtype::U8, "U8", 1),
    (Dtype::BOOL, "BOOL", 1),
];

impl Dtype {
    /// The name in a safetensors header, `"F8_E4M3"` for instance.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        self.row().2
    }

    /// Parses a safetensors dtype name.
    ///
    /// # Errors
    /// [`FormatError::Unsupported`] for a name that is not in the table.
    pub fn parse(name: &str) -> Result<Self> {
        TABLE.iter().find(|row| row.1 == name).map(|row| row.0).ok_or_else(|| FormatError::Unsupported {
            what: format!("dtype {name:?}"),
            supported: TABLE.iter().map(|row| row.1).collect::<Vec<_>>().join(", "),
        })
    }

    fn row(self) -> &'static (Self, &'static str, usize) {
        let row = &TABLE[self as usize];
        debug_assert!(row.0 == self);
        row
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_declaration_order_and_names_round_trip() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, index);
            assert_eq!(Dtype::parse(row.1).unwrap(), row.0);
            assert_eq!(row.0.to_string(), row.1);
        }
    }

    #[test]
    fn unknown_name_is_an_error_that_lists_the_known_ones() {
        let text = Dtype::parse("F4").unwrap_err().to_string();
        assert!(text.contains("\"F4\"") && text.contains("BF16"), "{text}");
    }
}
