//! Every metric by name: what it counts, its buckets, its labels.

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry, core::Collector,
};

// Buckets of times in seconds, and of tokens: vLLM's, so that its dashboards and thresholds mean the same here.
const TIME_TO_FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
const INTER_TOKEN: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
const REQUEST: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];
const TOKENS: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6];
const SWITCH: &[f64] = &[0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The metrics of a worker.
pub(super) struct Series {
    pub(super) running: Gauge,
    pub(super) waiting: Gauge,
    pub(super) oldest_waiting: Gauge,
    pub(super) stalled: Gauge,
    pub(super) kv_usage: Gauge,
    pub(super) kv_blocks: GaugeVec,
    pub(super) cache_config: GaugeVec,
    pub(super) memory: GaugeVec,
    pub(super) active: GaugeVec,
    pub(super) device: GaugeVec,
    pub(super) time_to_first_token: Histogram,
    pub(super) inter_token: Histogram,
    pub(super) request: Histogram,
    pub(super) queue: Histogram,
    pub(super) request_prompt: Histogram,
    pub(super) request_generation: Histogram,
    pub(super) prompt_tokens: IntCounter,
    pub(super) generation_tokens: IntCounter,
    pub(super) generated: IntCounterVec,
    pub(super) prefix_queries: IntCounter,
    pub(super) prefix_hits: IntCounter,
    pub(super) preemptions: IntCounter,
    pub(super) success: IntCounterVec,
    pub(super) switches: IntCounterVec,
    pub(super) switch_duration: Histogram,
    pub(super) switch_pause: Histogram,
}

impl Series {
    /// Registers all of them.
    pub(super) fn register(r: &Registry) -> Self {
        let series = Self {
            running: gauge(r, "vllm:num_requests_running", "Requests being computed."),
            waiting: gauge(r, "vllm:num_requests_waiting", "Requests that wait to be computed."),
            oldest_waiting: gauge(
                r,
                "modelprofile_oldest_waiting_seconds",
                "Age of the oldest waiting request, 0 if none waits.",
            ),
            stalled: gauge(
                r,
                "modelprofile_engine_stalled_seconds",
                "Time since the engine got on with its requests, 0 if it has none; growing: it is stuck.",
            ),
            kv_usage: gauge(
                r,
                "vllm:kv_cache_usage_perc",
                "Share of the KV-cache blocks that running requests hold, 0 to 1.",
            ),
            kv_blocks: gauges(
                r,
                "modelprofile_kv_blocks",
                "KV-cache blocks of the active profile: total, used by running requests, cached, which are free with a \
                 reusable prefix, and waiting, which the waiting prompts need.",
                &["state"],
            ),
            cache_config: gauges(
                r,
                "vllm:cache_config_info",
                "1, labelled with the KV cache's shape: tokens of a block, and blocks of the active profile.",
                &["block_size", "num_gpu_blocks"],
            ),
            memory: gauges(
                r,
                "modelprofile_memory_bytes",
                "Memory of the model: the budget, and the weights, KV cache and workspace that it covers.",
                &["kind"],
            ),
            active: gauges(
                r,
                "modelprofile_active_profile",
                "1 for the profile that computes, 0 for the others of the ladder.",
                &["profile"],
            ),
            device: gauges(
                r,
                "modelprofile_device_info",
                "1, labelled with the device that the model is computed on.",
                &["device"],
            ),
            time_to_first_token: histogram(
                r,
                "vllm:time_to_first_token_seconds",
                "Time from a request's arrival to its first token.",
                TIME_TO_FIRST_TOKEN,
            ),
            inter_token: histogram(
                r,
                "vllm:inter_token_latency_seconds",
                "Time between two tokens of a request.",
                INTER_TOKEN,
            ),
            request: histogram(
                r,
                "vllm:e2e_request_latency_seconds",
                "Time from a request's arrival to its end.",
                REQUEST,
            ),
            queue: histogram(
                r,
                "vllm:request_queue_time_seconds",
                "Time that a request waited before it was computed.",
                REQUEST,
            ),
            request_prompt: histogram(
                r,
                "vllm:request_prompt_tokens",
                "Prompt tokens of a request that ended.",
                TOKENS,
            ),
            request_generation: histogram(
                r,
                "vllm:request_generation_tokens",
                "Generated tokens of a request that ended.",
                TOKENS,
            ),
            prompt_tokens: counter(r, "vllm:prompt_tokens_total", "Prompt tokens computed."),
            generation_tokens: counter(r, "vllm:generation_tokens_total", "Tokens generated."),
            generated: counters(
                r,
                "modelprofile_generated_tokens_total",
                "Tokens generated, by the profile that computed them.",
                "profile",
            ),
            prefix_queries: counter(
                r,
                "vllm:prefix_cache_queries_total",
                "Prompt tokens looked up in the prefix cache.",
            ),
            prefix_hits: counter(r, "vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache."),
            preemptions: counter(
                r,
                "vllm:num_preemptions_total",
                "Requests that gave their blocks back and were recomputed.",
            ),
            success: counters(r, "vllm:request_success_total", "Requests that ended, by reason.", "finished_reason"),
            switches: counters(r, "modelprofile_switches_total", "Switches of the profile, by outcome.", "outcome"),
            switch_duration: histogram(
                r,
                "modelprofile_switch_duration_seconds",
                "Time from the request for a switch to its end.",
                SWITCH,
            ),
            switch_pause: histogram(
                r,
                "modelprofile_switch_pause_seconds",
                "Time in which a completed switch let no step run.",
                SWITCH,
            ),
        };
        // A counter that is there from the start, at 0, has a rate when it first counts.
        for reason in ["stop", "length", "abort", "error"] {
            series.success.with_label_values(&[reason]);
        }
        for outcome in ["completed", "refused", "replaced"] {
            series.switches.with_label_values(&[outcome]);
        }
        gauges(r, "modelprofile_build_info", "1, labelled with the worker's version.", &["version"])
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1.0);
        series
    }
}

/// Registers a metric that was built from the constants above. All that the library could refuse is a name that is
/// malformed or there twice, and the tests have registered every one.
#[allow(clippy::expect_used, reason = "the names are constants")]
fn register<M: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<M>) -> M {
    let metric = metric.expect("a well-formed name");
    registry.register(Box::new(metric.clone())).expect("a distinct name");
    metric
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Gauge {
    register(registry, Gauge::new(name, help))
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
    register(registry, GaugeVec::new(Opts::new(name, help), labels))
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, IntCounter::new(name, help))
}

fn counters(registry: &Registry, name: &str, help: &str, label: &str) -> IntCounterVec {
    register(registry, IntCounterVec::new(Opts::new(name, help), &[label]))
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    register(registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
}
