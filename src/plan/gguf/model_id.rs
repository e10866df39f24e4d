//! Reads organization, base name, size, fine-tune and version off a model's name.
//!
//! `deepseek-ai/DeepSeek-V3-0324` is organization `deepseek-ai`, base name `DeepSeek`, version
//! `V3-0324`. Source: llama.cpp `gguf-py/gguf/metadata.py` (`get_model_id_components`,
//! `id_to_title`).

/// What a name says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ModelId {
    /// The name without the organization.
    pub(super) name: String,
    pub(super) organization: Option<String>,
    pub(super) base_name: Option<String>,
    pub(super) fine_tune: Option<String>,
    pub(super) version: Option<String>,
    pub(super) size_label: Option<String>,
}

/// What one part between hyphens may be; more than one can be true.
#[derive(Debug, Clone, Copy, Default)]
struct Kinds {
    base_name: bool,
    size_label: bool,
    fine_tune: bool,
    version: bool,
    quantization: bool,
}

impl Kinds {
    fn count(self) -> usize {
        [self.base_name, self.size_label, self.fine_tune, self.version, self.quantization]
            .iter()
            .filter(|&&is| is)
            .count()
    }
}

/// Takes a name apart; `total_weights` tells sizes from context lengths.
pub(super) fn parse(id: &str, total_weights: u64) -> ModelId {
    if id.contains(' ') {
        return ModelId { name: id.to_owned(), ..ModelId::default() };
    }
    let (organization, name) = match id.split_once('/') {
        Some((organization, name)) => (Some(organization), name),
        None => (None, id),
    };
    let organization = organization.filter(|text| !text.starts_with('.')).map(str::to_owned);

    let mut parts: Vec<(String, Kinds)> = name
        .split('-')
        .filter(|part| !part.is_empty())
        .enumerate()
        .map(|(position, part)| classify(position, part, total_weights))
        .collect();

    let has_number = parts.iter().any(|(part, kinds)| kinds.size_label && part.contains(is_decimal));
    for (part, kinds) in &mut parts {
        if has_number && kinds.size_label && part.chars().all(char::is_alphabetic) {
            kinds.size_label = false;
        }
    }
    mark_base_name(&mut parts);

    let join = |is: fn(&Kinds) -> bool| -> Vec<&str> {
        parts.iter().filter(|(_, kinds)| is(kinds)).map(|(part, _)| part.as_str()).collect()
    };
    let text = |chosen: Vec<&str>| (!chosen.is_empty()).then(|| chosen.join("-"));
    let mut sizes: Vec<&str> = Vec::new();
    for size in join(|kinds| kinds.size_label) {
        if !sizes.contains(&size) {
            sizes.push(size);
        }
    }
    let size_label = text(sizes);
    let fine_tune = text(join(|kinds| kinds.fine_tune));
    let version = text(join(|kinds| kinds.version && !kinds.base_name));
    let ambiguous = size_label.is_none() && fine_tune.is_none() && version.is_none();
    let base_name = text(join(|kinds| kinds.base_name)).filter(|_| !ambiguous);
    ModelId { name: name.to_owned(), organization, base_name, fine_tune, version, size_label }
}

/// Leading parts without another meaning, and versions among them, are the base name; versions
/// at its end are not.
fn mark_base_name(parts: &mut [(String, Kinds)]) {
    let mut at_start = true;
    for (part, kinds) in parts.iter_mut() {
        let is_word = kinds.count() == 0 && part.starts_with(char::is_alphabetic);
        if at_start && (is_word || kinds.version) {
            kinds.base_name = true;
        } else {
            at_start = false;
            if kinds.count() == 0 {
                kinds.fine_tune = true;
            }
        }
    }
    for (_, kinds) in parts.iter_mut().rev() {
        if !kinds.base_name || kinds.count() < 2 {
            break;
        }
        kinds.base_name = false;
    }
}

fn classify(position: usize, part: &str, total_weights: u64) -> (String, Kinds) {
    let mut kinds = Kinds::default();
    if is_version(part) {
        kinds.version = true;
    } else if is_quantization(part) {
        kinds.quantization = true;
    } else if position > 0 && is_size(part) {
        let mut part = normalize_size(part);
        if total_weights != 0
            && let Some(weights) = size_weights(&part)
            && (weights - total_weights as f64).abs() > (7 * total_weights / 8) as f64
        {
            // Far from the model's size: a context length, whose unit is written small.
            kinds.fine_tune = true;
            let unit = part.pop().map(|unit| unit.to_ascii_lowercase());
            part.extend(unit);
        } else {
            kinds.size_label = true;
        }
        return (part, kinds);
    } else if position > 0
        && ["chat", "instruct", "vision", "lora"].iter().any(|word| part.eq_ignore_ascii_case(word))
    {
        kinds.fine_tune = true;
    }
    (part.to_owned(), kinds)
}

