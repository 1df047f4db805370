//! What the policy is asked, from what was seen of the workers: pure.

use std::collections::{BTreeMap, HashMap};

use modelprofile_api::Quality;
use modelprofile_api::worker::{WorkerPhase, WorkerProfile, WorkerState};
use modelprofile_policy::{Observation, Replica, Rules, Rung, Sample};

use super::plan::facts::Worker;
use super::plan::names::Set;

/// Tokens of a step from which on 4-bit weights compute slower than 8-bit weights on an H100; about the same on its
/// neighbours. On CPUs they never do.
const COMPUTE_BOUND_TOKENS: f64 = 130.0;

/// What was seen, beside the workers themselves.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The worker pods, and the latest sample of each by its name.
    pub workers: &'a [Worker],
    /// Samples by pod.
    pub samples: &'a HashMap<String, Sample>,
    /// Pods that will not get ready by themselves, by name.
    pub stuck: &'a [String],
    /// The profile that requests reach, where the objects say it: the set that the Service selects.
    pub routed: Option<&'a str>,
    /// The profile that was wanted last, if it is another one.
    pub wanted: Option<&'a str>,
    /// The profile that all of them served with when that was seen last.
    pub known: Option<&'a str>,
    /// What the prepare Job told of each profile.
    pub prepared: &'a [WorkerProfile],
    /// Workers that were asked for last.
    pub replicas: u32,
    /// Workers run on accelerators.
    pub accelerated: bool,
}

/// The observation.
pub fn observation(rules: &Rules, seen: Seen<'_>) -> Observation {
    let index = |name: &str| rules.names.iter().position(|known| known == name);
    let alive: Vec<&Worker> = seen.workers.iter().filter(|worker| !worker.terminating).collect();
    let ready = || alive.iter().filter(|worker| worker.ready);
    let active = seen.routed.and_then(index).or_else(|| most(ready().filter_map(|worker| index(profile(worker)?))));
    // An operator that starts anew while no worker answers knows it from the status.
    let active = active.or_else(|| seen.known.and_then(index));
    let active = active.filter(|_| ready().next().is_some());
    let differs = |worker: &&&Worker| profile(worker).and_then(index) != active;
    let target = ready()
        .find_map(|worker| index(worker.state.as_ref()?.target_profile.as_deref()?))
        // One that nobody could be asked for is not on its way.
        .or_else(|| {
            seen.wanted.filter(|name| !awaited(name, seen)).and_then(index).filter(|wanted| active != Some(*wanted))
        })
        // Workers that follow late are a switch that has not ended.
        .or_else(|| ready().find(differs).and(active));
    Observation {
        active,
        target,
        replicas: seen.replicas,
        workers: alive.iter().map(|worker| replica(worker, seen)).collect(),
        rungs: rules.names.iter().map(|name| rung(name, &rules.quality, seen)).collect(),
        memory_bytes: alive.iter().find_map(|worker| {
            let memory = worker.state.as_ref()?.memory;
            Some(memory.budget_bytes.saturating_sub(memory.workspace_bytes)).filter(|bytes| *bytes > 0)
        }),
        compute_bound_tokens: seen.accelerated.then_some(COMPUTE_BOUND_TOKENS),
    }
}

/// The profile that a worker serves with.
pub fn profile(worker: &Worker) -> Option<&str> {
    let said = worker.state.as_ref().and_then(|state| state.active_profile.as_deref());
    said.or(worker.serves.as_deref()).or_else(|| worker.set.profile())
}

/// A worker that is ready for Kubernetes but silent in this pass is one whose sample gets old, which the policy sees.
fn replica(worker: &Worker, seen: Seen<'_>) -> Replica {
    let blocked =
        worker.state.as_ref().is_some_and(|state| matches!(state.phase, WorkerPhase::Failed | WorkerPhase::Blocked));
    if worker.ready && !blocked {
        Replica::Ready(seen.samples.get(&worker.pod).copied())
    } else if blocked || seen.stuck.contains(&worker.pod) {
        Replica::Unavailable
    } else {
        Replica::Starting
    }
}

