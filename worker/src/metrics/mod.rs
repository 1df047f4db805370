//! Prometheus metrics: vLLM's names where one exists, `modelprofile_` for what is ours alone.

mod series;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use modelprofile_engine::serve::{Observation, Observer, Snapshot, SwitchEnd};
use modelprofile_kernels::BLOCK_TOKENS;
use prometheus::{Encoder, Registry, TextEncoder};

use series::Series;

/// Time over which tokens per second are counted.
const RATE_WINDOW: Duration = Duration::from_secs(5);

/// All metrics of a worker. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    series: Series,
    /// Held while the gauges are set and written out, so that one reader does not see another's half.
    rendering: Mutex<()>,
    /// Tokens of the last steps, with their time.
    recent: Mutex<VecDeque<(Instant, usize)>>,
}

impl Metrics {
    /// Registers everything, labelled with the served model's name.
    ///
    /// # Panics
    /// Never: the names are constants that are valid and distinct; a test gathers them all.
    pub fn new(model: &str) -> Self {
        let registry = Registry::new_custom(None, Some([("model_name".to_owned(), model.to_owned())].into()));
        let registry = registry.unwrap_or_default();
        let series = Series::register(&registry);
        Self(Arc::new(Inner { registry, series, rendering: Mutex::new(()), recent: Mutex::new(VecDeque::new()) }))
    }

    /// The text format, with the gauges of `snapshot`.
    pub fn render(&self, snapshot: Option<&Snapshot>) -> String {
        let _one_at_a_time = self.0.rendering.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(snapshot) = snapshot {
            self.set(snapshot);
        }
        let mut out = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.0.registry.gather(), &mut out) {
            tracing::error!(%error, "the metrics could not be written");
        }
        String::from_utf8_lossy(&out).into_owned()
    }

    fn set(&self, snapshot: &Snapshot) {
        let series = &self.0.series;
        series.running.set(snapshot.running as f64);
        series.waiting.set(snapshot.waiting as f64);
        series.kv_usage.set(snapshot.blocks_used as f64 / snapshot.blocks_total.max(1) as f64);
        series.oldest_waiting.set(snapshot.oldest_waiting.map_or(0.0, |t| t.elapsed().as_secs_f64()));
        series.stalled.set(snapshot.last_progress.map_or(0.0, |t| t.elapsed().as_secs_f64()));
        let memory = snapshot.memory;
        for (kind, bytes) in
            [("budget", memory.budget), ("weights", memory.weights), ("kv", memory.kv), ("workspace", memory.workspace)]
        {
            series.memory.with_label_values(&[kind]).set(bytes as f64);
        }
        for (state, blocks) in [
            ("total", snapshot.blocks_total),
            ("used", snapshot.blocks_used),
            ("cached", snapshot.blocks_cached),
            ("waiting", snapshot.blocks_waiting),
        ] {
            series.kv_blocks.with_label_values(&[state]).set(blocks as f64);
        }
        // A switch changes the label; the series of the profile before must go.
        series.cache_config.reset();
        let shape = [BLOCK_TOKENS.to_string(), snapshot.blocks_total.to_string()];
        series.cache_config.with_label_values(&shape).set(1.0);
        // As do those of profiles that left the ladder.
        series.active.reset();
        for profile in &snapshot.profiles {
            let active = profile.name == snapshot.active;
            series.active.with_label_values(&[&*profile.name]).set(f64::from(u8::from(active)));
        }
    }

    /// Tells which device computes.
    pub fn set_device(&self, name: &str) {
        let device = &self.0.series.device;
        device.reset();
        device.with_label_values(&[name]).set(1.0);
    }

    /// Generated tokens per second over the last five seconds.
    pub fn tokens_per_second(&self) -> f64 {
        let mut recent = self.0.recent.lock().unwrap_or_else(PoisonError::into_inner);
        prune(&mut recent);
        recent.iter().map(|(_, tokens)| *tokens).sum::<usize>() as f64 / RATE_WINDOW.as_secs_f64()
    }
}

fn prune(recent: &mut VecDeque<(Instant, usize)>) {
    while recent.front().is_some_and(|(at, _)| at.elapsed() > RATE_WINDOW) {
        recent.pop_front();
    }
}

