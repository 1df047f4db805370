//! What local mode does about a worker that answers and about an edited manifest: it shows, asks for a switch, and tells.

use std::time::Instant;

use modelprofile_api::worker::{SwitchOutcome, SwitchReport, WorkerPhase, WorkerProfile, WorkerState};
use modelprofile_api::{Errors, Validated};

use super::notes;
use super::pass::Local;
use super::pilot::pinned;
use super::retry::Failure;
use super::session::Session;
use super::watch::edit;
use super::workers::{SwitchAnswer, Workers};

impl<W: Workers> Local<W> {
    /// Shows a state and asks for what differs from the desired one.
    pub(super) fn follow(&mut self, state: &WorkerState) -> anyhow::Result<()> {
        if state.phase == WorkerPhase::Failed {
            return Err(self.journal.fail(notes::prepare_failed(&state.message)));
        }
        for note in self.gate.news(&self.manifest.spec().quality, state) {
            self.journal.tell(&note);
        }
        // A worker that starts again is blocked by the same figures, which is no news.
        let blocked = (state.phase == WorkerPhase::Blocked).then(|| state.message.clone());
        if blocked.is_some() && self.blocked != blocked {
            self.journal.tell(&notes::blocked(&state.message));
            self.blocked = blocked;
        }
        if state.phase == WorkerPhase::Ready && !std::mem::replace(&mut self.ready, true) {
            self.retries.worker_ready(Instant::now());
            self.journal.record(&notes::worker_ready(&self.session.name, state.active_profile.as_deref()));
            self.journal.say_as_is(&self.greeting(state));
        }
        let reason =
            self.pilot.decision().map(|decision| format!("{}: {}", decision.reason.as_str(), decision.message));
        if state.phase == WorkerPhase::Ready {
            self.restarts.ready(Instant::now());
            self.blocked = None;
            self.served.clone_from(&state.active_profile);
        }
        self.journal.show(state, reason.as_deref());
        let current = state.target_profile.as_deref().or(state.active_profile.as_deref());
        let wanted = self.pilot.wanted().map(str::to_owned);
        // A switch without an answer may still be under way; once nobody wants it, it explains nothing any more.
        if self.asked.is_none() && state.target_profile.is_none() {
            self.cause.take_if(|(to, _)| Some(&*to) != wanted.as_ref());
        }
        let Some(wanted) = wanted else { return Ok(()) };
        let differs = current.is_some() && current != Some(&*wanted);
        let may_ask = self.asked.is_none() && self.retries.may_ask(&wanted, Instant::now());
        if state.phase == WorkerPhase::Ready && differs && may_ask {
            if let Some(decision) = self.pilot.decision() {
                self.journal.tell(&notes::switching(&wanted, decision));
                self.cause = Some((wanted.clone(), decision.reason.as_str()));
            }
            self.workers.switch(&wanted);
            self.asked = Some(wanted);
        }
        Ok(())
    }

    /// Takes the answer to the switch that was asked for.
    pub(super) fn answered(&mut self, answer: SwitchAnswer) {
        let asked = self.asked.take();
        match answer {
            // A switch that was replaced is compared anew in this very pass.
            Ok(report) => {
                self.switch_ended(&report);
                if let Some(asked) = asked.filter(|_| report.outcome == SwitchOutcome::Refused) {
                    self.retries.failed(&asked, Failure::Refused, Instant::now());
                }
            }
            // Without a report nothing is known: the worker may be about to end, or never have heard of the switch.
            Err(why) => {
                let Some(asked) = asked else { return };
                let pause = self.retries.failed(&asked, Failure::NoReport, Instant::now());
                self.journal.tell(&notes::switch_failed(&asked, &why, pause));
            }
        }
    }

    /// Tells once of a switch that ended, whoever asked for it.
    pub(super) fn switch_ended(&mut self, report: &SwitchReport) {
        let same = |told: &SwitchReport| {
            (&told.start_time, &told.from, &told.to, told.outcome)
                == (&report.start_time, &report.from, &report.to, report.outcome)
        };
        if !self.told.as_ref().is_some_and(same) {
            self.journal.tell(&notes::switch_ended(report));
            self.told = Some(report.clone());
            if report.outcome == SwitchOutcome::Completed {
                self.retries.clear();
            }
        }
    }

    /// Takes a manifest that was edited; an invalid one changes nothing.
    pub(super) fn edited(&mut self, read: Result<Validated, Errors>) {
        let new = match read {
            Ok(new) => new,
            Err(errors) => {
                self.journal.tell(&notes::edit_rejected(&errors));
                return;
            }
        };
        let edit = edit(&self.manifest, &new);
        self.retries.clear();
        if let Some(live) = edit.live {
            let changes = live != self.manifest;
            let before = pinned(&self.manifest).map(str::to_owned);
            self.manifest = live;
            self.looked = None;
            let now = pinned(&self.manifest).map(str::to_owned);
            if let Err(error) = self.pilot.follow(&self.manifest) {
                self.journal.tell(&notes::edit_undecidable(&error));
            } else if changes {
                self.journal.tell(&notes::edit_followed(before.as_deref(), now.as_deref()));
            }
            self.session.pinned_profile = now;
            self.journal.note_session(&self.session);
        } else {
            self.journal.tell(&notes::edit_waits());
        }
        if !edit.restart.is_empty() {
            self.journal.tell(&notes::restart_needed(&edit.restart));
        }
    }

    /// What the user needs to know once the worker serves.
    fn greeting(&self, state: &WorkerState) -> String {
        let Session { name, api_url, admin_url, .. } = &self.session;
        let key = if self.keyed { " -H \"Authorization: Bearer $API_KEY\"" } else { "" };
        let model = &state.served_name;
        // Only a switch that would come about is proposed.
        let limits = &self.manifest.spec().quality;
        let may_serve = |profile: &&WorkerProfile| limits.refusal(&profile.name, profile.quality.as_ref()).is_none();
        let mut others = state.profiles.iter().filter(|profile| Some(&profile.name) != state.active_profile.as_ref());
        let other = others.find(may_serve);
        let switch =
            other.map(|profile| format!("\n  switch   modelprofile switch{} {name} {}", self.found_by, profile.name));
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
