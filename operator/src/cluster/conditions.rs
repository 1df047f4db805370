//! The conditions of a ModelProfile on a cluster, each from what a pass saw: pure. Their types and reasons are documented in
//! `modelprofile_api::conditions`.

use modelprofile_api::ConditionStatus::{self, False, True, Unknown};
use modelprofile_api::conditions::{self, reason};
use modelprofile_api::worker::{PrepareReason, WorkerPhase, WorkerProfile};
use modelprofile_api::{OnFailure, SwitchingMode, Verdict};
use modelprofile_policy::Reason;
use modelprofile_policy::gate::{Gated, condition as gate_condition};

use super::judge;
use super::plan::action::Stage;
use super::prepared::{Failure, Preparation};
use super::status::{Row, Seen, count};
use crate::local::status::preparing;

/// Every condition, in the order of [`conditions::ALL`].
pub(super) fn rows(seen: &Seen<'_>) -> Vec<Row> {
    let prepared = prepared(seen);
    let quality = quality(seen, prepared.0 == ConditionStatus::True);
    let available = available(seen, &prepared);
    let all = [
        (conditions::ACCEPTED, accepted(seen)),
        (conditions::LICENSE_ACCEPTED, licence(seen, prepared.0)),
        (conditions::PREPARED, prepared.clone()),
        (conditions::QUALITY_GATE_PASSED, quality.clone()),
        (conditions::METRICS_AVAILABLE, metrics(seen)),
        (conditions::AVAILABLE, available),
        (conditions::PROGRESSING, progressing(seen, &prepared)),
        (conditions::DEGRADED, degraded(seen, &prepared, &quality)),
    ];
    all.into_iter().map(|(kind, (status, reason, message))| (kind, status, reason.to_owned(), message)).collect()
}

