//! From what is asked for and what exists to what has to be done. Pure: no client, no clock.
//!
//! ```text
//! Manifest ──> Valid::new ──> Valid ──┐
//! cluster  ──> Facts ─────────────────┼──> plan ──> Plan { actions, progress, revisit_after }
//! flags    ──> Options ───────────────┘
//! ```
//!
//! A plan is a value that can be printed and compared. Applied, it leaves an empty one until something else changes. It is
//! derived from what exists, so there is nothing to lose when an operator ends in the middle.
//!
//! | module | what it holds |
//! |---|---|
//! | [`facts`] | the input beside the manifest: [`Options`], [`Facts`] with [`Existing`] objects and [`Worker`]s |
//! | [`valid`] | [`Valid`]: a manifest that can be carried out on a cluster |
//! | [`names`] | names and labels of all that belongs to a ModelProfile; [`Set`]s of worker pods |
//! | [`engine`] | image, arguments, probes and metrics of each engine, and what it refuses |
//! | [`pod`] | worker pods, and what prepare pods have in common with them |
//! | [`shape`] | what of a manifest replaces the pods when it changes |
//! | [`objects`] | Deployment, Service, ConfigMap, PodDisruptionBudget, NetworkPolicy |
//! | [`prepare`] | the Job: when it is needed, its key, what it says |
//! | [`rollout`] | what an edit does: live, prepares, joins, rolls, refused |
//! | [`surge`] | which set serves, and how another takes its place |
//! | `switching` | what workers are asked |
//! | [`settled`] | when a plan need not be made again |
//! | [`action`] | what comes out: [`Plan`], [`Action`], [`Progress`] |
//! | [`object`] | objects of the cluster as one type |
//! | [`diff`] | whether an object is what it should be |
//! | [`digest`] | SHA-256 as text |

pub mod action;
pub mod diff;
pub mod digest;
pub mod engine;
pub mod facts;
pub mod names;
pub mod object;
pub mod objects;
pub mod pod;
pub mod prepare;
pub mod rollout;
pub mod settled;
pub mod shape;
pub mod surge;
mod switching;
pub mod valid;

#[cfg(test)]
mod tests;

pub use action::{Action, Plan, Progress, Stage};
pub use facts::{Desired, Existing, Facts, Images, OperatorPod, Options, Worker};
pub use names::{Owner, Set};
pub use object::{Kind, Object};
pub use valid::Valid;

use modelprofile_api::Manifest;

use rollout::{Edit, Effect};

/// What has to be done.
pub fn plan(valid: &Valid, facts: &Facts, options: &Options) -> Plan {
    let sets = || surge::deployments(valid, facts).filter_map(|deployment| deployment.metadata.name.as_deref());
    let config_map = facts.existing.config_map.as_ref().filter(|found| valid.owner().owns(&found.metadata));
    let running = config_map.filter(|_| sets().next().is_some()).and_then(rollout::running);
    let bound = running.is_some();
    let plan = bound_by(running, valid, facts, options);
    // What nobody runs binds nobody, from the moment on that the last set is deleted.
    if bound && sets().all(|set| plan.deletes(Kind::Deployment, set)) {
        bound_by(None, valid, facts, options)
    } else {
        plan
    }
}

/// What has to be done while workers run a manifest, which binds what may change.
fn bound_by(running: Option<Manifest>, valid: &Valid, facts: &Facts, options: &Options) -> Plan {
    let mut plan = Plan::default();
    let owner = valid.owner();
    let existing = &facts.existing;
    let edit = running.as_ref().map(|running| Edit::between(running, valid.manifest())).unwrap_or_default();
    let refused = edit.with(Effect::Refused);
    let prepared = prepare::is_done(valid, facts);
    let may_change = prepared && refused.is_empty();

    if !refused.is_empty() {
        let fields = refused.join(" and ");
        plan.wait(Stage::Refused, format!("{fields} can not be changed; write it back, or make another ModelProfile"));
    }
    let held = running.filter(|_| !may_change).map(|running| rollout::held(&running, valid.manifest()));
    if held.is_some() && refused.is_empty() {
        let waiting = edit.waiting();
        if !waiting.is_empty() {
            let verb = if waiting.len() == 1 { "is" } else { "are" };
            let fields = waiting.join(", ");
            plan.wait(Stage::Held, format!("{fields} {verb} followed when what the pods need then is prepared"));
        }
    }
    let manifest = held.as_ref().unwrap_or(valid.manifest());
    let text = held.as_ref().and_then(rollout::text).unwrap_or_else(|| valid.text().to_owned());
    let preparing = !prepared && refused.is_empty();
    sync(
        objects::config_map(valid, facts, options, (manifest, text), !preparing).into(),
        existing.config_map.clone().map(Object::from),
        owner,
        &mut plan,
    );
    let policy = existing.network_policy.clone().map(Object::from);
    sync(objects::network_policy(owner, options).into(), policy, owner, &mut plan);
    let budget = existing.disruption_budget.clone().map(Object::from);
    sync(objects::disruption_budget(owner).into(), budget, owner, &mut plan);
    if refused.is_empty() {
        prepare::plan(valid, facts, options, &mut plan);
    }
    surge::plan(valid, facts, options, may_change, &mut plan);
    switching::plan(valid, manifest, facts, &mut plan);
    plan
}

/// Makes an object what it should be.
fn sync(wanted: Object, existing: Option<Object>, owner: &Owner, plan: &mut Plan) {
    let object = diff::seal(wanted);
    let (kind, name) = (object.kind(), object.name().to_owned());
    let why = match existing {
        None => Some("it does not exist yet".to_owned()),
        Some(found) if !owner.owns(found.metadata()) => {
            return plan.wait(Stage::NameTaken, prepare::taken(kind, &name));
        }
        Some(found) if found.metadata().deletion_timestamp.is_some() => {
            return plan.wait(Stage::Deleting, format!("{kind} {name} is being deleted, and is made again then"));
        }
        Some(found) => diff::difference(&object, &found),
    };
    if let Some(why) = why {
        plan.actions.push(Action::Apply { object, why });
    }
}
