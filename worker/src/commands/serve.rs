//! `serve`: a manifest's model, at the precisions of its ladder.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, ensure};
use clap::Args;
use modelprofile_api::{Validated, worker::WorkerPhase};
use modelprofile_engine::serve::{EngineConfig, start_with};
use modelprofile_kernels::Device;
use tokio::signal::unix::{SignalKind, signal};

use super::{
    Devices,
    follow::{Follower, Held, Seen},
    listen::{ADMIN_CONNECTIONS, Listen},
    on_device,
    original::Original,
    preparation::{Ladder, Preparation, Prepared},
};
use crate::{
    access::ApiKeys,
    app::{self, App, Ready, ServeLimits},
    server::ConnectionLimits,
};

/// Options of `serve`.
#[derive(Debug, Args)]
pub(super) struct Serve {
    #[command(flatten)]
    preparation: Preparation,
    /// Profile to start in [default: the pinned one, else the first].
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// File with the name of the profile to start in, read when all are prepared. If it names none, --profile counts.
    #[arg(long, value_name = "FILE")]
    start_profile_file: Option<PathBuf>,
    #[command(flatten)]
    listen: Listen,
    /// Port of the OpenAI API.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Directory of the API's keys, one in each file, read anew when files come and go. MODELPROFILE_API_KEYS adds more.
    #[arg(long, value_name = "DIR")]
    api_keys_dir: Option<PathBuf>,
    /// Most requests computed at once [default: 64 on the CPU, 256 on a GPU].
    #[arg(long, value_name = "N", value_parser = super::at_least_one)]
    max_running: Option<usize>,
    /// Most requests that may wait; more get 429.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = super::at_least_one)]
    max_waiting: usize,
    /// Most tokens of a step, prompts and decodes together [default: 256 on the CPU, 2048 on a GPU]. While streams run, a step
    /// is also held to about 100 ms.
    #[arg(long, value_name = "N", value_parser = super::at_least_one)]
    max_batched_tokens: Option<usize>,
    /// Most connections open to the API; more wait until one closes.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: u32,
    /// Seconds in which the head of a request must arrive; idle connections are closed after as long.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    header_seconds: u64,
    /// Seconds in which the body of a request must arrive.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    body_seconds: u64,
    /// Seconds that requests in flight may take after SIGTERM.
    #[arg(long, default_value_t = 60)]
    drain_seconds: u64,
    /// Drain and end when standard input ends: a parent that holds the other end of a pipe takes its worker along, however
    /// it ends itself.
    #[arg(long)]
    exit_with_parent: bool,
}

/// A worker that has loaded.
struct Loaded<'a> {
    ready: Ready,
    /// Of which the weights are to be pruned.
    original: Option<Original>,
    follower: Follower<'a>,
}

impl Serve {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let ladder = self.preparation.ladder()?;
        let keys = std::env::var("MODELPROFILE_API_KEYS").unwrap_or_default();
        let keys = keys.split(',').map(str::trim).filter(|k| !k.is_empty()).map(str::to_owned).collect();
        let mut app = ladder.app(keys);
        app.api_key_files = self.api_keys_dir.clone().map(ApiKeys::of_directory).transpose()?;
        self.listen.admit(&mut app)?;
        app.limits.body_time = Duration::from_secs(self.body_seconds);
        let app = Arc::new(app);
        // Blocking threads tokenize. A few suffice, and many would take the cores from the engine.
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).max_blocking_threads(4).enable_all().build()?;
        runtime.block_on(self.serve(app, ladder))
    }

    async fn serve(self, app: Arc<App>, ladder: Ladder) -> anyhow::Result<()> {
        let api = self.listen.bind(self.port, "--port").await?;
        let admin = self.listen.bind_admin().await?;
        let connections = ConnectionLimits {
            connections: self.max_connections as usize,
            header_time: Duration::from_secs(self.header_seconds),
        };
        let limits = ServeLimits {
            api: connections,
            admin: ConnectionLimits { connections: ADMIN_CONNECTIONS, ..connections },
            drain: Duration::from_secs(self.drain_seconds),
        };
        let parent_ended = self.exit_with_parent.then(end_of_stdin).transpose()?;
        let (failed, failure) = tokio::sync::oneshot::channel();
        let preparing = app.clone();
        std::thread::Builder::new().name("prepare".into()).spawn(move || {
            let loaded = self
                .preparation
                .device(&ladder, true)
                .and_then(|chosen| on_device!(chosen, |devices| self.load(devices, &preparing, &ladder)));
            match loaded {
                Ok(Loaded { ready, original, follower }) => {
                    tracing::info!("ready");
                    preparing.set_ready(ready);
                    // Its files are read once more for the record, while the engine serves.
                    original.into_iter().for_each(Original::prune);
                    let (looks, asked) = std::sync::mpsc::channel();
                    preparing.set_looks(looks);
                    follower.follow(&asked);
                }
                Err(error) => {
                    preparing.prepare(|state| {
                        state.phase = WorkerPhase::Failed;
                        state.message = format!("{error:#}");
                    });
                    let _ = failed.send(error);
                }
            }
        })?;
        let parent = async {
            match parent_ended {
                // The thread that reads sends or is gone; there is nothing else to learn.
                Some(ended) => drop(ended.await),
                None => std::future::pending().await,
            }
        };
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                () = parent => {
                    tracing::warn!("standard input has ended, and with it the process that started this one");
                }
            }
        };
        let failure = async {
            match failure.await {
                Ok(error) => error,
                // Loaded: nothing more to wait for here.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            drained = app::serve(app, api, admin, shutdown, limits) => {
                ensure!(drained, "requests were cut off at the drain limit: give them longer with --drain-seconds");
                Ok(())
            }
            error = failure => Err(error),
        }
    }

    /// Prepares the profiles and starts the engine.
    fn load<'a, D: Devices>(&'a self, devices: &D, app: &'a App, ladder: &Ladder) -> anyhow::Result<Loaded<'a>> {
        let manifest = &ladder.manifest;
        let Prepared { checkpoint, text, config, artifacts, finder, original } =
            self.preparation.run(devices, app, ladder)?;
        let default = self.profile.as_deref().unwrap_or(&manifest.resting_profile().name);
        let wanted = start_profile(self.start_profile_file.as_deref(), manifest, default);
        let backend = devices.open()?;
        app.metrics.set_device(&backend.name());
        let serving = devices.serving();
        let max_batched_tokens = self.max_batched_tokens.unwrap_or(serving.batched_tokens);
        let config = EngineConfig {
            start: Some(first_profile(app, &wanted)),
            memory_budget: devices.budget(&backend)?,
            max_context_tokens: manifest.spec().model.max_context_tokens.map(|t| t as usize),
            max_batched_tokens,
            max_running: self.max_running.unwrap_or(serving.running).min(max_batched_tokens),
            max_waiting: self.max_waiting,
            ..config
        };
        let progress = &mut |index, progress| app.progress(index, progress);
        let observer = Box::new(app.metrics.clone());
        let engine = start_with(backend, &checkpoint, &config, &artifacts, observer, progress)?;
        let profiles = &manifest.spec().profiles;
        let held = profiles.iter().cloned().zip(artifacts).map(|(profile, artifact)| Held { profile, artifact });
        let follower = Follower {
            preparation: &self.preparation,
            app,
            engine: engine.clone(),
            finder,
            activations: devices.activations(),
            kv: config.profiles.first().context("the ladder has no profile")?.kv,
            running: manifest.clone(),
            held: held.collect(),
            seen: Seen::at_start(profiles),
        };
        let ready = Ready { engine: Arc::new(engine), tokenizer: text.tokenizer, template: text.template };
        Ok(Loaded { ready, original, follower })
    }
}

