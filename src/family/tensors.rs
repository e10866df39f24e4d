//! The tensors of a model: what its blocks say, one after the other, in the order in which modules hold them.

use super::block::{dense, gqa, mla, moe, mtp};
use super::place::{Ecosystem, Place};
use super::{Attention, Divisors, Family, LayerRole, Presence, Role, Spec};

/// A tensor of a model, and where each ecosystem keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// What it is for.
    pub role: Role,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Whether it has to be there.
    pub presence: Presence,
    hf: Vec<Place>,
    gguf: Vec<Place>,
    mlx: Vec<Place>,
}

impl Tensor {
    /// Places in which `ecosystem` may keep it, the preferred one first; none where it does without.
    pub fn places(&self, ecosystem: Ecosystem) -> &[Place] {
        match ecosystem {
            Ecosystem::Hf => &self.hf,
            Ecosystem::Gguf => &self.gguf,
            Ecosystem::Mlx => &self.mlx,
        }
    }
}

/// A name in each ecosystem, without what stands before it in all names of a layer; empty where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) hf: &'static str,
    pub(super) gguf: &'static str,
    pub(super) mlx: &'static str,
}

impl Names {
    /// MLX has the name of the checkpoint, as it most often does.
    pub(super) const fn new(hf: &'static str, gguf: &'static str) -> Self {
        Self { hf, gguf, mlx: hf }
    }
}

/// Places of a tensor that a block adds, by ecosystem.
#[derive(Default)]
pub(super) struct Places {
    pub(super) hf: Vec<Place>,
    pub(super) gguf: Vec<Place>,
    pub(super) mlx: Vec<Place>,
}

/// Every tensor that a model of `family` with these hyper-parameters has or may have.
pub(super) fn tensors(family: &Family, spec: &Spec) -> Vec<Tensor> {
    let (vocab, hidden) = (spec.embedding.vocab, spec.hidden);
    let mut list = List { spec, family, layer: None, tensors: Vec::new() };
    let whole = |list: &mut List, role, shape: &[usize], presence, names: Names| {
        let places = list.whole(role, names);
        list.push(role, shape, presence, places);
    };
    let embedding = Names::new("embed_tokens.weight", "token_embd.weight");
    whole(&mut list, Role::TokenEmbedding, &[vocab, hidden], Presence::Always, embedding);
    divisors(&mut list);
    let norm = Names::new("norm.weight", "output_norm.weight");
    let is_norm_first = family.naming.mlx.output_norm_first;
    if is_norm_first {
        whole(&mut list, Role::OutputNorm, &[hidden], Presence::Always, norm);
    }
    for layer in 0..spec.layers + spec.mtp_layers {
        list.layer = Some(layer);
        decoder_layer(&mut list, layer);
    }
    list.layer = None;
    if !is_norm_first {
        whole(&mut list, Role::OutputNorm, &[hidden], Presence::Always, norm);
    }
    let head = Places {
        hf: vec![Place::Whole(format!("{}lm_head.weight", family.naming.outer))],
        gguf: vec![Place::Whole("output.weight".into())],
        mlx: vec![Place::Whole(format!("{}lm_head.weight", family.naming.mlx_outer))],
    };
    // A checkpoint may have a copy of the embedding for a head.
    let presence = if spec.embedding.tied { Presence::Perhaps } else { Presence::Always };
    list.push(Role::Output, &[vocab, hidden], presence, head);
    let bias = Places { gguf: vec![Place::Whole("output.bias".into())], ..Places::default() };
    list.push(Role::OutputBias, &[vocab], spec.embedding.output_bias, bias);
    list.tensors
}

/// Divisors of all contexts in GGUF files.
const DIVISORS: &str = "rope_freqs.weight";

/// A tensor of a GGUF file that no checkpoint has: it follows from the hyper-parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Computed {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub values: Vec<f32>,
}

/// Those of a model.
pub(super) fn computed(spec: &Spec) -> Option<Computed> {
    match spec.rope.divisors {
        Divisors::ByWavelength(own) => Some(Computed { name: DIVISORS, values: own.divisors(&spec.rope) }),
        Divisors::Absent | Divisors::Always | Divisors::ByContext { .. } => None,
    }
}

/// Divisors of rotary frequencies, which GGUF files keep beside the weights.
fn divisors(list: &mut List) {
    let rope = &list.spec.rope;
    let pairs = rope.dim / 2;
    let mut add = |role, name: &str| {
        let places = Places { gguf: vec![Place::Whole(name.to_owned())], ..Places::default() };
        list.push(role, &[pairs], Presence::Always, places);
    };
    match rope.divisors {
        Divisors::Absent | Divisors::ByWavelength(_) => {}
        Divisors::Always => add(Role::RopeDivisors, DIVISORS),
        Divisors::ByContext { .. } => {
            add(Role::RopeDivisorsLong, "rope_factors_long.weight");
            add(Role::RopeDivisorsShort, "rope_factors_short.weight");
        }
    }
}

