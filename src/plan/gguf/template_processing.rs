//! Which tokens a `TemplateProcessing` post-processor adds: its first, last and middle ones.
//!
//! Source: llama.cpp `gguf-py/gguf/vocab.py` (`SpecialVocab._try_load_from_tokenizer_json`).

use serde_json::Value;

use super::special::Found;

/// Reads the templates for one text and for a pair into `found`.
pub(super) fn read(processor: &Value, found: &mut Found) {
    let list = |key: &str| processor.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let (single, pair) = (list("single"), list("pair"));
    let (mut first, mut last) = (None, None);
    if let [head, .., tail] = single {
        first = special(head);
        last = special(tail);
        if let Some(first) = first {
            read_first(first, found);
        }
        if let Some(last) = last {
            read_last(last, found);
        }
    }
    let starts = pair.first().is_some_and(|part| first.is_some() && special(part) == first);
    let ends = pair.last().is_some_and(|part| last.is_some() && special(part) == last);
    let inner =
        pair.get(usize::from(starts)..pair.len().saturating_sub(usize::from(ends))).unwrap_or_default();
    if let [a, middle @ .., b] = inner
        && !middle.is_empty()
        && sequence(a) == Some("A")
        && sequence(b) == Some("B")
    {
        read_middle(middle, last, found);
    }
}

/// A leading token is the beginning of a sequence, or a class token.
fn read_first(first: &str, found: &mut Found) {
    let first = Value::from(first);
    let is_known =
        |found: &Found| ["bos", "cls"].iter().any(|kind| found.token(kind).as_ref() == Some(&first));
    if !is_known(found) {
        for kind in ["bos", "cls"] {
            if found.token(kind).is_none() {
                found.set_token(kind, Some(first.clone()));
            }
        }
    }
    // Without tokenizer_config.json the first token is taken for the beginning of a sequence.
    found.set_adds("bos", found.config.is_none() || is_known(found));
}

/// A trailing token is the end of a sequence; the one named so until now ends a turn or a message.
fn read_last(last: &str, found: &mut Found) {
    let (last, eos) = (Value::from(last), found.token("eos"));
    if eos.as_ref() != Some(&last) {
        if let Some(kind) = ["eot", "eom"].into_iter().find(|kind| !found.kinds.contains(kind)) {
            found.kinds.push(kind);
            found.set_token(kind, eos);
        }
        found.set_token("eos", Some(last));
    }
    found.set_adds("eos", true);
}

/// What stands between two texts: a separator, perhaps after the first text's end.
fn read_middle(middle: &[Value], last: Option<&str>, found: &mut Found) {
    let separator = found.token("sep");
    let eos = if found.config.is_some() { found.token("eos") } else { last.map(Value::from) };
    let is_known = |part: Option<&Value>| {
        let token = part.and_then(special).map(Value::from);
        token.is_some() && (token == separator || token == eos)
    };
    let adds = is_known(middle.first()) && last.is_none() || middle.len() == 2 && is_known(middle.get(1));
    found.set_adds("sep", adds);
    if adds && separator.is_none() {
        found.set_token("sep", eos);
    }
}

fn special(part: &Value) -> Option<&str> {
    part.get("SpecialToken")?.get("id")?.as_str().filter(|id| !id.is_empty())
}

fn sequence(part: &Value) -> Option<&str> {
    part.get("Sequence")?.get("id")?.as_str()
}
