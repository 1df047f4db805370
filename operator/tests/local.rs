//! `modelprofile local` and `modelprofile switch` as commands, with a worker that has no model.

// Helpers of tests are tests to clippy only inside test functions.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const LIMIT: Duration = Duration::from_secs(30);

/// A local mode in a folder of its own.
struct Local {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    folder: tempfile::TempDir,
}

impl Local {
    /// Starts it with the given `spec.switching`, and extra environment for the worker.
    fn start(switching: &str, environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("profile.yaml"), manifest(switching)).unwrap();
        let (port, admin_port) = free_ports();
        Self::spawn(folder, port, admin_port, environment)
    }

    fn spawn(folder: tempfile::TempDir, port: u16, admin_port: u16, environment: &[(&str, &str)]) -> Self {
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
            .env("FAKE_LOAD", folder.path().join("load"))
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
    fn expect(&mut self, text: &str) {
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

    fn errors(&mut self) -> String {
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    fn write(&self, text: &str) {
        std::fs::write(self.path("profile.yaml"), text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn switch(&self, profile: &str) -> Output {
        command(self.folder.path())
            .args(["switch", "demo", profile, "--cache"])
            .arg(self.folder.path())
            .output()
            .unwrap()
    }

    /// What `modelprofile COMMAND demo` prints, in the given form.
    fn print(&self, subcommand: &str, form: &str) -> String {
        let output = command(self.folder.path())
            .args([subcommand, "demo", "-o", form, "--cache"])
            .arg(self.folder.path())
            .output()
            .unwrap();
        assert_eq!(text(&output.stderr), "");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The events as type, reason, count and message, once the newest has this reason.
    fn events_to(&self, reason: &str) -> Vec<(String, String, u64, String)> {
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

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end and returns the exit code.
    fn wait(&mut self) -> Option<i32> {
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

fn command(runtime_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_modelprofile"));
    command.env("XDG_RUNTIME_DIR", runtime_dir).stdin(Stdio::null());
    command
}

fn manifest(switching: &str) -> String {
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

fn free_ports() -> (u16, u16) {
    let (first, second) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    (first.local_addr().unwrap().port(), second.local_addr().unwrap().port())
}

/// An event of [`Local::events_to`].
fn event(kind: &str, reason: &str, message: &str) -> (String, String, u64, String) {
    (kind.to_owned(), reason.to_owned(), 1, message.to_owned())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

#[test]
fn it_prepares_then_says_where_it_serves_and_drains_at_sigterm() {
    let mut local = Local::start("{mode: Auto}", &[]);
    local.expect("preparing: quality 40 %, density 40 %");
    local.expect("demo is ready");
    local.expect("curl http://127.0.0.1:");
    local.expect("serving: profile quality");
    local.signal(Signal::TERM);
    assert_eq!(local.wait(), Some(0));
    assert_eq!(std::fs::read_to_string(local.path("drained")).unwrap(), "quality");
    assert!(!local.path("modelprofile/local/demo.json").exists());
}

#[test]
fn a_local_mode_that_is_killed_takes_its_worker_along() {
    let mut local = Local::start("{mode: Auto}", &[]);
    local.expect("serving: profile quality");
    local.signal(Signal::KILL);
    assert_eq!(local.wait(), None);
    let (drained, end) = (local.path("drained"), Instant::now() + LIMIT);
    while !drained.exists() {
        assert!(Instant::now() < end, "the worker runs on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn an_edited_pin_switches_in_place() {
    let mut local = Local::start("{mode: Auto}", &[]);
    local.expect("serving: profile quality");
    local.write(&manifest("{mode: Pinned, pinnedProfile: density}"));
    local.expect("the manifest pins density now");
    local.expect("switched from quality to density in 5 ms");
    local.expect("serving: profile density");
}

#[test]
fn an_invalid_edit_gives_all_errors_and_changes_nothing() {
    let mut local = Local::start("{mode: Auto}", &[]);
    local.expect("serving: profile quality");
    local.write(&manifest("{mode: Pinned, pinnedProfile: dense, maxSwitchesPerHour: many}"));
    local.expect("not valid, so nothing changes");
    local.expect("spec.switching.maxSwitchesPerHour");
    local.write(&manifest("{mode: Pinned, pinnedProfile: density}").replace("FP8", "BF16"));
    local.expect("restart `modelprofile local` for the change of spec.profiles[0].weights.format");
    local.expect("serving: profile density");
}

#[test]
fn switch_finds_the_model_by_name() {
    let mut local = Local::start("{mode: Auto}", &[]);
    local.expect("demo is ready");
    let output = local.switch("density");
    assert_eq!(text(&output.stdout), "switched from quality to density in 5 ms (paused 1 ms)");
    assert_eq!(output.status.code(), Some(0));
    local.expect("serving: profile density");
    let output = local.switch("dense");
    assert_eq!(
        text(&output.stderr),
        "the switch from density to dense was refused: no profile is named dense; there are quality, density"
    );
    assert_eq!(output.status.code(), Some(1));
    let output = local.switch("density");
    assert_eq!(text(&output.stdout), "density is active already");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_refused_switch_gives_the_reason_and_is_not_repeated() {
    let mut local = Local::start("{mode: Auto}", &[("FAKE_REFUSES", "density")]);
    local.expect("demo is ready");
    let output = local.switch("density");
    assert_eq!(text(&output.stderr), "the switch from quality to density was refused: its weights are damaged");
    assert_eq!(output.status.code(), Some(1));
    local.write(&manifest("{mode: Pinned, pinnedProfile: density}"));
    local.expect("was refused: its weights are damaged");
    // Two more looks at the file are two more passes that could have asked again.
    local.write("broken");
    local.expect("not valid, so nothing changes");
    assert_eq!(local.seen.iter().filter(|line| line.contains("was refused")).count(), 1);
    local.signal(Signal::INT);
    assert_eq!(local.wait(), Some(0));
}

#[test]
fn a_pin_wins_over_a_switch_by_hand() {
    let mut local = Local::start("{mode: Pinned, pinnedProfile: density}", &[]);
    local.expect("serving: profile density");
    let output = local.switch("quality");
    assert!(text(&output.stderr).contains("pins density, so a switch to quality would be undone"));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_worker_that_dies_before_it_is_ready_is_reported_with_its_last_lines() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("profile.yaml"), manifest("{mode: Auto}")).unwrap();
    std::fs::write(folder.path().join("die"), "").unwrap();
    let (port, admin_port) = free_ports();
    let mut local = Local::spawn(folder, port, admin_port, &[]);
    assert_eq!(local.wait(), Some(1));
    let errors = local.errors();
    assert!(errors.contains("the worker ended: exit status: 3"), "{errors}");
    assert!(errors.contains("loading layer 3\n  out of cheese\nthe whole log is "), "{errors}");
    let output = local.switch("density");
    assert!(text(&output.stderr).contains("no `modelprofile local` runs here"), "{}", text(&output.stderr));
}

#[test]
fn a_worker_that_dies_while_it_serves_starts_again_in_the_profile_that_it_had() {
    let mut local = Local::start("{mode: Auto}", &[]);
    local.expect("demo is ready");
    assert!(local.switch("density").status.success());
    local.expect("profile density");
    std::fs::write(local.path("die"), "").unwrap();
    local.expect("the worker ended: exit status: 3");
    local.expect("it starts again in 1 s");
    std::fs::remove_file(local.path("die")).unwrap();
    local.expect("demo is ready");
    local.expect("serving: profile density");
    local.signal(Signal::TERM);
    assert_eq!(local.wait(), Some(0));
}

#[test]
fn a_worker_that_hangs_is_ended_and_started_anew() {
    let mut local = Local::start("{mode: Auto}", &[]);
    local.expect("demo is ready");
    std::fs::write(local.path("hang"), "").unwrap();
    local.expect("the worker does not answer");
    local.expect("the worker has not answered for 1 s, so it is ended");
    std::fs::remove_file(local.path("hang")).unwrap();
    local.expect("it starts again in 1 s");
    local.expect("demo is ready");
}

#[test]
fn a_taken_port_is_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("profile.yaml"), manifest("{mode: Auto}")).unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut local = Local::spawn(folder, port, free_ports().0, &[]);
    assert_eq!(local.wait(), Some(1));
    assert!(local.errors().contains(&format!("port {port} is taken by another program")));
}

#[test]
fn one_port_for_both_apis_is_refused_before_the_worker_starts() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("profile.yaml"), manifest("{mode: Auto}")).unwrap();
    let port = free_ports().0;
    let mut local = Local::spawn(folder, port, port, &[]);
    assert_eq!(local.wait(), Some(1));
    let errors = local.errors();
    assert!(errors.contains(&format!("--port and --admin-port are both {port}")), "{errors}");
    assert!(!local.path("logs").exists());
}

#[test]
fn port_0_is_refused_because_its_url_would_lead_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("profile.yaml"), manifest("{mode: Auto}")).unwrap();
    let mut local = Local::spawn(folder, 0, free_ports().0, &[]);
    assert_eq!(local.wait(), Some(2));
    let errors = local.errors();
    assert!(errors.contains("invalid value '0' for '--port <PORT>'"), "{errors}");
}

#[test]
fn a_cache_that_cannot_be_written_is_named_with_the_flag_that_changes_it() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("profile.yaml"), manifest("{mode: Auto}")).unwrap();
    // A file where the folder should be: nobody can write below it, not even root.
    std::fs::write(folder.path().join("logs"), "").unwrap();
    let (port, admin_port) = free_ports();
    let mut local = Local::spawn(folder, port, admin_port, &[]);
    assert_eq!(local.wait(), Some(1));
    let errors = local.errors();
    assert!(errors.contains("logs; name a folder that can be written with --cache"), "{errors}");
}

#[test]
fn a_killed_worker_is_told_with_what_may_have_killed_it() {
    let mut local = Local::start("{mode: Auto}", &[]);
    local.expect("demo is ready");
    let session = std::fs::read_to_string(local.path("modelprofile/local/demo.json")).unwrap();
    let session: serde_json::Value = serde_json::from_str(&session).unwrap();
    let worker = i32::try_from(session["workerPid"].as_i64().unwrap()).unwrap();
    kill_process(Pid::from_raw(worker).unwrap(), Signal::KILL).unwrap();
    local.expect("the worker ended: signal: 9 (SIGKILL) (somebody killed it, or the system");
    local.expect("it starts again in 1 s");
    local.expect("demo is ready");
}

#[test]
fn the_status_tells_what_is_active_and_why_and_goes_with_the_session() {
    let mut local = Local::start("{mode: Pinned, pinnedProfile: density}", &[]);
    local.expect("demo is ready");
    local.write(&manifest("{mode: Pinned, pinnedProfile: quality}"));
    local.expect("switched from density to quality");
    let status = || {
        let output = command(local.folder.path())
            .args(["status", "demo", "-o", "json", "--cache"])
            .arg(local.folder.path())
            .output();
        let output = output.unwrap();
        serde_json::from_slice::<serde_json::Value>(&output.stdout).map_err(|_| text(&output.stderr))
    };
    let end = Instant::now() + LIMIT;
    let shown = loop {
        let shown = status().unwrap();
        if shown["switchHistory"][0]["to"] == "quality" {
            break shown;
        }
        assert!(Instant::now() < end, "{shown}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(shown["activeProfile"], "quality");
    assert_eq!(shown["switchHistory"][0]["reason"], "Pinned");
    assert_eq!(shown["conditions"].as_array().unwrap().len(), 8);
    local.signal(Signal::TERM);
    assert_eq!(local.wait(), Some(0));
}

#[test]
fn a_switch_by_load_leaves_its_events_and_the_status_shows_them() {
    let mut local = Local::start("{toDensity: {stabilizationWindowSeconds: 0}}", &[]);
    local.expect("demo is ready");
    std::fs::write(local.path("load"), "95").unwrap();
    local.expect("switched from quality to density");
    let mut events = local.events_to("Switched");
    // The sentence of the decision is the policy's to test.
    let sentence = std::mem::take(&mut events[2].3);
    assert!(sentence.starts_with("switching to density: "), "{sentence}");
    assert_eq!(
        events,
        [
            event("Normal", "WorkerStarted", "the worker starts in profile quality"),
            event("Normal", "WorkerReady", "demo is ready in profile quality"),
            event("Normal", "PressureHigh", ""),
            event("Normal", "Switched", "switched from quality to density in 5 ms (paused 1 ms)"),
        ]
    );
    let status = local.print("status", "text");
    let (_, table) = status.split_once("\nEvents:\n").unwrap();
    let reasons: Vec<&str> = table.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(reasons, ["Reason", "------", "WorkerStarted", "WorkerReady", "PressureHigh", "Switched"]);
    assert!(!local.print("status", "json").contains("PressureHigh\",\n    \"message\": \"switching"));
    assert_eq!(local.seen.iter().filter(|line| line.contains("switched from")).count(), 1);
}

#[test]
fn metrics_that_stop_and_come_back_are_two_events() {
    let mut local = Local::start("{mode: Auto}", &[]);
    local.expect("demo is ready");
    std::fs::write(local.path("load"), "none").unwrap();
    let events = local.events_to("MetricsUnavailable");
    assert_eq!((&*events[2].0, events.len()), ("Warning", 3));
    std::fs::write(local.path("load"), "10").unwrap();
    let events = local.events_to("Fresh");
    assert_eq!(events[3], event("Normal", "Fresh", "the worker's metrics are fresh again; load decides"));
}

#[test]
fn a_restart_after_a_death_leaves_its_events() {
    let mut local = Local::start("{mode: Auto}", &[]);
    local.expect("demo is ready");
    assert!(local.switch("density").status.success());
    local.expect("serving: profile density");
    std::fs::write(local.path("die"), "").unwrap();
    local.expect("it starts again in 1 s");
    std::fs::remove_file(local.path("die")).unwrap();
    local.expect("demo is ready");
    let mut events = local.events_to("WorkerReady");
    // A pass between the last answer and the exit sees a silence first.
    events.retain(|event| event.1 != "WorkerSilent");
    assert_eq!(
        events,
        [
            event("Normal", "WorkerStarted", "the worker starts in profile quality"),
            event("Normal", "WorkerReady", "demo is ready in profile quality"),
            event("Normal", "Switched", "switched from quality to density in 5 ms (paused 1 ms)"),
            event(
                "Warning",
                "WorkerEnded",
                "the worker ended: exit status: 3; its last lines:\n  loading layer 3\n  out of cheese"
            ),
            event("Normal", "RestartPlanned", "the worker is down; it starts again in 1 s"),
            event("Normal", "WorkerStarted", "the worker starts in profile density"),
            event("Normal", "WorkerReady", "demo is ready in profile density"),
        ]
    );
}

#[test]
fn a_hang_leaves_its_events_and_what_happened_again_is_counted() {
    let mut local = Local::start("{mode: Auto}", &[]);
    local.expect("demo is ready");
    std::fs::write(local.path("hang"), "").unwrap();
    local.expect("the worker has not answered for 1 s, so it is ended");
    std::fs::remove_file(local.path("hang")).unwrap();
    local.expect("demo is ready");
    let mut events = local.events_to("WorkerReady");
    // A look at the metrics may have been the first to get no answer.
    events.retain(|event| !["MetricsUnavailable", "Fresh"].contains(&&*event.1));
    let counts: Vec<(&str, &str, u64)> = events.iter().map(|event| (&*event.0, &*event.1, event.2)).collect();
    assert_eq!(
        counts,
        [
            ("Warning", "WorkerSilent", 1),
            ("Warning", "WorkerHung", 1),
            ("Warning", "WorkerEnded", 1),
            ("Normal", "RestartPlanned", 1),
            ("Normal", "WorkerStarted", 2),
            ("Normal", "WorkerReady", 2),
        ]
    );
}

#[test]
fn a_rejected_edit_leaves_its_errors_and_a_followed_one_its_pin() {
    let mut local = Local::start("{mode: Auto}", &[]);
    local.expect("demo is ready");
    local.write(&manifest("{mode: Pinned, pinnedProfile: dense, maxSwitchesPerHour: 0}"));
    local.expect("not valid, so nothing changes");
    let rejected = local.events_to("Invalid").pop().unwrap();
    assert_eq!((&*rejected.0, rejected.2), ("Warning", 1));
    for field in ["spec.switching.pinnedProfile: ", "spec.switching.maxSwitchesPerHour: "] {
        assert!(rejected.3.contains(field), "{}", rejected.3);
    }
    local.write(&manifest("{mode: Pinned, pinnedProfile: density}").replace("FP8", "BF16"));
    let mut events = local.events_to("Switched").split_off(3);
    assert!(std::mem::take(&mut events[2].3).starts_with("switching to density: "));
    assert_eq!(
        events,
        [
            event("Normal", "EditFollowed", "the manifest pins density now"),
            event(
                "Normal",
                "RestartNeeded",
                "restart `modelprofile local` for the change of spec.profiles[0].weights.format; until then the model stays as it is"
            ),
            event("Normal", "Pinned", ""),
            event("Normal", "Switched", "switched from quality to density in 5 ms (paused 1 ms)"),
        ]
    );
}

#[test]
fn the_events_tell_how_a_local_mode_ended() {
    let mut local = Local::start("{mode: Auto}", &[]);
    std::fs::write(local.path("die"), "").unwrap();
    assert_eq!(local.wait(), Some(1));
    let table = local.print("events", "text");
    let last = table.lines().last().unwrap();
    assert!(last.starts_with("  Warning  WorkerEnded "), "{table}");
    assert!(last.ends_with("its last lines: loading layer 3; out of cheese"), "{table}");
}
