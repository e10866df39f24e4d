//! Recipes: rules in a TOML file.
//!
//! ```toml
//! to = "q4_k_m"                       # optional: the --to that it is for
//!
//! [[rule]]
//! target = '^blk\.\d+\.ffn_down'      # a regular expression; 'single quotes' keep backslashes
//! type = "q6_k"
//!
//! [[rule]]
//! target = "embed_tokens"
//! type = "4bit"
//! group_size = 32                     # where the type's name leaves it open
//!
//! [[rule]]
//! target = "lm_head"
//! ignore = true                       # not quantized
//! ```

use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use toml::Spanned;

use super::{Choice, Pattern, Rule, Rules};
use crate::error::{Error, Result};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    to: Option<String>,
    #[serde(default)]
    rule: Vec<Spanned<Entry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    target: Spanned<String>,
    #[serde(rename = "type")]
    type_name: Option<String>,
    group_size: Option<Spanned<usize>>,
    ignore: Option<Spanned<bool>>,
}

impl Rules {
    /// Parses a recipe; `path` is for messages.
    ///
    /// # Errors
    /// Invalid TOML, keys that are missing, unknown or contradict each other, a bad regular expression; with
    /// file and line.
    pub fn from_toml(path: &Path, text: &str) -> Result<Self> {
        let place = |at: Option<Range<usize>>| match at {
            Some(at) => format!("{}, line {}", path.display(), line_number(text, at.start)),
            None => path.display().to_string(),
        };
        let refuse =
            |at: Range<usize>, message: String| Error::Request(format!("{}: {message}", place(Some(at))));
        let file: File = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|at| text.lines().nth(line_number(text, at.start) - 1).unwrap_or(""));
            let line = line.map_or(String::new(), |line| format!(" ({})", line.trim()));
            Error::Request(format!("{}: {}{line}", place(error.span()), error.message()))
        })?;
        if file.rule.is_empty() {
            return Err(Error::Request(format!("{}: no [[rule]] in it", path.display())));
        }
        let mut list = Vec::with_capacity(file.rule.len());
        for rule in file.rule {
            let whole = rule.span();
            let Entry { target, type_name, group_size, ignore } = rule.into_inner();
            let choice = match (type_name, ignore) {
                (Some(_), Some(ignore)) if *ignore.get_ref() => {
                    return Err(refuse(
                        ignore.span(),
                        "ignore = true and a type contradict each other".into(),
                    ));
                }
                (Some(name), _) => {
                    if let Some(zero) = group_size.as_ref().filter(|len| *len.get_ref() == 0) {
                        return Err(refuse(zero.span(), "group_size = 0".into()));
                    }
                    Choice::Type { name, group_size: group_size.map(Spanned::into_inner) }
                }
                (None, Some(ignore)) if *ignore.get_ref() => match group_size {
                    Some(len) => {
                        return Err(refuse(len.span(), "group_size without a type".into()));
                    }
                    None => Choice::Ignore,
                },
                (None, _) => {
                    let message =
                        format!("rule for {:?}: expected type = \"...\" or ignore = true", target.get_ref());
                    return Err(refuse(whole, message));
                }
            };
            let pattern = Pattern::new(target.get_ref())
                .map_err(|message| refuse(target.span(), format!("target: {message}")))?;
            list.push(Rule { target: pattern, choice, origin: place(Some(whole)) });
        }
        Ok(Self { list, made_for: file.to })
    }

    /// The recipe that has these rules, for a result of format `to`.
    pub fn to_toml(&self, to: &str) -> String {
        let mut text = format!("to = {}\n", quoted(to));
        for rule in &self.list {
            // Writing to a string does not fail.
            let _ = write!(text, "\n[[rule]]\ntarget = {}\n", quoted(rule.target.as_str()));
            let _ = match &rule.choice {
                Choice::Ignore => writeln!(text, "ignore = true"),
                Choice::Type { name, group_size } => {
                    let group = group_size.map_or(String::new(), |len| format!("\ngroup_size = {len}"));
                    writeln!(text, "type = {}{group}", quoted(name))
                }
            };
        }
        text
    }
}

/// `text` as a TOML string, in single quotes where these can hold it.
fn quoted(text: &str) -> String {
    if text.contains('\'') || text.chars().any(char::is_control) {
        toml::Value::String(text.to_owned()).to_string()
    } else {
        format!("'{text}'")
    }
}

/// Counted from 1.
fn line_number(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|&&byte| byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Rules> {
        Rules::from_toml(Path::new("r.toml"), text)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let text = "to = 'q4_k_m'\n\n[[rule]]\ntarget = '^blk\\.\\d+\\.ffn_down'\ntype = 'q6_k'\n\n\
                    [[rule]]\ntarget = \"it's\\ttrue\"\ntype = '4bit'\ngroup_size = 32\n\n[[rule]]\ntarget = 'lm_head'\nignore = true\n";
        let rules = parse(text).unwrap();
        let choices: Vec<String> = rules.iter().map(|rule| rule.choice.to_string()).collect();
        assert_eq!(choices, ["q6_k", "4bit, groups of 32", "not quantized"]);
        let origins: Vec<&str> = rules.iter().map(|rule| rule.origin.as_str()).collect();
        assert_eq!(origins, ["r.toml, line 3", "r.toml, line 7", "r.toml, line 12"]);
        assert_eq!(rules.get(1).unwrap().target.as_str(), "it's\ttrue");
        assert_eq!(rules.to_toml("q4_k_m"), text);
        rules.check_format("Q4_K_M").unwrap();
        let error = rules.check_format("q4_0").unwrap_err().to_string();
        assert!(error.contains("q4_k_m") && error.contains("q4_0"), "{error}");
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, line, named) in [
            ("", "r.toml", "no [[rule]]"),
            ("x = [", "line 1", "x = ["),
            ("[[rule]]\ntarget = 'a'\ntype = 'q6_k'\nbits = 4", "line 4", "bits"),
            ("[[rule]]\ntarget = 'a'\ntype = 5", "line 3", "type = 5"),
            ("[[rule]]\ntype = 'q6_k'", "line 1", "target"),
            ("\n[[rule]]\ntarget = 'a'", "line 2", "type = \"...\" or ignore"),
            ("[[rule]]\ntarget = 'a'\nignore = false", "line 1", "ignore = true"),
            ("[[rule]]\ntarget = 'a'\ntype = 'q6_k'\nignore = true", "line 4", "contradict"),
            ("[[rule]]\ntarget = 'a'\ngroup_size = 32\nignore = true", "line 3", "group_size without"),
            ("[[rule]]\ntarget = 'a'\ntype = '4bit'\ngroup_size = 0", "line 4", "group_size = 0"),
            ("[[rule]]\ntarget = 'a'\ntype = '4bit'\ngroup_size = -1", "line 4", "group_size = -1"),
            ("[[rule]]\ntype = 'q6_k'\ntarget = 'a('", "line 3", "a("),
            ("format = 'q4_0'\n[[rule]]\ntarget = 'a'\ntype = 'q6_k'", "line 1", "format"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(line) && error.contains(named), "{text:?}: {error}");
        }
    }
}
