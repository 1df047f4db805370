//! A ModelProfile as it was read, and what is told of one that is not there. Pure.

use anyhow::anyhow;
use kube::ResourceExt;
use kube::api::DynamicObject;
use modelprofile_api::{GateOutcome, MeasuredQuality, ModelProfileSpec, ModelProfileStatus};

use super::pin::UNPINNED_MODE;

/// A ModelProfile as it was read. One that was written past the schema is no reason not to show the others.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID, by which its Events are found.
    pub uid: String,
    /// Version of the object that was read: what is written holds for this one alone.
    pub version: String,
    /// Generation of the spec.
    pub generation: i64,
    /// The mode that a pin by this command took the place of.
    pub unpinned_mode: Option<String>,
    /// The spec, or why it cannot be read.
    pub spec: Result<ModelProfileSpec, String>,
    /// The status; empty where the operator has written none.
    pub status: ModelProfileStatus,
}

impl View {
    /// Reads an object.
    pub fn of(object: &DynamicObject) -> Self {
        let spec = object.data.get("spec").cloned().unwrap_or_default();
        let status = object.data.get("status").cloned().unwrap_or_default();
        Self {
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
            version: object.resource_version().unwrap_or_default(),
            generation: object.metadata.generation.unwrap_or_default(),
            unpinned_mode: object.annotations().get(UNPINNED_MODE).cloned(),
            spec: serde_json::from_value(spec).map_err(|error| error.to_string()),
            status: serde_json::from_value(status).unwrap_or_default(),
        }
    }

    /// Namespace and name.
    pub fn title(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The spec.
    ///
    /// # Errors
    /// It breaks the schema.
    pub fn spec(&self) -> anyhow::Result<&ModelProfileSpec> {
        self.spec.as_ref().map_err(|error| {
            let title = self.title();
            anyhow!(
                "the spec of {title} cannot be read: {error}; correct it with `kubectl edit mp {} -n {}`",
                self.name,
                self.namespace
            )
        })
    }

    /// A command of this plugin about this object, to be copied.
    pub fn command(&self, verb: &str, rest: &str) -> String {
        let gap = if rest.is_empty() { "" } else { " " };
        format!("`kubectl modelprofile {verb} {}{gap}{rest} -n {}`", self.name, self.namespace)
    }

    /// Why the quality gate keeps a profile from serving, and what a person can do; `None` if it may serve, or nobody knows yet.
    pub fn refusal(&self, profile: &str) -> Option<String> {
        let row = self.status.profiles.iter().find(|row| row.name == profile)?;
        let outcome = row.quality_gate?;
        let spec = self.spec.as_ref().ok()?;
        let number = |decimal: &Option<modelprofile_api::Decimal>| decimal.as_ref()?.to_f64();
        let measured = || {
            // The limits are about these three figures; the status has no others.
            Some(MeasuredQuality {
                perplexity: number(&row.perplexity)?,
                reference_perplexity: number(&row.reference_perplexity)?,
                mean_kl_divergence: number(&row.mean_kl_divergence)?,
                p99_kl_divergence: 0.0,
                top1_agreement_percent: 0.0,
                rms_probability_change_percent: 0.0,
                tokens: 0,
                dataset: String::new(),
                measured_at: String::new(),
            })
        };
        match outcome {
            GateOutcome::WithinLimits => None,
            GateOutcome::NotMeasured => spec.quality.refusal(profile, None),
            GateOutcome::BeyondLimits => spec.quality.refusal(profile, measured().as_ref()),
        }
    }
}

/// What is told where there is no object of a name; `there` are those that are.
pub fn missing(namespace: &str, name: &str, there: &[View]) -> String {
    let names: Vec<&str> = there.iter().map(|view| view.name.as_str()).collect();
    if names.is_empty() {
        return format!(
            "the namespace {namespace} has no ModelProfile {name}, nor any other; `kubectl modelprofile top -A` lists those of all namespaces"
        );
    }
    format!(
        "the namespace {namespace} has no ModelProfile {name}; it has {}; `kubectl modelprofile top -A` lists those of all namespaces",
        names.join(", ")
    )
}

#[cfg(test)]
pub(super) mod fixture {
    use serde_json::json;

    use super::*;
    use crate::local::watch::fixture::valid;

    /// An object with the given `spec.switching` and status.
    pub(in super::super) fn view(switching: &str, status: serde_json::Value) -> View {
        View {
            namespace: "team".to_owned(),
            name: "chat".to_owned(),
            uid: "u-1".to_owned(),
            version: "41".to_owned(),
            generation: 7,
            unpinned_mode: None,
            spec: Ok(valid(switching).spec().clone()),
            status: serde_json::from_value(status).unwrap(),
        }
    }

