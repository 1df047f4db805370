//! The replay in words and numbers: a table, a row for each request, a series for each second.

use std::fmt::Write;

use serde_json::{Value, json};

use super::Outcome;
use super::client::Failure;
use super::stats::{Percentiles, Summary};

/// The summary for a person.
pub fn table(summary: &Summary) -> String {
    let mut out = String::new();
    let mut row = |name: &str, value: String| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{name:<22} {value}");
    };
    let s = summary;
    let errors: Vec<String> = s.errors.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let errors = if errors.is_empty() { String::new() } else { format!(" ({})", errors.join(", ")) };
    row(
        "requests",
        format!("{} in {:.1} s: {} answered, {} failed{errors}", s.requests, s.seconds, s.succeeded, s.failed),
    );
    if s.clipped > 0 {
        row("clipped to context", format!("{} requests", s.clipped));
    }
    row("", format!("{:>10} {:>10} {:>10} {:>10}", "p50", "p95", "p99", "max"));
    for (name, percentiles) in [
        ("time to first token", &s.ttft),
        ("inter-token latency", &s.itl),
        ("end to end", &s.end_to_end),
        ("send lag (generator)", &s.send_lag),
    ] {
        row(name, percentiles.as_ref().map_or("-".to_owned(), milliseconds));
    }
    row("throughput", format!("{:.1} output tokens/s, {:.2} requests/s", s.tokens_per_second, s.requests_per_second));
    let (percent, ttft, itl) = (s.goodput * 100.0, s.slo.ttft, s.slo.itl);
    row("goodput", format!("{percent:.1} % within {ttft} s to the first token and {itl} s between tokens"));
    for (profile, tokens) in &s.tokens_by_profile {
        let share = *tokens as f64 / s.output_tokens.max(1) as f64 * 100.0;
        row(&format!("tokens by {profile}"), format!("{tokens} ({share:.1} %)"));
    }
    let (cpu, share) = (s.generator_cpu_seconds, s.generator_cpu_share * 100.0);
    row("generator's own CPU", format!("{cpu:.2} s, {share:.1} % of a core"));
    out
}

fn milliseconds(p: &Percentiles) -> String {
    let cell = |seconds: f64| format!("{:>7.1} ms", seconds * 1e3);
    [p.p50, p.p95, p.p99, p.max].map(cell).join(" ")
}

/// A row for each request; times in seconds since the start, latencies in seconds.
pub fn csv(outcome: &Outcome) -> String {
    let mut out =
        "index,due,sent,ended,prompt_tokens,output_tokens,ttft,mean_itl,end_to_end,profiles,error\n".to_owned();
    for r in &outcome.records {
        let optional = |value: Option<f64>| value.map(|value| format!("{value:.6}")).unwrap_or_default();
        let profiles: Vec<String> = r.by_profile.iter().map(|(name, count)| format!("{name}:{count}")).collect();
        let _ = writeln!(
            out,
            "{},{:.6},{:.6},{:.6},{},{},{},{},{:.6},{},{}",
            r.index,
            r.due,
            r.sent,
            r.ended,
            r.prompt_tokens,
            r.output_tokens,
            optional(r.ttft()),
            optional(r.mean_itl()),
            r.end_to_end(),
            profiles.join(";"),
            r.failure.map_or("", Failure::name),
        );
    }
    out
}

/// One second of a replay.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Second {
    /// Requests that were due in it.
    pub arrivals: u32,
    /// Chunks that came in it.
    pub chunks: u32,
    /// Requests that failed in it.
    pub failures: u32,
}

/// Every second from the start to the end.
pub fn seconds(outcome: &Outcome) -> Vec<Second> {
    let ends = outcome.records.iter().map(|record| record.ended.max(record.due));
    let count = ends.fold(0.0, f64::max) as usize + 1;
    let mut seconds = vec![Second::default(); count];
    for record in &outcome.records {
        seconds[record.due as usize].arrivals += 1;
        for at in &record.chunks {
            // A chunk is never later than its request's end.
            seconds[(*at as usize).min(count - 1)].chunks += 1;
        }
        if record.failure.is_some() {
            seconds[record.ended as usize].failures += 1;
        }
    }
    seconds
}

/// Summary, series by second, and the server's metrics.
pub fn json(outcome: &Outcome) -> Value {
    let seconds: Vec<Value> = seconds(outcome)
        .iter()
        .enumerate()
        .map(|(at, s)| json!({"second": at, "arrivals": s.arrivals, "chunks": s.chunks, "failures": s.failures}))
        .collect();
    let samples: Vec<Value> = outcome
        .samples
        .iter()
        .map(|s| {
            json!({
                "at": s.at, "kv_usage": s.kv_usage, "running": s.running, "waiting": s.waiting, "profile": s.profile,
            })
        })
        .collect();
    let mut messages: Vec<&str> = outcome.records.iter().map(|record| record.message.as_str()).collect();
    messages.sort_unstable();
    messages.dedup();
    // The first few say what is wrong; thousands would only say it again.
    let messages: Vec<&str> = messages.into_iter().filter(|message| !message.is_empty()).take(20).collect();
    json!({
        "summary": outcome.summary, "seconds": seconds, "samples": samples, "pressure": outcome.pressure,
        "error_messages": messages,
    })
}
