//! A ModelProfile that can be carried out on a cluster. What is built from it is accepted, so building is infallible.

use k8s_openapi::api::core::v1::Affinity;
use modelprofile_api::{
    EngineType, FieldError, Manifest, ModelProfileSpec, ModelUri, Profile, SwitchingMode, violations,
};
use serde_json::Value;

use super::diff;
use super::engine::{Launch, launches};
use super::facts::Options;
use super::names::Owner;
use super::rollout;

/// A manifest that passed every check that needs no cluster, and what follows from it alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Valid {
    owner: Owner,
    manifest: Manifest,
    text: String,
    launches: Vec<Launch>,
    affinity: Option<Affinity>,
    worker_image: String,
}

impl Valid {
    /// Checks a manifest for this operator. `owner` has the name that the manifest has.
    ///
    /// # Errors
    /// Everything that is wrong, each with what to write instead; never empty.
    pub fn new(owner: Owner, manifest: Manifest, options: &Options) -> Result<Self, Vec<FieldError>> {
        let mut errors = violations(&manifest);
        if !errors.is_empty() {
            // An engine is asked about manifests that make sense only.
            return Err(errors);
        }
        if let Ok(ModelUri::File(path)) = ModelUri::parse(&manifest.spec.model.uri)
            && path.is_relative()
        {
            let message = "a relative path starts nowhere in a pod; write file:///PATH, or pvc://CLAIM/PATH";
            errors.push(FieldError::new("spec.model.uri", message));
        }
        let affinity = affinity(&manifest.spec).unwrap_or_else(|error| {
            errors.push(error);
            None
        });
        let text = rollout::text(&manifest).unwrap_or_else(|| {
            errors.push(FieldError::new("", "it can not be written as YAML; report this, with the manifest"));
            String::new()
        });
        let launches = launches(&owner, &manifest, options).unwrap_or_else(|refused| {
            errors.extend(refused);
            Vec::new()
        });
        if !errors.is_empty() {
            return Err(errors);
        }
        let worker_image = options.images.worker.clone();
        Ok(Self { owner, manifest, text, launches, affinity, worker_image })
    }

    /// The ModelProfile's identity.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its spec.
    pub fn spec(&self) -> &ModelProfileSpec {
        &self.manifest.spec
    }

    /// The manifest as a worker reads it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Affinity of the pods.
    pub fn affinity(&self) -> Option<&Affinity> {
        self.affinity.as_ref()
    }

    /// Image of the pods that prepare: the manifest's if the engine is this project's worker.
    pub fn prepare_image(&self) -> &str {
        match self.spec().engine.kind {
            EngineType::Native => self.spec().engine.image.as_deref().unwrap_or(&self.worker_image),
            _ => &self.worker_image,
        }
    }

    /// The profile of that name and how it is started, else those of the resting profile: a name that an edit has removed
    /// stands for what is served without a decision.
    pub fn rung(&self, name: &str) -> (&Profile, &Launch) {
        let profiles = &self.spec().profiles;
        let switching = &self.spec().switching;
        let find = |name: &str| profiles.iter().position(|profile| profile.name == name);
        let pinned = switching.pinned_profile.as_deref().filter(|_| switching.mode == SwitchingMode::Pinned);
        let index = find(name).or_else(|| find(pinned?)).unwrap_or(0);
        (&profiles[index], &self.launches[index])
    }

    /// Whether the ladder has it.
    pub fn has(&self, name: &str) -> bool {
        self.spec().profiles.iter().any(|profile| profile.name == name)
    }
}

/// Kubernetes' own type drops what it does not know, so what it dropped is looked for.
fn affinity(spec: &ModelProfileSpec) -> Result<Option<Affinity>, FieldError> {
    let path = "spec.placement.affinity";
    let Some(map) = &spec.placement.affinity else { return Ok(None) };
    let written = Value::Object(map.clone());
    let affinity: Affinity = serde_json::from_value(written.clone())
        .map_err(|error| FieldError::new(path, format!("not the affinity of a PodSpec: {error}; correct it")))?;
    let kept = serde_json::to_value(&affinity).unwrap_or_default();
    match diff::missing(&written, &kept) {
        None => Ok(Some(affinity)),
        Some(field) => Err(FieldError::new(
            format!("{path}.{field}"),
            "the affinity of a PodSpec has no such field; correct its name, or remove it",
        )),
    }
}
