//! What is known about the workers in one pass.

use jiff::Timestamp;
use modelprofile_api::Verdict;

/// All that a decision is made on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// Index of the profile that the ready workers serve with; `None` while none is ready.
    pub active: Option<usize>,
    /// Index of the profile that a switch under way leads to.
    pub target: Option<usize>,
    /// Workers that were asked for last.
    pub replicas: u32,
    /// The workers that exist.
    pub workers: Vec<Replica>,
    /// What is known about each profile, in the ladder's order. A profile that is not here has nothing known about it.
    pub rungs: Vec<Rung>,
    /// Bytes for weights and KV cache together, per worker; `None` if not known.
    pub memory_bytes: Option<u64>,
    /// Tokens of a step from which on 4-bit weights compute slower than 8-bit weights (about 130 on an H100). `None`
    /// where they never do, as on CPUs.
    pub compute_bound_tokens: Option<f64>,
}

/// One worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Replica {
    /// It answers requests. The sample is the latest, however old.
    Ready(Option<Sample>),
    /// It loads: no capacity yet.
    Starting,
    /// It can not be scheduled, or was not ready within its start-up limit: nobody waits for it.
    Unavailable,
}

/// The signals of one worker at one instant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// When it was taken.
    pub at: Timestamp,
    /// The KV cache; `None` if the engine's metric for it is gone.
    pub kv: Option<Kv>,
    /// Age of the oldest waiting request, in seconds.
    pub oldest_waiting: Reading,
    /// 95th percentile of the time to the first token over the latest interval, in seconds.
    pub time_to_first_token: Reading,
    /// Requests being computed.
    pub running: f64,
    /// Mean time of a step (between two tokens of a request) over the latest interval, in seconds; `None` while nothing
    /// was generated.
    pub step_seconds: Option<f64>,
    /// Tokens computed per second over the latest interval, prompts included; `None` if not known.
    pub tokens_per_second: Option<f64>,
    /// Mean tokens that a step computed, prompts included; `None` while nothing was computed.
    pub tokens_per_step: Option<f64>,
}

/// One signal.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Reading {
    /// Its value.
    Value(f64),
    /// The engine has it, and there was nothing to measure.
    #[default]
    Idle,
    /// The engine is said to have it, but it was not there.
    Missing,
}

/// Blocks of one worker's KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Kv {
    /// All blocks.
    pub total: f64,
    /// Blocks of running requests; reusable prefix blocks count as free.
    pub used: f64,
    /// Blocks that the waiting prompts need.
    pub waiting: f64,
}

/// What is known about one profile.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rung {
    /// What the quality gate says of it; unless it passed, it is no rung.
    pub verdict: Verdict,
    /// Tokens that the KV cache of one worker holds in it, as the workers report.
    pub kv_tokens: Option<u64>,
    /// Packed weights in bytes per worker.
    pub weight_bytes: Option<u64>,
    /// No worker has it yet, so none could change to it: until one does it is no rung, and a pin to it waits.
    pub awaited: bool,
}

impl Observation {
    /// Samples of ready workers that are not older than `max_age_seconds`. One from as far in the future is stale too: the
    /// clock was set back since.
    pub(crate) fn fresh(&self, now: Timestamp, max_age_seconds: f64) -> impl Iterator<Item = &Sample> {
        self.workers.iter().filter_map(move |worker| match worker {
            Replica::Ready(Some(sample)) if now.duration_since(sample.at).as_secs_f64().abs() <= max_age_seconds => {
                Some(sample)
            }
            _ => None,
        })
    }

    /// Workers that answer requests.
    pub fn ready(&self) -> usize {
        self.workers.iter().filter(|worker| matches!(worker, Replica::Ready(_))).count()
    }

    pub(crate) fn starting(&self) -> usize {
        self.workers.iter().filter(|worker| matches!(worker, Replica::Starting)).count()
    }

    pub(crate) fn unavailable(&self) -> usize {
        self.workers.iter().filter(|worker| matches!(worker, Replica::Unavailable)).count()
    }

    /// What is known about a profile.
    pub(crate) fn rung(&self, index: usize) -> Rung {
        self.rungs.get(index).copied().unwrap_or_default()
    }
}