/// Status, reason, message.
type Word = (ConditionStatus, &'static str, String);

/// An edit that is refused leaves the rest of the spec in force.
fn accepted(seen: &Seen<'_>) -> Word {
    if let Some(refused) = seen.waits(Stage::Refused) {
        return (False, reason::INVALID, refused.message.clone());
    }
    match blocked_pin(seen) {
        Some(message) => (False, reason::INVALID, message),
        None => (True, reason::VALID, String::new()),
    }
}

/// A pin to a profile that is beyond the limits is not followed; the rest of the spec is.
fn blocked_pin(seen: &Seen<'_>) -> Option<String> {
    let (switching, limits) = (&seen.spec.switching, &seen.spec.quality);
    let pin = switching.pinned_profile.as_deref().filter(|_| switching.mode == SwitchingMode::Pinned)?;
    let verdict = limits.verdict(seen.profile(pin)?.quality.as_ref());
    let blocked = matches!(verdict, Verdict::Beyond(_)) && !limits.admits(&verdict);
    blocked.then(|| {
        format!(
            "spec.switching.pinnedProfile: {}, so its pin is not followed; pin another profile, or {}",
            verdict.sentence(pin),
            verdict.remedy()
        )
    })
}

fn licence(seen: &Seen<'_>, prepared: ConditionStatus) -> Word {
    match seen.preparation {
        Preparation::Failed(Failure { reason: Some(PrepareReason::LicenceDiffers), message }) => {
            (False, reason::DIFFERS, message.clone())
        }
        // What is in the works was accepted before.
        Preparation::Running(Some(state)) if state.profiles.iter().any(|profile| profile.prepared_percent > 0.0) => {
            (True, reason::MATCHES, "the worker accepted the checkpoint's declaration".to_owned())
        }
        _ if prepared == True => (True, reason::MATCHES, "the worker accepted the checkpoint's declaration".to_owned()),
        _ => (Unknown, reason::PENDING, "the checkpoint's declaration was not read yet".to_owned()),
    }
}

fn prepared(seen: &Seen<'_>) -> Word {
    let by_workers = || {
        let serving = seen
            .states()
            .any(|state| matches!(state.phase, WorkerPhase::Ready | WorkerPhase::Draining | WorkerPhase::Blocked));
        if serving || seen.ready().next().is_some() {
            return (True, reason::PREPARED, String::new());
        }
        let state = seen.states().next();
        match state {
            Some(state) if state.phase == WorkerPhase::Failed => (False, reason::PREPARE_FAILED, state.message.clone()),
            Some(state) => (False, reason::PREPARING, preparing(Some(state))),
            None => (Unknown, reason::PENDING, "no worker has answered yet".to_owned()),
        }
    };
    match seen.preparation {
        Preparation::Done(_) => (True, reason::PREPARED, String::new()),
        Preparation::ByWorkers => by_workers(),
        Preparation::Pending => (False, reason::PREPARING, "the prepare Job is about to start".to_owned()),
        Preparation::Stuck(trouble) => (False, trouble.reason, trouble.message.clone()),
        Preparation::Running(state) => (
            False,
            reason::PREPARING,
            match preparing(state.as_deref()).as_str() {
                "" => "the prepare Job runs; it has not said yet how far it is".to_owned(),
                text => text.to_owned(),
            },
        ),
        Preparation::Failed(Failure { reason: Some(PrepareReason::NeedsAccelerator), message }) => {
            (False, reason::NEEDS_ACCELERATOR, message.clone())
        }
        Preparation::Failed(failure) => (False, reason::PREPARE_FAILED, failure.message.clone()),
    }
}

fn quality(seen: &Seen<'_>, prepared: bool) -> Word {
    let known: Vec<(&str, Option<&WorkerProfile>)> =
        seen.spec.profiles.iter().map(|profile| (profile.name.as_str(), seen.profile(&profile.name))).collect();
    if known.iter().all(|(_, profile)| profile.is_none()) {
        return (Unknown, reason::PENDING, "the profiles are being prepared and measured".to_owned());
    }
    let ladder: Vec<Gated<'_>> = known
        .iter()
        .map(|(name, profile)| Gated { name, quality: profile.and_then(|profile| profile.quality.as_ref()) })
        .collect();
    let gate = gate_condition(&seen.spec.quality, &ladder, prepared);
    (gate.status, gate.reason, gate.message)
}

fn metrics(seen: &Seen<'_>) -> Word {
    let (decision, _) = seen.decision;
    match decision.reason {
        Reason::MetricsUnavailable => (False, reason::METRICS_UNAVAILABLE, decision.message.clone()),
        _ if decision.pressure.is_some() => (True, reason::FRESH, String::new()),
        _ => (Unknown, reason::PENDING, "no metrics were read yet".to_owned()),
    }
}

fn available(seen: &Seen<'_>, prepared: &Word) -> Word {
    if seen.ready().next().is_some() {
        return (True, reason::WORKER_READY, String::new());
    }
    if let Some(blocked) = seen.states().find(|state| state.phase == WorkerPhase::Blocked) {
        return (False, reason::BEYOND_LIMITS, blocked.message.clone());
    }
    if let Some(trouble) = seen.troubles.first() {
        return (False, trouble.reason, trouble.message.clone());
    }
    if let Preparation::Stuck(trouble) = seen.preparation {
        return (False, trouble.reason, trouble.message.clone());
    }
    let message = match prepared.1 {
        reason::PREPARED => "no worker is ready yet".to_owned(),
        _ => prepared.2.clone(),
    };
    (False, reason::NO_WORKER_READY, message)
}

fn progressing(seen: &Seen<'_>, prepared: &Word) -> Word {
    let stages = [
        (Stage::PrepareFailed, reason::PREPARING),
        (Stage::Switching, reason::SWITCHING),
        (Stage::Starting, reason::ROLLING_OUT),
        (Stage::Draining, reason::ROLLING_OUT),
        (Stage::Leaving, reason::ROLLING_OUT),
        (Stage::Deleting, reason::ROLLING_OUT),
        (Stage::Preparing, reason::PREPARING),
        (Stage::Held, reason::PREPARING),
    ];
    for (stage, reason) in stages {
        if let Some(progress) = seen.waits(stage) {
            return (True, reason, progress.message.clone());
        }
    }
    let differs = seen.ready().any(|worker| judge::profile(worker) != Some(seen.decision.1));
    let (exist, wanted) = (count(seen.alive()), seen.replicas);
    if prepared.1 == reason::PREPARING {
        (True, reason::PREPARING, prepared.2.clone())
    } else if differs {
        (True, reason::SWITCHING, format!("switching to {}", seen.decision.1))
    } else if exist != wanted || count(seen.ready()) != wanted {
        (True, reason::SCALING, format!("{} of {wanted} workers are ready", count(seen.ready())))
    } else {
        (False, reason::STABLE, String::new())
    }
}

fn degraded(seen: &Seen<'_>, prepared: &Word, quality: &Word) -> Word {
    if let Some(message) = seen.failed {
        return (True, reason::APPLY_FAILED, message.to_owned());
    }
    if let Some(taken) = seen.waits(Stage::NameTaken) {
        return (True, reason::APPLY_FAILED, taken.message.clone());
    }
    if let Some((pod, profile)) = seen.refused {
        let message = format!(
            "{pod} refused {profile}; while that is wanted it is asked again, each time after a longer pause, and at once after an edit of the spec"
        );
        return (True, reason::SWITCH_REFUSED, message);
    }
    if matches!(prepared.1, reason::PREPARE_FAILED | reason::NEEDS_ACCELERATOR) {
        return (True, reason::PREPARE_FAILED, prepared.2.clone());
    }
    if let Preparation::Stuck(trouble) = seen.preparation {
        return (True, trouble.reason, trouble.message.clone());
    }
    if let Some(trouble) = seen.troubles.first() {
        return (True, trouble.reason, trouble.message.clone());
    }
    if let Some(blocked) = seen.states().find(|state| state.phase == WorkerPhase::Blocked) {
        return (True, reason::BEYOND_LIMITS, blocked.message.clone());
    }
    let ready = count(seen.ready());
    if prepared.0 == True && ready < seen.replicas {
        return (True, reason::REPLICAS_MISSING, format!("{ready} of {} workers are ready", seen.replicas));
    }
    let kept_out =
        quality.0 != True && quality.1 != reason::PENDING && seen.spec.quality.on_failure == OnFailure::Block;
    if kept_out {
        return (True, quality.1, quality.2.clone());
    }
    (False, reason::AS_EXPECTED, String::new())
}
