//! The quality gate of a running worker: it holds what was measured of its profiles against the limits in force, and keeps
//! requests from a profile that may not serve.
//!
//! ```text
//! prepare thread ── measured ──┐
//!                              ├──> start: which profile serves first, or none: wait for other limits
//! PUT /admin/v1/quality ───────┤
//!                              └──> refusal: why a switch by hand is refused
//! ```
//!
//! The rule itself is [`Quality::verdict`], which the operator's policy uses too.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use modelprofile_api::{MeasuredQuality, Quality, nearest};

/// Limits and figures, for all threads.
#[derive(Debug, Default)]
pub struct Gate {
    held: Mutex<Held>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Held {
    /// `None`: the gate is open, whatever was measured.
    limits: Option<Quality>,
    /// The ladder.
    profiles: Vec<(String, Option<MeasuredQuality>)>,
}

impl Held {
    fn refusal(&self, name: &str) -> Option<String> {
        let (_, quality) = self.profiles.iter().find(|(profile, _)| profile == name)?;
        self.limits.as_ref()?.refusal(name, quality.as_ref())
    }

    /// The profile `wanted`, else the nearest that may serve; the sentences of all of them if none may.
    fn start(&self, wanted: &str) -> Result<String, String> {
        if self.limits.is_none() {
            return Ok(wanted.to_owned());
        }
        let rung = self.profiles.iter().position(|(name, _)| name == wanted).unwrap_or(0);
        let name = |rung: usize| self.profiles.get(rung).map_or(wanted, |(name, _)| name);
        match nearest(rung, self.profiles.len(), |rung| self.refusal(name(rung)).is_none()) {
            Some(rung) => Ok(name(rung).to_owned()),
            None => Err(self.profiles.iter().filter_map(|(name, _)| self.refusal(name)).collect::<Vec<_>>().join(". ")),
        }
    }
}

impl Gate {
    /// A gate for the ladder `names`, of which nothing is measured yet.
    pub fn new(limits: Quality, names: &[String]) -> Self {
        let profiles = names.iter().map(|name| (name.clone(), None)).collect();
        Self { held: Mutex::new(Held { limits: Some(limits), profiles }), changed: Condvar::new() }
    }

