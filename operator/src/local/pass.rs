//! The loop of local mode: look at the worker, compare, act. [`super::follow`] has what is done about a worker that answers
//! and about an edited manifest.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use modelprofile_api::worker::{SwitchReport, WorkerPhase, WorkerState};
use modelprofile_api::{ModelProfileStatus, Validated};
use modelprofile_policy::Reason;
use tokio::time::MissedTickBehavior;

use super::gate;
use super::journal::Journal;
use super::notes;
use super::pilot::{Pilot, pinned};
use super::restart::Restarts;
use super::retry::Retries;
use super::session::Session;
use super::signals::Signals;
use super::status::{self, Seen};
use super::watch::{self, Watched};
use super::workers::{Health, Stopped, Workers};

/// Time between two passes: what a person sees as live, at a cost that no worker feels.
const PASS: Duration = Duration::from_millis(400);

/// Passes in a row that must find the engine stuck: after a pause of the whole machine the first one does, for a moment.
const STUCK_PASSES: u32 = 3;

/// Local mode while it runs.
pub(super) struct Local<W> {
    pub(super) workers: W,
    pub(super) pilot: Pilot,
    /// What `modelprofile status` shows.
    pub(super) status: ModelProfileStatus,
    /// The latest switch that the status records.
    pub(super) recorded: Option<SwitchReport>,
    /// The latest switch that was told. It is seen in the worker's answer and in its state, in either order.
    pub(super) told: Option<SwitchReport>,
    /// Profile and reason of the switch that a decision asked for and that is not recorded yet; others are somebody's request.
    pub(super) cause: Option<(String, &'static str)>,
    /// Time between two looks at the metrics.
    pub(super) interval: Duration,
    /// When they were looked at last.
    pub(super) looked: Option<Instant>,
    /// Decisions lack metrics, and the user knows.
    pub(super) blind: bool,
    pub(super) journal: Journal,
    pub(super) watched: Watched,
    /// What is followed: the manifest of the start, with the live sections of the latest valid edit.
    pub(super) manifest: Validated,
    pub(super) session: Session,
    pub(super) log: PathBuf,
    /// Option by which other commands find this session; empty where they do without.
    pub(super) found_by: String,
    /// Requests need an API key.
    pub(super) keyed: bool,
    /// The worker got ready, and the user knows.
    pub(super) ready: bool,
    /// Since when the worker does not answer.
    pub(super) silent: Option<Instant>,
    /// Passes in a row that found its engine stuck behind an admin API that answers.
    pub(super) stuck: u32,
    /// Time without an answer, or without progress of its requests, after which it counts as hung.
    pub(super) hang_limit: Duration,
    pub(super) restarts: Restarts,
    /// The profile that the worker served with last: one that ended starts in it again.
    pub(super) served: Option<String>,
    /// Profile of a switch that this process asked for and that has no answer yet.
    pub(super) asked: Option<String>,
    /// Switches that did not come about, and when they may be asked for again.
    pub(super) retries: Retries,
    /// Profiles that the quality gate did not pass, as they were told.
    pub(super) gate: gate::Told,
    /// Why no profile may serve, as it was told.
    pub(super) blocked: Option<String>,
}

impl<W: Workers> Local<W> {
    /// Runs until a signal, or until the worker is gone for good.
    ///
    /// # Errors
    /// The worker ended by itself and does not start again, or it cannot prepare the model.
    pub(super) async fn run(mut self, signals: &mut Signals) -> anyhow::Result<ExitCode> {
        let mut interval = tokio::time::interval(PASS);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = signals.next() => return Ok(self.stop(signals).await),
                outcome = async { interval.tick().await; self.pass().await } => if let Err(error) = outcome {
                    // A worker that runs but cannot serve goes too; there is nothing it could finish.
                    self.workers.stop().await;
                    return Err(anyhow::anyhow!("{error:#}\nthe whole log is {}; when the cause is mended, start `modelprofile local` again", self.log.display()));
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
            let read = watch::read(text);
            self.edited(read);
        }
        let state = if let Health::Answered(state) = &seen.health { Some(&**state) } else { None };
        if let Some(state) = state {
            self.look(state).await;
        }
        self.update_status(state);
        match seen.health {
            Health::Starting => {
                self.wait_for_answer();
                Ok(())
            }
            Health::Silent(why) => {
                if self.silent.is_none() {
                    self.journal.tell(&notes::worker_silent(&why));
                }
                self.wait_for_answer();
                Ok(())
            }
            Health::Ended(how) => self.start_again(&how).await,
            Health::Answered(state) => {
                if self.silent.take().is_some() && self.ready {
                    self.journal.tell(&notes::worker_answers());
                }
                if self.is_stuck(&state) || self.set_quality(&state).await {
                    return Ok(());
                }
                self.follow(&state)
            }
        }
    }

    /// Whether the worker holds its profiles against other limits than the manifest has now; then it is told. A switch waits
    /// for that: to a profile that the new limits let in, the old ones would refuse it.
    async fn set_quality(&mut self, state: &WorkerState) -> bool {
        let limits = &self.manifest.spec().quality;
        let differ = state.quality_limits.as_ref().is_some_and(|held| held != limits);
        if differ {
            self.workers.set_quality(limits).await;
        }
        differ
    }

