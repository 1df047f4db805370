//! `modelprofile replay`: a trace of requests sent to an OpenAI-compatible server, in an open loop.
//!
//! Open loop: every request goes out when the trace says so, whether or not those before it were answered. A generator
//! that waits for answers slows down with its server, and so hides the queue that users would have stood in.
//!
//! | module | what it holds |
//! |---|---|
//! | [`client`] | one request: sent, streamed, timed |
//! | [`prompts`] | prompts of a given length, no two with a common beginning |
//! | `pressure` | load over target, as a decision would see it |
//! | [`scrape`] | the server's metrics over time |
//! | [`stats`] | percentiles and the summary |
//! | [`report`] | table, CSV and JSON |
//! | [`timeline`] | the picture |

pub mod client;
mod pressure;
pub mod prompts;
pub mod report;
pub mod scrape;
pub mod stats;
pub mod timeline;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use jiff::Timestamp;
use modelprofile_policy::Rules;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::traces::{LONGEST, Trace};
use client::{Record, Target};
use pressure::Meter;
use prompts::Prompts;
use scrape::{Sample, Seen};
use stats::{Slo, Summary};

/// What to send where.
#[derive(Clone, Debug)]
pub struct Options {
    /// Base URL of the server, such as `http://127.0.0.1:8000`.
    pub url: String,
    /// Model to ask for; `None` takes the first that the server lists.
    pub model: Option<String>,
    /// Key of the API, if it asks for one.
    pub api_key: Option<String>,
    /// Text that prompts are cut from; `None` takes a built-in one.
    pub text: Option<String>,
    /// Send only fields of OpenAI's API: no `ignore_eos`, so answers may end early.
    pub plain: bool,
    /// Longest prompt and answer together, in tokens; `None` asks the server. Longer entries are clipped and counted.
    pub max_context: Option<u32>,
    /// How long a request may take before it counts as failed.
    pub timeout: Duration,
    /// What counts as good service.
    pub slo: Slo,
    /// Makes the prompts of this run differ from those of other runs, so that no prefix cache helps.
    pub salt: u64,
    /// Show a line of progress on standard error.
    pub progress: bool,
    /// Once so many requests were answered, those that still run are cut off and left out; `None` waits for all.
    pub enough: Option<usize>,
    /// How long the metrics are read on after the last answer, so that what follows on a peak is seen too.
    pub linger: Duration,
    /// Ends that time early, while it says so; `None` is never.
    pub seen_enough: Option<watch::Receiver<bool>>,
    /// A manifest's targets and signals, which the pressure is measured by; `None` takes the default targets, and the
    /// signals of the engine whose metrics come.
    pub rules: Option<Rules>,
}

impl Options {
    /// The defaults, for a server at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            model: None,
            api_key: None,
            text: None,
            plain: false,
            max_context: None,
            timeout: Duration::from_secs(600),
            slo: Slo::default(),
            salt: 0,
            progress: false,
            enough: None,
            linger: Duration::ZERO,
            seen_enough: None,
            rules: None,
        }
    }
}

/// What came of a replay. Times are seconds since its start.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The clock at second 0.
    pub started: Timestamp,
    /// A record of each request that was not cut off, in the order of the trace.
    pub records: Vec<Record>,
    /// The server's metrics; empty if it has none.
    pub samples: Vec<Sample>,
    /// Load over target (1 is the target) at seconds since the start; empty if the server's metrics do not tell.
    pub pressure: Vec<(f64, f64)>,
    /// The figures.
    pub summary: Summary,
}

/// Refuses a trace that cannot be replayed. [`run`] asks it first; a caller that prepares something asks it before.
///
/// # Errors
/// It is empty, or a request is not due within a year.
pub fn check(trace: &Trace) -> anyhow::Result<()> {
    if trace.arrivals.is_empty() {
        bail!("the trace has no request: thin it less, or widen the window");
    }
    if !trace.arrivals.iter().all(|arrival| (0.0..=LONGEST).contains(&arrival.at)) {
        bail!("a request of the trace would be sent more than a year from now; raise --speed, or narrow the window");
    }
    Ok(())
}

