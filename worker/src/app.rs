//! What all handlers share, and the life of the two servers.

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use modelprofile_api::worker::{AwaitedProfile, WorkerPhase, WorkerProfile, WorkerState};
use modelprofile_engine::{
    artifact::Progress,
    serve::Engine,
    text::{ChatTemplate, Tokenizer},
};
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
};

use crate::{
    access::{AdminKeys, ApiKeys},
    admin,
    gate::Gate,
    http,
    metrics::Metrics,
    server::{self, ConnectionLimits},
};

/// What is said once the engine's thread is no more: only a fault of ours ends it, and nothing in the process mends it.
pub(crate) const ENGINE_ENDED: &str = "the engine has stopped: restart the worker";

/// Bounds on what a client may send.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a request body.
    pub body_bytes: usize,
    /// Time in which a request body must arrive.
    pub body_time: Duration,
    /// Completions of one request (`n` times the prompts).
    pub choices: usize,
    /// Stop strings.
    pub stops: usize,
    /// Stop tokens.
    pub stop_tokens: usize,
    /// Bytes of a stop string.
    pub stop_bytes: usize,
    /// Entries of `logit_bias`.
    pub logit_bias: usize,
    /// Alternatives of a token.
    pub top_logprobs: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 8 << 20,
            body_time: Duration::from_secs(60),
            choices: 128,
            stops: 16,
            stop_tokens: 128,
            stop_bytes: 256,
            logit_bias: 1024,
            top_logprobs: 20,
        }
    }
}

/// What exists once the model is loaded.
pub struct Ready {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// The tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The chat template, if the checkpoint has one.
    pub template: Option<ChatTemplate>,
}

/// Shared by all handlers.
pub struct App {
    /// Name in `/v1/models`.
    pub served_name: String,
    /// Seconds since 1970 at the start.
    pub created: u64,
    /// Keys of the OpenAI API; empty asks for none, unless there are files of them.
    pub api_keys: Vec<String>,
    /// More keys of the OpenAI API, in files.
    pub api_key_files: Option<ApiKeys>,
    /// Bearer token of the admin API. Without it and without keys, the API is closed.
    pub admin_token: Option<String>,
    /// Who else signs tokens of the admin API.
    pub admin_keys: Option<AdminKeys>,
    /// Bounds.
    pub limits: Limits,
    /// Which profiles may serve; open unless it is set.
    pub gate: Gate,
    /// Counters.
    pub metrics: Metrics,
    ready: OnceLock<Ready>,
    draining: AtomicBool,
    leaving: AtomicBool,
    engine_ended: AtomicBool,
    preparation: Mutex<WorkerState>,
    /// Profiles of the manifest that have not joined the ladder yet.
    awaited: Mutex<Vec<AwaitedProfile>>,
    /// Who looks whether the manifest has changed, once somebody does.
    looks: OnceLock<Looks>,
}

/// Asks for a look into the manifest; what is sent is told when it was made.
pub type Looks = std::sync::mpsc::Sender<oneshot::Sender<()>>;

impl App {
    /// An app that is still preparing `profiles`.
    pub fn new(served_name: &str, profiles: &[String], api_keys: Vec<String>, admin_token: Option<String>) -> Self {
        let profiles =
            profiles.iter().map(|name| WorkerProfile { name: name.clone(), ..WorkerProfile::default() }).collect();
        Self {
            served_name: served_name.to_owned(),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            api_keys,
            api_key_files: None,
            admin_token,
            admin_keys: None,
            limits: Limits::default(),
            gate: Gate::default(),
            metrics: Metrics::new(served_name),
            ready: OnceLock::new(),
            draining: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            engine_ended: AtomicBool::new(false),
            preparation: Mutex::new(WorkerState {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                served_name: served_name.to_owned(),
                phase: WorkerPhase::Preparing,
                message: "preparing the profiles".to_owned(),
                profiles,
                ..WorkerState::default()
            }),
            awaited: Mutex::default(),
            looks: OnceLock::new(),
        }
    }

    /// The loaded model; `None` while it is prepared.
    pub fn ready(&self) -> Option<&Ready> {
        self.ready.get()
    }

    /// Begins to serve.
    pub fn set_ready(&self, ready: Ready) {
        let _ = self.ready.set(ready);
    }

    /// True once new requests are refused.
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// True once the worker drains, or was told to end.
    pub fn leaving(&self) -> bool {
        self.draining() || self.leaving.load(Ordering::Acquire)
    }

