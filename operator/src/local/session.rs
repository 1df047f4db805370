//! The session file: how `modelprofile switch NAME PROFILE` finds a local mode that runs.
//!
//! A session is `NAME.json` and `NAME.lock` in one folder. The lock is held for as long as local mode lives and falls with its
//! process, however that ends; so a file whose lock can be taken is stale. A process number alone could not tell. Beside them
//! lie `NAME.status.json` and `NAME.events.json`. The events stay when local mode ends, because they tell how it did; the next
//! local mode of that name begins anew.

use std::fs::{File, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use modelprofile_api::ModelProfileStatus;
use serde::{Deserialize, Serialize};

use super::events::EventLog;

/// What a session file says. It holds the admin token, so only its owner can read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// `metadata.name` of the manifest.
    pub name: String,
    /// The manifest, as an absolute path.
    pub manifest: PathBuf,
    /// Process of local mode.
    pub pid: u32,
    /// Process of the worker.
    pub worker_pid: u32,
    /// URL of the OpenAI API, without `/v1`.
    pub api_url: String,
    /// URL of the admin API.
    pub admin_url: String,
    /// Bearer token of the admin API.
    pub token: String,
    /// The profile that the manifest pins, if it does: a switch by hand to another one would be undone at once.
    pub pinned_profile: Option<String>,
}

/// The folder of the sessions.
#[derive(Clone, Debug)]
pub struct Sessions {
    folder: PathBuf,
}

/// Ends of names that would make one model's session another one's status or events.
const RESERVED: [&str; 2] = [".status", ".events"];

/// Time in which a command that looks for a session has long let go of its lock.
const LOOK: Duration = Duration::from_millis(20);
/// How often a lock is tried: commands that look for the session may follow each other.
const LOOKS: usize = 10;

/// A session that this process owns; dropping it removes the session and its status, and frees the name.
pub struct Held {
    file: PathBuf,
    _lock: File,
}

impl Sessions {
    /// In `$XDG_RUNTIME_DIR`, which is private to the user and emptied at logout; else in the cache folder.
    pub fn new(cache: &Path) -> Self {
        match std::env::var_os("XDG_RUNTIME_DIR").filter(|value| !value.is_empty()) {
            Some(folder) => Self::in_runtime_dir(Path::new(&folder)),
            None => Self { folder: cache.join("local") },
        }
    }

    /// The sessions of processes whose `$XDG_RUNTIME_DIR` is `folder`.
    pub fn in_runtime_dir(folder: &Path) -> Self {
        Self { folder: folder.join("modelprofile/local") }
    }

