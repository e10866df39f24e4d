//! The text that ships with the program: prose in many languages, code, mathematics and dialogue. `text/ORIGIN.md` says where it
//! comes from.

/// Its parts, which are used in equal shares.
pub const DEFAULT: [&str; 6] = [
    include_str!("text/prose-english.txt"),
    include_str!("text/prose-languages.txt"),
    include_str!("text/prose-languages-2.txt"),
    include_str!("text/code.txt"),
    include_str!("text/mathematics.txt"),
    include_str!("text/dialogue.txt"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_mixed_and_repeats_nothing() {
        let mut lines = std::collections::HashSet::new();
        for part in DEFAULT {
            assert!(part.len() > 16 << 10 && part.len() < 64 << 10, "{}", part.len());
            assert!(part.ends_with('\n') && !part.contains(" \n") && !part.contains('\r'));
            for line in part.lines().filter(|line| line.len() > 120) {
                assert!(lines.insert(line), "twice: {line}");
            }
        }
        let whole = DEFAULT.concat();
        for word in ["fn main", "def ", "SELECT", "\\frac", "assistant:", "что", "的", "です", "você"]
        {
            assert!(whole.contains(word), "{word}");
        }
    }
}
