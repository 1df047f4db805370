//! `modelprofile status NAME`.

use std::process::ExitCode;

use jiff::Timestamp;
use modelprofile_api::{Condition, ConditionStatus, Decimal, ModelProfileStatus, ProfileStatus, SwitchRecord};

use super::output::Output;
use super::served::Served;
use crate::local::events;

/// How many events a person sees below the status: the newest. `modelprofile events` shows them all.
const EVENTS: usize = 10;

/// Arguments of `modelprofile status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    served: Served,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Prints the status that local mode wrote last.
///
/// # Errors
/// No such model runs, or it has no status yet.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (sessions, name) = (args.served.sessions()?, &args.served.name);
    sessions.find(name)?;
    let status = sessions.status(name)?;
    args.output.print(&status, || {
        let events = events::table(sessions.events(name)?.latest(EVENTS), Timestamp::now());
        Ok(format!("{}\n{events}", text(name, &status)))
    })?;
    Ok(ExitCode::SUCCESS)
}

fn text(name: &str, status: &ModelProfileStatus) -> String {
    let or_none = |profile: &Option<String>| profile.clone().unwrap_or_else(|| "none".to_owned());
    let mut lines = vec![
        format!("{name}: active {}, desired {}", or_none(&status.active_profile), or_none(&status.desired_profile)),
        format!("  workers   {} of {} ready", status.ready_replicas, status.replicas),
    ];
    if let Some(decision) = &status.last_decision {
        let pressure =
            decision.pressure_percent.map_or_else(String::new, |percent| format!(" at {percent} % pressure"));
        lines.push(format!("  decision  {}{pressure} since {}: {}", decision.reason, decision.time, decision.message));
    }
    if !status.profiles.is_empty() {
        lines.push("  profiles".to_owned());
    }
    lines.extend(status.profiles.iter().map(profile));
    lines.push("  conditions".to_owned());
    for condition in &status.conditions {
        lines.push(self::condition(condition));
    }
    if !status.switch_history.is_empty() {
        lines.push("  switches, newest first".to_owned());
    }
    for switch in &status.switch_history {
        lines.push(self::switch(switch));
    }
    lines.join("\n") + "\n"
}

/// One condition.
pub(crate) fn condition(condition: &Condition) -> String {
    let holds = match condition.status {
        ConditionStatus::True => "True",
        ConditionStatus::False => "False",
        ConditionStatus::Unknown => "Unknown",
    };
    let line = format!("    {:18} {holds:8} {:20} {}", condition.kind, condition.reason, condition.message);
    line.trim_end().to_owned()
}

/// One switch that has ended.
pub(crate) fn switch(switch: &SwitchRecord) -> String {
    format!(
        "    {}  {} -> {}  {}  {} ms  {}",
        switch.start_time, switch.from, switch.to, switch.outcome, switch.duration_millis, switch.reason
    )
}

/// One profile with its sizes, what it lost, and what the quality gate says of that.
pub(crate) fn profile(profile: &ProfileStatus) -> String {
    let mut parts = vec![format!("    {:18}", profile.name)];
    if let Some((weights, tokens)) = profile.weight_bytes.zip(profile.kv_tokens) {
        parts.push(format!("{} MB, {tokens} KV tokens", weights / 1_000_000));
    }
    let number = |decimal: &Option<Decimal>| decimal.as_ref().and_then(Decimal::to_f64);
    if let (Some(perplexity), Some(reference)) = (number(&profile.perplexity), number(&profile.reference_perplexity)) {
        let increase = (perplexity / reference - 1.0) * 100.0;
        parts.push(format!("perplexity {perplexity:.2} ({increase:+.2} %)"));
    }
    parts.extend(profile.mean_kl_divergence.as_ref().map(|divergence| format!("mean KL divergence {divergence}")));
    parts.extend(profile.quality_gate.map(|gate| gate.as_str().to_owned()));
    parts.join("  ")
}
