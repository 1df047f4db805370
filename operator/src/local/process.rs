//! Workers as one child process.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use modelprofile_api::{Quality, Validated};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::admin::Admin;
use super::session::replace;
use super::workers::{Health, Observation, Stopped, SwitchAnswer, Workers};

/// Name of the worker's executable.
const WORKER: &str = "modelprofile-worker";

/// How many of the worker's last lines are kept to explain its death.
const LAST_LINES: usize = 12;

/// How long the lines of a worker that ended may take to arrive: only something that inherited its stderr holds them up.
const LAST_LINES_LIMIT: Duration = Duration::from_secs(1);

/// What a worker is started with.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The worker's executable.
    pub worker: PathBuf,
    /// File that takes the manifest, which the worker reads itself.
    ///
    /// It is not the user's file. That one may hold an edit that is invalid or waits for the next local mode, and a worker
    /// that starts again after a crash must be the one that the decisions are about: same model, same profiles. So each
    /// start writes what is followed at that moment, and the worker reads that. Where the file lies does not matter to the
    /// worker: relative paths in a manifest start at the current directory.
    pub manifest: PathBuf,
    /// Port of the OpenAI API.
    pub port: u16,
    /// Port of the admin API.
    pub admin_port: u16,
    /// Folder of the artifacts.
    pub cache: PathBuf,
    /// File that takes what the worker writes.
    pub log: PathBuf,
    /// Bearer token of the admin API.
    pub token: String,
    /// Keys of the OpenAI API, separated by commas; `None` leaves it open.
    pub api_keys: Option<String>,
    /// How long the worker may take to finish its requests before it is killed.
    pub drain_limit: Duration,
}

/// What the worker gets beyond its drain limit, to end by itself.
const STOP_SLACK: Duration = Duration::from_secs(5);

/// The one worker of local mode, a child process in a process group of its own: Ctrl-C in the terminal reaches this process
/// alone, which then lets the worker finish.
pub struct LocalWorkers {
    launch: Launch,
    admin: Admin,
    running: Option<Running>,
    answered: bool,
    started: bool,
    switch: Option<oneshot::Receiver<SwitchAnswer>>,
}

struct Running {
    child: Child,
    last_lines: Arc<Mutex<VecDeque<String>>>,
    reader: JoinHandle<()>,
}

impl LocalWorkers {
    /// A worker that is not started yet.
    ///
    /// # Errors
    /// The HTTP client cannot be built.
    pub fn new(launch: Launch) -> anyhow::Result<Self> {
        let admin = Admin::new(format!("http://127.0.0.1:{}", launch.admin_port), launch.token.clone())?;
        Ok(Self { launch, admin, running: None, answered: false, started: false, switch: None })
    }

    fn command(&self, profile: &str) -> Command {
        let launch = &self.launch;
        let mut command = Command::new(&launch.worker);
        command
            .arg("serve")
            .arg("--config")
            .arg(&launch.manifest)
            .args(["--profile", profile])
            .args(["--port", &launch.port.to_string(), "--admin-port", &launch.admin_port.to_string()])
            .args(["--drain-seconds", &launch.drain_limit.as_secs().to_string()])
            .arg("--cache")
            .arg(&launch.cache)
            .env("MODELPROFILE_ADMIN_TOKEN", &launch.token)
            // The worker ends with the pipe, and the pipe with this process, even one that is killed.
            .arg("--exit-with-parent")
            .stdin(Stdio::piped())
            // What it writes goes to a file and, when it dies, into an error message: no place for escape codes.
            .env("NO_COLOR", "1")
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if let Some(keys) = &launch.api_keys {
            command.env("MODELPROFILE_API_KEYS", keys);
        }
        command
    }

    fn answer(&mut self) -> Option<SwitchAnswer> {
        let answer = match self.switch.as_mut()?.try_recv() {
            Ok(answer) => answer,
            Err(oneshot::error::TryRecvError::Empty) => return None,
            Err(oneshot::error::TryRecvError::Closed) => Err("the request was given up".to_owned()),
        };
        self.switch = None;
        Some(answer)
    }
}

