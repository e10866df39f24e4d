//! Gradients against finite differences: of definitions in f64 for what blocks are made of, and of the program's own loss
//! for every kind of matrix in models with every option.

use std::collections::BTreeMap;
use std::ops::Range;

use super::*;
use crate::checkpoint::Weight;
use crate::family::{
    Activation, Attention, ByLayer, Dense, Divisors, Embedding, ExpertChoice, FeedForward, Grouped, Heads,
    Latent, LayerRole, Moe, Norms, Pairing, Presence, Rotary, Router, Scaling, Scoring, Shared, Sliding,
    Spec, Temperature, Yarn, of_architecture,
};
use crate::model::matmul::{View, outer_products};
use crate::model::{Choice, forward, logits};
use crate::source::Extent;

mod made;
mod wholes;

use made::Made;

/// Numbers between -1 and 1.
pub(super) fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Compares with central differences of `f` in f64. `tolerance` is that of gradients computed in f32, of the largest.
pub(super) fn check_gradient(x: &[f32], found: &[f32], tolerance: f64, f: impl Fn(&[f64]) -> f64) {
    let mut x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    let step = 1e-5;
    let slopes: Vec<f64> = (0..x.len())
        .map(|at| {
            let here = x[at];
            let mut value = |by: f64| {
                x[at] = here + by;
                f(&x)
            };
            let slope = (value(step) - value(-step)) / (2.0 * step);
            x[at] = here;
            slope
        })
        .collect();
    let largest = slopes.iter().fold(1e-3f64, |largest, slope| largest.max(slope.abs()));
    for (at, (slope, &found)) in slopes.iter().zip(found).enumerate() {
        assert!((slope - f64::from(found)).abs() <= tolerance * largest, "{at}: {slope} {found}");
    }
}

/// Keeps gradients.
#[derive(Default)]
struct Kept(BTreeMap<Role, Vec<f32>>);

impl Sink for Kept {
    fn product(
        &mut self,
        role: Role,
        first: usize,
        x: &Input,
        picks: Option<&Picks>,
        dy: &States,
    ) -> Result<()> {
        assert_eq!((x.rows(), picks.map_or(dy.rows(), <[_]>::len)), (dy.rows(), dy.rows()));
        let (x_all, dy_all) = (x.read(0..x.rows())?, dy.read(0..dy.rows())?);
        let (cols, rows) = (x.states().cols(), dy.cols());
        let gradient = outer_products(View::new(&dy_all, rows), View::new(&x_all, cols));
        let whole = self.0.entry(role).or_default();
        whole.resize(whole.len().max((first + rows) * cols), 0.0);
        whole[first * cols..][..rows * cols].iter_mut().zip(gradient).for_each(|(sum, more)| *sum += more);
        Ok(())
    }

    fn lookup(&mut self, tokens: &[u32], scale: f32, gradient: &States) -> Result<()> {
        let cols = gradient.cols();
        let whole = self.0.entry(Role::TokenEmbedding).or_default();
        for (row, &token) in tokens.iter().enumerate() {
            let end = (token as usize + 1) * cols;
            whole.resize(whole.len().max(end), 0.0);
            let own = gradient.read(row..row + 1)?;
            whole[end - cols..end].iter_mut().zip(&*own).for_each(|(sum, &more)| *sum += scale * more);
        }
        Ok(())
    }
}

/// Which experts were chosen.
#[derive(Default, PartialEq, Debug)]
struct Chosen(Vec<Vec<Vec<usize>>>);

impl Observer for Chosen {
    fn layer(&mut self, _: usize, _: usize, choices: Option<&[Vec<Choice>]>) {
        let experts = |choices: &Vec<Choice>| choices.iter().map(|choice| choice.expert).collect();
        self.0.push(choices.unwrap_or_default().iter().map(experts).collect());
    }
}

/// A model one of whose weights is another.
struct Changed<'a> {
    store: &'a dyn WeightStore,
    /// As the store has it: a tied head is the embedding.
    name: &'a str,
    values: &'a [f32],
}

