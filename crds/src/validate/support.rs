//! What is valid but not built yet, or not for `modelprofile local`: refused by name, never ignored silently. Whoever builds a
//! thing removes its line here.

use crate::{EngineType, FieldError, Manifest, ModelUri, Strategy, WeightFormat};

/// Fields that ask this project's worker for what it does not have. What other engines can do is not known here: the operator
/// refuses what they cannot.
pub fn unsupported(manifest: &Manifest) -> Vec<FieldError> {
    let spec = &manifest.spec;
    let mut refused = Vec::new();
    if spec.engine.kind != EngineType::Native {
        return refused;
    }
    let mut refuse = |path: String, what: &str, instead: &str| {
        refused.push(FieldError::new(path, format!("{what} is not supported by this version; {instead}")));
    };
    for (i, profile) in spec.profiles.iter().enumerate() {
        let at = format!("spec.profiles[{i}]");
        let format = profile.weights.format;
        match format {
            WeightFormat::Fp16 => {
                refuse(format!("{at}.weights.format"), "the weight format FP16", "write BF16, which has its size");
            }
            WeightFormat::Q6K | WeightFormat::Q5KM | WeightFormat::Q4KM => refuse(
                format!("{at}.weights.format"),
                &format!("the weight format {}", format.as_str()),
                "write Q8_0, Q4_1, Q4_0, INT8 or INT4; a file that holds it can be read all the same",
            ),
            _ => {}
        }
        let first = &spec.profiles[0];
        // With InPlace this is a rule already.
        if profile.tensor_parallel != first.tensor_parallel && spec.switching.strategy != Strategy::InPlace {
            refuse(
                format!("{at}.tensorParallel"),
                &format!("another number of accelerators than that of `{}`", first.name),
                &format!(
                    "write {} in all profiles, which a worker computes on the same accelerators",
                    first.tensor_parallel
                ),
            );
        }
    }
    if let Some(Ok(ModelUri::HuggingFace { .. } | ModelUri::Https(_))) =
        spec.quality.dataset.as_ref().map(|dataset| ModelUri::parse(&dataset.uri))
    {
        refuse(
            "spec.quality.dataset.uri".into(),
            "a text that has to be fetched",
            "write pvc://CLAIM/PATH or file:///PATH",
        );
    }
    refused
}

/// Fields that ask for pods: the operator carries them out, `modelprofile local` cannot.
pub fn needs_cluster(manifest: &Manifest) -> Vec<FieldError> {
    let spec = &manifest.spec;
    let mut refused = Vec::new();
    let mut refuse = |path: &str, what: &str, instead: &str| {
        refused.push(FieldError::new(
            path,
            format!("`modelprofile local` has no {what}; {instead}, or run it on a cluster"),
        ));
    };
    if spec.engine.kind != EngineType::Native {
        refuse("spec.engine.type", &format!("engine {}", spec.engine.kind.as_str()), "write Native");
    }
    if spec.switching.strategy != Strategy::InPlace {
        let strategy = spec.switching.strategy.as_str();
        refuse("spec.switching.strategy", &format!("strategy {strategy}"), "write InPlace or leave it out");
    }
    refused
}

/// Fields that `modelprofile local` accepts without effect, each with what happens instead: for the user to read, not a reason
/// to refuse.
pub fn notices(manifest: &Manifest) -> Vec<FieldError> {
    let mut notices = Vec::new();
    if manifest.spec.scaling.max_replicas > 1 {
        notices.push(FieldError::new(
            "spec.scaling.maxReplicas",
            "`modelprofile local` runs one worker; load changes its profile and not the number of workers",
        ));
    }
    notices
}