impl Workers for LocalWorkers {
    async fn start(&mut self, manifest: &Validated, profile: &str) -> anyhow::Result<()> {
        port_is_free(self.launch.port, "--port")?;
        port_is_free(self.launch.admin_port, "--admin-port")?;
        let text = serde_json::to_string_pretty(manifest.manifest()).context("cannot write the manifest as JSON")?;
        replace(&self.launch.manifest, &text)?;
        let path = &self.launch.log;
        // A worker that starts again adds to the log of the one that ended: its end is what people look for.
        let again = std::mem::replace(&mut self.started, true);
        let log = std::fs::File::options().create(true).write(true).truncate(!again).append(again).open(path);
        let log = log.with_context(|| format!("cannot write {}", path.display()))?;
        let stdout = log.try_clone().with_context(|| format!("cannot write {}", path.display()))?;
        let mut child = self
            .command(profile)
            .stdout(stdout)
            .spawn()
            .with_context(|| format!("cannot start {}", self.launch.worker.display()))?;
        let last_lines = Arc::new(Mutex::new(VecDeque::new()));
        let stderr = child.stderr.take().context("the worker has no stderr")?;
        let reader = tokio::spawn(keep_lines(stderr, tokio::fs::File::from_std(log), Arc::clone(&last_lines)));
        self.answered = false;
        self.running = Some(Running { child, last_lines, reader });
        Ok(())
    }

    fn pid(&self) -> Option<u32> {
        self.running.as_ref().and_then(|running| running.child.id())
    }

    async fn observe(&mut self) -> Observation {
        let answer = self.answer();
        let Some(running) = self.running.as_mut() else {
            return Observation { health: Health::Ended("it was not started".to_owned()), answer };
        };
        if let Ok(Some(status)) = running.child.try_wait() {
            let words = running.last_words().await;
            self.running = None;
            // An answer that comes later is of a worker that is no more, and must not be taken for the next one's.
            self.switch = None;
            return Observation { health: Health::Ended(format!("{status}{}{words}", hint(status))), answer };
        }
        let health = match self.admin.state().await {
            Ok(state) => {
                self.answered = true;
                Health::Answered(Box::new(state))
            }
            Err(_) if !self.answered => Health::Starting,
            Err(error) => Health::Silent(format!("{error:#}")),
        };
        Observation { health, answer }
    }

    async fn metrics(&mut self) -> Option<String> {
        self.admin.metrics().await.ok()
    }

    fn switch(&mut self, profile: &str) {
        if self.switch.is_some() {
            return;
        }
        let (send, receive) = oneshot::channel();
        let (admin, profile) = (self.admin.clone(), profile.to_owned());
        tokio::spawn(async move {
            // Nobody listens any more when local mode ends during a switch; the answer is of no use then.
            let _ = send.send(admin.switch(&profile).await.map_err(|error| format!("{error:#}")));
        });
        self.switch = Some(receive);
    }

    async fn set_quality(&mut self, limits: &Quality) {
        // One that does not take them shows the old ones in its state.
        let _ = self.admin.set_quality(limits).await;
    }

    fn kill(&mut self) {
        if let Some(running) = self.running.as_mut() {
            // Fails only for a child that ended meanwhile.
            let _ = running.child.start_kill();
        }
    }

    async fn stop(&mut self) -> Stopped {
        let Some(mut running) = self.running.take() else { return Stopped::Absent };
        // `id` is None once the child was waited for, so the signal cannot reach a stranger that got its number.
        if let Some(pid) = running.child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            // It may have ended in this moment, which is what the signal is for.
            let _ = kill_process(pid, Signal::TERM);
        }
        // The worker keeps to the limit itself; it gets a little longer to say what it cut off.
        if let Ok(ended) = tokio::time::timeout(self.launch.drain_limit + STOP_SLACK, running.child.wait()).await {
            return if ended.is_ok_and(|status| status.success()) { Stopped::Drained } else { Stopped::Killed };
        }
        // Fails only for a child that ended meanwhile.
        let _ = running.child.kill().await;
        Stopped::Killed
    }
}

