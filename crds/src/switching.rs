//! When and how the active profile changes.

use serde::{Deserialize, Serialize};

use crate::Decimal;

/// When and how the active profile changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Switching {
    /// Who decides. Left out: Auto.
    pub mode: SwitchingMode,
    /// Profile to hold, with mode Pinned; in the other modes it has no effect. Left out: none, which mode Pinned refuses.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 63)))]
    pub pinned_profile: Option<String>,
    /// How a switch is carried out. Left out: InPlace.
    pub strategy: Strategy,
    /// What to do first under pressure. Left out: Switch.
    pub prefer: Preference,
    /// What the load is held against. Left out: the defaults of its fields.
    pub targets: Targets,
    /// Moves up the ladder. Left out: the defaults of its fields.
    pub to_density: ToDensity,
    /// Moves down the ladder. Left out: the defaults of its fields.
    pub to_quality: ToQuality,
    /// Least time in a profile before an automatic move toward quality. Moves toward density wait for nothing, so that a
    /// peak is never stranded. Left out: 120.
    #[cfg_attr(feature = "kube", schemars(range(max = 86_400)))]
    pub min_dwell_seconds: u32,
    /// Most switches within any hour after which automatic moves toward quality wait. Left out: 6.
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 240)))]
    pub max_switches_per_hour: u32,
    /// Hours of the week with a preferred profile. Left out: the first profile is preferred at all times.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
}

impl Default for Switching {
    fn default() -> Self {
        Self {
            mode: SwitchingMode::default(),
            pinned_profile: None,
            strategy: Strategy::default(),
            prefer: Preference::default(),
            targets: Targets::default(),
            to_density: ToDensity::default(),
            to_quality: ToQuality::default(),
            min_dwell_seconds: 120,
            max_switches_per_hour: 6,
            schedule: None,
        }
    }
}

/// Who decides about the active profile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "kube", schemars(transform = crate::schema::plain_enum))]
pub enum SwitchingMode {
    /// Load and schedule.
    #[default]
    Auto,
    /// Nobody: the decision is recorded in the status and not carried out.
    Recommend,
    /// The user, with `pinnedProfile`.
    Pinned,
}

/// How a switch is carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "kube", schemars(transform = crate::schema::plain_enum))]
pub enum Strategy {
    /// The worker changes precision while it serves; requests and their cache stay. Engine Native only.
    #[default]
    InPlace,
    /// A second set of workers, then the traffic moves. Needs room for both.
    Surge,
    /// The workers stop and start again in the new profile.
    Recreate,
}

impl Strategy {
    /// The name in a manifest.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InPlace => "InPlace",
            Self::Surge => "Surge",
            Self::Recreate => "Recreate",
        }
    }
}

/// What to do first under pressure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "kube", schemars(transform = crate::schema::plain_enum))]
pub enum Preference {
    /// Climb the ladder, and add replicas on its last rung.
    #[default]
    Switch,
    /// Stay in quality while replicas can be added.
    Scale,
}

/// Load at which the pressure is 100 %; the worst signal counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Targets {
    /// Share of the KV cache that running and waiting requests need. Left out: 85.
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 100)))]
    pub kv_cache_utilization_percent: u32,
    /// Age of the oldest waiting request; a fraction goes in quotes (`"0.5"`). Left out: 2.
    #[cfg_attr(feature = "kube", schemars(extend("x-kubernetes-validations" = crate::schema::seconds())))]
    pub queue_time_seconds: Decimal,
    /// 95th percentile of the time to the first token; a fraction goes in quotes. Left out: 4.
    #[cfg_attr(feature = "kube", schemars(extend("x-kubernetes-validations" = crate::schema::seconds())))]
    pub time_to_first_token_seconds: Decimal,
}

impl Default for Targets {
    fn default() -> Self {
        Self {
            kv_cache_utilization_percent: 85,
            queue_time_seconds: Decimal::from(2),
            time_to_first_token_seconds: Decimal::from(4),
        }
    }
}

/// Moves up the ladder, toward density.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct ToDensity {
    /// How long the pressure stays at 100 % or more before a move. Left out: 15.
    #[cfg_attr(feature = "kube", schemars(range(max = 3600)))]
    pub stabilization_window_seconds: u32,
}

impl Default for ToDensity {
    fn default() -> Self {
        Self { stabilization_window_seconds: 15 }
    }
}

/// Moves down the ladder, toward quality.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct ToQuality {
    /// How long the pressure predicted for the profile below stays under `pressureBelowPercent` before a move. Left out: 300.
    #[cfg_attr(feature = "kube", schemars(range(max = 86_400)))]
    pub stabilization_window_seconds: u32,
    /// The limit of that pressure. Left out: 70.
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 99)))]
    pub pressure_below_percent: u32,
}

impl Default for ToQuality {
    fn default() -> Self {
        Self { stabilization_window_seconds: 300, pressure_below_percent: 70 }
    }
}

/// Preferred profiles by hour of the week. Load may climb above the preferred profile, never below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    /// IANA name of the time zone of all windows (`Europe/Paris`). Left out: UTC.
    #[serde(default = "utc")]
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 64)))]
    pub time_zone: String,
    /// The windows; they do not overlap. Outside of them the first profile is preferred. Required.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 32)))]
    #[cfg_attr(feature = "kube", schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])))]
    pub windows: Vec<Window>,
}

fn utc() -> String {
    "UTC".to_owned()
}

/// One span of civil time that comes back every week.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "kube", schemars(extend("x-kubernetes-validations" = [
    {"rule": "self.start != '24:00'", "message": "the day ends at 24:00; to start then, write \"00:00\" and the next day"},
    {"rule": "self.start != self.end", "message": "the window is empty; for a whole day write start \"00:00\" and end \"24:00\""},
])))]
#[serde(rename_all = "camelCase")]
pub struct Window {
    /// Name that decisions mention, unique in the schedule. Required.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 63), regex(pattern = crate::patterns::NAME)))]
    pub name: String,
    /// Preferred profile. Required.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 63)))]
    pub profile: String,
    /// Days on which the window starts. Left out: every day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kube", schemars(length(max = 7), extend("x-kubernetes-list-type" = "set")))]
    pub days: Vec<Day>,
    /// First minute, `HH:MM`, in quotes. Required.
    #[cfg_attr(feature = "kube", schemars(length(max = 5), regex(pattern = crate::patterns::TIME)))]
    pub start: String,
    /// First minute after the window, `HH:MM`, in quotes; `24:00` is the end of the day, and a time before `start` lies on
    /// the next day. Required.
    #[cfg_attr(feature = "kube", schemars(length(max = 5), regex(pattern = crate::patterns::TIME)))]
    pub end: String,
}

/// Day of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "kube", schemars(transform = crate::schema::plain_enum))]
pub enum Day {
    /// Monday.
    Mon,
    /// Tuesday.
    Tue,
    /// Wednesday.
    Wed,
    /// Thursday.
    Thu,
    /// Friday.
    Fri,
    /// Saturday.
    Sat,
    /// Sunday.
    Sun,
}

impl Day {
    /// The week, Monday first.
    pub const WEEK: [Self; 7] = [Self::Mon, Self::Tue, Self::Wed, Self::Thu, Self::Fri, Self::Sat, Self::Sun];
}
