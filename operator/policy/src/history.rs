//! What earlier passes leave behind. Its size is bounded and does not grow with time or with the number of workers.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};

use crate::learned::Learned;
use crate::observation::Observation;
use crate::pressure::{Freshness, Load};
use crate::rules::{MAX_RUNGS, Rules};

/// Switches that are remembered at most: the highest `maxSwitchesPerHour` that the schema allows.
const MAX_SWITCHES: usize = 240;
/// What a backlog must fall by within a window to count as worked off: less can be chance.
const LEAST_FALL: f64 = 0.05;

/// Since when conditions hold without a break, the latest switches, and what was learned about the profiles.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    recorded: Option<Timestamp>,
    active: Option<usize>,
    ready: usize,
    /// Most ready workers since their number was changed.
    most_ready: usize,
    replicas: u32,
    /// Since when no worker is ready.
    away_since: Option<Timestamp>,
    /// Workers were asked for that are not all there yet.
    expected: bool,
    unavailable: usize,
    placing_failed: Option<Timestamp>,
    active_since: Option<Timestamp>,
    over_since: Option<Timestamp>,
    backlog: Option<Backlog>,
    low_since: [Option<Timestamp>; MAX_RUNGS],
    fewer_since: Option<Timestamp>,
    under_since: Option<Timestamp>,
    switches: VecDeque<Timestamp>,
    pub(crate) learned: Learned,
}

/// Requests that piled up while workers were away. As long as they get fewer, they are no peak.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Backlog {
    /// The lowest pressure since the workers came.
    lowest: f64,
    /// When it was seen.
    at: Timestamp,
    /// How long it may go without falling: what piled up for a time takes about as long to show that it gets less.
    patience: SignedDuration,
}

impl History {
    /// A history that starts with switches of an earlier process (the status keeps the last ten), oldest first.
    pub fn with_switches(times: impl IntoIterator<Item = Timestamp>) -> Self {
        let mut history = Self::default();
        for time in times {
            history.remember(time);
        }
        history
    }

    /// Takes a pass in. Once for each observation, before deciding on it.
    ///
    /// A condition holds "for the whole window" when every pass since its start saw it. A pass without fresh metrics saw
    /// nothing, so windows start anew after it; so they do after a change whose effect must be seen first.
    pub fn record(&mut self, rules: &Rules, observation: &Observation, now: Timestamp) {
        let (latest, freshness) = Load::of(rules, observation, now);
        let since = self.recorded.map_or(0.0, |last| now.duration_since(last).as_secs_f64().max(0.0));
        self.learned.count_steps(rules, &latest, since);
        let load = latest.over_window(observation, self.learned.tokens_per_step());
        let ready = observation.ready();
        let paused = self.recorded.is_some_and(|last| now.duration_since(last).as_secs_f64() > rules.stale_after());
        if self.recorded.is_some_and(|last| now < last) {
            self.set_back(now);
        }
        self.follow_workers(observation, now);
        if observation.active != self.active {
            if self.active.is_some() && observation.active.is_some() {
                self.remember(now);
            }
            if observation.active.is_some() {
                self.active = observation.active;
                self.active_since = Some(now);
            }
            self.forget_windows();
        }
        if ready != self.ready {
            // More workers are an effect to be seen; fewer make a peak worse, which must not start its window anew, and nor
            // must one that comes and goes.
            if ready > self.most_ready || self.ready == 0 {
                self.over_since = None;
                let away = self.away_since.map_or(SignedDuration::ZERO, |since| now.duration_since(since));
                self.backlog = Some(Backlog { lowest: f64::INFINITY, at: now, patience: away.max(rules.up_window) });
            }
            self.forget_relief();
        }
        self.away_since = (ready == 0).then(|| self.away_since.unwrap_or(now));
        self.ready = ready;
        self.most_ready = self.most_ready.max(ready);
        self.recorded = Some(now);
        let Some(active) = observation.active.filter(|active| *active < MAX_RUNGS) else { return };
        if freshness == Freshness::Stale || paused {
            self.forget_windows();
            return;
        }
        // What was measured while the profile changed, or while caches were cold, says nothing about the profile.
        let held = self.active_since.map_or(0.0, |since| now.duration_since(since).as_secs_f64());
        if held >= rules.stale_after() && observation.target.is_none() {
            self.learned.learn(rules, observation, &latest, active, now);
        }
        let hold = |since: &mut Option<Timestamp>, holds: bool| *since = holds.then(|| since.unwrap_or(now));
        let pressure = load.pressure(rules).value;
        if let Some(stalled) = self.work_off(pressure, now) {
            self.over_since = Some(stalled);
        }
        hold(&mut self.over_since, pressure >= 1.0 && self.backlog.is_none());
        if freshness != Freshness::All {
            self.forget_relief();
            return;
        }
        let mut low = [false; MAX_RUNGS];
        for (below, low) in low.iter_mut().enumerate().take(active) {
            *low = load.on_rung(rules, observation, &self.learned, active, below, now).value < rules.low;
        }
        for (since, low) in self.low_since.iter_mut().zip(low) {
            hold(since, low);
        }
        let fewer = ready > 1 && load.with_replicas(rules, ready, ready - 1).value < rules.low;
        hold(&mut self.fewer_since, fewer);
        hold(&mut self.under_since, pressure < 1.0);
    }