    /// Takes the name for this process.
    ///
    /// # Errors
    /// Another process has it, its end is that of another model's files, or the folder cannot be written.
    pub fn hold(&self, name: &str) -> anyhow::Result<Held> {
        if let Some(end) = RESERVED.iter().find(|end| name.ends_with(*end)) {
            bail!("local mode cannot serve a model whose name ends with {end}; change metadata.name");
        }
        let folder = &self.folder;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let path = self.path(name, "lock")?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        if !take(&lock, || std::thread::sleep(LOOK)).with_context(|| format!("cannot lock {}", path.display()))? {
            bail!(
                "{name} is served already by another `modelprofile local`; stop that one, or change metadata.name to serve both"
            );
        }
        let held = Held { file: self.path(name, "json")?, _lock: lock };
        // What an earlier process that was killed left behind, and the events of any earlier one.
        for file in [held.file.clone(), held.status_file(), held.events_file()] {
            match std::fs::remove_file(&file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", file.display()));
                }
                _ => {}
            }
        }
        Ok(held)
    }

    /// The running session of that name.
    ///
    /// # Errors
    /// There is none; the sentence lists those that run.
    pub fn find(&self, name: &str) -> anyhow::Result<Session> {
        if let Some(session) = self.live(name)? {
            return Ok(session);
        }
        let running = self.running();
        if running.is_empty() {
            bail!("no `modelprofile local` runs here; start one with `modelprofile local -f FILE`");
        }
        bail!("no local model is named {name}; running: {}", running.join(", "));
    }

    /// The session if its process lives; a stale file is removed.
    fn live(&self, name: &str) -> anyhow::Result<Option<Session>> {
        let (file, lock) = (self.path(name, "json")?, self.path(name, "lock")?);
        let Ok(lock) = File::options().write(true).open(&lock) else { return Ok(None) };
        // Shared, so that those who look are not taken for a session by each other.
        if lock.try_lock_shared().is_ok() {
            // Nobody holds it. It stays locked until the end of this block, so no new session can appear in between.
            let _ = std::fs::remove_file(&file);
            return Ok(None);
        }
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            // Local mode is on its way up or down.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        let session = serde_json::from_str(&text)
            .with_context(|| format!("{} is not a session file of this version; restart local mode", file.display()))?;
        Ok(Some(session))
    }

    /// The status that a running session wrote last.
    ///
    /// # Errors
    /// There is none yet, or it cannot be read.
    pub fn status(&self, name: &str) -> anyhow::Result<ModelProfileStatus> {
        let file = self.path(name, "status.json")?;
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("{name} has no status yet; try again when its worker answers"))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is not a status of this version; restart local mode", file.display()))
    }

    /// The events of the session of that name that runs, or of the latest one that ended.
    ///
    /// # Errors
    /// There was none, or they cannot be read.
    pub fn events(&self, name: &str) -> anyhow::Result<EventLog> {
        let file = self.path(name, "events.json")?;
        match std::fs::read_to_string(&file) {
            Ok(text) => serde_json::from_str(&text)
                .with_context(|| format!("{} is no event log of this version; restart local mode", file.display())),
            // A session that runs has none yet; a name that nobody served gets the list of those that run.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => self.find(name).map(|_| EventLog::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
        }
    }

    fn running(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| {
            let file = entry.file_name();
            let name = file.to_str()?.strip_suffix(".json")?;
            (!RESERVED.iter().any(|end| name.ends_with(end))).then(|| name.to_owned())
        });
        let mut running: Vec<String> = names.filter(|name| matches!(self.live(name), Ok(Some(_)))).collect();
        running.sort();
        running
    }

    /// Names come from the command line too, so what could leave the folder is refused here.
    fn path(&self, name: &str, extension: &str) -> anyhow::Result<PathBuf> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            bail!("{name:?} is not the name of a ModelProfile: those have lower-case letters, digits, '-' and '.'");
        }
        Ok(self.folder.join(format!("{name}.{extension}")))
    }
}

impl Held {
    /// Writes the file, or replaces it as a whole: a reader sees the old or the new text, never a part.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, session: &Session) -> anyhow::Result<()> {
        replace(&self.file, &serde_json::to_string_pretty(session).context("cannot write the session as JSON")?)
    }

    /// Writes the status beside the session, as a whole.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_status(&self, status: &ModelProfileStatus) -> anyhow::Result<()> {
        replace(&self.status_file(), &serde_json::to_string_pretty(status).context("cannot write the status as JSON")?)
    }

    /// Writes the events beside the session, as a whole.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn write_events(&self, log: &EventLog) -> anyhow::Result<()> {
        replace(&self.events_file(), &serde_json::to_string_pretty(log).context("cannot write the events as JSON")?)
    }

    fn status_file(&self) -> PathBuf {
        self.file.with_extension("status.json")
    }

    fn events_file(&self) -> PathBuf {
        self.file.with_extension("events.json")
    }
}

/// Takes the lock for this process alone; false if a session has it. Who looks for a session has it too, but only for a moment
/// that `wait` outlasts.
fn take(lock: &File, mut wait: impl FnMut()) -> std::io::Result<bool> {
    for _ in 0..LOOKS {
        match lock.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => wait(),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(false)
}

/// Replaces a file that only its owner may read.
///
/// # Errors
/// It cannot be written.
pub(super) fn replace(file: &Path, text: &str) -> anyhow::Result<()> {
    let new = file.with_extension("json.new");
    let written = File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| std::fs::rename(&new, file));
    written.with_context(|| format!("cannot write {}", file.display()))
}

