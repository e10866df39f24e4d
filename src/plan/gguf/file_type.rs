//! GGUF file types: the base type of each and its exceptions, as data.
//!
//! A new file type is one entry in [`FILE_TYPES`].
//! Source: llama.cpp `src/llama-quant.cpp` (`llama_ftype_get_default_type`,
//! `llama_tensor_get_type_impl`), `include/llama.h` (numbers), `tools/quantize/quantize.cpp` (names).

use requant_formats::codec::{self, Codec};
use requant_formats::container::gguf::GgmlType;

use super::imatrix;
use super::mix::{Category, Rule, When};
use crate::error::{Error, Result};
use crate::plan::{Format, ImportanceUse};

/// A file type of `llama-quantize`.
#[derive(Debug)]
pub(super) struct FileType {
    /// Its name, lower case, and a line for `--help`.
    pub(super) format: Format,
    /// Value of `general.file_type`.
    pub(super) id: u32,
    /// Type of most matrices.
    pub(super) base: GgmlType,
    /// Exceptions; the first that applies counts.
    pub(super) rules: &'static [Rule],
}

impl FileType {
    /// What an importance matrix does for it: its codecs say whether they weigh errors.
    pub(super) fn importance(&self) -> ImportanceUse {
        let weighs = |ggml_type: GgmlType| codec::find(ggml_type.name()).is_some_and(Codec::weighs);
        // Nothing is known of the columns of embeddings, and of those of the head seldom.
        let is_of_layers =
            |rule: &&Rule| !matches!(rule.category, Category::Output | Category::TokenEmbedding);
        let types = || self.rules.iter().filter(is_of_layers).map(|rule| rule.to).chain([self.base]);
        if self.id == Q2_K_S || types().any(imatrix::is_needed) {
            ImportanceUse::Wanted
        } else if types().any(weighs) {
            ImportanceUse::Helps
        } else {
            ImportanceUse::Unused
        }
    }

    /// Whether it is of less than three bits a weight: llama-quantize chooses types for these in a way of its own.
    pub(super) fn is_below_three_bits(&self) -> bool {
        use GgmlType::{IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS};
        matches!(self.base, IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S)
    }

    /// Bits of a weight in a matrix of the base type.
    pub(super) fn bits_per_weight(&self) -> f64 {
        8.0 * self.base.block_len_bytes() as f64 / self.base.block_len_elems() as f64
    }
}

/// Number of the file type that llama-quantize makes with an importance matrix only, whatever its types.
const Q2_K_S: u32 = 21;

const fn file_type(
    name: &'static str,
    about: &'static str,
    id: u32,
    base: GgmlType,
    rules: &'static [Rule],
) -> FileType {
    FileType { format: Format { name, about }, id, base, rules }
}

const fn rule(category: Category, when: When, to: GgmlType) -> Rule {
    Rule { category, when, to }
}

