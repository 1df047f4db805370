//! The engine thread: takes commands, schedules, computes a step, samples, delivers. One loop, one owner of all state.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    },
    time::{Duration, Instant},
};

use modelprofile_kernels::Backend;
use rand::Rng;
use tokio::sync::oneshot;

use super::{
    MemorySnapshot, Observation, Observer, ProfileSnapshot, Snapshot, SwitchResult,
    active::Active,
    handle::{Command, Shared, Submission},
    layers::Moving,
    memory::MemoryPlan,
    pace::Pace,
    switch::PendingSwitch,
    tokens::{Sampled, Tokens},
};
use crate::{
    FinishReason, TokenEvent,
    artifact::Artifact,
    model::{Model, ProfileWeights, StepWeights},
    sched::{ScheduledStep, Scheduler},
};

/// How long a step waits for work while admissions are held by a switch.
const HELD_POLL: Duration = Duration::from_millis(2);

/// One rung of the ladder, loaded.
pub(super) struct Rung<B: Backend> {
    pub(super) name: Arc<str>,
    pub(super) artifact_key: String,
    pub(super) weight_bytes: u64,
    pub(super) blocks: usize,
    pub(super) weights: ProfileWeights<B>,
    pub(super) artifact: Artifact,
    /// It is no part of the ladder any more, and goes once another one computes.
    pub(super) leaves: bool,
}

/// All state of the engine thread.
pub(super) struct Core<B: Backend> {
    pub(super) backend: B,
    pub(super) model: Model<B>,
    pub(super) rungs: Vec<Rung<B>>,
    /// Whose steps they are; the less precise rung of two while a switch goes on layer by layer.
    pub(super) active: usize,
    /// Rungs whose memory is given back during the next step.
    pub(super) leaving: Vec<usize>,
    pub(super) kv: B::Kv,
    pub(super) scheduler: Scheduler,
    pub(super) pace: Pace,
    pub(super) memory: MemoryPlan,
    /// Most tokens of a request, for which every rung has room.
    pub(super) max_context_tokens: usize,
    pub(super) observer: Box<dyn Observer>,
    pub(super) commands: Receiver<Command>,
    pub(super) shared: Arc<Shared>,
    pub(super) eos_tokens: Vec<u32>,
    pub(super) pending: Option<PendingSwitch>,
    /// A switch that goes on layer by layer; `pending` waits for its end.
    pub(super) moving: Option<Moving>,
    pub(super) last_switch: Option<SwitchResult>,
    pub(super) state: State,
    /// Seeds of requests that name none.
    pub(super) entropy: rand::rngs::StdRng,
}

/// Requests and counters.
#[derive(Default)]
pub(super) struct State {
    requests: HashMap<u64, Active>,
    next_id: u64,
    generated_tokens: u64,
    preemptions: u64,
    drained: Vec<oneshot::Sender<()>>,
}

impl<B: Backend> Core<B> {
    /// Runs until the last handle is gone.
    pub(super) fn run(mut self) {
        while self.receive() {
            self.drop_cancelled();
            self.progress_switch();
            self.step();
            self.drop_left();
            self.finish_drain();
            self.publish();
        }
    }

    /// Takes waiting commands; sleeps when there is nothing to compute. False when the last handle is gone.
    fn receive(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.command(command),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        let switching = self.pending.is_some() || self.moving.is_some();
        if !self.state.requests.is_empty() || switching || !self.state.drained.is_empty() {
            return true;
        }
        self.shared.heartbeat.rest();
        match self.commands.recv() {
            Ok(command) => {
                self.shared.heartbeat.beat();
                self.command(command);
                true
            }
            Err(_) => false,
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => self.admit(*submission),
            Command::Switch(command) => {
                self.request_switch(command);
                // A step may take long: who asks for the state meanwhile sees that the switch is under way.
                self.publish();
            }
            Command::Ladder(command) => self.take_ladder(command),
            Command::Drain(done) => self.state.drained.push(done),
        }
    }

    fn admit(&mut self, submission: Submission) {
        let id = self.state.next_id;
        self.state.next_id += 1;
        let request = &submission.request;
        let scored = request.prompt_logprobs.is_some();
        let added = self.scheduler.add(id, request.prompt.clone(), request.max_tokens, scored);
        if let Err(error) = added {
            self.shared.queued.fetch_sub(1, Ordering::AcqRel);
            let finished =
                TokenEvent::Finished { reason: FinishReason::Error, cached_tokens: 0, error: Some(error.to_string()) };
            let _ = submission.events.try_send(finished);
            return;
        }
        self.state.requests.insert(id, Active::new(submission, self.entropy.next_u64()));
    }

