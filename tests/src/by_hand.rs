//! Switching back and forth by hand while streams run.

use std::time::Duration;

use anyhow::{Context, bail};
use modelprofile_api::worker::{SwitchOutcome, WorkerState};
use serde_json::{Map, Value, json};

use crate::client::Client;
use crate::load::{Load, Seen, Shape};
use crate::local::Ready;
use crate::memory::{Peak, Watch};
use crate::stats;

/// Tokens that every stream must get between two switches: a switch that stops a stream is noticed, and every switch meets
/// streams in full run.
const TOKENS_BETWEEN_SWITCHES: u64 = 12;
const ADVANCE_LIMIT: Duration = Duration::from_secs(120);
/// For the streams that run at the end: each delivers all its tokens, or it has failed.
const FINISH_LIMIT: Duration = Duration::from_secs(180);

/// What a worker may hold beyond its budget: code, buffers of connections, the allocator's slack. Weights are mapped from
/// files, so all that is resident counts.
const BEYOND_BUDGET: u64 = 200_000_000;

/// Runs the load, switches from the first profile to the last and back `rounds` times, and collects what the streams saw.
///
/// # Errors
/// The model has fewer than two profiles, the worker stopped answering, or a switch did not complete. Streams that fail are
/// no errors: they are counted.
pub async fn switch_under_load(
    ready: &Ready,
    client: &Client,
    shape: &Shape,
    rounds: usize,
) -> anyhow::Result<Figures> {
    let [quality, .., density] = &ready.state.profiles[..] else {
        bail!("the manifest has fewer than two profiles, so there is nothing to switch between");
    };
    println!("\n{} streams, {} switches between {} and {}", shape.streams, 2 * rounds, quality.name, density.name);
    let memory = Watch::start(ready.session.worker_pid);
    let preempted_before = client.counter("vllm:num_preemptions_total").await?;
    let load = Load::start(client, shape);
    let mut switched = 0;
    // A stream that fails stops advancing; the figures say so, so the error is not passed on here.
    let mut stalled = load.advance(TOKENS_BETWEEN_SWITCHES, ADVANCE_LIMIT).await.err();
    for target in [&density.name, &quality.name].into_iter().cycle().take(2 * rounds) {
        if stalled.is_some() {
            break;
        }
        let report = ready.admin.switch(target).await?;
        println!(
            "  {} -> {}: {} ms, paused {:.1} ms, {} preempted",
            report.from, report.to, report.duration_millis, report.pause_millis, report.preempted
        );
        if report.outcome != SwitchOutcome::Completed {
            bail!("the switch to {target} did not complete: {}", report.message);
        }
        switched += 1;
        stalled = load.advance(TOKENS_BETWEEN_SWITCHES, ADVANCE_LIMIT).await.err();
    }
    if let Some(error) = &stalled {
        println!("  stopped early: {error:#}");
    }
    let seen = load.finish(FINISH_LIMIT).await;
    let restarted = client.counter("vllm:num_preemptions_total").await? - preempted_before;
    let state = ready.admin.state().await?;
    let tokens = |name: &str| kv_tokens(&state, name);
    Ok(Figures {
        switches: switched,
        asked: 2 * rounds,
        restarted: restarted as u64,
        kv_tokens_quality: tokens(&quality.name)?,
        kv_tokens_density: tokens(&density.name)?,
        seen,
        stalled: stalled.is_some(),
        memory: memory.stop().await?,
        budget: state.memory.budget_bytes,
        state,
    })
}

fn kv_tokens(state: &WorkerState, name: &str) -> anyhow::Result<u64> {
    let profile = state.profiles.iter().find(|profile| profile.name == name);
    Ok(profile.with_context(|| format!("the worker lost its profile {name}"))?.kv_tokens)
}

/// What came out.
#[derive(Debug)]
pub struct Figures {
    switches: usize,
    asked: usize,
    restarted: u64,
    kv_tokens_quality: u64,
    kv_tokens_density: u64,
    seen: Vec<Seen>,
    stalled: bool,
    memory: Peak,
    budget: u64,
    /// The worker at the end.
    pub state: WorkerState,
}

/// How a run went, from good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should.
    Good,
    /// Nothing failed, but a stream paused for too long, or what was to be a peak was none. It can be the machine's doing,
    /// where others use its cores.
    Unsteady,
    /// Something failed.
    Failed,
}

impl Figures {
    /// The streams that failed, and why.
    fn failures(&self) -> Vec<&String> {
        self.seen.iter().filter_map(|stream| stream.failure.as_ref()).collect()
    }

    fn gaps(&self) -> Vec<Vec<Duration>> {
        self.seen.iter().map(|stream| stats::gaps(&stream.tokens)).collect()
    }

    fn worst_over_limit(&self) -> f64 {
        self.gaps().iter().map(|gaps| stats::worst_over_limit(gaps)).fold(0.0, f64::max)
    }

    /// Prints what is for a person, and gives the figures.
    pub fn print(&self) -> Map<String, Value> {
        let failures = self.failures();
        for failure in &failures {
            println!("  failed: {failure}");
        }
        let all: Vec<Duration> = self.gaps().into_iter().flatten().collect();
        let tokens: usize = self.seen.iter().map(|stream| stream.tokens.len()).sum();
        println!("  {} streams, {tokens} tokens", self.seen.len());
        let mb = |bytes: u64| bytes as f64 / 1e6;
        println!(
            "memory: at most {:.0} MB resident, {:.0} MB without file pages; budget {:.0} MB",
            mb(self.memory.total),
            mb(self.memory.owned),
            mb(self.budget)
        );
        let milliseconds = |gap: Option<Duration>| rounded(gap.unwrap_or_default().as_secs_f64() * 1e3, 10.0);
        let figures = json!({
            "switches": self.switches,
            "failed": failures.len(),
            "restarted": self.restarted,
            "max_gap_ms": milliseconds(all.iter().max().copied()),
            "median_gap_ms": milliseconds(stats::median(&all)),
            "kv_tokens_quality": self.kv_tokens_quality,
            "kv_tokens_density": self.kv_tokens_density,
            "max_gap_over_limit": rounded(self.worst_over_limit(), 1000.0),
        });
        if let Value::Object(figures) = figures { figures } else { Map::new() }
    }

    /// Whether all went as it should.
    pub fn verdict(&self) -> Verdict {
        let sound = self.switches == self.asked
            && self.failures().is_empty()
            && !self.stalled
            && self.restarted == 0
            && self.kv_tokens_density > self.kv_tokens_quality
            && self.memory.total <= self.budget + BEYOND_BUDGET;
        match (sound, self.worst_over_limit() <= 1.0) {
            (true, true) => Verdict::Good,
            (true, false) => Verdict::Unsteady,
            (false, _) => Verdict::Failed,
        }
    }
}

/// Rounded to `1 / parts`, so that the line of figures stays short.
pub fn rounded(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}
