//! Local mode from the manifest to the exit code.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use modelprofile_api::worker::{SwitchOutcome, SwitchReport, WorkerPhase, WorkerState};
use modelprofile_api::{Errors, ModelProfileStatus, Validated, notices};
use rand::TryRng;
use rand::rngs::SysRng;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;

use super::pilot::{Pilot, pinned};
use super::process::{Launch, LocalWorkers, find_worker};
use super::restart::Restarts;
use super::session::{Held, Session, Sessions};
use super::status::{self, Seen};
use super::view::{View, sentence};
use super::watch::{Watched, edit};
use super::workers::{Health, Stopped, SwitchAnswer, Workers};

/// Time between two passes: what a person sees as live, at a cost that no worker feels.
const PASS: Duration = Duration::from_millis(400);

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
    /// Time without an answer after which a worker counts as hung.
    pub hang_limit: Duration,
}

/// Serves the manifest until a signal, or until the worker is gone.
///
/// # Errors
/// The manifest is invalid (all errors at once), something needed is taken or missing, or the worker ended by itself.
pub async fn serve(options: Options) -> anyhow::Result<ExitCode> {
    let file = options.file.canonicalize().with_context(|| format!("cannot read {}", options.file.display()))?;
    let watched = Watched::open(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let manifest = match Validated::from_yaml(watched.text()) {
        Ok(manifest) => manifest,
        Err(errors) => bail!("{} is not valid:\n{errors}", options.file.display()),
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
    let launch = Launch {
        worker: find_worker(options.worker.as_deref())?,
        manifest: file.clone(),
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
    workers.start(pilot.start(Timestamp::now())).await?;
    session.worker_pid = workers.pid().unwrap_or_default();
    held.write(&session)?;

    let view = View::new(TimeZone::system());
    for notice in notices(manifest.manifest()) {
        view.say(&format!("notice: {notice}"));
    }
    let mut local = Local {
        workers,
        pilot,
        status: ModelProfileStatus::default(),
        ended: None,
        cause: None,
        interval: options.metrics_interval,
        looked: None,
        hang_limit: options.hang_limit,
        restarts: Restarts::default(),
        served: None,
        view,
        watched,
        manifest,
        held,
        session,
        log,
        keyed,
        ready: false,
        silent: None,
        asked: None,
        refused: None,
    };
    local.run(&mut signals).await
}

/// Local mode while it runs.
struct Local<W> {
    workers: W,
    pilot: Pilot,
    /// What `modelprofile status` shows.
    status: ModelProfileStatus,
    /// The latest switch that the status records.
    ended: Option<SwitchReport>,
    /// Profile and reason of the latest switch that a decision asked for; others are somebody's request.
    cause: Option<(String, &'static str)>,
    /// Time between two looks at the metrics.
    interval: Duration,
    /// When they were looked at last.
    looked: Option<Instant>,
    view: View,
    watched: Watched,
    /// What is followed: the manifest of the start, with the live sections of the latest valid edit.
    manifest: Validated,
    held: Held,
    session: Session,
    log: PathBuf,
    /// Requests need an API key.
    keyed: bool,
    /// The worker got ready, and the user knows.
    ready: bool,
    /// Since when the worker does not answer.
    silent: Option<Instant>,
    /// Time without an answer after which it counts as hung.
    hang_limit: Duration,
    restarts: Restarts,
    /// The profile that the worker served with last: one that ended starts in it again.
    served: Option<String>,
    /// Profile of a switch that this process asked for and that has no answer yet.
    asked: Option<String>,
    /// Profile that the worker refused: it is not asked again until the manifest changes.
    refused: Option<String>,
}

impl<W: Workers> Local<W> {
    async fn run(&mut self, signals: &mut Signals) -> anyhow::Result<ExitCode> {
        let mut interval = tokio::time::interval(PASS);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = signals.next() => return Ok(self.stop(signals).await),
                outcome = async { interval.tick().await; self.pass().await } => if let Err(error) = outcome {
                    // A worker that runs but cannot serve goes too; there is nothing it could finish.
                    self.workers.stop().await;
                    return Err(anyhow!("{error:#}\nthe whole log is {}; when the cause is mended, start `modelprofile local` again", self.log.display()));
                },
            }
        }
    }

    /// One pass: look, compare, act.
    async fn pass(&mut self) -> anyhow::Result<()> {
        let seen = self.workers.observe().await;
        if let Some(answer) = seen.answer {
            self.answered(answer);
        }
        if let Some(text) = self.watched.changed() {
            let read = Validated::from_yaml(text);
            self.edited(read);
        }
        let state = if let Health::Answered(state) = &seen.health { Some(&**state) } else { None };
        if let Some(state) = state {
            self.look(state).await;
        }
        self.tell(state);
        match seen.health {
            Health::Starting => {
                self.wait_for_answer();
                Ok(())
            }
            Health::Silent(why) => {
                if self.silent.is_none() {
                    self.view.say(&format!("the worker does not answer: {why}"));
                }
                self.wait_for_answer();
                Ok(())
            }
            Health::Ended(how) => self.start_again(&how).await,
            Health::Answered(state) => {
                if self.silent.take().is_some() && self.ready {
                    self.view.say("the worker answers again");
                }
                self.follow(&state)
            }
        }
    }

    /// Ends a worker that has not answered for too long; that it ended is seen in a later pass.
    fn wait_for_answer(&mut self) {
        let since = *self.silent.get_or_insert_with(Instant::now);
        if since.elapsed() >= self.hang_limit {
            let limit = self.hang_limit.as_secs();
            self.view.say(&format!("the worker has not answered for {limit} s, so it is ended"));
            self.workers.kill();
            self.silent = Some(Instant::now());
        }
    }

    /// Starts a worker that ended again, in the profile that it had, after a pause. One that never got ready is not started
    /// again: what is wrong with the model or the machine is still wrong then.
    async fn start_again(&mut self, how: &str) -> anyhow::Result<()> {
        self.silent = None;
        if !self.restarts.planned() {
            let pause = self.restarts.ended(Instant::now()).filter(|_| self.served.is_some());
            let Some(pause) = pause else { bail!("the worker ended: {how}") };
            self.view.say(&format!("the worker ended: {how}\nit starts again in {} s", pause.as_secs()));
            self.ready = false;
            // A switch that it was asked for ended with it.
            self.asked = None;
            return Ok(());
        }
        if !self.restarts.take_due(Instant::now()) {
            return Ok(());
        }
        let profile = pinned(&self.manifest).map(str::to_owned).or_else(|| self.served.clone());
        let profile = profile.filter(|name| self.manifest.profile(name).is_some());
        let profile = profile.unwrap_or_else(|| self.pilot.start(Timestamp::now()).to_owned());
        if let Err(error) = self.workers.start(&profile).await {
            // Its port may still be held by what the old one left; the next pause is longer.
            let Some(pause) = self.restarts.ended(Instant::now()) else { return Err(error) };
            self.view
                .say(&format!("the worker could not be started ({error:#}); the next try is in {} s", pause.as_secs()));
            return Ok(());
        }
        self.session.worker_pid = self.workers.pid().unwrap_or_default();
        self.note_session();
        Ok(())
    }

    /// The worker is worth more than the note of it: a full disk does not stop it.
    fn note_session(&self) {
        if let Err(error) = self.held.write(&self.session) {
            self.view.say(&format!("the session file could not be written, the model runs on: {error:#}"));
        }
    }

    /// Decides anew, once in an interval.
    async fn look(&mut self, state: &WorkerState) {
        // A pass comes a little early or late; half of one is no reason to leave a look out.
        let due = self.looked.is_none_or(|at| at.elapsed() + PASS / 2 >= self.interval);
        if state.phase != WorkerPhase::Ready || !due {
            return;
        }
        self.looked = Some(Instant::now());
        let text = self.workers.metrics().await;
        let now = Timestamp::now();
        self.pilot.scraped(text.as_deref(), now);
        self.pilot.decide(state, now);
    }

    /// Brings the status up to date, and writes it when it changed.
    fn tell(&mut self, state: Option<&WorkerState>) {
        let decision = self.pilot.decision().map(|decision| (decision, self.pilot.name(decision.rung)));
        let seen = Seen { state, decision, refused: self.refused.as_deref() };
        let status = status::next(&self.status, seen, Timestamp::now());
        let ended = state.and_then(|state| state.last_switch.as_ref()).filter(|last| self.ended.as_ref() != Some(last));
        if status != self.status || ended.is_some() {
            self.status = status;
            if let Some(last) = ended {
                let reason =
                    self.cause.as_ref().filter(|(to, _)| *to == last.to).map_or("Requested", |(_, reason)| reason);
                status::record(&mut self.status, last, reason);
                self.ended = Some(last.clone());
            }
            // Nobody should lose a model because its status could not be written; the next change tries again.
            let _ = self.held.write_status(&self.status);
        }
    }

    /// Shows a state and asks for what differs from the desired one.
    fn follow(&mut self, state: &WorkerState) -> anyhow::Result<()> {
        if state.phase == WorkerPhase::Failed {
            bail!("the worker could not prepare the model: {}", state.message);
        }
        if state.phase == WorkerPhase::Ready && !std::mem::replace(&mut self.ready, true) {
            self.view.say_as_is(&self.greeting(state));
        }
        let reason =
            self.pilot.decision().map(|decision| format!("{}: {}", decision.reason.as_str(), decision.message));
        if state.phase == WorkerPhase::Ready {
            self.restarts.ready(Instant::now());
            self.served.clone_from(&state.active_profile);
        }
        self.view.show(state, reason.as_deref());
        let current = state.target_profile.as_deref().or(state.active_profile.as_deref());
        let Some(wanted) = self.pilot.wanted().map(str::to_owned) else { return Ok(()) };
        let differs = current.is_some() && current != Some(&*wanted);
        let asking = self.asked.is_some() || self.refused.as_deref() == Some(&*wanted);
        if state.phase == WorkerPhase::Ready && differs && !asking {
            if let Some(reason) = reason {
                self.view.say(&format!("switching to {wanted}: {reason}"));
            }
            self.cause = self.pilot.decision().map(|decision| (wanted.clone(), decision.reason.as_str()));
            self.workers.switch(&wanted);
            self.asked = Some(wanted);
        }
        Ok(())
    }

    /// Takes the answer to the switch that was asked for.
    fn answered(&mut self, answer: SwitchAnswer) {
        let asked = self.asked.take();
        match answer {
            // The state shows the new profile; a switch that was replaced is compared anew in this very pass.
            Ok(report) if report.outcome == SwitchOutcome::Replaced => {}
            Ok(report) => {
                self.view.say(&sentence(&report));
                if report.outcome == SwitchOutcome::Refused {
                    self.refused = asked;
                }
            }
            Err(why) => {
                self.view
                    .say(&format!("cannot switch to {}: {why}", asked.as_deref().unwrap_or("the desired profile")));
                self.refused = asked;
            }
        }
    }

    /// Takes a manifest that was edited; an invalid one changes nothing.
    fn edited(&mut self, read: Result<Validated, Errors>) {
        let new = match read {
            Ok(new) => new,
            Err(errors) => {
                self.view.say(&format!("the edited manifest is not valid, so nothing changes:\n{errors}"));
                return;
            }
        };
        let edit = edit(&self.manifest, &new);
        self.refused = None;
        if let Some(live) = edit.live {
            let before = pinned(&self.manifest).map(str::to_owned);
            self.manifest = live;
            self.looked = None;
            if let Err(error) = self.pilot.follow(&self.manifest) {
                self.view.say(&format!("the edited manifest cannot be decided on: {error:#}"));
            }
            let now = pinned(&self.manifest).map(str::to_owned);
            match &now {
                _ if before == now => {}
                Some(profile) => self.view.say(&format!("the manifest pins {profile} now")),
                None => self.view.say("the manifest pins no profile any more; load and schedule decide"),
            }
            self.session.pinned_profile = now;
            self.note_session();
        } else {
            self.view.say(
                "the edited spec.switching needs the other changes too, so it is not followed before the next start",
            );
        }
        if !edit.restart.is_empty() {
            let fields = edit.restart.join(", ");
            self.view.say(&format!(
                "restart `modelprofile local` for the change of {fields}; until then the model stays as it is"
            ));
        }
    }

    /// Lets the worker finish; a second signal does not wait for that.
    async fn stop(&mut self, signals: &mut Signals) -> ExitCode {
        self.view.say("stopping: running requests may finish; press Ctrl-C again to cut them off");
        let stopped = tokio::select! {
            stopped = self.workers.stop() => stopped,
            () = signals.next() => Stopped::Killed,
        };
        match stopped {
            Stopped::Drained | Stopped::Absent => {
                self.view.say("stopped");
                ExitCode::SUCCESS
            }
            Stopped::Killed => {
                self.view.say("stopped; requests that were still running were cut off");
                ExitCode::FAILURE
            }
        }
    }

    /// What the user needs to know once the worker serves.
    fn greeting(&self, state: &WorkerState) -> String {
        let Session { name, api_url, admin_url, .. } = &self.session;
        let key = if self.keyed { " -H \"Authorization: Bearer $API_KEY\"" } else { "" };
        let model = &state.served_name;
        let other = state.profiles.iter().find(|profile| Some(&profile.name) != state.active_profile.as_ref());
        let switch = other.map(|profile| format!("\n  switch   modelprofile switch {name} {}", profile.name));
        format!(
            "{name} is ready
  API      {api_url}/v1
  metrics  {api_url}/metrics
  admin    {admin_url}
  log      {log}{switch}
  try      curl {api_url}/v1/chat/completions -H 'Content-Type: application/json'{key} \\
             -d '{{\"model\": \"{model}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}]}}'",
            log = self.log.display(),
            switch = switch.unwrap_or_default(),
        )
    }
}

/// The signals that end local mode. They are taken from the beginning on, so that none hits a worker without its guard.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            hang_up: on(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
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
