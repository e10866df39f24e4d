//! Which type each tensor of a file gets.
//!
//! Source: llama.cpp `src/llama-quant.cpp`. Odd, and kept:
//!
//! - `attn_k_b`, `attn_v_b` and the low-rank projections belong to no category, so they get the
//!   base type in every mix; only `ffn_down*` gains bits in a deepseek2 file.
//! - A row length that the output head's type does not divide sends it to Q8_0 even when the
//!   base type is smaller than Q8_0 would need.
//! - A type with blocks of 32 whose rows are no multiple of 32 becomes F16, not F32.
//! - `mxfp4_moe` goes by dimensions: everything stacked gets MXFP4, `attn_k_b` and `attn_v_b` with
//!   the experts, and all else Q8_0, the output head and the embeddings too.
//! - With more than one expert the layer of a tensor is read from its name; otherwise tensors of
//!   a category are counted, and a mixture layer has two `ffn_down` tensors.
//! - Types of less than three bits (IQ1, IQ2) count `ffn_down` tensors even where there are experts, and have none of the
//!   rules for eight experts and 70 billion parameters that are not in their lists.
//! - A projection of queries, keys and values in one, and an unsplit `attn_kv_b`, count as `attn_v`.

use requant_formats::container::gguf::GgmlType;

use super::file_type::FileType;
use crate::error::{Error, Result};

/// Kinds of tensors that the rules tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Category {
    TokenEmbedding,
    Output,
    AttentionV,
    AttentionK,
    AttentionQ,
    AttentionOutput,
    FfnUp,
    FfnGate,
    FfnDown,
    Other,
}

/// When a rule applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// Always.
    Always,
    /// To the first two tensors of the category.
    FirstTwo,
    /// To the first four tensors of the category.
    FirstFour,
    /// In the first sixteenth of the layers.
    FirstSixteenth,
    /// In the first eighth of the layers.
    FirstEighth,
    /// There with an importance matrix.
    FirstEighthWeighed,
    /// There without one.
    FirstEighthUnweighed,
    /// Between the first and the last eighth of the layers.
    Inner,
    /// In the first and last eighth of the layers, and in every third between.
    MoreBits,
    /// There in models with exactly eight experts.
    EightExpertsMoreBits,
    /// In models with exactly eight experts.
    EightExperts,
    /// In models where four query heads or more share a key and a value.
    SharedHeads,
    /// In these, and in models with four experts or more.
    SharedHeadsOrExperts,
    /// Without an importance matrix.
    Unweighed,
}

/// An exception to the base type of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) category: Category,
    pub(super) when: When,
    pub(super) to: GgmlType,
}

/// Parts of the names of matrices that keep the type they have: norms, routers, and small or sensitive
/// tensors of other architectures.
const KEPT: &[&str] = &[
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "attn_rel_b.weight",
    ".position_embd",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
];

/// The output head.
pub(super) const OUTPUT: &str = "output.weight";

/// Parts of the names of tensors that count as the values' projection.
const ATTENTION_V: &[&str] = &["attn_qkv.weight", "attn_kv_b.weight", "attn_v.weight"];

/// What the rules ask of a model.
#[derive(Debug, Clone, Copy)]
pub(super) struct Model {
    pub(super) layers: usize,
    pub(super) experts: usize,
    pub(super) tied_embeddings: bool,
    /// Whether four query heads or more share a key and a value (`n_gqa`).
    pub(super) shared_heads: bool,
    /// Whether llama.cpp takes it for a model of 70 billion parameters (`LLM_TYPE_70B`).
    pub(super) is_70b: bool,
    /// Whether there is an importance matrix.
    pub(super) has_imatrix: bool,
}

/// Types of `tensors` (name and `ne`, in file order) in a file of type `file_type`, some of them
/// `forced`: their types still have to fit the rows, and they do not count in their category.
///
/// # Errors
/// A type of the file whose blocks do not fit some rows, and for which there is no stand-in.
pub(super) fn types(
    file_type: &FileType,
    model: Model,
    tensors: &[(&str, &[u64])],
    forced: &[Option<GgmlType>],
) -> Result<Vec<GgmlType>> {
    let attention_v = tensors.iter().filter(|(name, _)| category(name) == Category::AttentionV).count();
    let mut seen = Seen::default();
    tensors
        .iter()
        .zip(forced)
        .map(|((name, ne), forced)| {
            if !can_be_quantized(name, ne) {
                return Ok(GgmlType::F32);
            }
            if file_type.base.block_len_elems() == 1 {
                return Ok(file_type.base);
            }
            let wanted = forced.unwrap_or_else(|| choose(file_type, model, attention_v, &mut seen, name, ne));
            let row = row_len_elems(ne);
            // Files of NVFP4 are made here alone: their short rows become F16.
            let has_stand_in = can_fall_back(wanted) || wanted == GgmlType::NVFP4;
            if forced.is_none() && !row.is_multiple_of(wanted.block_len_elems()) && !has_stand_in {
                return Err(Error::Request(format!(
                    "--to {}: rows of {name} have {row} weights, which blocks of {wanted} ({}) do not divide, and \
                     llama-quantize has no stand-in for it; give it another type: --tensor-type '{name}=q8_0'",
                    file_type.format.name,
                    wanted.block_len_elems()
                )));
            }
            Ok(fit(wanted, row))
        })
        .collect()
}