const Q2_K_RULES: &[Rule] = &[
    rule(Category::AttentionV, When::SharedHeads, GgmlType::Q4_K),
    rule(Category::AttentionV, When::Always, GgmlType::Q3_K),
    rule(Category::FfnDown, When::Always, GgmlType::Q3_K),
    rule(Category::AttentionOutput, When::EightExperts, GgmlType::Q5_K),
    rule(Category::AttentionOutput, When::Always, GgmlType::Q3_K),
];
const Q2_K_S_RULES: &[Rule] = &[
    rule(Category::AttentionV, When::SharedHeads, GgmlType::Q4_K),
    rule(Category::FfnDown, When::FirstEighth, GgmlType::Q4_K),
];
const IQ1_RULES: &[Rule] = &[
    rule(Category::Output, When::Always, GgmlType::Q5_K),
    rule(Category::TokenEmbedding, When::Always, GgmlType::Q2_K),
    rule(Category::AttentionV, When::SharedHeadsOrExperts, GgmlType::Q4_K),
    rule(Category::AttentionV, When::Always, GgmlType::Q2_K),
    rule(Category::AttentionK, When::EightExperts, GgmlType::Q4_K),
    rule(Category::FfnDown, When::FirstEighth, GgmlType::Q2_K),
    rule(Category::AttentionOutput, When::EightExperts, GgmlType::Q5_K),
    rule(Category::AttentionOutput, When::Always, GgmlType::IQ2_XXS),
];
const IQ2_XS_RULES: &[Rule] = &[
    rule(Category::Output, When::Always, GgmlType::Q5_K),
    rule(Category::TokenEmbedding, When::Always, GgmlType::Q2_K),
    rule(Category::AttentionV, When::SharedHeadsOrExperts, GgmlType::Q4_K),
    rule(Category::AttentionV, When::Always, GgmlType::Q2_K),
    rule(Category::AttentionK, When::EightExperts, GgmlType::Q4_K),
    rule(Category::FfnDown, When::FirstEighth, GgmlType::Q2_K),
    rule(Category::AttentionOutput, When::EightExperts, GgmlType::Q5_K),
];
const IQ2_M_RULES: &[Rule] = &[
    rule(Category::Output, When::Always, GgmlType::Q5_K),
    rule(Category::TokenEmbedding, When::Always, GgmlType::IQ3_S),
    rule(Category::AttentionV, When::SharedHeadsOrExperts, GgmlType::Q4_K),
    rule(Category::AttentionV, When::Always, GgmlType::IQ3_S),
    rule(Category::AttentionK, When::EightExperts, GgmlType::Q4_K),
    rule(Category::FfnDown, When::FirstEighth, GgmlType::IQ3_S),
    rule(Category::AttentionOutput, When::EightExperts, GgmlType::Q5_K),
    rule(Category::AttentionOutput, When::Always, GgmlType::IQ3_S),
];
const IQ3_XXS_RULES: &[Rule] = &[
    rule(Category::Output, When::Always, GgmlType::Q5_K),
    rule(Category::TokenEmbedding, When::Always, GgmlType::IQ3_S),
    rule(Category::AttentionV, When::SharedHeads, GgmlType::Q4_K),
    rule(Category::AttentionV, When::Unweighed, GgmlType::IQ3_S),
    rule(Category::AttentionK, When::Always, GgmlType::IQ2_S),
    rule(Category::AttentionQ, When::Always, GgmlType::IQ2_S),
    rule(Category::FfnDown, When::FirstEighthUnweighed, GgmlType::Q4_K),
    rule(Category::FfnDown, When::Unweighed, GgmlType::Q3_K),
    rule(Category::AttentionOutput, When::EightExperts, GgmlType::Q5_K),
    rule(Category::AttentionOutput, When::Always, GgmlType::IQ3_S),
];
const IQ3_XS_RULES: &[Rule] = &[
    rule(Category::AttentionV, When::SharedHeads, GgmlType::Q4_K),
    rule(Category::AttentionK, When::Always, GgmlType::IQ3_XXS),
    rule(Category::AttentionQ, When::Always, GgmlType::IQ3_XXS),
    rule(Category::FfnGate, When::Inner, GgmlType::IQ3_XXS),
    rule(Category::FfnUp, When::Inner, GgmlType::IQ3_XXS),
    rule(Category::AttentionOutput, When::EightExperts, GgmlType::Q5_K),
];
const IQ3_S_RULES: &[Rule] = &[
    rule(Category::AttentionV, When::SharedHeads, GgmlType::Q4_K),
    rule(Category::AttentionOutput, When::EightExperts, GgmlType::Q5_K),
];
const IQ3_M_RULES: &[Rule] = &[
    rule(Category::AttentionV, When::Always, GgmlType::Q4_K),
    rule(Category::FfnDown, When::FirstEighth, GgmlType::Q4_K),
    rule(Category::FfnDown, When::EightExpertsMoreBits, GgmlType::Q4_K),
    rule(Category::AttentionOutput, When::EightExperts, GgmlType::Q5_K),
    rule(Category::AttentionOutput, When::Always, GgmlType::Q4_K),
];
const TERNARY_RULES: &[Rule] = &[rule(Category::TokenEmbedding, When::Always, GgmlType::Q4_K)];
const Q3_K_S_RULES: &[Rule] = &[rule(Category::AttentionOutput, When::EightExperts, GgmlType::Q5_K)];
const Q3_K_M_RULES: &[Rule] = &[
    rule(Category::AttentionV, When::FirstTwo, GgmlType::Q5_K),
    rule(Category::AttentionV, When::Always, GgmlType::Q4_K),
    rule(Category::FfnDown, When::FirstSixteenth, GgmlType::Q5_K),
    rule(Category::FfnDown, When::Always, GgmlType::Q4_K),
    rule(Category::AttentionOutput, When::EightExperts, GgmlType::Q5_K),
    rule(Category::AttentionOutput, When::Always, GgmlType::Q4_K),
];
const Q3_K_L_RULES: &[Rule] = &[
    rule(Category::AttentionV, When::Always, GgmlType::Q5_K),
    rule(Category::FfnDown, When::Always, GgmlType::Q5_K),
    rule(Category::AttentionOutput, When::EightExperts, GgmlType::Q3_K),
    rule(Category::AttentionOutput, When::Always, GgmlType::Q5_K),
];
const IQ4_RULES: &[Rule] = &[
    rule(Category::AttentionV, When::SharedHeads, GgmlType::Q5_K),
    rule(Category::FfnDown, When::FirstEighthUnweighed, GgmlType::Q5_K),
    rule(Category::AttentionOutput, When::EightExperts, GgmlType::Q5_K),
];
/// Against craziness in the first layers, which even an importance matrix does not prevent.
const Q4_0_RULES: &[Rule] = &[rule(Category::FfnDown, When::FirstEighthWeighed, GgmlType::Q4_1)];
const Q5_0_RULES: &[Rule] = &[rule(Category::FfnDown, When::FirstEighthWeighed, GgmlType::Q5_1)];
const Q4_K_S_RULES: &[Rule] = &[
    rule(Category::AttentionV, When::FirstFour, GgmlType::Q5_K),
    rule(Category::FfnDown, When::FirstEighth, GgmlType::Q5_K),
    rule(Category::AttentionOutput, When::EightExperts, GgmlType::Q5_K),
];
const Q4_K_M_RULES: &[Rule] = &[
    rule(Category::AttentionV, When::MoreBits, GgmlType::Q6_K),
    rule(Category::FfnDown, When::MoreBits, GgmlType::Q6_K),
    rule(Category::AttentionOutput, When::EightExperts, GgmlType::Q5_K),
];
const Q5_K_M_RULES: &[Rule] = &[
    rule(Category::AttentionV, When::MoreBits, GgmlType::Q6_K),
    rule(Category::FfnDown, When::MoreBits, GgmlType::Q6_K),
];

