//! A made-up day with a peak on four H100s: prints the comparison and writes the picture.
//!
//! `cargo run --release -p modelprofile-operator --example simulate-day -- docs/simulator-day.svg`

use std::path::Path;

use anyhow::Context;
use modelprofile_api::Manifest;
use modelprofile_operator::simulate::{Hardware, ModelShape, Setting, scenarios, simulate, svg, table};
use modelprofile_operator::traces::{SyntheticDay, synthetic_day};

fn main() -> anyhow::Result<()> {
    let picture = std::env::args().nth(1).context("give the file to write the picture to")?;
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let mut manifest = Manifest::from_yaml(&std::fs::read_to_string(deploy.join("examples/llama-70b.yaml"))?)?;
    // Load alone decides here.
    manifest.spec.switching.schedule = None;
    let setting = Setting {
        hardware: Hardware::load(&deploy.join("hardware/h100-80gb.yaml"))?,
        shape: ModelShape::load(&deploy.join("models/llama-3.3-70b.yaml"))?,
        replicas: 4,
        start_seconds: 30.0,
        load_bandwidth: 2e9,
        interval: 5.0,
        start: "2026-01-05T00:00:00Z".parse()?,
        seed: 1,
    };
    // Long answers fill the cache before they fill the arithmetic: the case that density is for.
    let day = SyntheticDay {
        duration: 8.0 * 3600.0,
        base_rate: 2.0,
        peak_rate: 8.5,
        peak_from: 3.0 * 3600.0,
        peak_to: 5.0 * 3600.0,
        mean_prompt: 200.0,
        mean_output: 700.0,
        seed: 1,
    };
    let (trace, _) = synthetic_day(&day).clip(16_384);
    let all = scenarios(&manifest, &setting)?;
    let outcomes =
        all.iter().map(|scenario| simulate(scenario, &trace.arrivals)).collect::<anyhow::Result<Vec<_>>>()?;
    print!("{}", table(&outcomes, all[0].slo_seconds));
    for outcome in outcomes.iter().filter(|outcome| !outcome.changes.is_empty()) {
        println!("\n{}:", outcome.name);
        for (at, message) in &outcome.changes {
            println!("- {at:.0} s: {message}");
        }
    }
    let names: Vec<_> = manifest.spec.profiles.iter().map(|profile| profile.name.clone()).collect();
    std::fs::write(&picture, svg(&outcomes, &names)).with_context(|| format!("cannot write {picture}"))
}
