use rstest::rstest;

use super::*;
use crate::cluster::plan::rollout::{Edit, Effect, held, running, text};

const CACHE: &str = "cache: {persistentVolumeClaim: cache}\n";

fn change(before: &str, after: &str) -> Vec<(String, Effect)> {
    Edit::between(&manifest(before), &manifest(after)).changes
}

#[rstest]
#[case::nothing("", "", &[])]
#[case::uri("", "model: {uri: 'pvc://models/other'}", &[("spec.model.uri", Effect::Refused)])]
#[case::revision("model: {uri: 'hf://a/b'}", "model: {uri: 'hf://a/b', revision: v2}", &[("spec.model.revision", Effect::Rolls)])]
#[case::licence(
    "model: {uri: 'hf://a/b'}",
    "model: {uri: 'hf://a/b', license: {accepted: mit}}",
    &[("spec.model.license", Effect::Prepares)]
)]
#[case::pin(
    "",
    "switching: {mode: Pinned, pinnedProfile: density}",
    &[("spec.switching.mode", Effect::Live), ("spec.switching.pinnedProfile", Effect::Live)]
)]
#[case::strategy("", "switching: {strategy: Surge}", &[("spec.switching.strategy", Effect::Rolls)])]
#[case::scaling("", "scaling: {maxReplicas: 3}", &[("spec.scaling.maxReplicas", Effect::Live)])]
#[case::quality("", "quality: {onFailure: Warn}", &[("spec.quality.onFailure", Effect::Live)])]
#[case::dataset("", "quality: {dataset: {uri: 'pvc://t/x'}}", &[("spec.quality.dataset", Effect::Rolls)])]
#[case::image("", "engine: {image: other}", &[("spec.engine.image", Effect::Rolls)])]
#[case::placement("", "placement: {memoryBudget: 4Gi}", &[("spec.placement.memoryBudget", Effect::Rolls)])]
#[case::cache("", "cache: {hostPath: /models}", &[("spec.cache.hostPath", Effect::Rolls)])]
#[case::rung_taken_away("", "profiles: [{name: quality, weights: {format: FP8}}]", &[("spec.profiles[density]", Effect::Live)])]
#[case::rung_added("profiles: [{name: quality, weights: {format: FP8}}]", "", &[("spec.profiles[density]", Effect::Rolls)])]
#[case::rung_changed(
    "",
    "profiles: [{name: quality, weights: {format: BF16}}, {name: density, weights: {format: INT4}}]",
    &[("spec.profiles[quality]", Effect::Rolls)]
)]
#[case::rungs_moved(
    "",
    "profiles: [{name: density, weights: {format: INT4}}, {name: quality, weights: {format: FP8}}]",
    &[("spec.profiles", Effect::Live)]
)]
fn an_edit_has_its_effect_by_field(#[case] before: &str, #[case] after: &str, #[case] effects: &[(&str, Effect)]) {
    let effects: Vec<_> = effects.iter().map(|(path, effect)| ((*path).to_owned(), *effect)).collect();
    assert_eq!(change(before, after), effects);
}

#[test]
fn what_a_worker_reads_is_what_was_written() {
    let manifest = manifest("quality: {maxMeanKLDivergence: '0.2'}\nplacement: {memoryBudget: 4Gi}");
    assert_eq!(modelprofile_api::Manifest::from_yaml(&text(&manifest).unwrap()).unwrap(), manifest);
}

#[test]
fn live_sections_are_followed_while_the_rest_waits() {
    let before = manifest("");
    let mut expected = before.clone();
    expected.spec.scaling.max_replicas = 4;
    assert_eq!(held(&before, &manifest("engine: {image: other}\nscaling: {maxReplicas: 4}")), expected);
    let pinned_to_an_added_rung = "switching: {mode: Pinned, pinnedProfile: middle}
profiles: [{name: quality, weights: {format: FP8}}, {name: middle, weights: {format: INT8}}]";
    assert_eq!(held(&before, &manifest(pinned_to_an_added_rung)), before);
}

#[test]
fn an_edit_that_needs_preparation_changes_no_pod_until_its_job_has_completed() {
    let mut world = World::serving(CACHE);
    let before = world.deployment("llama");
    let edited = format!("{CACHE}engine: {{image: 'modelprofile-worker:2'}}\nscaling: {{maxReplicas: 4}}");
    world.edit(&edited);
    world.facts.desired.replicas = 2;
    let job = owner().job(&prepare::key(&world.valid));
    assert_eq!(
        world.pass(),
        [
            "apply ConfigMap llama-worker: something else is wanted than was applied last".to_owned(),
            format!("apply Job {job}: what the pods need is prepared before they start"),
            "scale Deployment llama to 2: 2 workers are wanted, and there were to be 1".to_owned(),
        ]
    );
    assert_eq!(
        waits(&world.plan()),
        [
            "spec.engine.image is followed when what the pods need then is prepared".to_owned(),
            format!("Job {job} prepares what the pods need"),
            "the workers stay as they are until what an edit needs is prepared".to_owned(),
        ]
    );
    assert_eq!(world.deployment("llama")["spec"]["template"], before["spec"]["template"]);
    let config = world.facts.existing.config_map.clone().unwrap();
    let read = running(&config).unwrap();
    assert_eq!((read.spec.engine.image, read.spec.scaling.max_replicas), (None, 4));
    let data = config.data.unwrap();
    assert_eq!(data[&prepare::file(&world.valid)], world.valid.text());

    world.finish_jobs("Complete");
    let said = world.pass();
    assert_eq!(said.len(), 3, "{said:#?}");
    assert!(said[1].starts_with("delete Job") && said[2].starts_with("apply Deployment llama"), "{said:#?}");
    let template = &world.deployment("llama")["spec"]["template"]["spec"];
    assert_eq!(template["containers"][0]["image"], "modelprofile-worker:2");
    assert_eq!(running(world.facts.existing.config_map.as_ref().unwrap()).unwrap(), *world.valid.manifest());
}

