//! `serve`: a manifest's model, at the precisions of its ladder.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use clap::Args;
use modelprofile_api::{Validated, worker::WorkerPhase};
use modelprofile_engine::{
    Method, ProfileSpec, WeightFormat, ZeroPoint,
    checkpoint::Checkpoint,
    serve::{EngineConfig, prepare, start_with},
    text::Text,
};
use modelprofile_kernels::KvFormat;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use super::{
    measure::Measure,
    original::{self, Original},
};
use crate::{
    app::{self, App, Ready, ServeLimits},
    gate::Gate,
    server::ConnectionLimits,
    source::Located,
};

/// Connections to the admin port: probes, scrapers and an operator.
const ADMIN_CONNECTIONS: usize = 64;

/// Options of `serve`.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// The ModelProfile manifest (YAML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Profile to start in [default: the pinned one, else the first].
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port of the OpenAI API.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Port of the admin API.
    #[arg(long, default_value_t = 8001)]
    admin_port: u16,
    /// Most requests computed at once.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = super::at_least_one)]
    max_running: usize,
    /// Most requests that may wait; more get 429.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = super::at_least_one)]
    max_waiting: usize,
    /// Most tokens of a step, prompts and decodes together. While streams run, a step is also held to about 100 ms.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = super::at_least_one)]
    max_batched_tokens: usize,
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
    #[command(flatten)]
    volumes: super::model::Volumes,
    #[command(flatten)]
    compute: super::Compute,
    #[command(flatten)]
    cache: super::Cache,
}

