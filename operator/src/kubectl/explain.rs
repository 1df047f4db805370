//! `kubectl modelprofile explain NAME`: what the policy does now and why, and what would change it.
//!
//! From the object alone: the operator's latest decision with its figures, and the rules of the policy's own crate over the spec
//! and the history of switches. The windows of load that the operator has seen so far are in its memory; its sentence tells them.

use std::process::ExitCode;

use jiff::{SignedDuration, Timestamp};
use modelprofile_api::{
    ConditionStatus, ModelProfileStatus, Preference, ScalingMode, SwitchingMode, conditions, nearest,
};
use modelprofile_policy::{History, Rules};

use super::cluster::Cluster;
use super::hours;
use super::status::{action, since};
use super::view::View;
use crate::local::events::age;

/// The operator's default; nothing that is told here depends on it.
const INTERVAL: SignedDuration = SignedDuration::from_secs(5);

/// Arguments of `kubectl modelprofile explain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The ModelProfile.
    name: String,
}

/// Prints it.
///
/// # Errors
/// There is no such object, or it cannot be decided on.
pub async fn run(cluster: &Cluster, args: &Args) -> anyhow::Result<ExitCode> {
    print!("{}", text(&cluster.get(&args.name).await?, Timestamp::now())?);
    Ok(ExitCode::SUCCESS)
}

/// The whole text.
///
/// # Errors
/// The spec breaks the schema, or a rule that validation has.
pub fn text(view: &View, now: Timestamp) -> anyhow::Result<String> {
    let spec = view.spec()?;
    let rules = Rules::new(spec, INTERVAL)?;
    let it = Look { view, status: &view.status, rules: &rules, history: history(&view.status), now };
    let zone = spec.switching.schedule.as_ref().map(|schedule| schedule.time_zone.as_str());
    let mut lines = vec![format!("{}: {}", view.title(), it.serves())];
    let mut line = |label: &str, sentence: String| lines.push(format!("  {label:9} {sentence}"));
    line("mode", it.mode());
    line("now", it.decision());
    line("pressure", it.pressure());
    line("dwell", it.dwell());
    line("switches", it.budget());
    line("schedule", hours::sentence(&rules, zone, now));
    line("workers", it.workers());
    lines.push("  what would change it".to_owned());
    lines.extend(it.changes().into_iter().map(|change| format!("    - {change}")));
    Ok(lines.join("\n") + "\n")
}

/// Switches of earlier, as an operator that starts anew takes them in.
fn history(status: &ModelProfileStatus) -> History {
    let times = status.switch_history.iter().filter_map(|switch| switch.start_time.parse::<Timestamp>().ok());
    let mut times: Vec<Timestamp> = times.collect();
    times.sort();
    History::with_switches(times)
}

/// An object with what follows from it.
struct Look<'a> {
    view: &'a View,
    status: &'a ModelProfileStatus,
    rules: &'a Rules,
    history: History,
    now: Timestamp,
}