    /// A status as it is in the calm.
    pub(in super::super) fn calm(active: &str) -> serde_json::Value {
        let condition = |kind: &str, status: &str, reason: &str| {
            json!({"type": kind, "status": status, "observedGeneration": 7, "reason": reason, "message": "",
                "lastTransitionTime": "2026-03-02T10:00:00Z"})
        };
        json!({
            "observedGeneration": 7, "activeProfile": active, "desiredProfile": active, "replicas": 2, "readyReplicas": 2,
            "profiles": [
                {"name": "quality", "weightBytes": 35_240_000_000_i64, "kvTokens": 81_000, "perplexity": "20.1",
                    "referencePerplexity": "20.0", "meanKLDivergence": "0.0123", "qualityGate": "WithinLimits"},
                {"name": "density", "weightBytes": 20_000_000_000_i64, "kvTokens": 190_000, "perplexity": "23",
                    "referencePerplexity": "20.0", "meanKLDivergence": "0.05", "qualityGate": "WithinLimits"},
            ],
            "lastDecision": {"time": "2026-03-02T11:48:00Z", "action": "Hold", "reason": "WithinTargets",
                "message": "KV demand is 45 % against a target of 85 %: pressure 53 %, it stays", "pressurePercent": 53},
            "switchHistory": [
                {"from": "quality", "to": "density", "reason": "PressureHigh", "startTime": "2026-03-02T11:40:00Z",
                    "durationMillis": 840, "outcome": "Completed"},
                {"from": "density", "to": "quality", "reason": "PressureLow", "startTime": "2026-03-02T11:10:00Z",
                    "durationMillis": 910, "outcome": "Completed"},
            ],
            "conditions": [
                condition("Accepted", "True", "Valid"), condition("LicenseAccepted", "True", "Matches"),
                condition("Prepared", "True", "Prepared"), condition("QualityGatePassed", "True", "WithinLimits"),
                condition("MetricsAvailable", "True", "Fresh"), condition("Available", "True", "WorkerReady"),
                condition("Progressing", "False", "Stable"), condition("Degraded", "False", "AsExpected"),
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: serde_json::Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_object_that_breaks_the_schema_is_shown_and_says_how_to_mend_it() {
        let broken = object(json!({"apiVersion": "modelprofile.dev/v1alpha1", "kind": "ModelProfile",
            "metadata": {"name": "chat", "namespace": "team", "resourceVersion": "41", "generation": 7, "uid": "u-1",
                "annotations": {UNPINNED_MODE: "Auto"}},
            "spec": {"model": {"uri": 3}}}));
        let view = View::of(&broken);
        assert_eq!((view.title().as_str(), view.version.as_str(), view.generation), ("team/chat", "41", 7));
        assert_eq!(view.unpinned_mode.as_deref(), Some("Auto"));
        let error = view.spec().unwrap_err().to_string();
        assert!(error.starts_with("the spec of team/chat cannot be read: "), "{error}");
        assert!(error.ends_with("correct it with `kubectl edit mp chat -n team`"), "{error}");
    }

    #[test]
    fn a_name_that_is_not_there_is_answered_with_those_that_are() {
        let there = [fixture::view("{}", json!({}))];
        assert_eq!(
            missing("team", "caht", &there),
            "the namespace team has no ModelProfile caht; it has chat; `kubectl modelprofile top -A` lists those of all namespaces"
        );
        assert_eq!(
            missing("team", "chat", &[]),
            "the namespace team has no ModelProfile chat, nor any other; `kubectl modelprofile top -A` lists those of all namespaces"
        );
    }

    #[test]
    fn a_profile_beyond_the_limits_is_refused_with_its_figures_unless_the_gate_only_warns() {
        let mut status = fixture::calm("quality");
        status["profiles"][1]["qualityGate"] = json!("BeyondLimits");
        let mut view = fixture::view("{}", status);
        assert_eq!(view.refusal("quality"), None);
        assert_eq!(view.refusal("unknown"), None);
        assert_eq!(
            view.refusal("density").unwrap(),
            "density is beyond the quality limits: its perplexity is 15.00 % above the original's, the limit is 10 % \
             (spec.quality.maxPerplexityIncreasePercent); raise the limit, give it another method or format, or set \
             spec.quality.onFailure: Warn"
        );
        if let Ok(spec) = &mut view.spec {
            spec.quality.on_failure = modelprofile_api::OnFailure::Warn;
        }
        assert_eq!(view.refusal("density"), None);
    }
}
