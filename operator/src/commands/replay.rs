//! `modelprofile replay`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::SignedDuration;
use modelprofile_policy::Rules;
use rand::TryRng;
use rand::rngs::SysRng;

use super::simulate;
use crate::replay::stats::Slo;
use crate::replay::{self, Options, report, timeline};
use crate::traces::{LONGEST, SyntheticDay, Trace, synthetic_day};

/// Most requests of a synthetic day: more than any machine sends, and few enough for its memory.
const MOST: f64 = 1e7;

/// Arguments of `modelprofile replay`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address of an OpenAI-compatible server.
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    url: String,
    /// Model to ask for [default: the first that the server lists].
    #[arg(long)]
    model: Option<String>,
    /// Key of the server's API.
    #[arg(long, env = "MODELPROFILE_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Trace to replay: CSV with TIMESTAMP,ContextTokens,GeneratedTokens or arrival_seconds,prompt_tokens,output_tokens.
    #[arg(long, value_name = "FILE", required_unless_present = "synthetic", conflicts_with = "synthetic")]
    trace: Option<PathBuf>,
    /// Make up a day of this many seconds instead; its middle third is the peak.
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    synthetic: Option<f64>,
    /// Requests a second outside the synthetic peak.
    #[arg(long, value_name = "RATE", default_value_t = 0.5, value_parser = positive)]
    base_rate: f64,
    /// Requests a second in the synthetic peak.
    #[arg(long, value_name = "RATE", default_value_t = 4.0, value_parser = positive)]
    peak_rate: f64,
    /// Mean prompt of the synthetic day, in tokens.
    #[arg(long, value_name = "TOKENS", default_value_t = 200.0, value_parser = positive)]
    mean_prompt: f64,
    /// Mean answer of the synthetic day, in tokens.
    #[arg(long, value_name = "TOKENS", default_value_t = 50.0, value_parser = positive)]
    mean_output: f64,
    /// Replay only from this second of the trace on.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    from: f64,
    /// Replay only up to this second of the trace.
    #[arg(long, value_name = "SECONDS", default_value_t = f64::INFINITY, hide_default_value = true)]
    to: f64,
    /// Keep this share of the requests, above 0 and up to 1.
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, value_parser = positive)]
    thin: f64,
    /// Replay this many times as fast.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = positive)]
    speed: f64,
    /// Decides which requests are kept, and what the synthetic day looks like.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Text file that prompts are cut from [default: a built-in text].
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Send only OpenAI's own fields, to servers that refuse others. Answers may then end early.
    #[arg(long)]
    plain: bool,
    /// Longest prompt and answer together [default: the server's]. Longer entries are clipped and counted.
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(2..))]
    max_context: Option<u32>,
    /// Seconds that a request may take before it counts as failed.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    /// Manifest whose targets and engine the pressure of the timeline is measured by [default: the default targets].
    #[arg(short = 'f', long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Seconds to read the server's metrics on after the last answer, so that the timeline shows what follows on a peak.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    linger: u64,
    /// Objective: most seconds to the first token.
    #[arg(long, value_name = "SECONDS", default_value_t = Slo::default().ttft, value_parser = positive)]
    slo_ttft: f64,
    /// Objective: most seconds between tokens, on average over a request.
    #[arg(long, value_name = "SECONDS", default_value_t = Slo::default().itl, value_parser = positive)]
    slo_itl: f64,
    /// Write a row for each request.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write the summary and a series by second.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the timeline as a picture.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| "give a number above 0".to_owned())
}

