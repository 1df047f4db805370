//! `prepare`: what `serve` does before it serves, for a job that runs before the workers do and shares their cache.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, anyhow};
use clap::Args;
use modelprofile_api::worker::{PrepareReport, WorkerProfile};
use thiserror::Error;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use super::{
    listen::{ADMIN_CONNECTIONS, Listen},
    on_device,
    original::Original,
    preparation::{Ladder, Preparation, Prepared},
};
use crate::{
    admin,
    app::App,
    outcome::{self, Settled},
    server::{self, ConnectionLimits},
};

/// Where Kubernetes looks for a container's last words.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// Options of `prepare`.
#[derive(Debug, Args)]
pub(super) struct Prepare {
    #[command(flatten)]
    preparation: Preparation,
    #[command(flatten)]
    listen: Listen,
    /// Bring the model into the cache and do nothing to it, for an engine that loads it as it is.
    #[arg(long)]
    fetch_only: bool,
    /// File that takes the outcome as JSON [default: /dev/termination-log, where that exists].
    #[arg(long, value_name = "FILE")]
    termination_log: Option<PathBuf>,
}

/// It was told to end.
#[derive(Debug, Error)]
#[error("ended before all profiles were prepared: what was made is kept, and the next start goes on from there")]
struct Interrupted;

impl Prepare {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let there = || Some(PathBuf::from(TERMINATION_LOG)).filter(|path| path.exists());
        let log = self.termination_log.clone().or_else(there);
        let ended = self.prepare();
        let report = match &ended {
            Ok(profiles) => Some(PrepareReport::Prepared { profiles: profiles.clone() }),
            // Nothing is wrong with what it was to do.
            Err(error) if error.is::<Interrupted>() => None,
            Err(error) => Some(outcome::failed(error)),
        };
        let settled = match (&ended, &report) {
            (Err(error), Some(PrepareReport::Failed { reason, .. })) => outcome::is_settled(error, *reason),
            _ => false,
        };
        if let (Some(path), Some(report)) = (log, report) {
            leave(&path, report);
        }
        match ended {
            Err(error) if settled => Err(error.context(Settled)),
            ended => ended.map(drop),
        }
    }

    fn prepare(self) -> anyhow::Result<Vec<WorkerProfile>> {
        let ladder = if self.fetch_only { self.preparation.manifest()? } else { self.preparation.ladder()? };
        let mut app = ladder.app(Vec::new());
        self.listen.admit(&mut app)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let admin = self.listen.bind_admin().await?;
            watched(self, Arc::new(app), ladder, admin).await
        })
    }
}

/// Prepares on a thread of its own while the admin port tells how far that is, until it ends or SIGTERM does.
async fn watched(
    asked: Prepare,
    app: Arc<App>,
    ladder: Ladder,
    admin: TcpListener,
) -> anyhow::Result<Vec<WorkerProfile>> {
    // The first process of a container gets none of the signals that it has no handler for.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (done, ended) = oneshot::channel();
    let preparing = app.clone();
    std::thread::Builder::new().name("prepare".into()).spawn(move || {
        let prepared = if asked.fetch_only {
            asked.preparation.fetch(&preparing, &ladder)
        } else {
            let prune = |prepared: Prepared| prepared.original.into_iter().for_each(Original::prune);
            asked.preparation.device(&ladder, false).and_then(|chosen| {
                on_device!(chosen, |devices| asked.preparation.run(devices, &preparing, &ladder)).map(prune)
            })
        };
        let prepared = prepared.map(|()| preparing.preparation().profiles);
        // Nobody waits any more when the process is about to end.
        let _ = done.send(prepared);
    })?;
    let limits = ConnectionLimits { connections: ADMIN_CONNECTIONS, ..ConnectionLimits::default() };
    // The thread is gone without a word only after a panic, which has told where.
    let ended = async { ended.await.unwrap_or_else(|_| Err(anyhow!("the preparation broke off: see the log above"))) };
    tokio::select! {
        prepared = ended => prepared.inspect(|_| tracing::info!("prepared")),
        () = server::serve(admin, admin::router(app), limits, std::future::pending()) => Err(Interrupted.into()),
        _ = terminate.recv() => Err(Interrupted.into()),
        _ = interrupt.recv() => Err(Interrupted.into()),
    }
}

/// Writes the outcome. The exit status says it too, so that a file that cannot be written is a warning.
fn leave(path: &Path, report: PrepareReport) {
    let written = std::fs::write(path, outcome::message(report)).with_context(|| path.display().to_string());
    if let Err(error) = written {
        tracing::warn!("the outcome could not be written: {error:#}");
    }
}