#[test]
fn a_live_edit_changes_the_config_map_alone() {
    let mut world = World::serving("");
    world.edit("switching: {mode: Pinned, pinnedProfile: quality}");
    assert_eq!(world.pass(), ["apply ConfigMap llama-worker: something else is wanted than was applied last"]);
}

#[test]
fn a_rung_that_is_taken_away_and_brought_back_replaces_no_pod() {
    let mut world = World::serving("");
    let template = |world: &World| world.deployment("llama")["spec"]["template"].clone();
    let before = template(&world);
    world.edit("profiles: [{name: quality, weights: {format: FP8}}]");
    world.pass();
    assert_eq!(template(&world), before);
    world.edit("");
    world.pass();
    assert_eq!(template(&world), before);
    let three = "profiles: [{name: quality, weights: {format: FP8}}, {name: middle, weights: {format: INT8}},
  {name: density, weights: {format: INT4}}]";
    world.edit(three);
    world.pass();
    assert_ne!(template(&world), before, "a worker does not know a rung that is added");
}

#[test]
fn weights_that_get_known_later_replace_no_pod() {
    let gpu = "placement: {acceleratorResource: nvidia.com/gpu}";
    let mut world = World::serving(gpu);
    world.facts.weight_bytes = [("quality".to_owned(), 8), ("density".to_owned(), 5)].into();
    assert_eq!(world.plan(), Plan::default());
    let mut known = World::new(gpu);
    known.facts.weight_bytes = world.facts.weight_bytes.clone();
    known.pass();
    let container = &known.deployment("llama")["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["resources"]["requests"], serde_json::json!({"memory": "8", "nvidia.com/gpu": "1"}));
    known.facts.weight_bytes.clear();
    assert!(known.plan().is_empty(), "figures that are forgotten replace no pod either");
}

#[test]
fn another_model_is_refused_and_nothing_of_the_edit_is_followed() {
    let mut world = World::serving(CACHE);
    world.edit(&format!("{CACHE}model: {{uri: 'pvc://models/other'}}\nengine: {{image: other}}"));
    let plan = world.plan();
    assert!(plan.is_empty(), "{plan}");
    assert_eq!(
        waits(&plan),
        [
            "spec.model.uri can not be changed; write it back, or make another ModelProfile",
            "the workers stay as they are until what an edit needs is prepared"
        ]
    );
}

#[test]
fn a_job_that_is_not_through_follows_an_edit_of_its_pod_and_one_that_is_stays() {
    let mut world = World::new(CACHE);
    world.pass();
    let job = owner().job(&prepare::key(&world.valid));
    let more = format!("{CACHE}\nplacement: {{resources: {{limits: {{memory: 4Gi}}}}}}");
    world.edit(&more);
    assert!(
        world.pass().contains(&format!("delete Job {job}: the manifest asks for another pod to prepare with")),
        "{:?}",
        world.deployments()
    );
    world.finish_jobs("Complete");
    world.pass();
    world.finish_jobs("Complete");
    world.edit(CACHE);
    assert!(!world.pass().iter().any(|said| said.contains("delete Job")), "what is prepared is prepared");
}

#[test]
fn a_job_that_failed_is_made_again_after_a_while() {
    let mut world = World::new(CACHE);
    world.pass();
    world.finish_jobs("Failed");
    let job = owner().job(&prepare::key(&world.valid));
    world.wait(599);
    assert!(world.pass().is_empty());
    let plan = world.plan();
    assert_eq!(plan.revisit_after, Some(std::time::Duration::from_secs(1)));
    assert_eq!(
        waits(&plan),
        [
            format!(
                "Job {job} failed; it is made again at 2027-01-15T08:10:00Z, and at once after an edit of what it prepares"
            ),
            "the workers start when what they need is prepared".into()
        ]
    );
    world.wait(1);
    assert_eq!(world.pass(), [format!("delete Job {job}: it failed 10 minutes ago, and is made again")]);
    assert!(waits(&world.plan())[0].contains("is being deleted"));
    world.finish_jobs("Complete");
    assert_eq!(world.pass(), [format!("apply Job {job}: what the pods need is prepared before they start")]);
}
