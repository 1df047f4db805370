//! What the operator remembers of a ModelProfile between two passes: windows of load, and what it asked its workers.
//!
//! All of it may be lost. An operator that starts anew decides on what it sees then, which costs at most the windows of the
//! policy; whatever has to outlive it is in the status or in the objects.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use modelprofile_api::worker::SwitchReport;
use modelprofile_api::{Manifest, ModelProfileStatus};
use modelprofile_policy::{History, Rules, Sample};

use super::observe::Read;
use crate::local::retry::{Failure, Retries};
use crate::scrape::{Metrics, Scraper};

/// Time for which a plan that had nothing to do counts. Whatever the fingerprint should miss is seen then.
const SETTLED: Duration = Duration::from_secs(60);

/// Answer of a worker to a switch.
pub type Answer = Result<SwitchReport, String>;

/// What is remembered of one ModelProfile.
#[derive(Default)]
pub struct Memory {
    /// Generation of the spec, and the rules that follow from it.
    rules: Option<(i64, Rules)>,
    /// The windows of the policy.
    pub history: History,
    /// Its workers, by the UID of their pods.
    pub workers: HashMap<String, Remembered>,
    /// The profile that was active last.
    pub last_active: Option<String>,
    /// When the status was written last.
    pub wrote: Option<Instant>,
    /// What was written last, and the version of the object that it was made from: until the watch brings a later version, what
    /// it shows is older than this.
    written: Option<(String, ModelProfileStatus)>,
    settled: Option<Settled>,
}

/// A plan that had nothing to do and waited for nothing, and what it saw.
#[derive(Clone, Debug)]
pub struct Settled {
    /// What the objects said.
    pub read: Read,
    /// What stood for the objects.
    objects: u64,
    /// What stood for everything that the plan was made of.
    fingerprint: u64,
    at: Instant,
}

/// What is remembered of one worker.
#[derive(Default)]
pub struct Remembered {
    scraper: Scraper,
    /// The latest look at its load.
    pub sample: Option<Sample>,
    /// Switches that did not come about.
    pub retries: Retries,
    /// It has answered a real request.
    pub answered: bool,
    /// The profile that it served with when it answered last.
    pub serves: Option<String>,
    /// The profile that it was asked for, until its answer was seen.
    asked: Option<String>,
    /// Where its answer arrives.
    answer: Arc<Mutex<Option<Answer>>>,
}

impl Memory {
    /// The memory of a ModelProfile that was decided on by an earlier operator: its switches of the last hour still count.
    pub fn from_status(status: &ModelProfileStatus) -> Self {
        let times = status.switch_history.iter().filter_map(|switch| switch.start_time.parse::<Timestamp>().ok());
        let mut times: Vec<Timestamp> = times.collect();
        times.sort();
        Self { history: History::with_switches(times), ..Self::default() }
    }

    /// The rules of this generation of the spec.
    ///
    /// # Errors
    /// The spec cannot be decided on, which validation excludes.
    pub fn rules(
        &mut self,
        generation: i64,
        manifest: &Manifest,
        interval: SignedDuration,
    ) -> Result<Rules, modelprofile_policy::RulesError> {
        if let Some((known, rules)) = &self.rules
            && *known == generation
        {
            return Ok(rules.clone());
        }
        let rules = Rules::new(&manifest.spec, interval)?;
        if self.rules.is_some() {
            // What failed before may work now, and the user waits for it.
            self.workers.values_mut().for_each(|worker| worker.retries.clear());
        }
        self.rules = Some((generation, rules.clone()));
        Ok(rules)
    }

    /// The status that is in force: `seen` of the object of this version, or the one that was written since.
    pub fn status(&mut self, version: &str, seen: ModelProfileStatus) -> ModelProfileStatus {
        // A later version has it, or something newer: nobody needs it any more.
        self.written.take_if(|(made_from, _)| *made_from != *version);
        self.written.as_ref().map_or(seen, |(_, written)| written.clone())
    }

    /// A status was written over the object of this version.
    pub fn wrote(&mut self, version: String, status: ModelProfileStatus, now: Instant) {
        (self.written, self.wrote) = (Some((version, status)), Some(now));
    }

    /// The plan that had nothing to do, if these are the objects that it was made with.
    pub fn settled(&self, objects: u64) -> Option<&Settled> {
        self.settled.as_ref().filter(|settled| settled.objects == objects && settled.at.elapsed() < SETTLED)
    }

    /// Whether a plan of this fingerprint had nothing to do.
    pub fn has_nothing_to_do(&self, objects: u64, fingerprint: u64) -> bool {
        self.settled(objects).is_some_and(|settled| settled.fingerprint == fingerprint)
    }

    /// A plan was made: `nothing` says that it has nothing to do and waits for nothing.
    pub fn planned(&mut self, nothing: bool, read: &Read, objects: u64, fingerprint: u64, now: Instant) {
        self.settled = nothing.then(|| Settled { read: read.clone(), objects, fingerprint, at: now });
    }