/// The profile that a file names, as it stands there now; the default where it names none of the ladder. Whoever writes the
/// file changes it while workers prepare, and a worker that did not start for its sake would serve nobody.
fn start_profile(file: Option<&Path>, manifest: &Validated, default: &str) -> String {
    let Some(file) = file else { return default.to_owned() };
    let reason = match std::fs::read_to_string(file) {
        Ok(text) if manifest.profile(text.trim()).is_some() => return text.trim().to_owned(),
        Ok(text) => format!("{:?} is no profile of the ladder", text.trim()),
        Err(error) => error.to_string(),
    };
    tracing::warn!("{}: {reason}; the worker wants to start in {default}", file.display());
    default.to_owned()
}

/// The profile to start in: the wanted one, or the nearest that may serve. While none may, the worker says so and waits for
/// other limits, rather than to end: whoever started it would only start it again.
fn first_profile(app: &App, wanted: &str) -> String {
    let first = app.gate.start(wanted, |sentences| {
        tracing::warn!("no profile may serve: {sentences}");
        app.prepare(|state| (state.phase, state.message) = (WorkerPhase::Blocked, sentences.to_owned()));
    });
    if first != wanted {
        tracing::warn!("starting in {first}: {}", app.gate.refusal(wanted).unwrap_or_default());
    }
    app.prepare(|state| (state.phase, state.message) = (WorkerPhase::Preparing, "loading the profiles".to_owned()));
    first
}

/// Resolves when standard input ends.
///
/// The kernel closes the parent's end of the pipe whenever the parent ends, by SIGKILL as well, and the end is there to be
/// read however late this looks. Linux's parent-death signal would be wrong twice: it follows the thread that started this
/// process, which may end before its process does, and it never comes if the parent is gone before it is asked for.
///
/// A thread reads, because the runtime's own standard input would hold up the end of the process until there is input.
fn end_of_stdin() -> std::io::Result<tokio::sync::oneshot::Receiver<()>> {
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("parent".into()).spawn(move || {
        // What is sent does not matter, and a standard input that cannot be read is as good as ended.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = ended.send(());
    })?;
    Ok(end)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

    use super::*;

    #[test]
    fn a_file_names_the_profile_to_start_in_if_the_ladder_has_it() {
        let manifest = "apiVersion: modelprofile.dev/v1alpha1
kind: ModelProfile
metadata: {name: tiny}
spec:
  model: {uri: 'file:///models/tiny'}
  profiles:
  - {name: quality, weights: {format: BF16}}
  - {name: density, weights: {format: INT8}}
";
        let manifest = Validated::from_yaml(manifest).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, expected) in
            [("density\n", "density"), (" quality ", "quality"), ("dense", "default"), ("", "default")]
        {
            std::fs::write(file.path(), text).unwrap();
            assert_eq!(start_profile(Some(file.path()), &manifest, "default"), expected, "{text:?}");
        }
        assert_eq!(start_profile(Some(Path::new("/absent")), &manifest, "default"), "default");
        assert_eq!(start_profile(None, &manifest, "default"), "default");
    }
}
