//! `modelprofile simulate -f FILE --trace FILE --hardware FILE --model FILE`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use jiff::Timestamp;
use modelprofile_api::{FieldError, Manifest, violations, with_line};

use crate::simulate::{Hardware, ModelShape, Setting, ladder, report, scenarios, simulate, svg, table};
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
    /// Traffic: a CSV with the columns TIMESTAMP, ContextTokens, GeneratedTokens, or arrival_seconds, prompt_tokens,
    /// output_tokens.
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
    /// Print every change of profile and workers with its reason, too.
    #[arg(long)]
    explain: bool,
    /// Write the comparison as a picture, too.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Errors of a manifest by file, field and line, one a line.
fn located(file: &Path, text: &str, errors: &[FieldError]) -> String {
    let lines: Vec<_> = errors.iter().map(|error| format!("{}: {}", file.display(), with_line(error, text))).collect();
    lines.join("\n")
}

/// A manifest that this build need not be able to serve.
pub(super) fn read_manifest(file: &Path) -> anyhow::Result<Manifest> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let manifest = match Manifest::from_yaml(&text) {
        Ok(manifest) => manifest,
        Err(errors) => bail!("{}", located(file, &text, &errors.0)),
    };
    let errors = violations(&manifest);
    if !errors.is_empty() {
        bail!("{}", located(file, &text, &errors));
    }
    Ok(manifest)
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
    let manifest = read_manifest(file)?;
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
    let requests = &trace.arrivals;
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
    let outcomes = all.iter().map(|scenario| simulate(scenario, requests)).collect::<anyhow::Result<Vec<_>>>()?;
    print!("{}", table(&outcomes, all.first().map_or(0.0, |scenario| scenario.slo_seconds)));
    for outcome in outcomes.iter().filter(|outcome| args.explain && !outcome.changes.is_empty()) {
        println!("\n{}:", outcome.name);
        for (at, message) in &outcome.changes {
            println!("- {at:.0} s: {message}");
        }
    }
    if let Some(path) = &args.svg {
        let names: Vec<_> = manifest.spec.profiles.iter().map(|profile| profile.name.clone()).collect();
        std::fs::write(path, svg(&outcomes, &names)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");

    /// The command on a small trace in `dir`, with `hardware` and the manifest changed by `edit`.
    fn command(dir: &Path, hardware: &str, edit: impl Fn(String) -> String) -> anyhow::Result<ExitCode> {
        let (manifest, trace) = (dir.join("m.yaml"), dir.join("t.csv"));
        let text = std::fs::read_to_string(format!("{DEPLOY}/examples/llama-70b.yaml")).unwrap();
        std::fs::write(&manifest, edit(text)).unwrap();
        let rows: Vec<_> = (0..50).map(|i| format!("{i}.5,{},100", 100 + i)).collect();
        std::fs::write(&trace, format!("arrival_seconds,prompt_tokens,output_tokens\n{}\n", rows.join("\n"))).unwrap();
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        run(&Line::parse_from([
            "simulate".to_owned(),
            "-f".to_owned(),
            path(&manifest),
            format!("--trace={}", path(&trace)),
            format!("--hardware={hardware}"),
            format!("--model={DEPLOY}/models/llama-3.3-70b.yaml"),
            format!("--svg={}", path(&dir.join("out.svg"))),
            "--replicas=2".to_owned(),
        ])
        .args)
    }

    #[test]
    fn a_manifest_a_trace_and_two_files_are_enough() {
        let dir = tempfile::tempdir().unwrap();
        let code = command(dir.path(), &format!("{DEPLOY}/hardware/h100-80gb.yaml"), |text| text).unwrap();
        assert_eq!(code, ExitCode::SUCCESS);
        let picture = std::fs::read_to_string(dir.path().join("out.svg")).unwrap();
        assert!(["switch in place", "Surge", "Recreate"].iter().all(|way| picture.contains(way)));
    }

    #[test]
    fn hardware_without_bandwidth_is_refused_by_file_and_field() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("h.yaml");
        let text = std::fs::read_to_string(format!("{DEPLOY}/hardware/h100-80gb.yaml")).unwrap();
        std::fs::write(&file, text.replace("3.35e12", "0")).unwrap();
        let error = format!("{:#}", command(dir.path(), file.to_str().unwrap(), |text| text).unwrap_err());
        assert!(error.contains("h.yaml: memoryBandwidth: 0 is not above zero"), "{error}");
        assert!(error.ends_with("(line 4)"), "{error}");
        assert!(!dir.path().join("out.svg").exists(), "nothing is half-run");
    }

    #[test]
    fn a_schedule_that_overlaps_itself_is_refused_by_field() {
        let dir = tempfile::tempdir().unwrap();
        let window = "      - {name: twice, profile: density, start: \"10:00\", end: \"11:00\"}\n  scaling:";
        let edit = |text: String| text.replace("  scaling:", window);
        let error =
            format!("{:#}", command(dir.path(), &format!("{DEPLOY}/hardware/h100-80gb.yaml"), edit).unwrap_err());
        assert!(
            error.contains("m.yaml: spec.switching.schedule.windows[1]: overlaps with `business-hours`"),
            "{error}"
        );
        assert!(error.ends_with("(line 37)"), "{error}");
    }

    #[test]
    fn a_field_of_the_wrong_type_is_refused_by_field_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let edit = |text: String| text.replace("minReplicas: 1", "minReplicas: one");
        let error =
            format!("{:#}", command(dir.path(), &format!("{DEPLOY}/hardware/h100-80gb.yaml"), edit).unwrap_err());
        assert!(error.contains("m.yaml: spec.scaling.minReplicas: ") && error.ends_with("(line 39)"), "{error}");
    }

    #[test]
    fn a_wrong_trace_is_refused_by_file_line_and_column_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let trace = dir.path().join("wrong.csv");
        std::fs::write(&trace, "arrival_seconds,prompt_tokens,output_tokens\n2,1,1\n1,1,1\n").unwrap();
        let line = Line::parse_from([
            "simulate".to_owned(),
            format!("--file={DEPLOY}/examples/llama-70b.yaml"),
            format!("--trace={}", trace.display()),
            format!("--hardware={DEPLOY}/hardware/h100-80gb.yaml"),
            format!("--model={DEPLOY}/models/llama-3.3-70b.yaml"),
            format!("--svg={}", dir.path().join("out.svg").display()),
        ]);
        let error = format!("{:#}", run(&line.args).unwrap_err());
        assert!(error.contains("wrong.csv is no trace: line 3, column arrival_seconds: 1 is before"), "{error}");
        assert!(!dir.path().join("out.svg").exists(), "nothing is half-run");
    }

    #[test]
    fn a_check_takes_nothing_else() {
        assert!(Line::try_parse_from(["simulate", "--check"]).is_ok());
        assert!(Line::try_parse_from(["simulate", "--check", "--speed=2"]).is_err());
        assert!(Line::try_parse_from(["simulate"]).is_err());
        assert!(Line::try_parse_from(["simulate", "--check", "--seed=-1"]).is_err());
    }
}
