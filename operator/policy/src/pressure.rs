//! Load over target, and what it would be elsewhere.

use std::fmt::Write;

use jiff::Timestamp;

use crate::learned::Learned;
use crate::observation::{Observation, Reading};
use crate::rules::Rules;

/// The signals of all ready workers in one pass.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Blocks that running and waiting requests need, over all blocks: the mean over the workers. Above 1 requests wait.
    pub kv_demand: Option<f64>,
    /// The same of the worker that has most.
    pub kv_worst: f64,
    /// Share of the KV cache that running requests hold, 0 to 1: the mean over the workers.
    pub kv_used: Option<f64>,
    /// Age of the oldest waiting request of all workers, in seconds.
    pub oldest_waiting: Option<f64>,
    /// The worst worker's 95th percentile of the time to the first token, in seconds.
    pub ttft: Option<f64>,
    /// Steps compute as much as they read: fewer weight bytes do not make them faster.
    pub compute_bound: bool,
    /// Mean tokens of a step.
    pub tokens_per_step: Option<f64>,
    /// Tokens computed per second and worker.
    pub rate: Option<f64>,
    /// Requests being computed, per worker.
    pub running: f64,
    /// Mean time of a step in seconds.
    pub step_seconds: Option<f64>,
}

/// How good the samples of one pass are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Every ready worker has a fresh sample with all its signals.
    All,
    /// More than half of them: enough to see a peak, too little to see that it is over.
    Most,
    /// Too few.
    Stale,
}

/// The signal that makes the pressure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// KV demand.
    Kv,
    /// Oldest waiting request.
    Queue,
    /// Time to the first token.
    Ttft,
}

/// Pressure, and which signal makes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pressure {
    /// Load over target; 1 is at target.
    pub value: f64,
    /// The worst signal.
    pub signal: Signal,
}

