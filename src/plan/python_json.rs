//! JSON text as Python's `json.dump(value, indent=4)` writes it.
//!
//! Four spaces per level, keys in their order, everything outside of printable ASCII escaped as
//! UTF-16, floats as `repr` has them: the shortest digits, with an exponent of at least two digits
//! below 1e-4 and from 1e16 on. No newline at the end.

use std::fmt::Write as _;

use serde_json::Value;

/// The text of `value`.
pub(super) fn dump(value: &Value) -> String {
    let mut text = String::new();
    write_value(&mut text, value, 0);
    text
}

fn write_value(text: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(flag) => text.push_str(if *flag { "true" } else { "false" }),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => text.push_str(&float_repr(float)),
            _ => text.push_str(&number.to_string()),
        },
        Value::String(string) => write_string(text, string),
        Value::Array(list) if list.is_empty() => text.push_str("[]"),
        Value::Array(list) => {
            for (index, item) in list.iter().enumerate() {
                text.push(if index == 0 { '[' } else { ',' });
                new_line(text, depth + 1);
                write_value(text, item, depth + 1);
            }
            new_line(text, depth);
            text.push(']');
        }
        Value::Object(entries) if entries.is_empty() => text.push_str("{}"),
        Value::Object(entries) => {
            for (index, (key, item)) in entries.iter().enumerate() {
                text.push(if index == 0 { '{' } else { ',' });
                new_line(text, depth + 1);
                write_string(text, key);
                text.push_str(": ");
                write_value(text, item, depth + 1);
            }
            new_line(text, depth);
            text.push('}');
        }
    }
}

fn new_line(text: &mut String, depth: usize) {
    text.push('\n');
    text.extend(std::iter::repeat_n("    ", depth));
}

fn write_string(text: &mut String, string: &str) {
    text.push('"');
    for character in string.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            ' '..='~' => text.push(character),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    // Writing to a string does not fail.
                    let _ = write!(text, "\\u{unit:04x}");
                }
            }
        }
    }
    text.push('"');
}

/// `repr(float)` of a finite number.
fn float_repr(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = value.to_string();
    if plain.contains('.') { plain } else { plain + ".0" }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected texts printed by Python 3.11.
    #[test]
    fn floats_are_those_of_repr() {
        for (value, expected) in [
            (1e-6, "1e-06"),
            (1e-20, "1e-20"),
            (0.0001, "0.0001"),
            (0.00012345, "0.00012345"),
            (0.000099, "9.9e-05"),
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (2.5, "2.5"),
            (123_456.789, "123456.789"),
            (9_999_999_999_999_998.0, "9999999999999998.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (5e-324, "5e-324"),
            (0.1 + 0.2, "0.30000000000000004"),
        ] {
            assert_eq!(float_repr(value), expected);
        }
    }

    #[test]
    fn text_is_that_of_json_dump() {
        let json = r#"{"b":[1,2.0,null,true,[3]],"a":{},"e":[],"s":"na\u00efve \ud83d\ude00 \u007f\t\"\\/","n":{"k":-7}}"#;
        let value: Value = serde_json::from_str(json).unwrap();
        let expected = r#"{
    "b": [
        1,
        2.0,
        null,
        true,
        [
            3
        ]
    ],
    "a": {},
    "e": [],
    "s": "na\u00efve \ud83d\ude00 \u007f\t\"\\/",
    "n": {
        "k": -7
    }
}"#;
        assert_eq!(dump(&value), expected);
    }
}
