//! The loop: what is watched, and when a pass comes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use jiff::SignedDuration;
use kube::api::Api;
use kube::runtime::controller::{Action as Requeue, Config, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::apply::Writer;
use super::context::Context;
use super::error::Error;
use super::index::Key;
use super::metrics::Metrics;
use super::observe::Indexes;
use super::pass::pass;
use super::plan::facts::Options;
use super::plan::names::NAME;
use super::recorder::Recorder;
use super::stored::Stored;
use super::tokens::Signer;
use super::workers::Workers;

/// Passes at once: most of a pass is waiting for workers.
const PASSES: u16 = 64;
/// Time in which changes of one ModelProfile become one pass.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// Time between two looks at what can be forgotten.
const FORGET: Duration = Duration::from_secs(10);
/// Objects that a list brings at a time: what they are read from is of another size than what is kept of them.
const PAGE: u32 = 50;
/// Changes that may wait to be told to the controller; more of them hold up the watches, not memory.
const CHANGES: usize = 1024;

/// What the flags say.
pub struct Settings {
    /// Namespace that is watched; `None`: all.
    pub namespace: Option<String>,
    /// Time between two looks at the metrics.
    pub interval: Duration,
    /// How far the clock that decisions go by is ahead of the machine's.
    pub ahead: SignedDuration,
    /// What objects are made of.
    pub options: Options,
}

/// Watches and reconciles until `end` resolves.
///
/// # Errors
/// The HTTP client of the workers cannot be built.
pub async fn run(
    client: Client,
    settings: Settings,
    signer: Signer,
    metrics: Metrics,
    end: impl Future<Output = ()> + Send + Sync + 'static,
) -> anyhow::Result<()> {
    let (changed, changes) = mpsc::channel(CHANGES);
    let context = Arc::new(Context {
        writer: Writer::new(client.clone()),
        recorder: Recorder::new(client.clone(), std::env::var("POD_NAME").ok()),
        indexes: Indexes::default(),
        workers: Workers::new()?,
        signer,
        options: settings.options,
        interval: settings.interval,
        ahead: settings.ahead,
        metrics,
        memories: Mutex::default(),
        failures: Mutex::default(),
        changed: changed.clone(),
    });
    let namespace = settings.namespace.as_deref();
    let watches = watch_all(client.clone(), namespace, context.clone(), changed);
    let profiles: Api<Stored> = match namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    };
    let changes = ReceiverStream::new(changes).map(|(namespace, name): Key| ObjectRef::new(&name).within(&namespace));
    let stopping = context.clone();
    let controller = Controller::new(profiles, watcher::Config::default().page_size(PAGE));
    let store = controller.store();
    let controller = controller
        .with_config(Config::default().concurrency(PASSES).debounce(DEBOUNCE))
        .reconcile_on(changes)
        .graceful_shutdown_on(end)
        .run(reconcile, failed, context)
        .for_each(|outcome| async {
            if let Err(error) = outcome {
                tracing::debug!("{error}");
            }
        });
    // What has no finalizer is gone without a pass of its own.
    let forgetting = async {
        if store.wait_until_ready().await.is_err() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(FORGET).await;
            stopping.keep(|(namespace, name)| {
                store.get(&ObjectRef::new(name).within(namespace)).and_then(|object| object.uid())
            });
        }
    };
    tokio::select! {
        () = controller => {}
        () = watches => {}
        () = forgetting => {}
    }
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
            let config = watcher::Config::default().labels(NAME).page_size(PAGE);
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
fn failed(object: Arc<Stored>, error: &Error, context: Arc<Context>) -> Requeue {
    let key = (object.namespace().unwrap_or_default(), object.name_any());
    let mut failures = context.failures.lock().unwrap_or_else(PoisonError::into_inner);
    let count = failures.entry(key).or_default();
    *count = count.saturating_add(1);
    let pause = error.pause(*count);
    tracing::warn!(namespace = object.namespace(), name = object.name_any(), "{error}; the next pass is in {pause:?}");
    Requeue::requeue(pause)
}

/// One pass, with its time and outcome counted.
async fn reconcile(object: Arc<Stored>, context: Arc<Context>) -> Result<Requeue, Error> {
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
