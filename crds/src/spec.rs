//! The desired state: one model, its ladder of profiles, and how the system moves on it.

use serde::{Deserialize, Serialize};

use crate::{Cache, ModelSpec, Placement, Profile, Quality, Scaling, SecretRef, Switching};

// Unknown fields are not an error of deserialization, so that an older reader survives a newer object; a manifest from a
// user goes through `Manifest::from_yaml`, which does refuse them.
/// What the user asks for.
#[allow(clippy::duplicated_attributes, reason = "printer columns share their types")]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(kube::CustomResource, schemars::JsonSchema))]
#[cfg_attr(
    feature = "kube",
    kube(
        group = "modelprofile.dev",
        version = "v1alpha1",
        kind = "ModelProfile",
        plural = "modelprofiles",
        shortname = "mp",
        namespaced,
        status = "crate::ModelProfileStatus",
        derive = "PartialEq",
        doc = "One language model and its ladder of profiles: the same model at different precisions, from highest quality to highest density.",
        scale(
            spec_replicas_path = ".spec.scaling.replicas",
            status_replicas_path = ".status.replicas",
            label_selector_path = ".status.selector"
        ),
        printcolumn(
            name = "Active",
            type_ = "string",
            json_path = ".status.activeProfile",
            description = "Profile that serves"
        ),
        printcolumn(
            name = "Desired",
            type_ = "string",
            json_path = ".status.desiredProfile",
            description = "Profile that should serve"
        ),
        printcolumn(
            name = "Ready",
            type_ = "integer",
            json_path = ".status.readyReplicas",
            description = "Workers that serve"
        ),
        printcolumn(
            name = "Pressure",
            type_ = "integer",
            json_path = ".status.lastDecision.pressurePercent",
            description = "Load over target, in percent"
        ),
        printcolumn(
            name = "Available",
            type_ = "string",
            json_path = ".status.conditions[?(@.type==\"Available\")].reason",
            description = "Whether a worker answers: WorkerReady, or why none does"
        ),
        printcolumn(
            name = "Degraded",
            type_ = "string",
            json_path = ".status.conditions[?(@.type==\"Degraded\")].reason",
            description = "What is not as it should be: AsExpected if nothing is"
        ),
        printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
    )
)]
#[cfg_attr(feature = "kube", schemars(extend("x-kubernetes-validations" = [
    {"rule": "self.switching.strategy != 'InPlace' || self.engine.type == 'Native'",
     "message": "strategy InPlace needs the engine Native: set switching.strategy to Surge or Recreate"},
    {"rule": "self.switching.strategy != 'InPlace' || self.profiles.all(p, p.kvCache.format == self.profiles[0].kvCache.format)",
     "message": "strategy InPlace needs the same kvCache.format in all profiles"},
    {"rule": "self.switching.strategy != 'InPlace' || self.profiles.all(p, p.tensorParallel == self.profiles[0].tensorParallel)",
     "message": "strategy InPlace needs the same tensorParallel in all profiles"},
    {"rule": "self.switching.mode != 'Pinned' || (has(self.switching.pinnedProfile) && self.profiles.exists(p, p.name == self.switching.pinnedProfile))",
     "message": "mode Pinned needs switching.pinnedProfile with the name of a profile"},
    {"rule": "!has(self.switching.schedule) || self.switching.schedule.windows.all(w, self.profiles.exists(p, p.name == w.profile))",
     "message": "every window of the schedule names a profile"},
])))]
#[serde(rename_all = "camelCase")]
pub struct ModelProfileSpec {
    /// The checkpoint, and how clients see it. Required.
    pub model: ModelSpec,
    /// The program that serves. Left out: Native, in the image that belongs to this version.
    #[serde(default)]
    pub engine: Engine,
    /// The ladder: best quality first, highest density last; names are unique. Required, 1 to 4.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 4)))]
    #[cfg_attr(feature = "kube", schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])))]
    pub profiles: Vec<Profile>,
    /// When and how the active profile changes. Left out: automatically, in place, with the defaults of the fields.
    #[serde(default)]
    pub switching: Switching,
    /// How many workers run. Left out: one.
    #[serde(default)]
    pub scaling: Scaling,
    /// How far a profile may be from the original checkpoint. Left out: the defaults of the fields.
    #[serde(default)]
    pub quality: Quality,
    /// Where workers run and what they may use. Left out: anywhere, on the CPU.
    #[serde(default)]
    pub placement: Placement,
    /// Where checkpoints and artifacts are kept. Left out: with the pod, prepared again by each new one.
    #[serde(default)]
    pub cache: Cache,
    /// Keys that clients must present, one per entry of the Secret. Left out: no key is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_keys_secret_ref: Option<SecretRef>,
}

/// The program that serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Engine {
    /// Which program. Left out: Native.
    #[serde(rename = "type")]
    pub kind: EngineType,
    /// Container image. Left out: the image that belongs to this version of the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 512)))]
    pub image: Option<String>,
    /// Secrets to pull the image with. Left out: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kube", schemars(length(max = 8), extend("x-kubernetes-list-type" = "atomic")))]
    pub image_pull_secrets: Vec<SecretRef>,
    /// Arguments after those that the operator gives. Left out: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kube", schemars(length(max = 64), inner(length(max = 1024)), extend("x-kubernetes-list-type" = "atomic")))]
    pub args: Vec<String>,
    /// Environment variables beside those that the operator sets. Left out: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kube", schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])))]
    pub env: Vec<EnvVar>,
}

/// Program that serves a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "kube", schemars(transform = crate::schema::plain_enum))]
pub enum EngineType {
    /// This project's worker; the only one that changes precision in place.
    #[default]
    Native,
    /// vLLM.
    #[serde(rename = "VLLM")]
    Vllm,
    /// TensorRT-LLM.
    #[serde(rename = "TensorRTLLM")]
    TensorRtLlm,
    /// llama.cpp's server.
    LlamaCpp,
}

impl EngineType {
    /// The name in a manifest.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "Native",
            Self::Vllm => "VLLM",
            Self::TensorRtLlm => "TensorRTLLM",
            Self::LlamaCpp => "LlamaCpp",
        }
    }
}

/// An environment variable of the worker container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "kube", schemars(extend("x-kubernetes-validations" = [
    {"rule": "!has(self.value) || !has(self.secretKeyRef)", "message": "write value or secretKeyRef, not both"},
])))]
#[serde(rename_all = "camelCase")]
pub struct EnvVar {
    /// Name of the variable. Required.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = [
        {"rule": r"!self.matches('[=\\p{Cc}]')", "message": "a name does not contain `=`"},
    ])))]
    pub name: String,
    /// Its value. Left out: the empty text, or what `secretKeyRef` names.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 4096)))]
    pub value: Option<String>,
    /// Take the value from a Secret; not together with `value`. Left out: `value` counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<crate::SecretKeyRef>,
}