/// Tensors of a category so far.
#[derive(Default)]
struct Seen {
    attention_v: usize,
    ffn_up: usize,
    ffn_gate: usize,
    ffn_down: usize,
}

/// Matrices, but not those of [`KEPT`]; everything else keeps the type it has.
pub(super) fn can_be_quantized(name: &str, ne: &[u64]) -> bool {
    let dimensions = ne.iter().rposition(|&extent| extent > 1).map_or(1, |last| last + 1);
    dimensions >= 2 && name.ends_with("weight") && !KEPT.iter().any(|part| name.contains(part))
}

/// Whether logits come from this tensor.
pub(super) fn is_head(name: &str, tied_embeddings: bool) -> bool {
    match category(name) {
        Category::Output => true,
        Category::TokenEmbedding => tied_embeddings,
        _ => false,
    }
}

/// Whether this is the output head or a table of embeddings.
pub(super) fn is_embedding_or_head(name: &str) -> bool {
    matches!(category(name), Category::Output | Category::TokenEmbedding)
}

fn category(name: &str) -> Category {
    match name {
        OUTPUT => Category::Output,
        "token_embd.weight" | "per_layer_token_embd.weight" => Category::TokenEmbedding,
        _ if ATTENTION_V.iter().any(|part| name.contains(part)) => Category::AttentionV,
        _ if name.contains("attn_k.weight") => Category::AttentionK,
        _ if name.contains("attn_q.weight") => Category::AttentionQ,
        _ if name.contains("attn_output.weight") => Category::AttentionOutput,
        _ if name.contains("ffn_up") => Category::FfnUp,
        _ if name.contains("ffn_gate") => Category::FfnGate,
        _ if name.contains("ffn_down") => Category::FfnDown,
        _ => Category::Other,
    }
}

fn choose(
    file_type: &FileType,
    model: Model,
    attention_v: usize,
    seen: &mut Seen,
    name: &str,
    ne: &[u64],
) -> GgmlType {
    let base = file_type.base;
    let category = category(name);
    let is_head = is_head(name, model.tied_embeddings);
    if base == GgmlType::MXFP4 {
        let is_stacked = ne.get(2).is_some_and(|&extent| extent > 1);
        return if !is_head && is_stacked { GgmlType::MXFP4 } else { GgmlType::Q8_0 };
    }
    if is_head {
        let divides = row_len_elems(ne).is_multiple_of(base.block_len_elems());
        let own = file_type.rules.iter().find(|rule| rule.category == Category::Output);
        let usual = own.map_or(GgmlType::Q6_K, |rule| rule.to);
        return if base == GgmlType::Q8_0 || !divides { GgmlType::Q8_0 } else { usual };
    }
    let is_low = file_type.is_below_three_bits();
    let of_layers = |counter: &mut usize| {
        let counted = next(counter);
        let is_named = model.experts > 1 && !is_low;
        (if is_named { layer(name).unwrap_or(counted) } else { counted }, model.layers)
    };
    let (position, of) = match category {
        Category::AttentionV => (next(&mut seen.attention_v), attention_v),
        Category::FfnUp => of_layers(&mut seen.ffn_up),
        Category::FfnGate => of_layers(&mut seen.ffn_gate),
        Category::FfnDown => of_layers(&mut seen.ffn_down),
        _ => (0, 0),
    };
    if !is_low && model.experts == 8 && matches!(category, Category::AttentionV | Category::AttentionK) {
        return GgmlType::Q8_0;
    }
    let applies = |rule: &&Rule| {
        rule.category == category
            && match rule.when {
                When::Always => true,
                When::FirstTwo => position < 2,
                When::FirstFour => position < 4,
                When::FirstSixteenth => position < of / 16,
                When::FirstEighth => position < of / 8,
                When::FirstEighthWeighed => position < of / 8 && model.has_imatrix,
                When::FirstEighthUnweighed => position < of / 8 && !model.has_imatrix,
                When::Inner => position >= of / 8 && position < 7 * of / 8,
                When::MoreBits => more_bits(position, of),
                When::EightExpertsMoreBits => model.experts == 8 && more_bits(position, of),
                When::EightExperts => model.experts == 8,
                When::SharedHeads => model.shared_heads,
                When::SharedHeadsOrExperts => model.shared_heads || model.experts >= 4,
                When::Unweighed => !model.has_imatrix,
            }
    };
    let chosen = file_type.rules.iter().find(applies).map_or(base, |rule| rule.to);
    let is_raised = !is_low && model.is_70b && category == Category::AttentionV;
    if is_raised && matches!(chosen, GgmlType::Q3_K | GgmlType::Q4_K) { GgmlType::Q5_K } else { chosen }
}

