//! Metrics of a worker, from Prometheus' text format to the signals that a decision needs.
//!
//! Counters and histograms only rise, so a signal over a time is the difference of two looks: [`Scraper`] keeps the latest
//! one for what is told of each interval, and snapshots of the time to the first token for its window.
//!
//! | module | what it holds |
//! |---|---|
//! | `text` | Prometheus' text format |
//! | `window` | quantiles of a histogram over a window of time, from bounded snapshots |

mod text;
mod window;

use jiff::Timestamp;
use modelprofile_policy::signals::Signals;
use modelprofile_policy::{Kv, Reading, Rules, Sample};

pub use text::Metrics;
use window::Window;

const PROMPT_TOKENS: &str = "vllm:prompt_tokens_total";
const OUTPUT_TOKENS: &str = "vllm:generation_tokens_total";
const STEP_SECONDS: &str = "vllm:inter_token_latency_seconds_sum";
const STEPS: &str = "vllm:inter_token_latency_seconds_count";

/// Fewest intervals that the window of the time to the first token covers: one request says little about a percentile.
const FEWEST_INTERVALS: i32 = 3;

/// Makes a [`Sample`] of each look, with what changed since the one before.
#[derive(Clone, Debug, Default)]
pub struct Scraper {
    earlier: Option<(Timestamp, Counters)>,
    first_tokens: Window,
    /// Share of the KV cache that a running request had when some ran last.
    share_of_one: Option<f64>,
}

/// What only rises, in one look: all that the next look needs of it. The whole look has 20 KB and more, and there are as many as
/// there are workers.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    prompt_tokens: Option<f64>,
    output_tokens: Option<f64>,
    step_seconds: Option<f64>,
    steps: Option<f64>,
    first_tokens: Option<f64>,
}

impl Counters {
    fn of(metrics: &Metrics, signals: &Signals) -> Self {
        let first_tokens = signals.time_to_first_token.map(|name| format!("{name}_count"));
        Self {
            prompt_tokens: metrics.sum(PROMPT_TOKENS),
            output_tokens: metrics.sum(OUTPUT_TOKENS),
            step_seconds: metrics.sum(STEP_SECONDS),
            steps: metrics.sum(STEPS),
            first_tokens: first_tokens.and_then(|name| metrics.sum(&name)),
        }
    }

    /// One fell since `before`: the worker started anew, and all that it has counted is new.
    fn anew(&self, before: &Self) -> bool {
        let pairs = [
            (self.prompt_tokens, before.prompt_tokens),
            (self.output_tokens, before.output_tokens),
            (self.steps, before.steps),
            (self.first_tokens, before.first_tokens),
        ];
        pairs.into_iter().any(|(now, before)| now.zip(before).is_some_and(|(now, before)| now < before))
    }
}

impl Scraper {
    /// The signals at `now`. Times to the first token are those of the window toward density, so that a peak in which few
    /// requests get that far is seen without a gap.
    pub fn sample(&mut self, now: Timestamp, metrics: &Metrics, rules: &Rules) -> Sample {
        let signals = &rules.signals;
        let counters = Counters::of(metrics, signals);
        let earlier = self.earlier.replace((now, counters));
        let anew = earlier.filter(|(_, before)| counters.anew(before)).map(|(at, _)| at);
        if let Some(at) = anew {
            self.first_tokens.start_anew(at);
        }
        let rise = |counter: fn(&Counters) -> Option<f64>| {
            let (_, before) = earlier?;
            Some(counter(&counters)? - if anew.is_some() { 0.0 } else { counter(&before)? })
        };
        let seconds = earlier.map(|(at, _)| now.duration_since(at).as_secs_f64()).filter(|span| *span > 0.0);
        let tokens = rise(|all| all.prompt_tokens).zip(rise(|all| all.output_tokens)).map(|(a, b)| a + b);
        let step_seconds = rise(|all| all.step_seconds)
            .zip(rise(|all| all.steps))
            .filter(|(_, count)| *count > 0.0)
            .map(|(sum, count)| sum / count);
        let tokens_per_second = tokens.zip(seconds).map(|(tokens, seconds)| tokens / seconds);
        let running = signals.running.and_then(|name| metrics.sum(name)).unwrap_or(0.0);
        Sample {
            at: now,
            kv: self.kv(metrics, signals, running),
            // Each engine of a server tells its own; the oldest is the oldest of all.
            oldest_waiting: signals
                .oldest_waiting
                .and_then(|name| metrics.highest(name))
                .map_or(Reading::Missing, Reading::Value),
            time_to_first_token: self.time_to_first_token(now, metrics, rules),
            running,
            step_seconds,
            tokens_per_second,
            tokens_per_step: tokens_per_second.zip(step_seconds).map(|(rate, step)| rate * step).filter(|n| *n > 0.0),
        }
    }

