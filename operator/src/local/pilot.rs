//! Which profile should be active: the policy's decision, from what this worker says.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use modelprofile_api::worker::{WorkerPhase, WorkerState};
use modelprofile_api::{SwitchingMode, Validated};
use modelprofile_policy::{Action, Decision, History, Observation, Replica, Rules, Rung, Sample, decide};

use crate::scrape::{Metrics, Scraper};

/// The profile that the manifest pins, if it does.
pub fn pinned(manifest: &Validated) -> Option<&str> {
    let switching = &manifest.spec().switching;
    switching.pinned_profile.as_deref().filter(|_| switching.mode == SwitchingMode::Pinned)
}

/// Decides for one worker, pass by pass. Pure but for what it remembers: time and metrics come in.
#[derive(Debug)]
pub struct Pilot {
    rules: Rules,
    history: History,
    scraper: Scraper,
    sample: Option<Sample>,
    decision: Option<Decision>,
}

impl Pilot {
    /// For a manifest whose worker is scraped every `interval`.
    ///
    /// # Errors
    /// The manifest cannot be decided on, which validation excludes.
    pub fn new(manifest: &Validated, interval: Duration) -> anyhow::Result<Self> {
        Ok(Self {
            rules: rules(manifest, interval)?,
            history: History::default(),
            scraper: Scraper::default(),
            sample: None,
            decision: None,
        })
    }

    /// Follows an edited manifest; what was learned stays.
    ///
    /// # Errors
    /// As for [`Pilot::new`]; then nothing changes.
    pub fn follow(&mut self, manifest: &Validated) -> anyhow::Result<()> {
        let interval = self.rules.interval.unsigned_abs();
        self.rules = rules(manifest, interval)?;
        Ok(())
    }

    /// The profile that a worker starts in.
    pub fn start(&self, now: Timestamp) -> &str {
        let observation = Observation { replicas: self.rules.min_replicas, ..Observation::default() };
        self.rules.name(decide(&self.rules, &observation, &self.history, now).rung)
    }

    /// Takes a look at the metrics; `None` if there was no answer.
    pub fn scraped(&mut self, text: Option<&str>, now: Timestamp) {
        if let Some(text) = text {
            self.sample = Some(self.scraper.sample(now, &Metrics::parse(text), &self.rules));
        }
    }

    /// Decides about a worker in this state.
    pub fn decide(&mut self, state: &WorkerState, now: Timestamp) -> &Decision {
        let index =
            |name: &Option<String>| name.as_ref().and_then(|name| self.rules.names.iter().position(|n| n == name));
        let ready = state.phase == WorkerPhase::Ready;
        let rungs = self.rules.names.iter().map(|name| {
            let profile = state.profiles.iter().find(|profile| profile.name == *name);
            let known = |value: u64| (value > 0).then_some(value);
            Rung {
                verdict: self.rules.quality.verdict(profile.and_then(|p| p.quality.as_ref())),
                kv_tokens: profile.and_then(|p| known(p.kv_tokens)),
                weight_bytes: profile.and_then(|p| known(p.weight_bytes)),
                awaited: false,
            }
        });
        let memory = &state.memory;
        let observation = Observation {
            active: index(&state.active_profile).filter(|_| ready),
            target: index(&state.target_profile),
            // One machine has one worker, whatever the manifest would scale to.
            replicas: self.rules.min_replicas,
            workers: vec![if ready { Replica::Ready(self.sample) } else { Replica::Starting }],
            rungs: rungs.collect(),
            memory_bytes: Some(memory.budget_bytes.saturating_sub(memory.workspace_bytes)).filter(|bytes| *bytes > 0),
            // On a CPU fewer weight bytes never make a step slower.
            compute_bound_tokens: None,
        };
        self.history.record(&self.rules, &observation, now);
        self.decision.insert(decide(&self.rules, &observation, &self.history, now))
    }

    /// The latest decision.
    pub fn decision(&self) -> Option<&Decision> {
        self.decision.as_ref()
    }

    /// Name of the profile that the latest decision wants to change to, if it wants a change.
    pub fn wanted(&self) -> Option<&str> {
        let decision = self.decision.as_ref()?;
        (decision.action == Action::Switch).then(|| self.rules.name(decision.rung))
    }

    /// Name of a rung.
    pub fn name(&self, rung: usize) -> &str {
        self.rules.name(rung)
    }
}

