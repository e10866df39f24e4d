//! Sizes as people write them, and as they read them.

pub(super) use crate::human::human;

/// Parses `48G`, `500M`, `5000000`, `1.5GiB`: K, M, G, T are powers of 1000 as `llama-gguf-split`
/// reads them, KiB, MiB, GiB, TiB powers of 1024.
pub(super) fn parse(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(format!("unit {unit:?}: expected K, M, G, T or KiB, MiB, GiB, TiB")),
    };
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is not a size such as 48G or 1.5GiB"))?;
    let bytes = number * factor as f64;
    if !(1.0..9e18).contains(&bytes) {
        return Err(format!("{text:?} is out of range"));
    }
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_decimal_and_binary_units() {
        for (text, bytes) in [
            ("48G", 48_000_000_000),
            ("1.5GiB", 1_610_612_736),
            ("7", 7),
            ("500m", 500_000_000),
            ("2 kb", 2000),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1.2.3", "5X", "0", "1e30"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
