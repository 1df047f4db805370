//! What `explain` says, as whole texts.

use serde_json::json;

use super::super::view::fixture::{calm, view};
use super::*;

fn at(view: &View, now: &str) -> String {
    text(view, now.parse().unwrap()).unwrap()
}

const NOON: &str = "2026-03-02T12:00:00Z";

#[test]
fn in_the_calm_both_ways_are_told_with_what_holds_them_up() {
    assert_eq!(
        at(&view("{}", calm("density")), NOON),
        "team/chat: density serves
  mode      Auto: load and schedule decide about the profile
  now       Hold (WithinTargets), for 12m: KV demand is 45 % against a target of 85 %: pressure 53 %, it stays
  pressure  53 % of the target; the worst counts of KV demand against 85 %, the oldest waiting request against 2 s, the 95th percentile of the time to the first token against 4 s
  dwell     density for 19m; the 120 s before a move toward quality are over
  switches  2 of 6 within the hour; 4 are left for moves toward quality
  schedule  none: quality is preferred at all times
  workers   2 of 2 ready; always 1
  what would change it
    - pressure of 100 % or more for 15 s: nothing: density is the densest that may serve
    - less load: quality, when it is predicted below 70 % of the target for 300 s
    - `kubectl modelprofile pin chat PROFILE -n team` holds a profile
"
    );
}

#[test]
fn dwell_and_an_exhausted_budget_are_what_a_move_toward_quality_waits_for() {
    let explained = at(&view("{maxSwitchesPerHour: 2, minDwellSeconds: 120}", calm("density")), "2026-03-02T11:40:30Z");
    let lines: Vec<&str> = explained.lines().filter(|line| line.contains("quality")).collect();
    assert_eq!(
        lines,
        [
            "  dwell     density for 29s; a move toward quality waits 90 s more, until 120 s are over",
            "  switches  2 of 2 within the hour; a move toward quality waits 29m, one toward density does not",
            "  schedule  none: quality is preferred at all times",
            "    - less load: quality, when it is predicted below 70 % of the target for 300 s, and not before 90 s (the least time in density) and 29m (a switch is free)",
        ]
    );
}

#[test]
fn a_pin_says_what_was_before_and_how_to_take_it_back() {
    let pinned = View {
        unpinned_mode: Some("Auto".to_owned()),
        ..view("{mode: Pinned, pinnedProfile: quality, prefer: Scale}", calm("quality"))
    };
    let explained = at(&pinned, NOON);
    assert_eq!(
        explained.lines().nth(1),
        Some("  mode      Pinned to quality, Auto before: load and schedule do not change the profile")
    );
    let changes: Vec<&str> = explained.lines().skip_while(|line| !line.contains("what would")).skip(1).collect();
    assert_eq!(
        changes,
        [
            "    - `kubectl modelprofile unpin chat -n team` gives the decision back; what is below holds then",
            "    - pressure of 100 % or more for 15 s: density, if that is predicted to help",
            "    - less load: no other profile, quality is the best that may serve",
        ]
    );
}

#[test]
fn a_window_that_prefers_density_keeps_it_and_a_blocked_profile_is_no_rung() {
    let mut status = calm("density");
    status["profiles"][0]["qualityGate"] = json!("NotMeasured");
    let window = "{schedule: {timeZone: UTC, windows: [{name: day, profile: density, start: '08:00', end: '20:00'}]}}";
    let explained = at(&view(window, status), NOON);
    let lines: Vec<&str> = explained.lines().filter(|line| line.contains("day") || line.contains("rung")).collect();
    assert_eq!(
        lines,
        [
            "  schedule  day prefers density until Mon 20:00 UTC (in 8h); next, day prefers density from Tue 08:00 UTC (in 20h)",
            "    - quality is no rung: the quality of quality was not measured; restart its worker, which measures it, or set spec.quality.onFailure: Warn",
            "    - less load: no other profile, while the window day is open",
        ]
    );
}

#[test]
fn a_model_without_operator_or_workers_says_what_is_missing() {
    let mut status = calm("quality");
    status["conditions"][5]["status"] = json!("False");
    status["conditions"][5]["reason"] = json!("NoWorkerReady");
    status["conditions"][5]["message"] = json!("no worker is ready yet");
    for field in ["activeProfile", "lastDecision", "switchHistory"] {
        status.as_object_mut().unwrap().remove(field);
    }
    (status["readyReplicas"], status["replicas"]) = (json!(0), json!(1));
    assert_eq!(
        at(&view("{mode: Recommend}", status), NOON),
        "team/chat: no worker serves
  mode      Recommend: what load and schedule would do is told below and not carried out
  now       nothing was decided yet; see that an operator runs
  pressure  not known; the worst counts of KV demand against 85 %, the oldest waiting request against 2 s, the 95th percentile of the time to the first token against 4 s
  dwell     120 s in a profile before a move toward quality; no switch to this one is in the history
  switches  0 of 6 within the hour; 6 are left for moves toward quality
  schedule  none: quality is preferred at all times
  workers   0 of 1 ready; always 1
  what would change it
    - a worker that serves; now NoWorkerReady: no worker is ready yet
    - `kubectl modelprofile pin chat PROFILE -n team` holds a profile
"
    );
}