/// Every file type this version writes; `q3_k`, `q4_k` and `q5_k` are llama-quantize's own
/// aliases. llama-quantize refuses to make `q2_k_s` without an importance matrix; with that refusal taken out it makes the
/// same file.
pub(super) const FILE_TYPES: &[FileType] = &[
    file_type("f32", "32-bit floats, nothing is lost", 0, GgmlType::F32, &[]),
    file_type("f16", "16-bit floats", 1, GgmlType::F16, &[]),
    file_type("bf16", "16-bit brain floats", 32, GgmlType::BF16, &[]),
    file_type("q8_0", "8.5 bits per weight", 7, GgmlType::Q8_0, &[]),
    file_type("q4_0", "4.5 bits, plain rounding", 2, GgmlType::Q4_0, Q4_0_RULES),
    file_type("q4_1", "5 bits, plain rounding with a minimum", 3, GgmlType::Q4_1, &[]),
    file_type("q5_0", "5.5 bits, plain rounding", 8, GgmlType::Q5_0, Q5_0_RULES),
    file_type("q5_1", "6 bits, plain rounding with a minimum", 9, GgmlType::Q5_1, &[]),
    file_type("q4_k_s", "4.5 bits, searched scales", 14, GgmlType::Q4_K, Q4_K_S_RULES),
    file_type("q4_k_m", "4.5 bits, half of the down projections 6", 15, GgmlType::Q4_K, Q4_K_M_RULES),
    file_type("q5_k_s", "5.5 bits, searched scales", 16, GgmlType::Q5_K, &[]),
    file_type("q5_k_m", "5.5 bits, half of the down projections 6", 17, GgmlType::Q5_K, Q5_K_M_RULES),
    file_type("q6_k", "6.6 bits, searched scales", 18, GgmlType::Q6_K, &[]),
    file_type("q2_k", "2.6 bits, down projections 3.4, searched scales", 10, GgmlType::Q2_K, Q2_K_RULES),
    file_type(
        "q2_k_s",
        "2.6 bits throughout, poor without an importance matrix",
        21,
        GgmlType::Q2_K,
        Q2_K_S_RULES,
    ),
    file_type("q3_k_s", "3.4 bits, searched scales", 11, GgmlType::Q3_K, Q3_K_S_RULES),
    file_type("q3_k_m", "3.4 bits, down projections 4.5 to 5.5", 12, GgmlType::Q3_K, Q3_K_M_RULES),
    file_type("q3_k_l", "3.4 bits, down projections 5.5", 13, GgmlType::Q3_K, Q3_K_L_RULES),
    file_type("iq4_nl", "4.5 bits, uneven levels", 25, GgmlType::IQ4_NL, IQ4_RULES),
    file_type("iq4_xs", "4.25 bits, uneven levels", 30, GgmlType::IQ4_XS, IQ4_RULES),
    file_type(
        "iq3_m",
        "3.4 bits from codebooks, first down projections 4.5",
        27,
        GgmlType::IQ3_S,
        IQ3_M_RULES,
    ),
    file_type("iq3_s", "3.4 bits from codebooks", 26, GgmlType::IQ3_S, IQ3_S_RULES),
    file_type("iq3_xs", "3.4 bits from codebooks, most layers 3.1", 22, GgmlType::IQ3_S, IQ3_XS_RULES),
    file_type("iq3_xxs", "3.1 bits from codebooks", 23, GgmlType::IQ3_XXS, IQ3_XXS_RULES),
    file_type("iq2_m", "2.6 bits from codebooks, attention outputs 3.4", 29, GgmlType::IQ2_S, IQ2_M_RULES),
    file_type("iq2_s", "2.3 bits from codebooks, attention outputs 3.4", 28, GgmlType::IQ2_XS, IQ2_M_RULES),
    file_type("iq2_xs", "2.3 bits from codebooks", 20, GgmlType::IQ2_XS, IQ2_XS_RULES),
    file_type("iq2_xxs", "2.1 bits from codebooks", 19, GgmlType::IQ2_XXS, IQ2_XS_RULES),
    file_type("iq1_m", "1.75 bits from codebooks", 31, GgmlType::IQ1_M, IQ1_RULES),
    file_type("iq1_s", "1.6 bits from codebooks", 24, GgmlType::IQ1_S, IQ1_RULES),
    file_type("tq2_0", "2.1 bits, for models trained with three values", 37, GgmlType::TQ2_0, TERNARY_RULES),
    file_type("tq1_0", "1.7 bits, for models trained with three values", 36, GgmlType::TQ1_0, TERNARY_RULES),
    file_type("q2_0", "2.25 bits, for models trained with three values", 41, GgmlType::Q2_0, TERNARY_RULES),
    file_type("q1_0", "1.125 bits, for models trained with two values", 40, GgmlType::Q1_0, &[]),
    file_type("mxfp4_moe", "4.25-bit floats for stacked matrices, q8_0 for others", 38, GgmlType::MXFP4, &[]),
    file_type("nvfp4", "4.5-bit floats", 39, GgmlType::NVFP4, &[]),
    file_type("q3_k", "q3_k_m by another name", 12, GgmlType::Q3_K, Q3_K_M_RULES),
    file_type("q4_k", "q4_k_m by another name", 15, GgmlType::Q4_K, Q4_K_M_RULES),
    file_type("q5_k", "q5_k_m by another name", 17, GgmlType::Q5_K, Q5_K_M_RULES),
];

/// The formats, for `--help` and error messages.
pub(super) const FORMATS: &[Format] = &{
    let mut formats = [Format { name: "", about: "" }; FILE_TYPES.len()];
    let mut index = 0;
    while index < FILE_TYPES.len() {
        formats[index] = FILE_TYPES[index].format;
        index += 1;
    }
    formats
};

/// The file type of a format.
///
/// # Errors
/// When it is not one of GGUF's.
pub(super) fn find(format: &Format) -> Result<&'static FileType> {
    FILE_TYPES.iter().find(|known| known.format.name == format.name).ok_or_else(|| Error::Unsupported {
        what: format!("GGUF type {}", format.name),
        hint: "see --help".into(),
    })
}
