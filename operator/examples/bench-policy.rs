//! What `make bench-policy` ends with: the time of a decision (as criterion measured it just before), simulated requests
//! per second, and the errors against published throughput; one line of JSON.

use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use modelprofile_api::Manifest;
use modelprofile_operator::simulate::{Hardware, ModelShape, Setting, scenarios, simulate, summary};
use modelprofile_operator::traces::Arrival;

const REPLICAS: u32 = 100;
const REQUESTS: u32 = 100_000;

/// Where criterion leaves what it measured, below the target folder that is given as the argument.
const ESTIMATES: &str = "criterion/decide, 64 replicas/new/estimates.json";

fn main() -> anyhow::Result<()> {
    let target = std::env::args().nth(1).context("give cargo's target folder; `make bench-policy` does")?;
    let estimates = Path::new(&target).join(ESTIMATES);
    let estimates = std::fs::read_to_string(&estimates)
        .with_context(|| format!("cannot read {}; run `make bench-policy`", estimates.display()))?;
    let estimates: serde_json::Value = serde_json::from_str(&estimates)?;
    let nanos = estimates.pointer("/median/point_estimate").and_then(serde_json::Value::as_f64);
    let nanos = nanos.context("criterion's estimates have no median")?;
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let manifest = Manifest::from_yaml(&std::fs::read_to_string(deploy.join("examples/llama-70b.yaml"))?)?;
    let setting = Setting {
        hardware: Hardware::load(&deploy.join("hardware/h100-80gb.yaml"))?,
        shape: ModelShape::load(&deploy.join("models/llama-3.3-70b.yaml"))?,
        replicas: REPLICAS,
        start_seconds: 30.0,
        load_bandwidth: 2e9,
        interval: 5.0,
        start: "2026-01-05T00:00:00Z".parse()?,
        seed: 1,
    };
    // Twice an hour of the Azure conversation trace's mean lengths, spread by a fixed pattern.
    let request = |i: u32| Arrival {
        at: f64::from(i) / 50.0,
        prompt_tokens: 155 + i * 769 % 2000,
        output_tokens: 11 + i * 331 % 400,
    };
    let requests: Vec<_> = (0..REQUESTS).map(request).collect();
    let all = scenarios(&manifest, &setting)?;
    let start = Instant::now();
    for scenario in &all {
        simulate(scenario, &requests)?;
    }
    let seconds = start.elapsed().as_secs_f64() / all.len() as f64;
    let (met, judged, worst) = summary();
    println!(
        "policy: {}",
        serde_json::json!({
            "decide_64_replicas_microseconds": (nanos / 10.0).round() / 100.0,
            "simulated_requests": REQUESTS,
            "replicas": REPLICAS,
            "seconds": (seconds * 1000.0).round() / 1000.0,
            "simulated_requests_per_second": (f64::from(REQUESTS) / seconds).round(),
            "published_rows": 18,
            "published_within_25_percent": met,
            "published_judging": 9,
            "published_judging_within_25_percent": judged,
            "published_worst_error_percent": (worst * 100.0).round(),
        })
    );
    Ok(())
}