impl Serve {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(&self.config).with_context(|| self.config.display().to_string())?;
        let manifest = Validated::from_yaml(&text).map_err(|errors| anyhow::anyhow!("{errors}"))?;
        let profiles = manifest.spec().profiles.iter().map(profile).collect::<anyhow::Result<Vec<_>>>()?;
        let names: Vec<String> = profiles.iter().map(|p| p.name.clone()).collect();
        let keys = std::env::var("MODELPROFILE_API_KEYS").unwrap_or_default();
        let keys = keys.split(',').map(str::trim).filter(|k| !k.is_empty()).map(str::to_owned).collect();
        let token = std::env::var("MODELPROFILE_ADMIN_TOKEN").ok().filter(|t| !t.is_empty());
        let mut app = App::new(manifest.manifest().served_name(), &names, keys, token);
        app.limits.body_time = Duration::from_secs(self.body_seconds);
        app.gate = Gate::new(manifest.spec().quality.clone(), &names);
        let app = Arc::new(app);
        // Blocking threads tokenize. A few suffice, and many would take the cores from the engine.
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).max_blocking_threads(4).enable_all().build()?;
        runtime.block_on(self.serve(app, manifest, profiles))
    }

    async fn serve(self, app: Arc<App>, manifest: Validated, profiles: Vec<ProfileSpec>) -> anyhow::Result<()> {
        let listen = async |port, option| {
            let address = SocketAddr::new(self.host, port);
            TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot listen on {address}: choose another {option}"))
        };
        let api = listen(self.port, "--port").await?;
        let admin = listen(self.admin_port, "--admin-port").await?;
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
            match self.load(&preparing, &manifest, &profiles) {
                Ok((ready, original)) => {
                    tracing::info!("ready");
                    preparing.set_ready(ready);
                    // Its files are read once more for the record, while the engine serves.
                    original.into_iter().for_each(Original::prune);
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

    /// Prepares the profiles and starts the engine: from what is left of a pruned original if that is enough, else from the
    /// whole one. The original is returned if it is to be pruned.
    fn load(
        &self,
        app: &App,
        manifest: &Validated,
        profiles: &[ProfileSpec],
    ) -> anyhow::Result<(Ready, Option<Original>)> {
        let spec = manifest.spec();
        let cache = self.cache.directory();
        let say = |activity: &str| {
            app.prepare(|state| state.profiles.iter_mut().for_each(|p| activity.clone_into(&mut p.activity)));
        };
        // The licence is held against what was accepted before weights are fetched or anything is quantized.
        let fetch = |without_weights| {
            let model = self.volumes.fetch(&spec.model, &cache, without_weights, &mut |p| say(&p.to_string()));
            say("");
            model
        };
        let model = fetch(!spec.cache.keep_original)?;
        if model.pruned.is_none() {
            return self.load_from(model, app, manifest, profiles);
        }
        let error = match original::open(&model) {
            Err(error) => error,
            Ok(_) => match self.load_from(model, app, manifest, profiles) {
                Err(error) if original::is_missing(&error) => error,
                other => return other,
            },
        };
        tracing::info!("{error:#}; fetching the original again");
        let model = fetch(false).with_context(|| format!("{error:#}"))?;
        self.load_from(model, app, manifest, profiles)
    }

    /// [`Self::load`] with the model at hand.
    fn load_from(
        &self,
        model: Located,
        app: &App,
        manifest: &Validated,
        profiles: &[ProfileSpec],
    ) -> anyhow::Result<(Ready, Option<Original>)> {
        let spec = manifest.spec();
        let cache = self.cache.directory();
        let checkpoint = original::open(&model)?;
        let text = Text::load(&checkpoint)?;
        let calibration = text.tokenizer.encode(super::CALIBRATION, false)?;
        let mut config = EngineConfig {
            cache,
            threads: self.compute.threads(),
            start: None,
            memory_budget: manifest.memory_budget_bytes().map_or_else(default_budget, Ok)?,
            max_context_tokens: spec.model.max_context_tokens.map(|t| t as usize),
            calibration,
            max_batched_tokens: self.max_batched_tokens,
            max_running: self.max_running.min(self.max_batched_tokens),
            max_waiting: self.max_waiting,
            profiles: profiles.iter().map(|profile| meant(profile, &checkpoint)).collect(),
        };
        let mut backend = self.compute.backend()?;
        let progress = &mut |index, progress| app.progress(index, progress);
        let artifacts = prepare(&mut backend, &checkpoint, &config, progress)?;
        super::model::write_cards(&config.cache, &artifacts.iter().collect::<Vec<_>>(), &model, checkpoint.name());
        let measure = Measure { checkpoint: &checkpoint, cache: &config.cache, compute: &self.compute };
        measure.ladder(app, &spec.quality, &config.profiles, &artifacts)?;
        config.start = Some(first_profile(app, self.profile.as_deref().unwrap_or(&manifest.resting_profile().name)));
        let observer = Box::new(app.metrics.clone());
        let engine = start_with(backend, &checkpoint, &config, &artifacts, observer, progress)?;
        let ready = Ready { engine: Arc::new(engine), tokenizer: text.tokenizer, template: text.template };
        // One that could not be measured may be next time, for which the original is needed.
        let measured = config.profiles.iter().all(|profile| app.gate.quality(&profile.name).is_some());
        let prune = !spec.cache.keep_original && measured;
        Ok((ready, prune.then(|| Original::of(model, &checkpoint, &config.cache)).flatten()))
    }
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

/// Three quarters of the machine's memory.
fn default_budget() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("set placement.memoryBudget")?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:")).context("set placement.memoryBudget")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("set placement.memoryBudget")?;
    Ok(kib * 1024 / 4 * 3)
}

/// A manifest's profile as this checkpoint means it.
fn meant(profile: &ProfileSpec, checkpoint: &Checkpoint) -> ProfileSpec {
    let weights = checkpoint.quantization().map_or(profile.weights, |own| own.meant(profile.weights));
    ProfileSpec { weights, ..profile.clone() }
}

fn profile(profile: &modelprofile_api::Profile) -> anyhow::Result<ProfileSpec> {
    use modelprofile_api::{KvCacheFormat, Method as ApiMethod, WeightFormat as Api, ZeroPoint as ApiZero};
    let weights = match profile.weights.format {
        Api::Bf16 => WeightFormat::Bf16,
        Api::Fp8 => WeightFormat::Fp8,
        Api::Int8 => WeightFormat::Int8,
        Api::Int4 => WeightFormat::Int4 {
            group: profile.weights.effective_group_size().unwrap_or(128) as u16,
            zero: match profile.weights.effective_zero_point() {
                Some(ApiZero::Symmetric) => ZeroPoint::Symmetric,
                Some(ApiZero::Integer) => ZeroPoint::Integer,
                Some(ApiZero::Minimum) | None => ZeroPoint::Minimum,
            },
        },
        Api::Q4_1 => WeightFormat::Q4_1,
        Api::Q4_0 => WeightFormat::Q4_0,
        Api::Q8_0 => WeightFormat::Q8_0,
        other => bail!("profile {}: the weight format {} is not built yet", profile.name, other.as_str()),
    };
    let kv = match profile.kv_cache.format {
        KvCacheFormat::Bf16 => KvFormat::Bf16,
        KvCacheFormat::Fp16 => KvFormat::Fp16,
        KvCacheFormat::Fp8E4m3 => KvFormat::Fp8E4m3,
        KvCacheFormat::Fp8E5m2 => KvFormat::Fp8E5m2,
    };
    let method = match profile.weights.method {
        ApiMethod::RoundToNearest => Method::RoundToNearest,
        ApiMethod::Awq => Method::Awq,
        ApiMethod::Gptq => Method::Gptq,
        ApiMethod::SmoothQuant => Method::SmoothQuant,
        ApiMethod::LlmInt8 => Method::LlmInt8,
    };
    Ok(ProfileSpec { name: profile.name.clone(), weights, method, kv })
}
