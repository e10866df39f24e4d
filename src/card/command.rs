//! A command line as others can use it: the words that decide which bytes come out, without those about this machine.

use crate::shell::quoted;

/// Options of `convert` with a value that say where, how fast, or what is told: the bytes do not depend on them.
pub(crate) const WHERE: &[&str] = &[
    "-o",
    "--output",
    "--outfile",
    "--color",
    "--memory",
    "--threads",
    "--cache-dir",
    "--connections",
    "--spool",
    "--spool-limit",
    "--sums",
    "--validate",
    "--validate-context",
    "--max-kld",
    "--job",
    "--jobs",
    "--save-recipe",
    "--card",
    "--base-model",
    "--report",
    "--log",
];
/// The same, without a value.
pub(crate) const WHETHER: &[&str] = &[
    "--dry-run",
    "--force",
    "--restart",
    "--json",
    "-q",
    "--quiet",
    "--ignore-space",
    "--keep-source",
    "--xet",
    "--error-report",
    "-v",
    "--verbose",
];
/// `words` as a line for a shell, the program without its folders.
pub(super) fn shown(words: &[String]) -> String {
    let mut shown = vec!["requant".to_owned()];
    let mut words = words.iter().skip(1);
    while let Some(word) = words.next() {
        let option = word.split_once('=').map_or(word.as_str(), |(option, _)| option);
        if WHETHER.contains(&option) {
            continue;
        }
        if WHERE.contains(&option) {
            if option == word {
                let _ = words.next();
            }
            continue;
        }
        // -oPATH: a short option and its value in one word.
        if word.starts_with("-o") && !word.starts_with("--") {
            continue;
        }
        shown.push(quoted(&without_folders(word)));
    }
    shown.join(" ")
}

/// A path from the root says much about a machine and nothing to others.
fn without_folders(word: &str) -> String {
    match word.split_once('=') {
        Some((option, value)) if option.starts_with("--") => {
            format!("{option}={}", base_name_if_local(value))
        }
        _ => base_name_if_local(word).to_owned(),
    }
}

/// The last component of a path from the root; anything else as it is.
pub(super) fn base_name_if_local(text: &str) -> &str {
    if text.starts_with('/') { base_name(text) } else { text }
}

/// The last component of a path.
pub(super) fn base_name(path: &str) -> &str {
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    if name.is_empty() { path } else { name }
}

/// The name of a file as a word of a command, never an option.
pub(super) fn quoted_path(name: &str) -> String {
    if name.starts_with('-') { quoted(&format!("./{name}")) } else { quoted(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_decides_the_bytes_is_left() {
        for (line, expected) in [
            (
                "/usr/bin/requant convert /data/V3-0324 --to q4_k_m -o /out/x.gguf --threads 4 --json",
                "requant convert V3-0324 --to q4_k_m",
            ),
            (
                "requant convert org/m@main --to=mlx-4bit --output=x -q --spool=/s",
                "requant convert org/m@main --to=mlx-4bit",
            ),
            (
                "requant convert ../m -ox.gguf --to q4_0 --imatrix=/a/b.gguf",
                "requant convert ../m --to q4_0 --imatrix=b.gguf",
            ),
            (
                "requant convert m --to q4_0 --tensor-type ffn_(up|down)=q6_k",
                "requant convert m --to q4_0 --tensor-type 'ffn_(up|down)=q6_k'",
            ),
            (
                "requant convert m --validate t.txt --max-kld 0.1 --to q4_0 --calibrate default",
                "requant convert m --to q4_0 --calibrate default",
            ),
        ] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            assert_eq!(shown(&words), expected);
        }
        assert_eq!(shown(&["r".into(), "it's".into(), String::new()]), "requant 'it'\\''s' ''");
        assert_eq!(shown(&[]), "requant");
        assert_eq!((base_name("/"), base_name("/a/b/")), ("/", "b"));
    }
}
