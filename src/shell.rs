//! Words of a command as a shell has to be given them.

/// Characters of words that a shell takes as they are, beside letters and digits.
const PLAIN: &str = "@%+=:,./-_";

/// `word`, in quotes if it needs some. Control characters become spaces: what is shown is read, not run.
pub(crate) fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || PLAIN.contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    let word: String = word.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// `words` as a line.
pub(crate) fn line<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    words.into_iter().map(quoted).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_words() {
        assert_eq!(
            line(["a-b=c", "it's", "", "x y", "$(z)", "a\nb"]),
            "a-b=c 'it'\\''s' '' 'x y' '$(z)' 'a b'"
        );
    }
}
