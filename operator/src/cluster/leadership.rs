//! The Lease on a thread of its own: however long the loop is busy with thousands of ModelProfiles, it is renewed in time.
//!
//! A loop that hangs altogether no longer answers `/livez`, and is started again by the kubelet.

use std::io;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use kube::Client;
use tokio::sync::oneshot;

use super::lease::{Lease, Lost};

/// How long the loop may take to end when the Lease is lost. It is given up three seconds before others may take it; somebody
/// who took it away by force is not waited for by this.
const TIME_TO_END: Duration = Duration::from_secs(1);

/// The right to act, or the wait for it.
pub struct Leadership {
    leads: Option<oneshot::Receiver<()>>,
    lost: oneshot::Receiver<Lost>,
    /// Tells the thread to give the Lease back.
    end: oneshot::Sender<()>,
    /// Resolves when the thread has ended.
    ended: oneshot::Receiver<()>,
}

impl Leadership {
    /// Begins to wait for the Lease `name` of `namespace`, as `identity`.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn seek(namespace: &str, name: &'static str, identity: String) -> io::Result<Self> {
        let (leading, leads) = oneshot::channel();
        let (losing, lost) = oneshot::channel();
        let (end, asked_to_end) = oneshot::channel();
        let (ending, ended) = oneshot::channel::<()>();
        let namespace = namespace.to_owned();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("lease".to_owned()).spawn(move || {
            runtime.block_on(hold(&namespace, name, identity, leading, losing, asked_to_end));
            drop(ending);
        })?;
        Ok(Self { leads: Some(leads), lost, end, ended })
    }

    /// Resolves when this process leads.
    ///
    /// # Errors
    /// The thread has ended, which it does not before it leads.
    pub async fn leads(&mut self) -> anyhow::Result<()> {
        match self.leads.take() {
            Some(leads) => leads.await.context("nobody waits for the Lease any more"),
            None => Ok(()),
        }
    }

    /// Resolves when it is no longer certain that this process leads.
    pub async fn lost(&mut self) -> anyhow::Error {
        match (&mut self.lost).await {
            Ok(lost) => lost.into(),
            Err(_) => anyhow::anyhow!("nobody renews the Lease any more"),
        }
    }

    /// Gives the Lease back if it is held, and waits until that is done.
    pub async fn release(self) {
        // A thread that has ended has nothing to give back.
        let _ = self.end.send(());
        let _ = self.ended.await;
    }
}

/// What the thread does.
async fn hold(
    namespace: &str,
    name: &str,
    identity: String,
    leading: oneshot::Sender<()>,
    losing: oneshot::Sender<Lost>,
    mut asked_to_end: oneshot::Receiver<()>,
) {
    // Of its own, for a client's connections belong to the runtime that made them.
    let lease = match Client::try_default().await {
        Ok(client) => Lease::new(client, namespace, name, identity),
        // The same call has just succeeded on the other thread.
        Err(error) => return tracing::error!("the Lease cannot be waited for: {error}"),
    };
    let mut held = tokio::select! {
        // Both may be so: then it ends.
        biased;
        _ = &mut asked_to_end => return,
        held = lease.acquire() => held,
    };
    // One that nobody hears of is given back at once: then the other end is gone, and this resolves.
    let _ = leading.send(());
    tokio::select! {
        biased;
        _ = &mut asked_to_end => lease.release(held).await,
        lost = lease.keep(&mut held) => {
            let _ = losing.send(lost);
            tokio::time::sleep(TIME_TO_END).await;
            tracing::error!("the loop does not end, although another operator may act soon: this process ends");
            std::process::exit(1);
        }
    }
}
