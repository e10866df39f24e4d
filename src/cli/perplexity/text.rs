//! The tokens that models are measured on, and how two tokenizers differ about them.

use std::collections::HashMap;
use std::path::PathBuf;

use clap::ArgMatches;

use crate::cli::texts;
use crate::error::{Error, Result};
use crate::evaluate::{Bos, Tokens, Windows};
use crate::opened::Opened;
use crate::small;
use crate::tokenizer::Tokenizer;

/// What is measured on.
pub(super) struct Text {
    pub(super) windows: Windows,
    /// The token that windows begin with.
    pub(super) bos: Option<u32>,
    /// The first token that the original's tokenizer cuts otherwise.
    pub(super) cut_otherwise: Option<usize>,
    /// Whether the original's tokenizer by itself would begin windows otherwise.
    pub(super) begins_otherwise: bool,
}

impl Text {
    /// The tokens given, or the model's of the texts, one text after the other.
    ///
    /// # Errors
    /// When a text cannot be read or tokenized, is shorter than a window, or the vocabularies of the two models do not match.
    pub(super) fn from_matches(
        matches: &ArgMatches,
        model: &Opened,
        original: Option<&Opened>,
        stride: Option<usize>,
    ) -> Result<Self> {
        let (context, bos, file) =
            (texts::context(matches), texts::bos(matches), matches.get_one::<PathBuf>("tokens"));
        let given = texts::given(matches);
        let most = texts::most_windows(matches, given.len());
        let cut = |tokens: &Tokens| {
            let mut windows = Windows::cut(tokens, context, stride)?;
            most.into_iter().for_each(|most| windows.truncate(most));
            Ok::<_, Error>(windows)
        };
        if given.is_empty() {
            let tokens = ids(file, model, original)?;
            return Ok(Text {
                windows: cut(&tokens)?,
                bos: tokens.bos,
                cut_otherwise: None,
                begins_otherwise: false,
            });
        }
        let tokenizer = model.tokenizer()?;
        let (mut first, mut differs, mut seen) = (None, None, 0);
        let windows = texts::windows(&given, |path| {
            let text = texts::read(path)?;
            let tokens = Tokens::encode(&tokenizer, &text, bos)?;
            if let Some(original) = original {
                let (cut_otherwise, begins_otherwise) =
                    against(&text, bos, (&tokenizer, &tokens), original.tokenizer()?)?;
                differs = differs.or(cut_otherwise.map(|token| seen + token));
                first = first.or(Some((tokens.bos, begins_otherwise)));
            }
            first = first.or(Some((tokens.bos, false)));
            seen += tokens.ids.len();
            if let Some(file) = file {
                std::fs::write(file, tokens.to_json()).map_err(Error::io(file, "write"))?;
            }
            cut(&tokens).map_err(|error| match given.len() {
                1 => error,
                _ => Error::Request(format!("{}: {error}", path.display())),
            })
        })?;
        let (Some(windows), Some((bos, begins_otherwise))) = (windows, first) else { return Err(nothing()) };
        Ok(Text { windows, bos, cut_otherwise: differs, begins_otherwise })
    }
}

/// The ids in the file of `--tokens`.
fn ids(file: Option<&PathBuf>, model: &Opened, original: Option<&Opened>) -> Result<Tokens> {
    let file = file.ok_or_else(nothing)?;
    let json = small::read_given(file, small::TEXT)?;
    // What both have a tokenizer for must be the same.
    if let (Ok(model), Some(Ok(original))) = (model.tokenizer(), original.map(Opened::tokenizer)) {
        check_same_vocabulary(&model, &original)?;
    }
    Tokens::from_json(&json, &file.display().to_string())
}

fn nothing() -> Error {
    Error::Request("nothing to measure on: give --text or --tokens".into())
}

/// Where the tokenizer of the original first cuts `text` otherwise, and whether it would begin windows otherwise. Both
/// models get the same windows all the same: the model's.
fn against(
    text: &str,
    bos: Bos,
    (tokenizer, tokens): (&Tokenizer, &Tokens),
    mut original: Tokenizer,
) -> Result<(Option<usize>, bool)> {
    // A GGUF file's takes special tokens for text, others do not: that is no difference of the two models.
    original.set_parses_special(tokenizer.parses_special());
    let begins_otherwise =
        bos == Bos::Auto && Tokens::encode(&original, "", Bos::Auto).is_ok_and(|own| own.bos != tokens.bos);
    let mut other = Tokens::encode(&original, text, Bos::Never)?;
    other.ids.splice(0..0, tokens.bos);
    other.bos = tokens.bos;
    if tokens.bos.is_some() {
        // The id must stand for the same token in both.
        check_same_vocabulary(tokenizer, &original)?;
    }
    Ok((first_cut_otherwise((tokenizer, tokens), (&original, &other))?, begins_otherwise))
}

/// Which windows both models got, if the original by itself would have had others.
pub(super) fn on_other_beginnings(bos: Option<u32>) -> String {
    match bos {
        Some(bos) => format!(
            "windows begin with BOS (token {bos}), as the model's tokenizer has it and the original's has not; both models \
             were given the same tokens"
        ),
        None => "windows begin without BOS, as the model's tokenizer has it and the original's has not; both models were \
                 given the same tokens"
            .into(),
    }
}

/// Which token of the text is the first that the two tokenizers cut otherwise, if any is. That is no matter of weights:
/// both models are measured on the same tokens.
///
/// # Errors
/// Vocabularies or beginnings of windows that differ: models of these cannot be compared token by token.
pub(in crate::cli) fn first_cut_otherwise(
    (tokenizer, tokens): (&Tokenizer, &Tokens),
    (original, other): (&Tokenizer, &Tokens),
) -> Result<Option<usize>> {
    if tokens == other {
        return Ok(None);
    }
    check_same_vocabulary(tokenizer, original)?;
    if tokens.bos != other.bos {
        return Err(Error::Request(format!(
            "windows of the model begin with BOS {:?}, those of the original with {:?}; --bos always or never makes \
             them alike",
            tokens.bos, other.bos
        )));
    }
    Ok(Some(tokens.ids.iter().zip(&other.ids).take_while(|(a, b)| a == b).count()))
}

/// Ids stand for the same tokens, as far as both models have them.
fn check_same_vocabulary(model: &Tokenizer, original: &Tokenizer) -> Result<()> {
    let by_id: HashMap<u32, String> =
        original.vocabulary().into_iter().map(|(token, id)| (id, token)).collect();
    let differs = model.vocabulary().into_iter().filter_map(|(token, id)| {
        let other = by_id.get(&id)?;
        (*other != token).then_some((id, token, other))
    });
    match differs.min() {
        None => Ok(()),
        Some((id, token, other)) => Err(Error::Request(format!(
            "the two models' vocabularies do not match: token {id} is {token:?} for the model, {other:?} for the original"
        ))),
    }
}