impl Load {
    /// Adds the ready workers' samples up.
    pub fn of(rules: &Rules, observation: &Observation, now: Timestamp) -> (Self, Freshness) {
        let (mut load, mut fresh, mut whole) = (Self::default(), 0_usize, 0_usize);
        let (mut kv_sum, mut kv_count, mut steps, mut step_sum, mut token_sum, mut tokens) =
            (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
        let (mut rate_sum, mut rates, mut used_sum) = (0.0, 0.0, 0.0);
        let worst = |now: Option<f64>, reading: Reading| match reading {
            Reading::Value(value) => Some(now.map_or(value, |n| n.max(value))),
            Reading::Idle => Some(now.unwrap_or(0.0)),
            Reading::Missing => now,
        };
        for sample in observation.fresh(now, rules.stale_after()) {
            let signals = &rules.signals;
            let vanished = (signals.kv_usage.is_some() && sample.kv.is_none())
                || (signals.oldest_waiting.is_some() && sample.oldest_waiting == Reading::Missing)
                || (signals.time_to_first_token.is_some() && sample.time_to_first_token == Reading::Missing);
            fresh += 1;
            whole += usize::from(!vanished);
            if let Some(kv) = sample.kv.filter(|kv| kv.total > 0.0) {
                let demand = ((kv.used + kv.waiting) / kv.total).max(0.0);
                kv_sum += demand;
                used_sum += (kv.used / kv.total).clamp(0.0, 1.0);
                kv_count += 1.0;
                load.kv_worst = load.kv_worst.max(demand);
            }
            load.oldest_waiting = worst(load.oldest_waiting, sample.oldest_waiting);
            load.ttft = worst(load.ttft, sample.time_to_first_token);
            load.running += sample.running;
            if let Some(seconds) = sample.step_seconds {
                step_sum += seconds;
                steps += 1.0;
            }
            if let Some(rate) = sample.tokens_per_second {
                rate_sum += rate;
                rates += 1.0;
            }
            if let Some(count) = sample.tokens_per_step {
                token_sum += count;
                tokens += 1.0;
            }
        }
        load.kv_demand = (kv_count > 0.0).then(|| kv_sum / kv_count);
        load.kv_used = (kv_count > 0.0).then(|| used_sum / kv_count);
        load.running /= (fresh as f64).max(1.0);
        load.step_seconds = (steps > 0.0).then(|| step_sum / steps);
        load.rate = (rates > 0.0).then(|| rate_sum / rates);
        load.tokens_per_step = (tokens > 0.0).then(|| token_sum / tokens);
        let ready = observation.ready();
        let freshness = if ready > 0 && whole == ready {
            Freshness::All
        } else if 2 * whole > ready {
            Freshness::Most
        } else {
            Freshness::Stale
        };
        (load, freshness)
    }

    /// The same load, with the mean tokens of a step over the latest window in the place of the latest interval's: an
    /// interval in which no prompt happened to be read says nothing about what bounds the steps.
    #[must_use]
    pub fn over_window(mut self, observation: &Observation, tokens_per_step: Option<f64>) -> Self {
        self.tokens_per_step = tokens_per_step.or(self.tokens_per_step);
        let limit = observation.compute_bound_tokens;
        self.compute_bound = self.tokens_per_step.zip(limit).is_some_and(|(tokens, limit)| tokens >= limit);
        self
    }

    /// The worst signal over its target.
    pub fn pressure(&self, rules: &Rules) -> Pressure {
        self.scaled(rules, 1.0, 1.0, 1.0)
    }

    /// The pressure predicted on another rung: KV demand scales with the capacity, times with the step time.
    ///
    /// Requests that wait because the KV cache is full wait the less the more it holds. Where compute is the bound they
    /// do not: then a bigger cache only moves them from one queue to another.
    pub(crate) fn on_rung(
        &self,
        rules: &Rules,
        observation: &Observation,
        learned: &Learned,
        from: usize,
        to: usize,
        now: Timestamp,
    ) -> Pressure {
        let capacity = learned.capacity_ratio(observation, from, to);
        let step = learned.step_ratio(observation, self, from, to);
        let kv_bound = self.kv_demand.is_some_and(|demand| demand >= rules.kv_target);
        let mut time = step;
        if kv_bound && !self.compute_bound {
            time /= capacity;
        }
        // Under compute-bound overload the requests that hold blocks are those that wait for compute.
        let kv = if self.compute_bound && capacity > 1.0 { step.max(1.0) } else { 1.0 / capacity };
        // Where all of them fit, none waits for blocks.
        let fits = self.kv_demand.is_some_and(|demand| demand * kv < rules.kv_target);
        let queue = if kv_bound && !self.compute_bound && fits { 0.0 } else { time };
        let mut predicted = self.scaled(rules, kv, queue, time);
        // Waiting times are not proportional to anything near saturation. Where the other rung was seen at its limit, the
        // rate that it had then is the measure.
        let used = self.kv_used.map(|used| used / capacity);
        if let Some(rate) = self.rate.filter(|rate| *rate > 0.0 && to < from)
            && let Some(limit) = learned.saturation(to, rate, used, now)
        {
            predicted.value = predicted.value.max(rate / limit);
        }
        predicted
    }

    /// The pressure predicted with another number of ready workers.
    pub fn with_replicas(&self, rules: &Rules, from: usize, to: usize) -> Pressure {
        let factor = from as f64 / (to as f64).max(1.0);
        self.scaled(rules, factor, factor, factor)
    }

    fn scaled(&self, rules: &Rules, kv: f64, queue: f64, time: f64) -> Pressure {
        let mut worst = Pressure { value: 0.0, signal: Signal::Kv };
        let signals = [
            (Signal::Kv, self.kv_demand.map(|demand| demand * kv / rules.kv_target)),
            (Signal::Queue, self.oldest_waiting.map(|seconds| seconds * queue / rules.queue_target)),
            (Signal::Ttft, self.ttft.map(|seconds| seconds * time / rules.ttft_target)),
        ];
        for (signal, value) in signals {
            if let Some(value) = value.filter(|value| *value > worst.value) {
                worst = Pressure { value, signal };
            }
        }
        worst
    }

    /// The signal with its value and target, as in "KV demand is 97 % (target 85 %)".
    pub fn describe(&self, rules: &Rules, signal: Signal) -> String {
        let mut text = String::with_capacity(64);
        // Writing to a string does not fail.
        let _ = match signal {
            Signal::Kv => {
                let mean = 100.0 * self.kv_demand.unwrap_or_default();
                let _ = write!(text, "KV demand is {mean:.0} % (target {:.0} %", 100.0 * rules.kv_target);
                let worst = 100.0 * self.kv_worst;
                if worst > mean + 1.0 { write!(text, "; worst worker {worst:.0} %)") } else { write!(text, ")") }
            }
            Signal::Queue => write!(
                text,
                "the oldest waiting request is {:.1} s old (target {} s)",
                self.oldest_waiting.unwrap_or_default(),
                rules.queue_target
            ),
            Signal::Ttft => write!(
                text,
                "the p95 time to first token is {:.1} s (target {} s)",
                self.ttft.unwrap_or_default(),
                rules.ttft_target
            ),
        };
        text
    }
}
