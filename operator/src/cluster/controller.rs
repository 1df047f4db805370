//! The loop: what is watched, and when a pass comes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{FutureExt, StreamExt};
use kube::api::Api;
use kube::runtime::controller::{Action as Requeue, Config, Controller, Error as NoPass};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::apply::Writer;
use super::context::Context;
use super::error::Error;
use super::index::Key;
use super::looks::Looks;
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
/// Of these, passes that nothing but time brings about: what changes finds a place at once.
const LOOKS: usize = 48;
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
    let end = end.shared();
    let (changed, changes) = mpsc::channel(CHANGES);
    let context = Arc::new(Context {
        writer: Writer::new(client.clone()),
        recorder: Recorder::new(client.clone(), std::env::var("POD_NAME").ok()),
        indexes: Indexes::default(),
        workers: Workers::new()?,
        signer,
        options: settings.options,
        interval: settings.interval,
        metrics,
        memories: Mutex::default(),
        failures: Mutex::default(),
        looks: Looks::new(LOOKS),
        changed: changed.clone(),
    });
    let namespace = settings.namespace.as_deref();
    let watches = watch_all(client.clone(), namespace, context.clone(), changed);
    let profiles: Api<Stored> = match namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    };
    let changes = ReceiverStream::new(changes).map(|(namespace, name): Key| ObjectRef::new(&name).within(&namespace));
    let shared = context.clone();
    let controller = Controller::new(profiles, watcher::Config::default().page_size(PAGE));
    let store = controller.store();
    let controller = controller
        .with_config(Config::default().concurrency(PASSES).debounce(DEBOUNCE))
        .reconcile_on(changes)
        .graceful_shutdown_on(end.clone())
        .run(reconcile, failed, context)
        .for_each(|outcome| async {
            if let Err(error) = outcome {
                tracing::debug!("{error}");
                // It was deleted since it was handed over, and no pass ends that would say so.
                if let NoPass::ObjectNotFound(object) = error {
                    shared.looks.ended(&(object.namespace.unwrap_or_default(), object.name), None);
                }
            }
        });
    let looking = shared.looks.hand_out(&shared.changed, |late| shared.metrics.looked(late));
    // What has no finalizer is gone without a pass of its own.
    let forgetting = async {
        if store.wait_until_ready().await.is_err() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(FORGET).await;
            shared.keep(|(namespace, name)| {
                store.get(&ObjectRef::new(name).within(namespace)).and_then(|object| object.uid())
            });
        }
    };
    // No pass begins before everything is known, and the controller ends after its first passes at the earliest. Where something may
    // not be listed that never comes: it would hear of the end and wait on, with the Lease, until it is killed.
    let ending_before_it_began = async {
        end.await;
        let begun = async {
            store.wait_until_ready().await.ok();
            known(&shared.indexes).await;
        };
        if begun.now_or_never().is_some() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = controller => {}
        () = watches => {}
        () = forgetting => {}
        () = looking => {}
        () = ending_before_it_began => {}
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
    let count = failures.entry(key.clone()).or_default();
    *count = count.saturating_add(1);
    let pause = error.pause(*count);
    context.looks.ended(&key, Some(pause));
    tracing::warn!(namespace = object.namespace(), name = object.name_any(), "{error}; the next pass is in {pause:?}");
    Requeue::await_change()
}

/// One pass, with its time and outcome counted.
async fn reconcile(object: Arc<Stored>, context: Arc<Context>) -> Result<Requeue, Error> {
    known(&context.indexes).await;
    let key = (object.namespace().unwrap_or_default(), object.name_any());
    context.looks.begun(&key);
    let start = Instant::now();
    let outcome = pass(&object, &context).await;
    context.metrics.passed(outcome.as_ref().err().map_or("ok", Error::class), start.elapsed());
    let next = outcome?;
    context.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    context.looks.ended(&key, next);
    // The time is kept there.
    Ok(Requeue::await_change())
}

#[cfg(test)]
mod tests {
    use std::future::IntoFuture;

    use axum::Json;
    use axum::http::StatusCode;
    use serde_json::json;

    use super::*;

    /// An API server that lets nobody list anything.
    async fn refusing() -> Client {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let refuse = || async {
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no", "reason": "Forbidden", "code": 403});
            (StatusCode::FORBIDDEN, Json(status))
        };
        tokio::spawn(axum::serve(listener, axum::Router::new().fallback(refuse)).into_future());
        Client::try_from(kube::Config::new(address.parse().unwrap())).unwrap()
    }

    #[tokio::test]
    async fn one_that_is_asked_to_end_before_it_could_list_everything_ends() {
        let settings = Settings { namespace: None, interval: Duration::from_secs(1), options: Options::default() };
        let signer = Signer::from_pkcs8(&Signer::generate().unwrap()).unwrap();
        let end = tokio::time::sleep(Duration::from_millis(100));
        let running = Box::pin(run(refusing().await, settings, signer, Metrics::new().unwrap(), end));
        tokio::time::timeout(Duration::from_secs(10), running)
            .await
            .expect("it waits for what it may not list")
            .unwrap();
    }
}
