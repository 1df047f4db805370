//! The demo: serves the example model with `modelprofile local`, asks it three questions, then changes its precision back
//! and forth while streams run, and ends with one line of figures.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use modelprofile_api::worker::{SwitchOutcome, WorkerState};
use modelprofile_e2e::client::Client;
use modelprofile_e2e::load::{Load, Seen, Shape};
use modelprofile_e2e::local::{Local, Ready};
use modelprofile_e2e::memory::{Peak, Watch};
use modelprofile_e2e::stats;
use serde_json::json;

/// Serve the example model and change its precision under load.
#[derive(Debug, Parser)]
struct Args {
    /// Manifest to serve; its first profile and its last are switched between.
    #[arg(short = 'f', long, default_value = "deploy/examples/smollm2.yaml")]
    file: PathBuf,
    /// Streams that run all the time.
    #[arg(long, default_value_t = 16)]
    streams: usize,
    /// Tokens of each stream; one that finishes is replaced by a new one.
    #[arg(long, default_value_t = 400)]
    max_tokens: u32,
    /// Round trips from quality to density and back.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Seconds that downloading and quantizing may take.
    #[arg(long, default_value_t = 600)]
    ready_seconds: u64,
}

/// Tokens that every stream must get between two switches: a switch that stops a stream is noticed, and every switch meets
/// streams in full run.
const TOKENS_BETWEEN_SWITCHES: u64 = 12;
const ADVANCE_LIMIT: Duration = Duration::from_secs(120);
/// For the streams that run at the end: each delivers all its tokens, or it has failed.
const FINISH_LIMIT: Duration = Duration::from_secs(180);
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// What a worker may hold beyond its budget: code, buffers of connections, the allocator's slack. Weights are mapped from
/// files, so all that is resident counts.
const BEYOND_BUDGET: u64 = 200_000_000;

const QUESTIONS: [&str; 3] = [
    "What is the capital of France?",
    "Give me one sentence about why the sky is blue.",
    "Write a two-line poem about rain.",
];

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Args::parse()).await {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::GapTooLong) => ExitCode::from(2),
        Ok(Verdict::Failed) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// How a run went.
enum Verdict {
    /// As it should.
    Good,
    /// Nothing failed, but a stream paused for too long. It can be the machine's doing, where others use its cores.
    GapTooLong,
    /// Something failed.
    Failed,
}

async fn run(args: &Args) -> anyhow::Result<Verdict> {
    let modelprofile = std::env::current_exe()?.with_file_name("modelprofile");
    println!("serving {} with `modelprofile local`", args.file.display());
    let mut local = Local::start(&modelprofile, &args.file)?;
    let figures = measure(args, &mut local).await;
    // After an error too: a local mode that is killed would leave its worker behind.
    let stopped = local.stop(STOP_LIMIT).await;
    let figures = figures?;
    stopped?;
    Ok(figures.print())
}

async fn measure(args: &Args, local: &mut Local) -> anyhow::Result<Figures> {
    let ready = local.ready(Duration::from_secs(args.ready_seconds)).await?;
    let client = Client::new(&ready.session.api_url, &ready.state.served_name)?;
    for question in QUESTIONS {
        println!("\n> {question}\n{}", client.chat(question, 80).await?);
    }
    switch_under_load(args, &ready, &client).await
}

/// Runs the load, switches, and collects what the streams saw.
async fn switch_under_load(args: &Args, ready: &Ready, client: &Client) -> anyhow::Result<Figures> {
    let [quality, .., density] = &ready.state.profiles[..] else {
        bail!("{} has fewer than two profiles, so there is nothing to switch between", args.file.display());
    };
    println!("\n{} streams, {} switches between {} and {}", args.streams, 2 * args.rounds, quality.name, density.name);
    let memory = Watch::start(ready.session.worker_pid);
    let preempted_before = client.counter("vllm:num_preemptions_total").await?;
    let load = Load::start(client, &Shape { streams: args.streams, max_tokens: args.max_tokens });
    let mut switched = 0;
    // A stream that fails stops advancing; the figures say so, so the error is not passed on here.
    let mut stalled = load.advance(TOKENS_BETWEEN_SWITCHES, ADVANCE_LIMIT).await.err();
    for target in [&density.name, &quality.name].into_iter().cycle().take(2 * args.rounds) {
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
        asked: 2 * args.rounds,
        restarted: restarted as u64,
        kv_tokens_quality: tokens(&quality.name)?,
        kv_tokens_density: tokens(&density.name)?,
        seen,
        stalled: stalled.is_some(),
        memory: memory.stop().await?,
        budget: state.memory.budget_bytes,
    })
}

fn kv_tokens(state: &WorkerState, name: &str) -> anyhow::Result<u64> {
    let profile = state.profiles.iter().find(|profile| profile.name == name);
    Ok(profile.with_context(|| format!("the worker lost its profile {name}"))?.kv_tokens)
}

/// What came out.
struct Figures {
    switches: usize,
    asked: usize,
    restarted: u64,
    kv_tokens_quality: u64,
    kv_tokens_density: u64,
    seen: Vec<Seen>,
    stalled: bool,
    memory: Peak,
    budget: u64,
}

impl Figures {
    /// Prints them, the line of figures last.
    fn print(&self) -> Verdict {
        let failures: Vec<&String> = self.seen.iter().filter_map(|stream| stream.failure.as_ref()).collect();
        for failure in &failures {
            println!("  failed: {failure}");
        }
        let streams: Vec<Vec<Duration>> = self.seen.iter().map(|stream| stats::gaps(&stream.tokens)).collect();
        let all: Vec<Duration> = streams.iter().flatten().copied().collect();
        let over_limit = streams.iter().map(|gaps| stats::worst_over_limit(gaps)).fold(0.0, f64::max);
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
        println!(
            "demo: {}",
            json!({
                "switches": self.switches,
                "failed": failures.len(),
                "restarted": self.restarted,
                "max_gap_ms": milliseconds(all.iter().max().copied()),
                "median_gap_ms": milliseconds(stats::median(&all)),
                "kv_tokens_quality": self.kv_tokens_quality,
                "kv_tokens_density": self.kv_tokens_density,
                "max_gap_over_limit": rounded(over_limit, 1000.0),
            })
        );
        let sound = self.switches == self.asked
            && failures.is_empty()
            && !self.stalled
            && self.restarted == 0
            && self.kv_tokens_density > self.kv_tokens_quality
            && self.memory.total <= self.budget + BEYOND_BUDGET;
        match (sound, over_limit <= 1.0) {
            (true, true) => Verdict::Good,
            (true, false) => Verdict::GapTooLong,
            (false, _) => Verdict::Failed,
        }
    }
}

/// Rounded to `1 / parts`, so that the line of figures stays short.
fn rounded(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}