impl WeightStore for Changed<'_> {
    fn spec(&self) -> &Spec {
        self.store.spec()
    }

    fn weight(&self, role: Role) -> Result<Weight> {
        self.store.weight(role)
    }

    fn read_rows(&self, weight: &Weight, rows: Range<usize>, tile: &mut [f32]) -> Result<()> {
        if weight.name == self.name {
            tile.copy_from_slice(&self.values[rows.start * weight.cols..rows.end * weight.cols]);
            return Ok(());
        }
        self.store.read_rows(weight, rows, tile)
    }

    fn extents(&self, role: Role) -> Result<Vec<Extent>> {
        self.store.extents(role)
    }
}

/// The loss of these labels, as the forward pass has it, and the experts that were chosen.
fn loss_of(store: &dyn WeightStore, tokens: &[u32], context: usize, labels: &[usize]) -> (f64, Chosen) {
    let mut chosen = Chosen::default();
    let hidden = forward(store, tokens, context, &Storage::Memory, &mut chosen).unwrap();
    let all: Vec<usize> = (0..tokens.len()).collect();
    let logits = logits(store, &hidden, &all).unwrap();
    let of_token = |(logits, &label): (&[f32], &usize)| {
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        sum.ln() - f64::from(logits[label])
    };
    let vocab = store.spec().embedding.vocab;
    (logits.chunks_exact(vocab).zip(labels).map(of_token).sum(), chosen)
}

/// Compares the gradients of the matrices that `is_checked` takes with central differences of the loss, along the gradient
/// and along four parts of it.
fn check_store(name: &str, store: &dyn WeightStore, is_checked: impl Fn(Role) -> bool) {
    let (context, seed, tokens) = (CONTEXT, 11, tokens(store.spec()));
    let mut kept = Kept::default();
    let storage = Storage::Memory;
    let loss = backward(store, &tokens, context, seed, &storage, &mut kept, &mut Chosen::default()).unwrap();
    let hidden = forward(store, &tokens, context, &storage, &mut Chosen::default()).unwrap();
    let drawn = head::draw(store, &hidden, seed).unwrap();
    let labels: Vec<usize> = drawn.iter().map(|drawn| drawn.label).collect();
    let (exact, experts) = loss_of(store, &tokens, context, &labels);
    assert!((loss - exact).abs() < 1e-5 * exact, "{name}: {loss} {exact}");

    let mut gradients = kept.0;
    if store.spec().embedding.tied {
        let head = gradients.remove(&Role::Output).unwrap();
        let looked_up = gradients.get_mut(&Role::TokenEmbedding).unwrap();
        looked_up.resize(head.len(), 0.0);
        looked_up.iter_mut().zip(head).for_each(|(sum, more)| *sum += more);
    }
    // Experts that no token reached have none.
    let family = of_architecture("llama").unwrap().tensors(store.spec());
    let is_matrix = |role: Role| {
        let is_of_layers = !matches!(role, Role::Layer(layer, _) if layer >= store.spec().layers);
        is_of_layers && store.weight(role).is_ok_and(|weight| weight.rows > 1)
    };
    let matrices = family.iter().map(|tensor| tensor.role).filter(|&role| is_matrix(role));
    let missing: Vec<Role> = matrices
        .filter(|role| !gradients.contains_key(role) && *role != Role::Output)
        .filter(|role| !matches!(role, Role::Layer(_, LayerRole::Expert(..))))
        .collect();
    assert!(missing.is_empty(), "{name}: {missing:?}");
    for (role, gradient) in gradients.into_iter().filter(|(role, _)| is_checked(*role)) {
        let weight = store.weight(role).unwrap();
        let mut original = vec![0.0; weight.rows * weight.cols];
        store.read_rows(&weight, 0..weight.rows, &mut original).unwrap();
        for part in 0..5usize {
            let own = |at: usize| part == 4 || (at * 2_654_435_761) >> 7 & 3 == part;
            let squares = gradient.iter().enumerate().filter(|(at, _)| own(*at));
            let norm = squares.map(|(_, &g)| f64::from(g) * f64::from(g)).sum::<f64>().sqrt();
            if norm < 0.02 {
                continue;
            }
            let at = |step: f64| {
                let mut values = original.clone();
                for (number, (w, &g)) in values.iter_mut().zip(&gradient).enumerate() {
                    if own(number) {
                        *w += (step * f64::from(g) / norm) as f32;
                    }
                }
                let changed = Changed { store, name: &weight.name, values: &values };
                let found = loss_of(&changed, &tokens, context, &labels);
                (found.0, found.1 == experts)
            };
            // Steps across which no token goes to another expert.
            let slope = |step: f64| {
                let ((above, same_above), (below, same_below)) = (at(step), at(-step));
                (same_above && same_below).then_some((above - below) / (2.0 * step))
            };
            // Richardson's extrapolation: free of the third derivative.
            let extrapolated = |step: f64| Some((step, (4.0 * slope(step / 2.0)? - slope(step)?) / 3.0));
            let found = [1e-2, 2.5e-3, 6e-4, 1.5e-4].into_iter().find_map(extrapolated);
            let (step, slope) = found.unwrap_or_else(|| panic!("{name} {role:?}: choices change"));
            // Losses have errors of about 1e-5: logits are f32. The rest is the fifth derivative.
            let allowed = 3e-5 / step + 2e-3 * norm;
            assert!((slope - norm).abs() <= allowed, "{name} {role:?} {part}: {slope} {norm} ({step})");
        }
    }
}

