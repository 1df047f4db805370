//! What workers are asked: to change their profile in place, and to hold other quality limits.
//!
//! Level-triggered: every worker is compared with what is wanted in every pass, so a request that was lost, replaced or refused
//! is made again, and a worker that came back in the wrong profile is found.

use modelprofile_api::worker::{WorkerPhase, WorkerState};
use modelprofile_api::{Manifest, Quality};

use super::action::{Action, Plan, Stage};
use super::facts::{Facts, Worker};
use super::names::Set;
use super::valid::Valid;

/// What has to be asked of workers: limits first, for they say which switches are refused. `read` is the manifest that they read.
pub(super) fn plan(valid: &Valid, read: &Manifest, facts: &Facts, plan: &mut Plan) {
    for (worker, state) in answering(facts) {
        if let Some(held) = &state.quality_limits {
            // What a worker measures with, it reads when it starts.
            let limits = Quality { dataset: held.dataset.clone(), ..valid.spec().quality.clone() };
            if *held != limits {
                plan.actions.push(Action::SetQuality {
                    pod: worker.pod.clone(),
                    limits: Box::new(limits),
                    why: "spec.quality has other limits than it holds".to_owned(),
                });
            }
        }
    }
    let profile = &valid.rung(&facts.desired.profile).0.name;
    let (mut under_way, mut serving, mut unaware) = (0, 0, Vec::new());
    for (worker, state) in answering(facts).filter(|(worker, _)| worker.set == Set::InPlace) {
        // One that has no profile yet starts in the wanted one.
        let Some(active) = state.active_profile.as_deref() else { continue };
        let serves = matches!(state.phase, WorkerPhase::Ready | WorkerPhase::Blocked);
        let leads_to = state.target_profile.as_deref().unwrap_or(active);
        serving += usize::from(serves);
        if leads_to == profile {
            under_way += usize::from(active != profile);
        } else if serves && !knows(state, profile) {
            unaware.push((worker, state));
        } else if serves && worker.may_ask {
            under_way += 1;
            plan.actions.push(Action::Switch {
                pod: worker.pod.clone(),
                profile: profile.clone(),
                why: format!("it serves with {active}, and {profile} is wanted"),
            });
        }
    }
    let mut waits = Vec::new();
    if under_way > 0 {
        waits.push(format!("{under_way} workers change to {profile}"));
    }
    // Before it is prepared, nobody could know it.
    if !unaware.is_empty() && read.spec.profiles.iter().any(|known| known.name == *profile) {
        let known = serving - unaware.len();
        waits.push(format!(
            "{known} of {serving} workers know the profile {profile} yet; they read it within about a minute"
        ));
        waits.extend(unaware.iter().find_map(|(worker, state)| {
            let awaited = state.awaited_profiles.iter().find(|awaited| awaited.name == *profile)?;
            Some(format!("{} says: {}", worker.pod, awaited.message))
        }));
    }
    if !waits.is_empty() {
        plan.wait(Stage::Switching, waits.join("; "));
    }
}

/// Workers that told their state and stay.
fn answering(facts: &Facts) -> impl Iterator<Item = (&Worker, &WorkerState)> {
    let staying = facts.workers.iter().filter(|worker| !worker.terminating);
    staying.filter_map(|worker| Some((worker, worker.state.as_deref()?)))
}

/// A rung that a worker has not read yet is nothing that it could change to.
fn knows(state: &WorkerState, profile: &str) -> bool {
    state.profiles.iter().any(|known| known.name == profile)
}
