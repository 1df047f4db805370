//! The decision: an ordered list of rules, the first that applies wins.
//!
//! | module | what it holds |
//! |---|---|
//! | `peak` | the way up: a denser profile, more workers, or why neither |
//! | `relief` | the way down: fewer workers, a rung toward quality |

mod peak;
mod relief;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use modelprofile_api::{ScalingMode, SwitchingMode, nearest};

use crate::decision::{Action, Decision, Reason};
use crate::history::History;
use crate::observation::Observation;
use crate::pressure::{Freshness, Load, Pressure};
use crate::rules::Rules;

/// Decides which profile should be active and how many workers should exist.
///
/// # Guarantees
/// - The profile and the number of workers never change in the same decision.
/// - The number of workers is within the limits, if it was before or is changed.
/// - Without fresh metrics nothing changes but for a person (pin, limits, scale subresource), a quality gate that failed,
///   and a window that opens toward density.
/// - Dwell and the hourly budget hold up moves toward quality only.
pub fn decide(rules: &Rules, observation: &Observation, history: &History, now: Timestamp) -> Decision {
    let (latest, freshness) = Load::of(rules, observation, now);
    let load = latest.over_window(observation, history.learned.tokens_per_step());
    let pass = Pass { rules, observation, history, now, pressure: load.pressure(rules), load, freshness };
    pass.decide()
}

/// One decision under way.
struct Pass<'a> {
    rules: &'a Rules,
    observation: &'a Observation,
    history: &'a History,
    now: Timestamp,
    load: Load,
    freshness: Freshness,
    pressure: Pressure,
}

