//! The way up: what is done about too much load.

use modelprofile_api::{Preference, ScalingMode};

use super::{Pass, percent, remaining, seconds};
use crate::decision::{Action, Decision, Reason};

/// A denser rung must be predicted to lower the pressure by at least this share.
const LEAST_HELP: f64 = 0.1;

impl Pass<'_> {
    pub(super) fn peak(&self, active: usize, may_switch: bool) -> Decision {
        let (rules, held) = (self.rules, self.since(self.history.over_since()));
        let signal = self.load.describe(rules, self.pressure.signal);
        if let Some(left) = remaining(held, rules.up_window) {
            let message = format!(
                "{signal}; something is done if the pressure stays at 100 % or more for {} s, in {} s",
                rules.up_window.as_secs(),
                seconds(left)
            );
            return self.wait(active, Reason::Stabilizing, message, left);
        }
        let climb = || may_switch.then(|| self.climb(active, &signal)).flatten();
        let grow = || self.grow(active, &signal);
        let action = match rules.prefer {
            Preference::Switch => climb().or_else(grow),
            Preference::Scale => grow().or_else(climb),
        };
        action.unwrap_or_else(|| self.stuck(active, may_switch, &signal))
    }

    /// The first denser rung that helps.
    fn climb(&self, active: usize, signal: &str) -> Option<Decision> {
        let helps = |rung: &usize| self.predicted(active, *rung) <= self.pressure.value * (1.0 - LEAST_HELP);
        let rung = (active + 1..self.rules.names.len()).filter(|rung| self.usable(*rung)).find(helps)?;
        let message = format!(
            "{signal} for {} s; {} is predicted to bring the pressure from {} to {} %",
            self.rules.up_window.as_secs(),
            self.rules.name(rung),
            percent(self.pressure.value),
            percent(self.predicted(active, rung)),
        );
        Some(self.switch(rung, Reason::PressureHigh, message))
    }

    /// More workers, at most twice as many.
    pub(super) fn grow(&self, active: usize, signal: &str) -> Option<Decision> {
        let (rules, seen) = (self.rules, self.observation);
        let ready = seen.ready() as u32;
        // Where workers can not be placed, more of them can not either.
        if rules.scaling != ScalingMode::Auto || seen.unavailable() > 0 || seen.replicas >= rules.max_replicas {
            return None;
        }
        let demand = self.load.kv_demand.unwrap_or_default() / rules.kv_target;
        let needed = (f64::from(ready) * demand).ceil() as u32;
        let wanted = needed.max(seen.replicas + 1).min(ready.max(1) * 2).max(seen.replicas + 1).min(rules.max_replicas);
        let message = format!(
            "{signal} for {} s; {wanted} workers instead of {} ({} at most)",
            rules.up_window.as_secs(),
            seen.replicas,
            rules.max_replicas
        );
        Some(self.of(Action::Scale, active, wanted, Reason::PressureHigh, message))
    }

    fn stuck(&self, active: usize, may_switch: bool, signal: &str) -> Decision {
        let denser = (active + 1..self.rules.names.len()).find(|rung| may_switch && self.usable(*rung));
        let workers = if self.observation.unavailable() > 0 {
            format!("{} workers can not be placed", self.observation.unavailable())
        } else if self.rules.scaling == ScalingMode::External {
            "the number of workers is somebody else's to change".to_owned()
        } else {
            format!("spec.scaling.maxReplicas is {}", self.rules.max_replicas)
        };
        let Some(rung) = denser else {
            let profile = if may_switch { "no denser profile is left" } else { "the profile is pinned" };
            return self.hold(active, Reason::AtLimit, format!("{signal}; {profile} and {workers}"));
        };
        let message = format!(
            "{signal}; {} is predicted at {} % of the target instead of {} %, less than a tenth better, and {workers}",
            self.rules.name(rung),
            percent(self.predicted(active, rung)),
            percent(self.pressure.value),
        );
        self.hold(active, Reason::DensityWouldNotHelp, message)
    }
}
