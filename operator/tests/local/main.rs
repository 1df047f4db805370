//! `modelprofile local` and the commands beside it, with a worker that has no model.

// Helpers of tests are tests to clippy only inside test functions.
#![allow(clippy::unwrap_used, clippy::panic)]

mod events;
mod gate;
mod harness;
mod restarts;
mod switching;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use harness::{LIMIT, Local, command, free_ports, manifest, text};

#[test]
fn it_prepares_then_says_where_it_serves_and_drains_at_sigterm() {
    let mut local = Local::start("{mode: Auto}", &[("FAKE_PREPARES", "40")]);
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
fn a_worker_whose_engine_is_stuck_is_ended_and_started_anew_though_it_answers() {
    let mut local = Local::start("{mode: Auto}", &[]);
    local.expect("demo is ready");
    // A step that takes long is no hang.
    std::fs::write(local.path("stalled"), "0.9").unwrap();
    assert!(local.switch("density").status.success());
    local.expect("serving: profile density");
    std::fs::write(local.path("stalled"), "1.5").unwrap();
    local.expect("has computed nothing for its requests for 1 s, so it is ended");
    std::fs::remove_file(local.path("stalled")).unwrap();
    local.expect("the worker ended: signal: 9");
    local.expect("demo is ready");
    local.expect("serving: profile density");
    let hung = local.events_to("WorkerReady").into_iter().filter(|event| event.1 == "WorkerHung");
    assert_eq!(hung.map(|event| event.2).collect::<Vec<_>>(), [1]);
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
