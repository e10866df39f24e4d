//! DeepSeek-V2 and V2-Lite: softmax scores without a bias, the best experts of the best groups or of all.
//!
//! Source: `modeling_deepseek.py` of the published checkpoints (`MoEGate`). With `norm_topk_prob` true it
//! leaves out `routed_scaling_factor`, and other implementations do not; no published model says so.

use super::deepseek::{self, Family};
use super::{ArchSpec, Architecture, Config, Expected, ExpertChoice, Scoring};
use crate::error::{Error, Result};

/// The `deepseek_v2` family.
pub(super) struct DeepseekV2;

const FAMILY: Family = Family {
    model_type: "deepseek_v2",
    scoring: Scoring::Softmax,
    choice: ExpertChoice::Greedy,
    normalize_top: false,
};

impl Architecture for DeepseekV2 {
    fn model_type(&self) -> &'static str {
        FAMILY.model_type
    }

    fn spec(&self, config: &Config) -> Result<ArchSpec> {
        let spec = deepseek::spec(config, &FAMILY)?;
        if spec.normalize_top {
            return Err(Error::Unsupported {
                what: "norm_topk_prob true in a deepseek_v2 model".into(),
                hint: "implementations differ in whether routed_scaling_factor then counts".into(),
            });
        }
        Ok(spec)
    }

    fn expected(&self, spec: &ArchSpec) -> Vec<Expected> {
        deepseek::expected(spec)
    }
}
