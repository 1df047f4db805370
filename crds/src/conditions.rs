//! Types and reasons of the conditions in the status, and what each says. Events use the same reasons.
//!
//! A condition never says more than was observed: what nobody has looked at yet is `Unknown`.

/// The spec can be carried out.
///
/// `True`: [`reason::VALID`]. `False`: [`reason::INVALID`] (the message lists every error with its field),
/// [`reason::NOT_SUPPORTED`] (valid, but not built yet). While `False`, what ran before keeps running.
pub const ACCEPTED: &str = "Accepted";

/// The checkpoint's declared licence is the accepted one.
///
/// `True`: [`reason::MATCHES`], [`reason::NOT_DECLARED`] (the checkpoint declares none). `False`: [`reason::DIFFERS`], and
/// nothing is pulled. `Unknown`: [`reason::PENDING`], the declaration was not read yet.
pub const LICENSE_ACCEPTED: &str = "LicenseAccepted";

/// The artifacts of all profiles are in the cache.
///
/// `True`: [`reason::PREPARED`]. `False`: [`reason::PREPARING`], [`reason::NEEDS_ACCELERATOR`] (a method that the CPU can not
/// run waits for one), [`reason::PREPARE_FAILED`], and what keeps the pod that prepares from working, as in [`AVAILABLE`].
pub const PREPARED: &str = "Prepared";

/// Every profile is within the quality limits.
///
/// `True`: [`reason::WITHIN_LIMITS`] (the message has the figures). `False`: [`reason::BEYOND_LIMITS`] (the message names each
/// profile with figure and limit, and whether it is used). `Unknown`: [`reason::PENDING`], profiles are being prepared and
/// measured; [`reason::NOT_MEASURED`], they are prepared and one was not measured, which with `onFailure: Block` is not used.
pub const QUALITY_GATE_PASSED: &str = "QualityGatePassed";

/// Decisions have fresh metrics.
///
/// `True`: [`reason::FRESH`]. `False`: [`reason::METRICS_UNAVAILABLE`], and the profile is held. `Unknown`:
/// [`reason::PENDING`], no worker was scraped yet.
pub const METRICS_AVAILABLE: &str = "MetricsAvailable";

/// At least one worker answers requests.
///
/// `True`: [`reason::WORKER_READY`], a worker has answered. `False`: [`reason::NO_WORKER_READY`],
/// [`reason::WAITING_FOR_ACCELERATOR`] (a pod can not be scheduled for want of one), [`reason::UNSCHEDULABLE`],
/// [`reason::IMAGE_PULL_FAILED`], [`reason::CRASH_LOOP`], [`reason::OUT_OF_MEMORY`], [`reason::POD_FAILED`],
/// [`reason::NODE_LOST`] (what keeps the first pod from working), [`reason::BEYOND_LIMITS`] (no profile may serve within the quality limits; the message names the
/// figures).
pub const AVAILABLE: &str = "Available";

/// Something is under way.
///
/// `True`: [`reason::SWITCHING`], [`reason::SCALING`], [`reason::ROLLING_OUT`], [`reason::PREPARING`]. `False`:
/// [`reason::STABLE`].
pub const PROGRESSING: &str = "Progressing";

/// Less works than was asked for, though the model may well be available.
///
/// `True`: [`reason::APPLY_FAILED`] (the API server does not take an object, or a name is taken), [`reason::SWITCH_REFUSED`],
/// [`reason::PREPARE_FAILED`], [`reason::REPLICAS_MISSING`] and what keeps a pod from working as in [`AVAILABLE`],
/// [`reason::BEYOND_LIMITS`] and [`reason::NOT_MEASURED`] (the quality gate keeps a profile out of the ladder),
/// [`reason::INVALID`] (the spec is not accepted; what ran before keeps running). `False`:
/// [`reason::AS_EXPECTED`].
pub const DEGRADED: &str = "Degraded";

/// Every condition type, in the order in which a status lists them.
pub const ALL: [&str; 8] =
    [ACCEPTED, LICENSE_ACCEPTED, PREPARED, QUALITY_GATE_PASSED, METRICS_AVAILABLE, AVAILABLE, PROGRESSING, DEGRADED];

/// The closed set of reasons.
pub mod reason {
    /// The spec passed every check.
    pub const VALID: &str = "Valid";
    /// The spec breaks a rule.
    pub const INVALID: &str = "Invalid";
    /// The spec asks for something that this version does not have.
    pub const NOT_SUPPORTED: &str = "NotSupported";
    /// The declared licence is the accepted one.
    pub const MATCHES: &str = "Matches";
    /// The declared licence is another one, or none was accepted.
    pub const DIFFERS: &str = "Differs";
    /// The checkpoint declares no licence.
    pub const NOT_DECLARED: &str = "NotDeclared";
    /// Not observed yet.
    pub const PENDING: &str = "Pending";
    /// All artifacts exist.
    pub const PREPARED: &str = "Prepared";
    /// An artifact is being made.
    pub const PREPARING: &str = "Preparing";
    /// The preparation waits for an accelerator.
    pub const NEEDS_ACCELERATOR: &str = "NeedsAccelerator";
    /// The preparation ended with an error.
    pub const PREPARE_FAILED: &str = "PrepareFailed";
    /// All profiles are within the quality limits.
    pub const WITHIN_LIMITS: &str = "WithinLimits";
    /// A profile is beyond a quality limit.
    pub const BEYOND_LIMITS: &str = "BeyondLimits";
    /// Quality was not measured.
    pub const NOT_MEASURED: &str = "NotMeasured";
    /// The metrics of all ready workers are fresh.
    pub const FRESH: &str = "Fresh";
    /// Metrics are stale or missing.
    pub const METRICS_UNAVAILABLE: &str = "MetricsUnavailable";
    /// A worker has answered.
    pub const WORKER_READY: &str = "WorkerReady";
    /// No worker has answered.
    pub const NO_WORKER_READY: &str = "NoWorkerReady";
    /// A worker pod waits for an accelerator.
    pub const WAITING_FOR_ACCELERATOR: &str = "WaitingForAccelerator";
    /// A pod can not be scheduled, for another reason than an accelerator.
    pub const UNSCHEDULABLE: &str = "Unschedulable";
    /// The image of a pod can not be pulled.
    pub const IMAGE_PULL_FAILED: &str = "ImagePullFailed";
    /// A worker ends again and again.
    pub const CRASH_LOOP: &str = "CrashLoop";
    /// A worker was killed for using more memory than its limit.
    pub const OUT_OF_MEMORY: &str = "OutOfMemory";
    /// The node gave a pod up, or can not make its container.
    pub const POD_FAILED: &str = "PodFailed";
    /// The node of a pod does not report.
    pub const NODE_LOST: &str = "NodeLost";
    /// A switch of profile is under way.
    pub const SWITCHING: &str = "Switching";
    /// Workers are being added or removed.
    pub const SCALING: &str = "Scaling";
    /// Workers are being replaced.
    pub const ROLLING_OUT: &str = "RollingOut";
    /// Nothing is under way.
    pub const STABLE: &str = "Stable";
    /// An object that the model needs can not be made.
    pub const APPLY_FAILED: &str = "ApplyFailed";
    /// A worker refused to switch.
    pub const SWITCH_REFUSED: &str = "SwitchRefused";
    /// Fewer workers are ready than are wanted.
    pub const REPLICAS_MISSING: &str = "ReplicasMissing";
    /// All that was asked for works.
    pub const AS_EXPECTED: &str = "AsExpected";
}
