//! What a simulation takes, and what comes of it.

use jiff::Timestamp;
use modelprofile_api::ModelProfileSpec;

use crate::simulate::histogram::Histogram;
use crate::simulate::replica::RungModel;

/// One simulation.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Name for reports.
    pub name: String,
    /// Manifest that the decision follows; its switching strategy is how switches are carried out.
    pub spec: ModelProfileSpec,
    /// The ladder.
    pub rungs: Vec<RungModel>,
    /// Memory for weights and KV cache of a worker, in bytes.
    pub memory_bytes: u64,
    /// Tokens of a step from which on the densest rung is slower than the first; `None` if it never is.
    pub compute_bound_tokens: Option<f64>,
    /// Rung at the start.
    pub rung: usize,
    /// Workers at the start.
    pub replicas: u32,
    /// Time until a new worker is ready on each rung, in seconds.
    pub load_seconds: Vec<f64>,
    /// Time between two decisions, in seconds.
    pub interval: f64,
    /// Civil time of the trace's start, for schedules.
    pub start: Timestamp,
    /// Longest time to the first token that counts as served well, in seconds.
    pub slo_seconds: f64,
    /// Seed of the routing.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Name of the scenario.
    pub name: String,
    /// Requests that got all their tokens.
    pub completed: u64,
    /// Requests that no worker could ever hold.
    pub rejected: u64,
    /// Requests whose first token came in time.
    pub in_time: u64,
    /// Times to the first token.
    pub time_to_first_token: Histogram,
    /// Times from arrival to the last token.
    pub end_to_end: Histogram,
    /// Accelerator time of all workers from start to end, loading included, in seconds.
    pub gpu_seconds: f64,
    /// Tokens generated, by rung.
    pub tokens: [u64; 4],
    /// Changes of the profile.
    pub switches: u64,
    /// Changes of the number of workers.
    pub scalings: u64,
    /// Sequences that gave their blocks back and were computed again.
    pub preemptions: u64,
    /// Most blocks that any worker used, as a share of what it had.
    pub worst_use: f64,
    /// From the start to the last token, in seconds.
    pub seconds: f64,
    /// Time covered by one column of the timeline, in seconds.
    pub column_seconds: f64,
    /// The first changes of profile or number of workers: when, in seconds, and why.
    pub changes: Vec<(f64, String)>,
    /// What was seen over time.
    pub timeline: Vec<Column>,
}

impl Outcome {
    /// Share of the requests whose first token came in time.
    pub fn attainment(&self) -> f64 {
        self.in_time as f64 / (self.completed + self.rejected).max(1) as f64
    }

    /// Share of the tokens that the first rung generated.
    pub fn quality_share(&self) -> f64 {
        self.tokens[0] as f64 / self.tokens.iter().sum::<u64>().max(1) as f64
    }
}

/// The latest values that were seen in one column of the timeline.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Column {
    /// Requests that arrived.
    pub arrivals: u32,
    /// Highest load over target.
    pub pressure: f64,
    /// Active rung; `None` if the policy was not asked in this column.
    pub rung: Option<usize>,
    /// Workers that exist.
    pub workers: u32,
    /// Highest time to the first token, in seconds.
    pub ttft: f64,
}
