//! The demo: serves the example model with `modelprofile local`, asks it three questions, changes its precision back and
//! forth by hand while streams run, then leaves it to a peak of requests, and ends with one line of figures.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use modelprofile_e2e::by_hand::{self, Figures, Verdict, rounded};
use modelprofile_e2e::client::Client;
use modelprofile_e2e::load::Shape;
use modelprofile_e2e::local::Local;
use modelprofile_e2e::peak::manifest::{Mode, variant};
use modelprofile_e2e::peak::run::Run;
use modelprofile_e2e::peak::{Scenario, trace};
use serde_json::{Map, Value, json};

/// Serve the example model, change its precision under load by hand, then let load decide.
#[derive(Debug, Parser)]
struct Args {
    /// Manifest to serve; its first profile and its last are switched between.
    #[arg(short = 'f', long, default_value = "deploy/examples/smollm2.yaml")]
    file: PathBuf,
    /// Streams that run all the time while it is switched by hand.
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
    /// Trace that the peak is made of [default: one with the Azure conversation trace's mean lengths is made up].
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Folder of the pictures and of the manifests that were served.
    #[arg(long, value_name = "DIR", default_value = "target/demo")]
    out: PathBuf,
}

const SHAPE: trace::Shape = trace::Shape { lead: 8.0, requests: 32, longest: Some(90.0), tail: 25.0, alone: Some(2.0) };
const STOP_LIMIT: Duration = Duration::from_secs(60);

const QUESTIONS: [&str; 3] = [
    "What is the capital of France?",
    "Give me one sentence about why the sky is blue.",
    "Write a two-line poem about rain.",
];

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Args::parse()).await {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::Unsteady) => ExitCode::from(2),
        Ok(Verdict::Failed) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> anyhow::Result<Verdict> {
    // Before anything long: a trace that is none is known at once.
    let source = trace::Source::open(args.trace.as_deref())?;
    let modelprofile = std::env::current_exe()?.with_file_name("modelprofile");
    let by_hand = serve_and_switch(args, &modelprofile).await?;
    let mut figures = by_hand.print();
    let scenario = Scenario::prepare(&modelprofile, &args.file, &args.out, &source, SHAPE, &by_hand.state).await?;
    let pinned = scenario.pinned().await?;
    let switching = scenario.switching().await?;
    let picture = args.out.join("timeline.svg");
    scenario.draw(&switching, &pinned, &picture)?;
    println!("\nthe peak as a picture: {}", picture.display());
    let peak = peak_verdict(&scenario, &switching, &pinned);
    add_peak(&mut figures, &scenario, &switching, &pinned);
    println!("demo: {}", Value::Object(figures));
    Ok(peak.max(by_hand.verdict()))
}

/// The questions, and the switches by hand.
async fn serve_and_switch(args: &Args, modelprofile: &Path) -> anyhow::Result<Figures> {
    // Load must not switch in between.
    let manifest = variant(&args.file, &args.out, "by-hand.yaml", Mode::ByHand, None)?;
    println!("serving {} with `modelprofile local`", args.file.display());
    let mut local = Local::start(modelprofile, &manifest)?;
    let figures = async {
        let ready = local.ready(Duration::from_secs(args.ready_seconds)).await?;
        let client = Client::new(&ready.session.api_url, &ready.state.served_name)?;
        for question in QUESTIONS {
            println!("\n> {question}\n{}", client.chat(question, 80).await?);
        }
        let shape = Shape { streams: args.streams, max_tokens: args.max_tokens };
        by_hand::switch_under_load(&ready, &client, &shape, args.rounds).await
    }
    .await;
    // After an error too: a local mode that is killed would leave its worker behind.
    let stopped = local.stop(STOP_LIMIT).await;
    let figures = figures?;
    stopped?;
    Ok(figures)
}

/// Load should have taken the model up in the peak, and back after it, each time for a reason that the picture shows.
fn peak_verdict(scenario: &Scenario, switching: &Run, pinned: &Run) -> Verdict {
    if failed(switching) + failed(pinned) > 0 {
        Verdict::Failed
    } else if switching.switches.is_empty() {
        println!("  the peak caused no switch: the machine was slower while its capacity was measured");
        Verdict::Unsteady
    } else {
        let unexplained = scenario.unexplained(switching);
        for sentence in &unexplained {
            println!("  {sentence}");
        }
        if unexplained.is_empty() { Verdict::Good } else { Verdict::Failed }
    }
}

fn add_peak(figures: &mut Map<String, Value>, scenario: &Scenario, switching: &Run, pinned: &Run) {
    let by_hand = figures.get("failed").and_then(Value::as_u64).unwrap_or_default();
    figures.insert("failed".to_owned(), json!(by_hand + failed(switching) + failed(pinned)));
    let p95 = |run: &Run| run.p95_ttft_ms().map(|p95| rounded(p95, 1.0));
    let added = [
        ("auto_switches", json!(switching.switches.len())),
        ("p95_ttft_ms", json!({"switching": p95(switching), "pinned": p95(pinned)})),
        ("returned_after_s", json!(scenario.returned_after(switching).map(|after| rounded(after, 10.0)))),
        ("requests", json!(scenario.trace.arrivals.len())),
        ("clipped", json!(scenario.clipped)),
        ("length_percent", json!(rounded(100.0 * scenario.kept, 1.0))),
    ];
    figures.extend(added.map(|(name, value)| (name.to_owned(), value)));
}

fn failed(run: &Run) -> u64 {
    run.outcome.summary.failed as u64
}
