//! One pass over one ModelProfile.
//!
//! ```text
//! observe ──> decide ──> plan ──> act ──> status ──> Events
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use kube::{Resource, ResourceExt};
use modelprofile_api::conditions::reason;
use modelprofile_api::{API_VERSION, KIND, Manifest, Metadata, ModelProfileStatus};
use modelprofile_policy::{Observation, Rules, decide};

use super::act::{apply, prove};
use super::context::Context;
use super::error::Error;
use super::judge;
use super::memory::Memory;
use super::observe::{Observed, existing, may_ask, observe};
use super::plan::facts::{Desired, Facts, Options};
use super::plan::names::Owner;
use super::plan::settled::fingerprint;
use super::plan::valid::Valid;
use super::plan::{self, Existing, Plan, surge};
use super::pods::Trouble;
use super::prepared::Preparation;
use super::status::{self, Seen};
use super::stored::Stored;

/// Longest sentence about a spec that cannot be read, in characters.
const MESSAGE: usize = 4000;
/// Least time between two passes that nothing but time brings about.
const SHORTEST: Duration = Duration::from_secs(1);

/// One pass; the time until the next one that nothing but time brings about.
///
/// # Errors
/// Its class says when the next one comes; nothing that was done is lost.
pub(super) async fn pass(object: &Arc<Stored>, context: &Context) -> Result<Option<Duration>, Error> {
    let owner = Owner {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
    };
    if object.meta().deletion_timestamp.is_some() {
        // Owner references take along what is ours; there is nothing else to undo.
        return Ok(None);
    }
    let seen = object.status();
    let version = object.resource_version().unwrap_or_default();
    let generation = object.meta().generation;
    let valid = match manifest(object).and_then(|manifest| valid(&owner, manifest, &context.options)) {
        Ok(valid) => valid,
        Err(Rejected { reason, message }) => {
            let memory = context.memory(&owner, || Memory::from_status(&seen));
            let mut memory = memory.lock().await;
            let before = memory.status(&version, seen);
            let after = status::rejected(&before, generation, (reason, &message), Timestamp::now());
            context.write(&version, &owner, &before, after, &mut memory).await?;
            return Ok(None);
        }
    };
    let memory = context.memory(&owner, || Memory::from_status(&seen));
    let mut memory = memory.lock().await;
    let before = memory.status(&version, seen);
    let interval = SignedDuration::try_from(context.interval).map_err(|error| Error::Bug(error.to_string()))?;
    let rules = memory.rules(generation.unwrap_or_default(), valid.manifest(), interval).map_err(|error| {
        Error::Bug(format!("{KIND} {} passed validation and cannot be decided on: {error}", owner.name))
    })?;
    let token = context.signer.token(&owner.audience(), Timestamp::now());
    let mut observed = observe(context, &valid, &mut memory, &rules, &token).await;

    let now = Timestamp::now();
    let looked = observation(&rules, &observed, &before, &valid);
    memory.history.record(&rules, &looked, now);
    let decision = decide(&rules, &looked, &memory.history, now);
    let wanted = rules.name(decision.rung).to_owned();
    may_ask(&mut observed, &memory, &wanted);
    let refused = answers(context, &mut memory, &observed);

    let mut facts = Facts {
        now,
        desired: Desired { profile: wanted.clone(), replicas: decision.replicas },
        existing: Existing::default(),
        workers: observed.workers.clone(),
        weight_bytes: weights(&observed.preparation, &before),
    };
    let made_of = fingerprint(generation.unwrap_or_default(), observed.objects, &facts);
    let plan = if memory.has_nothing_to_do(observed.objects, made_of) {
        Plan::default()
    } else {
        facts.existing = observed.existing.take().unwrap_or_else(|| existing(&context.indexes, &valid));
        let plan = plan::plan(&valid, &facts, &context.options);
        memory.planned(plan == Plan::default(), &observed.read, observed.objects, made_of, Instant::now());
        plan
    };
    let applied = apply(context, &owner, &plan, &observed, &mut memory, &token).await;
    prove(context, &valid, &observed, &mut memory).await;

    let failure = applied.as_ref().err().filter(|error| error.needs_a_person()).map(ToString::to_string);
    let troubles: Vec<Trouble> = observed.troubles.values().cloned().collect();
    let selector = owner.selector();
    let seen = Seen {
        spec: valid.spec(),
        generation,
        workers: &facts.workers,
        troubles: &troubles,
        preparation: &observed.preparation,
        decision: (&decision, &wanted),
        plan: &plan,
        replicas: u32::try_from(surge::replicas(valid.spec(), decision.replicas)).unwrap_or_default(),
        refused: refused.as_ref().map(|(pod, profile)| (pod.as_str(), profile.as_str())),
        failed: failure.as_deref(),
        selector: &selector,
        routed: observed.read.routed.as_ref().and_then(|set| set.profile()),
        last_active: memory.last_active.as_deref(),
    };
    let after = status::next(&before, &seen, now);
    if after.active_profile.is_some() {
        memory.last_active.clone_from(&after.active_profile);
    }
    context.write(&version, &owner, &before, after, &mut memory).await?;
    applied?;
    let look = next_look(&owner.uid, now, context.interval);
    let soonest = [plan.revisit_after, Some(decision.revisit_after)].into_iter().flatten().fold(look, Duration::min);
    Ok(Some(soonest.max(SHORTEST)))
}

