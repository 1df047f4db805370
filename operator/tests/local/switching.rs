//! What becomes of a switch that does not come about at once.

use crate::harness::{Local, manifest};

/// Changes to density as soon as the load is high, and back as late as can be.
const EAGER: &str = "{toDensity: {stabilizationWindowSeconds: 0}}";

fn status(local: &Local) -> serde_json::Value {
    serde_json::from_str(&local.print("status", "json")).unwrap()
}

#[test]
fn a_switch_without_an_answer_is_asked_for_again() {
    let mut local = Local::start(EAGER, &[]);
    local.expect("demo is ready");
    std::fs::write(local.path("switch"), "cut").unwrap();
    std::fs::write(local.path("load"), "95").unwrap();
    local.expect("cannot switch to density: the worker at http://127.0.0.1:");
    assert!(local.seen.last().unwrap().ends_with("if it is still wanted, it is tried again in 1 s"));
    local.expect("it is tried again in 2 s");
    std::fs::remove_file(local.path("switch")).unwrap();
    local.expect("switched from quality to density");
    local.expect("serving: profile density");
}

#[test]
fn a_worker_that_died_of_a_switch_is_asked_for_it_again_when_it_is_back() {
    let mut local = Local::start(EAGER, &[]);
    local.expect("demo is ready");
    std::fs::write(local.path("switch"), "die").unwrap();
    std::fs::write(local.path("load"), "95").unwrap();
    local.expect("the worker ended: exit status: 3");
    std::fs::remove_file(local.path("switch")).unwrap();
    local.expect("demo is ready");
    local.expect("switched from quality to density");
}

#[test]
fn a_refusal_is_shown_until_the_manifest_is_edited() {
    let mut local = Local::start("{mode: Pinned, pinnedProfile: quality}", &[("FAKE_REFUSES", "density")]);
    local.expect("demo is ready");
    local.write(&manifest("{mode: Pinned, pinnedProfile: density}"));
    local.expect("was refused: its weights are damaged");
    let degraded = |local: &Local| {
        let conditions = status(local)["conditions"].as_array().unwrap().clone();
        conditions.into_iter().find(|condition| condition["type"] == "Degraded").unwrap()
    };
    local.wait_for(|local| degraded(local)["reason"] == "SwitchRefused");
    let message = degraded(&local)["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("the worker refused density; while that is wanted it is asked again"), "{message}");
    local.write(&manifest("{mode: Pinned, pinnedProfile: quality}"));
    local.wait_for(|local| degraded(local)["reason"] == "AsExpected");
}

#[test]
fn a_switch_by_hand_is_recorded_as_requested_after_one_by_load_to_the_same_profile() {
    let mut local = Local::start(EAGER, &[]);
    local.expect("demo is ready");
    std::fs::write(local.path("load"), "95").unwrap();
    local.expect("switched from quality to density");
    local.expect("serving: profile density");
    // Calm enough for quality to stay, too much for density to go back to it.
    std::fs::write(local.path("load"), "70").unwrap();
    let history = |local: &Local| {
        let switches = status(local)["switchHistory"].as_array().cloned().unwrap_or_default();
        let row =
            |switch: &serde_json::Value| [&switch["to"], &switch["reason"]].map(|v| v.as_str().unwrap().to_owned());
        switches.iter().map(row).collect::<Vec<_>>()
    };
    local.wait_for(|local| status(local)["lastDecision"]["pressurePercent"] == 82);
    for (profile, switches) in [("quality", 2), ("density", 3)] {
        assert!(local.switch(profile).status.success());
        local.wait_for(|local| history(local).len() == switches);
    }
    assert_eq!(history(&local), [["density", "Requested"], ["quality", "Requested"], ["density", "PressureHigh"]]);
}