impl Pass<'_> {
    fn decide(&self) -> Decision {
        if let Some(decision) = self.limits() {
            return decision;
        }
        let Some(active) = self.observation.active else {
            let rung = self.starting();
            let message = format!("no worker serves yet; the model starts in {}", self.rules.name(rung));
            return self.of(Action::Hold, rung, self.observation.replicas, Reason::NotServing, message);
        };
        if let Some(decision) = self.pin(active) {
            return decision;
        }
        if let Some(decision) = self.gate(active) {
            return decision;
        }
        if let Some(target) = self.observation.target.filter(|target| *target != active) {
            let message = format!("the switch to {} is under way", self.rules.name(target));
            return self.of(Action::Hold, target, self.observation.replicas, Reason::WaitingForEffect, message);
        }
        let pin = self.rules.pinned;
        let decision = self.automatic(active, pin.is_none());
        match pin {
            Some(pin) if decision.action == Action::Hold && self.observation.rung(pin).awaited => {
                let (name, serves) = (self.rules.name(pin), self.rules.name(active));
                let message = format!("no worker has {name} yet, so its pin waits and {serves} serves");
                Decision { rung: pin, reason: Reason::WaitingForEffect, message, ..decision }
            }
            Some(pin) if !self.usable(pin) && decision.action == Action::Hold => {
                self.blocked_pin(active, pin, &decision)
            }
            None if self.rules.mode == SwitchingMode::Recommend => self.recommended(active, decision),
            _ => decision,
        }
    }

    /// Limits of the number of workers, and what another autoscaler or a person asked for.
    fn limits(&self) -> Option<Decision> {
        let (rules, now) = (self.rules, self.observation.replicas);
        let asked = match rules.scaling {
            ScalingMode::External => rules.asked_replicas.unwrap_or(rules.min_replicas),
            ScalingMode::Auto => now,
        };
        let wanted = asked.clamp(rules.min_replicas, rules.max_replicas);
        (wanted != now).then(|| {
            let rung = self.observation.active.unwrap_or_else(|| self.resting());
            let (min, max) = (rules.min_replicas, rules.max_replicas);
            let message = format!("{wanted} workers instead of {now}: {asked} asked for, between {min} and {max}");
            self.of(Action::Scale, rung, wanted, Reason::ReplicasRequested, message)
        })
    }

    /// A person's pin waits for nothing but a worker that has the profile. One that failed its gate is not followed.
    fn pin(&self, active: usize) -> Option<Decision> {
        let pinned = self.rules.pinned.filter(|pinned| self.usable(*pinned))?;
        let name = self.rules.name(pinned);
        let leads_there = self.observation.target.unwrap_or(active) == pinned;
        (!leads_there).then(|| self.switch(pinned, Reason::Pinned, format!("spec.switching pins {name}")))
    }

    /// The number of workers still follows the load; the profile stays as it is.
    fn blocked_pin(&self, active: usize, pin: usize, decision: &Decision) -> Decision {
        let message = format!(
            "{}, so its pin is not followed and {} serves; pin another profile, or {}",
            self.verdict(pin),
            self.rules.name(active),
            self.observation.rung(pin).verdict.remedy()
        );
        Decision { reason: Reason::QualityGateFailed, message, ..decision.clone() }
    }

    /// A profile that failed its gate is not a rung. A switch under way to one that is leads out of it already.
    fn gate(&self, active: usize) -> Option<Decision> {
        let leaves = self.observation.target.is_some_and(|target| target != active && self.usable(target));
        if self.usable(active) || leaves {
            return None;
        }
        let name = self.rules.name(active);
        let verdict = self.verdict(active);
        let Some(other) = self.nearest_usable(active) else {
            let remedy = self.observation.rung(active).verdict.remedy();
            let message = format!("no profile passed its quality gate, so {name} stays: {verdict}; {remedy}");
            return Some(self.hold(active, Reason::QualityGateFailed, message));
        };
        let message = format!("{verdict}; {} is the nearest that passed", self.rules.name(other));
        Some(self.switch(other, Reason::QualityGateFailed, message))
    }

    /// Load and schedule. Without `may_switch` the number of workers alone can change.
    fn automatic(&self, active: usize, may_switch: bool) -> Decision {
        let (preferred, window) = self.preferred();
        if let Some(window) = window.filter(|_| may_switch && preferred > active) {
            let message = format!("the window {window} prefers {}", self.rules.name(preferred));
            return self.switch(preferred, Reason::Scheduled, message);
        }
        if !self.rules.signals.usable() {
            let message = "the engine has no signal of load: only the schedule and a pin change the profile".to_owned();
            return self.hold(active, Reason::NoSignal, message);
        }
        if self.freshness == Freshness::Stale {
            let message = format!(
                "fewer than half of the {} ready workers have metrics younger than {:.0} s, so everything stays as it is; see that \
                 their metrics port answers",
                self.observation.ready(),
                self.rules.stale_after()
            );
            return self.hold(active, Reason::MetricsUnavailable, message);
        }
        if let Some(decision) = self.waits_for_workers(active) {
            return decision;
        }
        if self.pressure.value >= 1.0 {
            return self.peak(active, may_switch);
        }
        self.relief(active, preferred, may_switch)
    }

    /// One action at a time: workers that were asked for are waited for, unless they can not come. One that went away and
    /// comes back is no action of ours: a peak does not wait for it, and only relief does.
    fn waits_for_workers(&self, active: usize) -> Option<Decision> {
        let seen = self.observation;
        let coming = (seen.replicas as usize).saturating_sub(seen.ready() + seen.unavailable()).max(seen.starting());
        let going = seen.ready().saturating_sub(seen.replicas as usize);
        let message = match (coming, going) {
            (0, 0) => return None,
            (0, n) => format!("{n} workers are finishing their requests"),
            (n, _) => format!("{n} workers are starting; what they change is seen first"),
        };
        // Nor does a worker that nobody can place block anything.
        let ours = self.history.expects_workers() && seen.unavailable() == 0;
        if coming > 0 && !ours && self.pressure.value >= 1.0 {
            return None;
        }
        Some(self.hold(active, Reason::WaitingForEffect, message))
    }

    /// With the mode Recommend a switch is told, and the number of workers changes as if there were no other profile.
    fn recommended(&self, active: usize, wish: Decision) -> Decision {
        let done = self.automatic(active, false);
        if wish.action != Action::Switch {
            return if done.action == Action::Hold { wish } else { done };
        }
        // Of two reasons to hold, the wish is the one to read.
        let (reason, message) =
            if done.action == Action::Hold { (wish.reason, &wish.message) } else { (done.reason, &done.message) };
        let message = format!("recommended, not done: {}. {message}", self.rules.name(wish.rung));
        Decision { reason, message, recommended: Some(wish.rung), ..done }
    }

    /// The schedule's profile, else the first; and the window's name.
    fn preferred(&self) -> (usize, Option<&str>) {
        let current = self.rules.schedule.as_ref().and_then(|schedule| schedule.at(self.now));
        let rung = current.map_or(0, |current| current.rung);
        (self.nearest_usable(rung).unwrap_or(rung), current.map(|current| current.window))
    }

    fn resting(&self) -> usize {
        self.rules.pinned.filter(|pinned| self.usable(*pinned)).unwrap_or_else(|| self.preferred().0)
    }

    /// The rung to start in: a switch that was under way when the last worker went is not taken back, for a Recreate has none in
    /// between, and what called for it has not passed with a worker that starts again.
    fn starting(&self) -> usize {
        let decided = self.observation.target.filter(|target| self.rules.pinned.is_none() && self.usable(*target));
        decided.unwrap_or_else(|| self.resting())
    }

    fn usable(&self, rung: usize) -> bool {
        let rung = self.observation.rung(rung);
        self.rules.quality.admits(&rung.verdict) && !rung.awaited
    }

    fn verdict(&self, rung: usize) -> String {
        self.observation.rung(rung).verdict.sentence(self.rules.name(rung))
    }

    /// The rung itself, else the nearest toward quality, else the nearest toward density.
    fn nearest_usable(&self, rung: usize) -> Option<usize> {
        nearest(rung, self.rules.names.len(), |rung| self.usable(rung))
    }

    fn predicted(&self, from: usize, to: usize) -> f64 {
        self.load.on_rung(self.rules, self.observation, &self.history.learned, from, to, self.now).value
    }

    fn since(&self, start: Option<Timestamp>) -> SignedDuration {
        start.map_or(SignedDuration::ZERO, |start| self.now.duration_since(start))
    }

    fn switch(&self, rung: usize, reason: Reason, message: String) -> Decision {
        self.of(Action::Switch, rung, self.observation.replicas, reason, message)
    }

    fn hold(&self, rung: usize, reason: Reason, message: String) -> Decision {
        self.of(Action::Hold, rung, self.observation.replicas, reason, message)
    }

    fn wait(&self, rung: usize, reason: Reason, message: String, left: SignedDuration) -> Decision {
        let mut decision = self.hold(rung, reason, message);
        decision.revisit_after = decision.revisit_after.min(left.unsigned_abs());
        decision
    }

    fn of(&self, action: Action, rung: usize, replicas: u32, reason: Reason, message: String) -> Decision {
        let next = self.rules.schedule.as_ref().and_then(|schedule| schedule.next_change(self.now));
        let boundary = next.map_or(Duration::MAX, |at| at.duration_since(self.now).unsigned_abs());
        let fresh = self.freshness != Freshness::Stale && self.rules.signals.usable();
        Decision {
            rung,
            replicas,
            action,
            recommended: None,
            reason,
            message,
            pressure: fresh.then_some(self.pressure.value),
            revisit_after: self.rules.interval.unsigned_abs().min(boundary),
        }
    }
}

/// What is left of a window; `None` if it is over.
fn remaining(held: SignedDuration, window: SignedDuration) -> Option<SignedDuration> {
    (held < window).then(|| window - held)
}

fn percent(share: f64) -> u64 {
    (100.0 * share).round() as u64
}

/// Whole seconds, rounded up: "in 0 s" would be wrong.
fn seconds(span: SignedDuration) -> u64 {
    span.unsigned_abs().as_secs_f64().ceil() as u64
}
