//! From the flags to the loop: the key that signs tokens, the Lease, the ports.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::controller::{self, Settings};
use super::leadership::Leadership;
use super::metrics::{Metrics, serve_health, serve_metrics};
use super::plan::facts::Options;
use super::tokens::Signer;

/// Name of the Lease.
const LEASE: &str = "modelprofile-operator";
/// Name of the Secret with the key, in the operator's namespace.
const SECRET: &str = "modelprofile-operator-admin";
/// Its one entry.
const KEY: &str = "ed25519.pk8";
/// Between two attempts to reach the API server at the start.
const AGAIN: Duration = Duration::from_secs(2);

/// What the flags say.
#[derive(Clone, Debug)]
pub struct Flags {
    /// Namespace that is watched; `None`: all.
    pub namespace: Option<String>,
    /// Namespace of the operator itself: of its Lease and its Secret.
    pub operator_namespace: String,
    /// Time between two looks at the metrics of workers.
    pub interval: Duration,
    /// Where `/metrics` is served.
    pub metrics: SocketAddr,
    /// Where `/livez` and `/readyz` are served.
    pub health: SocketAddr,
    /// Act only while holding the Lease.
    pub leader_election: bool,
    /// What objects are made of; the public key is added.
    pub options: Options,
}

/// Runs the operator until a signal.
///
/// # Errors
/// The cluster cannot be reached, the key cannot be had, a port is taken, or the Lease was lost: then another operator may
/// act, and this one ends to begin anew.
pub async fn start(flags: Flags) -> anyhow::Result<()> {
    let client =
        Client::try_default().await.context("no cluster: set KUBECONFIG, or run as a pod with a ServiceAccount")?;
    // The first process of a container hears no signal that it has no handler for. One that waits for the Lease would wait on,
    // and lead when the one that leads has ended by the same signal.
    let stop = stop()?;
    let metrics = Metrics::new()?;
    let ready = Arc::new(AtomicBool::new(false));
    let ports = async {
        tokio::try_join!(serve_metrics(flags.metrics, metrics.clone()), serve_health(flags.health, ready.clone()))
            .map(drop)
    };
    tokio::select! {
        outcome = ports => outcome,
        outcome = lead(client, &flags, metrics.clone(), &ready, stop) => outcome,
    }
}

/// Turns true when the process is asked to end.
fn stop() -> std::io::Result<watch::Receiver<bool>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (sender, stop) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        let _ = sender.send(true);
    });
    Ok(stop)
}

/// Resolves when the process is asked to end.
async fn stopped(mut stop: watch::Receiver<bool>) {
    // The sender is gone only when the runtime is.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn lead(
    client: Client,
    flags: &Flags,
    metrics: Metrics,
    ready: &AtomicBool,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let signer = tokio::select! {
        signer = patiently(|| signer(&client, &flags.operator_namespace)) => signer?,
        () = stopped(stop.clone()) => return Ok(()),
    };
    ready.store(true, Ordering::Relaxed);
    let mut options = flags.options.clone();
    options.admin_keys = vec![signer.public_key()];
    let settings = Settings { namespace: flags.namespace.clone(), interval: flags.interval, options };
    if !flags.leader_election {
        metrics.lead(true);
        return Box::pin(controller::run(client, settings, signer, metrics, stopped(stop))).await;
    }
    let identity = std::env::var("POD_NAME").unwrap_or_else(|_| format!("process-{}", std::process::id()));
    tracing::info!("waiting for the Lease {}/{LEASE}", flags.operator_namespace);
    let mut leadership = Leadership::seek(&flags.operator_namespace, LEASE, identity)?;
    let leads = tokio::select! {
        // Both may be so: then it ends.
        biased;
        () = stopped(stop.clone()) => false,
        leads = leadership.leads() => leads.map(|()| true)?,
    };
    let mut outcome = Ok(());
    if leads {
        tracing::info!("leading");
        metrics.lead(true);
        outcome = tokio::select! {
            outcome = Box::pin(controller::run(client, settings, signer, metrics, stopped(stop))) => outcome,
            lost = leadership.lost() => return Err(lost),
        };
    }
    leadership.release().await;
    outcome
}

/// Tries again while the API server is away: to end would only make Kubernetes wait longer and longer before the next start.
async fn patiently<T, F: Future<Output = anyhow::Result<T>>>(mut attempt: impl FnMut() -> F) -> anyhow::Result<T> {
    loop {
        match attempt().await {
            Err(error) if error.downcast_ref().is_some_and(is_away) => {
                tracing::warn!("{error:#}; tried again in {} s", AGAIN.as_secs());
                tokio::time::sleep(AGAIN).await;
            }
            done => return done,
        }
    }
}

fn is_away(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code == 429 || status.code >= 500,
        kube::Error::Service(_) | kube::Error::HyperError(_) | kube::Error::ReadEvents(_) => true,
        _ => false,
    }
}

/// The key of the operator's Secret, which the first operator makes.
async fn signer(client: &Client, namespace: &str) -> anyhow::Result<Signer> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let what = || format!("the Secret {namespace}/{SECRET}");
    if let Some(secret) = secrets.get_opt(SECRET).await.with_context(what)? {
        return read(&secret).with_context(what);
    }
    let key = Signer::generate().map_err(|_| anyhow::anyhow!("this system has no randomness for a key"))?;
    let secret = Secret {
        metadata: ObjectMeta { name: Some(SECRET.to_owned()), ..ObjectMeta::default() },
        data: Some([(KEY.to_owned(), ByteString(key))].into()),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    };
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(made) => read(&made).with_context(what),
        // Another operator was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => {
            read(&secrets.get(SECRET).await.with_context(what)?).with_context(what)
        }
        Err(error) => Err(error).with_context(what),
    }
}

fn read(secret: &Secret) -> anyhow::Result<Signer> {
    let key = secret.data.as_ref().and_then(|data| data.get(KEY));
    let key = key.with_context(|| format!("it has no {KEY}: delete it, and the operator makes a new one"))?;
    Ok(Signer::from_pkcs8(&key.0)?)
}
