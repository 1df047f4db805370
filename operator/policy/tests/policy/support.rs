//! A plant to decide for: workers whose load follows from demand, capacity and step time.
#![allow(clippy::unwrap_used, reason = "a helper of tests: a panic is its failure")]
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use jiff::{SignedDuration, Timestamp};
use modelprofile_api::{Breach, ModelProfileSpec, Rule, Verdict};
use modelprofile_policy::{Action, Decision, History, Kv, Observation, Reading, Replica, Rules, Rung, Sample, decide};

/// Seconds between two passes.
pub const INTERVAL: i64 = 5;

/// A spec with a ladder of `rungs` profiles; `switching` and `scaling` are JSON.
pub fn rules(rungs: usize, switching: &str, scaling: &str) -> Rules {
    let names = ["quality", "middle", "dense", "densest"];
    let names: Vec<&str> = if rungs == 2 { vec!["quality", "density"] } else { names[..rungs].to_vec() };
    let profiles: Vec<String> =
        names.iter().map(|name| format!(r#"{{"name": "{name}", "weights": {{"format": "FP8"}}}}"#)).collect();
    let text = format!(
        r#"{{"model": {{"uri": "file:///m"}}, "profiles": [{}], "switching": {switching}, "scaling": {scaling}}}"#,
        profiles.join(",")
    );
    let spec: ModelProfileSpec = serde_json::from_str(&text).unwrap();
    Rules::new(&spec, SignedDuration::from_secs(INTERVAL)).unwrap()
}

/// A profile that lost too much.
pub fn beyond() -> Verdict {
    Verdict::Beyond([Some(Breach { rule: Rule::PerplexityIncrease, figure: 12.5, limit: 10.0 }), None])
}

/// The truth that the policy does not know.
#[derive(Clone, Debug)]
pub struct Plant {
    pub rules: Rules,
    /// KV blocks of one worker by rung.
    pub capacity: Vec<f64>,
    /// Step time by rung, relative to the first.
    pub step: Vec<f64>,
    /// What the workers report beforehand; empty = nothing.
    pub rungs: Vec<Rung>,
    pub compute_bound_tokens: Option<f64>,
    pub tokens_per_step: Option<f64>,
    /// Tokens computed per second for each block that running requests hold.
    pub tokens_per_block: f64,
    pub active: usize,
    pub replicas: u32,
    /// Workers that were asked for and can not be placed.
    pub unplaceable: u32,
    /// Samples are this old.
    pub age: SignedDuration,
    pub history: History,
    pub now: Timestamp,
    pub switches: usize,
    pub decisions: Vec<Decision>,
}

impl Plant {
    pub fn new(rules: Rules, capacity: &[f64], step: &[f64]) -> Self {
        Self {
            rules,
            capacity: capacity.to_vec(),
            step: step.to_vec(),
            rungs: capacity.iter().map(|c| Rung { kv_tokens: Some((c * 16.0) as u64), ..Rung::default() }).collect(),
            compute_bound_tokens: None,
            tokens_per_step: None,
            tokens_per_block: 10.0,
            active: 0,
            replicas: 1,
            unplaceable: 0,
            age: SignedDuration::ZERO,
            history: History::default(),
            now: "2026-03-02T00:00:00Z".parse().unwrap(),
            switches: 0,
            decisions: Vec::new(),
        }
    }

    /// The observation under a demand of `blocks` in all and a time to the first token of `ttft` seconds on the first rung.
    pub fn observe(&self, blocks: f64, ttft: f64) -> Observation {
        let ready = self.replicas - self.unplaceable.min(self.replicas - 1);
        let total = self.capacity[self.active];
        let demand = blocks / f64::from(ready);
        let sample = Sample {
            at: self.now - self.age,
            kv: Some(Kv { total, used: demand.min(total), waiting: (demand - total).max(0.0) }),
            oldest_waiting: if demand > total { Reading::Value(10.0 * (demand / total - 1.0)) } else { Reading::Idle },
            time_to_first_token: Reading::Value(ttft * self.step[self.active] / f64::from(ready)),
            running: 8.0,
            step_seconds: Some(0.03 * self.step[self.active]),
            // What is computed is what is asked for, up to what the worker can hold.
            tokens_per_second: Some(demand.min(total) * self.tokens_per_block),
            tokens_per_step: self.tokens_per_step,
        };
        let workers = (0..self.replicas)
            .map(|i| if i < ready { Replica::Ready(Some(sample)) } else { Replica::Unavailable })
            .collect();
        Observation {
            active: Some(self.active),
            replicas: self.replicas,
            workers,
            rungs: self.rungs.clone(),
            compute_bound_tokens: self.compute_bound_tokens,
            ..Observation::default()
        }
    }

    /// One pass; what was decided is done at once.
    pub fn pass(&mut self, blocks: f64, ttft: f64) -> Decision {
        let seen = self.observe(blocks, ttft);
        self.history.record(&self.rules, &seen, self.now);
        let decision = decide(&self.rules, &seen, &self.history, self.now);
        let profile = decision.rung != self.active;
        let replicas = decision.replicas != self.replicas;
        assert!(!(profile && replicas), "profile and replicas at once: {decision:?}");
        assert_eq!(decision.action == Action::Switch, profile, "{decision:?}");
        assert_eq!(decision.action == Action::Scale, replicas, "{decision:?}");
        assert!((self.rules.min_replicas..=self.rules.max_replicas).contains(&decision.replicas), "{decision:?}");
        assert!(decision.rung < self.rules.names.len());
        assert!(decision.message.len() > 15 && decision.message.len() <= 1024, "{decision:?}");
        self.switches += usize::from(profile);
        self.active = decision.rung;
        self.replicas = decision.replicas;
        self.now += SignedDuration::from_secs(INTERVAL);
        self.decisions.push(decision.clone());
        decision
    }

    pub fn run(&mut self, passes: usize, blocks: f64, ttft: f64) {
        for _ in 0..passes {
            self.pass(blocks, ttft);
        }
    }
}
