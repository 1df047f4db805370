//! What earlier passes leave behind. Its size is bounded and does not grow with time or with the number of workers.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};

use crate::observation::Observation;
use crate::pressure::{Freshness, Load};
use crate::rules::{MAX_RUNGS, Rules};

/// Switches that are remembered at most: the highest `maxSwitchesPerHour` that the schema allows.
const MAX_SWITCHES: usize = 240;
/// Step times are kept by the power of two of a step's tokens.
const BUCKETS: usize = 14;
/// Weight of a new value in a running mean.
const BLEND: f64 = 0.3;

/// Since when conditions hold without a break, the latest switches, and what was learned about the profiles.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    recorded: Option<Timestamp>,
    active: Option<usize>,
    ready: usize,
    active_since: Option<Timestamp>,
    over_since: Option<Timestamp>,
    low_since: [Option<Timestamp>; MAX_RUNGS],
    fewer_since: Option<Timestamp>,
    switches: VecDeque<Timestamp>,
    capacity: [Option<f64>; MAX_RUNGS],
    saturation: [Option<f64>; MAX_RUNGS],
    steps: [[Option<f64>; BUCKETS]; MAX_RUNGS],
    /// Tokens and steps computed lately, older ones with less weight.
    computed: (f64, f64),
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
        self.count_steps(rules, &latest, now);
        let load = latest.over_window(observation, self.tokens_per_step());
        let ready = observation.ready();
        let paused = self.recorded.is_some_and(|last| now.duration_since(last).as_secs_f64() > rules.stale_after());
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
            // More workers are an effect to be seen; fewer make a peak worse, which must not start its window anew.
            if ready > self.ready {
                self.over_since = None;
            }
            self.forget_relief();
        }
        self.ready = ready;
        self.recorded = Some(now);
        let Some(active) = observation.active.filter(|active| *active < MAX_RUNGS) else { return };
        if freshness == Freshness::Stale || paused {
            self.forget_windows();
            return;
        }
        self.learn(rules, observation, &latest, active, now);
        let hold = |since: &mut Option<Timestamp>, holds: bool| *since = holds.then(|| since.unwrap_or(now));
        hold(&mut self.over_since, load.pressure(rules).value >= 1.0);
        if freshness != Freshness::All {
            self.forget_relief();
            return;
        }
        let mut low = [false; MAX_RUNGS];
        for (below, low) in low.iter_mut().enumerate().take(active) {
            *low = load.on_rung(rules, observation, self, active, below).value < rules.low;
        }
        for (since, low) in self.low_since.iter_mut().zip(low) {
            hold(since, low);
        }
        let fewer = ready > 1 && load.with_replicas(rules, ready, ready - 1).value < rules.low;
        hold(&mut self.fewer_since, fewer);
    }

    /// Counts the latest interval's tokens and steps; what is a window old weighs a third.
    fn count_steps(&mut self, rules: &Rules, latest: &Load, now: Timestamp) {
        let Some(tokens) = latest.tokens_per_step.filter(|tokens| *tokens > 0.0) else { return };
        let seconds = self.recorded.map_or(0.0, |last| now.duration_since(last).as_secs_f64().max(0.0));
        let window = rules.up_window.as_secs_f64().max(rules.stale_after());
        let kept = (-seconds / window).exp();
        // A short step weighs little beside the long ones of the same interval: steps are counted, not intervals.
        let steps = latest.rate.map_or(1.0, |rate| rate * rules.interval.as_secs_f64() / tokens);
        self.computed = (self.computed.0 * kept + steps * tokens, self.computed.1 * kept + steps);
    }

    /// Mean tokens of a step over about the window toward density; `None` while nothing was computed.
    pub fn tokens_per_step(&self) -> Option<f64> {
        (self.computed.1 > 0.0).then(|| self.computed.0 / self.computed.1)
    }

    fn learn(&mut self, rules: &Rules, observation: &Observation, load: &Load, active: usize, now: Timestamp) {
        // What was measured while the profile changed, or while caches were cold, says nothing about the profile.
        let settled =
            self.active_since.is_some_and(|since| now.duration_since(since).as_secs_f64() >= rules.stale_after());
        if !settled || observation.target.is_some() {
            return;
        }
        let blend = |old: &mut Option<f64>, new: f64| *old = Some(old.map_or(new, |old| old + BLEND * (new - old)));
        let (total, count) = observation
            .fresh(now, rules.stale_after())
            .filter_map(|sample| sample.kv)
            .fold((0.0, 0.0), |(total, count), kv| (total + kv.total, count + 1.0));
        if count > 0.0 && total > 0.0 {
            self.capacity[active] = Some(total / count);
        }
        if let Some(seconds) = load.step_seconds {
            blend(&mut self.steps[active][bucket(load)], seconds);
        }
        if let Some(rate) = load.rate.filter(|rate| *rate > 0.0 && load.pressure(rules).value >= 1.0) {
            blend(&mut self.saturation[active], rate);
        }
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
    }

    /// Since when the pressure is at the target or above.
    pub fn over_since(&self) -> Option<Timestamp> {
        self.over_since
    }

    /// Since when the pressure predicted on a rung below the active one is low.
    pub fn low_since(&self, rung: usize) -> Option<Timestamp> {
        self.low_since.get(rung).copied().flatten()
    }

    /// Since when the pressure predicted with one worker less is low.
    pub fn fewer_since(&self) -> Option<Timestamp> {
        self.fewer_since
    }

    /// Since when the active profile is active, as far as was seen.
    pub fn active_since(&self) -> Option<Timestamp> {
        self.active_since
    }

    /// Switches within the hour before `now`, and when the oldest of them leaves that hour.
    pub fn switches_within_hour(&self, now: Timestamp) -> (usize, Option<Timestamp>) {
        let hour = SignedDuration::from_hours(1);
        let mut recent = self.switches.iter().filter(|at| now.duration_since(**at) < hour);
        let oldest = recent.clone().next().map(|at| *at + hour);
        (recent.by_ref().count(), oldest)
    }

    /// Tokens per second and worker at which a rung was seen at its limit.
    pub(crate) fn saturation(&self, rung: usize) -> Option<f64> {
        self.saturation.get(rung).copied().flatten()
    }

    /// KV capacity of rung `to` over that of `from`: observed when both were seen, else as the workers report it, else
    /// from byte counts; 1 where nothing is known, so that a switch is justified by knowledge alone.
    pub(crate) fn capacity_ratio(&self, observation: &Observation, from: usize, to: usize) -> f64 {
        let ratio = |from: f64, to: f64| (from > 0.0 && to > 0.0).then_some(to / from);
        let seen = |rung: usize| self.capacity.get(rung).copied().flatten();
        let (a, b) = (observation.rung(from), observation.rung(to));
        let observed = seen(from).zip(seen(to)).and_then(|(a, b)| ratio(a, b));
        let reported = || a.kv_tokens.zip(b.kv_tokens).and_then(|(a, b)| ratio(a as f64, b as f64));
        let counted = || {
            let memory = observation.memory_bytes?;
            let left = |weights: u64| memory.saturating_sub(weights) as f64;
            ratio(left(a.weight_bytes?), left(b.weight_bytes?))
        };
        observed.or_else(reported).or_else(counted).unwrap_or(1.0)
    }

    /// Step time of rung `to` over that of `from`: observed at the nearest batch at which both were seen, else from byte
    /// counts. A step that is bound by compute does not get faster by reading fewer bytes.
    pub(crate) fn step_ratio(&self, observation: &Observation, load: &Load, from: usize, to: usize) -> f64 {
        let here = bucket(load);
        let pairs =
            self.steps.get(from).into_iter().zip(self.steps.get(to)).flat_map(|(a, b)| a.iter().zip(b).enumerate());
        let both = pairs.filter_map(|(at, (a, b))| Some((at, (*a)?, (*b)?)));
        if let Some((_, a, b)) =
            both.min_by_key(|(at, _, _)| at.abs_diff(here)).filter(|(_, a, b)| *a > 0.0 && *b > 0.0)
        {
            return b / a;
        }
        let (Some(a), Some(b)) = (observation.rung(from).weight_bytes, observation.rung(to).weight_bytes) else {
            return 1.0;
        };
        let Some(tokens) = load.tokens_per_step else { return 1.0 };
        let bytes = b as f64 / (a as f64).max(1.0);
        // The share of the step that is spent on reading weights falls with the tokens that use them.
        let memory_share = observation.compute_bound_tokens.map_or(1.0, |limit| (1.0 - tokens / limit).clamp(0.0, 1.0));
        1.0 + memory_share * (bytes - 1.0)
    }
}

fn bucket(load: &Load) -> usize {
    let tokens = load.tokens_per_step.unwrap_or(load.running).max(1.0);
    (tokens.log2() as usize).min(BUCKETS - 1)
}
