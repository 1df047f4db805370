//! The way down: what a peak made is undone.

use modelprofile_api::{Preference, ScalingMode};

use super::{Pass, percent, remaining, seconds};
use crate::decision::{Action, Decision, Reason};
use crate::pressure::Freshness;

impl Pass<'_> {
    /// Undoes what a peak made, in the opposite order.
    pub(super) fn relief(&self, active: usize, preferred: usize, may_switch: bool) -> Decision {
        let shrink = || self.shrink(active);
        let descend = || may_switch.then(|| self.descend(active, preferred)).flatten();
        let decision = match self.rules.prefer {
            Preference::Switch => shrink().or_else(descend),
            Preference::Scale => descend().or_else(shrink),
        };
        decision.unwrap_or_else(|| {
            let signal = self.load.describe(self.rules, self.pressure.signal);
            let name = self.rules.name(active);
            let message = if self.freshness == Freshness::All {
                let pressure = percent(self.pressure.value);
                let way_down = if may_switch { self.way_down(active, preferred) } else { String::new() };
                format!("{signal}: pressure {pressure} %, {name} stays{way_down}")
            } else {
                format!("{signal}; not every worker has fresh metrics, so nothing goes toward quality or fewer workers")
            };
            self.hold(active, Reason::WithinTargets, message)
        })
    }

    /// What keeps the profile below from coming back; empty where there is none.
    fn way_down(&self, active: usize, preferred: usize) -> String {
        let Some(below) = (preferred..active).rev().find(|rung| self.usable(*rung)) else { return String::new() };
        format!(
            "; {} is predicted at {} % of the target, it comes below {} % for {} s",
            self.rules.name(below),
            percent(self.predicted(active, below)),
            percent(self.rules.low),
            self.rules.down_window.as_secs()
        )
    }

    /// One worker less. `None` if that is not in sight.
    fn shrink(&self, active: usize) -> Option<Decision> {
        let (rules, seen) = (self.rules, self.observation);
        if rules.scaling != ScalingMode::Auto || seen.replicas <= rules.min_replicas {
            return None;
        }
        if seen.unavailable() > 0 {
            let window = rules.scale_down_window;
            let left = remaining(self.since(Some(self.history.under_since()?)), window);
            let what = format!("{} workers could not be placed", seen.unavailable());
            if let Some(left) = left {
                let message =
                    format!("{what}; one is given up if the load stays below its target for {} s more", seconds(left));
                return Some(self.wait(active, Reason::Stabilizing, message, left));
            }
            let message = format!("{what}, and the load was below its target for {} s without them", window.as_secs());
            return Some(self.of(Action::Scale, active, seen.replicas - 1, Reason::PressureLow, message));
        }
        let held = self.since(Some(self.history.fewer_since()?));
        let wanted = seen.replicas - 1;
        let ready = seen.ready();
        let predicted = self.load.with_replicas(rules, ready, ready.saturating_sub(1).max(1)).value;
        let what = format!("{wanted} workers are predicted at {} % of the target", percent(predicted));
        if let Some(left) = remaining(held, rules.scale_down_window) {
            let message =
                format!("{what}; one goes if that stays below {} % for {} s more", percent(rules.low), seconds(left));
            return Some(self.wait(active, Reason::Stabilizing, message, left));
        }
        let message = format!("{what}, below {} % for {} s", percent(rules.low), rules.scale_down_window.as_secs());
        Some(self.of(Action::Scale, active, wanted, Reason::PressureLow, message))
    }

    /// One rung toward quality. `None` if that is not in sight.
    fn descend(&self, active: usize, preferred: usize) -> Option<Decision> {
        let (rules, history) = (self.rules, self.history);
        let below = (preferred..active).rev().find(|rung| self.usable(*rung))?;
        let held = self.since(Some(history.low_since(below)?));
        let what =
            format!("{} is predicted at {} % of the target", rules.name(below), percent(self.predicted(active, below)));
        let low = percent(rules.low);
        if let Some(left) = remaining(held, rules.down_window) {
            let message = format!("{what}; it comes if that stays below {low} % for {} s more", seconds(left));
            return Some(self.wait(active, Reason::Stabilizing, message, left));
        }
        if let Some(left) = remaining(self.since(history.active_since()), rules.min_dwell) {
            let message = format!("{what}; the least time in {} ends in {} s", rules.name(active), seconds(left));
            return Some(self.wait(active, Reason::Dwelling, message, left));
        }
        let (count, frees) = history.switches_within_hour(self.now, rules.max_switches);
        if let Some(frees) = frees {
            let left = frees.duration_since(self.now);
            let message = format!(
                "{what}; {count} switches within an hour are the most toward quality, the next is free in {} s",
                seconds(left)
            );
            return Some(self.wait(active, Reason::SwitchBudgetExhausted, message, left));
        }
        let message = format!("{what}, below {low} % for {} s", rules.down_window.as_secs());
        Some(self.switch(below, Reason::PressureLow, message))
    }
}