    fn drop_cancelled(&mut self) {
        let gone: Vec<u64> =
            self.state.requests.iter().filter(|(_, r)| r.events.is_closed()).map(|(id, _)| *id).collect();
        for id in gone {
            self.end(id, "abort");
        }
    }

    /// Forgets a request: its blocks are free at once.
    fn end(&mut self, id: u64, reason: &'static str) {
        self.scheduler.remove(id);
        let Some(request) = self.state.requests.remove(&id) else { return };
        if !request.scheduled {
            self.shared.queued.fetch_sub(1, Ordering::AcqRel);
        }
        self.observer.observe(Observation::Finished {
            reason,
            prompt_tokens: request.prompt_tokens,
            generated_tokens: request.generated,
            seconds: request.submitted.elapsed().as_secs_f64(),
        });
    }

    fn finish(&mut self, id: u64, reason: FinishReason, error: Option<String>) {
        if let Some(request) = self.state.requests.get(&id) {
            let cached_tokens = request.cached_tokens;
            let _ = request.events.try_send(TokenEvent::Finished { reason, cached_tokens, error });
        }
        let label = match reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Error => "error",
        };
        self.end(id, label);
    }

    /// True while there is no request.
    pub(super) fn is_idle(&self) -> bool {
        self.state.requests.is_empty()
    }

    /// Ends all requests with an error.
    pub(super) fn fail_all(&mut self, error: &str) {
        let ids: Vec<u64> = self.state.requests.keys().copied().collect();
        self.fail(&ids, error);
    }

    fn fail(&mut self, ids: &[u64], error: &str) {
        for id in ids.iter().copied() {
            self.finish(id, FinishReason::Error, Some(error.to_owned()));
        }
    }

    /// One pass over the batch; returns at once when nothing can be scheduled.
    fn step(&mut self) {
        self.scheduler.limit_step(if self.scheduler.decoding() { self.pace.rows() } else { usize::MAX });
        let scheduled = self.scheduler.schedule(self.active as u8);
        self.count_scheduling(&scheduled);
        if scheduled.is_empty() {
            if !self.state.requests.is_empty() || self.moving.is_some() {
                // Held by a switch: wait for a command, for running requests to free blocks, or for copies.
                match self.commands.recv_timeout(HELD_POLL) {
                    Ok(command) => self.command(command),
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
                }
            }
            return;
        }
        let mut plan = scheduled.plan();
        let mut chosen = Tokens::new(&scheduled, &mut self.state.requests, &mut plan);
        let leaving = std::mem::take(&mut self.leaving);
        let weights = match &self.moving {
            Some(moving) => moving.weights(&self.rungs),
            None => StepWeights::from(&self.rungs[self.active].weights),
        };
        // A rung that was left and came back meanwhile stays.
        let leaving: Vec<_> =
            leaving.iter().filter(|i| **i != self.active).map(|index| &self.rungs[*index].weights).collect();
        let began = Instant::now();
        let heartbeat = &self.shared.heartbeat;
        let mut layer = |_: usize, _: &B, _: &B::Buffer| {
            heartbeat.beat();
            Ok(())
        };
        let (backend, kv) = (&mut self.backend, &mut self.kv);
        let computed = self.model.step_observed(backend, &weights, &leaving, kv, &plan, &mut chosen, &mut layer);
        let sampled = chosen.into_sampled();
        heartbeat.beat();
        if let Err(error) = computed {
            tracing::error!(%error, "a step failed; its requests are ended");
            let ids: Vec<u64> = scheduled.items().iter().map(|item| item.id).collect();
            self.fail(&ids, &error.to_string());
            return;
        }
        self.pace.record(plan.rows(), began.elapsed());
        let tokens: Vec<(u64, u32)> = sampled
            .iter()
            .filter_map(|s| match s {
                Sampled::Token { id, token, .. } => Some((*id, *token)),
                Sampled::Failed { .. } => None,
            })
            .collect();
        self.scheduler.commit(&scheduled, &tokens);
        self.deliver(sampled);
    }

    fn count_scheduling(&mut self, step: &ScheduledStep) {
        let now = Instant::now();
        for (id, cached_tokens) in step.admitted() {
            let Some(request) = self.state.requests.get_mut(&id) else { continue };
            if request.scheduled {
                continue;
            }
            request.scheduled = true;
            request.cached_tokens = cached_tokens;
            self.shared.queued.fetch_sub(1, Ordering::AcqRel);
            let queue_seconds = now.duration_since(request.submitted).as_secs_f64();
            self.observer.observe(Observation::Scheduled { queue_seconds });
            self.observer.observe(Observation::PrefixCache { queried: request.prompt_tokens, hit: cached_tokens });
        }
        let preemptions = self.scheduler.stats().preemptions;
        for _ in self.state.preemptions..preemptions {
            self.observer.observe(Observation::Preempted);
        }
        self.state.preemptions = preemptions;
        let prefilled = step.prefill_tokens();
        if prefilled > 0 {
            self.observer.observe(Observation::Prefilled { tokens: prefilled });
        }
    }

    /// Sends the sampled tokens and ends the requests that are done.
    fn deliver(&mut self, sampled: Vec<Sampled>) {
        let now = Instant::now();
        let profile = self.rungs[self.active].name.clone();
        let mut generated = 0;
        for sample in sampled {
            let (id, token, logprob) = match sample {
                Sampled::Token { id, token, logprob } => (id, token, logprob),
                Sampled::Failed { id, error } => {
                    self.finish(id, FinishReason::Error, Some(error));
                    continue;
                }
            };
            let Some(request) = self.state.requests.get_mut(&id) else { continue };
            request.send_prompt_scores();
            if request.max_tokens == 0 {
                self.finish(id, FinishReason::Length, None);
                continue;
            }
            let ends =
                request.stop_tokens.contains(&token) || (!request.ignore_eos && self.eos_tokens.contains(&token));
            if ends {
                self.finish(id, FinishReason::Stop, None);
                continue;
            }
            generated += 1;
            request.generated += 1;
            let observation = match request.last_token.replace(now) {
                None => Observation::FirstToken { seconds: now.duration_since(request.submitted).as_secs_f64() },
                Some(last) => Observation::InterToken { seconds: now.duration_since(last).as_secs_f64() },
            };
            let delivered = request.events.try_send(TokenEvent::Token { token, logprob, profile: profile.clone() });
            let full = request.generated >= request.max_tokens;
            self.observer.observe(observation);
            if delivered.is_err() {
                self.end(id, "abort");
            } else if full {
                self.finish(id, FinishReason::Length, None);
            }
        }
        self.state.generated_tokens += generated as u64;
        if generated > 0 {
            self.observer.observe(Observation::Generated { profile, tokens: generated });
        }
    }

    fn finish_drain(&mut self) {
        let switching = self.pending.is_some() || self.moving.is_some();
        if self.state.requests.is_empty() && !self.state.drained.is_empty() && !switching {
            for done in self.state.drained.drain(..) {
                let _ = done.send(());
            }
        }
    }

    /// Replaces the shared snapshot.
    pub(super) fn publish(&self) {
        let stats = self.scheduler.stats();
        let waiting_since = self.state.requests.values().filter(|r| !r.scheduled).map(|r| r.submitted).min();
        let rung = &self.rungs[self.active];
        let snapshot = Snapshot {
            active: rung.name.clone(),
            target: self.target().map(|to| self.rungs[to].name.clone()),
            profiles: self
                .rungs
                .iter()
                .map(|r| ProfileSnapshot {
                    name: r.name.clone(),
                    artifact_key: r.artifact_key.clone(),
                    weight_bytes: r.weight_bytes,
                    kv_tokens: (r.blocks * modelprofile_kernels::BLOCK_TOKENS) as u64,
                })
                .collect(),
            running: stats.running,
            waiting: self.shared.queued.load(Ordering::Acquire).max(stats.waiting),
            oldest_waiting: waiting_since,
            blocks_total: stats.blocks_total,
            blocks_used: stats.blocks_used,
            blocks_cached: stats.blocks_cached,
            blocks_waiting: stats.blocks_waiting,
            memory: MemorySnapshot {
                budget: self.memory.budget,
                weights: self.resident_bytes(),
                kv: stats.blocks_total as u64 * self.memory.block_bytes,
                workspace: self.memory.workspace,
            },
            generated_tokens: self.state.generated_tokens,
            last_switch: self.last_switch.clone(),
            last_progress: self.shared.heartbeat.last(),
            draining: self.shared.draining.load(Ordering::Acquire),
        };
        *self.shared.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }
}
