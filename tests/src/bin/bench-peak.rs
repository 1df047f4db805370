//! `make bench-peak`: the time to the first token in a peak, with load deciding and pinned to the first profile, at equal
//! memory, in interleaved pairs.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use modelprofile_e2e::by_hand::rounded;
use modelprofile_e2e::local::Local;
use modelprofile_e2e::peak::manifest::{Mode, variant};
use modelprofile_e2e::peak::run::Run;
use modelprofile_e2e::peak::{Scenario, trace};
use serde_json::{Value, json};

/// Compare a peak with and without switching.
#[derive(Debug, Parser)]
struct Args {
    /// Manifest to serve.
    #[arg(short = 'f', long, default_value = "deploy/examples/smollm2.yaml")]
    file: PathBuf,
    /// Trace that the peak is made of.
    #[arg(long, value_name = "FILE", default_value = "../shared/traces/azure-llm-2023-conversation.csv")]
    trace: PathBuf,
    /// Pairs of runs.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// Seconds of quiet before the burst.
    #[arg(long, default_value_t = 8.0)]
    lead: f64,
    /// Requests of the burst, at 1.4 times the rate that the first profile serves.
    #[arg(long, default_value_t = 40)]
    requests: usize,
    /// Seconds of quiet after it.
    #[arg(long, default_value_t = 20.0)]
    tail: f64,
    /// Folder of the pictures and of the manifests that were served.
    #[arg(long, value_name = "DIR", default_value = "target/peak")]
    out: PathBuf,
}

/// Highest ratio of the times to the first token that counts as worth a switch.
const RATIO_LIMIT: f64 = 0.67;
/// Passes of local mode and looks at the metrics between a change of the load and what is done about it, in seconds.
const REACTION: f64 = 3.0;
const READY_LIMIT: Duration = Duration::from_secs(600);
const STOP_LIMIT: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Args::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> anyhow::Result<bool> {
    if !args.trace.exists() {
        bail!(
            "{} is not there; name a trace with --trace (the Azure Public Dataset has the conversation trace of 2023), as in `make bench-peak BENCH=\"--trace FILE\"`",
            args.trace.display()
        );
    }
    let source = trace::Source::open(Some(&args.trace))?;
    let shape = trace::Shape { lead: args.lead, requests: args.requests, longest: None, tail: args.tail, alone: None };
    let modelprofile = std::env::current_exe()?.with_file_name("modelprofile");
    let manifest = variant(&args.file, &args.out, "whole.yaml", Mode::ByHand, None)?;
    let mut local = Local::start(&modelprofile, &manifest)?;
    let ready = local.ready(READY_LIMIT).await;
    let stopped = local.stop(STOP_LIMIT).await;
    let state = ready?.state;
    stopped?;
    let scenario = Scenario::prepare(&modelprofile, &args.file, &args.out, &source, shape, &state).await?;
    let mut pairs = Vec::new();
    for number in 1..=args.pairs {
        println!("\npair {number} of {}", args.pairs);
        // The order alternates, so that a machine that gets slower or faster favours neither.
        let pair = if number % 2 == 1 {
            let pinned = scenario.pinned().await?;
            Pair { switching: scenario.switching().await?, pinned }
        } else {
            Pair { switching: scenario.switching().await?, pinned: scenario.pinned().await? }
        };
        let picture = args.out.join(format!("timeline-{number}.svg"));
        scenario.draw(&pair.switching, &pair.pinned, &picture)?;
        println!("  ratio {:.3}; picture: {}", pair.ratio()?, picture.display());
        pairs.push(pair);
    }
    report(&scenario, &pairs)
}

/// The same trace twice.
struct Pair {
    switching: Run,
    pinned: Run,
}

impl Pair {
    /// p95 time to the first token, switching over pinned.
    fn ratio(&self) -> anyhow::Result<f64> {
        let p95 = |run: &Run| run.p95_ttft_ms().context("no request was answered");
        Ok(p95(&self.switching)? / p95(&self.pinned)?)
    }

    fn failed(&self) -> usize {
        self.switching.outcome.summary.failed + self.pinned.outcome.summary.failed
    }
}

/// Prints the line of figures; says whether they are as they should be.
fn report(scenario: &Scenario, pairs: &[Pair]) -> anyhow::Result<bool> {
    let mut ratios = pairs.iter().map(Pair::ratio).collect::<anyhow::Result<Vec<f64>>>()?;
    let in_order: Vec<f64> = ratios.iter().map(|ratio| rounded(*ratio, 1000.0)).collect();
    ratios.sort_by(f64::total_cmp);
    let median = f64::midpoint(ratios[(ratios.len() - 1) / 2], ratios[ratios.len() / 2]);
    let returned: Vec<Option<f64>> = pairs.iter().map(|pair| scenario.returned_after(&pair.switching)).collect();
    let failed: usize = pairs.iter().map(Pair::failed).sum();
    let limit = scenario.window_seconds() + REACTION;
    let back = returned.iter().all(|after| after.is_some_and(|after| after <= limit));
    let unexplained: Vec<String> = pairs.iter().flat_map(|pair| scenario.unexplained(&pair.switching)).collect();
    for sentence in &unexplained {
        println!("  {sentence}");
    }
    let p95 = |run: &Run| run.p95_ttft_ms().map(|p95| rounded(p95, 1.0));
    let of = |value: &dyn Fn(&Pair) -> Value| pairs.iter().map(value).collect::<Vec<Value>>();
    println!(
        "peak: {}",
        json!({
            "requests": scenario.trace.arrivals.len(),
            "clipped": scenario.clipped,
            "p95_ttft_ms_switching": of(&|pair| json!(p95(&pair.switching))),
            "p95_ttft_ms_pinned": of(&|pair| json!(p95(&pair.pinned))),
            "ratios": in_order,
            "median_ratio": rounded(median, 1000.0),
            "switches": of(&|pair| json!(pair.switching.switches.len())),
            "returned_after_s": returned.iter().map(|after| after.map(|after| rounded(after, 10.0))).collect::<Vec<_>>(),
            "to_quality_window_s": scenario.window_seconds(),
            "unexplained_switches": unexplained.len(),
            "failed": failed,
        })
    );
    Ok(median <= RATIO_LIMIT && back && failed == 0 && unexplained.is_empty())
}
