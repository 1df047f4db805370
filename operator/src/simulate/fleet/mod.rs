//! A fleet of workers under a trace: a queue of events, and the real decision every few seconds.
//!
//! Nothing is computed between events: a worker without requests costs nothing, and one that only decodes is looked at
//! when a request arrives, one ends, or the policy wants to know. Results are counted in histograms and in a timeline of
//! fixed length, so memory does not grow with the trace.
//!
//! | module | what it holds |
//! |---|---|
//! | `outcome` | [`Scenario`] and [`Outcome`]: what a simulation takes, and what comes of it |
//! | `event` | the queue's events |
//! | `control` | the decision: what it sees, and what is recorded of it |
//! | `rollout` | how workers come, change their profile and go, by strategy |

mod control;
mod event;
mod outcome;
mod rollout;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use jiff::SignedDuration;
use modelprofile_policy::{History, Observation, Rules, Rung};

use self::event::{Event, What};
pub use self::outcome::{Column, Outcome, Scenario};
use super::replica::{Finished, Replica, RungModel, Sequence, blocks};
use crate::traces::Arrival;

/// Columns of the timeline.
const COLUMNS: usize = 600;
/// Changes that are kept with their reason.
const MAX_CHANGES: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// Loads weights.
    Starting,
    Ready,
    /// Ends what it has; then it goes.
    Draining,
    /// Ends what it has; then it loads the target rung.
    Restarting,
}

#[derive(Clone, Debug)]
struct Worker {
    replica: Replica,
    phase: Phase,
    born: f64,
    /// Belongs to the set that replaces the others.
    surge: bool,
    epoch: u64,
}

/// Runs a scenario over `requests`, to the last token.
///
/// # Errors
/// The manifest's rules can not be followed (they were not validated).
pub fn simulate(scenario: &Scenario, requests: &[Arrival]) -> anyhow::Result<Outcome> {
    let rules = Rules::new(&scenario.spec, SignedDuration::from_secs_f64(scenario.interval))?;
    let mut fleet = Fleet::new(scenario, rules, requests.last().map_or(0.0, |request| request.at));
    fleet.run(requests);
    Ok(fleet.finish())
}

struct Fleet<'a> {
    scenario: &'a Scenario,
    rules: Rules,
    history: History,
    observation: Observation,
    workers: Vec<Option<Worker>>,
    events: BinaryHeap<Reverse<Event>>,
    order: u64,
    now: f64,
    random: u64,
    rung: usize,
    target: Option<usize>,
    replicas: u32,
    /// Requests that arrived while no worker was ready.
    orphans: VecDeque<Sequence>,
    outstanding: u64,
    done: Vec<Finished>,
    smallest: u32,
    outcome: Outcome,
}

impl<'a> Fleet<'a> {
    fn new(scenario: &'a Scenario, rules: Rules, last_arrival: f64) -> Self {
        let rungs = &scenario.rungs;
        // Nothing measures a simulated model, and its gate is open.
        let known = |model: &RungModel| Rung { weight_bytes: Some(model.roofline.weight_bytes()), ..Rung::default() };
        let observation = Observation {
            rungs: rungs.iter().map(known).collect(),
            memory_bytes: Some(scenario.memory_bytes),
            compute_bound_tokens: scenario.compute_bound_tokens,
            ..Observation::default()
        };
        let outcome = Outcome {
            name: scenario.name.clone(),
            // A tenth more than the trace, for what is still computed when its last request has arrived.
            column_seconds: (last_arrival * 1.1 / COLUMNS as f64).max(1.0),
            timeline: vec![Column::default(); COLUMNS],
            ..Outcome::default()
        };
        let mut fleet = Self {
            scenario,
            rules,
            history: History::default(),
            observation,
            workers: Vec::new(),
            events: BinaryHeap::new(),
            order: 0,
            now: 0.0,
            random: scenario.seed,
            rung: scenario.rung,
            target: None,
            replicas: scenario.replicas,
            orphans: VecDeque::new(),
            outstanding: 0,
            done: Vec::new(),
            smallest: rungs.iter().map(|rung| rung.blocks).min().unwrap_or(0),
            outcome,
        };
        for _ in 0..scenario.replicas {
            fleet.add(Phase::Ready, scenario.rung, false);
        }
        fleet.push(scenario.interval, What::Decide);
        fleet
    }

    fn push(&mut self, at: f64, what: What) {
        self.order += 1;
        self.events.push(Reverse(Event { at, order: self.order, what }));
    }

