//! SentencePiece's tokenizer.model: its pieces, each with a score and a kind.
//!
//! The file is a protocol buffer; of its messages only those fields are read that are named here.
//!
//! Source: SentencePiece `src/sentencepiece_model.proto` (`ModelProto`, `TrainerSpec`); protocol buffers, "Encoding".

use std::collections::HashSet;

use crate::error::{Error, Result};

/// The file with it.
pub const SENTENCE_PIECE_FILE: &str = "tokenizer.model";

/// `ModelProto.pieces`, `ModelProto.trainer_spec`; `TrainerSpec.model_type`.
const PIECES: u64 = 1;
const TRAINER: u64 = 2;
const MODEL_TYPE: u64 = 3;
/// `SentencePiece.piece`, `.score`, `.type`.
const TEXT: u64 = 1;
const SCORE: u64 = 2;
const KIND: u64 = 3;
/// `TrainerSpec.ModelType`: what a file that does not say is, and the kind whose pieces merge by score.
const UNIGRAM: u64 = 1;
const BPE: u64 = 2;
/// Most pieces; the largest published vocabularies have 262,144.
const MAX_PIECES: usize = 4_000_000;

/// What a piece is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceKind {
    /// A part of a text.
    Normal,
    /// What stands for anything without a piece.
    Unknown,
    /// It must not come out of text.
    Control,
    /// A part of a text that is never cut.
    UserDefined,
    /// It stands for a byte.
    Byte,
    /// Nothing.
    Unused,
}

/// A piece of the vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// Its text, spaces as `▁`.
    pub text: String,
    /// Pieces of a higher score merge first.
    pub score: f32,
    /// What it is for.
    pub kind: PieceKind,
}

/// A field of a message.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Float(f32),
    Other,
}

/// The pieces, by id.
///
/// # Errors
/// A file that is cut short or no such model; a kind of model other than byte-pair encoding.
pub fn pieces(file: &[u8]) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut model_type = UNIGRAM;
    for_each_field(file, |number, field| match (number, field) {
        (PIECES, Field::Bytes(bytes)) if pieces.len() < MAX_PIECES => {
            pieces.push(piece(bytes, pieces.len())?);
            Ok(())
        }
        (PIECES, Field::Bytes(_)) => Err(invalid(&format!("more than {MAX_PIECES} pieces"), "fewer")),
        (TRAINER, Field::Bytes(bytes)) => for_each_field(bytes, |number, field| {
            if let (MODEL_TYPE, Field::Number(found)) = (number, field) {
                model_type = found;
            }
            Ok(())
        }),
        _ => Ok(()),
    })?;
    if pieces.is_empty() {
        return Err(invalid("no pieces", "a vocabulary"));
    }
    if model_type != BPE {
        return Err(Error::Unsupported {
            what: format!("{SENTENCE_PIECE_FILE}: model type {model_type} of SentencePiece"),
            hint: format!("this version reads byte-pair encoding ({BPE}), whose pieces merge by score"),
        });
    }
    let mut texts = HashSet::new();
    match pieces.iter().find(|piece| !texts.insert(piece.text.as_str())) {
        Some(twice) => Err(invalid(&format!("piece {:?} twice", twice.text), "each piece once")),
        None => Ok(pieces),
    }
}

fn piece(message: &[u8], id: usize) -> Result<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: PieceKind::Normal };
    for_each_field(message, |number, field| {
        match (number, field) {
            (TEXT, Field::Bytes(bytes)) => {
                let text = std::str::from_utf8(bytes)
                    .map_err(|_| invalid(&format!("piece {id} that is not UTF-8"), "text"))?;
                text.clone_into(&mut piece.text);
            }
            (SCORE, Field::Float(score)) => piece.score = score,
            (KIND, Field::Number(kind)) => {
                piece.kind = match kind {
                    1 => PieceKind::Normal,
                    2 => PieceKind::Unknown,
                    3 => PieceKind::Control,
                    4 => PieceKind::UserDefined,
                    5 => PieceKind::Unused,
                    6 => PieceKind::Byte,
                    other => return Err(invalid(&format!("piece {id} of type {other}"), "1 to 6")),
                }
            }
            _ => {}
        }
        Ok(())
    })?;
    if piece.text.is_empty() || piece.score.is_nan() {
        return Err(invalid(&format!("piece {id} without text or score"), "both"));
    }
    Ok(piece)
}

