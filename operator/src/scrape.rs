//! Metrics of a worker, from Prometheus' text format to the signals that a decision needs.
//!
//! Counters and histograms only rise, so a signal "over the latest interval" is the difference of two looks: [`Scraper`]
//! keeps the earlier one.

use jiff::Timestamp;
use modelprofile_policy::signals::Signals;
use modelprofile_policy::{Kv, Reading, Sample};

/// One look at a worker's `/metrics`: lines of `name{labels} value`.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    series: Vec<(String, f64)>,
}

impl Metrics {
    /// Reads the text format; what is no sample is skipped.
    pub fn parse(text: &str) -> Self {
        let sample = |line: &str| {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                return None;
            }
            // Labels may hold spaces; the value comes after the last brace, and a timestamp may follow it.
            let split = line.rfind('}').map_or_else(|| line.find(' '), |brace| Some(brace + 1))?;
            let (name, rest) = line.split_at(split);
            Some((name.trim().to_owned(), rest.split_whitespace().next()?.parse().ok()?))
        };
        Self { series: text.lines().filter_map(sample).collect() }
    }

    fn of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        self.series.iter().filter_map(move |(series, value)| {
            let labels = series.strip_prefix(name)?;
            (labels.is_empty() || labels.starts_with('{')).then_some((labels, *value))
        })
    }

    /// Sum of a metric over all its labels; `None` if it is absent.
    pub fn sum(&self, name: &str) -> Option<f64> {
        self.of(name).map(|(_, value)| value).reduce(|a, b| a + b)
    }

    /// The highest value of a metric over all its labels; `None` if it is absent.
    pub fn highest(&self, name: &str) -> Option<f64> {
        self.of(name).map(|(_, value)| value).reduce(f64::max)
    }

    /// The label `key` of the first series of a metric whose value is above 0.
    pub fn label_where_positive(&self, name: &str, key: &str) -> Option<String> {
        let (labels, _) = self.of(name).find(|(_, value)| *value > 0.0)?;
        Some(labels.split_once(&format!("{key}=\""))?.1.split_once('"')?.0.to_owned())
    }

    /// Sum over the series with the label `key="value"`.
    pub fn labelled(&self, name: &str, key: &str, value: &str) -> Option<f64> {
        let wanted = format!("{key}=\"{value}\"");
        self.of(name).filter(|(labels, _)| labels.contains(&wanted)).map(|(_, value)| value).reduce(|a, b| a + b)
    }

    /// Cumulated counts of a histogram by upper bound, in rising order.
    fn buckets(&self, name: &str) -> Vec<(f64, f64)> {
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        let name = format!("{name}_bucket");
        for (labels, count) in self.of(&name) {
            let bound = labels.split("le=\"").nth(1).and_then(|rest| rest.split('"').next()?.parse::<f64>().ok());
            let Some(bound) = bound else { continue };
            match buckets.iter_mut().find(|(other, _)| other.total_cmp(&bound).is_eq()) {
                Some((_, sum)) => *sum += count,
                None => buckets.push((bound, count)),
            }
        }
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        buckets
    }
}

/// Makes a [`Sample`] of each look, with what changed since the one before.
#[derive(Clone, Debug, Default)]
pub struct Scraper {
    earlier: Option<(Timestamp, Metrics)>,
}

impl Scraper {
    /// The signals at `now`.
    pub fn sample(&mut self, now: Timestamp, metrics: Metrics, signals: &Signals) -> Sample {
        let earlier = self.earlier.take();
        let rise = |name: &str| {
            let (_, before) = earlier.as_ref()?;
            // A worker that started anew counts from zero.
            Some((metrics.sum(name)? - before.sum(name)?).max(0.0))
        };
        let seconds = earlier.as_ref().map(|(at, _)| now.duration_since(*at).as_secs_f64()).filter(|span| *span > 0.0);
        let gauge = |name: Option<&str>| {
            name.map_or(Reading::Missing, |name| metrics.sum(name).map_or(Reading::Missing, Reading::Value))
        };
        let ttft = |name: &str| {
            let now = metrics.buckets(name);
            if now.is_empty() {
                return Reading::Missing;
            }
            let before = earlier.as_ref().map(|(_, before)| before.buckets(name)).unwrap_or_default();
            quantile(0.95, &now, &before).map_or(Reading::Idle, Reading::Value)
        };
        let tokens = rise("vllm:prompt_tokens_total").zip(rise("vllm:generation_tokens_total")).map(|(a, b)| a + b);
        let itl = "vllm:inter_token_latency_seconds";
        let step_seconds = rise(&format!("{itl}_sum"))
            .zip(rise(&format!("{itl}_count")))
            .filter(|(_, count)| *count > 0.0)
            .map(|(sum, count)| sum / count);
        let tokens_per_second = tokens.zip(seconds).map(|(tokens, seconds)| tokens / seconds);
        let running = signals.running.and_then(|name| metrics.sum(name)).unwrap_or(0.0);
        let sample = Sample {
            at: now,
            kv: kv(&metrics, signals, running),
            oldest_waiting: gauge(signals.oldest_waiting),
            time_to_first_token: signals.time_to_first_token.map_or(Reading::Missing, ttft),
            running,
            step_seconds,
            tokens_per_second,
            tokens_per_step: tokens_per_second.zip(step_seconds).map(|(rate, step)| rate * step).filter(|n| *n > 0.0),
        };
        self.earlier = Some((now, metrics));
        sample
    }
}

