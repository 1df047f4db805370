//! What a decision says.

use std::time::Duration;

/// What should be, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Index of the profile in the ladder that should be active.
    pub rung: usize,
    /// Workers that should exist.
    pub replicas: u32,
    /// Which of the two differs from what is; never both.
    pub action: Action,
    /// With the mode Recommend: the rung that would be changed to, were the mode Auto.
    pub recommended: Option<usize>,
    /// Why, as one word from a closed set.
    pub reason: Reason,
    /// Why, as a sentence: signal, value, target, window, and what would change it.
    pub message: String,
    /// Load over target; 1 is at target. `None` without fresh metrics.
    pub pressure: Option<f64>,
    /// The latest time after which deciding again is worth while.
    pub revisit_after: Duration,
}

/// What a decision changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Hold,
    /// The profile.
    Switch,
    /// The number of workers.
    Scale,
}

/// Why, as one word. Events and conditions use the same words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No worker serves yet.
    NotServing,
    /// A person holds this profile.
    Pinned,
    /// The profile that should be active failed its quality gate.
    QualityGateFailed,
    /// A switch or a change of replicas is under way, or its effect was not observed yet.
    WaitingForEffect,
    /// A window of the schedule prefers this profile.
    Scheduled,
    /// Metrics are stale or missing.
    MetricsUnavailable,
    /// The engine has no signal of load: only schedule and pin act.
    NoSignal,
    /// The pressure stayed at or above the target.
    PressureHigh,
    /// The predicted pressure stayed low.
    PressureLow,
    /// A condition holds, but not for long enough yet.
    Stabilizing,
    /// The load is over the target, and a denser profile is predicted not to lower it.
    DensityWouldNotHelp,
    /// The load is over the target, and there is nothing left to do.
    AtLimit,
    /// The least time in this profile has not passed.
    Dwelling,
    /// The switches of this hour are used up.
    SwitchBudgetExhausted,
    /// Somebody else set the number of workers, or the limits changed.
    ReplicasRequested,
    /// The load is where it should be.
    WithinTargets,
}

impl Reason {
    /// The word itself.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotServing => "NotServing",
            Self::Pinned => "Pinned",
            Self::QualityGateFailed => "QualityGateFailed",
            Self::WaitingForEffect => "WaitingForEffect",
            Self::Scheduled => "Scheduled",
            Self::MetricsUnavailable => "MetricsUnavailable",
            Self::NoSignal => "NoSignal",
            Self::PressureHigh => "PressureHigh",
            Self::PressureLow => "PressureLow",
            Self::Stabilizing => "Stabilizing",
            Self::DensityWouldNotHelp => "DensityWouldNotHelp",
            Self::AtLimit => "AtLimit",
            Self::Dwelling => "Dwelling",
            Self::SwitchBudgetExhausted => "SwitchBudgetExhausted",
            Self::ReplicasRequested => "ReplicasRequested",
            Self::WithinTargets => "WithinTargets",
        }
    }
}
