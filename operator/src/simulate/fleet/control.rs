//! The real decision, every few seconds: what it sees of the workers, and what is recorded of it.

use jiff::{SignedDuration, Timestamp};
use modelprofile_policy::{Action, Kv, Reading, Sample, decide};

use super::{Fleet, MAX_CHANGES, Phase};
use crate::simulate::replica::Replica;

impl Fleet<'_> {
    /// Observes, decides, records, acts.
    pub(super) fn decide(&mut self) {
        for place in 0..self.workers.len() {
            if self.workers[place].is_some() {
                self.on(place, |_, _, _, _| ());
            }
        }
        self.settle_switch();
        self.observe();
        let now = self.timestamp();
        self.history.record(&self.rules, &self.observation, now);
        let decision = decide(&self.rules, &self.observation, &self.history, now);
        let (rung, workers) = (self.rung, self.workers.iter().flatten().count() as u32);
        let column = self.column();
        column.pressure = column.pressure.max(decision.pressure.unwrap_or(0.0));
        column.rung = Some(rung);
        column.workers = column.workers.max(workers);
        if decision.action != Action::Hold && self.outcome.changes.len() < MAX_CHANGES {
            self.outcome.changes.push((self.now, decision.message));
        }
        match decision.action {
            Action::Hold => {}
            Action::Switch => self.switch(decision.rung),
            Action::Scale => self.scale(decision.replicas),
        }
    }

    fn timestamp(&self) -> Timestamp {
        self.scenario.start.saturating_add(SignedDuration::from_secs_f64(self.now)).unwrap_or(self.scenario.start)
    }

    /// What a scrape of all workers would show; those that replace others are not seen before they serve.
    fn observe(&mut self) {
        let (at, now, interval) = (self.timestamp(), self.now, self.scenario.interval);
        let mut seen = std::mem::take(&mut self.observation);
        seen.workers.clear();
        let mut serves = false;
        for worker in self.workers.iter_mut().flatten().filter(|worker| !worker.surge) {
            match worker.phase {
                Phase::Ready => {
                    serves = true;
                    let sample = sample(&mut worker.replica, at, now, interval);
                    seen.workers.push(modelprofile_policy::Replica::Ready(Some(sample)));
                    let (rung, (_, blocks)) = (worker.replica.rung(), worker.replica.cache());
                    if !worker.replica.changes() {
                        seen.rungs[rung].kv_tokens = Some(16 * u64::from(blocks));
                    }
                }
                Phase::Starting | Phase::Restarting => seen.workers.push(modelprofile_policy::Replica::Starting),
                Phase::Draining => {}
            }
        }
        seen.active = serves.then_some(self.rung);
        seen.target = self.target;
        seen.replicas = self.replicas;
        self.observation = seen;
    }
}

/// What a scrape of the worker would show.
fn sample(replica: &mut Replica, at: Timestamp, now: f64, interval: f64) -> Sample {
    let mut counted = std::mem::take(&mut replica.interval);
    let (used, total) = replica.cache();
    counted.first_tokens.sort_by(f64::total_cmp);
    let rank = (counted.first_tokens.len() * 95).div_ceil(100).saturating_sub(1);
    let steps = counted.steps as f64;
    let some = |value: f64| (steps > 0.0).then_some(value);
    Sample {
        at,
        kv: Some(Kv { total: total.into(), used: used.into(), waiting: replica.waiting_blocks() as f64 }),
        oldest_waiting: replica.oldest_waiting().map_or(Reading::Idle, |arrived| Reading::Value(now - arrived)),
        time_to_first_token: counted.first_tokens.get(rank).map_or(Reading::Idle, |seconds| Reading::Value(*seconds)),
        running: replica.running() as f64,
        step_seconds: some(counted.busy / steps),
        tokens_per_second: Some(counted.computed as f64 / interval),
        tokens_per_step: some(counted.computed as f64 / steps),
    }
}