/// Replays, and reports. The last line of standard output is `replay: ` and the summary as JSON.
///
/// # Errors
/// The trace is wrong, no server answers, or a report cannot be written. Failed requests are part of the report.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let trace = trace(args)?;
    let text = args.text.as_deref().map(read_text).transpose()?;
    let rules = args.manifest.as_deref().map(rules).transpose()?;
    // A folder that is not there is better known before the replay than after it.
    for file in [&args.csv, &args.json, &args.svg].into_iter().flatten() {
        std::fs::File::create(file).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let options = Options {
        model: args.model.clone(),
        api_key: args.api_key.clone().filter(|key| !key.is_empty()),
        text,
        plain: args.plain,
        max_context: args.max_context,
        timeout: Duration::from_secs(args.timeout),
        slo: Slo { ttft: args.slo_ttft, itl: args.slo_itl },
        salt: SysRng.try_next_u64().context("the system has no randomness")?,
        progress: true,
        linger: Duration::from_secs(args.linger),
        rules,
        ..Options::new(args.url.as_str())
    };
    let outcome = super::runtime()?.block_on(replay::run(&options, &trace))?;
    let write = |file: &Option<PathBuf>, text: &dyn Fn() -> String| match file {
        Some(file) => std::fs::write(file, text()).with_context(|| format!("cannot write {}", file.display())),
        None => Ok(()),
    };
    write(&args.csv, &|| report::csv(&outcome))?;
    write(&args.json, &|| format!("{:#}\n", report::json(&outcome)))?;
    write(&args.svg, &|| timeline::svg(&outcome, &format!("Replay against {}", args.url), None))?;
    let drawn = args.json.is_some() || args.svg.is_some();
    if drawn && args.manifest.is_none() && !outcome.pressure.is_empty() {
        eprintln!("the pressure is measured by the default targets; give a manifest with -f for its own");
    }
    print!("{}", report::table(&outcome.summary));
    println!("replay: {}", serde_json::to_string(&outcome.summary)?);
    Ok(ExitCode::SUCCESS)
}

/// What the pressure is measured by.
fn rules(file: &Path) -> anyhow::Result<Rules> {
    // The replay looks in an interval of its own.
    let rules = Rules::new(&simulate::read_manifest(file)?.spec, SignedDuration::ZERO);
    rules.with_context(|| format!("{} cannot be decided on", file.display()))
}

fn read_text(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read the text {}", file.display()))
}

/// The trace as it is to be replayed.
fn trace(args: &Args) -> anyhow::Result<Trace> {
    if args.thin > 1.0 {
        bail!("--thin {} keeps more than there is; give a share up to 1", args.thin);
    }
    let trace = match (&args.trace, args.synthetic) {
        (Some(file), _) => Trace::read(file)?,
        (None, Some(duration)) if duration > LONGEST => {
            bail!("--synthetic {duration:e} is more than a year; give less")
        }
        (None, Some(duration)) if duration * args.base_rate.max(args.peak_rate) > MOST => {
            bail!("the synthetic day would have millions of requests; lower --base-rate, --peak-rate or --synthetic")
        }
        (None, Some(duration)) => synthetic_day(&SyntheticDay {
            duration,
            base_rate: args.base_rate,
            peak_rate: args.peak_rate,
            peak_from: duration / 3.0,
            peak_to: duration * 2.0 / 3.0,
            mean_prompt: args.mean_prompt,
            mean_output: args.mean_output,
            seed: args.seed,
        }),
        (None, None) => bail!("give a trace with --trace, or --synthetic"),
    };
    let trace = trace.window(args.from, args.to).thin(args.thin, args.seed).speed_up(args.speed);
    // Before reports of an earlier replay are overwritten.
    replay::check(&trace)?;
    Ok(trace)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rstest::rstest;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn replayed(line: &[&str]) -> String {
        let line = ["replay", "--url", "http://127.0.0.1:9"].iter().chain(line);
        format!("{:#}", run(&Line::try_parse_from(line).unwrap().args).unwrap_err())
    }

    #[rstest]
    #[case::slower_than_anyone_waits(&["--synthetic", "10", "--speed", "1e-300"], "raise --speed")]
    #[case::longer_than_a_year(&["--synthetic", "1e300"], "--synthetic 1e300 is more than a year")]
    #[case::more_than_memory_holds(&["--synthetic", "10", "--peak-rate", "1e300"], "millions of requests")]
    #[case::nothing_left(&["--synthetic", "10", "--from", "20"], "has no request")]
    fn what_cannot_be_replayed_is_refused_before_a_report_is_overwritten(
        #[case] line: &[&str],
        #[case] expected: &str,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let report = folder.path().join("report.csv");
        std::fs::write(&report, "of an earlier replay").unwrap();
        let error = replayed(&[line, &["--csv", report.to_str().unwrap()]].concat());
        assert!(error.contains(expected), "{error}");
        assert_eq!(std::fs::read_to_string(&report).unwrap(), "of an earlier replay");
    }
}