/// Every matrix of a model that is made up, one in which no token is about to go to another expert.
fn check(name: &str, spec: Spec) {
    let tokens = tokens(&spec);
    let experts = |made: &Made| {
        let mut chosen = Chosen::default();
        forward(made, &tokens, CONTEXT, &Storage::Memory, &mut chosen).unwrap();
        chosen
    };
    let is_firm = |made: &Made| {
        let own = experts(made);
        (1..5).all(|shake| {
            let mut shaken = made.clone();
            for (number, (_, _, values)) in shaken.weights.values_mut().enumerate() {
                let noise = numbers(values.len(), 100 * shake + number as u64);
                values.iter_mut().zip(noise).for_each(|(value, noise)| *value *= 1.0 + 0.003 * noise);
            }
            experts(&shaken) == own
        })
    };
    let made = (1..100).map(|seed| Made::new(spec.clone(), seed)).find(is_firm).unwrap();
    check_store(name, &made, |_| true);
}

/// Tokens of a window.
const CONTEXT: usize = 9;

/// Three windows.
fn tokens(spec: &Spec) -> Vec<u32> {
    (0..3 * CONTEXT).map(|at| ((at * 7 + at * at) % spec.embedding.vocab) as u32).collect()
}

/// The trained model of the repository, as FP8.
#[test]
fn matrices_of_a_trained_model() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-deepseek-v3");
    let opened = Opened::open(&path).unwrap();
    check_store("fixture", opened.store().unwrap(), |role| match role {
        Role::Layer(layer, own) => match own {
            LayerRole::Expert(expert, _) => layer == 1 && expert == 0,
            LayerRole::QA => layer == 0,
            LayerRole::Router | LayerRole::KvB => layer == 2,
            _ => false,
        },
        role => role == Role::TokenEmbedding,
    });
}

fn rotary(dim: usize, pairing: Pairing) -> Rotary {
    Rotary {
        dim,
        pairing,
        theta: 100.0,
        scaling: None,
        amplitude: 1.0,
        divisors: Divisors::Absent,
        sections: None,
    }
}

fn grouped() -> Grouped {
    Grouped {
        heads: ByLayer::all(Heads { query: 4, key_value: 2 }),
        key_dim: 6,
        value_dim: 6,
        score_scale: 0.4,
        score_cap: None,
        sliding: None,
        head_norms: Presence::Never,
        whole_norms: false,
        sinks: Presence::Never,
        biases: Presence::Never,
        output_bias: Presence::Never,
    }
}

fn latent(q_lora: Option<usize>) -> Latent {
    Latent { heads: 3, q_lora, kv_lora: 10, nope_dim: 5, v_dim: 4, temperature: None }
}

