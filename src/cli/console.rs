//! The one place where text leaves to a terminal or a pipe.
//!
//! Names of tensors and files come from outside. A control character in one of them could move the cursor, change the
//! colours or make one line look like two, so none of them gets through; and a message is at most a few kilobytes. A
//! stream that takes no more is an error, never a panic.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::sync::OnceLock;

use clap::ColorChoice;

use super::log;
use crate::error::{Error, Result};

/// What stdout is called in errors.
const STDOUT: &str = "standard output";
/// Longest message, in bytes. What is longer loses its middle: the end says what to do.
const MESSAGE_BYTES: usize = 4000;
/// What a message about an error begins with.
const ERROR: &str = "error:";
/// Whether messages on stderr are coloured.
static IS_COLOURED: OnceLock<bool> = OnceLock::new();
/// What is left of the end of such a message.
const END_BYTES: usize = 1000;

/// A result as text, on its way to stdout.
#[derive(Default)]
pub(super) struct Page {
    text: String,
}

impl Page {
    /// Adds a line: control characters escaped, shortened if it is very long.
    pub(super) fn line(&mut self, line: impl Display) {
        self.text.push_str(&shortened(&escaped(&line.to_string())));
        self.text.push('\n');
    }

    /// Adds text of several lines that must stay whole, as a recipe must; only its line ends get through.
    pub(super) fn whole(&mut self, text: impl Display) {
        for line in text.to_string().lines() {
            self.text.push_str(&escaped(line));
            self.text.push('\n');
        }
    }

    /// Writes everything to stdout.
    ///
    /// # Errors
    /// When stdout does not take it.
    pub(super) fn print(self) -> Result<()> {
        write(&self.text)
    }
}

/// Prints `value` as one JSON object on stdout.
///
/// # Errors
/// As [`Page::print`].
pub(super) fn print_json(value: &serde_json::Value) -> Result<()> {
    write(&format!("{}\n", safe_json(&format!("{value:#}"))))
}

/// Prints what this program has made of nothing but itself, as it is.
///
/// # Errors
/// As [`Page::print`].
pub(super) fn print_own(text: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text).and_then(|()| stdout.flush()).map_err(Error::io(STDOUT, "write"))
}

/// A line on stderr. That nobody can read it is no reason to stop.
pub(super) fn note(line: impl Display) {
    let line = line.to_string();
    log::line(&line);
    let _ = writeln!(std::io::stderr(), "{}", shortened(&escaped(&line)));
}

/// A line on stderr that is not shortened.
pub(super) fn note_whole(line: impl Display) {
    let line = line.to_string();
    log::line(&line);
    let _ = writeln!(std::io::stderr(), "{}", escaped(&line));
}

/// A message of several lines on stderr: those after the first are indented, so that none looks like a message of its own.
pub(super) fn message(text: impl Display) {
    let text = text.to_string();
    log::line(text.trim_end());
    let lines: Vec<Cow<'_, str>> = text.trim_end().lines().map(escaped).collect();
    let text = lines.join("\n  ");
    let text = shortened(&text);
    let _ = match text.strip_prefix(ERROR) {
        Some(rest) if IS_COLOURED.get() == Some(&true) => {
            writeln!(std::io::stderr(), "\u{1b}[1;31m{ERROR}\u{1b}[0m{rest}")
        }
        _ => writeln!(std::io::stderr(), "{text}"),
    };
}

/// Decides whether messages on stderr are coloured: on a terminal, unless NO_COLOR is set or the terminal has no colours.
pub(super) fn set_color(choice: ColorChoice) {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    let is_coloured = match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => std::io::stderr().is_terminal() && !is_set("NO_COLOR") && !is_dumb,
    };
    // Decided once.
    let _ = IS_COLOURED.set(is_coloured);
}

/// What clap has to say: help on stdout, what is wrong with the arguments on stderr.
///
/// # Errors
/// As [`Page::print`].
pub(super) fn print_clap(error: &clap::Error) -> Result<()> {
    if error.use_stderr() {
        message(error.render());
        return Ok(());
    }
    error.print().and_then(|()| std::io::stdout().flush()).map_err(Error::io(STDOUT, "write"))
}

/// Whether `error` is about stdout; if so, and whoever was reading has seen enough, there is nothing to say.
pub(super) fn of_stdout(error: &Error) -> Option<ErrorKind> {
    match error {
        Error::Io { path, source, .. } if path == Path::new(STDOUT) => Some(source.kind()),
        _ => None,
    }
}

fn write(text: &str) -> Result<()> {
    print_own(text.as_bytes())
}

/// Whether a character may change what is around it: control characters (C0, DEL, C1), those that change the direction
/// of writing, and the separators of lines and paragraphs.
fn is_unsafe(c: char) -> bool {
    let changes_direction =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || changes_direction || matches!(c, '\u{2028}' | '\u{2029}')
}

/// `text` on one line, as itself.
pub(super) fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return text.into();
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unsafe(c) { safe.extend(c.escape_default()) } else { safe.push(c) }
    }
    safe.into()
}

/// JSON with the unsafe characters that JSON allows in strings written as numbers.
fn safe_json(json: &str) -> String {
    // Line ends are those between values: JSON escapes the ones in strings itself.
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        if c != '\n' && is_unsafe(c) {
            safe.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            safe.push(c);
        }
    }
    safe
}

/// `text` without its middle, if it is very long.
fn shortened(text: &str) -> Cow<'_, str> {
    if text.len() <= MESSAGE_BYTES {
        return text.into();
    }
    let head = text.floor_char_boundary(MESSAGE_BYTES - END_BYTES);
    let tail = text.ceil_char_boundary(text.len() - END_BYTES);
    format!("{} [... {} bytes more ...] {}", &text[..head], tail - head, &text[tail..]).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_unsafe_gets_through() {
        for (text, safe) in [
            ("model.layers.0", "model.layers.0"),
            ("\u{1b}[31mred", "\\u{1b}[31mred"),
            ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
            ("\u{7f}\u{9b}31m\u{85}", "\\u{7f}\\u{9b}31m\\u{85}"),
            ("\u{202e}gpj.exe\u{2066}\u{200f}\u{61c}", "\\u{202e}gpj.exe\\u{2066}\\u{200f}\\u{61c}"),
            ("\u{2028}\u{2029}", "\\u{2028}\\u{2029}"),
            ("Käse 漢字 👩‍🔬", "Käse 漢字 👩‍🔬"),
        ] {
            assert_eq!(escaped(text), safe);
            let json = safe_json(&serde_json::to_string_pretty(&[text]).unwrap());
            assert!(!json.contains(|c| c != '\n' && is_unsafe(c)), "{json}");
            assert_eq!(serde_json::from_str::<Vec<String>>(&json).unwrap(), [text]);
        }
    }

    #[test]
    fn a_long_message_keeps_both_ends() {
        let long = format!("first {} last", "é".repeat(1_000_000));
        let short = shortened(&long);
        assert!(short.len() < MESSAGE_BYTES + 100, "{}", short.len());
        assert!(short.starts_with("first é") && short.ends_with("é last") && short.contains("bytes more"));
        assert_eq!(shortened("short"), "short");
    }
}
