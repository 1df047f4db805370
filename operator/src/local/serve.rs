//! Local mode from the command line to its loop: what is checked, taken and started, in this order.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use modelprofile_api::{ModelProfileStatus, notices};
use rand::TryRng;
use rand::rngs::SysRng;

use super::gate::Told;
use super::journal::Journal;
use super::notes;
use super::pass::Local;
use super::pilot::{Pilot, pinned};
use super::process::{Launch, LocalWorkers, find_worker};
use super::restart::Restarts;
use super::retry::Retries;
use super::session::{Session, Sessions};
use super::signals::Signals;
use super::view::View;
use super::watch::{self, Watched};
use super::workers::Workers;

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// The manifest.
    pub file: PathBuf,
    /// The worker's executable; `None` looks for it.
    pub worker: Option<PathBuf>,
    /// Port of the OpenAI API.
    pub port: u16,
    /// Port of the admin API.
    pub admin_port: u16,
    /// Folder of artifacts and logs.
    pub cache: PathBuf,
    /// Keys of the OpenAI API, separated by commas; `None` leaves it open.
    pub api_keys: Option<String>,
    /// How long running requests may take to finish at the end.
    pub drain_limit: Duration,
    /// Time between two looks at the worker's metrics, each followed by a decision.
    pub metrics_interval: Duration,
    /// Time without an answer, or without progress of its requests, after which a worker counts as hung.
    pub hang_limit: Duration,
}

/// Serves the manifest until a signal, or until the worker is gone.
///
/// # Errors
/// The manifest is invalid (all errors at once), something needed is taken or missing, or the worker ended by itself.
pub async fn serve(options: Options) -> anyhow::Result<ExitCode> {
    let file = options.file.canonicalize().with_context(|| format!("cannot read {}", options.file.display()))?;
    let watched = Watched::open(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let manifest = match watch::read(watched.text()) {
        Ok(manifest) => manifest,
        Err(errors) => bail!("{} cannot be served:\n{errors}", options.file.display()),
    };
    ensure!(
        options.port != options.admin_port,
        "--port and --admin-port are both {}; choose another one for one of them",
        options.port
    );
    let mut signals = Signals::new()?;
    let name = manifest.manifest().metadata.name.clone();
    let held = Sessions::new(&options.cache).hold(&name)?;
    let logs = options.cache.join("logs");
    std::fs::create_dir_all(&logs)
        .with_context(|| format!("cannot create {}; name a folder that can be written with --cache", logs.display()))?;
    let found_by = found_by(&options.cache);
    let launch = Launch {
        worker: find_worker(options.worker.as_deref())?,
        manifest: logs.join(format!("{name}.manifest.json")),
        port: options.port,
        admin_port: options.admin_port,
        cache: options.cache,
        log: logs.join(format!("{name}.log")),
        token: new_token()?,
        api_keys: options.api_keys,
        drain_limit: options.drain_limit,
    };
    let mut session = Session {
        name,
        manifest: file,
        pid: std::process::id(),
        worker_pid: 0,
        api_url: format!("http://127.0.0.1:{}", launch.port),
        admin_url: format!("http://127.0.0.1:{}", launch.admin_port),
        token: launch.token.clone(),
        pinned_profile: pinned(&manifest).map(str::to_owned),
    };
    let (log, keyed) = (launch.log.clone(), launch.api_keys.is_some());
    let mut workers = LocalWorkers::new(launch)?;
    let pilot = Pilot::new(&manifest, options.metrics_interval)?;
    let profile = pilot.start(Timestamp::now());
    workers.start(&manifest, profile).await?;
    session.worker_pid = workers.pid().unwrap_or_default();
    held.write(&session)?;

    let mut journal = Journal::new(View::new(TimeZone::system()), held);
    for notice in notices(manifest.manifest()) {
        journal.say(&format!("notice: {notice}"));
    }
    journal.tell(&notes::worker_started(profile));
    let local = Local {
        workers,
        pilot,
        status: ModelProfileStatus::default(),
        recorded: None,
        told: None,
        cause: None,
        interval: options.metrics_interval,
        looked: None,
        blind: false,
        hang_limit: options.hang_limit,
        restarts: Restarts::default(),
        served: None,
        journal,
        watched,
        manifest,
        session,
        log,
        found_by,
        keyed,
        ready: false,
        silent: None,
        stuck: 0,
        asked: None,
        retries: Retries::default(),
        gate: Told::default(),
        blocked: None,
    };
    local.run(&mut signals).await
}

/// What to add to `modelprofile switch` and the like, so that they look for the session where it is. In `$XDG_RUNTIME_DIR` they
/// find it whatever the cache is, and a cache of the environment is theirs, too.
fn found_by(cache: &Path) -> String {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").is_some_and(|value| !value.is_empty());
    let usual = std::env::var_os("MODELPROFILE_CACHE").map_or_else(default_cache, |cache| Ok(PathBuf::from(cache)));
    if runtime || usual.is_ok_and(|usual| usual == cache) {
        return String::new();
    }
    format!(" --cache {}", cache.display())
}

/// A bearer token that nobody can guess: 128 random bits of the system, as hexadecimal digits.
fn new_token() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    SysRng.try_fill_bytes(&mut bytes).context("the system has no random numbers")?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

/// Folder of artifacts, logs and sessions: `modelprofile` in the user's cache folder.
///
/// # Errors
/// Neither `XDG_CACHE_HOME` nor `HOME` is set.
pub fn default_cache() -> anyhow::Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let base =
        set("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| set("HOME").map(|home| Path::new(&home).join(".cache")));
    Ok(base.context("neither XDG_CACHE_HOME nor HOME is set; name a folder with --cache")?.join("modelprofile"))
}