impl Observer for Metrics {
    fn observe(&mut self, observation: Observation) {
        let (inner, series) = (&self.0, &self.0.series);
        match observation {
            Observation::Scheduled { queue_seconds } => series.queue.observe(queue_seconds),
            Observation::FirstToken { seconds } => series.time_to_first_token.observe(seconds),
            Observation::InterToken { seconds } => series.inter_token.observe(seconds),
            Observation::Finished { reason, seconds, prompt_tokens, generated_tokens } => {
                series.success.with_label_values(&[reason]).inc();
                series.request_prompt.observe(prompt_tokens as f64);
                series.request_generation.observe(generated_tokens as f64);
                series.request.observe(seconds);
            }
            Observation::Generated { profile, tokens } => {
                series.generation_tokens.inc_by(tokens as u64);
                series.generated.with_label_values(&[&*profile]).inc_by(tokens as u64);
                let mut recent = inner.recent.lock().unwrap_or_else(PoisonError::into_inner);
                prune(&mut recent);
                recent.push_back((Instant::now(), tokens));
            }
            Observation::Prefilled { tokens } => series.prompt_tokens.inc_by(tokens as u64),
            Observation::Preempted => series.preemptions.inc(),
            Observation::PrefixCache { queried, hit } => {
                series.prefix_queries.inc_by(queried as u64);
                series.prefix_hits.inc_by(hit as u64);
            }
            Observation::Switched(result) => {
                let outcome = match result.outcome {
                    SwitchEnd::Completed => "completed",
                    SwitchEnd::Refused | SwitchEnd::Unknown => "refused",
                    SwitchEnd::Replaced => "replaced",
                };
                series.switches.with_label_values(&[outcome]).inc();
                series.switch_duration.observe(result.duration.as_secs_f64());
                if result.outcome == SwitchEnd::Completed {
                    series.switch_pause.observe(result.pause.as_secs_f64());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_metrics_register_and_show_under_the_names_that_vllm_uses() {
        let mut metrics = Metrics::new("m");
        metrics.observe(Observation::FirstToken { seconds: 0.2 });
        metrics.observe(Observation::Generated { profile: "quality".into(), tokens: 3 });
        let text = metrics.render(None);
        for line in [
            "vllm:num_requests_running{model_name=\"m\"} 0",
            "vllm:time_to_first_token_seconds_count{model_name=\"m\"} 1",
            "modelprofile_generated_tokens_total{profile=\"quality\",model_name=\"m\"} 3",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!((metrics.tokens_per_second() - 0.6).abs() < 1e-9);
    }

    #[test]
    fn every_metric_has_a_help_sentence_of_its_own_and_counters_start_at_zero() {
        let text = Metrics::new("m").render(None);
        let help: Vec<&str> =
            text.lines().filter_map(|l| l.strip_prefix("# HELP ")?.split_once(' ')).map(|(_, help)| help).collect();
        let distinct: std::collections::HashSet<&&str> = help.iter().collect();
        assert!(help.len() > 15 && distinct.len() == help.len(), "{help:#?}");
        assert!(help.iter().all(|sentence| sentence.ends_with('.') && sentence.len() > 15), "{help:#?}");
        for line in [
            "vllm:request_success_total{finished_reason=\"abort\",model_name=\"m\"} 0",
            "modelprofile_switches_total{outcome=\"refused\",model_name=\"m\"} 0",
            concat!("modelprofile_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\",model_name=\"m\"} 1"),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn the_device_is_told_once_it_is_known() {
        let metrics = Metrics::new("m");
        assert!(!metrics.render(None).contains("modelprofile_device_info{"));
        metrics.set_device("NVIDIA H100 \"80GB\"");
        let line = r#"modelprofile_device_info{device="NVIDIA H100 \"80GB\"",model_name="m"} 1"#;
        let text = metrics.render(None);
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }

    #[test]
    fn a_switch_counts_its_outcome_and_only_a_completed_one_its_pause() {
        let mut metrics = Metrics::new("m");
        for outcome in [SwitchEnd::Completed, SwitchEnd::Refused] {
            metrics.observe(Observation::Switched(modelprofile_engine::serve::SwitchResult {
                from: "a".into(),
                to: "b".into(),
                start: std::time::SystemTime::UNIX_EPOCH,
                duration: Duration::from_millis(20),
                pause: Duration::from_millis(2),
                preempted: 0,
                outcome,
                message: String::new(),
            }));
        }
        let text = metrics.render(None);
        for line in [
            "modelprofile_switches_total{outcome=\"completed\",model_name=\"m\"} 1",
            "modelprofile_switches_total{outcome=\"refused\",model_name=\"m\"} 1",
            "modelprofile_switch_duration_seconds_count{model_name=\"m\"} 2",
            "modelprofile_switch_pause_seconds_count{model_name=\"m\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
