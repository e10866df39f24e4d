//! The tokens that models are measured on, and how two tokenizers differ about them.

use std::collections::HashMap;
use std::path::PathBuf;

use clap::ArgMatches;

use crate::error::{Error, Result};
use crate::evaluate::{Bos, Tokens};
use crate::opened::Opened;
use crate::small;
use crate::tokenizer::Tokenizer;

/// What is measured on.
pub(super) struct Text {
    pub(super) tokens: Tokens,
    /// The first token that the original's tokenizer cuts otherwise.
    pub(super) cut_otherwise: Option<usize>,
    /// Whether the original's tokenizer by itself would begin windows otherwise.
    pub(super) begins_otherwise: bool,
}

impl Text {
    /// The tokens given, or the model's of the text.
    ///
    /// # Errors
    /// When the text cannot be read or tokenized, or the vocabularies of the two models do not match.
    pub(super) fn from_matches(
        matches: &ArgMatches,
        model: &Opened,
        original: Option<&Opened>,
    ) -> Result<Self> {
        let file = matches.get_one::<PathBuf>("tokens");
        let Some(text_path) = matches.get_one::<PathBuf>("text") else {
            let Some(file) = file else {
                return Err(Error::Request("nothing to measure on: give --text or --tokens".into()));
            };
            let json = small::read_given(file, small::TEXT)?;
            // What both have a tokenizer for must be the same.
            if let (Ok(model), Some(Ok(original))) = (model.tokenizer(), original.map(Opened::tokenizer)) {
                check_same_vocabulary(&model, &original)?;
            }
            let tokens = Tokens::from_json(&json, &file.display().to_string())?;
            return Ok(Text { tokens, cut_otherwise: None, begins_otherwise: false });
        };
        let text = small::text(text_path, small::read_given(text_path, small::TEXT)?)?;
        let bos = matches.get_one::<Bos>("bos").copied().unwrap_or_default();
        let tokenizer = model.tokenizer()?;
        let tokens = Tokens::encode(&tokenizer, &text, bos)?;
        let (cut_otherwise, begins_otherwise) = match original {
            None => (None, false),
            Some(original) => against(&text, bos, (&tokenizer, &tokens), original.tokenizer()?)?,
        };
        if let Some(file) = file {
            std::fs::write(file, tokens.to_json()).map_err(Error::io(file, "write"))?;
        }
        Ok(Text { tokens, cut_otherwise, begins_otherwise })
    }
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
