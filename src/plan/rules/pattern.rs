//! Regular expressions on tensor names.
//!
//! llama-quantize searches names with `std::regex` in its ECMAScript grammar. Look-ahead and
//! back-references are part of that, so they are understood here too.

use std::collections::BTreeSet;

use fancy_regex::Regex;

/// A regular expression that is searched anywhere in a name.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    regex: Regex,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl Pattern {
    /// Compiles `text` as it is.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str) -> Result<Self, String> {
        let regex = Regex::new(text).map_err(|error| format!("regular expression {text:?}: {error}"))?;
        Ok(Self { text: text.to_owned(), regex })
    }

    /// Compiles `text` in lower case, as llama-quantize does. That would turn `\D` into its opposite,
    /// so escapes in capitals are refused.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn lower_case(text: &str) -> Result<Self, String> {
        let mut letters = text.chars();
        while let Some(letter) = letters.next() {
            if letter == '\\'
                && let Some(escaped) = letters.next().filter(char::is_ascii_uppercase)
            {
                return Err(format!(
                    "regular expression {text:?}: llama-quantize reads it in lower case, where \\{escaped} means \
                     \\{}; write a class such as [^0-9], or use a recipe",
                    escaped.to_ascii_lowercase()
                ));
            }
        }
        Self::new(&text.to_ascii_lowercase())
    }

    /// An expression for `text` itself.
    pub(in crate::plan) fn literal(text: &str) -> String {
        fancy_regex::escape(text).into_owned()
    }

    /// Matches exactly the names `before` + one of `numbers` + `after`, both of them expressions.
    pub(in crate::plan) fn numbered(
        before: &str,
        numbers: &BTreeSet<usize>,
        after: &str,
    ) -> Result<Self, String> {
        let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
        let text = match numbers.as_slice() {
            [] => format!("^{before}{after}$"),
            [number] => format!("^{before}{number}{after}$"),
            _ => format!("^{before}({}){after}$", numbers.join("|")),
        };
        Self::new(&text)
    }

    /// The expression.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it is found in `name`.
    ///
    /// # Errors
    /// When the search would take too long.
    pub fn is_match(&self, name: &str) -> Result<bool, String> {
        let found = self.regex.is_match(name);
        found.map_err(|error| format!("regular expression {:?} on {name}: {error}", self.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn searches_anywhere_in_lower_case_names() {
        let found = |text: &str, name: &str| Pattern::lower_case(text).unwrap().is_match(name).unwrap();
        assert!(found("FFN_Down", "blk.0.ffn_down.weight"));
        assert!(found(r"\.(\d*[13579])\.ffn", "blk.13.ffn_down.weight"));
        assert!(!found(r"\.(\d*[13579])\.ffn", "blk.12.ffn_down.weight"));
        // What std::regex knows beside plain expressions.
        assert!(found(r"blk\.(?!0\.)\d+\.attn_k_b", "blk.1.attn_k_b.weight"));
        assert!(!found(r"blk\.(?!0\.)\d+\.attn_k_b", "blk.0.attn_k_b.weight"));
        assert!(found(r"(f)\1n", "blk.0.ffn_up.weight"));
    }

    #[test]
    fn what_lower_case_would_turn_around_is_refused() {
        for text in [r"\D", r"blk\.\S+", r"\\\W"] {
            let error = Pattern::lower_case(text).unwrap_err();
            assert!(error.contains("lower case"), "{error}");
        }
        assert!(Pattern::lower_case(r"\\D").is_ok());
        assert!(Pattern::new(r"\D").is_ok());
        let error = Pattern::new("ffn_(down").unwrap_err();
        assert!(error.contains("ffn_(down"), "{error}");
    }

    #[test]
    fn an_expression_that_would_run_for_ever_is_an_error() {
        let pattern = Pattern::new(r"^(?=(a*)*$)(a*)*\2b$").unwrap();
        let error = pattern.is_match(&"a".repeat(64)).unwrap_err();
        assert!(error.contains("aaa"), "{error}");
    }

    #[test]
    fn numbered_names_match_themselves_only() {
        let literal = Pattern::literal;
        let pattern =
            Pattern::numbered(&literal("blk."), &BTreeSet::from([3, 14]), &literal(".a+b")).unwrap();
        for (name, expected) in [
            ("blk.3.a+b", true),
            ("blk.14.a+b", true),
            ("blk.1.a+b", false),
            ("blk.3.aab", false),
            ("xblk.3.a+b", false),
        ] {
            assert_eq!(pattern.is_match(name).unwrap(), expected, "{name}");
        }
        assert!(
            Pattern::numbered(&literal("output.weight"), &BTreeSet::new(), "")
                .unwrap()
                .is_match("output.weight")
                .unwrap()
        );
    }
}
