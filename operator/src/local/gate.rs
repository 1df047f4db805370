//! What the quality gate says of a worker's profiles, and what of that is news: pure.

use std::collections::BTreeMap;

use modelprofile_api::worker::{WorkerPhase, WorkerProfile, WorkerState};
use modelprofile_api::{Quality, Verdict};
use modelprofile_policy::gate::{Condition, Gated, condition};

use super::notes::{self, Note};

/// Whether the worker is through with preparing and measuring.
fn prepared(state: &WorkerState) -> bool {
    matches!(state.phase, WorkerPhase::Ready | WorkerPhase::Draining | WorkerPhase::Blocked)
}

/// The verdict on a profile of this worker; `None` while it may still be measured.
pub fn verdict(limits: &Quality, state: &WorkerState, profile: &WorkerProfile) -> Option<Verdict> {
    (prepared(state) || profile.quality.is_some()).then(|| limits.verdict(profile.quality.as_ref()))
}

/// The condition of the whole ladder.
pub fn of(limits: &Quality, state: &WorkerState) -> Condition {
    let rungs = state.profiles.iter().map(|rung| Gated { name: &rung.name, quality: rung.quality.as_ref() });
    condition(limits, &rungs.collect::<Vec<_>>(), prepared(state))
}

/// What was told about each profile that did not pass: once, and again when a figure or a limit changed. A worker that starts
/// anew is no news.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told(BTreeMap<String, Note>);

impl Told {
    /// What there is to tell.
    pub fn news(&mut self, limits: &Quality, state: &WorkerState) -> Vec<Note> {
        let mut news = Vec::new();
        for profile in &state.profiles {
            let Some(verdict) = verdict(limits, state, profile) else { continue };
            match notes::gate(&profile.name, limits, &verdict) {
                None => drop(self.0.remove(&profile.name)),
                Some(note) => {
                    if self.0.insert(profile.name.clone(), note.clone()).as_ref() != Some(&note) {
                        news.push(note);
                    }
                }
            }
        }
        news
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use modelprofile_api::{ConditionStatus, MeasuredQuality};

    use super::*;

    /// A measurement with this rise of perplexity.
    pub(crate) fn measured(increase_percent: f64) -> MeasuredQuality {
        MeasuredQuality {
            perplexity: 20.0 * (1.0 + increase_percent / 100.0),
            reference_perplexity: 20.0,
            mean_kl_divergence: 0.0123,
            p99_kl_divergence: 0.1,
            top1_agreement_percent: 95.0,
            rms_probability_change_percent: 2.0,
            tokens: 2048,
            dataset: "built-in".to_owned(),
            measured_at: "2026-03-01T12:00:00Z".to_owned(),
        }
    }

    /// A worker whose profiles quality and density have these rises of perplexity, if they are measured.
    pub(crate) fn worker(phase: WorkerPhase, quality: Option<f64>, density: Option<f64>) -> WorkerState {
        let profile = |(name, increase): (&str, Option<f64>)| WorkerProfile {
            name: name.to_owned(),
            quality: increase.map(measured),
            ..WorkerProfile::default()
        };
        let profiles = [("quality", quality), ("density", density)].map(profile).to_vec();
        WorkerState { phase, profiles, ..WorkerState::default() }
    }

    pub(crate) fn limits(percent: u32) -> Quality {
        Quality { max_perplexity_increase_percent: percent, ..Quality::default() }
    }

    #[test]
    fn a_profile_is_told_once_also_after_a_restart_and_again_with_another_limit() {
        let mut told = Told::default();
        let mut reasons = |percent, phase, quality| {
            let news = told.news(&limits(percent), &worker(phase, quality, Some(0.2)));
            news.into_iter().map(|note| note.message).collect::<Vec<_>>()
        };
        assert!(reasons(1, WorkerPhase::Preparing, None).is_empty());
        let first = reasons(1, WorkerPhase::Preparing, Some(3.1));
        assert!(first.len() == 1 && first[0].contains("3.10 % above the original's, the limit is 1 %"), "{first:?}");
        assert!(reasons(1, WorkerPhase::Ready, Some(3.1)).is_empty());
        assert!(reasons(1, WorkerPhase::Preparing, None).is_empty(), "it starts anew");
        assert!(reasons(1, WorkerPhase::Ready, Some(3.1)).is_empty());
        assert_eq!(reasons(2, WorkerPhase::Ready, Some(3.1)).len(), 1);
        assert!(reasons(4, WorkerPhase::Ready, Some(3.1)).is_empty());
        assert_eq!(reasons(2, WorkerPhase::Ready, Some(3.1)).len(), 1, "it failed again after it had passed");
    }

    #[test]
    fn a_profile_that_is_not_measured_is_news_once_the_worker_is_prepared() {
        let mut told = Told::default();
        assert!(told.news(&limits(10), &worker(WorkerPhase::Preparing, None, None)).is_empty());
        let news = told.news(&limits(10), &worker(WorkerPhase::Ready, Some(3.1), None));
        assert_eq!(news.iter().map(|note| note.reason).collect::<Vec<_>>(), ["NotMeasured"]);
    }

    #[test]
    fn the_condition_waits_while_the_worker_prepares() {
        let status = |phase, quality| of(&limits(1), &worker(phase, quality, Some(0.2))).status;
        assert_eq!(status(WorkerPhase::Preparing, None), ConditionStatus::Unknown);
        assert_eq!(status(WorkerPhase::Preparing, Some(3.1)), ConditionStatus::False);
        assert_eq!(status(WorkerPhase::Blocked, Some(3.1)), ConditionStatus::False);
        assert_eq!(status(WorkerPhase::Ready, Some(0.5)), ConditionStatus::True);
    }
}
