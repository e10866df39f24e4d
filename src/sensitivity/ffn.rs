//! Backwards through a gated feed-forward block, `down(activation(gate(x)) * up(x))` times a factor for each row: that of
//! an expert's token.
//!
//! ```text
//! di = dy down        dfactor = di . i + dy . b        dgate = factor di beside(up) activation'(gate)        dup = factor di beside'(up) activation(gate)
//! ```
//!
//! where `b` is the bias of the down projection and `beside(up)` is `up`, save in a clamped block.

use super::{Sink, linear};
use crate::checkpoint::WeightStore;
use crate::error::Result;
use crate::family::{Activation, Ffn, LayerRole, Role};
use crate::model::exponential;
use crate::model::linear::{Input, Output, Picks, add_bias, linear as forward, optional_vector};
use crate::model::matmul::Into;
use crate::model::states::{BLOCK_ROWS, States};

/// Of the tanh form of the Gaussian error unit (arXiv 1606.08415).
const SQRT_2_BY_PI: f64 = 0.797_884_560_802_865_4;
const GELU_CUBE: f64 = 0.044_715;

/// What the block whose matrices have the roles `role(...)` on `x` passes on of `dy` (a row for each of `x`), and the
/// gradient of each row's factor; `picks` are the tokens of the rows and these factors, of all tokens and 1 without them.
///
/// # Errors
/// When a weight cannot be read, or the states cannot be read or kept; what the sink says.
pub(super) fn back(
    store: &dyn WeightStore,
    role: impl Fn(Ffn) -> Role,
    x: &Input,
    picks: Option<&Picks>,
    mut dy: States,
    sink: &mut dyn Sink,
) -> Result<(States, Vec<f32>)> {
    let activation = store.spec().ffn.activation;
    let product = |ffn: Ffn| -> Result<States> {
        let mut y = dy.sibling(x.rows(), store.weight(role(ffn))?.rows)?;
        forward(store, role(ffn), *x, Output::Replace(&mut y))?;
        if let Some(bias) = bias_of(role(ffn)) {
            add_bias(store, bias, &mut y)?;
        }
        Ok(y)
    };
    let (mut gate, mut up) = (product(Ffn::Gate)?, product(Ffn::Up)?);
    let width = gate.cols();
    let mut inner = gate.sibling(gate.rows(), width)?;
    inner.for_each_block(BLOCK_ROWS, 0..width, Into::Replace, |rows, part| {
        exponential::gated(activation, &gate.read(rows.clone())?, &up.read(rows)?, part.data);
        Ok(())
    })?;
    let dinner = linear::back(store, role(Ffn::Down), &dy)?;
    let mut dfactors = Vec::new();
    let factor = |row: usize| picks.map_or(1.0, |picks| picks[row].1);
    if picks.is_some() {
        for rows in dinner.blocks() {
            let (d, i) = (dinner.read(rows.clone())?, inner.read(rows)?);
            let dot = |(d, i): (&[f32], &[f32])| {
                d.iter().zip(i).map(|(&d, &i)| f64::from(d) * f64::from(i)).sum::<f64>() as f32
            };
            dfactors.extend(d.chunks_exact(width).zip(i.chunks_exact(width)).map(dot));
        }
        let bias = bias_of(role(Ffn::Down)).map_or(Ok(Vec::new()), |bias| optional_vector(store, bias))?;
        for rows in dy.blocks().filter(|_| !bias.is_empty()) {
            let gradients = dy.read(rows.clone())?;
            for (dfactor, dy) in dfactors[rows].iter_mut().zip(gradients.chunks_exact(bias.len())) {
                *dfactor +=
                    dy.iter().zip(&bias).map(|(&d, &b)| f64::from(d) * f64::from(b)).sum::<f64>() as f32;
            }
        }
        scale_rows(&mut dy, factor)?;
    }
    sink.product(role(Ffn::Down), 0, &Input::All(&inner), picks, &dy)?;
    drop((inner, dy));
    for rows in gate.blocks() {
        let (mut g, mut u) = (gate.read(rows.clone())?.into_owned(), up.read(rows.clone())?.into_owned());
        let d = dinner.read(rows.clone())?;
        let units = g.chunks_exact_mut(width).zip(u.chunks_exact_mut(width)).zip(d.chunks_exact(width));
        for (row, ((g, u), d)) in rows.clone().zip(units) {
            for ((g, u), d) in g.iter_mut().zip(u).zip(d) {
                let (value, slope) = activated(activation, *g);
                let (beside, slope_beside) = beside(activation, *u);
                let d = factor(row) * d;
                (*g, *u) = (d * beside * slope, d * value * slope_beside);
            }
        }
        gate.write(rows.start, &g)?;
        up.write(rows.start, &u)?;
    }
    let mut dx = gate.sibling(gate.rows(), x.states().cols())?;
    for (ffn, gradient) in [(Ffn::Gate, gate), (Ffn::Up, up)] {
        sink.product(role(ffn), 0, x, picks, &gradient)?;
        linear::add_back(store, role(ffn), &gradient, &mut dx)?;
    }
    Ok((dx, dfactors))
}

