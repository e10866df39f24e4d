//! Rules: tensors that get another type than their format would give them.
//!
//! A rule is a regular expression and a type. It is read as one on names of the *result*; only when it
//! matches none of these is it tried on names of the *source*, where it has to match all that an output
//! tensor is made of (every expert of a stacked one). Of several rules that match a tensor the first
//! counts, as in llama-quantize. Rules say nothing about tensors that a format never quantizes.
//!
//! What a type is called, and whether a tensor can have it, is the target's business: it hands its
//! tensors to [`Rules::assign`] and gives meaning to the [`Choice`] that comes back.

use super::{Piece, TARGETS};
use crate::checkpoint::Catalogue;
use crate::error::{Error, Result};

mod pattern;
mod recipe;
#[cfg(test)]
mod tests;

pub use pattern::Pattern;

/// What a rule gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// A type, by the name it has in the format's family.
    Type {
        /// Its name: `q6_k`, `4bit`.
        name: String,
        /// Weights in a group, for families where a name leaves that open.
        group_size: Option<usize>,
    },
    /// The tensor is not quantized.
    Ignore,
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Type { name, group_size: None } => f.write_str(name),
            Self::Type { name, group_size: Some(len) } => write!(f, "{name}, groups of {len}"),
            Self::Ignore => f.write_str("not quantized"),
        }
    }
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Tensors it is for.
    pub target: Pattern,
    /// What they get.
    pub choice: Choice,
    /// Where it was stated, for messages: `--tensor-type 'ffn_down=q6_k'`, `recipe.toml, line 3`.
    pub origin: String,
}

impl Rule {
    /// `REGEX=TYPE`, as llama-quantize takes it: names are matched as lower case.
    ///
    /// Type names hold no `=`, so the last one counts, where llama-quantize takes the first.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence.
    pub fn from_argument(text: &str) -> std::result::Result<Self, String> {
        let (target, name) = text.rsplit_once('=').ok_or("expected REGEX=TYPE")?;
        match (target, name) {
            ("", _) => Err("no regular expression before the =".into()),
            (_, "") => Err("no type after the =".into()),
            _ => Ok(Self {
                target: Pattern::lower_case(target)?,
                choice: Choice::Type { name: name.to_owned(), group_size: None },
                origin: format!("--tensor-type '{text}'"),
            }),
        }
    }

    /// The error for a type that the family `family` does not know.
    pub(super) fn unknown_type(&self, family: &str, known: &[&str]) -> Error {
        let Choice::Type { name, .. } = &self.choice else {
            return Error::Request(format!("{}: not a type", self.origin));
        };
        let elsewhere = TARGETS.iter().find(|target| {
            target.family() != family && target.types().iter().any(|other| other.eq_ignore_ascii_case(name))
        });
        let is = match elsewhere {
            Some(target) => format!("is a type of {}, not of {family}", target.family()),
            None => format!("is no type of {family}"),
        };
        Error::Request(format!(
            "{}: {:?} {is}; known: {}",
            self.origin,
            self.choice.to_string(),
            known.join(", ")
        ))
    }
}

/// A tensor of the result, as rules see it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate<'a> {
    /// Name in the result.
    pub(super) name: &'a str,
    /// What it is made of.
    pub(super) pieces: &'a [Piece],
    /// Whether the format could quantize it.
    pub(super) can_be_quantized: bool,
}

/// Rules in order of precedence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    list: Vec<Rule>,
    /// The value of `--to` that a recipe says it was made for.
    made_for: Option<String>,
}

