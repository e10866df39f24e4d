//! The error report: how far what was written is from its source, tensor by tensor.
//!
//! A worker decodes what it has just encoded and adds up, over the weights `x` of the source and what became of
//! them `y`, four sums of products. Sums of a job follow from the job alone and are added in the order of the
//! jobs, so a report does not depend on threads, nor on whether the run was cut off: the journal keeps them.

use requant_formats::dispatch::{self, Kernel};
use serde::{Deserialize, Serialize};

use crate::plan::Blueprint;

/// Independent partial sums: element `i` goes to number `i % LANES`.
const LANES: usize = 16;

/// Sums over some weights.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Sums {
    /// `(y - x)^2`
    error: f64,
    /// `x^2`
    source: f64,
    /// `y^2`
    written: f64,
    /// `x y`
    product: f64,
}

impl Sums {
    /// Bytes of [`Sums::to_bytes`].
    pub(super) const LEN_BYTES: usize = 32;

    /// Adds weights of the source and what they were decoded to; both of one length.
    pub(crate) fn add(&mut self, x: &[f32], y: &[f32]) {
        self.add_sums(dispatch::run(Products { x, y }));
    }

    /// Adds the sums over other weights.
    pub(crate) fn add_sums(&mut self, other: Self) {
        self.error += other.error;
        self.source += other.source;
        self.written += other.written;
        self.product += other.product;
    }

    /// For the journal.
    pub(super) fn to_bytes(self) -> [u8; Self::LEN_BYTES] {
        let mut bytes = [0; Self::LEN_BYTES];
        let sums = [self.error, self.source, self.written, self.product];
        for (to, sum) in bytes.chunks_exact_mut(8).zip(sums) {
            to.copy_from_slice(&sum.to_le_bytes());
        }
        bytes
    }

    /// The inverse of [`Sums::to_bytes`].
    pub(super) fn from_bytes(bytes: &[u8; Self::LEN_BYTES]) -> Self {
        let mut sums = [0.0; 4];
        for (sum, from) in sums.iter_mut().zip(bytes.chunks_exact(8)) {
            let mut word = [0; 8];
            word.copy_from_slice(from);
            *sum = f64::from_le_bytes(word);
        }
        let [error, source, written, product] = sums;
        Self { error, source, written, product }
    }

    /// `|y - x| / |x|`; of zeros 0 when they are still zeros, else nothing can be said.
    pub(crate) fn relative_error(self) -> Option<f64> {
        match (self.error == 0.0, self.source > 0.0) {
            (true, _) => Some(0.0),
            (false, true) => Some((self.error / self.source).sqrt()).filter(|error| error.is_finite()),
            (false, false) => None,
        }
    }

    /// `x y / (|x| |y|)`; 1 for zeros that are still zeros.
    pub(crate) fn cosine(self) -> Option<f64> {
        if self.error == 0.0 {
            return Some(1.0);
        }
        let lengths = (self.source * self.written).sqrt();
        Some(self.product / lengths).filter(|cosine| cosine.is_finite())
    }
}

/// The four sums, each in [`LANES`] parts that are added in order at the end.
struct Products<'a> {
    x: &'a [f32],
    y: &'a [f32],
}

impl Kernel for Products<'_> {
    type Output = Sums;
    #[inline(always)]
    fn run(self) -> Sums {
        let mut sums = [[0.0f64; LANES]; 4];
        let (x, x_rest) = self.x.as_chunks::<LANES>();
        let (y, y_rest) = self.y.as_chunks::<LANES>();
        for (x, y) in x.iter().zip(y) {
            for lane in 0..LANES {
                add_products(&mut sums, lane, x[lane], y[lane]);
            }
        }
        for (lane, (&x, &y)) in x_rest.iter().zip(y_rest).enumerate() {
            add_products(&mut sums, lane, x, y);
        }
        let [error, source, written, product] = sums.map(|lanes| lanes.iter().sum());
        Sums { error, source, written, product }
    }
}

#[inline(always)]
fn add_products(sums: &mut [[f64; LANES]; 4], lane: usize, x: f32, y: f32) {
    let (x, y) = (f64::from(x), f64::from(y));
    sums[0][lane] += (y - x) * (y - x);
    sums[1][lane] += x * x;
    sums[2][lane] += y * y;
    sums[3][lane] += x * y;
}

