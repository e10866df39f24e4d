//! Text that comes from elsewhere, as HTML that shows it and does nothing else.

/// `text` for the content of an element or an attribute in double quotes. Characters that cannot be seen and change what is
/// around them (control characters, those of the direction of writing) are shown by number.
pub(super) fn escape(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            c if is_unseen(c) => html.extend(c.escape_unicode()),
            c => html.push(c),
        }
    }
    html
}

/// The same, as code. Lines stay lines.
pub(super) fn code(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(escape).collect();
    format!("<code>{}</code>", lines.join("\n"))
}

fn is_unseen(c: char) -> bool {
    let of_direction =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || of_direction || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_means_anything() {
        let text = "<script>alert('x & \"y\"')</script>\u{202e}\u{0}";
        let html = "&lt;script&gt;alert(&#39;x &amp; &quot;y&quot;&#39;)&lt;/script&gt;\\u{202e}\\u{0}";
        assert_eq!(escape(text), html);
        assert_eq!(code("a\n<b>"), "<code>a\n&lt;b&gt;</code>");
    }
}
