//! The loop: who is the leader, what is watched, and one pass.
//!
//! ```text
//! observe ──> decide ──> plan ──> apply ──> status ──> Events
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Api, DynamicObject};
use kube::core::ApiResource;
use kube::runtime::controller::{Action as Requeue, Config, Controller};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use modelprofile_api::conditions::reason;
use modelprofile_api::{API_VERSION, KIND, Manifest, Metadata, ModelProfile, ModelProfileSpec, Strategy};
use modelprofile_policy::decide;
use tokio::sync::{Mutex as AsyncMutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::apply::{Writer, read_status};
use super::error::Error;
use super::index::Key;
use super::judge;
use super::memory::Memory;
use super::metrics::Metrics;
use super::news::news;
use super::observe::{Indexes, Observed, may_ask, observe};
use super::plan::action::{Action, Plan};
use super::plan::facts::{Desired, Facts, Options};
use super::plan::names::{MANAGER, NAME, Owner};
use super::plan::valid::Valid;
use super::plan::{self, surge};
use super::pods::Trouble;
use super::prepared::Preparation;
use super::status::{self, Seen};
use super::tokens::Signer;
use super::workers::Workers;

/// Passes at once: most of a pass is waiting for workers.
const PASSES: u16 = 64;
/// Time in which changes of one ModelProfile become one pass.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// Least time between two passes that nothing but time brings about.
const SHORTEST: Duration = Duration::from_secs(1);
/// Changes that may wait to be told to the controller; more of them hold up the watches, not memory.
const CHANGES: usize = 1024;

/// What every pass needs.
pub struct Context {
    /// Writes objects.
    pub writer: Writer,
    /// Publishes Events.
    pub recorder: Recorder,
    /// What the API server told.
    pub indexes: Indexes,
    /// Talks to workers.
    pub workers: Workers,
    /// Signs tokens for them.
    pub signer: Signer,
    /// Flags.
    pub options: Options,
    /// Time between two looks at the metrics.
    pub interval: Duration,
    /// The operator's own metrics.
    pub metrics: Metrics,
    memories: Mutex<HashMap<String, Arc<AsyncMutex<Memory>>>>,
    failures: Mutex<HashMap<Key, u32>>,
    changed: mpsc::Sender<Key>,
}

/// What the flags say.
pub struct Settings {
    /// Namespace that is watched; `None`: all.
    pub namespace: Option<String>,
    /// Time between two looks at the metrics.
    pub interval: Duration,
    /// What objects are made of.
    pub options: Options,
}

/// Watches and reconciles until the process is asked to end.
///
/// # Errors
/// The HTTP client of the workers cannot be built.
pub async fn run(client: Client, settings: Settings, signer: Signer, metrics: Metrics) -> anyhow::Result<()> {
    let (changed, changes) = mpsc::channel(CHANGES);
    let reporter = Reporter { controller: MANAGER.to_owned(), instance: std::env::var("POD_NAME").ok() };
    let context = Arc::new(Context {
        writer: Writer::new(client.clone()),
        recorder: Recorder::new(client.clone(), reporter),
        indexes: Indexes::default(),
        workers: Workers::new()?,
        signer,
        options: settings.options,
        interval: settings.interval,
        metrics,
        memories: Mutex::default(),
        failures: Mutex::default(),
        changed: changed.clone(),
    });
    let namespace = settings.namespace.as_deref();
    let watches = watch_all(client.clone(), namespace, context.clone(), changed);
    let resource = ApiResource::erase::<ModelProfile>(&());
    // Not the typed object: one that breaks the schema must not keep the others from being read.
    let profiles: Api<DynamicObject> = match namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, &resource),
        None => Api::all_with(client, &resource),
    };
    let reference = resource.clone();
    let changes = ReceiverStream::new(changes)
        .map(move |(namespace, name): Key| ObjectRef::new_with(&name, reference.clone()).within(&namespace));
    let stopping = context.clone();
    let controller = Controller::new_with(profiles, watcher::Config::default(), resource)
        .with_config(Config::default().concurrency(PASSES).debounce(DEBOUNCE))
        .reconcile_on(changes)
        .shutdown_on_signal()
        .run(reconcile, failed, context)
        .for_each(|outcome| async {
            if let Err(error) = outcome {
                tracing::debug!("{error}");
            }
        });
    tokio::select! {
        () = controller => {}
        () = watches => {}
    }
    drop(stopping);
    Ok(())
}

