//! `kubectl modelprofile switch NAME PROFILE`: a pin that is waited for.
//!
//! A person cannot ask the workers: their admin API takes the operator's tokens alone, and what a person asked of them the
//! operator would undo in its next pass. So a switch by hand is a pin that moves.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use modelprofile_api::{ConditionStatus, SwitchingMode, conditions};

use super::cluster::Cluster;
use super::pin::{self, Change, word};
use super::view::View;

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Arguments of `kubectl modelprofile switch`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The ModelProfile.
    name: String,
    /// The profile to change to.
    profile: String,
    /// Pin it where it is not pinned yet; `unpin` takes that back.
    #[arg(long)]
    pin: bool,
    /// Seconds to wait until the profile serves. With the strategies Surge and Recreate other workers have to load first.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

/// Moves the pin and waits until every ready worker serves with its profile.
///
/// # Errors
/// It is not pinned and --pin was not given, the profile may not serve, or the time is over.
pub async fn run(cluster: &Cluster, args: &Args) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let (written, says) = cluster.change(&args.name, |view| switch(view, &args.profile, args.pin)).await?;
    println!("{says}");
    let (mut view, mut told) = (written.clone(), String::new());
    loop {
        let waits = match step(&view, &args.profile, written.generation) {
            Step::Done(message) => {
                println!("{message} ({:.1} s)", start.elapsed().as_secs_f64());
                return Ok(ExitCode::SUCCESS);
            }
            Step::Failed(message) => bail!(message),
            Step::Waiting(message) => message,
        };
        if waits != told {
            println!("  {waits}");
            told = waits;
        }
        if start.elapsed() >= Duration::from_secs(args.timeout) {
            bail!(
                "{} does not serve {} after {} s: {told}; the pin stays, {} shows how it goes on and {} takes it back",
                view.title(),
                args.profile,
                args.timeout,
                view.command("status", ""),
                view.command("unpin", "")
            );
        }
        tokio::time::sleep(LOOK).await;
        match cluster.find(&args.name).await {
            Ok(Some(now)) => view = now,
            Ok(None) => bail!("somebody deleted {} meanwhile", view.title()),
            // The switch goes on without us.
            Err(error) => eprintln!("  {error:#}; asked again"),
        }
    }
}

/// What is written: the pin, where there is one already or the user wants one.
///
/// # Errors
/// As [`pin::pin`]; and a switch that would be undone.
pub fn switch(view: &View, profile: &str, may_pin: bool) -> anyhow::Result<Change> {
    let change = pin::pin(view, profile)?;
    let mode = view.spec()?.switching.mode;
    if mode == SwitchingMode::Pinned || may_pin {
        return Ok(change);
    }
    let who = match mode {
        SwitchingMode::Recommend => "the operator holds the profile that serves, and would change it back",
        _ => "load and schedule decide, and would change it back",
    };
    bail!(
        "{} has the mode {}: {who}. To hold {profile} until {}, add --pin",
        view.title(),
        word(mode),
        view.command("unpin", "")
    )
}

/// How far a switch is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The profile serves.
    Done(String),
    /// It will not, by itself.
    Failed(String),
    /// What is waited for.
    Waiting(String),
}

