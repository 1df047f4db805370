//! A fleet of workers under a trace: a queue of events, and the real decision every few seconds.
//!
//! Nothing is computed between events: a worker without requests costs nothing, and one that only decodes is looked at
//! when a request arrives, one ends, or the policy wants to know. Results are counted in histograms and in a timeline of
//! fixed length, so memory does not grow with the trace.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, VecDeque};

use jiff::{SignedDuration, Timestamp};
use modelprofile_api::{ModelProfileSpec, Strategy};
use modelprofile_policy::{Action, History, Kv, Observation, Reading, Rules, Rung, Sample, decide};

use super::histogram::Histogram;
use super::replica::{Finished, Replica, RungModel, Sequence, blocks};
use crate::traces::Arrival;

/// Columns of the timeline.
const COLUMNS: usize = 600;
/// Changes that are kept with their reason.
const MAX_CHANGES: usize = 100;

/// One simulation.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Name for reports.
    pub name: String,
    /// Manifest that the decision follows; its switching strategy is how switches are carried out.
    pub spec: ModelProfileSpec,
    /// The ladder.
    pub rungs: Vec<RungModel>,
    /// Memory for weights and KV cache of a worker, in bytes.
    pub memory_bytes: u64,
    /// Tokens of a step from which on the densest rung is slower than the first; `None` if it never is.
    pub compute_bound_tokens: Option<f64>,
    /// Rung at the start.
    pub rung: usize,
    /// Workers at the start.
    pub replicas: u32,
    /// Time until a new worker is ready on each rung, in seconds.
    pub load_seconds: Vec<f64>,
    /// Time between two decisions, in seconds.
    pub interval: f64,
    /// Civil time of the trace's start, for schedules.
    pub start: Timestamp,
    /// Longest time to the first token that counts as served well, in seconds.
    pub slo_seconds: f64,
    /// Seed of the routing.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Name of the scenario.
    pub name: String,
    /// Requests that got all their tokens.
    pub completed: u64,
    /// Requests that no worker could ever hold.
    pub rejected: u64,
    /// Requests whose first token came in time.
    pub in_time: u64,
    /// Times to the first token.
    pub time_to_first_token: Histogram,
    /// Times from arrival to the last token.
    pub end_to_end: Histogram,
    /// Accelerator time of all workers from start to end, loading included, in seconds.
    pub gpu_seconds: f64,
    /// Tokens generated, by rung.
    pub tokens: [u64; 4],
    /// Changes of the profile.
    pub switches: u64,
    /// Changes of the number of workers.
    pub scalings: u64,
    /// Sequences that gave their blocks back and were computed again.
    pub preemptions: u64,
    /// Most blocks that any worker used, as a share of what it had.
    pub worst_use: f64,
    /// From the start to the last token, in seconds.
    pub seconds: f64,
    /// Time covered by one column of the timeline, in seconds.
    pub column_seconds: f64,
    /// The first changes of profile or number of workers: when, in seconds, and why.
    pub changes: Vec<(f64, String)>,
    /// What was seen over time.
    pub timeline: Vec<Column>,
}

impl Outcome {
    /// Share of the requests whose first token came in time.
    pub fn attainment(&self) -> f64 {
        self.in_time as f64 / (self.completed + self.rejected).max(1) as f64
    }

    /// Share of the tokens that the first rung generated.
    pub fn quality_share(&self) -> f64 {
        self.tokens[0] as f64 / self.tokens.iter().sum::<u64>().max(1) as f64
    }
}

/// The latest values that were seen in one column of the timeline.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Column {
    /// Requests that arrived.
    pub arrivals: u32,
    /// Highest load over target.
    pub pressure: f64,
    /// Active rung; `None` if the policy was not asked in this column.
    pub rung: Option<usize>,
    /// Workers that exist.
    pub workers: u32,
    /// Highest time to the first token, in seconds.
    pub ttft: f64,
}

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