/// `7`, `v1.5`, `iter2`.
fn is_version(part: &str) -> bool {
    let lower = part.to_lowercase();
    let digits = lower.strip_prefix("iter").or_else(|| lower.strip_prefix('v')).unwrap_or(&lower);
    digits.split('.').all(is_digits)
}

/// `q4_k_m`, `iq2_xxs` up to one letter a piece, `bf16`, `fp16`, `f32`.
fn is_quantization(part: &str) -> bool {
    let lower = part.to_lowercase();
    let width = |text: &str| matches!(text, "16" | "32");
    let float = lower.strip_prefix('b').unwrap_or(&lower);
    if let Some(rest) = float.strip_prefix('f')
        && width(rest.strip_prefix('p').unwrap_or(rest))
    {
        return true;
    }
    let Some(rest) = lower.strip_prefix('i').unwrap_or(&lower).strip_prefix('q') else { return false };
    let mut pieces = rest.split('_');
    let one = |text: &str, is: fn(char) -> bool| text.chars().count() == 1 && text.chars().all(is);
    let word = |c: char| c.is_alphanumeric();
    pieces.next().is_some_and(|first| one(first, is_decimal)) && pieces.all(|piece| one(piece, word))
}

/// `7B`, `1.5B`, `8x22B`, `A17B`, `7b1`, or a word for a size.
fn is_size(part: &str) -> bool {
    let lower = part.to_lowercase();
    if matches!(lower.as_str(), "small" | "mini" | "medium" | "large" | "xl" | "xxl") {
        return true;
    }
    // From the end: an optional digit, a unit, a number with an optional fraction.
    let unit = |text: &str| text.ends_with(['k', 'm', 'b', 't']);
    let head = match lower.strip_suffix(is_decimal) {
        Some(rest) if unit(rest) => &rest[..rest.len() - 1],
        _ if unit(&lower) => &lower[..lower.len() - 1],
        _ => return false,
    };
    let number = match head.strip_prefix('a') {
        Some(rest) => rest,
        None => match head.split_once('x') {
            Some((count, rest)) if is_digits(count) => rest,
            _ => head,
        },
    };
    let (whole, fraction) = match number.split_once(['.', '_']) {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (number, None),
    };
    is_digits(whole) && fraction.is_none_or(is_digits)
}

/// Points for underscores, `7b1` as `7.1b`, a capital unit after a digit.
fn normalize_size(part: &str) -> String {
    let mut chars: Vec<char> = part.replace('_', ".").chars().collect();
    if let [.., unit, digit] = *chars.as_slice()
        && is_decimal(digit)
    {
        chars.truncate(chars.len() - 2);
        chars.extend(['.', digit, unit]);
    }
    if let [.., before, unit] = chars.as_mut_slice()
        && is_decimal(*before)
    {
        *unit = unit.to_ascii_uppercase();
    }
    chars.into_iter().collect()
}

/// Weights a size stands for; `None` for `8x7B`, `A17B` and words, which are taken as they are.
fn size_weights(part: &str) -> Option<f64> {
    let unit = part.chars().last()?;
    let number: f64 = part[..part.len() - unit.len_utf8()].parse().ok()?;
    let power = " KMBT".find(unit);
    // An unknown unit gives Python's index -1.
    Some(number * power.map_or(0.001, |power| 1000f64.powi(power as i32)))
}

/// Title case for words in small letters that are no version and do not begin with a digit.
pub(super) fn title(id: &str) -> String {
    let spaced = id.trim().replace('-', " ");
    let words = spaced.split_whitespace().map(|word| {
        let has_letter = word.chars().any(char::is_alphabetic);
        let is_lower = has_letter && !word.chars().any(char::is_uppercase);
        let version = word.strip_prefix('v').is_some_and(|rest| rest.split('.').all(is_digits));
        if is_lower && !version && !word.starts_with(is_decimal) { capitalize(word) } else { word.to_owned() }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Python's `str.title`: a capital after everything that is not a letter.
fn capitalize(word: &str) -> String {
    let mut result = String::with_capacity(word.len());
    let mut after_letter = false;
    for c in word.chars() {
        if after_letter {
            result.extend(c.to_lowercase());
        } else {
            result.extend(c.to_uppercase());
        }
        after_letter = c.is_alphabetic();
    }
    result
}

fn is_decimal(c: char) -> bool {
    c.is_ascii_digit()
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.chars().all(is_decimal)
}

#[cfg(test)]
mod tests;
