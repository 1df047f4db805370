use modelprofile_api::worker::{AwaitedProfile, AwaitedReason};
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
#[case::rung_added("cache: {hostPath: /models}\nprofiles: [{name: quality, weights: {format: FP8}}]", "cache: {hostPath: /models}", &[("spec.profiles[density]", Effect::Joins)])]
#[case::rung_added_that_each_pod_prepares("profiles: [{name: quality, weights: {format: FP8}}]", "", &[("spec.profiles[density]", Effect::Rolls)])]
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

/// A ladder with one rung more than others have.
const THREE: &str = "profiles: [{name: quality, weights: {format: FP8}}, {name: middle, weights: {format: INT8}},
  {name: density, weights: {format: INT4}}]";

fn template(world: &World) -> Value {
    world.deployment("llama")["spec"]["template"].clone()
}

/// The manifest is edited, and what it needs is prepared.
fn prepared(world: &mut World, sections: &str) {
    world.edit(sections);
    world.pass();
    world.finish_jobs("Complete");
    world.pass();
}

#[test]
fn a_rung_that_is_taken_away_and_brought_back_replaces_no_pod() {
    let mut world = World::serving("");
    let before = template(&world);
    world.edit("profiles: [{name: quality, weights: {format: FP8}}]");
    world.pass();
    assert_eq!(template(&world), before);
    world.edit("");
    world.pass();
    assert_eq!(template(&world), before);
    world.edit(THREE);
    world.pass();
    assert_ne!(template(&world), before, "a pod that fills its cache itself does that when it starts");
}

#[test]
fn a_rung_that_is_added_is_prepared_first_and_replaces_no_pod() {
    let mut world = World::serving(CACHE);
    let before = template(&world);
    let three = format!("{CACHE}{THREE}");
    world.edit(&three);
    world.pass();
    let job = owner().job(&prepare::key(&world.valid));
    let held = &running(world.facts.existing.config_map.as_ref().unwrap()).unwrap().spec.profiles;
    assert_eq!(held.len(), 2, "nobody reads of a rung that is not prepared");
    assert_eq!(
        waits(&world.plan()),
        [
            "spec.profiles[middle] is followed when what the pods need then is prepared".to_owned(),
            format!("Job {job} prepares what the pods need"),
            "the workers stay as they are until what an edit needs is prepared".to_owned(),
        ]
    );
    world.finish_jobs("Complete");
    let said = world.pass();
    assert_eq!(said[0], "apply ConfigMap llama-worker: something else is wanted than was applied last");
    assert_eq!(running(world.facts.existing.config_map.as_ref().unwrap()).unwrap(), *world.valid.manifest());
    assert_eq!(template(&world), before);
    assert_eq!(world.plan(), Plan::default());

    // Another engine rolls the pods, and the rung that joined is no reason to do so twice.
    prepared(&mut world, &format!("{three}\nengine: {{image: 'modelprofile-worker:2'}}"));
    let rolled = template(&world);
    assert_ne!(rolled, before);
    prepared(&mut world, &format!("{CACHE}engine: {{image: 'modelprofile-worker:2'}}"));
    prepared(&mut world, &format!("{three}\nengine: {{image: 'modelprofile-worker:2'}}"));
    assert_eq!(template(&world), rolled, "taken away and brought back");
}

#[test]
fn a_rung_that_has_joined_and_gets_other_weights_replaces_the_pods() {
    let mut world = World::serving(CACHE);
    let before = template(&world);
    let three = format!("{CACHE}{THREE}");
    prepared(&mut world, &three);
    assert_eq!(template(&world), before);
    prepared(&mut world, &three.replace("INT8", "BF16"));
    assert_ne!(template(&world), before, "a worker has it by then");
}

#[test]
fn a_rung_that_a_worker_can_not_take_while_it_runs_replaces_the_pods_once() {
    let mut world = World::serving(CACHE);
    let before = template(&world);
    prepared(&mut world, &format!("{CACHE}{THREE}"));
    assert_eq!(template(&world), before);
    let awaited = |reason| {
        let message = "middle lacks something".to_owned();
        vec![AwaitedProfile { name: "middle".into(), reason, message }]
    };
    for reason in [AwaitedReason::ArtifactMissing, AwaitedReason::DoesNotFit] {
        world.state("pod-1").awaited_profiles = awaited(reason);
        assert_eq!(world.plan(), Plan::default(), "{reason:?}: another pod would not have it either");
    }
    world.state("pod-1").awaited_profiles = awaited(AwaitedReason::NeedsRestart);
    world.pass();
    let rolled = template(&world);
    assert_ne!(rolled, before);
    assert_eq!(world.plan(), Plan::default(), "the pod that says so is about to be replaced");

    let path = "cache: {hostPath: /models}\n";
    let mut world = World::serving(path);
    let before = template(&world);
    prepared(&mut world, &format!("{path}{THREE}"));
    assert_eq!(template(&world), before);
    world.state("pod-1").awaited_profiles = awaited(AwaitedReason::ArtifactMissing);
    world.pass();
    assert_ne!(template(&world), before, "a pod that starts makes what its node lacks");
}

#[test]
fn on_accelerators_a_rung_that_is_added_replaces_pods_only_where_they_asked_for_too_little_memory() {
    let gpu = format!("{CACHE}placement: {{acceleratorResource: nvidia.com/gpu}}\n");
    let serving = |weights: &[(&str, u64)], sections: &str| {
        let mut world = World::new(sections);
        world.facts.weight_bytes = weights.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect();
        for _ in 0..2 {
            world.pass();
            world.finish_jobs("Complete");
        }
        world.pass();
        world
    };
    let memory = |world: &World| template(world)["spec"]["containers"][0]["resources"]["requests"]["memory"].clone();
    let mut world = serving(&[("quality", 8), ("density", 5)], &gpu);
    assert_eq!(memory(&world), "8");
    let before = template(&world);
    // What it needs is not told yet.
    prepared(&mut world, &format!("{gpu}{THREE}"));
    assert_eq!(template(&world), before);
    world.facts.weight_bytes.insert("middle".into(), 6);
    world.pass();
    assert_eq!(memory(&world), "14", "all but the smallest");
    let rolled = template(&world);
    world.facts.weight_bytes.clear();
    assert_eq!(world.plan(), Plan::default());
    assert_eq!(template(&world), rolled);

    // Pods that have asked for enough stay: here for a ladder that had a larger rung.
    let two = "profiles: [{name: quality, weights: {format: FP8}}, {name: density, weights: {format: INT4}}]";
    let mut world = serving(&[("quality", 8), ("middle", 6), ("density", 5)], &format!("{gpu}{THREE}"));
    let before = template(&world);
    prepared(&mut world, &format!("{gpu}{two}"));
    world.facts.weight_bytes.insert("small".into(), 2);
    let small = two.replace("}]", "}, {name: small, weights: {format: INT4, groupSize: 32}}]");
    prepared(&mut world, &format!("{gpu}{small}"));
    assert_eq!((template(&world), memory(&world)), (before, "14".into()));

    // A manifest that says how much has decided.
    let own = gpu.replace("gpu}", "gpu, resources: {limits: {memory: 1Gi}}}");
    let mut world = serving(&[("quality", 8), ("density", 5)], &own);
    let before = template(&world);
    world.facts.weight_bytes.insert("middle".into(), 6);
    prepared(&mut world, &format!("{own}{THREE}"));
    assert_eq!(template(&world), before);
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