/// Blocks: as our worker counts them, else from the share that other engines tell, where a waiting request is taken to need
/// as much as a running one has.
fn kv(metrics: &Metrics, signals: &Signals, running: f64) -> Option<Kv> {
    let blocks = |state| metrics.labelled("modelprofile_kv_blocks", "state", state);
    if let (Some(total), Some(used), Some(waiting)) = (blocks("total"), blocks("used"), blocks("waiting")) {
        return Some(Kv { total, used, waiting });
    }
    let used = metrics.sum(signals.kv_usage?)?;
    let waiting = signals.waiting.and_then(|name| metrics.sum(name)).unwrap_or(0.0);
    Some(Kv { total: 1.0, used, waiting: if running > 0.0 { waiting * used / running } else { 0.0 } })
}

/// A quantile of what a histogram counted between two looks, linear within its bucket; `None` if it counted nothing.
fn quantile(q: f64, now: &[(f64, f64)], before: &[(f64, f64)]) -> Option<f64> {
    let earlier =
        |bound: f64| before.iter().find(|(other, _)| other.total_cmp(&bound).is_eq()).map_or(0.0, |(_, count)| *count);
    let rises: Vec<(f64, f64)> =
        now.iter().map(|(bound, count)| (*bound, (count - earlier(*bound)).max(0.0))).collect();
    let total = rises.last().map(|(_, count)| *count).filter(|total| *total > 0.0)?;
    let rank = q * total;
    let (mut low, mut below) = (0.0, 0.0);
    for (bound, count) in rises {
        if count >= rank {
            // Beyond the last finite bound nothing more is known.
            return Some(if bound.is_infinite() {
                low
            } else {
                low + (bound - low) * (rank - below) / (count - below).max(1e-9)
            });
        }
        (low, below) = (bound, count);
    }
    None
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use modelprofile_api::EngineType;

    use super::*;

    fn text(used: u32, fast: u32, slow: u32, generated: u32) -> Metrics {
        Metrics::parse(&format!(
            "# HELP vllm:num_requests_running Requests.
vllm:num_requests_running{{model_name=\"a b\"}} 4
vllm:num_requests_waiting{{model_name=\"a b\"}} 2
vllm:kv_cache_usage_perc{{model_name=\"a b\"}} 0.5
modelprofile_oldest_waiting_seconds{{model_name=\"a b\"}} 1.5
modelprofile_kv_blocks{{state=\"total\",model_name=\"a b\"}} 100
modelprofile_kv_blocks{{state=\"used\",model_name=\"a b\"}} {used}
modelprofile_kv_blocks{{state=\"waiting\",model_name=\"a b\"}} 7
vllm:time_to_first_token_seconds_bucket{{le=\"1\",model_name=\"a b\"}} {fast}
vllm:time_to_first_token_seconds_bucket{{le=\"2\",model_name=\"a b\"}} {all}
vllm:time_to_first_token_seconds_bucket{{le=\"+Inf\",model_name=\"a b\"}} {all}
vllm:inter_token_latency_seconds_sum{{model_name=\"a b\"}} {itl}
vllm:inter_token_latency_seconds_count{{model_name=\"a b\"}} {generated}
vllm:prompt_tokens_total{{model_name=\"a b\"}} 0
vllm:generation_tokens_total{{model_name=\"a b\"}} {generated}
",
            all = fast + slow,
            itl = f64::from(generated) * 0.1,
        ))
    }

    #[test]
    fn a_sample_says_what_happened_since_the_look_before() {
        let signals = Signals::of(EngineType::Native);
        let start: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
        let mut scraper = Scraper::default();
        scraper.sample(start, text(40, 100, 0, 10), &signals);
        let sample = scraper.sample(start + SignedDuration::from_secs(2), text(60, 100, 10, 50), &signals);
        assert_eq!(sample.kv, Some(Kv { total: 100.0, used: 60.0, waiting: 7.0 }));
        assert_eq!(sample.oldest_waiting, Reading::Value(1.5));
        assert_eq!(sample.time_to_first_token, Reading::Value(1.95));
        assert_eq!(sample.tokens_per_second, Some(20.0));
        assert!((sample.tokens_per_step.unwrap() - 2.0).abs() < 1e-9);
        let idle = scraper.sample(start + SignedDuration::from_secs(4), text(60, 100, 10, 50), &signals);
        assert_eq!((idle.time_to_first_token, idle.step_seconds), (Reading::Idle, None));
    }

    #[test]
    fn an_engine_that_tells_a_share_only_gets_its_waiting_requests_estimated() {
        let signals = Signals::of(EngineType::Vllm);
        let metrics =
            Metrics::parse("vllm:kv_cache_usage_perc 0.5\nvllm:num_requests_running 4\nvllm:num_requests_waiting 2\n");
        assert_eq!(kv(&metrics, &signals, 4.0), Some(Kv { total: 1.0, used: 0.5, waiting: 0.25 }));
    }

    #[test]
    fn a_metric_that_is_gone_is_missing_and_not_zero() {
        let sample = Scraper::default().sample(
            Timestamp::UNIX_EPOCH,
            Metrics::parse("# nothing\n"),
            &Signals::of(EngineType::Native),
        );
        assert_eq!(
            (sample.kv, sample.oldest_waiting, sample.time_to_first_token),
            (None, Reading::Missing, Reading::Missing)
        );
    }
}