    /// The 95th percentile over the window.
    fn time_to_first_token(&mut self, now: Timestamp, metrics: &Metrics, rules: &Rules) -> Reading {
        let Some(buckets) = rules.signals.time_to_first_token.map(|name| metrics.buckets(name)) else {
            return Reading::Missing;
        };
        if buckets.is_empty() {
            return Reading::Missing;
        }
        let span = rules.up_window.max(rules.interval.saturating_mul(FEWEST_INTERVALS));
        self.first_tokens.quantile(0.95, now, buckets, span).map_or(Reading::Idle, Reading::Value)
    }

    /// Blocks: as our worker counts them, else from the share that other engines tell, where a waiting request is taken to
    /// need as much as a running one has. The engines of one server are filled evenly, so their mean is its share.
    fn kv(&mut self, metrics: &Metrics, signals: &Signals, running: f64) -> Option<Kv> {
        let blocks = |state| metrics.labelled("modelprofile_kv_blocks", "state", state);
        if let (Some(total), Some(used), Some(waiting)) = (blocks("total"), blocks("used"), blocks("waiting")) {
            return Some(Kv { total, used, waiting });
        }
        let used = metrics.mean(signals.kv_usage?)?;
        let waiting = signals.waiting.and_then(|name| metrics.sum(name)).unwrap_or(0.0);
        if running > 0.0 && used > 0.0 {
            self.share_of_one = Some(used / running);
        }
        let needed = match self.share_of_one {
            Some(share) => waiting * share,
            // Nothing runs although something waits: it has no room, and that is all that is known.
            None if waiting > 0.0 && running <= 0.0 => (1.0 - used).max(0.0),
            None => 0.0,
        };
        Some(Kv { total: 1.0, used, waiting: needed })
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use modelprofile_api::EngineType;

    use super::*;
    use crate::local::watch::fixture;

    fn rules(engine: EngineType, up_window: i64) -> Rules {
        let rules = Rules::new(fixture::valid("{}").spec(), SignedDuration::from_secs(1)).unwrap();
        let up_window = SignedDuration::from_secs(up_window);
        Rules { signals: Signals::of(engine), up_window, ..rules }
    }

    /// vLLM's words on `slow` first tokens, each after 4 to 8 seconds.
    fn vllm(slow: u32) -> Metrics {
        Metrics::parse(&format!(
            "vllm:time_to_first_token_seconds_bucket{{le=\"4\"}} 0
vllm:time_to_first_token_seconds_bucket{{le=\"8\"}} {slow}
vllm:time_to_first_token_seconds_bucket{{le=\"+Inf\"}} {slow}
vllm:time_to_first_token_seconds_count {slow}
"
        ))
    }

    /// Times to the first token in looks a second apart, to the microsecond.
    fn first_tokens(up_window: i64, looks: impl IntoIterator<Item = Metrics>) -> Vec<Reading> {
        let (mut scraper, rules) = (Scraper::default(), rules(EngineType::Vllm, up_window));
        let reading = |(second, metrics)| {
            let sample = scraper.sample(Timestamp::from_second(second).unwrap(), &metrics, &rules);
            match sample.time_to_first_token {
                Reading::Value(seconds) => Reading::Value((seconds * 1e6).round() / 1e6),
                other => other,
            }
        };
        (0..).zip(looks).map(reading).collect()
    }

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
    fn an_overload_with_a_first_token_in_every_third_second_is_seen_without_a_gap() {
        let readings = first_tokens(15, (0..20).map(|second| vllm(second / 3)));
        let value = Reading::Value(7.8);
        assert_eq!(readings, [vec![Reading::Idle; 3], vec![value; 17]].concat());
    }

    #[test]
    fn one_slow_request_alone_does_not_last_for_the_window() {
        let readings = first_tokens(15, (0..20).map(|second| vllm(u32::from(second > 0))));
        let lasts = readings.iter().filter(|reading| **reading == Reading::Value(7.8)).count();
        assert_eq!((readings[0], readings[1], lasts), (Reading::Idle, Reading::Value(7.8), 15));
        // What lasts from second 1 to second 15 lasts for 14 seconds.
        assert_eq!(readings[16], Reading::Idle);
    }

    #[test]
    fn a_short_window_covers_a_few_intervals() {
        let readings = first_tokens(0, (0..6).map(|second| vllm(u32::from(second > 0))));
        let value = Reading::Value(7.8);
        assert_eq!(readings, [Reading::Idle, value, value, value, Reading::Idle, Reading::Idle]);
    }

    #[test]
    fn a_sample_says_what_happened_since_the_look_before() {
        let rules = rules(EngineType::Native, 0);
        let start: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
        let mut scraper = Scraper::default();
        scraper.sample(start, &text(40, 100, 0, 10), &rules);
        let sample = scraper.sample(start + SignedDuration::from_secs(2), &text(60, 100, 10, 50), &rules);
        assert_eq!(sample.kv, Some(Kv { total: 100.0, used: 60.0, waiting: 7.0 }));
        assert_eq!(sample.oldest_waiting, Reading::Value(1.5));
        assert_eq!(sample.time_to_first_token, Reading::Value(1.95));
        assert_eq!(sample.tokens_per_second, Some(20.0));
        assert!((sample.tokens_per_step.unwrap() - 2.0).abs() < 1e-9);
        let idle = scraper.sample(start + SignedDuration::from_secs(4), &text(60, 100, 10, 50), &rules);
        assert_eq!((idle.time_to_first_token, idle.step_seconds), (Reading::Idle, None));
    }

    #[test]
    fn all_that_a_worker_counted_since_it_started_anew_is_new() {
        let rules = rules(EngineType::Native, 0);
        let mut scraper = Scraper::default();
        scraper.sample(Timestamp::UNIX_EPOCH, &text(40, 100, 0, 1_000), &rules);
        let sample = scraper.sample(Timestamp::from_second(2).unwrap(), &text(60, 5, 5, 50), &rules);
        assert_eq!((sample.time_to_first_token, sample.tokens_per_second), (Reading::Value(1.9), Some(25.0)));
        assert!((sample.step_seconds.unwrap() - 0.1).abs() < 1e-9, "{sample:?}");
        let next = scraper.sample(Timestamp::from_second(3).unwrap(), &text(60, 5, 5, 60), &rules);
        assert_eq!((next.time_to_first_token, next.tokens_per_second), (Reading::Value(1.9), Some(10.0)));
    }

    #[test]
    fn a_worker_that_started_anew_and_is_idle_has_no_time_to_the_first_token() {
        assert_eq!(first_tokens(15, [vllm(4), vllm(5), vllm(0)])[1..], [Reading::Value(7.8), Reading::Idle]);
    }

    #[test]
    fn an_engine_that_tells_a_share_only_gets_its_waiting_requests_estimated() {
        let signals = Signals::of(EngineType::Vllm);
        let metrics =
            Metrics::parse("vllm:kv_cache_usage_perc 0.5\nvllm:num_requests_running 4\nvllm:num_requests_waiting 2\n");
        let kv = Scraper::default().kv(&metrics, &signals, 4.0);
        assert_eq!(kv, Some(Kv { total: 1.0, used: 0.5, waiting: 0.25 }));
    }

    #[test]
    fn two_engines_of_one_server_are_one_worker_with_the_mean_of_their_shares() {
        let metrics = Metrics::parse(
            "vllm:kv_cache_usage_perc{engine=\"0\"} 0.5\nvllm:kv_cache_usage_perc{engine=\"1\"} 0.75
vllm:num_requests_running{engine=\"0\"} 4\nvllm:num_requests_running{engine=\"1\"} 6
vllm:num_requests_waiting{engine=\"0\"} 0\nvllm:num_requests_waiting{engine=\"1\"} 2
modelprofile_oldest_waiting_seconds{engine=\"0\"} 1\nmodelprofile_oldest_waiting_seconds{engine=\"1\"} 1.5\n",
        );
        let rules = rules(EngineType::Native, 0);
        let sample = Scraper::default().sample(Timestamp::UNIX_EPOCH, &metrics, &rules);
        assert_eq!(sample.kv, Some(Kv { total: 1.0, used: 0.625, waiting: 0.125 }));
        assert_eq!((sample.running, sample.oldest_waiting), (10.0, Reading::Value(1.5)));
    }

    #[test]
    fn requests_that_wait_while_none_runs_are_demand() {
        let signals = Signals::of(EngineType::Vllm);
        let look = |used: f64, waiting: u32| {
            Metrics::parse(&format!("vllm:kv_cache_usage_perc {used}\nvllm:num_requests_waiting {waiting}\n"))
        };
        let kv = |used, waiting| Some(Kv { total: 1.0, used, waiting });
        let mut scraper = Scraper::default();
        assert_eq!(scraper.kv(&look(0.0, 0), &signals, 0.0), kv(0.0, 0.0));
        assert_eq!(scraper.kv(&look(0.0, 3), &signals, 0.0), kv(0.0, 1.0));
        assert_eq!(scraper.kv(&look(0.5, 0), &signals, 2.0), kv(0.5, 0.0));
        assert_eq!(scraper.kv(&look(0.0, 3), &signals, 0.0), kv(0.0, 0.75));
    }

    #[test]
    fn a_metric_that_is_gone_is_missing_and_not_zero() {
        let sample = Scraper::default().sample(
            Timestamp::UNIX_EPOCH,
            &Metrics::parse("# nothing\n"),
            &rules(EngineType::Native, 0),
        );
        assert_eq!(
            (sample.kv, sample.oldest_waiting, sample.time_to_first_token),
            (None, Reading::Missing, Reading::Missing)
        );
    }
}
