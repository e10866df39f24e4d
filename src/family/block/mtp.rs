//! What a multi-token prediction layer has beside a decoder layer (DeepSeek-V3, arXiv 2412.19437, section 2.2). mlx-lm does
//! without such layers. Files may leave out what is a copy of the model's own embedding, norm and head.

use crate::family::tensors::{List, Names};
use crate::family::{LayerRole, Presence};

/// Adds it.
pub(in crate::family) fn add(list: &mut List) {
    let (hidden, vocab) = (list.spec.hidden, list.spec.embedding.vocab);
    let own: [(LayerRole, &[usize], Names); 3] = [
        (
            LayerRole::MtpEmbedding,
            &[vocab, hidden],
            names("embed_tokens.weight", "nextn.embed_tokens.weight"),
        ),
        (
            LayerRole::MtpHeadNorm,
            &[hidden],
            names("shared_head.norm.weight", "nextn.shared_head_norm.weight"),
        ),
        (
            LayerRole::MtpHead,
            &[vocab, hidden],
            names("shared_head.head.weight", "nextn.shared_head_head.weight"),
        ),
    ];
    for (role, shape, names) in own {
        list.whole_in_layer(role, shape, Presence::Perhaps, names);
    }
    list.always(LayerRole::MtpEmbeddingNorm, &[hidden], names("enorm.weight", "nextn.enorm.weight"));
    list.always(LayerRole::MtpHiddenNorm, &[hidden], names("hnorm.weight", "nextn.hnorm.weight"));
    let shape = [hidden, 2 * hidden];
    list.always(LayerRole::MtpProjection, &shape, names("eh_proj.weight", "nextn.eh_proj.weight"));
}

const fn names(hf: &'static str, gguf: &'static str) -> Names {
    Names { hf, gguf, mlx: "" }
}