/// Replays `trace` and waits for every answer, or for [`Options::enough`] of them.
///
/// # Errors
/// The trace cannot be replayed, or the server did not answer before the first request. Requests that fail are no errors: they
/// are counted.
pub async fn run(options: &Options, trace: &Trace) -> anyhow::Result<Outcome> {
    check(trace)?;
    let mut meter = Meter::new(options.rules.as_ref(), scrape::PERIOD)?;
    // What is measured is the server: a proxy from the environment would be measured too.
    let http = reqwest::Client::builder().no_proxy().build().context("cannot build an HTTP client")?;
    let base = base_url(&options.url)?;
    let mut target = Target {
        http,
        base,
        model: String::new(),
        api_key: options.api_key.clone(),
        plain: options.plain,
        timeout: options.timeout,
    };
    let listed = target.models().await?;
    target.model = match &options.model {
        Some(model) => model.clone(),
        None => first_model(&listed)?,
    };
    target.check_ready().await?;
    let (prompts, server_context) = Prompts::prepare(&target, options.text.as_deref(), options.salt).await;
    let context = options.max_context.or(server_context).or_else(|| listed_context(&listed));
    let (trace, clipped) = context.map_or_else(|| (trace.clone(), 0), |context| trace.clip(context));

    let target = Arc::new(target);
    let cpu_before = cpu_seconds();
    let (start, started) = (Instant::now(), Timestamp::now());
    let mut seen = Seen::default();
    let send = async {
        let records = send_all(&target, &trace, &prompts, start, options).await?;
        let (wall, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu_before);
        linger(options).await;
        anyhow::Ok((records, wall, cpu))
    };
    let (records, wall, cpu) = tokio::select! {
        sent = send => sent?,
        never = scrape::scrape(&target, start, &mut meter, &mut seen) => match never {},
    };
    let summary = Summary::of(&records, &options.slo, wall, cpu, clipped);
    let Seen { samples, pressure } = seen;
    Ok(Outcome { started, records, samples, pressure, summary })
}

/// Waits after the last answer, as [`Options::linger`] and [`Options::seen_enough`] say.
async fn linger(options: &Options) {
    let early = async {
        let Some(mut seen) = options.seen_enough.clone() else { return std::future::pending().await };
        // Whoever would say so may be gone: then nobody will.
        if seen.wait_for(|enough| *enough).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = tokio::time::sleep(options.linger) => {}
        () = early => {}
    }
}

/// Sends each request at its time, and gathers the records when enough were answered.
async fn send_all(
    target: &Arc<Target>,
    trace: &Trace,
    prompts: &Prompts,
    start: Instant,
    options: &Options,
) -> anyhow::Result<Vec<Record>> {
    let total = trace.arrivals.len();
    let enough = options.enough.unwrap_or(total).min(total);
    let bar = if options.progress { progress_bar(total) } else { indicatif::ProgressBar::hidden() };
    // Those that still run end with it.
    let mut tasks = JoinSet::new();
    for (index, arrival) in trace.arrivals.iter().enumerate() {
        // Made before it is due: a long prompt takes its time.
        let prompt = prompts.prompt(index, arrival.prompt_tokens);
        let due = start + Duration::from_secs_f64(arrival.at);
        tokio::time::sleep_until(due.into()).await;
        let (target, arrival, shown) = (target.clone(), *arrival, bar.clone());
        tasks.spawn(async move {
            let record = client::send(&target, index, arrival, prompt, start).await;
            shown.inc(1);
            record
        });
        bar.set_message(format!("{} sent, {} running", index + 1, index as u64 + 1 - bar.position()));
    }
    let (mut records, mut answered) = (Vec::with_capacity(total), 0);
    while answered < enough
        && let Some(record) = tasks.join_next().await
    {
        let record: Record = record.context("a request's task failed")?;
        answered += usize::from(record.failure.is_none());
        records.push(record);
        bar.set_message(format!("{total} sent, {} running", total as u64 - bar.position()));
    }
    records.sort_by_key(|record| record.index);
    bar.finish_and_clear();
    Ok(records)
}

fn progress_bar(total: usize) -> indicatif::ProgressBar {
    let style = indicatif::ProgressStyle::with_template("{elapsed} [{bar:30}] {pos}/{len} answered, {msg}");
    let bar = indicatif::ProgressBar::new(total as u64);
    style.map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style))
}

fn base_url(url: &str) -> anyhow::Result<String> {
    let base = url.trim_end_matches('/').trim_end_matches("/v1");
    if base.starts_with("https://") {
        bail!(
            "{url}: this version does not speak https; give the http:// address behind it, as of `kubectl port-forward`"
        );
    }
    if !base.starts_with("http://") {
        bail!("{url} does not begin with http://; give the server's address, such as http://127.0.0.1:8000");
    }
    Ok(base.to_owned())
}

fn first_model(listed: &Value) -> anyhow::Result<String> {
    let id = listed.pointer("/data/0/id").and_then(Value::as_str);
    Ok(id.context("the server lists no model; name one with --model")?.to_owned())
}

fn listed_context(listed: &Value) -> Option<u32> {
    listed.pointer("/data/0/max_model_len")?.as_u64()?.try_into().ok()
}

/// Seconds of processor time that this process has used.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[cfg(test)]
mod tests;
