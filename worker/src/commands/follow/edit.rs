//! What another manifest means for a worker that runs: pure.

use modelprofile_api::{ModelProfileSpec, Profile, Quality, Scaling, Switching};
use serde_json::Value;

/// Sections in which two specs differ and which a worker reads only when it starts. Profiles are left out, and so is what others
/// follow: when to switch and how far to scale, the limits of quality, which licence was accepted.
pub(super) fn lasting(running: &ModelProfileSpec, new: &ModelProfileSpec) -> Vec<String> {
    let (running, new) = (sections(running), sections(new));
    let differ = running.iter().filter(|(name, value)| new.get(*name) != Some(*value)).map(|(name, _)| name);
    let added = new.keys().filter(|name| !running.contains_key(*name));
    differ.chain(added).map(|name| format!("spec.{name}")).collect()
}

fn sections(spec: &ModelProfileSpec) -> serde_json::Map<String, Value> {
    let mut spec = spec.clone();
    spec.profiles.clear();
    (spec.switching, spec.scaling, spec.model.license) = (Switching::default(), Scaling::default(), None);
    spec.quality = Quality { dataset: spec.quality.dataset, ..Quality::default() };
    match serde_json::to_value(spec) {
        Ok(Value::Object(sections)) => sections,
        // It was read from YAML, so it can be written again.
        _ => serde_json::Map::new(),
    }
}

/// Profiles of a ladder that mean something else than those of the same name in another one.
pub(super) fn changed<'a>(held: &(impl Iterator<Item = &'a Profile> + Clone), new: &'a [Profile]) -> Vec<&'a str> {
    let differs = |profile: &&Profile| held.clone().any(|held| held.name == profile.name && held != *profile);
    new.iter().filter(differs).map(|profile| profile.name.as_str()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failure is the test's result")]

    use modelprofile_api::Validated;
    use rstest::rstest;

    use super::*;

    fn spec(sections: &str) -> ModelProfileSpec {
        let model = if sections.contains("model:") { "" } else { "\n  model: {uri: 'file:///models/tiny'}" };
        let profiles =
            if sections.contains("profiles:") { "" } else { "\n  profiles: [{name: a, weights: {format: FP8}}]" };
        let head = "apiVersion: modelprofile.dev/v1alpha1\nkind: ModelProfile\nmetadata: {name: tiny}\nspec:";
        let sections = sections.replace('\n', "\n  ");
        Validated::from_yaml(&format!("{head}{model}{profiles}\n  {sections}\n")).unwrap().spec().clone()
    }

    #[rstest]
    #[case::nothing("", &[])]
    #[case::added("profiles: [{name: a, weights: {format: FP8}}, {name: b, weights: {format: INT8}}]", &[])]
    #[case::switching("switching: {mode: Pinned, pinnedProfile: a}", &[])]
    #[case::scaling("scaling: {maxReplicas: 4}", &[])]
    #[case::limits("quality: {onFailure: Warn}", &[])]
    #[case::licence("model: {uri: 'file:///models/tiny', license: {accepted: mit}}", &[])]
    #[case::dataset("quality: {dataset: {uri: 'file:///text'}}", &["spec.quality"])]
    #[case::model("model: {uri: 'file:///models/other'}", &["spec.model"])]
    #[case::context("model: {uri: 'file:///models/tiny', maxContextTokens: 64}", &["spec.model"])]
    #[case::budget("placement: {memoryBudget: 1Gi}", &["spec.placement"])]
    #[case::cache("cache: {keepOriginal: false}\nengine: {args: [--threads=1]}", &["spec.cache", "spec.engine"])]
    #[case::keys("apiKeysSecretRef: {name: keys}", &["spec.apiKeysSecretRef"])]
    fn what_a_worker_reads_when_it_starts_is_named(#[case] sections: &str, #[case] named: &[&str]) {
        let mut found = lasting(&spec(""), &spec(sections));
        found.sort();
        assert_eq!(found, named);
    }

    #[test]
    fn a_profile_of_the_same_name_is_held_against_its_predecessor() {
        let ladder = |text: &str| spec(&format!("profiles: [{text}]")).profiles;
        let held = ladder("{name: a, weights: {format: FP8}}, {name: b, weights: {format: INT8}}");
        let new = ladder("{name: b, weights: {format: INT8}}, {name: c, weights: {format: BF16}}");
        assert_eq!(changed(&held.iter(), &new), [""; 0]);
        let new = ladder("{name: a, weights: {format: INT4, groupSize: 32}}, {name: b, weights: {format: INT8}}");
        assert_eq!(changed(&held.iter(), &new), ["a"]);
    }
}
