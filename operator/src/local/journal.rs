//! What leaves local mode while it runs: lines on the terminal, and the files that other commands read.

use jiff::Timestamp;
use modelprofile_api::ModelProfileStatus;
use modelprofile_api::worker::WorkerState;

use super::events::EventLog;
use super::notes::Note;
use super::session::{Held, Session};
use super::view::View;

/// The terminal, the session's files, and the events so far.
pub struct Journal {
    view: View,
    held: Held,
    log: EventLog,
}

impl Journal {
    /// With an empty log.
    pub fn new(view: View, held: Held) -> Self {
        Self { view, held, log: EventLog::default() }
    }

    /// Says it and records it as an event.
    pub fn tell(&mut self, note: &Note) {
        self.view.say(&note.message);
        self.record(note);
    }

    /// Records it as an event, where the terminal shows more than its sentence.
    pub fn record(&mut self, note: &Note) {
        self.log.record(note, Timestamp::now());
        // Nobody should lose a model because its events could not be written; the next one tries again.
        let _ = self.held.write_events(&self.log);
    }

    /// Records what ends local mode; whoever gets the error says it.
    pub fn fail(&mut self, note: Note) -> anyhow::Error {
        self.record(&note);
        anyhow::Error::msg(note.message)
    }

    /// Says what is no event.
    pub fn say(&self, text: &str) {
        self.view.say(text);
    }

    /// The same for text with commands in it, which a person copies.
    pub fn say_as_is(&self, text: &str) {
        self.view.say_as_is(text);
    }

    /// Shows a state and the latest decision's reason.
    pub fn show(&mut self, state: &WorkerState, decision: Option<&str>) {
        self.view.show(state, decision);
    }

    /// Writes the session. The worker is worth more than the note of it: a full disk does not stop it.
    pub fn note_session(&self, session: &Session) {
        if let Err(error) = self.held.write(session) {
            self.say(&format!("the session file could not be written, the model runs on: {error:#}"));
        }
    }

    /// Writes the status.
    pub fn note_status(&self, status: &ModelProfileStatus) {
        // Nobody should lose a model because its status could not be written; the next change tries again.
        let _ = self.held.write_status(status);
    }
}
