//! What of a manifest a worker reads only once, when it starts: pods that are to follow a change of it are replaced.
//!
//! Most of a manifest is not in the pod template but in the ConfigMap, which never rolls the pods. Three annotations of the
//! template stand for the part of it that should:
//!
//! - the digest of what shapes every profile: the model, the cache, the memory budget;
//! - the ladder, a digest per profile. It stays as it is while the pods know every profile that is wanted, so that taking a
//!   rung away, or bringing it back, replaces nothing;
//! - the host memory for packed weights of inactive profiles. It was worked out when the ladder was, and stays with it: figures
//!   that get known later, or again, replace nothing.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;
use modelprofile_api::{EngineType, Profile};
use serde_json::json;

use super::digest::short;
use super::facts::Facts;
use super::names::Set;
use super::valid::Valid;

const SHAPE: &str = "modelprofile.dev/shape";
const LADDER: &str = "modelprofile.dev/ladder";
const HOST_MEMORY: &str = "modelprofile.dev/host-memory-bytes";

/// What the annotations say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    digest: Option<String>,
    ladder: BTreeMap<String, String>,
    /// Host memory to ask for, in bytes. `None`: nobody knows how much, or none is needed.
    pub host_memory: Option<u64>,
}

impl Shape {
    /// The shape that the pods of a set should have.
    pub fn of(valid: &Valid, set: &Set, facts: &Facts) -> Self {
        if valid.spec().engine.kind != EngineType::Native {
            // Everything that another engine is told is in its arguments.
            return Self::default();
        }
        let ladder: BTreeMap<String, String> = valid
            .spec()
            .profiles
            .iter()
            .filter(|profile| set.profile().is_none_or(|name| name == profile.name))
            .map(|profile| (profile.name.clone(), identity(profile)))
            .collect();
        let digest = Some(digest(valid));
        match facts.existing.deployments.get(&set.deployment(valid.owner())).map(Self::read) {
            Some(existing) if ladder.iter().all(|(name, rung)| existing.ladder.get(name) == Some(rung)) => {
                Self { digest, ..existing }
            }
            _ => {
                let host_memory = host_memory(valid, set, facts);
                Self { digest, ladder, host_memory }
            }
        }
    }

    /// The shape of pods that exist.
    fn read(deployment: &Deployment) -> Self {
        let template = deployment.spec.template.metadata.as_ref();
        let annotation = |name: &str| template?.annotations.as_ref()?.get(name).cloned();
        let ladder = annotation(LADDER).unwrap_or_default();
        Self {
            digest: annotation(SHAPE),
            ladder: ladder
                .split(',')
                .filter_map(|rung| rung.split_once('='))
                .map(|(name, identity)| (name.to_owned(), identity.to_owned()))
                .collect(),
            host_memory: annotation(HOST_MEMORY).and_then(|bytes| bytes.parse().ok()),
        }
    }

    /// As annotations of a pod template; `None` without any.
    pub fn annotations(&self) -> Option<BTreeMap<String, String>> {
        let ladder: Vec<String> = self.ladder.iter().map(|(name, identity)| format!("{name}={identity}")).collect();
        let all: BTreeMap<String, String> = [
            (SHAPE, self.digest.clone()),
            (LADDER, Some(ladder.join(",")).filter(|ladder| !ladder.is_empty())),
            (HOST_MEMORY, self.host_memory.map(|bytes| bytes.to_string())),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect();
        (!all.is_empty()).then_some(all)
    }
}

/// What a profile is, whatever its name.
fn identity(profile: &Profile) -> String {
    short(&json!([profile.weights, profile.kv_cache, profile.tensor_parallel]).to_string())
}

fn digest(valid: &Valid) -> String {
    let spec = valid.spec();
    let mut model = spec.model.clone();
    // Consent is asked for when the model is prepared, and the worker takes what was prepared.
    model.license = None;
    let served = valid.manifest().served_name();
    let shape = json!([model, served, spec.cache, spec.placement.memory_budget, spec.quality.dataset]);
    short(&shape.to_string())
}

/// On accelerators the packed weights of all profiles but the active one lie in pinned host memory. Any of them may be active,
/// so there is room for all but the smallest. On a CPU they are pages of files, which the system may drop.
fn host_memory(valid: &Valid, set: &Set, facts: &Facts) -> Option<u64> {
    valid.spec().placement.accelerator_resource.as_ref()?;
    if *set != Set::InPlace {
        return None;
    }
    let known: Option<Vec<u64>> =
        valid.spec().profiles.iter().map(|profile| facts.weight_bytes.get(&profile.name).copied()).collect();
    let known = known?;
    Some(known.iter().sum::<u64>() - known.iter().min()?).filter(|bytes| *bytes > 0)
}
