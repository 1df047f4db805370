//! Where workers run, what they may use, and where artifacts are kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Quantity;

/// Where workers run and what they may use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Placement {
    /// Extended resource that counts accelerators (`nvidia.com/gpu`); a worker asks for `tensorParallel` of them. Left out:
    /// none, the worker computes on the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 253)))]
    pub accelerator_resource: Option<String>,
    /// Memory for weights, KV cache and workspace together, per accelerator, or of the whole process on a CPU. Left out:
    /// what the worker finds to be available when it starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(extend("x-kubernetes-validations" = [
        {"rule": "isQuantity(string(self)) && quantity(string(self)).isGreaterThan(quantity('0'))", "message": "write more than 0, such as 76Gi"},
    ])))]
    pub memory_budget: Option<Quantity>,
    /// Labels that a node must have. Left out: any node.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[cfg_attr(feature = "kube", schemars(extend("maxProperties" = 32)))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that workers accept. Left out: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kube", schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic")))]
    pub tolerations: Vec<Toleration>,
    /// Affinity of the worker pods, as in a PodSpec; the API server checks it when the pods are made. Left out: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(schema_with = "crate::schema::any_object"))]
    pub affinity: Option<serde_json::Map<String, serde_json::Value>>,
    /// RuntimeClass of the worker pods. Left out or empty: the cluster's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub runtime_class_name: Option<String>,
    /// Requests and limits of the worker container, beside what the operator works out for accelerators and host memory.
    /// Left out: only those.
    pub resources: Resources,
}

/// A taint that workers accept, as in a PodSpec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "kube", schemars(extend("x-kubernetes-validations" = [
    {"rule": "self.operator != 'Exists' || !has(self.value) || self.value == ''", "message": "a value has no meaning with operator Exists"},
    {"rule": "self.operator == 'Exists' || (has(self.key) && self.key != '')", "message": "key is required, unless the operator is Exists"},
])))]
#[serde(rename_all = "camelCase", default)]
pub struct Toleration {
    /// Key of the taint. Left out: every key, with operator Exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 316)))]
    pub key: Option<String>,
    /// How the value is compared. Left out: Equal.
    pub operator: TolerationOperator,
    /// Value of the taint, with operator Equal. Left out: the empty value.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 63)))]
    pub value: Option<String>,
    /// Effect of the taint. Left out: every effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
    /// How long a worker stays on a node that gets such a taint, with effect NoExecute. Left out: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub toleration_seconds: Option<i64>,
}

/// How a toleration compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "kube", schemars(transform = crate::schema::plain_enum))]
pub enum TolerationOperator {
    /// Key and value.
    #[default]
    Equal,
    /// The key alone.
    Exists,
}

/// What a taint does to pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "kube", schemars(transform = crate::schema::plain_enum))]
pub enum TaintEffect {
    /// New pods stay away.
    NoSchedule,
    /// New pods stay away where possible.
    PreferNoSchedule,
    /// Running pods leave, too.
    NoExecute,
}

/// Requests and limits of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    /// What the container is guaranteed, by resource name. Left out: what the operator works out.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[cfg_attr(feature = "kube", schemars(extend("maxProperties" = 16)))]
    pub requests: BTreeMap<String, Quantity>,
    /// What the container can not exceed, by resource name. Left out: no limits but accelerators.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[cfg_attr(feature = "kube", schemars(extend("maxProperties" = 16)))]
    pub limits: BTreeMap<String, Quantity>,
}

/// Where checkpoints and quantized artifacts are kept. At most one kind of volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "kube", schemars(extend("x-kubernetes-validations" = [
    {"rule": "[has(self.persistentVolumeClaim), has(self.hostPath), has(self.emptyDir)].filter(used, used).size() <= 1",
     "message": "set one of persistentVolumeClaim, hostPath and emptyDir"},
])))]
#[serde(rename_all = "camelCase", default)]
pub struct Cache {
    /// Name of a PersistentVolumeClaim in the namespace of the ModelProfile; ReadWriteMany if workers run on several nodes.
    /// Left out: not on a claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 253)))]
    pub persistent_volume_claim: Option<String>,
    /// Directory of the node; survives pods, not the node. Left out: not on the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 1024), regex(pattern = crate::patterns::ABSOLUTE_PATH), extend("x-kubernetes-validations" = [
        {"rule": "!self.matches('(^|/)[.][.](/|$)')", "message": "write an absolute path without `..`"},
    ])))]
    pub host_path: Option<String>,
    /// Directory that lives as long as the pod. Left out, and no other kind set: this one, without a size limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<EmptyDir>,
    /// Keep the downloaded checkpoint beside the artifacts, so that a new profile needs no download. false: once all profiles
    /// are prepared and measured, its weight files and the BF16 reference they were measured with are removed, and downloaded
    /// or made again when an artifact is; files on a volume or a path of yours are never removed. Left out: true.
    pub keep_original: bool,
}

impl Default for Cache {
    fn default() -> Self {
        Self { persistent_volume_claim: None, host_path: None, empty_dir: None, keep_original: true }
    }
}

/// A directory that lives as long as the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct EmptyDir {
    /// Size at which the node evicts the pod. Left out: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_limit: Option<Quantity>,
}
