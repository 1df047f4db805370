//! What an edit of the manifest does to what runs.
//!
//! | effect | fields |
//! |---|---|
//! | live | `switching` (but for its strategy), `scaling`, `quality` (but for its data set), a rung that is taken away or moved |
//! | prepares | `model.license`: the licence is read again, and the pods stay |
//! | joins | a rung that is added: once it is prepared, the pods that run read it, and can switch to it |
//! | rolls | everything else, once what it needs is prepared: until then pods keep their template, and a pod that starts again reads the manifest that the others run |
//! | refused | `model.uri` |
//!
//! A rung that is added rolls the pods all the same where they could not take it:
//!
//! - a cache that goes with its pod is filled by the pod when it starts; one that serves makes no artifact;
//! - on accelerators packed weights of inactive rungs lie in pinned host memory, and the pods have asked for too little;
//! - a worker says that a request may be longer than the rung has room for; one that starts would take shorter ones only;
//! - a worker says that the artifact is not there, and the cache is a path of its node: the Job prepared it on another one.
//!
//! Of these only the first is told by the manifest alone; [`super::shape`] sees to the others.

use std::fmt;

use k8s_openapi::api::core::v1::ConfigMap;
use modelprofile_api::{EngineType, Manifest, Profile, Quality, violations};
use serde_json::Value;

use super::engine::is_kept;

/// Name of the file in the ConfigMap that worker pods read.
pub const FILE: &str = "profile.yaml";

/// What an edit does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Followed at once, by the pods that run.
    Live,
    /// Something is prepared; the pods stay.
    Prepares,
    /// Something is prepared, and the pods that run take it.
    Joins,
    /// The pods are replaced, once what they need is prepared.
    Rolls,
    /// It can not be carried out.
    Refused,
}

/// Fields of the spec by effect; the longest that a path starts with counts, and [`Effect::Rolls`] is the rest.
const EFFECTS: [(&str, Effect); 7] = [
    ("spec.model.uri", Effect::Refused),
    ("spec.model.license", Effect::Prepares),
    ("spec.switching.strategy", Effect::Rolls),
    ("spec.switching", Effect::Live),
    ("spec.scaling", Effect::Live),
    ("spec.quality.dataset", Effect::Rolls),
    ("spec.quality", Effect::Live),
];

/// An edit, field by field: paths as they stand in the manifest, profiles by their name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edit {
    /// Changed fields with what each does.
    pub changes: Vec<(String, Effect)>,
}

impl Edit {
    /// Compares what runs with what is asked for.
    pub fn between(running: &Manifest, new: &Manifest) -> Self {
        let mut changes = Vec::new();
        let value = |manifest: &Manifest| {
            let mut value = serde_json::to_value(&manifest.spec).unwrap_or_default();
            if let Value::Object(spec) = &mut value {
                spec.remove("profiles");
            }
            value
        };
        compare(&value(running), &value(new), "spec", &mut |path| {
            let longest = EFFECTS.iter().filter(|(prefix, _)| is_within(&path, prefix)).max_by_key(|(p, _)| p.len());
            let effect = longest.map_or(Effect::Rolls, |(_, effect)| *effect);
            changes.push((path, effect));
        });
        let added = if is_joined(new) { Effect::Joins } else { Effect::Rolls };
        ladder(&running.spec.profiles, &new.spec.profiles, added, &mut changes);
        Self { changes }
    }

    /// Paths of the fields with an effect.
    pub fn with(&self, effect: Effect) -> Vec<&str> {
        self.changes.iter().filter(|(_, found)| *found == effect).map(|(path, _)| path.as_str()).collect()
    }

    /// Paths of the fields that are followed when what they need is prepared.
    pub fn waiting(&self) -> Vec<&str> {
        let waits = |effect: &Effect| matches!(effect, Effect::Joins | Effect::Rolls);
        self.changes.iter().filter(|(_, found)| waits(found)).map(|(path, _)| path.as_str()).collect()
    }

    /// The strongest effect; `None` if nothing has changed.
    pub fn strongest(&self) -> Option<Effect> {
        self.changes.iter().map(|(_, effect)| *effect).max()
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Live => "is followed at once",
            Self::Prepares => "is checked by a prepare Job",
            Self::Joins => "is taken by the pods that run, once it is prepared",
            Self::Rolls => "replaces the pods, once what they need is prepared",
            Self::Refused => "can not be changed",
        })
    }
}

fn is_within(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Whether pods that run take a rung that is added: a Job prepares it for them, and they are ours.
pub fn is_joined(manifest: &Manifest) -> bool {
    manifest.spec.engine.kind == EngineType::Native && is_kept(&manifest.spec.cache)
}

fn ladder(running: &[Profile], new: &[Profile], added: Effect, changes: &mut Vec<(String, Effect)>) {
    let find = |ladder: &[Profile], name: &str| ladder.iter().position(|profile| profile.name == name);
    for profile in running {
        if find(new, &profile.name).is_none() {
            changes.push((format!("spec.profiles[{}]", profile.name), Effect::Live));
        }
    }
    let mut last = None;
    let mut moved = false;
    for profile in new {
        match find(running, &profile.name) {
            None => changes.push((format!("spec.profiles[{}]", profile.name), added)),
            Some(index) => {
                if running[index] != *profile {
                    changes.push((format!("spec.profiles[{}]", profile.name), Effect::Rolls));
                }
                moved |= last.is_some_and(|last| index < last);
                last = Some(index);
            }
        }
    }
    if moved {
        changes.push(("spec.profiles".to_owned(), Effect::Live));
    }
}

fn compare(old: &Value, new: &Value, path: &str, changed: &mut dyn FnMut(String)) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let added = new.keys().filter(|key| !old.contains_key(*key));
            for key in old.keys().chain(added) {
                let side = |side: &serde_json::Map<String, Value>| side.get(key).cloned().unwrap_or_default();
                compare(&side(old), &side(new), &format!("{path}.{key}"), changed);
            }
        }
        _ if old != new => changed(path.to_owned()),
        _ => {}
    }
}

/// The manifest as text; `None` only if the YAML writer refuses it, which it has no reason to.
pub fn text(manifest: &Manifest) -> Option<String> {
    serde_yaml::to_string(manifest).ok()
}

/// The manifest that worker pods read; `None` if there is none that can be read.
pub fn running(config_map: &ConfigMap) -> Option<Manifest> {
    serde_yaml::from_str(config_map.data.as_ref()?.get(FILE)?).ok()
}

/// What pods may read until the rest is prepared: the manifest that they run, with what is followed at once of the new one. All
/// of it stays as it is if the new parts need something else of the new manifest, such as a pin to a rung that was added.
pub fn held(running: &Manifest, new: &Manifest) -> Manifest {
    let mut merged = running.clone();
    merged.spec.scaling = new.spec.scaling.clone();
    merged.spec.quality = Quality { dataset: running.spec.quality.dataset.clone(), ..new.spec.quality.clone() };
    merged.spec.switching = new.spec.switching.clone();
    merged.spec.switching.strategy = running.spec.switching.strategy;
    if violations(&merged).is_empty() { merged } else { running.clone() }
}