    /// The ladder becomes another one. What was measured of profiles that stay is kept.
    pub fn set_ladder(&self, names: &[String]) {
        let mut held = self.held();
        let before = std::mem::take(&mut held.profiles);
        let measured = |name: &String| before.iter().find(|(known, _)| known == name)?.1.clone();
        held.profiles = names.iter().map(|name| (name.clone(), measured(name))).collect();
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what was measured of the profile of that name.
    pub fn measured(&self, name: &str, quality: MeasuredQuality) {
        if let Some((_, held)) = self.held().profiles.iter_mut().find(|(profile, _)| profile == name) {
            *held = Some(quality);
        }
    }

    /// What was measured of the profile of that name.
    pub fn quality(&self, name: &str) -> Option<MeasuredQuality> {
        self.held().profiles.iter().find(|(profile, _)| profile == name)?.1.clone()
    }

    /// The limits in force; `None` if the gate is open.
    pub fn limits(&self) -> Option<Quality> {
        self.held().limits.clone()
    }

    /// Changes the limits. A profile that serves goes on: what should take its place is decided by whoever changed them.
    pub fn set_limits(&self, limits: Quality) {
        self.held().limits = Some(limits);
        self.changed.notify_all();
    }

    /// Why requests must not reach this profile; `None` if they may, or if it is unknown.
    pub fn refusal(&self, name: &str) -> Option<String> {
        self.held().refusal(name)
    }

    /// The profile to start in: `wanted`, else the nearest that may serve. While none may, it waits for other limits; `blocked`
    /// gets the sentences, each time that they change.
    pub fn start(&self, wanted: &str, mut blocked: impl FnMut(&str)) -> String {
        let mut held = self.held();
        let mut told = String::new();
        loop {
            match held.start(wanted) {
                Ok(name) => return name,
                Err(sentences) if sentences != told => {
                    // Whoever is told may look at the gate.
                    drop(held);
                    blocked(&sentences);
                    told = sentences;
                    held = self.held();
                }
                Err(_) => held = self.changed.wait(held).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

    use std::{
        sync::{Arc, mpsc},
        time::Duration,
    };

    use modelprofile_api::OnFailure;

    use super::*;

    fn measured(increase_percent: f64) -> MeasuredQuality {
        MeasuredQuality {
            perplexity: 20.0 * (1.0 + increase_percent / 100.0),
            reference_perplexity: 20.0,
            mean_kl_divergence: 0.01,
            p99_kl_divergence: 0.1,
            top1_agreement_percent: 95.0,
            rms_probability_change_percent: 2.0,
            tokens: 2048,
            dataset: "built-in".to_owned(),
            measured_at: "2026-03-01T12:00:00Z".to_owned(),
        }
    }

    fn limits(percent: u32) -> Quality {
        Quality { max_perplexity_increase_percent: percent, ..Quality::default() }
    }

    /// A ladder of three with these rises of perplexity.
    fn gate(limits: Quality, increases: [f64; 3]) -> Gate {
        let names = ["quality", "middle", "density"].map(str::to_owned);
        let gate = Gate::new(limits, &names);
        names.iter().zip(increases).for_each(|(name, increase)| gate.measured(name, measured(increase)));
        gate
    }

    #[test]
    fn it_starts_in_the_wanted_profile_or_in_the_nearest_that_may_serve() {
        let start = |increases, wanted| gate(limits(1), increases).start(wanted, |_| panic!("one may serve"));
        assert_eq!(start([0.1, 0.2, 0.3], "middle"), "middle");
        assert_eq!(start([3.1, 0.2, 0.3], "quality"), "middle");
        assert_eq!(start([0.1, 3.1, 0.3], "middle"), "quality", "toward quality first");
        assert_eq!(start([3.1, 3.1, 0.3], "middle"), "density");
        let warns = Quality { on_failure: OnFailure::Warn, ..limits(1) };
        assert_eq!(gate(warns, [3.1; 3]).start("quality", |_| panic!("all may serve")), "quality");
    }

    #[test]
    fn a_profile_that_may_not_serve_is_refused_with_the_figure_until_the_limit_is_raised() {
        let gate = gate(limits(1), [3.1, 0.2, 0.3]);
        let refusal = gate.refusal("quality").unwrap();
        assert!(refusal.contains("3.10 % above the original's, the limit is 1 %"), "{refusal}");
        assert_eq!((gate.refusal("density"), gate.refusal("absent")), (None, None));
        gate.set_limits(limits(4));
        assert_eq!(gate.refusal("quality"), None);
    }

    #[test]
    fn what_was_not_measured_is_refused_and_an_open_gate_refuses_nothing() {
        let gate = Gate::new(limits(10), &["quality".to_owned()]);
        assert!(gate.refusal("quality").unwrap().starts_with("the quality of quality was not measured"));
        assert_eq!(Gate::default().refusal("quality"), None);
        assert_eq!(Gate::default().start("quality", |_| panic!("it is open")), "quality");
    }

    #[test]
    fn another_ladder_keeps_what_was_measured_of_profiles_that_stay() {
        let gate = gate(limits(1), [0.1, 0.2, 0.3]);
        gate.set_ladder(&["density", "quality"].map(str::to_owned));
        gate.set_ladder(&["quality", "middle"].map(str::to_owned));
        assert_eq!(gate.quality("quality"), Some(measured(0.1)));
        assert_eq!(
            (gate.quality("middle"), gate.quality("density")),
            (None, None),
            "what left has to be measured anew"
        );
    }

    #[test]
    fn without_a_profile_that_may_serve_it_waits_for_other_limits() {
        let gate = Arc::new(gate(limits(1), [3.1, 3.9, 5.0]));
        let (blocked, sentences) = mpsc::channel();
        let waiting = gate.clone();
        let start = std::thread::spawn(move || waiting.start("density", |text| blocked.send(text.to_owned()).unwrap()));
        let first = sentences.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(["3.10 %", "3.90 %", "5.00 %"].iter().all(|figure| first.contains(figure)), "{first}");
        gate.set_limits(limits(2));
        let second = sentences.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(second.contains("the limit is 2 %"), "{second}");
        gate.set_limits(limits(4));
        assert_eq!(start.join().unwrap(), "middle");
    }
}