/// How far one tensor is from its source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorError {
    /// Name in the result; of a tensor stored as several, that of the first.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Weights in it.
    pub parameters: u64,
    /// Root mean square of the error over that of the source; `None` when it is not a number.
    pub relative_error: Option<f64>,
    /// Cosine of the angle between the tensor and its source; `None` when it is not a number.
    pub cosine: Option<f64>,
}

/// What `--error-report` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorReport {
    /// All weights together, as if they were one tensor.
    pub relative_error: Option<f64>,
    /// The same.
    pub cosine: Option<f64>,
    /// Every tensor, the worst first; of equal ones in the order of the file.
    pub tensors: Vec<TensorError>,
}

impl ErrorReport {
    /// From the sums of each job, of which `tensors` says what it writes.
    pub(super) fn new(blueprint: &Blueprint, tensors: impl Iterator<Item = usize>, sums: &[Sums]) -> Self {
        let mut by_tensor = vec![Sums::default(); blueprint.tensors.len()];
        let mut all = Sums::default();
        for (tensor, sums) in tensors.zip(sums) {
            by_tensor[tensor].add_sums(*sums);
            all.add_sums(*sums);
        }
        let mut tensors: Vec<TensorError> = blueprint
            .tensors
            .iter()
            .zip(by_tensor)
            .filter(|(tensor, _)| tensor.content.is_none())
            .map(|(tensor, sums)| TensorError {
                name: tensor.names[0].clone(),
                type_name: tensor.type_name.clone(),
                parameters: tensor.len_elems(),
                relative_error: sums.relative_error(),
                cosine: sums.cosine(),
            })
            .collect();
        let badness = |tensor: &TensorError| tensor.relative_error.unwrap_or(f64::INFINITY);
        tensors.sort_by(|a, b| badness(b).total_cmp(&badness(a)));
        Self { relative_error: all.relative_error(), cosine: all.cosine(), tensors }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(len: usize) -> (Vec<f32>, Vec<f32>) {
        let x: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37).sin()).collect();
        let y = x.iter().enumerate().map(|(i, x)| x + 0.01 * (i as f32).cos()).collect();
        (x, y)
    }

    #[test]
    fn sums_are_those_of_the_definition() {
        for len in [0, 1, 15, 16, 17, 1000] {
            let (x, y) = weights(len);
            let mut sums = Sums::default();
            sums.add(&x, &y);
            let over = |term: &dyn Fn(f64, f64) -> f64| -> f64 {
                x.iter().zip(&y).map(|(&x, &y)| term(f64::from(x), f64::from(y))).sum()
            };
            let expected = [
                over(&|x, y| (y - x) * (y - x)),
                over(&|x, _| x * x),
                over(&|_, y| y * y),
                over(&|x, y| x * y),
            ];
            let found = [sums.error, sums.source, sums.written, sums.product];
            for (found, expected) in found.into_iter().zip(expected) {
                // The order of additions differs.
                assert!((found - expected).abs() <= 1e-13 * expected.abs(), "{len}: {found} {expected}");
            }
            assert_eq!(Sums::from_bytes(&sums.to_bytes()), sums);
        }
    }

    #[test]
    fn a_turned_vector_and_zeros() {
        let mut turned = Sums::default();
        turned.add(&[1.0, 0.0], &[0.0, 1.0]);
        assert_eq!((turned.relative_error(), turned.cosine()), (Some(2f64.sqrt()), Some(0.0)));
        let mut longer = Sums::default();
        longer.add(&[3.0, 4.0], &[6.0, 8.0]);
        assert_eq!((longer.relative_error(), longer.cosine()), (Some(1.0), Some(1.0)));
        let mut zeros = Sums::default();
        zeros.add(&[0.0; 3], &[0.0; 3]);
        assert_eq!((zeros.relative_error(), zeros.cosine()), (Some(0.0), Some(1.0)));
        let mut from_zeros = Sums::default();
        from_zeros.add(&[0.0; 3], &[1.0; 3]);
        assert_eq!((from_zeros.relative_error(), from_zeros.cosine()), (None, None));
        let mut broken = Sums::default();
        broken.add(&[1.0], &[f32::NAN]);
        assert_eq!((broken.relative_error(), broken.cosine()), (None, None));
    }

    #[test]
    fn every_instruction_set_adds_up_alike() {
        let (x, y) = weights(1003);
        let expected = Products { x: &x, y: &y }.run();
        assert_eq!(dispatch::run(Products { x: &x, y: &y }), expected);
    }
}
