//! The worker's admin API, as values: what `GET /admin/v1/state` returns and `PUT /admin/v1/profile` takes. The operator,
//! the local mode and the worker share these types, so that they cannot drift apart.

use serde::{Deserialize, Serialize};

use crate::{MeasuredQuality, Quality};

/// Life of a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerPhase {
    /// Quantizing, measuring or loading; not ready.
    #[default]
    Preparing,
    /// Prepared, but no profile may serve within the quality limits: it takes no request until they change, and `message`
    /// names the figures.
    Blocked,
    /// Serving.
    Ready,
    /// Finishing what it has; refuses new requests.
    Draining,
    /// Could not prepare; `message` says why.
    Failed,
}

/// One profile as the worker sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkerProfile {
    /// Name in the manifest.
    pub name: String,
    /// Key of its artifact; empty until known.
    pub artifact_key: String,
    /// Packed weight bytes; 0 until known.
    pub weight_bytes: u64,
    /// Tokens that the KV cache holds in this profile within the memory budget; 0 until known.
    pub kv_tokens: u64,
    /// Progress of its preparation, 0 to 100.
    pub prepared_percent: f64,
    /// What the preparation is doing ("quantizing layer 3 of 30"); empty when done.
    pub activity: String,
    /// What quantizing cost; `None` when it was not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quality: Option<MeasuredQuality>,
}

/// A profile that was added to the manifest while the worker serves, and has not joined the ladder yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AwaitedProfile {
    /// Name in the manifest.
    pub name: String,
    /// What kind of thing it lacks.
    pub reason: AwaitedReason,
    /// What it lacks, as a sentence.
    pub message: String,
}

/// Why a profile has not joined the ladder of a worker that serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AwaitedReason {
    /// Its artifact is not in the cache, or damaged. The worker takes it once it is there; one that starts would make it.
    #[default]
    ArtifactMissing,
    /// It can not join a worker that runs; one that starts takes it.
    NeedsRestart,
    /// No worker can have it, as the manifest is.
    DoesNotFit,
}

/// Use of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkerKv {
    /// Blocks of the active profile.
    pub blocks_total: u64,
    /// Blocks owned by running requests.
    pub blocks_used: u64,
    /// Reusable blocks of the prefix cache; they count as free.
    pub blocks_cached: u64,
    /// Tokens of a block.
    pub block_tokens: u64,
}

/// Requests in the worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkerRequests {
    /// Being computed.
    pub running: u64,
    /// Waiting for room.
    pub waiting: u64,
    /// Age of the oldest waiting request.
    pub oldest_waiting_seconds: f64,
    /// Generated tokens per second over the last 5 seconds.
    pub tokens_per_second: f64,
    /// Time since the engine got on with what it has, by a layer of a step; 0 while it has nothing to do, and from a worker
    /// that does not tell. While it grows the engine is stuck, and all the other numbers are those of before.
    pub stalled_seconds: f64,
}

/// Memory of the worker, all in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkerMemory {
    /// `weights + KV pool + workspace` never exceeds this.
    pub budget_bytes: u64,
    /// Packed weights of the active profile.
    pub weight_bytes: u64,
    /// The KV pool at its present size.
    pub kv_bytes: u64,
    /// Activations and scratch.
    pub workspace_bytes: u64,
}

/// How a switch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SwitchOutcome {
    /// The target is active.
    Completed,
    /// The target cannot be switched to; the worker serves on in the old profile.
    Refused,
    /// A later request for another profile came before this one began to swap.
    Replaced,
}

impl SwitchOutcome {
    /// The word itself.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Refused => "Refused",
            Self::Replaced => "Replaced",
        }
    }
}

/// A switch of the active profile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SwitchReport {
    /// Profile before.
    pub from: String,
    /// Profile asked for.
    pub to: String,
    /// RFC 3339, UTC.
    pub start_time: String,
    /// From the request to the report.
    pub duration_millis: u64,
    /// Time that the engine could not compute a step because of the swap.
    pub pause_millis: f64,
    /// Requests preempted to shrink the KV pool (they are recomputed, not failed).
    pub preempted: u64,
    /// How it ended.
    pub outcome: SwitchOutcome,
    /// A sentence for a person.
    pub message: String,
}

/// What a worker says of itself: `GET /admin/v1/state`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkerState {
    /// Version of the worker.
    pub version: String,
    /// Name that the API serves the model under.
    pub served_name: String,
    /// Life of the worker.
    pub phase: WorkerPhase,
    /// Why it is in this phase, when that is not obvious.
    pub message: String,
    /// Profile that computes now; `None` before the first is ready.
    pub active_profile: Option<String>,
    /// Profile of a switch under way.
    pub target_profile: Option<String>,
    /// The ladder: what it can change to. A profile that left the manifest while it computes is part of it until another one
    /// does.
    pub profiles: Vec<WorkerProfile>,
    /// Profiles of the manifest that it can not change to yet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub awaited_profiles: Vec<AwaitedProfile>,
    /// KV cache.
    pub kv: WorkerKv,
    /// Requests.
    pub requests: WorkerRequests,
    /// Memory.
    pub memory: WorkerMemory,
    /// The latest switch, if any.
    pub last_switch: Option<SwitchReport>,
    /// Limits that it holds its profiles against. `None` from a worker without a gate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quality_limits: Option<Quality>,
}

/// Body of `PUT /admin/v1/profile`. The answer is a [`SwitchReport`] once the switch ended: status 200 `Completed`, 409 `Refused`
/// or `Replaced`; 404 for a name that is not in the ladder, also after another look into the manifest. A profile that may not
/// serve within the quality limits is `Refused` with the figure and the limit.
///
/// The limits themselves change with `PUT /admin/v1/quality`, whose body is a [`Quality`] and which answers 204: an edit of
/// `spec.quality` is followed without a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwitchRequest {
    /// Profile to change to.
    pub profile: String,
}

/// Why a preparation ended with an error, by what mends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PrepareReason {
    /// The licence that the model declares was not accepted.
    LicenceDiffers,
    /// The model could not be brought from where its URI points. Another try may, and goes on where this one ended.
    DownloadFailed,
    /// The cache's volume is full.
    NoSpace,
    /// Artifacts or figures could not be made, for a reason that none of the others names.
    QuantizeFailed,
    /// A method needs an accelerator. No method of this version's worker does.
    NeedsAccelerator,
    /// Manifest, model or flags are of no use as they are: another try ends the same way.
    Invalid,
}

/// What `modelprofile-worker prepare` leaves when it ends, as JSON of at most [`PrepareReport::MOST_BYTES`]: the termination
/// message of its container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PrepareReport {
    /// It ended well.
    Prepared {
        /// The ladder. Without the figures of its last profiles where all would be too long; workers tell them too.
        profiles: Vec<WorkerProfile>,
    },
    /// It ended with an error.
    Failed {
        /// What kind of error.
        reason: PrepareReason,
        /// A sentence that says what to do; cut where it would be too long.
        message: String,
    },
}

impl PrepareReport {
    /// What Kubernetes keeps of a termination message.
    pub const MOST_BYTES: usize = 4096;
    /// Exit status of a preparation that fails in the same way however often it is tried (`EX_CONFIG` of sysexits.h); 1 of
    /// others.
    pub const SETTLED: i32 = 78;
}
