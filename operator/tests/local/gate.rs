//! The quality gate in local mode: what may serve, what is said of it, and how one goes on.

use serde_json::Value;

use crate::harness::{Local, manifest, text};

/// FP8 loses more than the one percent that is allowed, Q4_1 does not: SmolLM2's real figures.
const FIGURES: (&str, &str) = ("quality", "3.1 0.2");
const ONE_PERCENT: &str = "{maxPerplexityIncreasePercent: 1}";

fn limited(switching: &str, quality: &str) -> String {
    format!("{}  quality: {quality}\n", manifest(switching))
}

fn condition(local: &Local, kind: &str) -> Value {
    let status: Value = serde_json::from_str(&local.print("status", "json")).unwrap();
    let conditions = status["conditions"].as_array().unwrap();
    conditions.iter().find(|condition| condition["type"] == kind).unwrap().clone()
}

#[test]
fn a_profile_beyond_a_limit_never_serves_and_is_told_once_with_figure_and_limit() {
    let mut local = Local::start_with(&limited("{mode: Auto}", ONE_PERCENT), &[FIGURES], &[]);
    local.expect(
        "quality is beyond the quality limits: its perplexity is 3.10 % above the original's, the limit is 1 %",
    );
    local.expect("serving: profile density");
    assert!(!local.seen.iter().any(|line| line.contains("serving: profile quality")), "{:#?}", local.seen);
    let output = local.switch("quality");
    assert_eq!(text(&output.stderr), "the switch from density to quality was refused: quality lost too much");
    assert_eq!(output.status.code(), Some(1));
    local.wait_for(|local| condition(local, "QualityGatePassed")["status"] == "False");
    let message = condition(&local, "QualityGatePassed")["message"].as_str().unwrap().to_owned();
    assert!(message.contains("3.10 %") && message.contains("limit is 1 %") && message.contains("onFailure: Warn"));
    assert_eq!(condition(&local, "Degraded")["reason"], "BeyondLimits");
    let shown = local.print("status", "text");
    let line = |profile: &str| shown.lines().find(|line| line.trim_start().starts_with(profile)).unwrap();
    assert!(
        line("quality ").contains("perplexity 20.62 (+3.10 %)") && line("quality ").contains("BeyondLimits"),
        "{shown}"
    );
    assert!(
        line("density ").contains("perplexity 20.04 (+0.20 %)") && line("density ").contains("WithinLimits"),
        "{shown}"
    );
    let events: Vec<Value> = serde_json::from_str(&local.print("events", "json")).unwrap();
    let told = events.iter().filter(|event| event["reason"] == "BeyondLimits");
    assert_eq!(told.map(|event| event["count"].as_u64().unwrap()).collect::<Vec<_>>(), [1]);
}

#[test]
fn a_raised_limit_is_followed_at_once_and_lets_the_profile_in() {
    let mut local = Local::start_with(&limited("{mode: Auto}", ONE_PERCENT), &[FIGURES], &[]);
    local.expect("serving: profile density");
    local.write(&limited("{mode: Pinned, pinnedProfile: quality}", ONE_PERCENT));
    local.expect("the manifest pins quality now");
    local.wait_for(|local| {
        let status: Value = serde_json::from_str(&local.print("status", "json")).unwrap();
        status["lastDecision"]["message"]
            .as_str()
            .unwrap_or_default()
            .contains("so its pin is not followed and density serves")
    });
    local.write(&limited("{mode: Pinned, pinnedProfile: quality}", "{maxPerplexityIncreasePercent: 4}"));
    local.expect("switched from density to quality");
    local.wait_for(|local| condition(local, "QualityGatePassed")["reason"] == "WithinLimits");
    assert!(!local.seen.iter().any(|line| line.contains("was refused")), "{:#?}", local.seen);
}

#[test]
fn a_lowered_limit_takes_the_serving_profile_out_of_traffic() {
    let mut local = Local::start_with(&manifest("{mode: Auto}"), &[FIGURES], &[]);
    local.expect("serving: profile quality");
    local.write(&limited("{mode: Auto}", ONE_PERCENT));
    local.expect("switching to density: quality is beyond the quality limits");
    local.expect("serving: profile density");
}

#[test]
fn without_a_profile_within_the_limits_nothing_is_served_until_they_are_raised() {
    let mut local = Local::start_with(&limited("{mode: Auto}", ONE_PERCENT), &[("quality", "3.1 2.5")], &[]);
    local.expect(
        "density is beyond the quality limits: its perplexity is 2.50 % above the original's, the limit is 1 %",
    );
    local.expect("no profile may serve, so no request is taken until an edit of spec.quality is saved");
    local.wait_for(|local| condition(local, "Available")["reason"] == "BeyondLimits");
    assert_eq!(condition(&local, "Prepared")["status"], "True");
    assert!(!local.seen.iter().any(|line| line.contains("is ready")), "{:#?}", local.seen);
    local.write(&limited("{mode: Auto}", "{maxPerplexityIncreasePercent: 1, onFailure: Warn}"));
    local.expect("demo is ready");
    local.expect("serving: profile quality");
}

#[test]
fn with_warn_a_profile_beyond_a_limit_serves_and_is_marked() {
    let warn = "{maxPerplexityIncreasePercent: 1, onFailure: Warn}";
    let mut local = Local::start_with(&limited("{mode: Auto}", warn), &[FIGURES], &[]);
    local.expect("it is used all the same, because spec.quality.onFailure is Warn");
    local.expect("serving: profile quality");
    local.wait_for(|local| condition(local, "QualityGatePassed")["reason"] == "BeyondLimits");
    assert_eq!(condition(&local, "Degraded")["status"], "False");
}

#[test]
fn a_profile_that_was_not_measured_is_no_rung() {
    let mut local = Local::start_with(&manifest("{mode: Auto}"), &[("quality", "0.5 none")], &[]);
    local.expect("the quality of density was not measured; it is kept out of the ladder");
    local.expect("serving: profile quality");
    let output = local.switch("density");
    assert!(text(&output.stderr).contains("density lost too much"));
    local.wait_for(|local| condition(local, "QualityGatePassed")["status"] == "Unknown");
    assert_eq!(condition(&local, "QualityGatePassed")["reason"], "NotMeasured");
}