    /// Says that the worker was told to end: probes fail from then on. Requests that reach it still are answered.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    /// True once the engine is no more: probes fail from then on, so that the worker is restarted.
    pub fn engine_ended(&self) -> bool {
        if self.ready().is_some_and(|ready| ready.engine.has_ended()) {
            self.set_engine_ended();
        }
        self.engine_ended.load(Ordering::Acquire)
    }

    /// Says that the engine is no more.
    pub fn set_engine_ended(&self) {
        if !self.engine_ended.swap(true, Ordering::AcqRel) {
            tracing::error!("{ENGINE_ENDED}");
        }
    }

    /// Changes what the worker says of its preparation.
    pub fn prepare(&self, change: impl FnOnce(&mut WorkerState)) {
        change(&mut self.preparation.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Says how far the preparation of the profile `index` is.
    pub fn progress(&self, index: usize, progress: Progress) {
        self.prepare(|state| {
            if let Some(profile) = state.profiles.get_mut(index) {
                profile.prepared_percent = progress.done as f64 * 100.0 / progress.total.max(1) as f64;
                profile.activity = progress.activity;
            }
        });
    }

    /// What the worker said last of its preparation.
    pub fn preparation(&self) -> WorkerState {
        let mut state = self.preparation.lock().unwrap_or_else(PoisonError::into_inner).clone();
        state.quality_limits = self.gate.limits();
        for profile in &mut state.profiles {
            profile.quality = self.gate.quality(&profile.name);
        }
        state
    }

    /// Profiles of the manifest that have not joined the ladder yet.
    pub fn awaited(&self) -> Vec<AwaitedProfile> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says which profiles have not joined the ladder yet.
    pub fn set_awaited(&self, profiles: Vec<AwaitedProfile>) {
        *self.awaited.lock().unwrap_or_else(PoisonError::into_inner) = profiles;
    }

    /// Says who looks into the manifest from now on.
    pub fn set_looks(&self, looks: Looks) {
        let _ = self.looks.set(looks);
    }

    /// Waits for a look into the manifest, and what follows from it; returns at once where nobody looks.
    pub async fn look(&self) {
        let (looked, done) = oneshot::channel();
        if self.looks.get().is_some_and(|looks| looks.send(looked).is_ok()) {
            // An error says that the one who looks has ended.
            let _ = done.await;
        }
    }

    /// Takes no new requests and waits until the ones in flight have ended.
    pub async fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        if let Some(ready) = self.ready() {
            let _ = ready.engine.drain().await;
        }
    }
}

/// Bounds on the life of the two servers.
#[derive(Clone, Copy, Debug)]
pub struct ServeLimits {
    /// Connections to the API port.
    pub api: ConnectionLimits,
    /// Connections to the admin port, which has places of its own: a crowd at the API must not make probes fail.
    pub admin: ConnectionLimits,
    /// Time that requests in flight may take once the worker was told to end.
    pub drain: Duration,
}

/// Serves until `shutdown` resolves, then drains: the API's port closes, so that whoever comes is refused by the kernel and may
/// go elsewhere with nothing begun, while those who are in are served; when the last answer is sent, the admin port closes too.
/// What is left at the drain limit is cut. True when nothing had to be.
///
/// An answer 503 would be worse: the last pod of a Service goes on getting connections while it terminates, and who gets an
/// answer does not look for another pod.
pub async fn serve(
    app: Arc<App>,
    api: TcpListener,
    admin: TcpListener,
    shutdown: impl Future<Output = ()>,
    limits: ServeLimits,
) -> bool {
    let (close_api, api_closed) = watch::channel(false);
    let (close_admin, admin_closed) = watch::channel(false);
    let stop = |mut closed: watch::Receiver<bool>| async move {
        // An error says that the sender is gone, which ends the servers as well.
        let _ = closed.wait_for(|closed| *closed).await;
    };
    let (ended, deadline) = oneshot::channel();
    let told = async {
        shutdown.await;
        tracing::info!("draining: no new connections, the requests in flight go on");
        let _ = ended.send(tokio::time::Instant::now() + limits.drain);
        app.leave();
        let _ = close_api.send(true);
    };
    // Probes and metrics answer until the last request has been.
    let api = async {
        tokio::join!(server::serve(api, http::router(app.clone()), limits.api, stop(api_closed)), told);
        app.drain().await;
        let _ = close_admin.send(true);
    };
    let admin = server::serve(admin, admin::router(app.clone()), limits.admin, stop(admin_closed));
    let limit = async {
        match deadline.await {
            Ok(deadline) => tokio::time::sleep_until(deadline).await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = async { tokio::join!(api, admin) } => true,
        () = limit => {
            tracing::warn!(seconds = limits.drain.as_secs(), "requests were still running at the drain limit");
            false
        }
    }
}
