//! What of a manifest a worker reads only once, when it starts: pods that are to follow a change of it are replaced.
//!
//! Most of a manifest is not in the pod template but in the ConfigMap, which never rolls the pods. Three annotations of the
//! template stand for the part of it that should:
//!
//! - the digest of what shapes every profile: the model, the cache, the memory budget;
//! - the ladder that the pods were made for, a digest per profile. It stays as it is while they know, or can take, every profile
//!   that is wanted, so that adding a rung, taking it away, or bringing it back replaces nothing;
//! - the host memory for packed weights of inactive profiles. It was worked out when the ladder was, and stays with it: figures
//!   that get known later, or again, replace nothing.
//!
//! Rungs that were added since are in an annotation of the Deployment itself, which the pods do not have: one of them that gets
//! other weights replaces pods as any other does. They replace pods by themselves where these have asked for too little host
//! memory, where a worker says that it can not take one or has no artifact of it on its node, and where the cache goes with the
//! pod, which fills it when it starts.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use modelprofile_api::worker::{AwaitedProfile, AwaitedReason};
use modelprofile_api::{EngineType, Profile};
use serde_json::json;

use super::digest::short;
use super::facts::Facts;
use super::names::Set;
use super::pod;
use super::rollout;
use super::valid::Valid;

const SHAPE: &str = "modelprofile.dev/shape";
const LADDER: &str = "modelprofile.dev/ladder";
const HOST_MEMORY: &str = "modelprofile.dev/host-memory-bytes";
/// Of the Deployment, not of the template.
const JOINED: &str = "modelprofile.dev/joined";

/// Names of profiles -> what they are.
type Ladder = BTreeMap<String, String>;

/// What the annotations say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    digest: Option<String>,
    ladder: Ladder,
    /// Rungs that joined pods that run.
    joined: Ladder,
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
        let wanted: Ladder = valid
            .spec()
            .profiles
            .iter()
            .filter(|profile| set.profile().is_none_or(|name| name == profile.name))
            .map(|profile| (profile.name.clone(), identity(profile)))
            .collect();
        let digest = Some(digest(valid));
        match facts.existing.deployments.get(&set.deployment(valid.owner())).map(Self::read) {
            Some(mut existing) if existing.admits(&wanted, valid, set, facts) => {
                let added = wanted.into_iter().filter(|(name, _)| !existing.ladder.contains_key(name));
                existing.joined.extend(added);
                Self { digest, ..existing }
            }
            _ => {
                let host_memory = host_memory(valid, set, facts);
                Self { digest, ladder: wanted, joined: Ladder::new(), host_memory }
            }
        }
    }

    /// Whether pods of this shape can have another ladder without being replaced.
    fn admits(&self, wanted: &Ladder, valid: &Valid, set: &Set, facts: &Facts) -> bool {
        let known = |name: &String| self.ladder.get(name).or_else(|| self.joined.get(name));
        if wanted.iter().any(|(name, rung)| known(name).is_some_and(|known| known != rung)) {
            return false;
        }
        let joins = |name: &String| wanted.contains_key(name) && !self.ladder.contains_key(name);
        if !wanted.keys().any(joins) {
            return true;
        }
        // While nobody knows how much is needed, nobody knows that it is too little.
        let short = !pod::says_memory(valid) && host_memory(valid, set, facts) > Some(self.host_memory.unwrap_or(0));
        let staying = facts.of(set).filter(|worker| !worker.terminating).filter_map(|worker| worker.state.as_deref());
        let mut awaited = staying.flat_map(|state| &state.awaited_profiles);
        // The Job has prepared it on some node; a pod that starts on another one makes it there.
        let elsewhere = valid.spec().cache.host_path.is_some();
        let starts = |awaited: &AwaitedProfile| match awaited.reason {
            AwaitedReason::NeedsRestart => true,
            AwaitedReason::ArtifactMissing => elsewhere,
            AwaitedReason::DoesNotFit => false,
        };
        rollout::is_joined(valid.manifest())
            && !short
            && !awaited.any(|awaited| joins(&awaited.name) && starts(awaited))
    }

    /// The shape of pods that exist.
    fn read(deployment: &Deployment) -> Self {
        let template = deployment.spec.template.metadata.as_ref();
        let of = |metadata: Option<&ObjectMeta>, name: &str| metadata?.annotations.as_ref()?.get(name).cloned();
        Self {
            digest: of(template, SHAPE),
            ladder: rungs(&of(template, LADDER).unwrap_or_default()),
            joined: rungs(&of(Some(&deployment.metadata), JOINED).unwrap_or_default()),
            host_memory: of(template, HOST_MEMORY).and_then(|bytes| bytes.parse().ok()),
        }
    }

    /// As annotations of a pod template; `None` without any.
    pub fn annotations(&self) -> Option<BTreeMap<String, String>> {
        some([
            (SHAPE, self.digest.clone()),
            (LADDER, text(&self.ladder)),
            (HOST_MEMORY, self.host_memory.map(|bytes| bytes.to_string())),
        ])
    }

    /// As annotations of the Deployment; `None` without any.
    pub fn own_annotations(&self) -> Option<BTreeMap<String, String>> {
        some([(JOINED, text(&self.joined))])
    }
}

fn some<const N: usize>(all: [(&str, Option<String>); N]) -> Option<BTreeMap<String, String>> {
    let all: BTreeMap<_, _> = all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    (!all.is_empty()).then_some(all)
}

fn text(ladder: &Ladder) -> Option<String> {
    let rungs: Vec<String> = ladder.iter().map(|(name, identity)| format!("{name}={identity}")).collect();
    (!rungs.is_empty()).then(|| rungs.join(","))
}

fn rungs(text: &str) -> Ladder {
    let rungs = text.split(',').filter_map(|rung| rung.split_once('='));
    rungs.map(|(name, identity)| (name.to_owned(), identity.to_owned())).collect()
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
