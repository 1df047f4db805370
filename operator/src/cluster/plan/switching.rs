//! What workers are asked: to change their profile in place, and to hold other quality limits.
//!
//! Level-triggered: every worker is compared with what is wanted in every pass, so a request that was lost, replaced or refused
//! is made again, and a worker that came back in the wrong profile is found.

use modelprofile_api::Quality;
use modelprofile_api::worker::{WorkerPhase, WorkerState};

use super::action::{Action, Plan, Stage};
use super::facts::{Facts, Worker};
use super::names::Set;
use super::valid::Valid;

/// What has to be asked of workers: limits first, for they say which switches are refused.
pub(super) fn plan(valid: &Valid, facts: &Facts, plan: &mut Plan) {
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
    let mut under_way = 0;
    for (worker, state) in answering(facts).filter(|(worker, _)| worker.set == Set::InPlace) {
        // One that has no profile yet starts in the wanted one.
        let Some(active) = state.active_profile.as_deref() else { continue };
        let serves = matches!(state.phase, WorkerPhase::Ready | WorkerPhase::Blocked);
        let leads_to = state.target_profile.as_deref().unwrap_or(active);
        if leads_to == profile {
            under_way += usize::from(active != profile);
        } else if serves && worker.may_ask && knows(state, profile) {
            under_way += 1;
            plan.actions.push(Action::Switch {
                pod: worker.pod.clone(),
                profile: profile.clone(),
                why: format!("it serves with {active}, and {profile} is wanted"),
            });
        }
    }
    if under_way > 0 {
        plan.wait(Stage::Switching, format!("{under_way} workers change to {profile}"));
    }
}

/// Workers that told their state and stay.
fn answering(facts: &Facts) -> impl Iterator<Item = (&Worker, &WorkerState)> {
    let staying = facts.workers.iter().filter(|worker| !worker.terminating);
    staying.filter_map(|worker| Some((worker, worker.state.as_deref()?)))
}

/// A rung that was added since a worker started is nothing that it could change to.
fn knows(state: &WorkerState, profile: &str) -> bool {
    state.profiles.iter().any(|known| known.name == profile)
}