/// The bias that the matrix with this role may have.
fn bias_of(role: Role) -> Option<Role> {
    match role {
        Role::Layer(layer, LayerRole::Dense(ffn)) => Some(Role::Layer(layer, LayerRole::DenseBias(ffn))),
        Role::Layer(layer, LayerRole::Expert(expert, ffn)) => {
            Some(Role::Layer(layer, LayerRole::ExpertBias(expert, ffn)))
        }
        _ => None,
    }
}

/// What the gate is multiplied with, and its slope.
fn beside(activation: Activation, up: f32) -> (f32, f32) {
    match activation {
        Activation::Clamped => {
            let limit = exponential::CLAMPED_LIMIT;
            (up.clamp(-limit, limit) + 1.0, if up.abs() <= limit { 1.0 } else { 0.0 })
        }
        Activation::Silu | Activation::GeluTanh => (up, 1.0),
    }
}

/// Multiplies every row.
fn scale_rows(states: &mut States, factor: impl Fn(usize) -> f32 + Sync) -> Result<()> {
    let cols = states.cols();
    states.for_each_block(BLOCK_ROWS, 0..cols, Into::Add, |rows, part| {
        for (row, values) in rows.zip(part.data.chunks_exact_mut(cols)) {
            values.iter_mut().for_each(|value| *value *= factor(row));
        }
        Ok(())
    })
}

/// The activation and its slope.
fn activated(activation: Activation, x: f32) -> (f32, f32) {
    let is_clamped = activation == Activation::Clamped && x > exponential::CLAMPED_LIMIT;
    let x = f64::from(if is_clamped { exponential::CLAMPED_LIMIT } else { x });
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let (share, slope) = match activation {
        Activation::Silu => (sigmoid(x), 1.0),
        Activation::Clamped => {
            let alpha = f64::from(exponential::CLAMPED_ALPHA);
            (sigmoid(alpha * x), alpha)
        }
        // `x / 2 (1 + tanh(u))` is `x sigmoid(2u)`.
        Activation::GeluTanh => (
            sigmoid(2.0 * SQRT_2_BY_PI * (x + GELU_CUBE * x * x * x)),
            2.0 * SQRT_2_BY_PI * (1.0 + 3.0 * GELU_CUBE * x * x),
        ),
    };
    let slope = if is_clamped { 0.0 } else { share + x * share * (1.0 - share) * slope };
    ((x * share) as f32, slope as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sensitivity::tests::check_gradient;

    #[test]
    fn what_is_beside_a_clamped_gate_is_clamped() {
        for up in [-9.0f32, -3.0, 0.0, 6.5, 8.0] {
            let (value, slope) = beside(Activation::Clamped, up);
            let mut inner = [0.0];
            exponential::gated(Activation::Clamped, &[2.0], &[up], &mut inner);
            let gate = activated(Activation::Clamped, 2.0).0;
            assert!((inner[0] - gate * value).abs() < 2e-5, "{up}");
            check_gradient(&[up], &[slope], 1e-6, |x| x[0].clamp(-7.0, 7.0));
        }
    }

    #[test]
    fn slopes_of_activations_are_those_of_the_definition() {
        for step in -60..=60 {
            let x = step as f32 * 0.13;
            let silu = |x: f64| x / (1.0 + (-x).exp());
            let gelu = |x: f64| 0.5 * x * (1.0 + (SQRT_2_BY_PI * (x + GELU_CUBE * x.powi(3))).tanh());
            let alpha = f64::from(exponential::CLAMPED_ALPHA);
            let clamped = |x: f64| x.min(7.0) / (1.0 + (-alpha * x.min(7.0)).exp());
            for (activation, exact) in [
                (Activation::Silu, &silu as &dyn Fn(f64) -> f64),
                (Activation::GeluTanh, &gelu),
                (Activation::Clamped, &clamped),
            ] {
                let (value, slope) = activated(activation, x);
                assert!((f64::from(value) - exact(f64::from(x))).abs() < 1e-6, "{activation:?} {x}");
                check_gradient(&[x], &[slope], 1e-6, |x| exact(x[0]));
                let mut inner = [0.0];
                // One less where one is added.
                let up = if activation == Activation::Clamped { 0.0 } else { 1.0 };
                exponential::gated(activation, &[x], &[up], &mut inner);
                assert!((inner[0] - value).abs() < 2e-6, "{activation:?} {x}");
            }
        }
    }
}
