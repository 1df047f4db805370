//! Percentiles and the summary.

use std::collections::BTreeMap;

use serde::Serialize;

use super::client::Record;

/// What counts as good service. A request without a token after the first has no inter-token latency to miss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Slo {
    /// Most seconds to the first token.
    pub ttft: f64,
    /// Most seconds between tokens, on average over the request.
    pub itl: f64,
}

impl Default for Slo {
    fn default() -> Self {
        Self { ttft: 2.0, itl: 0.2 }
    }
}

impl Slo {
    /// Whether a request was answered, and in time.
    pub fn met_by(&self, record: &Record) -> bool {
        record.failure.is_none()
            && record.ttft().is_some_and(|ttft| ttft <= self.ttft)
            && record.mean_itl().is_none_or(|itl| itl <= self.itl)
    }
}

/// Percentiles by nearest rank: each is a value that was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half are not above.
    pub p50: f64,
    /// 95 % are not above.
    pub p95: f64,
    /// 99 % are not above.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Percentiles {
    /// `None` without values. Values that are no numbers are not expected.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let max = *values.last()?;
        let rank = |p: f64| values[((p * values.len() as f64).ceil() as usize).max(1) - 1];
        Some(Self { p50: rank(0.5), p95: rank(0.95), p99: rank(0.99), max })
    }
}

/// The figures of a replay. Times are in seconds; latencies count from when a request was due, so that a late generator
/// can not flatter the server. Latencies are of requests that succeeded.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Requests sent.
    pub requests: usize,
    /// Of these, answered to the end.
    pub succeeded: usize,
    /// Of these, not.
    pub failed: usize,
    /// Failures by kind.
    pub errors: BTreeMap<&'static str, usize>,
    /// Trace entries that were longer than the context, and were shortened to it.
    pub clipped: usize,
    /// From the start to the last answer.
    pub seconds: f64,
    /// To the first token.
    pub ttft: Option<Percentiles>,
    /// Between two chunks of an answer, over all chunks.
    pub itl: Option<Percentiles>,
    /// To the end.
    pub end_to_end: Option<Percentiles>,
    /// Tokens of the prompts of answered requests.
    pub prompt_tokens: u64,
    /// Tokens of all answers, also of those that broke off.
    pub output_tokens: u64,
    /// Output tokens a second.
    pub tokens_per_second: f64,
    /// Answered requests a second.
    pub requests_per_second: f64,
    /// Output tokens by the profile that computed them.
    pub tokens_by_profile: BTreeMap<String, u64>,
    /// The objective.
    pub slo: Slo,
    /// Share of the requests that met it, 0 to 1; failed ones did not.
    pub goodput: f64,
    /// How late requests were sent: the generator's own fault.
    pub send_lag: Option<Percentiles>,
    /// Processor time that this process took.
    pub generator_cpu_seconds: f64,
    /// The same, as a share of one core.
    pub generator_cpu_share: f64,
}

impl Summary {
    /// `seconds` is the length of the replay, `cpu` the processor time that it took.
    pub(super) fn of(records: &[Record], slo: &Slo, seconds: f64, cpu: f64, clipped: usize) -> Self {
        let answered: Vec<&Record> = records.iter().filter(|record| record.failure.is_none()).collect();
        let mut errors = BTreeMap::new();
        let mut tokens_by_profile = BTreeMap::new();
        for record in records {
            if let Some(failure) = record.failure {
                *errors.entry(failure.name()).or_default() += 1;
            }
            for (profile, tokens) in &record.by_profile {
                *tokens_by_profile.entry(profile.clone()).or_default() += u64::from(*tokens);
            }
        }
        let output_tokens: u64 = records.iter().map(|record| u64::from(record.output_tokens)).sum();
        let gaps = answered.iter().flat_map(|record| record.chunks.windows(2).map(|pair| pair[1] - pair[0]));
        let good = records.iter().filter(|record| slo.met_by(record)).count();
        let per_second = |count: f64| if seconds > 0.0 { count / seconds } else { 0.0 };
        Self {
            requests: records.len(),
            succeeded: answered.len(),
            failed: records.len() - answered.len(),
            errors,
            clipped,
            seconds,
            ttft: Percentiles::of(answered.iter().filter_map(|record| record.ttft()).collect()),
            itl: Percentiles::of(gaps.collect()),
            end_to_end: Percentiles::of(answered.iter().map(|record| record.end_to_end()).collect()),
            prompt_tokens: answered.iter().map(|record| u64::from(record.prompt_tokens)).sum(),
            output_tokens,
            tokens_per_second: per_second(output_tokens as f64),
            requests_per_second: per_second(answered.len() as f64),
            tokens_by_profile,
            slo: *slo,
            goodput: good as f64 / records.len().max(1) as f64,
            send_lag: Percentiles::of(records.iter().map(|record| record.sent - record.due).collect()),
            generator_cpu_seconds: cpu,
            generator_cpu_share: per_second(cpu),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::client::Failure;

    fn record(due: f64, chunks: &[f64], failure: Option<Failure>) -> Record {
        Record {
            index: 0,
            due,
            sent: due + 0.5,
            prompt_tokens: 10,
            output_tokens: chunks.len() as u32,
            chunks: chunks.to_vec(),
            ended: chunks.last().copied().unwrap_or(due),
            by_profile: BTreeMap::from([("quality".to_owned(), chunks.len() as u32)]),
            failure,
            message: String::new(),
        }
    }

    #[test]
    fn percentiles_are_measured_values_by_nearest_rank() {
        let of = |n: u32| Percentiles::of((1..=n).rev().map(f64::from).collect());
        assert_eq!(of(0), None);
        assert_eq!(of(1), Some(Percentiles { p50: 1.0, p95: 1.0, p99: 1.0, max: 1.0 }));
        assert_eq!(of(4), Some(Percentiles { p50: 2.0, p95: 4.0, p99: 4.0, max: 4.0 }));
        assert_eq!(of(200), Some(Percentiles { p50: 100.0, p95: 190.0, p99: 198.0, max: 200.0 }));
    }

    #[test]
    fn the_summary_counts_from_when_requests_were_due_and_failures_as_missed() {
        let records =
            [record(1.0, &[2.0, 2.5], None), record(2.0, &[6.0], None), record(3.0, &[3.5], Some(Failure::BrokenOff))];
        let slo = Slo { ttft: 2.0, itl: 0.5 };
        let all = |value| Some(Percentiles { p50: value, p95: value, p99: value, max: value });
        let two = |low, high| Some(Percentiles { p50: low, p95: high, p99: high, max: high });
        let summary = Summary {
            requests: 3,
            succeeded: 2,
            failed: 1,
            errors: BTreeMap::from([("broken_off", 1)]),
            clipped: 1,
            seconds: 8.0,
            ttft: two(1.0, 4.0),
            itl: all(0.5),
            end_to_end: two(1.5, 4.0),
            prompt_tokens: 20,
            output_tokens: 4,
            tokens_per_second: 0.5,
            requests_per_second: 0.25,
            tokens_by_profile: BTreeMap::from([("quality".to_owned(), 4)]),
            slo,
            goodput: 1.0 / 3.0,
            send_lag: all(0.5),
            generator_cpu_seconds: 2.0,
            generator_cpu_share: 0.25,
        };
        assert_eq!(Summary::of(&records, &slo, 8.0, 2.0, 1), summary);
    }
}