/// Follows every kind of object that is ours.
async fn watch_all(client: Client, namespace: Option<&str>, context: Arc<Context>, changed: mpsc::Sender<Key>) {
    macro_rules! follow {
        ($index:ident, $trim:expr) => {{
            let api = match namespace {
                Some(namespace) => Api::namespaced(client.clone(), namespace),
                None => Api::all(client.clone()),
            };
            let config = watcher::Config::default().labels(NAME);
            context.indexes.$index.follow(watcher(api, config).default_backoff(), $trim, changed.clone())
        }};
    }
    tokio::join!(
        follow!(deployments, |_| {}),
        follow!(services, |_| {}),
        follow!(config_maps, |_| {}),
        follow!(budgets, |_| {}),
        follow!(policies, |_| {}),
        follow!(jobs, |_| {}),
        // The status tells all that a pass asks of a pod.
        follow!(pods, |pod: &mut k8s_openapi::api::core::v1::Pod| {
            pod.spec = None;
            pod.metadata.annotations = None;
        }),
    );
}

async fn known(indexes: &Indexes) {
    tokio::join!(
        indexes.deployments.complete(),
        indexes.services.complete(),
        indexes.config_maps.complete(),
        indexes.budgets.complete(),
        indexes.policies.complete(),
        indexes.jobs.complete(),
        indexes.pods.complete(),
    );
}

/// What comes after a pass that failed.
#[allow(clippy::needless_pass_by_value, reason = "the controller's signature")]
fn failed(object: Arc<DynamicObject>, error: &Error, context: Arc<Context>) -> Requeue {
    let key = (object.namespace().unwrap_or_default(), object.name_any());
    let mut failures = context.failures.lock().unwrap_or_else(PoisonError::into_inner);
    let count = failures.entry(key).or_default();
    *count = count.saturating_add(1);
    let pause = error.pause(*count);
    tracing::warn!(namespace = object.namespace(), name = object.name_any(), "{error}; the next pass is in {pause:?}");
    Requeue::requeue(pause)
}

/// One pass, with its time and outcome counted.
async fn reconcile(object: Arc<DynamicObject>, context: Arc<Context>) -> Result<Requeue, Error> {
    known(&context.indexes).await;
    let start = Instant::now();
    let outcome = pass(&object, &context).await;
    context.metrics.passed(outcome.as_ref().err().map_or("ok", Error::class), start.elapsed());
    if outcome.is_ok() {
        let key = (object.namespace().unwrap_or_default(), object.name_any());
        context.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }
    outcome
}

async fn pass(object: &Arc<DynamicObject>, context: &Context) -> Result<Requeue, Error> {
    let owner = Owner {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
    };
    if object.meta().deletion_timestamp.is_some() {
        // Owner references take along what is ours; there is nothing else to undo.
        context.forget(&owner);
        return Ok(Requeue::await_change());
    }
    let seen = read_status(object);
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
            return Ok(Requeue::await_change());
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
    let mut observed = observe(&context.indexes, &context.workers, &valid, &mut memory, &rules, &token).await;

    let now = Timestamp::now();
    let looked = observation(&rules, &observed, &before, &valid);
    memory.history.record(&rules, &looked, now);
    let decision = decide(&rules, &looked, &memory.history, now);
    let wanted = rules.name(decision.rung).to_owned();
    may_ask(&mut observed, &memory, &wanted);
    let refused = answers(context, &mut memory, &observed);

    let facts = Facts {
        now,
        desired: Desired { profile: wanted.clone(), replicas: decision.replicas },
        existing: std::mem::take(&mut observed.existing),
        workers: observed.workers.clone(),
        weight_bytes: weights(&observed.preparation, &before),
    };
    let plan = plan::plan(&valid, &facts, &context.options);
    let applied = apply(context, &owner, &plan, &observed, &mut memory, &token).await;
    prove(context, &valid, &observed, &mut memory).await;

    let failure =
        applied.as_ref().err().filter(|error| matches!(error, Error::Invalid { .. })).map(ToString::to_string);
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
        routed: observed.routed.as_ref().and_then(|set| set.profile()),
    };
    let after = status::next(&before, &seen, now);
    context.write(&version, &owner, &before, after, &mut memory).await?;
    applied?;
    let soonest =
        [Some(context.interval), plan.revisit_after, Some(decision.revisit_after)].into_iter().flatten().min();
    Ok(Requeue::requeue(soonest.unwrap_or(context.interval).max(SHORTEST)))
}