    /// The clock went back: times that lie ahead of it would make windows last for as long as it went.
    fn set_back(&mut self, now: Timestamp) {
        self.forget_windows();
        self.backlog = None;
        for time in [&mut self.active_since, &mut self.placing_failed].into_iter().flatten() {
            *time = now.min(*time);
        }
        for time in &mut self.switches {
            *time = now.min(*time);
        }
    }

    /// Which workers were asked for, and which did not come.
    fn follow_workers(&mut self, observation: &Observation, now: Timestamp) {
        let (ready, unavailable) = (observation.ready(), observation.unavailable());
        if observation.replicas != self.replicas {
            self.expected = observation.replicas > self.replicas;
            self.replicas = observation.replicas;
            self.most_ready = ready.min(self.most_ready);
            self.forget_relief();
        }
        self.expected &= ready < observation.replicas as usize;
        if unavailable > self.unavailable {
            self.placing_failed = Some(now);
        }
        self.unavailable = unavailable;
    }

    /// Follows a backlog until it is gone, or has not fallen for its time: the window toward density, or as long as the
    /// workers were away. Then it is a peak, and the time of its lowest pressure is returned.
    fn work_off(&mut self, pressure: f64, now: Timestamp) -> Option<Timestamp> {
        let backlog = self.backlog.as_mut()?;
        if pressure <= backlog.lowest * (1.0 - LEAST_FALL) {
            (backlog.lowest, backlog.at) = (pressure, now);
        }
        let at = backlog.at;
        let stalled = now.duration_since(at) >= backlog.patience;
        if pressure < 1.0 || stalled {
            self.backlog = None;
        }
        stalled.then_some(at)
    }

    fn remember(&mut self, time: Timestamp) {
        if self.switches.len() == MAX_SWITCHES {
            self.switches.pop_front();
        }
        self.switches.push_back(time);
    }

    fn forget_windows(&mut self) {
        self.over_since = None;
        self.forget_relief();
    }

    fn forget_relief(&mut self) {
        self.low_since = [None; MAX_RUNGS];
        self.fewer_since = None;
        self.under_since = None;
    }

    /// Since when the pressure is at the target or above.
    pub fn over_since(&self) -> Option<Timestamp> {
        self.over_since
    }

    /// Where requests that piled up while workers were away are being worked off: the time that this may go without getting
    /// on.
    pub fn works_off(&self) -> Option<SignedDuration> {
        self.backlog.map(|backlog| backlog.patience)
    }

    /// Since when the pressure predicted on a rung below the active one is low.
    pub fn low_since(&self, rung: usize) -> Option<Timestamp> {
        self.low_since.get(rung).copied().flatten()
    }

    /// Since when the pressure predicted with one worker less is low.
    pub fn fewer_since(&self) -> Option<Timestamp> {
        self.fewer_since
    }

    /// Since when the pressure is below the target.
    pub fn under_since(&self) -> Option<Timestamp> {
        self.under_since
    }

    /// Whether workers were asked for that are not all there yet.
    pub fn expects_workers(&self) -> bool {
        self.expected
    }

    /// When a worker was last seen that can not be placed, or did not get ready in time.
    pub fn placing_failed(&self) -> Option<Timestamp> {
        self.placing_failed
    }

    /// Since when the active profile is active, as far as was seen.
    pub fn active_since(&self) -> Option<Timestamp> {
        self.active_since
    }

    /// Switches within the hour before `now`, and when they are fewer than `most` again; `None` if they are.
    pub fn switches_within_hour(&self, now: Timestamp, most: usize) -> (usize, Option<Timestamp>) {
        let hour = SignedDuration::from_hours(1);
        let recent = self.switches.iter().filter(|at| now.duration_since(**at) < hour);
        let count = recent.clone().count();
        let frees = count.checked_sub(most.max(1)).and_then(|over| recent.clone().nth(over));
        (count, frees.map(|at| *at + hour))
    }
}
