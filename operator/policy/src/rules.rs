//! What the manifest asks for, read once.

use jiff::SignedDuration;
use modelprofile_api::{ModelProfileSpec, Preference, Quality, ScalingMode, SwitchingMode};

use crate::schedule::Schedule;
use crate::signals::Signals;

/// Most profiles of a ladder; the schema allows no more.
pub const MAX_RUNGS: usize = 4;

/// What the manifest asks for, in the units that decisions are made in.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Names of the profiles, best quality first.
    pub names: Vec<String>,
    /// Who decides about the profile.
    pub mode: SwitchingMode,
    /// Index of the pinned profile, with mode Pinned.
    pub pinned: Option<usize>,
    /// What comes first under pressure.
    pub prefer: Preference,
    /// Target of the KV demand: a share, 0 to 1.
    pub kv_target: f64,
    /// Target of the oldest waiting request's age, in seconds.
    pub queue_target: f64,
    /// Target of the time to the first token, in seconds.
    pub ttft_target: f64,
    /// How long the pressure is at the target or above before anything is done about it.
    pub up_window: SignedDuration,
    /// How long the predicted pressure is low before the profile goes down.
    pub down_window: SignedDuration,
    /// What low means: a share of the target, 0 to 1.
    pub low: f64,
    /// Least time in a profile before a move toward quality.
    pub min_dwell: SignedDuration,
    /// Switches within an hour after which moves toward quality wait.
    pub max_switches: usize,
    /// Hours of the week.
    pub schedule: Option<Schedule>,
    /// Whether the number of workers is decided here.
    pub scaling: ScalingMode,
    /// Fewest workers.
    pub min_replicas: u32,
    /// Most workers.
    pub max_replicas: u32,
    /// Workers that somebody else asked for, with mode External.
    pub asked_replicas: Option<u32>,
    /// How long the pressure predicted with one worker less is low before that worker goes.
    pub scale_down_window: SignedDuration,
    /// How good a profile must be, and what happens to one that is not.
    pub quality: Quality,
    /// Time between two looks at the workers' metrics.
    pub interval: SignedDuration,
    /// The engine's signals.
    pub signals: Signals,
}

/// A manifest that was not validated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}; `modelprofile validate` says what to write")]
pub struct RulesError {
    /// Path of the field.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

impl RulesError {
    pub(crate) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

impl Rules {
    /// Reads a spec; `interval` is the time between two looks at the workers' metrics.
    ///
    /// # Errors
    /// A spec that `modelprofile validate` refuses: an unknown time zone or profile, a target that is not a number above 0.
    pub fn new(spec: &ModelProfileSpec, interval: SignedDuration) -> Result<Self, RulesError> {
        let switching = &spec.switching;
        let names: Vec<String> = spec.profiles.iter().map(|profile| profile.name.clone()).collect();
        if names.is_empty() || names.len() > MAX_RUNGS {
            return Err(RulesError::new("spec.profiles", format!("{} profiles; a ladder has 1 to 4", names.len())));
        }
        let index = |name: &str, field: &str| {
            names
                .iter()
                .position(|n| n == name)
                .ok_or_else(|| RulesError::new(field, format!("there is no profile `{name}`")))
        };
        let pinned = match (switching.mode, &switching.pinned_profile) {
            (SwitchingMode::Pinned, Some(name)) => Some(index(name, "spec.switching.pinnedProfile")?),
            (SwitchingMode::Pinned, None) => {
                return Err(RulesError::new("spec.switching.pinnedProfile", "the mode Pinned needs a profile"));
            }
            _ => None,
        };
        let seconds = |value: &modelprofile_api::Decimal, field: &str| {
            value
                .to_f64()
                .filter(|v| *v > 0.0 && v.is_finite())
                .ok_or_else(|| RulesError::new(format!("spec.switching.targets.{field}"), "not a number above 0"))
        };
        let targets = &switching.targets;
        let schedule = switching.schedule.as_ref().map(|schedule| Schedule::new(schedule, &names)).transpose()?;
        let span = |seconds: u32| SignedDuration::from_secs(i64::from(seconds));
        Ok(Self {
            mode: switching.mode,
            pinned,
            prefer: switching.prefer,
            kv_target: f64::from(targets.kv_cache_utilization_percent.max(1)) / 100.0,
            queue_target: seconds(&targets.queue_time_seconds, "queueTimeSeconds")?,
            ttft_target: seconds(&targets.time_to_first_token_seconds, "timeToFirstTokenSeconds")?,
            up_window: span(switching.to_density.stabilization_window_seconds),
            down_window: span(switching.to_quality.stabilization_window_seconds),
            low: f64::from(switching.to_quality.pressure_below_percent) / 100.0,
            min_dwell: span(switching.min_dwell_seconds),
            max_switches: switching.max_switches_per_hour as usize,
            schedule,
            scaling: spec.scaling.mode,
            min_replicas: spec.scaling.min_replicas.max(1),
            max_replicas: spec.scaling.max_replicas.max(spec.scaling.min_replicas).max(1),
            asked_replicas: spec.scaling.replicas,
            scale_down_window: span(spec.scaling.scale_down.stabilization_window_seconds),
            quality: spec.quality.clone(),
            interval,
            signals: Signals::of(spec.engine.kind),
            names,
        })
    }

    /// Age from which on a sample is stale, in seconds: three intervals.
    pub fn stale_after(&self) -> f64 {
        3.0 * self.interval.as_secs_f64()
    }

    /// Name of a rung.
    pub fn name(&self, rung: usize) -> &str {
        self.names.get(rung).map_or("unknown", String::as_str)
    }
}