impl Rules {
    /// The rules, the first to count first.
    pub fn new(list: Vec<Rule>) -> Self {
        Self { list, made_for: None }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Rule> {
        self.list.iter()
    }

    /// Number `number`, from 0.
    pub fn get(&self, number: usize) -> Option<&Rule> {
        self.list.get(number)
    }

    /// These rules, and behind them `others`.
    #[must_use]
    pub fn then(mut self, others: Self) -> Self {
        self.list.extend(others.list);
        self.made_for = self.made_for.or(others.made_for);
        self
    }

    /// Holds a recipe's `to` against the format asked for.
    pub(super) fn check_format(&self, format: &str) -> Result<()> {
        match &self.made_for {
            Some(to) if !to.eq_ignore_ascii_case(format) => Err(Error::Request(format!(
                "the recipe says to = {to:?}, but the format asked for is {format}: change one of them"
            ))),
            _ => Ok(()),
        }
    }

    /// Which rule, if any, is for each of `candidates`.
    ///
    /// # Errors
    /// A rule that matches nothing, only tensors that are never quantized, or a part of an output tensor.
    pub(super) fn assign(
        &self,
        source: &Catalogue,
        candidates: &[Candidate<'_>],
    ) -> Result<Vec<Option<usize>>> {
        let mut assigned = vec![None; candidates.len()];
        for (number, rule) in self.list.iter().enumerate() {
            let matched = rule.matches(source, candidates)?;
            for at in rule.quantizable(&matched, candidates)? {
                let _: &mut usize = assigned[at].get_or_insert(number);
            }
        }
        Ok(assigned)
    }
}

impl<'a> IntoIterator for &'a Rules {
    type Item = &'a Rule;
    type IntoIter = std::slice::Iter<'a, Rule>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Rule {
    /// Positions of the candidates that it matches; not empty.
    fn matches(&self, source: &Catalogue, candidates: &[Candidate<'_>]) -> Result<Vec<usize>> {
        let is_match = |name: &str| {
            self.target.is_match(name).map_err(|why| Error::Request(format!("{}: {why}", self.origin)))
        };
        let mut matched = Vec::new();
        for (at, candidate) in candidates.iter().enumerate() {
            if is_match(candidate.name)? {
                matched.push(at);
            }
        }
        if !matched.is_empty() {
            return Ok(matched);
        }
        let tensors = source.tensors();
        let mut in_source = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            in_source.push(is_match(&tensor.name)?);
        }
        for (at, candidate) in candidates.iter().enumerate() {
            let found = candidate.pieces.iter().filter(|piece| in_source[piece.source]).count();
            if found == candidate.pieces.len() && found > 0 {
                matched.push(at);
            } else if found > 0 {
                return Err(Error::Request(format!(
                    "{}: matches a part of what {} is made of ({found} of {} pieces), which has one type; \
                     match the whole",
                    self.origin,
                    candidate.name,
                    candidate.pieces.len()
                )));
            }
        }
        if matched.is_empty() {
            let left_out = in_source.iter().filter(|&&found| found).count();
            let but = if left_out == 0 {
                "nor of the source".to_owned()
            } else {
                format!("only {left_out} of the source that are scales or left out")
            };
            return Err(Error::Request(format!(
                "{}: matches no tensor of the result, {but}; `requant inspect` lists names",
                self.origin
            )));
        }
        Ok(matched)
    }

    /// Those of `matched` that can be quantized; not empty.
    fn quantizable(&self, matched: &[usize], candidates: &[Candidate<'_>]) -> Result<Vec<usize>> {
        let kept: Vec<usize> =
            matched.iter().copied().filter(|&at| candidates[at].can_be_quantized).collect();
        if kept.is_empty() {
            return Err(Error::Request(format!(
                "{}: matches only tensors that are never quantized: {}",
                self.origin,
                listed(matched.iter().map(|&at| candidates[at].name))
            )));
        }
        Ok(kept)
    }
}

/// A name around the number of its layer: `blk.`, 12, `.ffn_down.weight`. Without one all of it comes first.
pub fn numbered(name: &str) -> (&str, Option<usize>, &str) {
    let mut start = 0;
    for component in name.split('.') {
        let end = start + component.len();
        // Names such as 007 would not be found again by their number.
        if let Ok(number) = component.parse::<usize>()
            && number.to_string() == component
        {
            return (&name[..start], Some(number), &name[end..]);
        }
        start = end + 1;
    }
    (name, None, "")
}

/// The first names, and how many more there are.
fn listed<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    const SHOWN: usize = 3;
    let more = names.len().saturating_sub(SHOWN);
    let shown: Vec<&str> = names.take(SHOWN).collect();
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}