impl Drop for Held {
    fn drop(&mut self) {
        // A file that stays is found stale, because the lock goes with this value.
        let _ = std::fs::remove_file(&self.file);
        let _ = std::fs::remove_file(self.status_file());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::local::notes;

    fn session(name: &str) -> Session {
        Session {
            name: name.to_owned(),
            manifest: "profile.yaml".into(),
            pid: 1,
            worker_pid: 2,
            api_url: "http://127.0.0.1:8000".to_owned(),
            admin_url: "http://127.0.0.1:8001".to_owned(),
            token: "secret".to_owned(),
            pinned_profile: None,
        }
    }

    #[test]
    fn a_held_session_is_found_and_only_its_owner_can_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = Sessions { folder: folder.path().join("local") };
        let held = sessions.hold("demo").unwrap();
        held.write(&session("demo")).unwrap();
        assert_eq!(sessions.find("demo").unwrap(), session("demo"));
        let mode = std::fs::metadata(folder.path().join("local/demo.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_name_is_held_once() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = Sessions { folder: folder.path().to_owned() };
        let held = sessions.hold("demo").unwrap();
        assert!(sessions.hold("demo").err().unwrap().to_string().starts_with("demo is served already"));
        drop(held);
        assert!(sessions.hold("demo").is_ok());
    }

    #[test]
    fn a_file_left_by_a_killed_process_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = Sessions { folder: folder.path().to_owned() };
        sessions.hold("demo").unwrap().write(&session("demo")).unwrap();
        let file = folder.path().join("demo.json");
        std::fs::write(&file, serde_json::to_string(&session("demo")).unwrap()).unwrap();
        assert!(sessions.find("demo").is_err());
        assert!(!file.exists());
    }

    #[test]
    fn a_command_that_looks_for_a_session_does_not_keep_it_from_being_held() {
        let folder = tempfile::tempdir().unwrap();
        let file = || File::options().create(true).append(true).open(folder.path().join("demo.lock")).unwrap();
        let (mine, theirs) = (file(), file());
        theirs.try_lock_shared().unwrap();
        let mut waits = 0;
        let taken = take(&mine, || {
            waits += 1;
            theirs.unlock().unwrap();
        });
        assert_eq!((taken.unwrap(), waits), (true, 1));
        assert!(!take(&theirs, || waits += 1).unwrap());
        assert_eq!(waits, 1 + LOOKS);
    }

    #[test]
    fn commands_that_look_at_once_do_not_take_each_other_for_a_session() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = Sessions { folder: folder.path().to_owned() };
        drop(sessions.hold("demo").unwrap());
        std::fs::write(folder.path().join("demo.json"), serde_json::to_string(&session("demo")).unwrap()).unwrap();
        let other = File::open(folder.path().join("demo.lock")).unwrap();
        other.try_lock_shared().unwrap();
        assert!(sessions.find("demo").is_err());
    }

    #[test]
    fn an_unknown_name_gets_the_list_of_those_that_run() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = Sessions { folder: folder.path().to_owned() };
        let held = sessions.hold("demo").unwrap();
        held.write(&session("demo")).unwrap();
        assert_eq!(sessions.find("dem").unwrap_err().to_string(), "no local model is named dem; running: demo");
    }

    #[test]
    fn events_stay_until_the_next_session_of_that_name() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = Sessions { folder: folder.path().to_owned() };
        assert!(sessions.events("demo").unwrap_err().to_string().starts_with("no `modelprofile local` runs here"));
        let held = sessions.hold("demo").unwrap();
        held.write(&session("demo")).unwrap();
        assert_eq!(sessions.events("demo").unwrap(), EventLog::default());
        let mut log = EventLog::default();
        log.record(&notes::worker_answers(), jiff::Timestamp::UNIX_EPOCH);
        held.write_events(&log).unwrap();
        assert_eq!(sessions.running(), ["demo"]);
        drop(held);
        assert_eq!(sessions.events("demo").unwrap(), log);
        let _held = sessions.hold("demo").unwrap();
        assert!(sessions.events("demo").is_err());
    }

    #[test]
    fn a_name_that_would_be_another_models_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = Sessions { folder: folder.path().to_owned() };
        assert!(sessions.hold("demo.events").err().unwrap().to_string().ends_with("change metadata.name"));
        assert!(sessions.hold("demo.v2").is_ok());
    }

    #[test]
    fn a_name_cannot_leave_the_folder() {
        let sessions = Sessions { folder: "unused".into() };
        for name in ["../demo", "", ".", "a/b"] {
            assert!(
                sessions.find(name).unwrap_err().to_string().contains("is not the name of a ModelProfile"),
                "{name}"
            );
        }
    }
}
