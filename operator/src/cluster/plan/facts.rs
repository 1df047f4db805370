//! What a plan is made of beside the manifest: the operator's options, the decision, and what was seen of the cluster.
//!
//! Nothing here is remembered from pass to pass. A plan is derived from what exists, so an operator that starts anew goes on
//! where the one before it stopped.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use modelprofile_api::worker::WorkerState;

use super::names::Set;

/// What holds for all ModelProfiles: the operator's flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Images of the engines.
    pub images: Images,
    /// `imagePullPolicy` of all pods. `None`: what the cluster makes of the image's tag.
    pub image_pull_policy: Option<String>,
    /// Public keys of the operator, each 32 bytes as base64url without padding; several while one replaces another.
    pub admin_keys: Vec<String>,
    /// Where the operator itself runs, which may reach the workers' admin port. `None`: outside of the cluster, and the port is
    /// open to all that can reach the pod; its API asks for a token all the same.
    pub operator: Option<OperatorPod>,
    /// Labels of namespaces that may scrape the workers' metrics. Empty: none but the operator's own pods.
    pub metrics_from: BTreeMap<String, String>,
}

/// The pods of the operator, as a NetworkPolicy selects them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperatorPod {
    /// Their namespace.
    pub namespace: String,
    /// Their labels.
    pub labels: BTreeMap<String, String>,
}

/// Images of the engines, where `spec.engine.image` names none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Images {
    /// This project's worker; it also prepares the artifacts of every engine.
    pub worker: String,
    /// vLLM. `None`: a manifest has to name it.
    pub vllm: Option<String>,
    /// TensorRT-LLM. `None`: a manifest has to name it.
    pub tensorrt_llm: Option<String>,
    /// llama.cpp's server. `None`: a manifest has to name it.
    pub llama_cpp: Option<String>,
}

/// What the decision wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Name of the profile that should be active.
    pub profile: String,
    /// Workers that should exist, with `scaling.mode: Auto`. With `External` the manifest says it.
    pub replicas: u32,
}

/// One look at the cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// When it was taken.
    pub now: Timestamp,
    /// What the decision wants.
    pub desired: Desired,
    /// The objects that have the names of this ModelProfile's objects.
    pub existing: Existing,
    /// Its worker pods, those that are going included: they may still hold an accelerator.
    pub workers: Vec<Worker>,
    /// Packed weights of profiles in bytes, as far as the prepare Job or the status tells. They shape what host memory is
    /// asked for.
    pub weight_bytes: BTreeMap<String, u64>,
}

/// Objects that exist, whoever made them: one that is somebody else's is found by its owner references, and left alone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Existing {
    /// Deployments by name.
    pub deployments: BTreeMap<String, Deployment>,
    /// The Service.
    pub service: Option<Service>,
    /// The ConfigMap.
    pub config_map: Option<ConfigMap>,
    /// The PodDisruptionBudget.
    pub disruption_budget: Option<PodDisruptionBudget>,
    /// The NetworkPolicy.
    pub network_policy: Option<NetworkPolicy>,
    /// Prepare Jobs by name.
    pub jobs: BTreeMap<String, Job>,
}

/// A worker pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Worker {
    /// Name of the pod.
    pub pod: String,
    /// The set that its labels put it into.
    pub set: Set,
    /// It is in the endpoints of a Service that selects it: ready, and not terminating.
    pub ready: bool,
    /// It has answered a real request since it got ready. Only then does a Surge trust it.
    pub answered: bool,
    /// It was asked to go.
    pub terminating: bool,
    /// Requests that it has. `None`: not known.
    pub in_flight: Option<u64>,
    /// What it said of itself in this pass. `None`: no answer, or an engine without an admin API.
    pub state: Option<Box<WorkerState>>,
    /// The profile that it served with when it answered last: one look without an answer changes nothing about that. `None`: it
    /// has not answered yet.
    pub serves: Option<String>,
    /// Whether it may be asked to switch now: after a refusal or a lost answer there is a pause.
    pub may_ask: bool,
}

impl Worker {
    /// A pod that was made and of which nothing else is known.
    pub fn new(pod: impl Into<String>, set: Set) -> Self {
        Self {
            pod: pod.into(),
            set,
            ready: false,
            answered: false,
            terminating: false,
            in_flight: None,
            state: None,
            serves: None,
            may_ask: true,
        }
    }
}

impl Facts {
    /// Facts of a cluster that has nothing yet.
    pub fn new(now: Timestamp, desired: Desired) -> Self {
        Self { now, desired, existing: Existing::default(), workers: Vec::new(), weight_bytes: BTreeMap::new() }
    }

    /// The pods of a set.
    pub fn of(&self, set: &Set) -> impl Iterator<Item = &Worker> {
        self.workers.iter().filter(move |worker| worker.set == *set)
    }

    /// Pods of a set that take requests.
    pub fn ready(&self, set: &Set) -> usize {
        self.of(set).filter(|worker| worker.ready && !worker.terminating).count()
    }

    /// Pods of a set that take requests and have answered one.
    pub fn proven(&self, set: &Set) -> usize {
        self.of(set).filter(|worker| worker.ready && worker.answered && !worker.terminating).count()
    }
}
