//! What was learned about the profiles while they served: how much they hold, how fast they are, and where their limit is.

use jiff::{SignedDuration, Timestamp};

use crate::observation::Observation;
use crate::pressure::Load;
use crate::rules::{MAX_RUNGS, Rules};

/// Step times are kept by the power of two of a step's tokens.
const BUCKETS: usize = 14;
/// Weight of a new value in a running mean.
const BLEND: f64 = 0.3;
/// Requests hold alike much cache up to this factor: between profiles the same requests differ by their step times.
const ALIKE: f64 = 2.0;

/// What was learned; its size is fixed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Learned {
    capacity: [Option<f64>; MAX_RUNGS],
    saturation: [Option<Saturation>; MAX_RUNGS],
    steps: [[Option<f64>; BUCKETS]; MAX_RUNGS],
    /// Tokens and steps computed lately, older ones with less weight.
    computed: (f64, f64),
}

/// What a rung computed when it was seen at its limit.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Saturation {
    /// Tokens per second and worker.
    rate: f64,
    /// Share of the KV cache that running requests held; `None` where the engine does not tell.
    kv_used: Option<f64>,
    at: Timestamp,
}

impl Learned {
    /// Counts the latest interval's tokens and steps, `seconds` after the one before; what is a window old weighs a third.
    pub(crate) fn count_steps(&mut self, rules: &Rules, latest: &Load, seconds: f64) {
        let Some(tokens) = latest.tokens_per_step.filter(|tokens| *tokens > 0.0) else { return };
        let window = rules.up_window.as_secs_f64().max(rules.stale_after());
        let kept = (-seconds / window).exp();
        // A short step weighs little beside the long ones of the same interval: steps are counted, not intervals.
        let steps = latest.rate.map_or(1.0, |rate| rate * rules.interval.as_secs_f64() / tokens);
        self.computed = (self.computed.0 * kept + steps * tokens, self.computed.1 * kept + steps);
    }

    /// Mean tokens of a step over about the window toward density; `None` while nothing was computed.
    pub(crate) fn tokens_per_step(&self) -> Option<f64> {
        (self.computed.1 > 0.0).then(|| self.computed.0 / self.computed.1)
    }

    /// Takes a pass in that the rung `active` served undisturbed.
    pub(crate) fn learn(
        &mut self,
        rules: &Rules,
        observation: &Observation,
        load: &Load,
        active: usize,
        now: Timestamp,
    ) {
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
            let old = self.saturation[active].filter(|old| old.like(rate, load.kv_used));
            let mix = |old: f64, new: f64| old + BLEND * (new - old);
            self.saturation[active] = Some(Saturation {
                rate: old.map_or(rate, |old| mix(old.rate, rate)),
                kv_used: load.kv_used.map(|used| old.and_then(|old| old.kv_used).map_or(used, |old| mix(old, used))),
                at: now,
            });
        }
    }

    /// Tokens per second and worker at which a rung was seen at its limit, within a day and under requests like these,
    /// which compute `rate` tokens per second and would hold the share `kv_used` of its cache.
    pub(crate) fn saturation(&self, rung: usize, rate: f64, kv_used: Option<f64>, now: Timestamp) -> Option<f64> {
        let seen = self.saturation.get(rung).copied().flatten()?;
        let recent = now.duration_since(seen.at) < SignedDuration::from_hours(24);
        (recent && seen.like(rate, kv_used)).then_some(seen.rate)
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

impl Saturation {
    /// Whether requests hold about as much cache for each token per second: those with long contexts hold more, and what
    /// is the limit under them says nothing about others. Without the share nothing tells them apart.
    fn like(&self, rate: f64, kv_used: Option<f64>) -> bool {
        let Some((seen, now)) = self.kv_used.zip(kv_used) else { return true };
        let (seen, now) = (seen / self.rate, now / rate);
        now <= ALIKE * seen && seen <= ALIKE * now
    }
}

fn bucket(load: &Load) -> usize {
    let tokens = load.tokens_per_step.unwrap_or(load.running).max(1.0);
    (tokens.log2() as usize).min(BUCKETS - 1)
}