/// First and last eighth, and every third layer between.
fn more_bits(layer: usize, layers: usize) -> bool {
    layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2
}

/// A type whose blocks fit a row: the wanted one, or its stand-in with shorter blocks, or F16.
fn fit(wanted: GgmlType, row_len_elems: u64) -> GgmlType {
    let fits = |candidate: GgmlType| row_len_elems.is_multiple_of(candidate.block_len_elems());
    if fits(wanted) {
        return wanted;
    }
    let stand_in = stand_in(wanted);
    if fits(stand_in) { stand_in } else { GgmlType::F16 }
}

/// The type with shorter blocks that replaces `wanted` where its blocks do not fit.
fn stand_in(wanted: GgmlType) -> GgmlType {
    match wanted {
        GgmlType::Q4_K => GgmlType::Q5_0,
        GgmlType::Q5_K => GgmlType::Q5_1,
        GgmlType::Q6_K => GgmlType::Q8_0,
        GgmlType::Q2_K | GgmlType::Q3_K | GgmlType::Q2_0 | GgmlType::TQ1_0 | GgmlType::TQ2_0 => {
            GgmlType::Q4_0
        }
        GgmlType::IQ1_S
        | GgmlType::IQ1_M
        | GgmlType::IQ2_XXS
        | GgmlType::IQ2_XS
        | GgmlType::IQ2_S
        | GgmlType::IQ3_XXS
        | GgmlType::IQ3_S
        | GgmlType::IQ4_XS => GgmlType::IQ4_NL,
        other => other,
    }
}

/// Whether llama-quantize knows what to do where the blocks of `wanted` do not fit: it fails for types
/// with blocks of more than 32 that have no stand-in.
pub(super) fn can_fall_back(wanted: GgmlType) -> bool {
    wanted.block_len_elems() <= 32 || stand_in(wanted) != wanted
}

fn row_len_elems(ne: &[u64]) -> u64 {
    ne.first().copied().unwrap_or(1)
}

/// The counter's value before it goes up by one.
fn next(counter: &mut usize) -> usize {
    *counter += 1;
    *counter - 1
}

