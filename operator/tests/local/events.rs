//! What a local mode leaves behind as events.

use crate::harness::{Local, manifest};

/// An event of [`Local::events_to`].
fn event(kind: &str, reason: &str, message: &str) -> (String, String, u64, String) {
    (kind.to_owned(), reason.to_owned(), 1, message.to_owned())
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
    let status: serde_json::Value = serde_json::from_str(&local.print("status", "json")).unwrap();
    assert_eq!((status["activeProfile"].as_str(), status.get("events")), (Some("density"), None));
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
