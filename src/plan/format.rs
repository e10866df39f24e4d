//! Values of `--to`: what is known about each, and which are near to one that does not exist.

use super::{TARGETS, Target};
use crate::error::{Error, Result};
use crate::small::shown;

/// A value of `--to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// What the user types, lower case.
    pub name: &'static str,
    /// One line for lists.
    pub about: &'static str,
}

/// What an importance matrix does for a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportanceUse {
    /// Nothing: errors are not weighed.
    Unused,
    /// It makes the result better.
    Helps,
    /// Without it the result is poor; llama-quantize refuses to make it then.
    Wanted,
}

impl ImportanceUse {
    /// In a word: `no`, `helps` or `wanted`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unused => "no",
            Self::Helps => "helps",
            Self::Wanted => "wanted",
        }
    }
}

/// Most names that are proposed.
const PROPOSED: usize = 3;
/// Longest text that is compared with names, in characters.
const MAX_COMPARED_CHARS: usize = 64;
/// Shortest part of a name, in letters and digits, by which a text is taken for it.
const MIN_PART_CHARS: usize = 2;

/// The target that writes the format of this name, in any case, and the format.
///
/// # Errors
/// [`Error::Usage`] with the nearest names when there is none.
pub fn find(name: &str) -> Result<(&'static dyn Target, &'static Format)> {
    let known =
        TARGETS.iter().flat_map(|&target| target.formats().iter().map(move |format| (target, format)));
    let mut known = known.filter(|(_, format)| format.name.eq_ignore_ascii_case(name));
    known.next().ok_or_else(|| unknown(name))
}

fn unknown(name: &str) -> Error {
    let near = nearest(name);
    let (asks, names) = match near.as_slice() {
        [] => (
            "formats are for example",
            TARGETS.iter().filter_map(|target| target.usual().first().copied()).collect(),
        ),
        _ => ("did you mean", near),
    };
    let names = match names.as_slice() {
        [rest @ .., last] if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => names.concat(),
    };
    let end = if asks == "did you mean" { "?" } else { "." };
    Error::Usage(format!(
        "--to {}: no such format; {asks} {names}{end} `requant formats` lists all",
        shown(name)
    ))
}

/// The formats that somebody may mean who writes `text`, the likeliest first; none when nothing is near.
pub fn nearest(text: &str) -> Vec<&'static str> {
    let text = folded(text);
    if text.is_empty() || text.chars().count() > MAX_COMPARED_CHARS {
        return Vec::new();
    }
    // Those that people use most come first among equals: one of each kind, then the next of each.
    let most = TARGETS.iter().map(|target| target.usual().len()).max().unwrap_or(0);
    let usual =
        (0..most).flat_map(|rank| TARGETS.iter().filter_map(move |target| target.usual().get(rank).copied()));
    let all = TARGETS.iter().flat_map(|target| target.formats()).map(|format| format.name);
    let mut names: Vec<&'static str> = Vec::new();
    for name in usual.chain(all) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let those = |is_near: &dyn Fn(&str) -> bool| -> Vec<&'static str> {
        names.iter().copied().filter(|name| is_near(&folded(name))).take(PROPOSED).collect()
    };
    let same = those(&|name| name == text);
    if !same.is_empty() {
        return same;
    }
    // The name of a kind of result, or of a program that reads it.
    let is_meant = |target: &&&dyn Target| {
        let mut readers = target.formats().iter().flat_map(|format| target.readers(format));
        folded(target.family()) == text || readers.any(|reader| folded(reader) == text)
    };
    if let Some(target) = TARGETS.iter().find(is_meant) {
        return target.usual().iter().copied().take(PROPOSED).collect();
    }
    if text.chars().count() >= MIN_PART_CHARS {
        let containing = those(&|name| name.contains(&text));
        if !containing.is_empty() {
            return containing;
        }
    }
    let mut distances: Vec<(usize, &str)> =
        names.iter().map(|name| (strsim::damerau_levenshtein(&folded(name), &text), *name)).collect();
    distances.sort_by_key(|&(distance, _)| distance);
    let least = distances.first().map_or(0, |&(distance, _)| distance);
    if least <= (text.chars().count() / 3).max(1) {
        return distances
            .into_iter()
            .take_while(|&(found, _)| found == least)
            .map(|(_, name)| name)
            .take(PROPOSED)
            .collect();
    }
    // A file's name, or a name with something around it: the longest format in it.
    let mut within: Vec<&'static str> = names
        .iter()
        .copied()
        .filter(|name| folded(name).len() > MIN_PART_CHARS && text.contains(&folded(name)))
        .collect();
    within.sort_by_key(|name| std::cmp::Reverse(name.len()));
    within.truncate(1);
    within
}

/// Letters and digits of a name, lower case: `Q4_K_M`, `q4-k-m` and `q4km` are the same.
fn folded(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_is_proposed() {
        for (text, near) in [
            ("q4km", &["q4_k_m"][..]),
            ("Q4-K-M", &["q4_k_m"]),
            ("q4_k_m.gguf", &["q4_k_m"]),
            ("UD-Q4_K_XL", &["q4_k"]),
            (
                "w4a16",
                &["compressed-tensors-w4a16", "compressed-tensors-w4a16-g64", "compressed-tensors-w4a16-g32"],
            ),
            ("mlx-4bits", &["mlx-4bit"]),
            ("mlx4bit", &["mlx-4bit"]),
            ("4bit", &["mlx-4bit", "gptq-4bit-128g", "awq-4bit-128g"]),
            ("fp8-block", &["compressed-tensors-fp8-block"]),
            ("fp16", &["f16"]),
            ("awq-4bit", &["awq-4bit-128g", "awq-4bit-64g", "awq-4bit-32g"]),
            ("", &[]),
            ("-", &[]),
            ("gibberish", &[]),
        ] {
            assert_eq!(nearest(text), near, "{text}");
        }
        assert_eq!(nearest(&"q4_k_m".repeat(100_000)), Vec::<&str>::new());
    }

    /// The name of a target, or of a program: what most people use there.
    #[test]
    fn a_kind_of_result_proposes_its_usual_formats() {
        for target in TARGETS {
            let usual: Vec<&str> = target.usual().iter().copied().take(PROPOSED).collect();
            assert_eq!(nearest(target.family()), usual);
            assert_eq!(nearest(&target.family().to_uppercase()), usual);
        }
        assert_eq!(nearest("vllm")[0], "compressed-tensors-w4a16");
        assert_eq!(nearest("Ollama")[0], "q4_k_m");
    }

    #[test]
    fn usual_formats_exist_and_every_format_has_its_facts() {
        for target in TARGETS {
            assert!(!target.usual().is_empty());
            for name in target.usual() {
                let (found, _) = find(name).unwrap();
                assert_eq!(found.family(), target.family(), "{name}");
            }
            for format in target.formats() {
                let bits = target.bits_per_weight(format);
                assert!((1.0..=32.0).contains(&bits), "{}: {bits}", format.name);
                assert!(!target.readers(format).is_empty(), "{}", format.name);
                // What a line says about bits is what is computed.
                if let Some(said) =
                    format.about.split_once(": ").and_then(|(_, bits)| bits.strip_suffix(" bits per weight"))
                {
                    assert!((said.parse::<f64>().unwrap() - bits).abs() < 0.0051, "{}: {bits}", format.name);
                }
            }
        }
    }
}