impl Look<'_> {
    fn serves(&self) -> String {
        match (&self.status.active_profile, self.status.ready_replicas) {
            (Some(active), _) => format!("{active} serves"),
            (None, 0) => "no worker serves".to_owned(),
            (None, _) => "the workers serve with different profiles: a switch is under way".to_owned(),
        }
    }

    fn mode(&self) -> String {
        match self.rules.mode {
            SwitchingMode::Auto => "Auto: load and schedule decide about the profile".to_owned(),
            SwitchingMode::Recommend => {
                "Recommend: what load and schedule would do is told below and not carried out".to_owned()
            }
            SwitchingMode::Pinned => {
                let name = self.rules.pinned.map_or("?", |pinned| self.rules.name(pinned));
                let before =
                    self.view.unpinned_mode.as_ref().map_or_else(String::new, |mode| format!(", {mode} before"));
                format!("Pinned to {name}{before}: load and schedule do not change the profile")
            }
        }
    }

    fn decision(&self) -> String {
        match &self.status.last_decision {
            Some(last) => {
                format!("{}, {}: {}", action(last.action, &last.reason), since(&last.time, self.now), last.message)
            }
            None => "nothing was decided yet; see that an operator runs".to_owned(),
        }
    }

    fn pressure(&self) -> String {
        let rules = self.rules;
        let targets = [
            rules.signals.kv_usage.map(|_| format!("KV demand against {:.0} %", 100.0 * rules.kv_target)),
            rules
                .signals
                .oldest_waiting
                .map(|_| format!("the oldest waiting request against {} s", rules.queue_target)),
            rules
                .signals
                .time_to_first_token
                .map(|_| format!("the 95th percentile of the time to the first token against {} s", rules.ttft_target)),
        ];
        let targets: Vec<String> = targets.into_iter().flatten().collect();
        if targets.is_empty() {
            return "the engine has no signal of load: schedule and pin alone change the profile".to_owned();
        }
        let percent = self.status.last_decision.as_ref().and_then(|last| last.pressure_percent);
        let value = percent.map_or_else(|| "not known".to_owned(), |percent| format!("{percent} % of the target"));
        format!("{value}; the worst counts of {}", targets.join(", "))
    }

    /// When the active profile came: the end of the latest switch to it.
    fn active_since(&self) -> Option<Timestamp> {
        let latest = self.status.switch_history.first()?;
        let is = Some(&latest.to) == self.status.active_profile.as_ref();
        let start = latest.start_time.parse::<Timestamp>().ok().filter(|_| is)?;
        start.checked_add(SignedDuration::from_millis(latest.duration_millis)).ok()
    }

    fn dwell_left(&self) -> Option<SignedDuration> {
        let held = self.now.duration_since(self.active_since()?);
        (held < self.rules.min_dwell).then(|| self.rules.min_dwell - held)
    }

    fn dwell(&self) -> String {
        let least = self.rules.min_dwell.as_secs();
        let (Some(since), Some(active)) = (self.active_since(), &self.status.active_profile) else {
            return format!(
                "{least} s in a profile before a move toward quality; no switch to this one is in the history"
            );
        };
        let held = age(self.now.duration_since(since).as_secs());
        match self.dwell_left() {
            Some(left) => format!(
                "{active} for {held}; a move toward quality waits {} s more, until {least} s are over",
                left.as_secs().max(1)
            ),
            None => format!("{active} for {held}; the {least} s before a move toward quality are over"),
        }
    }

    fn budget(&self) -> String {
        let most = self.rules.max_switches;
        let (count, frees) = self.history.switches_within_hour(self.now, most);
        // The status keeps no more than ten.
        let more = if count >= modelprofile_api::SWITCH_HISTORY_LIMIT { " or more" } else { "" };
        match frees {
            Some(frees) => format!(
                "{count}{more} of {most} within the hour; a move toward quality waits {}, one toward density does not",
                age(frees.duration_since(self.now).as_secs())
            ),
            None => format!(
                "{count}{more} of {most} within the hour; {} are left for moves toward quality",
                most.saturating_sub(count)
            ),
        }
    }

    fn workers(&self) -> String {
        let (ready, all) = (self.status.ready_replicas, self.status.replicas);
        let (min, max) = (self.rules.min_replicas, self.rules.max_replicas);
        match self.rules.scaling {
            ScalingMode::Auto if min == max => format!("{ready} of {all} ready; always {min}"),
            ScalingMode::Auto => format!("{ready} of {all} ready; load decides, {min} to {max}"),
            ScalingMode::External => format!("{ready} of {all} ready; the scale subresource decides, {min} to {max}"),
        }
    }

    fn changes(&self) -> Vec<String> {
        let mut changes = Vec::new();
        let failed = |kind: &str| self.status.condition(kind).filter(|found| found.status == ConditionStatus::False);
        if let Some(refused) = failed(conditions::ACCEPTED) {
            changes.push(format!(
                "the spec is refused and what ran before keeps running, until it is corrected: {}",
                refused.message
            ));
        }
        if let Some(away) = failed(conditions::AVAILABLE) {
            changes.push(format!("a worker that serves; now {}: {}", away.reason, away.message));
        }
        if let Some(blind) = failed(conditions::METRICS_AVAILABLE) {
            changes.push(format!("fresh metrics: {}", blind.message));
        }
        for profile in &self.rules.names {
            changes.extend(self.view.refusal(profile).map(|refusal| format!("{profile} is no rung: {refusal}")));
        }
        let how = match self.rules.mode {
            SwitchingMode::Auto => "",
            SwitchingMode::Recommend => " (it would be told, not done)",
            SwitchingMode::Pinned => {
                changes.push(format!(
                    "{} gives the decision back; what is below holds then",
                    self.view.command("unpin", "")
                ));
                ""
            }
        };
        let active = self.status.active_profile.as_ref();
        if let Some(active) = active.and_then(|active| self.rules.names.iter().position(|name| name == active)) {
            changes.push(self.denser(active) + how);
            changes.push(self.better(active) + how);
        }
        if self.rules.mode != SwitchingMode::Pinned {
            changes.push(format!("{} holds a profile", self.view.command("pin", "PROFILE")));
        }
        changes
    }

    fn may_serve(&self, rung: usize) -> bool {
        self.view.refusal(self.rules.name(rung)).is_none()
    }

    fn denser(&self, active: usize) -> String {
        let rules = self.rules;
        let denser: Vec<&str> =
            (active + 1..rules.names.len()).filter(|rung| self.may_serve(*rung)).map(|rung| rules.name(rung)).collect();
        let at = format!("pressure of 100 % or more for {} s", rules.up_window.as_secs());
        let grows = rules.scaling == ScalingMode::Auto && rules.max_replicas > rules.min_replicas;
        let more = grows.then(|| format!("more workers, up to {}", rules.max_replicas));
        let climb = (!denser.is_empty()).then(|| format!("{}, if that is predicted to help", denser.join(" or ")));
        let mut ways: Vec<String> = match rules.prefer {
            Preference::Switch => [climb, more].into_iter().flatten().collect(),
            Preference::Scale => [more, climb].into_iter().flatten().collect(),
        };
        if ways.is_empty() {
            ways.push(format!("nothing: {} is the densest that may serve", rules.name(active)));
        }
        format!("{at}: {}", ways.join("; else "))
    }

    fn better(&self, active: usize) -> String {
        let rules = self.rules;
        let window = rules.schedule.as_ref().and_then(|schedule| schedule.at(self.now));
        let preferred = window.map_or(0, |window| window.rung);
        let preferred = nearest(preferred, rules.names.len(), |rung| self.may_serve(rung)).unwrap_or(preferred);
        let Some(below) = (preferred..active).rev().find(|rung| self.may_serve(*rung)) else {
            let because = match window {
                Some(window) if active > 0 => format!("while the window {} is open", window.window),
                _ => format!("{} is the best that may serve", rules.name(active)),
            };
            return format!("less load: no other profile, {because}");
        };
        let mut waits = Vec::new();
        let dwell =
            |left: SignedDuration| format!("{} s (the least time in {})", left.as_secs().max(1), rules.name(active));
        waits.extend(self.dwell_left().map(dwell));
        let (_, frees) = self.history.switches_within_hour(self.now, rules.max_switches);
        let budget = |frees: Timestamp| format!("{} (a switch is free)", age(frees.duration_since(self.now).as_secs()));
        waits.extend(frees.map(budget));
        let also = if waits.is_empty() { String::new() } else { format!(", and not before {}", waits.join(" and ")) };
        format!(
            "less load: {}, when it is predicted below {:.0} % of the target for {} s{also}",
            rules.name(below),
            100.0 * rules.low,
            rules.down_window.as_secs()
        )
    }
}

#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