    /// Ends a worker that has not answered for too long; that it ended is seen in a later pass.
    fn wait_for_answer(&mut self) {
        let since = *self.silent.get_or_insert_with(Instant::now);
        if since.elapsed() >= self.hang_limit {
            self.journal.tell(&notes::worker_hung(self.hang_limit));
            self.workers.kill();
            self.silent = Some(Instant::now());
        }
    }

    /// Whether the engine has not got on for too long; then its worker is ended. The API is served by other threads, which
    /// answer on, with the numbers of the last step for ever.
    fn is_stuck(&mut self, state: &WorkerState) -> bool {
        if state.requests.stalled_seconds < self.hang_limit.as_secs_f64() {
            self.stuck = 0;
            return false;
        }
        self.stuck += 1;
        if self.stuck == STUCK_PASSES {
            self.journal.tell(&notes::engine_hung(self.hang_limit));
            self.workers.kill();
        }
        true
    }

    /// Starts a worker that ended again, in the profile that it had, after a pause. One that never got ready is not started
    /// again: what is wrong with the model or the machine is still wrong then.
    async fn start_again(&mut self, how: &str) -> anyhow::Result<()> {
        (self.silent, self.stuck) = (None, 0);
        if !self.restarts.planned() {
            let ended = notes::worker_ended(how);
            let pause = self.restarts.ended(Instant::now()).filter(|_| self.served.is_some());
            let Some(pause) = pause else { return Err(self.journal.fail(ended)) };
            self.journal.tell(&ended);
            self.journal.tell(&notes::restart_planned(pause));
            self.ready = false;
            // A switch that it was asked for ended with it, and the next worker counts its own.
            self.retries.worker_ended(self.asked.take().as_deref());
            (self.told, self.cause) = (None, None);
            return Ok(());
        }
        if !self.restarts.take_due(Instant::now()) {
            return Ok(());
        }
        let profile = pinned(&self.manifest).map(str::to_owned).or_else(|| self.served.clone());
        let profile = profile.filter(|name| self.manifest.profile(name).is_some());
        let profile = profile.unwrap_or_else(|| self.pilot.start(Timestamp::now()).to_owned());
        if let Err(error) = self.workers.start(&self.manifest, &profile).await {
            // Its port may still be held by what the old one left; the next pause is longer.
            let pause = self.restarts.ended(Instant::now());
            let failed = notes::start_failed(&error, pause);
            if pause.is_none() {
                return Err(self.journal.fail(failed));
            }
            self.journal.tell(&failed);
            return Ok(());
        }
        self.journal.tell(&notes::worker_started(&profile));
        self.session.worker_pid = self.workers.pid().unwrap_or_default();
        self.journal.note_session(&self.session);
        Ok(())
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
        let decision = self.pilot.decide(state, now);
        let unavailable = decision.reason == Reason::MetricsUnavailable;
        if unavailable && !self.blind {
            self.journal.tell(&notes::metrics_unavailable(&decision.message));
        } else if self.blind && decision.pressure.is_some() {
            self.journal.tell(&notes::metrics_fresh());
        }
        // Decisions that need no metrics, such as a pin, say nothing about them.
        self.blind = unavailable || self.blind && decision.pressure.is_none();
    }

    /// Brings the status up to date, and writes it when it changed.
    fn update_status(&mut self, state: Option<&WorkerState>) {
        let decision = self.pilot.decision().map(|decision| (decision, self.pilot.name(decision.rung)));
        let seen = Seen { state, decision, refused: self.retries.refused(), limits: &self.manifest.spec().quality };
        let status = status::next(&self.status, seen, Timestamp::now());
        let ended = state.and_then(|state| state.last_switch.as_ref());
        let ended = ended.filter(|last| self.recorded.as_ref() != Some(last));
        if status != self.status || ended.is_some() {
            self.status = status;
            if let Some(last) = ended {
                // It explains one switch; the next one to that profile may be somebody's request.
                let cause = self.cause.take_if(|(to, _)| *to == last.to);
                let reason = cause.map_or("Requested", |(_, reason)| reason);
                status::record(&mut self.status, last, reason);
                self.recorded = Some(last.clone());
                self.switch_ended(last);
            }
            self.journal.note_status(&self.status);
        }
    }

    /// Lets the worker finish; a second signal does not wait for that.
    async fn stop(&mut self, signals: &mut Signals) -> ExitCode {
        self.journal.say("stopping: running requests may finish; press Ctrl-C again to cut them off");
        let stopped = tokio::select! {
            stopped = self.workers.stop() => stopped,
            () = signals.next() => Stopped::Killed,
        };
        match stopped {
            Stopped::Drained | Stopped::Absent => {
                self.journal.say("stopped");
                ExitCode::SUCCESS
            }
            Stopped::Killed => {
                self.journal.say("stopped; requests that were still running were cut off");
                ExitCode::FAILURE
            }
        }
    }
}
