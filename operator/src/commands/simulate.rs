//! `modelprofile simulate -f FILE --trace FILE --hardware FILE --model FILE`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use jiff::Timestamp;
use modelprofile_api::{Manifest, violations};

use crate::simulate::{Hardware, ModelShape, Request, Setting, ladder, report, scenarios, simulate, svg, table};
use crate::traces::Trace;

/// Arguments of `modelprofile simulate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Hold the simulator against published throughput and print the comparison as Markdown; takes no other argument.
    #[arg(long, exclusive = true)]
    check: bool,
    /// Manifest: a ModelProfile as YAML or JSON.
    #[arg(short = 'f', long = "file", value_name = "FILE", required_unless_present = "check")]
    file: Option<PathBuf>,
    /// Traffic: a CSV with the columns TIMESTAMP, ContextTokens, GeneratedTokens.
    #[arg(long, value_name = "FILE", required_unless_present = "check")]
    trace: Option<PathBuf>,
    /// Accelerator: a file as in deploy/hardware.
    #[arg(long, value_name = "FILE", required_unless_present = "check")]
    hardware: Option<PathBuf>,
    /// Dimensions of the model: a file as in deploy/models.
    #[arg(long, value_name = "FILE", required_unless_present = "check")]
    model: Option<PathBuf>,
    /// Workers at the start, and the fewest at any time [default: spec.scaling.minReplicas].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    replicas: Option<u32>,
    /// Play the trace so many times as fast.
    #[arg(long, value_name = "FACTOR", default_value = "1", value_parser = above_zero)]
    speed: f64,
    /// Time at which the trace starts, for the schedule.
    #[arg(long, value_name = "TIME", default_value = "2026-01-05T00:00:00Z")]
    start: Timestamp,
    /// Time that a new worker takes beside its weights, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = above_zero)]
    start_seconds: f64,
    /// Bandwidth at which a new worker reads its weights, in bytes per second.
    #[arg(long, value_name = "BYTES", default_value = "2e9", value_parser = above_zero)]
    load_bandwidth: f64,
    /// Time between two decisions, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = above_zero)]
    interval: f64,
    /// Seed of the routing; the same seed gives the same figures.
    #[arg(long, default_value = "1")]
    seed: u64,
    /// Write the comparison as a picture, too.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

fn above_zero(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value.is_finite() => Ok(value),
        Ok(_) => Err("not above zero".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Simulates, and prints what came of it as Markdown.
///
/// # Errors
/// A file can not be read or says something that makes no sense; all of them are read before anything is simulated.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.check {
        print!("{}", report());
        return Ok(ExitCode::SUCCESS);
    }
    let (Some(file), Some(trace), Some(hardware), Some(model)) = (&args.file, &args.trace, &args.hardware, &args.model)
    else {
        bail!("give -f, --trace, --hardware and --model");
    };
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    // What this build can not serve can be simulated all the same.
    let manifest = Manifest::from_yaml(&text).with_context(|| format!("{} is not a manifest", file.display()))?;
    let errors: Vec<_> = violations(&manifest).iter().map(|error| format!("{}: {error}", file.display())).collect();
    if !errors.is_empty() {
        bail!("{}", errors.join("\n"));
    }
    let setting = Setting {
        hardware: Hardware::load(hardware)?,
        shape: ModelShape::load(model)?,
        replicas: args.replicas.unwrap_or(manifest.spec.scaling.min_replicas),
        start_seconds: args.start_seconds,
        load_bandwidth: args.load_bandwidth,
        interval: args.interval,
        start: args.start,
        seed: args.seed,
    };
    let all = scenarios(&manifest, &setting)?;
    let context = manifest.spec.model.max_context_tokens.unwrap_or(setting.shape.max_context_tokens);
    let (trace, clipped) = Trace::read(trace)?.speed_up(args.speed).clip(context);
    let requests: Vec<Request> = trace
        .arrivals
        .iter()
        .map(|arrival| Request { at: arrival.at, prompt: arrival.prompt_tokens, output: arrival.output_tokens })
        .collect();
    println!(
        "{} on {} ({} GPUs a worker), {} requests in {:.0} s, {clipped} clipped to {context} tokens\n",
        setting.shape.name,
        setting.hardware.name,
        manifest.spec.profiles.first().map_or(1, |profile| profile.tensor_parallel),
        requests.len(),
        trace.duration(),
    );
    if let Some(first) = all.first() {
        println!("{}", ladder(&manifest, first));
    }
    let outcomes = all.iter().map(|scenario| simulate(scenario, &requests)).collect::<anyhow::Result<Vec<_>>>()?;
    print!("{}", table(&outcomes, all.first().map_or(0.0, |scenario| scenario.slo_seconds)));
    if let Some(path) = &args.svg {
        let names: Vec<_> = manifest.spec.profiles.iter().map(|profile| profile.name.clone()).collect();
        std::fs::write(path, svg(&outcomes, &names)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
