//! `--tensor-type` and `--recipe`, and what `plan` shows of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::plan::{Blueprint, OutputTensor, Rule, Rules};

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
                 GGUF: as llama-quantize's, with ggml's names (q6_k, iq4_nl, bf16). MLX: 4bit, 6bit-g32, ... or bf16",
            ),
        Arg::new("recipe")
            .long("recipe")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("TOML file with rules: [[rule]] with target, and type (and group_size) or ignore = true"),
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

/// A line for each rule, and one for each type and kind of tensor that it has given.
pub(super) fn print(rules: &Rules, blueprint: &Blueprint) {
    for (rule, tensors) in rules.iter().zip(given(rules, blueprint)) {
        println!("rule {}: {} -> {}", rule.origin, rule.target.as_str(), rule.choice);
        if tensors.is_empty() {
            println!("  nothing: earlier rules have all that it matches");
        }
        for ((type_name, before, after), numbers) in kinds(&tensors) {
            println!("  {type_name:<12} {before}{}{after}", ranges(&numbers));
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
