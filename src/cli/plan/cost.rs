//! What `--calibrate` costs: the part of a plan that is known from headers, and time from a short measurement of this machine.

use clap::ArgMatches;
use serde_json::{Value, json};

use super::Request;
use crate::calibration::Cost;
use crate::cli::console::Page;
use crate::cli::size::human;
use crate::cli::{feedback, perplexity};
use crate::error::Result;
use crate::model::{Storage, product_rate};

/// Of the rate of a plain product, what the whole of a calibration is taken to run at, its search for scales included. It is what
/// large matrices are meant to reach; small ones stay below.
const SHARE_OF_RATE: f64 = 0.6;

/// A cost, and how fast this machine multiplies.
pub(super) struct Estimate {
    cost: Cost,
    /// Floating-point operations a second of a plain product.
    rate: f64,
}

/// Of the calibration that was asked for, if one was.
///
/// # Errors
/// When a text cannot be read or is shorter than a window, the model cannot be evaluated, nothing of the result can be
/// calibrated, or `--memory` will not do.
pub(super) fn estimate(matches: &ArgMatches, request: &Request) -> Result<Option<Estimate>> {
    let Some(texts) = feedback::windows(matches, &request.source, false)? else { return Ok(None) };
    let pool = perplexity::pool(request.threads)?;
    let cost = pool.install(|| feedback::cost(matches, request, &texts.windows))?;
    Ok(Some(Estimate { cost, rate: pool.install(product_rate) }))
}

impl Estimate {
    fn seconds(&self) -> f64 {
        self.cost.flops() / (SHARE_OF_RATE * self.rate)
    }

    /// For `--json`.
    pub(super) fn to_json(&self) -> Value {
        let Cost { forward_flops, sums_flops, rounding_flops, .. } = self.cost;
        json!({
            "matrices": self.cost.matrices,
            "tokens": self.cost.tokens,
            "peak_ram_bytes": self.cost.ram_bytes,
            "scratch_bytes": self.cost.scratch_bytes,
            "kept_bytes": self.cost.kept_bytes,
            "flops": {"forward": forward_flops, "sums": sums_flops, "rounding": rounding_flops},
            "flops_per_second": self.rate,
            "seconds": self.seconds(),
        })
    }

    /// For people.
    pub(super) fn print(&self, page: &mut Page) {
        let cost = &self.cost;
        let scratch = match &cost.storage {
            Storage::Memory => "hidden states in memory".to_owned(),
            Storage::Scratch(directory) => {
                format!("{} of scratch files in {}", human(cost.scratch_bytes), directory.display())
            }
        };
        page.line(format_args!(
            "calibration: {} matrices on {} tokens; peak memory {}, {scratch}, {} beside the result to go on after a stop",
            cost.matrices,
            cost.tokens,
            human(cost.ram_bytes),
            human(cost.kept_bytes)
        ));
        let tera = |flops: f64| flops / 1e12;
        page.line(format_args!(
            "  {:.2} TFLOP (forward {:.2}, sums {:.2}, rounding {:.2}); this machine multiplies at {:.1} GFLOP/s: about {}",
            tera(cost.flops()),
            tera(cost.forward_flops),
            tera(cost.sums_flops),
            tera(cost.rounding_flops),
            self.rate / 1e9,
            duration(self.seconds())
        ));
    }
}

/// Seconds for people.
fn duration(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 90.0 => format!("{seconds:.0} s"),
        seconds if seconds < 5400.0 => format!("{:.0} min", seconds / 60.0),
        seconds => format!("{:.1} h", seconds / 3600.0),
    }
}
