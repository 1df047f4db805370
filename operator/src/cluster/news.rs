//! What is told as an Event: the difference of two statuses, pure. What was told once is in the status, so that an operator that
//! starts anew tells nothing twice.

use modelprofile_api::conditions::{self, reason};
use modelprofile_api::{Condition, ConditionStatus, DecisionAction, LastDecision, ModelProfileStatus, SwitchRecord};
use modelprofile_policy::Reason;

/// Longest note of an Event, in bytes.
const NOTE: usize = 1024;

/// An Event of `events.k8s.io`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// A person may have to see to it.
    pub warning: bool,
    /// The word that the condition or the decision has, too.
    pub reason: String,
    /// What was done about it, as one word.
    pub action: &'static str,
    /// A sentence.
    pub note: String,
}

/// What happened between two statuses.
pub fn news(before: &ModelProfileStatus, after: &ModelProfileStatus) -> Vec<News> {
    let mut all = Vec::new();
    all.extend(decided(before, after));
    let known = before.switch_history.first();
    let ended = after.switch_history.iter().take_while(|switch| Some(*switch) != known);
    all.extend(ended.map(switched));
    let changed = |now: &&Condition| {
        before.condition(&now.kind).is_none_or(|then| (then.status, &then.reason) != (now.status, &now.reason))
    };
    all.extend(after.conditions.iter().filter(changed).filter_map(condition));
    all
}

/// A decision that changes something, or would if it were not only recommended; the same one in the next pass is no news.
fn decided(before: &ModelProfileStatus, after: &ModelProfileStatus) -> Option<News> {
    let told = |decision: &&LastDecision| decision.action != DecisionAction::Hold || recommends(decision);
    let decision = after.last_decision.as_ref().filter(told)?;
    if before.last_decision.as_ref().is_some_and(|then| (then.action, &then.time) == (decision.action, &decision.time))
    {
        return None;
    }
    let action = match decision.action {
        DecisionAction::Switch => "Switch",
        DecisionAction::Scale => "Scale",
        DecisionAction::Hold => "Recommend",
    };
    Some(News { warning: false, reason: decision.reason.clone(), action, note: cut(&decision.message) })
}

/// A Hold with a reason to switch: mode Recommend.
fn recommends(decision: &LastDecision) -> bool {
    let reasons = [Reason::PressureHigh, Reason::PressureLow, Reason::Scheduled];
    decision.action == DecisionAction::Hold && reasons.iter().any(|reason| reason.as_str() == decision.reason)
}

fn switched(switch: &SwitchRecord) -> News {
    let SwitchRecord { from, to, reason, duration_millis, outcome, .. } = switch;
    let note = format!("{from} -> {to} ({reason}): {outcome} after {duration_millis} ms");
    News { warning: outcome == "Refused", reason: format!("Switch{outcome}"), action: "Switch", note }
}

/// What a condition is worth telling of. Those that are `Unknown` have seen nothing, and what is as it should be is told only
/// where somebody waited for it.
fn condition(now: &Condition) -> Option<News> {
    use ConditionStatus::{False, True};
    let told = |warning, action| Some(News { warning, reason: now.reason.clone(), action, note: note(now) });
    match (now.kind.as_str(), now.status, now.reason.as_str()) {
        (conditions::ACCEPTED, False, _) => told(true, "Validate"),
        (conditions::PREPARED, True, _) | (conditions::PREPARED, False, reason::PREPARING) => told(false, "Prepare"),
        (conditions::LICENSE_ACCEPTED | conditions::PREPARED, False, _) => told(true, "Prepare"),
        (conditions::QUALITY_GATE_PASSED, True, _) => told(false, "Measure"),
        (conditions::QUALITY_GATE_PASSED, False, _) => told(true, "Measure"),
        (conditions::METRICS_AVAILABLE, False, _) => told(true, "Scrape"),
        (conditions::METRICS_AVAILABLE, True, _) => told(false, "Scrape"),
        (conditions::AVAILABLE, True, _) => told(false, "Serve"),
        // Part of every start and of every change of replicas.
        (conditions::AVAILABLE, False, reason::NO_WORKER_READY)
        // Their own conditions tell of all but the first.
        | (
            conditions::DEGRADED,
            True,
            reason::REPLICAS_MISSING
            | reason::INVALID
            | reason::PREPARE_FAILED
            | reason::NEEDS_ACCELERATOR
            | reason::BEYOND_LIMITS
            | reason::NOT_MEASURED,
        ) => None,
        (conditions::AVAILABLE, False, _) | (conditions::DEGRADED, True, _) => told(true, "Serve"),
        _ => None,
    }
}