fn observation(
    rules: &modelprofile_policy::Rules,
    observed: &Observed,
    before: &modelprofile_api::ModelProfileStatus,
    valid: &Valid,
) -> modelprofile_policy::Observation {
    let stuck: Vec<String> = observed.troubles.keys().cloned().collect();
    let prepared = match &observed.preparation {
        Preparation::Done(profiles) => profiles.as_slice(),
        _ => &[],
    };
    let asked = observed.existing.deployments.values().filter_map(|deployment| deployment.spec.replicas).max();
    judge::observation(
        rules,
        judge::Seen {
            workers: &observed.workers,
            samples: &observed.samples,
            stuck: &stuck,
            routed: observed.routed.as_ref().and_then(|set| set.profile()),
            wanted: before.desired_profile.as_deref(),
            prepared,
            replicas: asked
                .and_then(|asked| u32::try_from(asked).ok())
                .filter(|asked| *asked > 0)
                .unwrap_or(rules.min_replicas),
            accelerated: valid.spec().placement.accelerator_resource.is_some(),
        },
    )
}

/// Packed weights of the profiles, of the Job that made them or as the status remembers them.
fn weights(
    preparation: &Preparation,
    before: &modelprofile_api::ModelProfileStatus,
) -> std::collections::BTreeMap<String, u64> {
    let mut weights: std::collections::BTreeMap<String, u64> = before
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

/// Carries a plan out, in its order. What fails holds up what comes after it in this pass, for that may need it.
async fn apply(
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
                context.writer.apply(namespace, object).await?;
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
async fn prove(context: &Context, valid: &Valid, observed: &Observed, memory: &mut Memory) {
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

/// Why an object cannot be carried out.
struct Rejected {
    reason: &'static str,
    message: String,
}

/// The manifest of an object. One that was written past the schema is told what is wrong with it.
fn manifest(object: &DynamicObject) -> Result<Manifest, Rejected> {
    let spec = object.data.get("spec").cloned().unwrap_or_default();
    let spec: ModelProfileSpec = serde_json::from_value(spec).map_err(|error| Rejected {
        reason: reason::INVALID,
        message: format!("spec cannot be read: {error}; `modelprofile validate` says what to write"),
    })?;
    Ok(Manifest {
        api_version: API_VERSION.to_owned(),
        kind: KIND.to_owned(),
        metadata: Metadata { name: object.name_any(), namespace: object.namespace() },
        spec,
    })
}

fn valid(owner: &Owner, manifest: Manifest, options: &Options) -> Result<Valid, Rejected> {
    Valid::new(owner.clone(), manifest, options).map_err(|errors| Rejected {
        reason: reason::INVALID,
        message: errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
    })
}

impl Context {
    fn memory(&self, owner: &Owner, new: impl FnOnce() -> Memory) -> Arc<AsyncMutex<Memory>> {
        let mut memories = self.memories.lock().unwrap_or_else(PoisonError::into_inner);
        memories.entry(owner.uid.clone()).or_insert_with(|| Arc::new(AsyncMutex::new(new()))).clone()
    }

    fn forget(&self, owner: &Owner) {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner).remove(&owner.uid);
        self.metrics.forget(&owner.namespace, &owner.name);
    }

    /// Writes the status where it says something new, and tells what happened.
    async fn write(
        &self,
        version: &str,
        owner: &Owner,
        before: &modelprofile_api::ModelProfileStatus,
        after: modelprofile_api::ModelProfileStatus,
        memory: &mut Memory,
    ) -> Result<(), Error> {
        self.metrics.observed(&owner.namespace, &owner.name, &after);
        let waited = memory.wrote.is_none_or(|at| at.elapsed() >= status::COSMETIC);
        let after = status::settled(before, after, waited);
        if after == *before {
            return Ok(());
        }
        self.writer.status(&owner.namespace, &owner.name, &after).await?;
        memory.wrote(version.to_owned(), after.clone(), Instant::now());
        let reference = ObjectReference {
            api_version: Some(API_VERSION.to_owned()),
            kind: Some(KIND.to_owned()),
            name: Some(owner.name.clone()),
            namespace: Some(owner.namespace.clone()),
            uid: Some(owner.uid.clone()),
            ..ObjectReference::default()
        };
        for one in news(before, &after) {
            let event = Event {
                type_: if one.warning { EventType::Warning } else { EventType::Normal },
                reason: one.reason,
                note: Some(one.note),
                action: one.action.to_owned(),
                secondary: None,
            };
            // An Event that is lost is no reason to do the pass again: the status has it all.
            if let Err(error) = self.recorder.publish(&event, &reference).await {
                tracing::warn!(namespace = owner.namespace, name = owner.name, "an Event cannot be published: {error}");
            }
        }
        Ok(())
    }
}
