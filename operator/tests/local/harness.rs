//! A local mode to look at, and the commands that find it.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// A local mode in a folder of its own.
pub(crate) struct Local {
    child: Child,
    lines: Receiver<String>,
    pub(crate) seen: Vec<String>,
    pub(crate) folder: tempfile::TempDir,
}

impl Local {
    /// Starts it with the given `spec.switching`, and extra environment for the worker.
    pub(crate) fn start(switching: &str, environment: &[(&str, &str)]) -> Self {
        Self::start_with(&manifest(switching), &[], environment)
    }

    /// Starts it with a manifest, files for the worker by name and content, and extra environment.
    pub(crate) fn start_with(manifest: &str, files: &[(&str, &str)], environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files.iter().chain(&[("profile.yaml", manifest)]) {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        let (port, admin_port) = free_ports();
        Self::spawn(folder, port, admin_port, environment)
    }

    pub(crate) fn spawn(folder: tempfile::TempDir, port: u16, admin_port: u16, environment: &[(&str, &str)]) -> Self {
        let mut child = command(folder.path())
            .args(["local", "-f"])
            .arg(folder.path().join("profile.yaml"))
            .args(["--port", &port.to_string(), "--admin-port", &admin_port.to_string()])
            .arg("--worker")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake-worker.py"))
            .arg("--cache")
            .arg(folder.path())
            .args(["--hang-seconds", "1"])
            .env("FAKE_DIES", folder.path().join("die"))
            .env("FAKE_HANGS", folder.path().join("hang"))
            .env("FAKE_QUALITY", folder.path().join("quality"))
            .env("FAKE_LOAD", folder.path().join("load"))
            .env("FAKE_SWITCH", folder.path().join("switch"))
            .env("FAKE_STALLED", folder.path().join("stalled"))
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (send, lines) = channel();
        let stdout = child.stdout.take().unwrap();
        std::thread::spawn(move || BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|l| send.send(l)));
        Self { child, lines, seen: Vec::new(), folder }
    }

    /// Waits for a line that contains the text.
    pub(crate) fn expect(&mut self, text: &str) {
        let end = Instant::now() + LIMIT;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line);
                    if self.seen.last().unwrap().contains(text) {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("no line with {text:?} in {:#?}", self.seen),
                Err(RecvTimeoutError::Disconnected) => {
                    let errors = self.errors();
                    panic!("local mode ended without {text:?}: {:#?}\n{errors}", self.seen)
                }
            }
        }
    }

    pub(crate) fn errors(&mut self) -> String {
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    pub(crate) fn write(&self, text: &str) {
        std::fs::write(self.path("profile.yaml"), text).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn switch(&self, profile: &str) -> Output {
        command(self.folder.path())
            .args(["switch", "demo", profile, "--cache"])
            .arg(self.folder.path())
            .output()
            .unwrap()
    }

    /// What `modelprofile COMMAND demo` prints, in the given form.
    pub(crate) fn print(&self, subcommand: &str, form: &str) -> String {
        let output = command(self.folder.path())
            .args([subcommand, "demo", "-o", form, "--cache"])
            .arg(self.folder.path())
            .output()
            .unwrap();
        assert_eq!(text(&output.stderr), "");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The events as type, reason, count and message, once the newest has this reason.
    pub(crate) fn events_to(&self, reason: &str) -> Vec<(String, String, u64, String)> {
        let end = Instant::now() + LIMIT;
        loop {
            let events: Vec<serde_json::Value> = serde_json::from_str(&self.print("events", "json")).unwrap();
            let word = |event: &serde_json::Value, field: &str| event[field].as_str().unwrap().to_owned();
            if events.last().is_some_and(|event| event["reason"] == reason) {
                let row = |e| (word(e, "type"), word(e, "reason"), e["count"].as_u64().unwrap(), word(e, "message"));
                return events.iter().map(row).collect();
            }
            assert!(Instant::now() < end, "the newest event is not {reason}: {events:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until what it leaves behind is as expected.
    pub(crate) fn wait_for(&self, mut expected: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + LIMIT;
        while !expected(self) {
            assert!(Instant::now() < end, "{:#?}", self.seen);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end and returns the exit code.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let end = Instant::now() + LIMIT;
        // Reading to the end of stdout waits for the end of the process, within the limit.
        while self.lines.recv_timeout(end.saturating_duration_since(Instant::now())).is_ok() {}
        assert!(Instant::now() < end, "local mode did not end: {:#?}", self.seen);
        self.child.wait().unwrap().code()
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        // A failed test must not leave processes: SIGTERM lets local mode take its worker along.
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::TERM);
            let _ = self.child.wait();
        }
    }
}

pub(crate) fn command(runtime_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_modelprofile"));
    command.env("XDG_RUNTIME_DIR", runtime_dir).stdin(Stdio::null());
    command
}

pub(crate) fn manifest(switching: &str) -> String {
    format!(
        "apiVersion: modelprofile.dev/v1alpha1
kind: ModelProfile
metadata: {{name: demo}}
spec:
  model: {{uri: \"file:///models/demo.gguf\"}}
  profiles:
  - {{name: quality, weights: {{format: FP8}}}}
  - {{name: density, weights: {{format: Q4_1}}}}
  switching: {switching}
"
    )
}

pub(crate) fn free_ports() -> (u16, u16) {
    let (first, second) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    (first.local_addr().unwrap().port(), second.local_addr().unwrap().port())
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}
