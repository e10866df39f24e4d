//! Text that comes from elsewhere, as Markdown that shows it and does nothing else.

/// Characters that mean something in running text.
const SPECIAL: &str = "\\`*_{}[]<>()#!|&~$";

/// `text` on one line: what would end a line, or cannot be seen, becomes a space.
fn on_one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') { ' ' } else { c })
        .collect()
}

/// `text` in running text.
pub(super) fn plain(text: &str) -> String {
    let mut escaped = String::new();
    for c in on_one_line(text).chars() {
        if SPECIAL.contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// `text` as code within a line.
pub(super) fn code(text: &str) -> String {
    let text = on_one_line(text);
    let fence = "`".repeat(longest_run(&text) + 1);
    // A blank next to a fence is no part of the code, and keeps backticks apart from it.
    let blank = if text.starts_with('`') || text.ends_with('`') || text.is_empty() { " " } else { "" };
    format!("{fence}{blank}{text}{blank}{fence}")
}

/// Lines of code.
pub(super) fn code_block(language: &str, text: &str) -> String {
    let fence = "`".repeat((longest_run(text) + 1).max(3));
    format!("{fence}{language}\n{}\n{fence}\n", text.trim_end_matches('\n'))
}

/// Markdown in a cell of a table, where a bar begins the next one, in code too.
pub(super) fn cell(markdown: &str) -> String {
    markdown.replace('|', "\\|")
}

/// Backticks in a row, at most.
fn longest_run(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_means_anything() {
        assert_eq!(plain("a_b <img> [x](y)\n# t"), "a\\_b \\<img\\> \\[x\\]\\(y\\) \\# t");
        assert_eq!(code("q4_k_m"), "`q4_k_m`");
        assert_eq!(code("a`b"), "``a`b``");
        assert_eq!(code("`a``"), "``` `a`` ```");
        assert_eq!(code(""), "`  `");
        assert_eq!(code("a\n\nb"), "`a  b`");
        assert_eq!(cell(&code("a|b")), "`a\\|b`");
        assert_eq!(code_block("sh", "x\n```\ny\n"), "````sh\nx\n```\ny\n````\n");
    }
}
