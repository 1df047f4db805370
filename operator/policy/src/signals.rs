//! Which engine has which signal, and under which metric.

use modelprofile_api::EngineType;

/// A metric of one engine for each signal; `None` where the engine has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signals {
    /// Share of KV blocks that running requests hold, 0 to 1 (a gauge).
    pub kv_usage: Option<&'static str>,
    /// Age of the oldest waiting request, in seconds (a gauge).
    pub oldest_waiting: Option<&'static str>,
    /// Time to the first token, in seconds (a histogram).
    pub time_to_first_token: Option<&'static str>,
    /// Requests being computed (a gauge).
    pub running: Option<&'static str>,
    /// Requests waiting (a gauge).
    pub waiting: Option<&'static str>,
}

impl Signals {
    /// Whether load can be told from them at all.
    pub const fn usable(&self) -> bool {
        self.kv_usage.is_some() || self.oldest_waiting.is_some() || self.time_to_first_token.is_some()
    }

    /// The table.
    pub const fn of(engine: EngineType) -> Self {
        match engine {
            EngineType::Native => Self {
                kv_usage: Some("vllm:kv_cache_usage_perc"),
                oldest_waiting: Some("modelprofile_oldest_waiting_seconds"),
                time_to_first_token: Some("vllm:time_to_first_token_seconds"),
                running: Some("vllm:num_requests_running"),
                waiting: Some("vllm:num_requests_waiting"),
            },
            EngineType::Vllm => Self {
                kv_usage: Some("vllm:kv_cache_usage_perc"),
                oldest_waiting: None,
                time_to_first_token: Some("vllm:time_to_first_token_seconds"),
                running: Some("vllm:num_requests_running"),
                waiting: Some("vllm:num_requests_waiting"),
            },
            EngineType::TensorRtLlm => Self {
                kv_usage: Some("trtllm_kv_cache_utilization"),
                oldest_waiting: None,
                time_to_first_token: Some("trtllm_time_to_first_token_seconds"),
                running: None,
                waiting: None,
            },
            // Its KV gauge was removed in 2025, and it has no histogram of times.
            EngineType::LlamaCpp => Self {
                kv_usage: None,
                oldest_waiting: None,
                time_to_first_token: None,
                running: Some("llamacpp:requests_processing"),
                waiting: Some("llamacpp:requests_deferred"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_without_a_signal_is_not_usable() {
        assert!(Signals::of(EngineType::Native).usable());
        assert!(Signals::of(EngineType::Vllm).usable());
        assert!(!Signals::of(EngineType::LlamaCpp).usable());
    }
}