/// Time until the next look at the metrics. Each ModelProfile has its own place in the interval: after a start all have their
/// first pass at once, and without this they would have all others at once, too.
fn next_look(uid: &str, now: Timestamp, interval: Duration) -> Duration {
    let interval = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).max(1);
    let place = uid.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let now = u64::try_from(now.as_millisecond()).unwrap_or_default();
    Duration::from_millis(interval - now.wrapping_add(place) % interval)
}

fn observation(rules: &Rules, observed: &Observed, before: &ModelProfileStatus, valid: &Valid) -> Observation {
    let stuck: Vec<String> = observed.troubles.keys().cloned().collect();
    let prepared = match &observed.preparation {
        Preparation::Done(profiles) => profiles.as_slice(),
        _ => &[],
    };
    judge::observation(
        rules,
        judge::Seen {
            workers: &observed.workers,
            samples: &observed.samples,
            stuck: &stuck,
            routed: observed.read.routed.as_ref().and_then(|set| set.profile()),
            wanted: before.desired_profile.as_deref(),
            known: before.active_profile.as_deref(),
            prepared,
            replicas: observed
                .read
                .replicas
                .and_then(|asked| u32::try_from(asked).ok())
                .filter(|asked| *asked > 0)
                .unwrap_or(rules.min_replicas),
            accelerated: valid.spec().placement.accelerator_resource.is_some(),
        },
    )
}

/// Packed weights of the profiles, of the Job that made them or as the status remembers them.
fn weights(preparation: &Preparation, before: &ModelProfileStatus) -> BTreeMap<String, u64> {
    let mut weights: BTreeMap<String, u64> = before
        .profiles
        .iter()
        .filter_map(|profile| Some((profile.name.clone(), u64::try_from(profile.weight_bytes?).ok()?)))
        .collect();
    if let Preparation::Done(profiles) = preparation {
        let told = profiles.iter().filter(|profile| profile.weight_bytes > 0);
        weights.extend(told.map(|profile| (profile.name.clone(), profile.weight_bytes)));
    }
    weights
}

/// Takes the answers to switches in; the worker that refused, if one did and nothing has come about since.
fn answers(context: &Context, memory: &mut Memory, observed: &Observed) -> Option<(String, String)> {
    let mut refused = None;
    for (pod, uid) in &observed.uids {
        let Some(worker) = memory.workers.get_mut(uid) else { continue };
        if let Some((_, answer)) = worker.answer(Instant::now()) {
            let outcome = match &answer {
                Ok(report) => report.outcome.as_str(),
                Err(_) => "NoReport",
            };
            context.metrics.switched(outcome);
        }
        if let Some(profile) = worker.retries.refused() {
            refused = Some((pod.clone(), profile.to_owned()));
        }
    }
    refused
}

/// Why an object cannot be carried out.
struct Rejected {
    reason: &'static str,
    message: String,
}

/// The manifest of an object. One that was written past the schema is told what is wrong with it.
fn manifest(object: &Stored) -> Result<Manifest, Rejected> {
    let spec =
        object.spec().map_err(|error| Rejected { reason: reason::INVALID, message: unreadable(object, &error) })?;
    Ok(Manifest {
        api_version: API_VERSION.to_owned(),
        kind: KIND.to_owned(),
        metadata: Metadata { name: object.name_any(), namespace: object.namespace() },
        spec,
    })
}

/// Every field that breaks the schema, as `modelprofile validate` tells it.
fn unreadable(object: &Stored, error: &serde_json::Error) -> String {
    let text = format!(
        r#"{{"apiVersion": "{API_VERSION}", "kind": "{KIND}", "metadata": {{"name": "{}"}}, "spec": {}}}"#,
        object.name_any(),
        object.spec_text(),
    );
    // JSON is YAML.
    let message = match Manifest::from_yaml(&text) {
        Err(errors) => errors.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        Ok(_) => format!("spec cannot be read: {error}"),
    };
    // A value is quoted as it is, however long; the status has room for less.
    match message.char_indices().nth(MESSAGE) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message,
    }
}

fn valid(owner: &Owner, manifest: Manifest, options: &Options) -> Result<Valid, Rejected> {
    Valid::new(owner.clone(), manifest, options).map_err(|errors| Rejected {
        reason: reason::INVALID,
        message: errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_an_interval_apart_and_spread_over_it() {
        let interval = Duration::from_secs(5);
        let start: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
        let mut thirds = [0; 3];
        for number in 0..300 {
            let uid = format!("5f0c9a6e-0000-4000-8000-{number:012}");
            let first = next_look(&uid, start, interval);
            assert!(first > Duration::ZERO && first <= interval);
            let then = start + first;
            assert_eq!(next_look(&uid, then, interval), interval, "exactly then it is a whole interval to the next");
            assert_eq!(
                next_look(&uid, then + Duration::from_millis(20), interval),
                interval.saturating_sub(Duration::from_millis(20))
            );
            thirds[usize::try_from(first.as_millis() / 1667).unwrap()] += 1;
        }
        assert!(thirds.iter().all(|count| *count > 60), "{thirds:?}");
    }
}