    /// Forgets workers whose pods are gone.
    pub fn keep(&mut self, exists: impl Fn(&str) -> bool) {
        self.workers.retain(|uid, _| exists(uid));
    }
}

impl Remembered {
    /// Takes a look at its metrics.
    pub fn scraped(&mut self, text: &str, now: Timestamp, rules: &Rules) {
        self.sample = Some(self.scraper.sample(now, &Metrics::parse(text), rules));
    }

    /// Whether it may be asked for `profile` now.
    pub fn may_ask(&self, profile: &str, now: Instant) -> bool {
        self.asked.is_none() && self.retries.may_ask(profile, now)
    }

    /// The profile that it was asked for and has not answered about.
    pub fn asked(&self) -> Option<&str> {
        self.asked.as_deref()
    }

    /// It is being asked for `profile`; the answer is to be put where this leads.
    pub fn ask(&mut self, profile: &str) -> Arc<Mutex<Option<Answer>>> {
        self.asked = Some(profile.to_owned());
        self.answer = Arc::default();
        self.answer.clone()
    }

    /// The answer, once; failures count for the next pause.
    pub fn answer(&mut self, now: Instant) -> Option<(String, Answer)> {
        let answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let profile = self.asked.take()?;
        match &answer {
            Ok(report) if report.outcome == modelprofile_api::worker::SwitchOutcome::Refused => {
                self.retries.failed(&profile, Failure::Refused, now);
            }
            Ok(_) => self.retries.clear(),
            Err(_) => {
                self.retries.failed(&profile, Failure::NoReport, now);
            }
        }
        Some((profile, answer))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use modelprofile_api::worker::SwitchOutcome;

    use super::*;

    fn report(outcome: SwitchOutcome) -> SwitchReport {
        SwitchReport {
            from: "quality".to_owned(),
            to: "density".to_owned(),
            start_time: "2026-03-01T12:00:00Z".to_owned(),
            duration_millis: 5,
            pause_millis: 0.0,
            preempted: 0,
            outcome,
            message: String::new(),
        }
    }

    fn answered(worker: &mut Remembered, answer: Answer, now: Instant) {
        let slot = worker.ask("density");
        *slot.lock().unwrap() = Some(answer);
        assert_eq!(worker.answer(now).map(|(profile, _)| profile).as_deref(), Some("density"));
    }

    #[test]
    fn a_worker_is_asked_once_until_it_answers_and_after_a_refusal_only_later() {
        let (mut worker, now) = (Remembered::default(), Instant::now());
        assert!(worker.may_ask("density", now));
        let slot = worker.ask("density");
        assert!(!worker.may_ask("density", now) && worker.answer(now).is_none());
        *slot.lock().unwrap() = Some(Ok(report(SwitchOutcome::Completed)));
        assert!(worker.answer(now).is_some() && worker.answer(now).is_none() && worker.may_ask("density", now));
        answered(&mut worker, Ok(report(SwitchOutcome::Refused)), now);
        assert_eq!((worker.may_ask("density", now), worker.may_ask("quality", now)), (false, true));
        assert!(worker.may_ask("density", now + Duration::from_secs(61)));
    }

    #[test]
    fn a_status_that_the_watch_has_not_brought_yet_is_not_written_again() {
        let mut memory = Memory::default();
        let status = |ready_replicas| ModelProfileStatus { ready_replicas, ..ModelProfileStatus::default() };
        assert_eq!(memory.status("7", status(0)), status(0));
        memory.wrote("7".to_owned(), status(1), Instant::now());
        assert_eq!(memory.status("7", status(0)), status(1), "the object is older than the write");
        assert_eq!(memory.status("8", status(2)), status(2), "what others wrote counts");
    }

    #[test]
    fn a_plan_that_had_nothing_to_do_counts_for_what_it_was_made_of() {
        let mut memory = Memory::default();
        let (now, read) = (Instant::now(), Read { replicas: Some(2), ..Read::default() });
        memory.planned(true, &read, 7, 70, now);
        assert!(
            memory.has_nothing_to_do(7, 70) && !memory.has_nothing_to_do(7, 71) && !memory.has_nothing_to_do(8, 70)
        );
        assert_eq!(memory.settled(7).map(|settled| &settled.read), Some(&read));
        let earlier = now.checked_sub(SETTLED).unwrap();
        memory.planned(true, &read, 7, 70, earlier);
        assert!(memory.settled(7).is_none(), "it is made again after a minute");
        memory.planned(true, &read, 7, 70, now);
        memory.planned(false, &read, 7, 70, now);
        assert!(memory.settled(7).is_none());
    }

    #[test]
    fn an_answer_to_an_earlier_question_is_not_taken_for_a_later_one() {
        let (mut worker, now) = (Remembered::default(), Instant::now());
        let earlier = worker.ask("density");
        let _later = worker.ask("quality");
        *earlier.lock().unwrap() = Some(Ok(report(SwitchOutcome::Replaced)));
        assert!(worker.answer(now).is_none());
        assert_eq!(worker.asked(), Some("quality"));
    }
}
