//! The way up: what is done about too much load.

use jiff::SignedDuration;
use modelprofile_api::{Preference, ScalingMode};

use super::{Pass, percent, remaining, seconds};
use crate::decision::{Action, Decision, Reason};

/// A denser rung must be predicted to lower the pressure by at least this share.
const LEAST_HELP: f64 = 0.1;
/// After a worker could not be placed, or did not get ready in time, no other is asked for during this time.
const PLACE_AGAIN: SignedDuration = SignedDuration::from_mins(10);

impl Pass<'_> {
    pub(super) fn peak(&self, active: usize, may_switch: bool) -> Decision {
        let (rules, held) = (self.rules, self.since(self.history.over_since()));
        let signal = self.load.describe(rules, self.pressure.signal);
        if let Some(patience) = self.history.works_off() {
            let message = format!(
                "{signal}, from requests that came while workers were away; something is done if it does not fall for {} s",
                patience.as_secs()
            );
            return self.hold(active, Reason::Stabilizing, message);
        }
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

    /// The first denser rung that is predicted to end the peak, else the one that helps most: one switch, not one for each
    /// rung on the way.
    fn climb(&self, active: usize, signal: &str) -> Option<Decision> {
        let helps = |rung: &usize| self.predicted(active, *rung) <= self.pressure.value * (1.0 - LEAST_HELP);
        let denser = || (active + 1..self.rules.names.len()).filter(|rung| self.usable(*rung)).filter(helps);
        let ends = denser().find(|rung| self.predicted(active, *rung) < 1.0);
        let most = || denser().min_by(|a, b| self.predicted(active, *a).total_cmp(&self.predicted(active, *b)));
        let rung = ends.or_else(most)?;
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
        // Where one can not be placed, another one can not either, for now.
        if rules.scaling != ScalingMode::Auto || self.place_again().is_some() || seen.replicas >= rules.max_replicas {
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

    /// Time until another worker is asked for after one that did not come.
    fn place_again(&self) -> Option<SignedDuration> {
        remaining(self.since(Some(self.history.placing_failed()?)), PLACE_AGAIN)
    }

    fn stuck(&self, active: usize, may_switch: bool, signal: &str) -> Decision {
        let denser = (active + 1..self.rules.names.len()).find(|rung| may_switch && self.usable(*rung));
        let workers = if let Some(left) = self.place_again().filter(|_| self.rules.scaling == ScalingMode::Auto) {
            format!("a worker could not be placed; another is tried in {} s", seconds(left))
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
