//! What quantizing cost in quality: measured once per artifact, kept beside it as `quality.json`, and told by the worker.

use serde::{Deserialize, Serialize};

/// Quality of an artifact against its reference profile (the checkpoint in BF16) on one text. Divergences are in nats.
///
/// The definitions are those of llama.cpp's perplexity tool: KL(reference || profile) of the next-token distributions, and
/// the root mean square of the change of the probability of the text's own token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct MeasuredQuality {
    /// Perplexity of the profile.
    pub perplexity: f64,
    /// Perplexity of the reference on the same tokens.
    pub reference_perplexity: f64,
    /// Mean KL divergence from the reference.
    #[serde(rename = "meanKLDivergence")]
    pub mean_kl_divergence: f64,
    /// 99th percentile of the KL divergence.
    #[serde(rename = "p99KLDivergence")]
    pub p99_kl_divergence: f64,
    /// Tokens whose most likely continuation is the reference's, in percent.
    pub top1_agreement_percent: f64,
    /// Root mean square of the change of the text token's probability, in percent.
    pub rms_probability_change_percent: f64,
    /// Tokens scored.
    pub tokens: u64,
    /// Name of the text (`built-in`, or the URI of `quality.dataset`) with the first 12 digits of its SHA-256.
    pub dataset: String,
    /// RFC 3339, UTC.
    pub measured_at: String,
}

impl MeasuredQuality {
    /// Rise of perplexity over the reference, in percent; negative when the profile scores better.
    pub fn perplexity_increase_percent(&self) -> f64 {
        (self.perplexity / self.reference_perplexity - 1.0) * 100.0
    }
}
