//! `general.size_label`: `256x20B`.
//!
//! Source: llama.cpp `gguf-py/gguf/gguf_writer.py` (`get_total_parameter_count`) and
//! `gguf-py/gguf/utility.py` (`size_label`).

use super::names::Planned;

/// Weights of the model, as the converter counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    /// All weights.
    pub(super) total: u64,
    /// Weights outside the routed experts.
    pub(super) shared: u64,
    /// Weights of one expert in every layer.
    pub(super) expert: u64,
    /// Routed experts, 0 without any.
    pub(super) experts: u64,
}

impl Counts {
    /// Counts the weights of a result.
    pub(super) fn of(tensors: &[Planned]) -> Self {
        let mut counts = Self { total: 0, shared: 0, expert: 0, experts: 0 };
        let mut stacked = 0;
        for tensor in tensors {
            let len_elems = tensor.len_elems();
            counts.total += len_elems;
            match tensor.shape.as_slice() {
                &[experts, ..] if tensor.is_experts() && experts > 0 => {
                    counts.expert += len_elems / experts as u64;
                    counts.experts += experts as u64;
                    stacked += 1;
                }
                _ => counts.shared += len_elems,
            }
        }
        counts.experts = counts.experts.checked_div(stacked).unwrap_or(0);
        counts
    }

    /// The label: experts times the size of a model with one of them.
    pub(super) fn label(&self) -> String {
        if self.experts > 0 {
            format!("{}x{}", self.experts, rounded(self.shared + self.expert))
        } else {
            rounded(self.total)
        }
    }
}

/// At least two digits and a unit: `1.3M`, `671B`.
fn rounded(count: u64) -> String {
    let count = count as f64;
    let (scaled, unit) = if count > 1e12 {
        (count * 1e-12, "T")
    } else if count > 1e9 {
        (count * 1e-9, "B")
    } else if count > 1e6 {
        (count * 1e-6, "M")
    } else {
        (count * 1e-3, "K")
    };
    let whole = scaled.round_ties_even();
    let digits = if whole == 0.0 { 0 } else { format!("{whole:.0}").len() };
    format!("{scaled:.*}{unit}", 2usize.saturating_sub(digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_digits_at_least() {
        for (count, expected) in [
            (671_026_419_200, "671B"),
            (20_521_000_000, "21B"),
            (9_449_000, "9.4M"),
            (9_500_000, "10M"),
            (9_999_999, "10M"),
            (731_000, "731K"),
            (400, "0.40K"),
            (1_500_000_000_000, "1.5T"),
        ] {
            assert_eq!(rounded(count), expected);
        }
        assert_eq!(Counts { total: 9, shared: 3_000_000, expert: 500_000, experts: 16 }.label(), "16x3.5M");
    }
}