/// How far the switch to `profile` is that was written as this generation of the spec.
pub fn step(view: &View, profile: &str, generation: i64) -> Step {
    let (title, status) = (view.title(), &view.status);
    let pinned = view.spec.as_ref().ok().map(|spec| &spec.switching);
    if pinned.is_none_or(|switching| {
        switching.mode != SwitchingMode::Pinned || switching.pinned_profile.as_deref() != Some(profile)
    }) {
        return Step::Failed(format!(
            "somebody else changed {title} meanwhile: it is not pinned to {profile} any more"
        ));
    }
    let seen = status.observed_generation.unwrap_or_default();
    if seen < generation {
        return Step::Waiting(format!(
            "the operator has not seen the change yet (generation {generation}, it saw {seen}); if that stays, see that it runs"
        ));
    }
    let holds = |kind: &str, wanted| status.condition(kind).filter(|condition| condition.status == wanted);
    if let Some(refused) = holds(conditions::ACCEPTED, ConditionStatus::False) {
        return Step::Failed(format!("{title} is not accepted ({}): {}", refused.reason, refused.message));
    }
    if let Some(decision) = status.last_decision.as_ref().filter(|decision| decision.reason == "QualityGateFailed") {
        return Step::Failed(format!("{title} does not follow the pin: {}", decision.message));
    }
    let wanted = status.desired_profile.as_deref() == Some(profile);
    if wanted && status.active_profile.as_deref() == Some(profile) {
        let count = status.ready_replicas;
        let workers = if count == 1 { "1 worker".to_owned() } else { format!("{count} workers") };
        return Step::Done(format!("{profile} serves with {workers}"));
    }
    let under_way = [conditions::DEGRADED, conditions::PROGRESSING].into_iter();
    let reason = under_way.filter_map(|kind| holds(kind, ConditionStatus::True)).find(|c| !c.message.is_empty());
    let available = || holds(conditions::AVAILABLE, ConditionStatus::False).filter(|c| !c.message.is_empty());
    Step::Waiting(match reason.or_else(available) {
        Some(condition) => format!("{}: {}", condition.reason, condition.message),
        None => format!("{} serves", status.active_profile.as_deref().unwrap_or("no single profile")),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::view::fixture::{calm, view};
    use super::*;

    const PINNED: &str = "{mode: Pinned, pinnedProfile: density}";

    #[test]
    fn a_switch_that_would_be_undone_is_refused_with_the_way_to_hold_it() {
        assert_eq!(
            switch(&view("{}", calm("quality")), "density", false).unwrap_err().to_string(),
            "team/chat has the mode Auto: load and schedule decide, and would change it back. To hold density until \
             `kubectl modelprofile unpin chat -n team`, add --pin"
        );
        assert_eq!(
            switch(&view("{mode: Recommend}", calm("quality")), "density", false).unwrap_err().to_string(),
            "team/chat has the mode Recommend: the operator holds the profile that serves, and would change it back. To hold \
             density until `kubectl modelprofile unpin chat -n team`, add --pin"
        );
        assert!(matches!(switch(&view("{}", calm("quality")), "density", true), Ok(Change::Write { .. })));
        assert!(matches!(switch(&view(PINNED, calm("density")), "quality", false), Ok(Change::Write { .. })));
    }

    #[test]
    fn a_switch_is_followed_from_the_write_to_the_profile_that_serves() {
        let waiting = |text: &str| Step::Waiting(text.to_owned());
        let seen = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut status = calm("quality");
            change(&mut status);
            step(&view(PINNED, status), "density", 7)
        };
        assert_eq!(
            seen(&|status| status["observedGeneration"] = json!(6)),
            waiting(
                "the operator has not seen the change yet (generation 7, it saw 6); if that stays, see that it runs"
            )
        );
        assert_eq!(seen(&|_| {}), waiting("quality serves"));
        let switching = |status: &mut serde_json::Value| {
            (status["activeProfile"], status["desiredProfile"]) = (json!(null), json!("density"));
            status["conditions"][6]["status"] = json!("True");
            status["conditions"][6]["reason"] = json!("Switching");
            status["conditions"][6]["message"] = json!("1 workers change to density");
        };
        assert_eq!(seen(&switching), waiting("Switching: 1 workers change to density"));
        assert_eq!(
            step(&view(PINNED, calm("density")), "density", 7),
            Step::Done("density serves with 2 workers".to_owned())
        );
    }

    #[test]
    fn a_profile_that_still_serves_but_is_left_by_an_earlier_switch_is_not_there_yet() {
        let mut status = calm("density");
        status["desiredProfile"] = json!("quality");
        assert_eq!(step(&view(PINNED, status), "density", 7), Step::Waiting("density serves".to_owned()));
    }

    #[test]
    fn a_switch_that_will_not_come_ends_with_the_reason() {
        let failed = |text: &str| Step::Failed(text.to_owned());
        let mut status = calm("quality");
        status["lastDecision"]["reason"] = json!("QualityGateFailed");
        status["lastDecision"]["message"] = json!("density was not measured");
        assert_eq!(
            step(&view(PINNED, status), "density", 7),
            failed("team/chat does not follow the pin: density was not measured")
        );
        let mut status = calm("quality");
        status["conditions"][0]["status"] = json!("False");
        status["conditions"][0]["reason"] = json!("Invalid");
        status["conditions"][0]["message"] = json!("spec.model.uri: relative");
        assert_eq!(
            step(&view(PINNED, status), "density", 7),
            failed("team/chat is not accepted (Invalid): spec.model.uri: relative")
        );
        assert_eq!(
            step(&view("{}", calm("quality")), "density", 7),
            failed("somebody else changed team/chat meanwhile: it is not pinned to density any more")
        );
    }
}
