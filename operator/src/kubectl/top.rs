//! `kubectl modelprofile top`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use modelprofile_api::EngineType;
use serde::Serialize;

use super::cluster::Cluster;
use super::table::{or_dash, table};
use super::view::View;
use super::workers::worker;
use crate::commands::output::Output;
use crate::scrape::Metrics;

/// Time between two looks at the workers' counters.
const SPAN: Duration = Duration::from_secs(2);
/// ModelProfiles whose workers are asked at the same time.
const AT_ONCE: usize = 16;

/// Arguments of `kubectl modelprofile top`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// All namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Ask the workers how many tokens they generate, through the API server: needs the right to get pods/proxy, and workers
    /// whose NetworkPolicy lets the API server in. Takes two seconds.
    #[arg(long)]
    tokens: bool,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// A line.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Profile that serves. Left out: none, or workers differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_profile: Option<String>,
    /// Profile that should serve. Left out: nothing was decided yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired_profile: Option<String>,
    /// Workers that serve.
    pub ready_replicas: u32,
    /// Workers that exist.
    pub replicas: u32,
    /// Load over target. Left out: no metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pressure_percent: Option<u32>,
    /// Tokens that the KV caches of all ready workers hold in the active profile. Left out: not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_tokens: Option<i64>,
    /// Tokens that all workers generate in a second. Left out: not asked for, or no worker answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
}

/// Prints the table.
///
/// # Errors
/// They cannot be listed.
pub async fn run(cluster: &Cluster, args: &Args) -> anyhow::Result<ExitCode> {
    let views = cluster.list(args.all_namespaces).await?;
    let mut rows: Vec<Row> = views.iter().map(row).collect();
    if args.tokens {
        let rates = stream::iter(views.iter().map(|view| rate(cluster, view))).buffered(AT_ONCE);
        for (row, rate) in rows.iter_mut().zip(rates.collect::<Vec<_>>().await) {
            row.tokens_per_second = rate;
        }
    }
    args.output.print(&rows, || {
        Ok(if rows.is_empty() { cluster.none(args.all_namespaces) + "\n" } else { text(&rows, args.tokens) })
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What the object tells.
pub fn row(view: &View) -> Row {
    let status = &view.status;
    let active = status.active_profile.as_deref();
    let of_one = status.profiles.iter().find(|profile| Some(profile.name.as_str()) == active);
    Row {
        namespace: view.namespace.clone(),
        name: view.name.clone(),
        active_profile: status.active_profile.clone(),
        desired_profile: status.desired_profile.clone(),
        ready_replicas: status.ready_replicas,
        replicas: status.replicas,
        pressure_percent: status.last_decision.as_ref().and_then(|decision| decision.pressure_percent),
        kv_tokens: of_one
            .and_then(|profile| profile.kv_tokens)
            .map(|tokens| tokens.saturating_mul(status.ready_replicas.into())),
        tokens_per_second: None,
    }
}

/// The table; with `tokens` it has their column.
pub fn text(rows: &[Row], tokens: bool) -> String {
    let head = ["NAMESPACE", "NAME", "ACTIVE", "DESIRED", "READY", "PRESSURE", "KV TOKENS"].map(str::to_owned);
    let cells = |row: &Row| {
        [
            row.namespace.clone(),
            row.name.clone(),
            or_dash(row.active_profile.as_ref()),
            or_dash(row.desired_profile.as_ref()),
            format!("{}/{}", row.ready_replicas, row.replicas),
            or_dash(row.pressure_percent.map(|percent| format!("{percent} %"))),
            or_dash(row.kv_tokens),
        ]
    };
    let all = std::iter::once(head).chain(rows.iter().map(cells));
    if !tokens {
        return table("", &all.collect::<Vec<_>>());
    }
    let rates = rows.iter().map(|row| or_dash(row.tokens_per_second.map(|rate| format!("{rate:.0}"))));
    let last = std::iter::once("TOKENS/S".to_owned()).chain(rates);
    let wide = |([a, b, c, d, e, f, g], last): ([String; 7], String)| [a, b, c, d, e, f, g, last];
    table("", &all.zip(last).map(wide).collect::<Vec<_>>())
}

/// What the ready workers generate in a second; `None` if not one of them answers twice.
async fn rate(cluster: &Cluster, view: &View) -> Option<f64> {
    let engine = view.spec.as_ref().ok()?.engine.kind;
    counter(engine)?;
    let ready = |pod: &Pod| worker(pod, None).state == "Ready";
    let pods: Vec<Pod> = cluster.pods(view).await.ok()?.into_iter().filter(ready).collect();
    let rates = join_all(pods.iter().map(async |pod| {
        let name = pod.name_any();
        let start = Instant::now();
        let before = cluster.metrics(&view.namespace, &name, engine).await?;
        tokio::time::sleep(SPAN).await;
        let after = cluster.metrics(&view.namespace, &name, engine).await?;
        generated(engine, &before, &after, start.elapsed())
    }));
    rates.await.into_iter().flatten().reduce(|a, b| a + b)
}

/// Counter of generated tokens; `None` where an engine has none.
fn counter(engine: EngineType) -> Option<&'static str> {
    match engine {
        EngineType::Native | EngineType::Vllm => Some("vllm:generation_tokens_total"),
        EngineType::LlamaCpp => Some("llamacpp:tokens_predicted_total"),
        EngineType::TensorRtLlm => None,
    }
}

/// A counter that fell belongs to a worker that started anew in between: nothing is known.
fn generated(engine: EngineType, before: &Metrics, after: &Metrics, span: Duration) -> Option<f64> {
    let name = counter(engine)?;
    let tokens = after.sum(name)? - before.sum(name)?;
    (tokens >= 0.0 && !span.is_zero()).then(|| tokens / span.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::view::fixture::{calm, view};
    use super::*;

    #[test]
    fn a_line_has_the_room_of_all_ready_workers_and_dashes_where_nothing_is_known() {
        let unseen = Row { namespace: "another".to_owned(), name: "new".to_owned(), ..Row::default() };
        let mut rows = [row(&view("{}", calm("density"))), unseen];
        assert_eq!(
            text(&rows, false),
            "NAMESPACE   NAME   ACTIVE    DESIRED   READY   PRESSURE   KV TOKENS
team        chat   density   density   2/2     53 %       380000
another     new    -         -         0/0     -          -
"
        );
        rows[0].tokens_per_second = Some(1234.6);
        assert_eq!(
            text(&rows, true),
            "NAMESPACE   NAME   ACTIVE    DESIRED   READY   PRESSURE   KV TOKENS   TOKENS/S
team        chat   density   density   2/2     53 %       380000      1235
another     new    -         -         0/0     -          -           -
"
        );
    }

    #[test]
    fn the_json_leaves_out_what_is_not_known() {
        assert_eq!(
            serde_json::to_value(row(&view("{}", json!({"replicas": 1})))).unwrap(),
            json!({"namespace": "team", "name": "chat", "readyReplicas": 0, "replicas": 1})
        );
    }

    #[test]
    fn a_rate_is_the_rise_of_the_counter_and_unknown_after_a_restart() {
        let at = |count: u32| Metrics::parse(&format!("vllm:generation_tokens_total{{model_name=\"chat\"}} {count}\n"));
        let rate = |before, after| generated(EngineType::Native, &at(before), &at(after), Duration::from_secs(2));
        assert_eq!(rate(100, 300), Some(100.0));
        assert_eq!(rate(300, 100), None);
        assert_eq!(generated(EngineType::TensorRtLlm, &at(1), &at(2), SPAN), None);
    }
}