/// A dense model.
fn spec(attention: Attention, rope: Rotary) -> Spec {
    Spec {
        model_type: "made".into(),
        hidden: 16,
        layers: 2,
        mtp_layers: 0,
        mtp_presence: Presence::Never,
        attention,
        rope,
        ffn: FeedForward {
            activation: Activation::Silu,
            dense: Dense { layers: 2, width: ByLayer::all(20), biases: Presence::Never },
            moe: None,
        },
        embedding: Embedding {
            vocab: 40,
            tied: false,
            output_bias: Presence::Never,
            scale: 1.0,
            logit_cap: None,
        },
        norms: Norms { eps: 1e-5, post: false, from_one: false },
    }
}

fn of_experts(scoring: Scoring, normalize: bool, shared: Option<bool>) -> Moe {
    Moe {
        experts: 6,
        per_token: ByLayer::all(2),
        width: ByLayer::all(12),
        router: Router {
            scoring,
            choice: ExpertChoice::Ungrouped,
            groups: 1,
            top_groups: 1,
            bias: Presence::Never,
            normalize,
            scale: 1.5,
        },
        shared: shared.map(|gate| Shared { experts: 1, width: ByLayer::all(8), gate }),
        biases: Presence::Never,
    }
}

/// As Llama's.
#[test]
fn a_plain_model_with_grouped_queries() {
    check("plain", spec(Attention::Grouped(grouped()), rotary(6, Pairing::Halves)));
}

/// As Gemma 2's and 3's: caps, windows, head and post norms, scaled embeddings that serve as the head.
#[test]
fn caps_windows_post_norms_and_a_tied_head() {
    let sliding =
        Sliding { window: 4, layers: vec![true, false], rope: Box::new(rotary(4, Pairing::Halves)) };
    let grouped =
        Grouped { score_cap: Some(1.5), sliding: Some(sliding), head_norms: Presence::Always, ..grouped() };
    let mut spec = spec(Attention::Grouped(grouped), rotary(6, Pairing::Halves));
    spec.norms.post = true;
    spec.ffn.activation = Activation::GeluTanh;
    spec.embedding = Embedding { tied: true, scale: 1.7, logit_cap: Some(4.0), ..spec.embedding };
    check("gemma", spec);
}

/// As Qwen2's, Seed-OSS's and Phi's: biases everywhere, heads that turn in part, other pairs, values of another width.
#[test]
fn biases_and_heads_that_turn_in_part() {
    let grouped = Grouped {
        biases: Presence::Always,
        output_bias: Presence::Always,
        value_dim: 5,
        heads: ByLayer::each([Heads { query: 4, key_value: 4 }, Heads { query: 6, key_value: 2 }]).unwrap(),
        ..grouped()
    };
    let mut spec = spec(Attention::Grouped(grouped), rotary(4, Pairing::Adjacent));
    spec.rope.amplitude = 1.2;
    spec.ffn.dense.biases = Presence::Always;
    spec.embedding.output_bias = Presence::Always;
    check("biases", spec);
}

/// Every router, with shared experts of every kind.
#[test]
fn experts_behind_every_router() {
    for (scoring, normalize, shared) in [
        (Scoring::Softmax, true, None),
        (Scoring::Softmax, false, Some(true)),
        (Scoring::SoftmaxOfChosen, false, Some(false)),
        (Scoring::Sigmoid, false, Some(true)),
        (Scoring::SqrtSoftplus, true, None),
    ] {
        let mut spec = spec(Attention::Grouped(grouped()), rotary(6, Pairing::Halves));
        spec.ffn.dense.layers = 0;
        spec.ffn.moe = Some(of_experts(scoring, normalize, shared));
        check(&format!("{scoring:?} {normalize} {shared:?}"), spec);
    }
}

