//! Whatever happens, in whatever order: a plan on its own result is empty, a Surge never takes the last ready pods away, and when
//! nothing more happens the wanted set serves alone.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use proptest::prelude::*;

use super::super::settled::fingerprint;
use super::*;

/// Something that happens between two passes.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// The decision wants a profile.
    Want(usize),
    /// The decision wants a number of workers.
    Replicas(u32),
    /// The manifest becomes another one.
    Edit(usize),
    /// Pods that go are gone, missing ones are made.
    Pods,
    /// A pod gets ready.
    Ready(usize),
    /// A pod is no longer ready.
    Unready(usize),
    /// A pod answers a request.
    Answer(usize),
    /// A pod has so many requests; `None`: nobody knows.
    InFlight(usize, Option<u64>),
    /// Jobs complete, or fail.
    Jobs(bool),
    /// Time passes.
    Wait(i64),
    /// The Service is deleted by somebody.
    LoseService,
    /// Workers look at their manifest.
    Read,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..3_usize).prop_map(Event::Want),
        1 => (1..4_u32).prop_map(Event::Replicas),
        1 => (0..4_usize).prop_map(Event::Edit),
        4 => Just(Event::Pods),
        4 => (0..8_usize).prop_map(Event::Ready),
        1 => (0..8_usize).prop_map(Event::Unready),
        4 => (0..8_usize).prop_map(Event::Answer),
        2 => (0..8_usize, prop::option::of(0..2_u64)).prop_map(|(pod, requests)| Event::InFlight(pod, requests)),
        2 => any::<bool>().prop_map(Event::Jobs),
        2 => prop_oneof![Just(1_i64), Just(11), Just(121), Just(601)].prop_map(Event::Wait),
        1 => Just(Event::LoseService),
        2 => Just(Event::Read),
    ]
}

const PROFILES: [&str; 3] = ["quality", "middle", "density"];
const LADDER: &str = "profiles: [{name: quality, weights: {format: FP8}}, {name: middle, weights: {format: INT8}},
  {name: density, weights: {format: INT4}}]";

/// Edits that a person may make, all with the same strategy.
fn manifests(strategy: &str) -> Vec<Valid> {
    let tail = format!("scaling: {{maxReplicas: 4}}\nswitching: {{strategy: {strategy}}}");
    [
        format!("{LADDER}\n{tail}"),
        format!("{LADDER}\ncache: {{persistentVolumeClaim: cache}}\n{tail}"),
        format!(
            "{LADDER}\ncache: {{persistentVolumeClaim: cache}}\nengine: {{image: 'modelprofile-worker:2'}}\n{tail}"
        ),
        format!("cache: {{persistentVolumeClaim: cache}}\n{tail}"),
    ]
    .iter()
    .map(|sections| valid(sections))
    .collect()
}

/// Stands for the objects.
fn objects(world: &World) -> u64 {
    let mut hash = DefaultHasher::new();
    format!("{:?}", world.facts.existing).hash(&mut hash);
    hash.finish()
}

impl World {
    fn happen(&mut self, event: Event, manifests: &[Valid]) {
        let count = self.facts.workers.len().max(1);
        let mut worker = |index: usize, change: &dyn Fn(&mut Worker)| {
            if let Some(worker) = self.facts.workers.get_mut(index % count).filter(|worker| !worker.terminating) {
                change(worker);
            }
        };
        match event {
            Event::Want(index) => self.want(PROFILES[index]),
            Event::Replicas(replicas) => self.facts.desired.replicas = replicas,
            Event::Edit(index) => self.valid = manifests[index].clone(),
            Event::Pods => self.start_pods(),
            Event::Ready(index) => worker(index, &|worker| worker.ready = true),
            Event::Unready(index) => worker(index, &|worker| (worker.ready, worker.answered) = (false, false)),
            Event::Answer(index) => worker(index, &|worker| worker.answered = worker.ready),
            Event::InFlight(index, requests) => worker(index, &|worker| worker.in_flight = requests),
            Event::Jobs(complete) => self.finish_jobs(if complete { "Complete" } else { "Failed" }),
            Event::Wait(seconds) => self.wait(seconds),
            Event::Read => self.read_ladder(),
            Event::LoseService => self.facts.existing.service = None,
        }
    }

