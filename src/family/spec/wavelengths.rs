//! Llama 3's longer contexts: frequencies are divided by how far a pair turns within the original context.
//!
//! The divisors are those that llama.cpp's converter stores, number for number: it works with PyTorch's f32 tensors, which divide
//! a number by a tensor as the number times its reciprocal. Powers are rounded correctly here, and to within a unit of the last
//! place there; the two differ for one pair of some heads of 96 columns, and for none of 64 or 128.
//!
//! Source: llama.cpp `conversion/llama.py` (`LlamaModel.generate_extra_tensors`), transformers `modeling_rope_utils.py`
//! (`_compute_llama3_parameters`).

use std::f32::consts::TAU;

use super::Rotary;

/// Which pairs are slowed down.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wavelengths {
    /// Divisor of frequencies that turn less than `low` times.
    pub factor: f64,
    /// Turns within the original context below which a frequency is divided by all of the factor.
    pub low: f64,
    /// Turns above which it is not.
    pub high: f64,
    /// Context length of the original training.
    pub original_context: u64,
}

impl Wavelengths {
    /// The divisor of every pair of `rotary`.
    pub fn divisors(&self, rotary: &Rotary) -> Vec<f32> {
        let context = self.original_context as f64;
        let (longest, shortest) = ((context / self.low) as f32, (context / self.high) as f32);
        let (factor, low, span) = (self.factor as f32, self.low as f32, (self.high - self.low) as f32);
        let divisor = |pair: usize| {
            let exponent = (2 * pair) as f32 / rotary.dim as f32;
            let power = rotary.theta.powf(f64::from(exponent)) as f32;
            let wavelength = (1.0 / (1.0 / power)) * TAU;
            if wavelength < shortest {
                1.0
            } else if wavelength > longest {
                factor
            } else {
                let smooth = ((1.0 / wavelength) * context as f32 - low) / span;
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        (0..rotary.dim / 2).map(divisor).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{Divisors, Pairing};

    /// As PyTorch 2.15 has them for Llama 3.1 (heads of 128) and Llama 3.2 1B (of 64): the divisors between 1 and the factor.
    #[test]
    fn divisors_are_those_that_the_converter_stores() {
        for (dim, factor, first, expected) in CASES {
            let own = Wavelengths { factor: *factor, low: 1.0, high: 4.0, original_context: 8192 };
            let rotary = Rotary {
                dim: *dim,
                pairing: Pairing::Halves,
                theta: 500_000.0,
                scaling: None,
                amplitude: 1.0,
                divisors: Divisors::ByWavelength(own),
                sections: None,
            };
            let found = own.divisors(&rotary);
            assert_eq!(found.len(), dim / 2);
            assert!(found[..*first].iter().all(|&divisor| divisor == 1.0), "{found:?}");
            assert_eq!(&found[*first..*first + expected.len()], *expected);
            assert!(found[*first + expected.len()..].iter().all(|&divisor| divisor == *factor as f32));
        }
    }

    const CASES: &[(usize, f64, usize, &[f32])] = &[
        (128, 8.0, 29, &[1.2074839, 1.5534146, 2.026313, 2.69453, 3.6842532, 5.257327]),
        (64, 32.0, 15, &[1.6513293, 3.2922628, 9.666731]),
    ];
}