impl Running {
    /// The worker's last lines, indented below a colon; empty if it wrote none.
    async fn last_words(&mut self) -> String {
        // The reader ends at the end of stderr; past the limit, what came until then has to do.
        let _ = tokio::time::timeout(LAST_LINES_LIMIT, &mut self.reader).await;
        let lines = self.last_lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.is_empty() {
            return String::new();
        }
        let text: Vec<&str> = lines.iter().map(String::as_str).collect();
        format!("; its last lines:\n  {}", text.join("\n  "))
    }
}

/// Copies stderr to the log and keeps its end.
async fn keep_lines(stderr: ChildStderr, mut log: tokio::fs::File, last_lines: Arc<Mutex<VecDeque<String>>>) {
    let mut lines = BufReader::new(stderr).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = String::from_utf8_lossy(&line).into_owned();
        // A full disk must not stop the worker, which would block on a pipe that nobody reads.
        let _ = log.write_all(format!("{line}\n").as_bytes()).await;
        let mut kept = last_lines.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == LAST_LINES {
            kept.pop_front();
        }
        kept.push_back(line);
    }
    let _ = log.flush().await;
}

/// Who sends SIGKILL, as far as one can guess.
fn hint(status: ExitStatus) -> &'static str {
    match status.signal() {
        Some(signal) if signal == Signal::KILL.as_raw() => {
            " (somebody killed it, or the system did for want of memory: then lower spec.placement.memoryBudget)"
        }
        _ => "",
    }
}

/// Refuses a port that something listens on, before the worker spends time on its preparation.
fn port_is_free(port: u16, flag: &str) -> anyhow::Result<()> {
    match TcpListener::bind(("127.0.0.1", port)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            bail!("port {port} is taken by another program; stop that program or choose another port with {flag}")
        }
        Err(error) => bail!("port {port} cannot be used: {error}; choose another one with {flag}"),
    }
}

/// The worker's executable: the one given, else beside this executable, else on the PATH.
///
/// # Errors
/// It is in none of these places; the sentence says how to get it.
pub fn find_worker(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = given {
        if path.is_file() {
            return Ok(path.to_owned());
        }
        bail!("{} is not a file; --worker takes the path of the {WORKER} executable", path.display());
    }
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let path: OsString = std::env::var_os("PATH").unwrap_or_default();
    beside.into_iter().chain(std::env::split_paths(&path)).map(|folder| folder.join(WORKER)).find(|file| file.is_file()).with_context(|| {
        format!("{WORKER} is neither beside this executable nor on the PATH; build it with `cargo build -p modelprofile-worker`, or give its path with --worker")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_refused_with_the_flag_that_changes_it() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = port_is_free(port, "--admin-port").unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "port {port} is taken by another program; stop that program or choose another port with --admin-port"
            )
        );
    }

    #[test]
    fn a_manifest_that_was_written_for_a_worker_is_read_as_the_same() {
        let examples = [
            include_str!("../../../deploy/examples/llama-70b.yaml"),
            include_str!("../../../deploy/examples/smollm2.yaml"),
        ];
        for text in examples {
            // Not every example can be carried out by this build, but each can be read.
            let manifest = modelprofile_api::Manifest::from_yaml(text).unwrap();
            let written = serde_json::to_string_pretty(&manifest).unwrap();
            assert_eq!(modelprofile_api::Manifest::from_yaml(&written).unwrap(), manifest);
        }
    }

    #[test]
    fn a_given_worker_must_exist() {
        let folder = tempfile::tempdir().unwrap();
        assert!(find_worker(Some(&folder.path().join("absent"))).is_err());
        let file = folder.path().join("worker");
        std::fs::write(&file, "").unwrap();
        assert_eq!(find_worker(Some(&file)).unwrap(), file);
    }
}
