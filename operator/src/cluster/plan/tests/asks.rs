use modelprofile_api::worker::{AwaitedProfile, AwaitedReason};
use modelprofile_api::{OnFailure, Quality};

use super::*;

#[test]
fn every_worker_that_serves_with_another_profile_is_asked() {
    let mut world = World::serving("scaling: {minReplicas: 3, maxReplicas: 3}");
    world.want("density");
    world.state("pod-2").active_profile = Some("density".into());
    assert_eq!(
        world.pass(),
        [
            "apply ConfigMap llama-worker: something else is wanted than was applied last",
            "switch pod-1 to density: it serves with quality, and density is wanted",
            "switch pod-3 to density: it serves with quality, and density is wanted",
        ]
    );
    let data = world.facts.existing.config_map.as_ref().unwrap().data.clone().unwrap();
    assert_eq!(data["start-profile"], "density", "a pod that starts later starts in it");
    assert_eq!(waits(&world.plan()), ["2 workers change to density"]);
    world.want("quality");
    let said = world.pass();
    assert_eq!(said.len(), 4, "those that are on their way are asked to come back, and pod-2 to follow: {said:#?}");
}

#[test]
fn a_worker_is_not_asked_before_its_time_nor_for_what_it_does_not_know() {
    let mut world = World::serving("scaling: {minReplicas: 4, maxReplicas: 4}");
    world.want("density");
    world.pass();
    for pod in ["pod-1", "pod-2", "pod-3", "pod-4"] {
        world.state(pod).target_profile = None;
    }
    world.facts.workers[0].may_ask = false;
    world.state("pod-2").profiles.pop();
    world.state("pod-3").phase = WorkerPhase::Draining;
    world.facts.workers[3].terminating = true;
    let plan = world.plan();
    assert!(plan.is_empty(), "{plan}");
    assert_eq!(
        waits(&plan),
        ["1 of 2 workers know the profile density yet; they read it within about a minute"],
        "those that serve and stay"
    );
    world.state("pod-2").profiles = world.state("pod-1").profiles.clone();
    world.facts.workers[1].may_ask = false;
    assert_eq!(world.plan(), Plan::default());
    world.state("pod-1").active_profile = None;
    world.facts.workers[0].may_ask = true;
    assert_eq!(world.plan(), Plan::default(), "it starts in the wanted profile by itself");
}

#[test]
fn a_rung_that_is_added_is_asked_for_where_it_is_known_and_what_the_others_lack_is_told() {
    let cache = "cache: {persistentVolumeClaim: cache}\nscaling: {minReplicas: 3, maxReplicas: 3}\n";
    let mut world = World::serving(cache);
    let three = "profiles: [{name: quality, weights: {format: FP8}}, {name: middle, weights: {format: INT8}},
  {name: density, weights: {format: INT4}}]";
    world.edit(&format!("{cache}{three}"));
    world.want("middle");
    world.pass();
    assert!(!world.plan().has(Stage::Switching), "it is being prepared");
    world.finish_jobs("Complete");
    world.pass();
    let none = "0 of 3 workers know the profile middle yet; they read it within about a minute";
    assert_eq!(waits(&world.plan()), [none]);
    world.state("pod-2").profiles.push(WorkerProfile { name: "middle".into(), ..WorkerProfile::default() });
    world.state("pod-3").awaited_profiles = vec![AwaitedProfile {
        name: "middle".into(),
        reason: AwaitedReason::ArtifactMissing,
        message: "its artifact is damaged".into(),
    }];
    assert_eq!(world.pass(), ["switch pod-2 to middle: it serves with quality, and middle is wanted"]);
    assert_eq!(
        waits(&world.plan()),
        [
            "1 workers change to middle; 1 of 3 workers know the profile middle yet; they read it within about a minute; \
          pod-3 says: its artifact is damaged"
        ]
    );
    world.read_ladder();
    assert_eq!(world.pass().len(), 2, "asked at the next look");
}

#[test]
fn quality_limits_are_told_to_those_that_hold_others() {
    let mut world = World::serving("scaling: {minReplicas: 2, maxReplicas: 2}");
    world.edit("scaling: {minReplicas: 2, maxReplicas: 2}\nquality: {onFailure: Warn}");
    world.state("pod-1").quality_limits = None;
    let plan = world.plan();
    let told: Vec<_> = plan.actions.iter().filter(|action| matches!(action, Action::SetQuality { .. })).collect();
    let limits = Box::new(Quality { on_failure: OnFailure::Warn, ..Quality::default() });
    let why = "spec.quality has other limits than it holds".to_owned();
    assert_eq!(told, [&Action::SetQuality { pod: "pod-2".into(), limits, why }]);
    world.pass();
}

#[test]
fn pods_that_serve_one_profile_are_never_asked_to_change() {
    let mut world = World::serving("switching: {strategy: Surge}");
    world.want("density");
    world.pass();
    assert!(!world.plan().has(Stage::Switching));
}
