//! `--tensor-type`, `--recipe` and budgets, and what `plan` shows of them.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches};
use serde_json::{Value, json};

use super::console::Page;
use super::size;
use crate::error::{Error, Result};
use crate::plan::{Blueprint, Budget, OutputTensor, Rule, Rules};

/// The arguments.
pub(super) fn arguments() -> Vec<Arg> {
    vec![
        Arg::new("tensor-type")
            .long("tensor-type")
            .value_name("REGEX=TYPE")
            .action(ArgAction::Append)
            .value_parser(Rule::from_argument)
            .help("Type of tensors whose name has the expression; repeatable, the first that is found counts")
            .long_help(
                "Type of the tensors in whose name (in the result, else in the source) the regular expression is \
                 found. Repeatable; the first that is found counts, and all of them before those of --recipe. \
                 GGUF: as llama-quantize's, with ggml's names (q6_k, iq4_nl, bf16). MLX: 4bit, 6bit-g32, mxfp8, ... or bf16. \
                 compressed-tensors, GPTQ: w4a16-g32, nvfp4, 4bit-64g, ...",
            ),
        Arg::new("recipe")
            .long("recipe")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("TOML file with rules: [[rule]] with target, and type (and group_size) or ignore = true"),
        Arg::new("target-size")
            .long("target-size")
            .value_name("SIZE")
            .value_parser(size::parse)
            .help("Choose types, tensor by tensor, so that all files have at most SIZE, e.g. 352GB")
            .long_help(
                "Choose types from those of the format's family, tensor by tensor, so that all files together have at \
                 most SIZE and the relative error is as small as it can be then. Every type is tried on some rows of \
                 each tensor first. Tensors with a rule keep its type, and so does what a GGUF file has in blocks, unless \
                 --allow-requantize is given",
            ),
        Arg::new("target-bpw")
            .long("target-bpw")
            .value_name("BITS")
            .value_parser(bits)
            .conflicts_with("target-size")
            .help("As --target-size, with a number of bits per weight, e.g. 4.3"),
        Arg::new("save-recipe")
            .long("save-recipe")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("Write the rules in force, chosen ones included, for --recipe"),
    ]
}

/// The rules asked for.
pub(super) fn from_matches(matches: &ArgMatches) -> Result<Rules> {
    let arguments = matches.get_many::<Rule>("tensor-type").into_iter().flatten().cloned();
    let rules = Rules::new(arguments.collect());
    match matches.get_one::<PathBuf>("recipe") {
        Some(path) => Ok(rules.then(read(path)?)),
        None => Ok(rules),
    }
}

/// The budget asked for.
pub(super) fn budget(matches: &ArgMatches) -> Option<Budget> {
    let size = matches.get_one::<u64>("target-size").copied().map(Budget::Bytes);
    size.or_else(|| matches.get_one::<f64>("target-bpw").copied().map(Budget::BitsPerWeight))
}

fn bits(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(bits) if bits > 0.0 && bits <= 32.0 => Ok(bits),
        _ => Err("expected a number of bits from 0 to 32, such as 4.3".into()),
    }
}

/// Writes the recipe where `--save-recipe` says. A file that is there stays, unless it is the same.
pub(super) fn save(matches: &ArgMatches, recipe: Option<&str>) -> Result<()> {
    let Some(path) = matches.get_one::<PathBuf>("save-recipe") else { return Ok(()) };
    let Some(recipe) = recipe else {
        let message =
            "there are no rules to write: add --target-size, --target-bpw, --tensor-type or --recipe";
        return Err(Error::Request(format!("--save-recipe {}: {message}", path.display())));
    };
    if std::fs::read(path).is_ok_and(|there| there == recipe.as_bytes()) {
        return Ok(());
    }
    let mut file = std::fs::File::create_new(path).map_err(Error::io(path, "create"))?;
    file.write_all(recipe.as_bytes()).map_err(Error::io(path, "write"))
}

fn read(path: &Path) -> Result<Rules> {
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    let text = String::from_utf8(bytes)
        .map_err(|error| Error::Request(format!("{}: not UTF-8 text: {error}", path.display())))?;
    Rules::from_toml(path, &text)
}

/// For each rule what it has given: `{rule, target, type, tensors: [{name, type}]}`.
pub(super) fn to_json(rules: &Rules, blueprint: &Blueprint) -> Value {
    let rules = rules.iter().zip(given(rules, blueprint)).map(|(rule, tensors)| {
        let tensors: Vec<Value> =
            tensors.iter().map(|tensor| json!({"name": tensor.names[0], "type": tensor.type_name})).collect();
        json!({
            "rule": rule.origin,
            "target": rule.target.as_str(),
            "type": rule.choice.to_string(),
            "tensors": tensors,
        })
    });
    rules.collect()
}

/// Adds a line to `page` for each rule, and one for each type and kind of tensor that it has given.
pub(super) fn print(rules: &Rules, blueprint: &Blueprint, page: &mut Page) {
    for (rule, tensors) in rules.iter().zip(given(rules, blueprint)) {
        page.line(format_args!("rule {}: {} -> {}", rule.origin, rule.target.as_str(), rule.choice));
        if tensors.is_empty() {
            page.line(format_args!("  nothing: earlier rules have all that it matches"));
        }
        for ((type_name, before, after), numbers) in kinds(&tensors) {
            page.line(format_args!("  {type_name:<12} {before}{}{after}", ranges(&numbers)));
        }
    }
}

/// The tensors of each rule.
fn given<'a>(rules: &Rules, blueprint: &'a Blueprint) -> Vec<Vec<&'a OutputTensor>> {
    let mut given = vec![Vec::new(); rules.iter().len()];
    for tensor in &blueprint.tensors {
        if let Some(tensors) = tensor.rule.and_then(|rule| given.get_mut(rule)) {
            tensors.push(tensor);
        }
    }
    given
}

/// Tensors that differ in the number of their layer only, by type and what is around the number.
fn kinds<'a>(tensors: &[&'a OutputTensor]) -> BTreeMap<(&'a str, &'a str, &'a str), Vec<usize>> {
    let mut kinds: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for tensor in tensors {
        let (before, number, after) = crate::plan::numbered(&tensor.names[0]);
        kinds.entry((tensor.type_name.as_str(), before, after)).or_default().extend(number);
    }
    kinds.values_mut().for_each(|numbers| numbers.sort_unstable());
    kinds
}

/// `{0-2,7}`.
fn ranges(numbers: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let texts: Vec<String> = runs
        .iter()
        .map(|&(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect();
    match (numbers.len(), texts.as_slice()) {
        (0 | 1, _) => texts.concat(),
        _ => format!("{{{}}}", texts.join(",")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_collapsed_to_ranges() {
        for (numbers, text) in
            [(&[][..], ""), (&[7], "7"), (&[0, 1, 2, 7], "{0-2,7}"), (&[3, 5], "{3,5}"), (&[4, 5], "{4-5}")]
        {
            assert_eq!(ranges(numbers), text);
        }
    }
}