    fn run(&mut self, requests: &[Arrival]) {
        let mut next = requests.iter().peekable();
        while next.peek().is_some() || self.outstanding > 0 {
            let event_at = self.events.peek().map_or(f64::INFINITY, |Reverse(event)| event.at);
            if let Some(request) = next.next_if(|request| request.at <= event_at) {
                self.now = request.at;
                self.arrive(request);
                continue;
            }
            let Some(Reverse(event)) = self.events.pop() else { break };
            self.now = event.at;
            match event.what {
                What::Step { worker, epoch } => {
                    if self.workers[worker].as_ref().is_some_and(|w| w.epoch == epoch) {
                        self.on(worker, |_, _, _, _| ());
                    }
                }
                What::Loaded { worker } => self.loaded(worker),
                What::Decide => {
                    self.decide();
                    self.push(self.now + self.scenario.interval, What::Decide);
                }
            }
        }
    }

    fn finish(mut self) -> Outcome {
        for worker in std::mem::take(&mut self.workers).into_iter().flatten() {
            self.count(&worker);
        }
        self.outcome.seconds = self.now;
        self.outcome
    }

    fn column(&mut self) -> &mut Column {
        let place = (self.now / self.outcome.column_seconds) as usize;
        &mut self.outcome.timeline[place.min(COLUMNS - 1)]
    }

    fn arrive(&mut self, request: &Arrival) {
        self.column().arrivals += 1;
        if blocks(request.prompt_tokens.max(1).saturating_add(request.output_tokens)) >= self.smallest {
            self.outcome.rejected += 1;
            return;
        }
        self.outstanding += 1;
        self.route(Sequence::new(request.at, request.prompt_tokens, request.output_tokens));
    }

    /// To the less busy of two workers chosen by chance, as a good load balancer does without knowing all of them.
    fn route(&mut self, sequence: Sequence) {
        let ready: Vec<usize> = self.ready().collect();
        if ready.is_empty() {
            self.orphans.push_back(sequence);
            return;
        }
        let (one, other) = (ready[self.chance(ready.len())], ready[self.chance(ready.len())]);
        let load = |place: usize| self.workers[place].as_ref().map_or(0, |worker| worker.replica.outstanding());
        let chosen = if load(other) < load(one) { other } else { one };
        self.on(chosen, |replica, now, rungs, done| replica.submit(now, sequence, rungs, done));
    }

    fn ready(&self) -> impl Iterator<Item = usize> + '_ {
        let serves = |worker: &Worker| worker.phase == Phase::Ready && !worker.surge;
        (0..self.workers.len()).filter(move |place| self.workers[*place].as_ref().is_some_and(serves))
    }

    /// SplitMix64: the same on every machine and in every version.
    fn chance(&mut self, below: usize) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % below as u64) as usize
    }

    /// Brings a worker up to now, does something to it, and notes when to look at it again.
    fn on(&mut self, place: usize, act: impl FnOnce(&mut Replica, f64, &[RungModel], &mut Vec<Finished>)) {
        let Some(worker) = &mut self.workers[place] else { return };
        let rungs = &self.scenario.rungs;
        worker.replica.advance(self.now, rungs, &mut self.done);
        act(&mut worker.replica, self.now, rungs, &mut self.done);
        worker.replica.advance(self.now, rungs, &mut self.done);
        worker.epoch += 1;
        let epoch = worker.epoch;
        let (next, empty, phase) = (worker.replica.next_event(), worker.replica.outstanding() == 0, worker.phase);
        if let Some(at) = next {
            self.push(at.max(self.now), What::Step { worker: place, epoch });
        }
        self.collect();
        if empty && phase == Phase::Draining {
            if let Some(worker) = self.workers[place].take() {
                self.count(&worker);
            }
        } else if empty && phase == Phase::Restarting {
            self.load(place, self.target.unwrap_or(self.rung));
        }
    }

    fn collect(&mut self) {
        for finished in std::mem::take(&mut self.done) {
            self.outstanding -= 1;
            let outcome = &mut self.outcome;
            outcome.completed += 1;
            outcome.in_time += u64::from(finished.time_to_first_token <= self.scenario.slo_seconds);
            outcome.time_to_first_token.add(finished.time_to_first_token);
            outcome.end_to_end.add(finished.end_to_end);
            let column = self.column();
            column.ttft = column.ttft.max(finished.time_to_first_token);
        }
    }

    fn count(&mut self, worker: &Worker) {
        let outcome = &mut self.outcome;
        let rung = worker.replica.rung();
        let accelerators = f64::from(self.scenario.rungs[rung].roofline.accelerators());
        outcome.gpu_seconds += (self.now - worker.born) * accelerators;
        for (sum, tokens) in outcome.tokens.iter_mut().zip(worker.replica.tokens) {
            *sum += tokens;
        }
        outcome.preemptions += worker.replica.preemptions;
        outcome.worst_use = outcome.worst_use.max(worker.replica.worst_use);
    }
}