/// As DeepSeek-V3's and V2's: with and without a low-rank query, YaRN, a dense layer before experts in groups, temperature.
#[test]
fn latent_attention_and_groups_of_experts() {
    for q_lora in [Some(7), None] {
        let temperature = q_lora.map(|_| Temperature { scale: 0.5, length: 3 });
        let mut spec =
            spec(Attention::Latent(Latent { temperature, ..latent(q_lora) }), rotary(4, Pairing::Adjacent));
        spec.rope.scaling = Some(Scaling::Yarn(Yarn {
            factor: 4.0,
            original_context: 4,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: 1.0,
            mscale_all_dim: 0.7,
            truncate: true,
        }));
        spec.ffn.dense.layers = 1;
        let mut moe = of_experts(Scoring::Sigmoid, true, Some(false));
        moe.router.choice = ExpertChoice::GroupsByTwoBest;
        (moe.router.groups, moe.router.top_groups) = (3, 2);
        moe.router.bias = Presence::Always;
        spec.ffn.moe = Some(moe);
        check(&format!("latent {q_lora:?}"), spec);
    }
}

/// The same bits with states in scratch files and with one thread.
#[test]
fn threads_and_storage_do_not_matter() {
    let mut spec = spec(Attention::Latent(latent(Some(7))), rotary(4, Pairing::Adjacent));
    spec.ffn.dense.layers = 1;
    spec.ffn.moe = Some(of_experts(Scoring::Softmax, true, Some(true)));
    let made = Made::new(spec, 1);
    let tokens: Vec<u32> = (0..36).map(|at| at * 11 % 40).collect();
    let folder = tempfile::tempdir().unwrap();
    let run = |threads: usize, storage: Storage| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut kept = Kept::default();
            let loss = backward(&made, &tokens, 9, 5, &storage, &mut kept, &mut Chosen::default()).unwrap();
            (loss.to_bits(), kept.0)
        })
    };
    let first = run(1, Storage::Memory);
    assert_eq!(first, run(3, Storage::Memory));
    assert_eq!(first, run(2, Storage::Scratch(folder.path().to_owned())));
}

/// Sums of outer products of the gradients of rows of the embedding, one row and one logit at a time.
struct Naive {
    hidden: usize,
    is_tied: bool,
    sum: Vec<f64>,
}

impl Naive {
    fn add(&mut self, factor: f64, x: &[f32]) {
        let x: Vec<f64> = x.iter().map(|&x| factor * f64::from(x)).collect();
        for (sum, at) in self.sum.iter_mut().zip(0..) {
            *sum += x[at / self.hidden] * x[at % self.hidden];
        }
    }
}

impl Sink for Naive {
    fn product(&mut self, role: Role, _: usize, x: &Input, _: Option<&Picks>, dy: &States) -> Result<()> {
        if self.is_tied && role == Role::Output {
            for token in 0..dy.rows() {
                let x = x.read(token..token + 1)?;
                dy.read(token..token + 1)?.iter().for_each(|&dy| self.add(f64::from(dy), &x));
            }
        }
        Ok(())
    }

    fn lookup(&mut self, tokens: &[u32], scale: f32, gradient: &States) -> Result<()> {
        (0..tokens.len()).try_for_each(|token| {
            self.add(f64::from(scale), &gradient.read(token..token + 1)?);
            Ok(())
        })
    }
}

#[test]
fn what_counts_in_the_embedding_is_the_sum_over_lookups_and_rows_of_a_tied_head() {
    for tied in [false, true] {
        let mut spec = spec(Attention::Grouped(grouped()), rotary(6, Pairing::Halves));
        spec.embedding = Embedding { tied, scale: 1.7, ..spec.embedding };
        let (made, tokens) = (Made::new(spec.clone(), 3), tokens(&spec));
        let mut naive =
            Naive { hidden: spec.hidden, is_tied: tied, sum: vec![0.0; spec.hidden * spec.hidden] };
        let storage = Storage::Memory;
        backward(&made, &tokens, CONTEXT, SEED, &storage, &mut naive, &mut Chosen::default()).unwrap();
        let observer = &mut Chosen::default();
        let settings = Settings { tokens: &tokens, context: CONTEXT, storage, threads: 1, observer };
        let found = lookups(&made, settings).unwrap();
        let largest = naive.sum.iter().fold(0.0f64, |largest, sum| largest.max(sum.abs()));
        for (found, sum) in found.into_iter().zip(naive.sum) {
            assert!((f64::from(found) - sum).abs() < 1e-5 * largest, "{tied}: {found} {sum}");
        }
    }
}
