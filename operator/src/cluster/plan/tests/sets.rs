use rstest::rstest;

use super::*;

const SURGE: &str = "engine: {type: LlamaCpp}
model: {uri: 'pvc://models/llama-{format}.gguf', maxContextTokens: 4096}
profiles: [{name: quality, weights: {format: Q8_0}}, {name: density, weights: {format: Q4_K_M}}]
scaling: {minReplicas: 2, maxReplicas: 2}
switching: {strategy: Surge}
quality: {onFailure: Warn}";

#[test]
fn a_surge_moves_the_service_when_every_new_pod_has_answered_and_deletes_the_old_set_when_it_is_idle() {
    let mut world = World::serving(SURGE);
    assert_eq!((world.routed(), world.deployments()), (Some(set("quality")), vec!["llama-quality"]));
    world.want("density");
    assert_eq!(world.pass(), ["apply Deployment llama-density: the workers of density do not exist yet"]);
    world.start_pods();
    for worker in world.facts.workers.iter_mut().filter(|worker| worker.set == set("density")) {
        worker.ready = true;
    }
    world.facts.workers.last_mut().unwrap().answered = true;
    assert!(world.pass().is_empty(), "one of them has not answered yet");
    assert_eq!(
        waits(&world.plan()),
        ["1 of 2 of the workers of density have answered a request; the Service moves when all have"]
    );
    for worker in &mut world.facts.workers {
        (worker.answered, worker.in_flight) = (true, Some(3));
    }
    assert_eq!(world.pass(), ["point Service llama to the workers of density: all of them have answered a request"]);
    world.wait(11);
    assert!(world.pass().is_empty(), "the old set has requests");
    assert_eq!(waits(&world.plan()), ["the workers of quality finish what they have, for 109 s at most"]);
    for worker in &mut world.facts.workers {
        worker.in_flight = Some(0);
    }
    assert_eq!(world.pass(), ["delete Deployment llama-quality: nothing points to them, and they have finished"]);
    assert_eq!((world.routed(), world.deployments()), (Some(set("density")), vec!["llama-density"]));
}

#[test]
fn an_old_set_that_does_not_finish_or_does_not_tell_goes_when_its_time_is_over() {
    let mut world = World::serving(SURGE);
    world.want("density");
    world.pass();
    world.start_pods();
    world.ready_pods();
    world.facts.workers[0].in_flight = None;
    world.pass();
    assert_eq!(world.plan().revisit_after, Some(std::time::Duration::from_secs(120)));
    world.wait(119);
    assert!(world.pass().is_empty());
    world.wait(1);
    assert_eq!(
        world.pass(),
        ["delete Deployment llama-quality: nothing points to them, and their time to finish is over"]
    );
}

#[test]
fn a_decision_that_is_taken_back_before_the_service_moved_deletes_the_set_that_never_served() {
    let mut world = World::serving(SURGE);
    world.wait(3600);
    world.want("density");
    world.pass();
    world.want("quality");
    assert_eq!(world.pass(), ["delete Deployment llama-density: they are wanted no more, and there are none"]);
    assert_eq!(world.routed(), Some(set("quality")));
}

#[test]
fn a_decision_that_is_taken_back_while_the_old_set_drains_moves_back_at_once() {
    let mut world = World::serving(SURGE);
    world.want("density");
    world.pass();
    world.start_pods();
    world.ready_pods();
    world.pass();
    assert_eq!(world.routed(), Some(set("density")));
    world.want("quality");
    assert_eq!(world.pass(), ["point Service llama to the workers of quality: all of them have answered a request"]);
}

#[test]
fn a_new_set_that_loses_its_pods_gives_way_to_the_old_one_while_that_is_there() {
    let mut world = World::serving(SURGE);
    world.want("density");
    world.pass();
    world.start_pods();
    world.ready_pods();
    world.pass();
    for worker in world.facts.workers.iter_mut().filter(|worker| worker.set == set("density")) {
        (worker.ready, worker.answered) = (false, false);
    }
    assert_eq!(
        world.pass(),
        ["point Service llama to the workers of quality: none of the workers of density is ready"]
    );
}

#[test]
fn both_sets_follow_the_number_of_workers_during_a_surge() {
    let mut world = World::serving(&SURGE.replace("maxReplicas: 2", "maxReplicas: 4"));
    world.want("density");
    world.pass();
    world.facts.desired.replicas = 3;
    assert_eq!(
        world.pass(),
        [
            "scale Deployment llama-density to 3: 3 workers are wanted, and there were to be 2",
            "scale Deployment llama-quality to 3: 3 workers are wanted, and there were to be 2"
        ]
    );
}

#[test]
fn recreate_waits_until_the_old_pods_are_gone() {
    let mut world = World::serving(&SURGE.replace("Surge", "Recreate"));
    world.want("density");
    assert_eq!(
        world.pass(),
        [
            "point Service llama to the workers of density: the workers of quality make room for them",
            "delete Deployment llama-quality: the workers of density take their place"
        ]
    );
    assert_eq!(waits(&world.plan()), ["the workers of density start when 2 pods of the set before them are gone"]);
    world.start_pods();
    assert_eq!(world.pass(), ["apply Deployment llama-density: the workers of density do not exist yet"]);
    assert_eq!((world.routed(), world.deployments()), (Some(set("density")), vec!["llama-density"]));
}

#[test]
fn a_strategy_that_is_changed_to_in_place_takes_the_sets_away() {
    let sections = "switching: {strategy: Surge}";
    let mut world = World::serving(sections);
    world.edit("switching: {strategy: InPlace}");
    let said = world.pass();
    assert_eq!(said.last().unwrap(), "delete Deployment llama-quality: the workers take their place");
    world.start_pods();
    world.pass();
    assert_eq!((world.routed(), world.deployments()), (Some(Set::InPlace), vec!["llama"]));
}

#[rstest]
#[case("scaling: {minReplicas: 2, maxReplicas: 5}", 1, 2)]
#[case("scaling: {minReplicas: 2, maxReplicas: 5}", 4, 4)]
#[case("scaling: {minReplicas: 2, maxReplicas: 5}", 9, 5)]
#[case("scaling: {mode: External, minReplicas: 2, maxReplicas: 5, replicas: 3}", 5, 3)]
#[case("scaling: {mode: External, minReplicas: 2, maxReplicas: 5, replicas: 0}", 5, 2)]
#[case("scaling: {mode: External, minReplicas: 2, maxReplicas: 5}", 5, 2)]
fn the_number_of_workers_is_decided_or_asked_for_within_the_limits(
    #[case] sections: &str,
    #[case] decided: u32,
    #[case] replicas: i32,
) {
    assert_eq!(surge::replicas(&manifest(sections).spec, decided), replicas);
}

#[test]
fn what_is_somebody_elses_is_left_alone() {
    let mut world = World::new(SURGE);
    world.pass();
    world.facts.existing.service.as_mut().unwrap().metadata.owner_references = None;
    let deployment = world.facts.existing.deployments.get_mut("llama-quality").unwrap();
    deployment.metadata.owner_references = None;
    let plan = world.plan();
    assert!(plan.is_empty(), "{plan}");
    assert_eq!(
        waits(&plan),
        [
            "Deployment llama-quality exists and belongs to somebody else; rename this ModelProfile, or delete the Deployment",
            "Service llama exists and belongs to somebody else; rename this ModelProfile, or delete the Service"
        ]
    );
}