#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    Step { worker: usize, epoch: u64 },
    Loaded { worker: usize },
    Decide,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Event {
    at: f64,
    order: u64,
    what: What,
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.total_cmp(&other.at).then(self.order.cmp(&other.order))
    }
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
        let known = |model: &RungModel| Rung {
            gate_failed: false,
            kv_tokens: None,
            weight_bytes: Some(model.roofline.weight_bytes()),
        };
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

    fn add(&mut self, phase: Phase, rung: usize, surge: bool) -> usize {
        let replica = Replica::new(rung, &self.scenario.rungs);
        let worker = Worker { replica, phase, born: self.now, surge, epoch: 0 };
        // The place of a worker that is gone stays empty, so that its last events mean nobody else.
        self.workers.push(Some(worker));
        self.workers.len() - 1
    }

    fn load(&mut self, place: usize, rung: usize) {
        if let Some(worker) = &mut self.workers[place] {
            worker.phase = Phase::Starting;
        }
        self.push(self.now + self.scenario.load_seconds[rung], What::Loaded { worker: place });
    }

    fn loaded(&mut self, place: usize) {
        let rung = self.target.unwrap_or(self.rung);
        let Some(worker) = self.workers[place].as_mut().filter(|worker| worker.phase == Phase::Starting) else {
            return;
        };
        worker.phase = Phase::Ready;
        if worker.replica.rung() != rung {
            worker.replica.restart(rung, &self.scenario.rungs);
        }
        self.settle_switch();
        for sequence in std::mem::take(&mut self.orphans) {
            self.route(sequence);
        }
    }

    /// Ends a change of profile whose last worker has made it.
    fn settle_switch(&mut self) {
        let Some(target) = self.target else { return };
        let workers = || self.workers.iter().flatten();
        if workers().any(|worker| worker.surge) {
            if workers().any(|worker| worker.surge && worker.phase == Phase::Starting) {
                return;
            }
            let old: Vec<usize> = (0..self.workers.len())
                .filter(|place| self.workers[*place].as_ref().is_some_and(|worker| !worker.surge))
                .collect();
            for worker in self.workers.iter_mut().flatten() {
                worker.surge = false;
            }
            self.rung = target;
            self.target = None;
            for place in old {
                self.remove(place);
            }
            return;
        }
        let made = |worker: &Worker| match worker.phase {
            Phase::Ready => worker.replica.rung() == target && !worker.replica.changes(),
            Phase::Draining => true,
            Phase::Starting | Phase::Restarting => false,
        };
        if workers().all(made) {
            self.rung = target;
            self.target = None;
        }
    }

    /// Takes a worker out of traffic; it ends what it has begun.
    fn remove(&mut self, place: usize) {
        let Some(worker) = &mut self.workers[place] else { return };
        if worker.phase == Phase::Starting {
            if let Some(worker) = self.workers[place].take() {
                self.count(&worker);
            }
            return;
        }
        worker.phase = Phase::Draining;
        self.hand_over(place);
    }

    fn hand_over(&mut self, place: usize) {
        let Some(worker) = &mut self.workers[place] else { return };
        let waiting: Vec<_> = worker.replica.give_back().collect();
        for sequence in waiting {
            self.route(sequence);
        }
        self.on(place, |_, _, _, _| ());
    }

    fn decide(&mut self) {
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

    fn switch(&mut self, to: usize) {
        if self.target.is_some() || to == self.rung {
            return;
        }
        self.outcome.switches += 1;
        self.target = Some(to);
        let places: Vec<usize> = self.ready().collect();
        match self.scenario.spec.switching.strategy {
            Strategy::InPlace => {
                for place in places {
                    self.on(place, |replica, now, rungs, done| replica.change_to(to, now, rungs, done));
                }
            }
            Strategy::Surge => {
                for _ in 0..self.replicas {
                    let place = self.add(Phase::Starting, to, true);
                    self.load(place, to);
                }
            }
            Strategy::Recreate => {
                // All at once, or the last to stop would get everybody's requests.
                for place in &places {
                    if let Some(worker) = &mut self.workers[*place] {
                        worker.phase = Phase::Restarting;
                    }
                }
                for place in places {
                    self.hand_over(place);
                }
            }
        }
    }

    fn scale(&mut self, replicas: u32) {
        self.outcome.scalings += 1;
        self.replicas = replicas;
        let exist: Vec<usize> = (0..self.workers.len())
            .filter(|place| self.workers[*place].as_ref().is_some_and(|w| w.phase != Phase::Draining && !w.surge))
            .collect();
        for _ in exist.len()..replicas as usize {
            let place = self.add(Phase::Starting, self.rung, false);
            self.load(place, self.rung);
        }
        if exist.len() > replicas as usize {
            let mut by_load = exist.clone();
            by_load.sort_by_key(|place| {
                self.workers[*place]
                    .as_ref()
                    .map_or(0, |w| if w.phase == Phase::Starting { 0 } else { 1 + w.replica.outstanding() })
            });
            for place in by_load.into_iter().take(exist.len() - replicas as usize) {
                self.remove(place);
            }
        }
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