fn rung(name: &str, limits: &Quality, seen: Seen<'_>) -> Rung {
    let known = |value: u64| (value > 0).then_some(value);
    let said = seen.workers.iter().filter_map(|worker| worker.state.as_ref()).flat_map(|state| &state.profiles);
    // The fewest tokens that a worker has room for are what can be counted on.
    let kv_tokens =
        said.clone().filter(|profile| profile.name == name).filter_map(|profile| known(profile.kv_tokens)).min();
    let of = || said.clone().chain(seen.prepared).filter(|profile| profile.name == name);
    Rung {
        verdict: limits.verdict(of().find_map(|profile| profile.quality.as_ref())),
        kv_tokens,
        weight_bytes: of().find_map(|profile| known(profile.weight_bytes)),
        awaited: awaited(name, seen),
    }
}

/// Whether no worker could be asked for a profile: all that tell their ladder lack it. A rung that was added is read within a
/// minute; one that has no room, or whose artifact is missing, stays away for longer.
fn awaited(name: &str, seen: Seen<'_>) -> bool {
    let staying = seen.workers.iter().filter(|worker| worker.set == Set::InPlace && !worker.terminating);
    // Before it serves, a worker's ladder is what it is to have.
    let serves = |state: &&WorkerState| matches!(state.phase, WorkerPhase::Ready | WorkerPhase::Blocked);
    let told: Vec<&WorkerState> = staying.filter_map(|worker| worker.state.as_deref()).filter(serves).collect();
    let has = |state: &&WorkerState| {
        state.active_profile.as_deref() == Some(name) || state.profiles.iter().any(|profile| profile.name == name)
    };
    !told.is_empty() && !told.iter().any(has)
}

