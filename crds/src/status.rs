//! The observed state, as the operator writes it.

use serde::{Deserialize, Serialize};

use crate::{Decimal, Verdict};

/// What the operator observed and decided.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct ModelProfileStatus {
    /// Generation of the spec that this status is about. Left out: no pass was made yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Profile that every ready worker serves with. Left out: no worker is ready, or they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 63)))]
    pub active_profile: Option<String>,
    /// Profile that the latest decision wants. Left out: none was made yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 63)))]
    pub desired_profile: Option<String>,
    /// Workers that exist. Left out: 0.
    pub replicas: u32,
    /// Workers that serve. Left out: 0.
    pub ready_replicas: u32,
    /// Label selector of the workers, for the scale subresource. Left out: no workers were made yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 1024)))]
    pub selector: Option<String>,
    /// What is known about each profile. Left out: nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kube", schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])))]
    pub profiles: Vec<ProfileStatus>,
    /// The latest decision. Left out: none was made yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_decision: Option<LastDecision>,
    /// The latest switches, newest first, at most 10. Left out: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kube", schemars(length(max = 10), extend("x-kubernetes-list-type" = "atomic")))]
    pub switch_history: Vec<SwitchRecord>,
    /// Conditions; types and reasons are the constants of this crate. Left out: no pass was made yet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kube", schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])))]
    pub conditions: Vec<Condition>,
}

impl ModelProfileStatus {
    /// The condition of a type of [`crate::conditions`].
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }
}

/// Length of [`ModelProfileStatus::switch_history`].
pub const SWITCH_HISTORY_LIMIT: usize = 10;

/// What is known about one profile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ProfileStatus {
    /// Name in the ladder. Required.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 63)))]
    pub name: String,
    /// Key of the quantized artifact. Left out: not prepared yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 128)))]
    pub artifact_key: Option<String>,
    /// Packed weights in memory, in bytes per worker. Left out: not known yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_bytes: Option<i64>,
    /// Tokens that the KV cache of one worker holds. Left out: not known yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_tokens: Option<i64>,
    /// Perplexity on the data set. Left out: not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<Decimal>,
    /// Perplexity of the original on the same tokens. Left out: not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference_perplexity: Option<Decimal>,
    /// Mean Kullback-Leibler divergence from the original, in nats. Left out: not measured.
    #[serde(rename = "meanKLDivergence", skip_serializing_if = "Option::is_none")]
    pub mean_kl_divergence: Option<Decimal>,
    /// When quality was measured, RFC 3339. Left out: not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(extend("format" = "date-time")))]
    pub measured_at: Option<String>,
    /// What the quality gate says of it. Left out: it is not prepared yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quality_gate: Option<GateOutcome>,
}

/// What the quality gate says of a profile; the same words as the condition's reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "kube", schemars(transform = crate::schema::plain_enum))]
pub enum GateOutcome {
    /// It may serve.
    WithinLimits,
    /// It lost more than `spec.quality` allows.
    BeyondLimits,
    /// Nobody knows what it lost.
    NotMeasured,
}

impl GateOutcome {
    /// The word itself.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WithinLimits => "WithinLimits",
            Self::BeyondLimits => "BeyondLimits",
            Self::NotMeasured => "NotMeasured",
        }
    }
}

impl From<Verdict> for GateOutcome {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Passed => Self::WithinLimits,
            Verdict::NotMeasured => Self::NotMeasured,
            Verdict::Beyond(_) => Self::BeyondLimits,
        }
    }
}

/// The latest decision about profile and replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct LastDecision {
    /// When it was made, RFC 3339. Required.
    #[cfg_attr(feature = "kube", schemars(extend("format" = "date-time")))]
    pub time: String,
    /// What is done. Required.
    pub action: DecisionAction,
    /// Why, as one word from a closed set. Required.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 128)))]
    pub reason: String,
    /// Why, as a sentence: signal, value, target, window, and what would change it. Required.
    #[cfg_attr(feature = "kube", schemars(length(max = 1024)))]
    pub message: String,
    /// Load over target in percent; 100 is at target. Left out: no metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pressure_percent: Option<u32>,
}

/// What a decision does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "kube", schemars(transform = crate::schema::plain_enum))]
pub enum DecisionAction {
    /// Nothing changes.
    Hold,
    /// Another profile.
    Switch,
    /// Another number of workers.
    Scale,
}

/// A switch that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct SwitchRecord {
    /// Profile before. Required.
    #[cfg_attr(feature = "kube", schemars(length(max = 63)))]
    pub from: String,
    /// Profile asked for. Required.
    #[cfg_attr(feature = "kube", schemars(length(max = 63)))]
    pub to: String,
    /// Reason of the decision. Required.
    #[cfg_attr(feature = "kube", schemars(length(max = 128)))]
    pub reason: String,
    /// When it began, RFC 3339. Required.
    #[cfg_attr(feature = "kube", schemars(extend("format" = "date-time")))]
    pub start_time: String,
    /// From the request to the report of the last worker. Required.
    pub duration_millis: i64,
    /// How it ended: Completed, Refused or Replaced. Required.
    #[cfg_attr(feature = "kube", schemars(length(max = 64)))]
    pub outcome: String,
}

/// A `metav1.Condition`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Type; unique in the list. Required.
    #[serde(rename = "type")]
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 316)))]
    pub kind: String,
    /// Whether it holds. Required.
    pub status: ConditionStatus,
    /// Generation of the spec that it is about. Left out: not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When `status` last changed, RFC 3339. Required.
    #[cfg_attr(feature = "kube", schemars(extend("format" = "date-time")))]
    pub last_transition_time: String,
    /// Why, as one word from a closed set. Required.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 1024)))]
    pub reason: String,
    /// Why, as a sentence. Required; may be empty.
    #[cfg_attr(feature = "kube", schemars(length(max = 32_768)))]
    pub message: String,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "kube", schemars(transform = crate::schema::plain_enum))]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not.
    False,
    /// It was not observed.
    Unknown,
}