/// Hands out the fields of a message, in order.
fn for_each_field<'a>(
    mut message: &'a [u8],
    mut take: impl FnMut(u64, Field<'a>) -> Result<()>,
) -> Result<()> {
    while !message.is_empty() {
        let tag = number(&mut message)?;
        let field = match tag & 7 {
            0 => Field::Number(number(&mut message)?),
            1 => bytes(&mut message, 8).map(|_| Field::Other)?,
            2 => {
                let len = usize::try_from(number(&mut message)?).unwrap_or(usize::MAX);
                Field::Bytes(bytes(&mut message, len)?)
            }
            5 => match *bytes(&mut message, 4)? {
                [a, b, c, d] => Field::Float(f32::from_le_bytes([a, b, c, d])),
                _ => Field::Other,
            },
            other => return Err(invalid(&format!("wire type {other}"), "0, 1, 2 or 5")),
        };
        take(tag >> 3, field)?;
    }
    Ok(())
}

/// A number of variable length, seven bits a byte, the lowest first.
fn number(message: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes(message, 1)?[0];
        value |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return Ok(value);
        }
    }
    Err(invalid("a number of more than ten bytes", "one of ten at most"))
}

fn bytes<'a>(message: &mut &'a [u8], len: usize) -> Result<&'a [u8]> {
    let (taken, rest) =
        message.split_at_checked(len).ok_or_else(|| invalid("an end within a field", "a whole file"))?;
    *message = rest;
    Ok(taken)
}

fn invalid(found: &str, expected: &str) -> Error {
    Error::checkpoint(
        SENTENCE_PIECE_FILE,
        format!("not a model of SentencePiece: found {found}, expected {expected}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field of bytes.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, content.len() as u8][..], content].concat()
    }

    fn stored(text: &str, score: f32, kind: u8) -> Vec<u8> {
        let score = [&[2 << 3 | 5][..], &score.to_le_bytes()].concat();
        field(1, &[field(1, text.as_bytes()), score, vec![3 << 3, kind]].concat())
    }

    fn trainer(model_type: u8) -> Vec<u8> {
        field(2, &[3 << 3, model_type])
    }

    #[test]
    fn pieces_have_text_score_and_kind() {
        // A field that nobody asks for, of 8 bytes, is passed over.
        let file =
            [stored("<unk>", 0.0, 2), vec![9 << 3 | 1; 1], vec![0; 8], stored("▁a", -1.5, 1), trainer(2)];
        let found = pieces(&file.concat()).unwrap();
        let expected = [("<unk>", 0.0, PieceKind::Unknown), ("▁a", -1.5, PieceKind::Normal)];
        assert_eq!(found, expected.map(|(text, score, kind)| Piece { text: text.into(), score, kind }));
    }

    #[test]
    fn what_is_no_such_model_is_named() {
        let good = [stored("<unk>", 0.0, 2), trainer(2)].concat();
        let error = |file: &[u8]| pieces(file).err().unwrap().to_string();
        for (file, expected) in [
            (Vec::new(), "no pieces"),
            (good[..good.len() - 1].to_vec(), "an end within a field"),
            ([&good[..], &stored("<unk>", 0.0, 1)].concat(), "twice"),
            ([&good[..], &stored("", 0.0, 1)].concat(), "without text"),
            ([&good[..], &stored("a", f32::NAN, 1)].concat(), "without text or score"),
            ([&good[..], &stored("a", 0.0, 9)].concat(), "type 9"),
            ([&good[..], &field(1, &field(1, &[0xff]))].concat(), "not UTF-8"),
            ([&good[..], &[0xff; 11]].concat(), "more than ten bytes"),
            ([&good[..], &[7]].concat(), "wire type 7"),
            ([stored("<unk>", 0.0, 2), trainer(1)].concat(), "model type 1"),
            (stored("<unk>", 0.0, 2), "model type 1"),
            (b"not one at all".to_vec(), "tokenizer.model"),
        ] {
            assert!(error(&file).contains(expected), "{}", error(&file));
        }
    }
}