fn note(condition: &Condition) -> String {
    if condition.kind == conditions::PREPARED && condition.status == ConditionStatus::True {
        "all profiles are prepared".to_owned()
    } else if condition.message.is_empty() {
        format!("{}: {}", condition.kind, condition.reason)
    } else {
        cut(&condition.message)
    }
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(NOTE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use modelprofile_api::LastDecision;

    use super::*;

    fn condition_of(kind: &str, status: ConditionStatus, reason: &str, message: &str) -> Condition {
        Condition {
            kind: kind.to_owned(),
            status,
            observed_generation: Some(1),
            last_transition_time: "2026-03-01T12:00:00Z".to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
        }
    }

    fn with(conditions: Vec<Condition>) -> ModelProfileStatus {
        ModelProfileStatus { conditions, ..ModelProfileStatus::default() }
    }

    fn reasons(news: Vec<News>) -> Vec<String> {
        news.into_iter().map(|one| format!("{}{}", if one.warning { "!" } else { "" }, one.reason)).collect()
    }

    #[test]
    fn a_condition_is_told_when_its_status_or_reason_changed_and_not_when_only_a_number_did() {
        let first = with(vec![condition_of("Prepared", ConditionStatus::False, "Preparing", "quality 3 %")]);
        let later = with(vec![condition_of("Prepared", ConditionStatus::False, "Preparing", "quality 40 %")]);
        let failed =
            with(vec![condition_of("Prepared", ConditionStatus::False, "PrepareFailed", "the volume is full")]);
        assert_eq!(reasons(news(&ModelProfileStatus::default(), &first)), ["Preparing"]);
        assert_eq!(news(&first, &later), []);
        let told = news(&later, &failed);
        assert_eq!(told[0].note, "the volume is full");
        assert_eq!(reasons(told), ["!PrepareFailed"]);
    }

    #[test]
    fn a_decision_and_the_end_of_its_switch_are_told_once_each() {
        let decision = |action, time: &str| LastDecision {
            time: time.to_owned(),
            action,
            reason: "PressureHigh".to_owned(),
            message: "KV demand is 97 % of the target's 85 %".to_owned(),
            pressure_percent: Some(114),
        };
        let record = SwitchRecord {
            from: "quality".to_owned(),
            to: "density".to_owned(),
            reason: "PressureHigh".to_owned(),
            start_time: "2026-03-01T12:00:00Z".to_owned(),
            duration_millis: 840,
            outcome: "Completed".to_owned(),
        };
        let quiet = ModelProfileStatus {
            last_decision: Some(decision(DecisionAction::Hold, "2026-03-01T11:00:00Z")),
            ..Default::default()
        };
        let asked = ModelProfileStatus {
            last_decision: Some(decision(DecisionAction::Switch, "2026-03-01T12:00:00Z")),
            ..Default::default()
        };
        let done = ModelProfileStatus { switch_history: vec![record], ..asked.clone() };
        assert_eq!(reasons(news(&quiet, &asked)), ["PressureHigh"]);
        assert_eq!(news(&asked, &asked), []);
        let told = news(&asked, &done);
        assert_eq!(told[0].note, "quality -> density (PressureHigh): Completed after 840 ms");
        assert_eq!(reasons(told), ["SwitchCompleted"]);
        assert_eq!(news(&done, &done), []);
    }

    #[test]
    fn a_long_sentence_is_cut_to_what_an_event_holds() {
        let long = with(vec![condition_of("Accepted", ConditionStatus::False, "Invalid", &"ä".repeat(2000))]);
        assert!(news(&ModelProfileStatus::default(), &long)[0].note.len() <= NOTE);
    }
}