    fn serves(&self) -> bool {
        self.routed().is_some_and(|set| self.facts.ready(&set) > 0)
    }

    /// Everything that is under way comes about.
    fn rest(&mut self) {
        for _ in 0..12 {
            self.pass();
            self.finish_jobs("Complete");
            self.start_pods();
            self.ready_pods();
            self.read_ladder();
            for worker in &mut self.facts.workers {
                worker.answered = true;
                if let Some(state) = &mut worker.state
                    && let Some(target) = state.target_profile.take()
                {
                    state.active_profile = Some(target);
                }
            }
            self.wait(700);
        }
        self.pass();
    }
}

fn events() -> impl Strategy<Value = Vec<(Event, bool)>> {
    prop::collection::vec((event(), any::<bool>()), 1..60)
}

/// Lets the events happen, plans after each, and lets those with a mark pass.
fn ends_well(strategy: &str, events: Vec<(Event, bool)>) -> Result<(), TestCaseError> {
    let manifests = manifests(strategy);
    let mut world = World::new("");
    world.valid = manifests[0].clone();
    let (mut edits, mut settled) = (0, HashSet::new());
    for (event, pass) in events {
        world.happen(event, &manifests);
        edits += i64::from(matches!(event, Event::Edit(_)));
        let fingerprint = fingerprint(edits, objects(&world), &world.facts);
        if world.plan() == Plan::default() {
            settled.insert(fingerprint);
        } else {
            prop_assert!(!settled.contains(&fingerprint), "a plan of this had nothing to do: {}", world.plan());
        }
        if !pass {
            continue;
        }
        let any_ready = world.facts.workers.iter().any(|worker| worker.ready && !worker.terminating);
        // Panics unless the next plan is empty.
        world.pass();
        if strategy == "Surge" && any_ready {
            prop_assert!(world.serves(), "the Service points to {:?}", world.routed());
        }
    }
    world.rest();
    let wanted = Set::of(world.valid.spec().switching.strategy, &world.valid.rung(&world.facts.desired.profile).0.name);
    prop_assert_eq!(world.routed(), Some(wanted.clone()));
    prop_assert_eq!(world.deployments(), vec![wanted.deployment(&owner())]);
    let plan = world.plan();
    prop_assert_eq!(plan, Plan::default());
    let replicas = surge::replicas(world.valid.spec(), world.facts.desired.replicas);
    prop_assert_eq!(world.facts.ready(&wanted), replicas as usize);
    Ok(())
}

// A test for each strategy, which run beside each other.
proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_order_of_events_ends_well_in_place(events in events()) {
        ends_well("InPlace", events)?;
    }

    #[test]
    fn any_order_of_events_ends_well_in_a_surge(events in events()) {
        ends_well("Surge", events)?;
    }

    #[test]
    fn any_order_of_events_ends_well_in_a_recreation(events in events()) {
        ends_well("Recreate", events)?;
    }
}

/// Found by the property: the Service is lost while a set is recreated.
#[test]
fn a_service_that_is_lost_in_a_recreation_comes_back() {
    let (pass, no_pass) = (true, false);
    let events = vec![
        (Event::Replicas(1), pass),
        (Event::Pods, no_pass),
        (Event::Want(2), pass),
        (Event::Pods, no_pass),
        (Event::Pods, pass),
        (Event::Edit(1), no_pass),
        (Event::Want(0), no_pass),
        (Event::LoseService, no_pass),
    ];
    ends_well("Recreate", events).unwrap();
}