fn rules(manifest: &Validated, interval: Duration) -> anyhow::Result<Rules> {
    let mut rules = Rules::new(manifest.spec(), SignedDuration::try_from(interval)?)?;
    // Replicas are pods; here there is one process.
    (rules.min_replicas, rules.max_replicas, rules.asked_replicas) = (1, 1, None);
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use modelprofile_api::worker::WorkerProfile;
    use modelprofile_policy::Reason;

    use super::*;
    use crate::local::gate::tests::measured;
    use crate::local::watch::fixture;

    const SECOND: Duration = Duration::from_secs(1);

    fn ready(active: &str) -> WorkerState {
        let rung = |name: &str, kv_tokens| WorkerProfile {
            name: name.to_owned(),
            kv_tokens,
            quality: Some(measured(0.5)),
            ..WorkerProfile::default()
        };
        WorkerState {
            phase: WorkerPhase::Ready,
            active_profile: Some(active.to_owned()),
            profiles: vec![rung("quality", 1000), rung("density", 2000)],
            ..WorkerState::default()
        }
    }

    fn busy(used: u32) -> String {
        format!(
            "modelprofile_kv_blocks{{state=\"total\"}} 100\nmodelprofile_kv_blocks{{state=\"used\"}} {used}
modelprofile_kv_blocks{{state=\"waiting\"}} 0\nmodelprofile_oldest_waiting_seconds 0
vllm:time_to_first_token_seconds_bucket{{le=\"+Inf\"}} 0\n"
        )
    }

    #[test]
    fn a_worker_starts_in_the_first_profile_or_in_the_pinned_one() {
        let now = Timestamp::UNIX_EPOCH;
        let start = |switching| Pilot::new(&fixture::valid(switching), SECOND).unwrap().start(now).to_owned();
        assert_eq!(start("{mode: Auto}"), "quality");
        assert_eq!(start("{mode: Pinned, pinnedProfile: density}"), "density");
        assert_eq!(
            start(r#"{schedule: {windows: [{name: w, profile: density, start: "00:00", end: "12:00"}]}}"#),
            "density"
        );
    }

    #[test]
    fn a_full_cache_switches_after_the_window_and_an_edit_is_followed_at_once() {
        let mut pilot = Pilot::new(&fixture::valid("{toDensity: {stabilizationWindowSeconds: 3}}"), SECOND).unwrap();
        let mut now: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
        for second in 0..4 {
            pilot.scraped(Some(&busy(95)), now);
            pilot.decide(&ready("quality"), now);
            assert_eq!(pilot.wanted(), (second == 3).then_some("density"), "{second}");
            now += SignedDuration::from_secs(1);
        }
        pilot.follow(&fixture::valid("{mode: Pinned, pinnedProfile: quality}")).unwrap();
        pilot.decide(&ready("quality"), now);
        assert_eq!(pilot.wanted(), None);
        pilot.decide(&ready("density"), now);
        assert_eq!(pilot.wanted(), Some("quality"));
    }

    #[test]
    fn a_profile_beyond_the_limits_is_left_and_not_chosen_and_an_edit_of_them_is_followed() {
        let mut state = ready("quality");
        state.profiles[0].quality = Some(measured(12.0));
        let now: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
        let mut pilot = Pilot::new(&fixture::valid("{mode: Pinned, pinnedProfile: quality}"), SECOND).unwrap();
        let decision = pilot.decide(&state, now);
        assert_eq!(decision.reason, Reason::QualityGateFailed);
        assert!(decision.message.contains("12.00 % above the original's, the limit is 10 %"), "{}", decision.message);
        assert_eq!(pilot.wanted(), Some("density"));
        state.active_profile = Some("density".to_owned());
        let decision = pilot.decide(&state, now);
        assert!(decision.message.contains("so its pin is not followed and density serves"), "{}", decision.message);
        assert_eq!(pilot.wanted(), None);
        let warns = fixture::text("{mode: Pinned, pinnedProfile: quality}") + "  quality: {onFailure: Warn}\n";
        pilot.follow(&Validated::from_yaml(&warns).unwrap()).unwrap();
        pilot.decide(&state, now);
        assert_eq!(pilot.wanted(), Some("quality"));
        state.profiles[1].quality = None;
        pilot.follow(&fixture::valid("{}")).unwrap();
        let decision = pilot.decide(&state, now);
        assert!(
            decision.message.starts_with("no profile passed its quality gate, so density stays"),
            "{}",
            decision.message
        );
    }

    #[test]
    fn metrics_that_stop_hold_the_profile() {
        let mut pilot = Pilot::new(&fixture::valid("{toDensity: {stabilizationWindowSeconds: 0}}"), SECOND).unwrap();
        let now: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
        pilot.scraped(Some(&busy(95)), now);
        let later = now + SignedDuration::from_secs(4);
        pilot.scraped(None, later);
        assert_eq!(pilot.decide(&ready("quality"), later).reason, Reason::MetricsUnavailable);
        assert_eq!(pilot.wanted(), None);
    }
}