/// `12` of `blk.12.ffn_down.weight`.
pub(super) fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::file_type::FILE_TYPES;
    use super::*;

    fn typed(file: &str, model: Model, tensors: &[(&str, &[u64])]) -> Vec<String> {
        let file = FILE_TYPES.iter().find(|file_type| file_type.format.name == file).unwrap();
        let types = types(file, model, tensors, &vec![None; tensors.len()]).unwrap();
        types.iter().map(ToString::to_string).collect()
    }

    const MODEL: Model = Model {
        layers: 61,
        experts: 256,
        tied_embeddings: false,
        shared_heads: false,
        is_70b: false,
        has_imatrix: false,
    };

    #[test]
    fn more_bits_picks_these_layers_of_sixty_one() {
        let picked: Vec<usize> = (0..61).filter(|&layer| more_bits(layer, 61)).collect();
        let middle = (9..53).step_by(3);
        let expected: Vec<usize> = (0..7).chain(middle).chain(53..61).collect();
        assert_eq!(picked, expected);
    }

    #[test]
    fn an_importance_matrix_changes_the_first_eighth_of_down_projections() {
        let ne: &[u64] = &[256, 256];
        let tensors = [("blk.6.ffn_down.weight", ne), ("blk.7.ffn_down.weight", ne)];
        for (file, with, without) in [
            ("q4_0", ["Q4_1", "Q4_0"], ["Q4_0", "Q4_0"]),
            ("q5_0", ["Q5_1", "Q5_0"], ["Q5_0", "Q5_0"]),
            ("iq4_xs", ["IQ4_XS", "IQ4_XS"], ["Q5_K", "IQ4_XS"]),
            ("iq4_nl", ["IQ4_NL", "IQ4_NL"], ["Q5_K", "IQ4_NL"]),
            ("q4_k_m", ["Q6_K", "Q4_K"], ["Q6_K", "Q4_K"]),
        ] {
            assert_eq!(typed(file, Model { has_imatrix: true, ..MODEL }, &tensors), with, "{file}");
            assert_eq!(typed(file, MODEL, &tensors), without, "{file}");
        }
    }

    #[test]
    fn rows_that_do_not_fit_fall_back() {
        for (file, row, expected) in [
            ("q4_k_m", 256, "Q4_K"),
            ("q4_k_m", 128, "Q5_0"),
            ("q5_k_m", 128, "Q5_1"),
            ("q6_k", 128, "Q8_0"),
            ("q6_k", 40, "F16"),
            ("q2_k", 128, "Q4_0"),
            ("q3_k_m", 128, "Q4_0"),
            ("iq4_xs", 128, "IQ4_NL"),
            ("iq4_xs", 40, "F16"),
            ("iq4_nl", 32, "IQ4_NL"),
            ("iq2_xxs", 128, "IQ4_NL"),
            ("iq3_s", 40, "F16"),
            ("tq1_0", 128, "Q4_0"),
            ("q2_0", 96, "Q4_0"),
            ("q1_0", 128, "Q1_0"),
            ("mxfp4_moe", 32, "MXFP4"),
            ("mxfp4_moe", 40, "F16"),
            ("q4_0", 40, "F16"),
            ("f16", 40, "F16"),
            ("f32", 40, "F32"),
        ] {
            let types = typed(file, MODEL, &[("blk.3.attn_k_b.weight", &[row, 512, 128])]);
            assert_eq!(types, [expected], "{file} {row}");
        }
    }

    #[test]
    fn heads_norms_routers_and_vectors() {
        let tensors: &[(&str, &[u64])] = &[
            ("output.weight", &[7168, 100]),
            ("output_norm.weight", &[7168]),
            ("token_embd.weight", &[7168, 100]),
            ("blk.3.ffn_gate_inp.weight", &[7168, 256]),
            ("blk.3.exp_probs_b.bias", &[256]),
            ("blk.3.attn_q_a.weight", &[7168, 1]),
        ];
        assert_eq!(typed("q4_k_m", MODEL, tensors), ["Q6_K", "F32", "Q4_K", "F32", "F32", "F32"]);
        assert_eq!(typed("q8_0", MODEL, tensors), ["Q8_0", "F32", "Q8_0", "F32", "F32", "F32"]);
        assert_eq!(typed("q4_0", MODEL, tensors)[0], "Q6_K");
        let tied = Model { tied_embeddings: true, ..MODEL };
        assert_eq!(typed("q4_0", tied, &tensors[2..3]), ["Q6_K"]);
        assert_eq!(typed("q4_k_m", MODEL, &[("output.weight", &[96, 100])]), ["Q8_0"]);
        // The head's own type is chosen for the base's blocks, then has to fit with its own.
        assert_eq!(typed("q4_0", MODEL, &[("output.weight", &[96, 100])]), ["Q8_0"]);
    }

    #[test]
    fn eight_experts_have_rules_of_their_own() {
        let tensors: &[(&str, &[u64])] = &[
            ("blk.0.attn_k.weight", &[256, 256]),
            ("blk.0.attn_output.weight", &[256, 256]),
            ("blk.0.attn_v.weight", &[256, 256]),
        ];
        let eight = Model { layers: 32, experts: 8, ..MODEL };
        assert_eq!(typed("q4_k_m", eight, tensors), ["Q8_0", "Q5_K", "Q8_0"]);
        assert_eq!(typed("q5_k_m", eight, tensors), ["Q8_0", "Q5_K", "Q8_0"]);
        assert_eq!(typed("q4_k_s", MODEL, tensors), ["Q4_K", "Q4_K", "Q5_K"]);
        assert_eq!(typed("q3_k_l", eight, tensors), ["Q8_0", "Q3_K", "Q8_0"]);
        assert_eq!(typed("q2_k", eight, tensors), ["Q8_0", "Q5_K", "Q8_0"]);
        assert_eq!(typed("iq4_xs", eight, tensors), ["Q8_0", "Q5_K", "Q8_0"]);
        assert_eq!(typed("q3_k_m", MODEL, tensors), ["Q3_K", "Q4_K", "Q5_K"]);
        assert_eq!(typed("mxfp4_moe", eight, tensors), ["Q8_0", "Q8_0", "Q8_0"]);
    }
}