/// The value that comes most often; of several the least.
fn most(values: impl Iterator<Item = usize>) -> Option<usize> {
    let mut counts = BTreeMap::<usize, usize>::new();
    values.for_each(|value| *counts.entry(value).or_default() += 1);
    let highest = counts.values().copied().max()?;
    counts.into_iter().find(|(_, count)| *count == highest).map(|(value, _)| value)
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::local::watch::fixture;

    fn rules() -> Rules {
        Rules::new(fixture::valid("{}").spec(), SignedDuration::from_secs(5)).unwrap()
    }

    fn worker(pod: &str, active: &str, kv_tokens: u64) -> Worker {
        let profile = WorkerProfile { name: "density".to_owned(), kv_tokens, ..WorkerProfile::default() };
        let state = WorkerState {
            phase: WorkerPhase::Ready,
            active_profile: Some(active.to_owned()),
            profiles: vec![profile],
            ..WorkerState::default()
        };
        Worker { ready: true, state: Some(Box::new(state)), ..Worker::new(pod, Set::InPlace) }
    }

    fn seen<'a>(workers: &'a [Worker], samples: &'a HashMap<String, Sample>, stuck: &'a [String]) -> Seen<'a> {
        Seen {
            workers,
            samples,
            stuck,
            routed: None,
            wanted: None,
            known: None,
            prepared: &[],
            replicas: 2,
            accelerated: false,
        }
    }

    #[test]
    fn workers_that_differ_are_a_switch_under_way() {
        let workers = [worker("a", "quality", 10), worker("b", "density", 8), worker("c", "quality", 9)];
        let samples = HashMap::new();
        let found = observation(&rules(), Seen { wanted: Some("density"), ..seen(&workers, &samples, &[]) });
        assert_eq!((found.active, found.target), (Some(0), Some(1)));
        assert_eq!(found.rungs[1].kv_tokens, Some(8), "the fewest");
        let found = observation(&rules(), seen(&workers, &samples, &[]));
        assert_eq!((found.active, found.target), (Some(0), Some(0)), "the late one follows the others");
    }

    #[test]
    fn a_pod_that_waits_for_an_accelerator_is_unavailable_and_one_that_loads_is_not() {
        let workers = [worker("a", "quality", 10), Worker::new("b", Set::InPlace), Worker::new("c", Set::InPlace)];
        let samples = HashMap::new();
        let stuck = ["b".to_owned()];
        let found = observation(&rules(), seen(&workers, &samples, &stuck));
        assert_eq!(found.workers, [Replica::Ready(None), Replica::Unavailable, Replica::Starting]);
        assert_eq!((found.active, found.target), (Some(0), None));
    }

    #[test]
    fn pods_that_go_are_no_capacity_and_without_ready_ones_nothing_is_active() {
        let going = Worker { terminating: true, ..worker("a", "quality", 10) };
        let samples = HashMap::new();
        let workers = [going];
        let found = observation(&rules(), Seen { routed: Some("quality"), ..seen(&workers, &samples, &[]) });
        assert_eq!((found.active, found.workers), (None, vec![]));
    }

    #[test]
    fn a_look_without_an_answer_changes_nothing_about_what_serves() {
        let silent = Worker { ready: true, serves: Some("density".to_owned()), ..Worker::new("a", Set::InPlace) };
        let (workers, samples) = ([silent], HashMap::new());
        assert_eq!(observation(&rules(), seen(&workers, &samples, &[])).active, Some(1));
        let never = [Worker { ready: true, ..Worker::new("a", Set::InPlace) }];
        let found = observation(&rules(), Seen { known: Some("density"), ..seen(&never, &samples, &[]) });
        assert_eq!(found.active, Some(1), "an operator that starts anew");
        assert_eq!(observation(&rules(), seen(&never, &samples, &[])).active, None);
    }

    #[test]
    fn a_rung_that_no_worker_tells_is_awaited_and_no_switch_to_it_is_under_way() {
        let samples = HashMap::new();
        let look = |workers: &[Worker]| {
            let found = observation(&rules(), Seen { wanted: Some("density"), ..seen(workers, &samples, &[]) });
            (found.target, found.rungs.iter().map(|rung| rung.awaited).collect::<Vec<_>>())
        };
        let old = |pod: &str| {
            let mut worker = worker(pod, "quality", 10);
            worker.state.as_mut().unwrap().profiles[0].name = "quality".to_owned();
            worker
        };
        assert_eq!(look(&[old("a"), old("b")]), (None, vec![false, true]));
        assert_eq!(look(&[old("a"), worker("b", "quality", 10)]), (Some(1), vec![false, false]), "one has it");
        let silent = Worker { ready: true, serves: Some("quality".to_owned()), ..Worker::new("a", Set::InPlace) };
        assert_eq!(look(&[silent]), (Some(1), vec![false, false]), "nobody told");
        let of_set = Worker { set: Set::Profile("quality".to_owned()), ..old("a") };
        assert_eq!(look(&[of_set]), (Some(1), vec![false, false]), "pods of one profile never change");
    }

    #[test]
    fn while_nobody_serves_what_was_wanted_last_is_still_on_its_way() {
        let (workers, samples) = ([Worker::new("a", Set::InPlace)], HashMap::new());
        let found = observation(&rules(), Seen { wanted: Some("density"), ..seen(&workers, &samples, &[]) });
        assert_eq!((found.active, found.target), (None, Some(1)));
        let found = observation(&rules(), Seen { wanted: Some("gone"), ..seen(&workers, &samples, &[]) });
        assert_eq!(found.target, None);
    }

    #[test]
    fn pods_of_one_profile_are_told_by_what_the_service_selects() {
        let ready =
            |pod: &str, profile: &str| Worker { ready: true, ..Worker::new(pod, Set::Profile(profile.to_owned())) };
        let workers = [ready("a", "quality"), ready("b", "density")];
        let samples = HashMap::new();
        let look = Seen { routed: Some("quality"), wanted: Some("density"), ..seen(&workers, &samples, &[]) };
        let found = observation(&rules(), look);
        assert_eq!((found.active, found.target), (Some(0), Some(1)));
    }
}
