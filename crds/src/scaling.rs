//! How many workers run, and how good a profile must be.

use serde::{Deserialize, Serialize};

use crate::Decimal;

/// How many workers run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "kube", schemars(extend("x-kubernetes-validations" = [
    {"rule": "self.minReplicas <= self.maxReplicas", "message": "minReplicas is at most maxReplicas"},
])))]
#[serde(rename_all = "camelCase", default)]
pub struct Scaling {
    /// Who decides. Left out: Auto.
    pub mode: ScalingMode,
    /// Fewest workers. Left out: 1.
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 1000)))]
    pub min_replicas: u32,
    /// Most workers. Left out: 1.
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 1000)))]
    pub max_replicas: u32,
    /// Workers asked for through the scale subresource, with mode External; held between the two limits. Left out: 1, so
    /// `minReplicas`. The API server writes the 1, since an autoscaler cannot read a scale that has no number.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(range(max = 1000), extend("default" = 1)))]
    pub replicas: Option<u32>,
    /// Removal of workers. Left out: the defaults of its fields.
    pub scale_down: ScaleDown,
}

impl Default for Scaling {
    fn default() -> Self {
        Self {
            mode: ScalingMode::default(),
            min_replicas: 1,
            max_replicas: 1,
            replicas: None,
            scale_down: ScaleDown::default(),
        }
    }
}

/// Who decides about the number of workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "kube", schemars(transform = crate::schema::plain_enum))]
pub enum ScalingMode {
    /// Demand, between the limits.
    #[default]
    Auto,
    /// An autoscaler or a person, through the scale subresource.
    External,
}

/// Removal of workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct ScaleDown {
    /// How long the pressure predicted with one worker less stays low before that worker goes. Left out: 300.
    #[cfg_attr(feature = "kube", schemars(range(max = 86_400)))]
    pub stabilization_window_seconds: u32,
}

impl Default for ScaleDown {
    fn default() -> Self {
        Self { stabilization_window_seconds: 300 }
    }
}

/// How far a profile may be from the original checkpoint before it is no longer used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Quality {
    /// Highest rise of perplexity over the original, in percent. Left out: 10.
    #[cfg_attr(feature = "kube", schemars(range(max = 1000)))]
    pub max_perplexity_increase_percent: u32,
    /// Highest mean Kullback-Leibler divergence from the original's next-token distribution, in nats; a fraction goes in
    /// quotes. Left out: "0.1".
    #[serde(rename = "maxMeanKLDivergence")]
    #[cfg_attr(feature = "kube", schemars(extend("x-kubernetes-validations" = [
        {"rule": "string(self).matches('^[0-9]+([.][0-9]+)?$')", "message": "write a number of nats such as \"0.1\""},
    ])))]
    pub max_mean_kl_divergence: Decimal,
    /// What happens to a profile beyond a limit. Left out: Block.
    pub on_failure: OnFailure,
    /// Text to measure with. Left out: the text that comes with the evaluator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<Dataset>,
}

impl Default for Quality {
    fn default() -> Self {
        Self {
            max_perplexity_increase_percent: 10,
            max_mean_kl_divergence: Decimal("0.1".to_owned()),
            on_failure: OnFailure::default(),
            dataset: None,
        }
    }
}

/// What happens to a profile that is beyond a quality limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "kube", schemars(transform = crate::schema::plain_enum))]
pub enum OnFailure {
    /// It is not used, nor can it be pinned.
    #[default]
    Block,
    /// It is used; the condition says that it failed.
    Warn,
}

/// Text to measure quality with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Dataset {
    /// Where the plain text is: `file:///PATH` or `pvc://CLAIM/PATH`. The other forms of `model.uri` are not supported yet.
    /// Required.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 1024), extend("x-kubernetes-validations" = crate::schema::uri())))]
    pub uri: String,
    /// Tokens of one scored window. Left out: 512.
    #[serde(default = "context")]
    #[cfg_attr(feature = "kube", schemars(range(min = 16, max = 32_768)))]
    pub context_tokens: u32,
    /// Tokens to score at most. Left out: all of the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(range(min = 16)))]
    pub max_tokens: Option<u32>,
}

const fn context() -> u32 {
    512
}