/// One decoder layer.
fn decoder_layer(list: &mut List, layer: usize) {
    let spec = list.spec;
    match &spec.attention {
        Attention::Latent(latent) => mla::add(list, latent),
        Attention::Grouped(grouped) => gqa::add(list, grouped, layer),
    }
    if list.family.naming.mlx.norms_first {
        norms(list);
        feed_forward(list, layer);
    } else {
        feed_forward(list, layer);
        norms(list);
    }
    if layer >= spec.layers {
        mtp::add(list);
    }
}

fn feed_forward(list: &mut List, layer: usize) {
    let spec = list.spec;
    match spec.moe(layer) {
        Some(moe) => moe::add(list, moe, layer),
        None => dense::add(list, *spec.ffn.dense.width.of(layer)),
    }
}

const POST_ATTENTION: Names = Names::new("post_attention_layernorm.weight", "post_attention_norm.weight");

/// The norms of a layer.
fn norms(list: &mut List) {
    let spec = list.spec;
    let norm = [spec.hidden];
    list.always(LayerRole::AttentionNorm, &norm, Names::new("input_layernorm.weight", "attn_norm.weight"));
    if spec.norms.post {
        let is_last = list.family.naming.mlx.post_attention_last;
        if !is_last {
            list.always(LayerRole::AttentionPostNorm, &norm, POST_ATTENTION);
        }
        list.always(
            LayerRole::FfnNorm,
            &norm,
            Names::new("pre_feedforward_layernorm.weight", "ffn_norm.weight"),
        );
        let names = Names::new("post_feedforward_layernorm.weight", "post_ffw_norm.weight");
        list.always(LayerRole::FfnPostNorm, &norm, names);
        if is_last {
            list.always(LayerRole::AttentionPostNorm, &norm, POST_ATTENTION);
        }
    } else {
        list.always(LayerRole::FfnNorm, &norm, list.family.naming.ffn_norm);
    }
}

/// Tensors so far.
pub(super) struct List<'a> {
    pub(super) spec: &'a Spec,
    pub(super) family: &'a Family,
    /// The layer that is being added to; none outside.
    layer: Option<usize>,
    tensors: Vec<Tensor>,
}

impl List<'_> {
    /// Adds a tensor of this layer that is one tensor everywhere.
    pub(super) fn always(&mut self, role: LayerRole, shape: &[usize], names: Names) {
        self.whole_in_layer(role, shape, Presence::Always, names);
    }

    /// The same, if the layer has one.
    pub(super) fn whole_in_layer(
        &mut self,
        role: LayerRole,
        shape: &[usize],
        presence: Presence,
        names: Names,
    ) {
        let places = self.whole(Role::Layer(0, role), names);
        self.in_layer(role, shape, presence, places);
    }

    /// Adds a tensor of this layer.
    pub(super) fn in_layer(&mut self, role: LayerRole, shape: &[usize], presence: Presence, places: Places) {
        let Some(layer) = self.layer else { return };
        self.push(Role::Layer(layer, role), shape, presence, places);
    }

    fn push(&mut self, role: Role, shape: &[usize], presence: Presence, places: Places) {
        let is_in_predictor = matches!(self.layer, Some(layer) if layer >= self.spec.layers);
        let presence = match (presence, is_in_predictor) {
            (Presence::Always, true) => self.spec.mtp_presence,
            _ => presence,
        };
        if presence != Presence::Never {
            let Places { hf, gguf, mlx } = places;
            self.tensors.push(Tensor { role, shape: shape.to_vec(), presence, hf, gguf, mlx });
        }
    }

    /// One tensor of its own in each ecosystem that has a name for it. Where stored norms are what is added to 1, GGUF files hold
    /// the sum.
    pub(super) fn whole(&self, role: Role, names: Names) -> Places {
        let is_raised = self.spec.norms.from_one && role.is_norm();
        let whole = |ecosystem, name: &str| match name {
            "" => Vec::new(),
            name if ecosystem == Ecosystem::Gguf && is_raised => {
                vec![Place::Raised(self.name(ecosystem, name))]
            }
            name => vec![Place::Whole(self.name(ecosystem, name))],
        };
        Places {
            hf: whole(Ecosystem::Hf, names.hf),
            gguf: whole(Ecosystem::Gguf, names.gguf),
            mlx: whole(Ecosystem::Mlx, names.mlx),
        }
    }

    /// A full name.
    pub(super) fn name(&self, ecosystem: Ecosystem, suffix: &str) -> String {
        let root = match ecosystem {
            Ecosystem::Hf => self.family.naming.root,
            Ecosystem::Gguf => "",
            Ecosystem::Mlx => &format!("{}model.", self.family.naming.mlx_outer),
        };
        match (self.layer, ecosystem) {
            (None, _) => format!("{root}{suffix}"),
            (Some(layer), Ecosystem::Gguf) => format!("blk.{layer}.{suffix}"),
            (Some(layer), _) => format!("{root}layers.{layer}.{suffix}"),
        }
    }
}
