//! `kubectl modelprofile status [NAME]`.

use std::process::ExitCode;

use jiff::Timestamp;
use modelprofile_api::{Condition, ConditionStatus, DecisionAction, ModelProfileStatus, conditions};
use serde::Serialize;

use super::cluster::Cluster;
use super::pin::word;
use super::view::View;
use super::workers::{self, Worker, worker};
use crate::commands::output::Output;
use crate::commands::status::{condition, profile, switch};
use crate::local::events::{self, Event, age};

/// How many Events are shown of each: the newest.
const EVENTS: usize = 10;

/// Arguments of `kubectl modelprofile status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The ModelProfile [default: all of the namespace].
    #[arg(conflicts_with = "all_namespaces")]
    name: Option<String>,
    /// All namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// All that is shown of a ModelProfile.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Who decides, what is held and how it changes; for a person. Left out of the JSON: `spec.switching` has it.
    #[serde(skip)]
    pub head: String,
    /// The status.
    pub status: ModelProfileStatus,
    /// Its worker pods. Left out: they may not be listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<Vec<Worker>>,
    /// The newest Events, newest last. Left out: they may not be listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<Vec<Event>>,
    /// What could not be read besides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Prints them.
///
/// # Errors
/// They cannot be read.
pub async fn run(cluster: &Cluster, args: &Args) -> anyhow::Result<ExitCode> {
    let views = match &args.name {
        Some(name) => vec![cluster.get(name).await?],
        None => cluster.list(args.all_namespaces).await?,
    };
    let mut overviews = Vec::with_capacity(views.len());
    for view in &views {
        overviews.push(look(cluster, view).await);
    }
    let text = |overviews: &[Overview]| {
        if overviews.is_empty() {
            return cluster.none(args.all_namespaces) + "\n";
        }
        let now = Timestamp::now();
        overviews.iter().map(|overview| text(overview, now)).collect::<Vec<_>>().join("\n")
    };
    match (&args.name, overviews.as_slice()) {
        (Some(_), [one]) => args.output.print(one, || Ok(text(std::slice::from_ref(one))))?,
        (_, many) => args.output.print(&many, || Ok(text(many)))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Whoever may read ModelProfiles but no pods or Events sees the rest all the same.
async fn look(cluster: &Cluster, view: &View) -> Overview {
    let mut notes = Vec::new();
    let mut note = |error: anyhow::Error| notes.push(format!("{error:#}"));
    let accelerator = view.spec.as_ref().ok().and_then(|spec| spec.placement.accelerator_resource.as_deref());
    let pods = cluster.pods(view).await.map_err(&mut note).ok();
    let events = cluster.events(view, EVENTS).await.map_err(&mut note).ok();
    if let Err(error) = view.spec() {
        note(error);
    }
    Overview {
        namespace: view.namespace.clone(),
        name: view.name.clone(),
        head: head(view),
        status: view.status.clone(),
        workers: pods.map(|pods| pods.iter().map(|pod| worker(pod, accelerator)).collect()),
        events,
        notes,
    }
}

/// Who decides, what is held, and how it changes.
fn head(view: &View) -> String {
    let Ok(spec) = &view.spec else { return "a spec that cannot be read".to_owned() };
    let switching = &spec.switching;
    let pinned =
        switching.pinned_profile.as_ref().filter(|_| switching.mode == modelprofile_api::SwitchingMode::Pinned);
    let held = pinned.map_or_else(String::new, |profile| format!(" to {profile}"));
    format!("{}{held}, strategy {}", word(switching.mode), switching.strategy.as_str())
}

/// The whole text about one.
pub fn text(overview: &Overview, now: Timestamp) -> String {
    let status = &overview.status;
    let or_none = |profile: &Option<String>| profile.clone().unwrap_or_else(|| "none".to_owned());
    let mut lines = vec![
        format!(
            "{}/{}: active {}, desired {}",
            overview.namespace,
            overview.name,
            or_none(&status.active_profile),
            or_none(&status.desired_profile)
        ),
        format!("  mode      {}", overview.head),
    ];
    if let Some(decision) = &status.last_decision {
        let pressure =
            decision.pressure_percent.map_or_else(String::new, |percent| format!(" at {percent} % pressure"));
        let since = since(&decision.time, now);
        lines.push(format!(
            "  decision  {}{pressure}, {since}: {}",
            action(decision.action, &decision.reason),
            decision.message
        ));
    }
    lines.push(format!("  workers   {} of {} ready", status.ready_replicas, status.replicas));
    let workers = overview.workers.as_deref().map(workers::lines).unwrap_or_default();
    lines.extend(workers.lines().map(str::to_owned));
    section(&mut lines, "profiles", status.profiles.iter().map(profile));
    match notable(&status.conditions) {
        None if status.conditions.is_empty() => lines.push("  conditions none: no operator has seen it yet".to_owned()),
        None => lines.push(format!("  conditions all {} as they should be", status.conditions.len())),
        Some(found) => {
            section(&mut lines, "conditions that are not as they should be", found.into_iter().map(condition));
        }
    }
    section(&mut lines, "switches, newest first", status.switch_history.iter().map(switch));
    lines.extend(overview.notes.iter().map(|note| format!("  {note}")));
    let mut text = lines.join("\n") + "\n";
    if let Some(events) = &overview.events {
        text += &events::table(events, now);
    }
    text
}

fn section(lines: &mut Vec<String>, title: &str, rows: impl Iterator<Item = String>) {
    let mut rows = rows.peekable();
    if rows.peek().is_some() {
        lines.push(format!("  {title}"));
    }
    lines.extend(rows);
}

/// Conditions that a person should read: `None` if all is well and nothing is under way.
fn notable(all: &[Condition]) -> Option<Vec<&Condition>> {
    let well = |condition: &&Condition| {
        let wanted = match condition.kind.as_str() {
            conditions::PROGRESSING | conditions::DEGRADED => ConditionStatus::False,
            _ => ConditionStatus::True,
        };
        condition.status == wanted
    };
    let found: Vec<&Condition> = all.iter().filter(|condition| !well(condition)).collect();
    (!found.is_empty()).then_some(found)
}

/// What a decision does and why, as words.
pub(super) fn action(action: DecisionAction, reason: &str) -> String {
    match action {
        DecisionAction::Hold => format!("Hold ({reason})"),
        DecisionAction::Switch => format!("Switch ({reason})"),
        DecisionAction::Scale => format!("Scale ({reason})"),
    }
}

/// How long ago something began.
pub(super) fn since(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(time) => format!("for {}", age(now.duration_since(time).as_secs())),
        Err(_) => format!("since {time}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::view::fixture::{calm, view};
    use super::*;
    use crate::local::notes::Severity;

    fn now() -> Timestamp {
        "2026-03-02T12:00:00Z".parse().unwrap()
    }

    fn overview(switching: &str, status: serde_json::Value) -> Overview {
        let view = view(switching, status);
        Overview {
            namespace: view.namespace.clone(),
            name: view.name.clone(),
            head: head(&view),
            status: view.status.clone(),
            workers: None,
            events: None,
            notes: Vec::new(),
        }
    }

    #[test]
    fn a_calm_model_is_told_without_its_eight_conditions() {
        let worker = |pod: &str| Worker {
            pod: pod.to_owned(),
            profile: None,
            state: "Ready".to_owned(),
            restarts: 0,
            node: Some("n1".to_owned()),
            trouble: None,
        };
        let event = Event {
            severity: Severity::Normal,
            reason: "SwitchCompleted".to_owned(),
            message: "quality -> density (PressureHigh): Completed after 840 ms".to_owned(),
            count: 1,
            first_timestamp: "2026-03-02T11:40:01Z".parse().unwrap(),
            last_timestamp: "2026-03-02T11:40:01Z".parse().unwrap(),
        };
        let overview = Overview {
            workers: Some(vec![worker("chat-a"), worker("chat-b")]),
            events: Some(vec![event]),
            ..overview("{mode: Pinned, pinnedProfile: density}", calm("density"))
        };
        assert_eq!(
            text(&overview, now()),
            "team/chat: active density, desired density
  mode      Pinned to density, strategy InPlace
  decision  Hold (WithinTargets) at 53 % pressure, for 12m: KV demand is 45 % against a target of 85 %: pressure 53 %, it stays
  workers   2 of 2 ready
    chat-a   Ready   -   on n1
    chat-b   Ready   -   on n1
  profiles
    quality             35240 MB, 81000 KV tokens  perplexity 20.10 (+0.50 %)  mean KL divergence 0.0123  WithinLimits
    density             20000 MB, 190000 KV tokens  perplexity 23.00 (+15.00 %)  mean KL divergence 0.05  WithinLimits
  conditions all 8 as they should be
  switches, newest first
    2026-03-02T11:40:00Z  quality -> density  Completed  840 ms  PressureHigh
    2026-03-02T11:10:00Z  density -> quality  Completed  910 ms  PressureLow
Events:
  Type    Reason           Age  Message
  ----    ------           ---  -------
  Normal  SwitchCompleted  19m  quality -> density (PressureHigh): Completed after 840 ms
"
        );
    }

    #[test]
    fn what_is_wrong_or_under_way_and_what_could_not_be_read_is_told() {
        let mut status = calm("quality");
        for field in ["profiles", "switchHistory", "lastDecision", "activeProfile"] {
            status.as_object_mut().unwrap().remove(field);
        }
        status["conditions"][2]["status"] = json!("False");
        status["conditions"][2]["reason"] = json!("Preparing");
        status["conditions"][2]["message"] = json!("quality 40 %, density 0 %");
        let overview = Overview { notes: vec!["you may not list pods".to_owned()], ..overview("{}", status) };
        assert_eq!(
            text(&overview, now()),
            "team/chat: active none, desired quality
  mode      Auto, strategy InPlace
  workers   2 of 2 ready
  conditions that are not as they should be
    Prepared           False    Preparing            quality 40 %, density 0 %
  you may not list pods
"
        );
    }

    #[test]
    fn a_model_that_no_operator_has_seen_says_so() {
        assert_eq!(
            text(&overview("{}", json!({})), now()),
            "team/chat: active none, desired none
  mode      Auto, strategy InPlace
  workers   0 of 0 ready
  conditions none: no operator has seen it yet
"
        );
    }

    #[test]
    fn the_json_has_the_status_as_it_is() {
        let json = serde_json::to_value(overview("{}", calm("quality"))).unwrap();
        assert_eq!(json, json!({"namespace": "team", "name": "chat", "status": calm("quality")}));
    }
}
