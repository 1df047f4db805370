//! A plan carried out: objects through the API server, switches and limits through the workers.

use std::sync::PoisonError;

use futures_util::future::join_all;
use modelprofile_api::Strategy;

use super::context::Context;
use super::error::Error;
use super::memory::Memory;
use super::observe::Observed;
use super::plan::action::{Action, Plan};
use super::plan::names::Owner;
use super::plan::valid::Valid;

/// Carries a plan out, in its order. What fails holds up what comes after it in this pass, for that may need it.
///
/// # Errors
/// The first thing that failed.
pub(super) async fn apply(
    context: &Context,
    owner: &Owner,
    plan: &Plan,
    observed: &Observed,
    memory: &mut Memory,
    token: &str,
) -> Result<(), Error> {
    let namespace = owner.namespace.as_str();
    for action in &plan.actions {
        tracing::info!(namespace, name = owner.name, "{action}");
        match action {
            Action::Apply { object, .. } | Action::Route { service: object, .. } => {
                context.writer.apply(owner, object).await?;
            }
            Action::Scale { deployment, replicas, .. } => {
                context.writer.scale(namespace, deployment, *replicas).await?;
            }
            Action::Delete { kind, name, uid, .. } => {
                context.writer.delete(namespace, *kind, name, uid.clone()).await?;
            }
            Action::SetQuality { pod, limits, .. } => {
                if let Some(address) = observed.addresses.get(pod)
                    && let Err(message) = context.workers.set_quality(address, token, limits).await
                {
                    // Whether it took them is seen in the next pass.
                    tracing::warn!(namespace, pod, "{message}");
                }
            }
            Action::Switch { pod, profile, .. } => ask(context, owner, pod, profile, observed, memory, token),
        }
    }
    Ok(())
}

/// Asks a worker to switch, beside the passes: its answer comes when the switch has ended.
fn ask(
    context: &Context,
    owner: &Owner,
    pod: &str,
    profile: &str,
    observed: &Observed,
    memory: &mut Memory,
    token: &str,
) {
    let (Some(address), Some(uid)) = (observed.addresses.get(pod), observed.uids.get(pod)) else { return };
    let slot = memory.workers.entry(uid.clone()).or_default().ask(profile);
    let (workers, address, profile, token) =
        (context.workers.clone(), address.clone(), profile.to_owned(), token.to_owned());
    let (changed, key) = (context.changed.clone(), (owner.namespace.clone(), owner.name.clone()));
    tokio::spawn(async move {
        let answer = workers.switch(&address, &token, &profile).await;
        if let Err(message) = &answer {
            tracing::warn!(namespace = key.0, name = key.1, "{}: {message}", address.ip);
        }
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        // The next pass need not wait for its time. A channel that is closed belongs to an operator that ends.
        let _ = changed.send(key).await;
    });
}

/// Sends a first real request to workers that got ready: where one set of pods takes the place of another, only those that
/// answered one are trusted.
pub(super) async fn prove(context: &Context, valid: &Valid, observed: &Observed, memory: &mut Memory) {
    if valid.spec().switching.strategy == Strategy::InPlace {
        return;
    }
    let model = valid.manifest().served_name();
    let asked = observed.workers.iter().filter(|worker| worker.ready && !worker.answered).map(|worker| async {
        let (address, uid) = (observed.addresses.get(&worker.pod)?, observed.uids.get(&worker.pod)?);
        context.workers.answers(address, model).await.then_some(uid)
    });
    for uid in join_all(asked).await.into_iter().flatten() {
        if let Some(remembered) = memory.workers.get_mut(uid) {
            remembered.answered = true;
        }
    }
}
