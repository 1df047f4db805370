//! The operator's own metrics, and the ports that serve them and its health.
//!
//! | metric | labels |
//! |---|---|
//! | `modelprofile_operator_reconciles_total` | result: ok, invalid, conflict, transient, bug |
//! | `modelprofile_operator_reconcile_seconds` | |
//! | `modelprofile_operator_switches_total` | outcome: Completed, Refused, Replaced, NoReport |
//! | `modelprofile_operator_leader` | |
//! | `modelprofile_operator_pressure_ratio` | namespace, name |
//! | `modelprofile_operator_ready_workers` | namespace, name |
//! | `modelprofile_operator_active_profile`, `…_desired_profile` | namespace, name, profile; 1 |
//! | `modelprofile_operator_condition` | namespace, name, type, status; 1 for the one that holds |

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::{Router, routing::get};
use modelprofile_api::{ConditionStatus, ModelProfileStatus};
use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Upper bounds of the time of a pass, in seconds: a steady one takes milliseconds, one with a silent worker two seconds.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
const STATUSES: [&str; 3] = ["True", "False", "Unknown"];

/// The operator's metrics; clones share their values.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    reconciles: IntCounterVec,
    seconds: Histogram,
    switches: IntCounterVec,
    leader: IntGauge,
    pressure: GaugeVec,
    ready: IntGaugeVec,
    active: IntGaugeVec,
    desired: IntGaugeVec,
    conditions: IntGaugeVec,
}

impl Metrics {
    /// Metrics in a registry of their own.
    ///
    /// # Errors
    /// Two have one name, which a test excludes.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let name = |name: &str| format!("modelprofile_operator_{name}");
        let model = ["namespace", "name"];
        let of = |metric: &str, help: &str, more: &[&str]| {
            IntGaugeVec::new(Opts::new(name(metric), help), &[&model, more].concat())
        };
        let all = Self {
            reconciles: IntCounterVec::new(
                Opts::new(name("reconciles_total"), "Passes, by how they ended"),
                &["result"],
            )?,
            seconds: Histogram::with_opts(
                HistogramOpts::new(name("reconcile_seconds"), "Time of a pass").buckets(BUCKETS.to_vec()),
            )?,
            switches: IntCounterVec::new(
                Opts::new(name("switches_total"), "Switches that workers were asked for"),
                &["outcome"],
            )?,
            leader: IntGauge::new(name("leader"), "1 while this process is the leader")?,
            pressure: GaugeVec::new(Opts::new(name("pressure_ratio"), "Load over target; 1 is at target"), &model)?,
            ready: of("ready_workers", "Workers that serve", &[])?,
            active: of("active_profile", "The profile that serves", &["profile"])?,
            desired: of("desired_profile", "The profile that should serve", &["profile"])?,
            conditions: of("condition", "Conditions of the status", &["type", "status"])?,
            registry,
        };
        all.registry.register(Box::new(all.reconciles.clone()))?;
        all.registry.register(Box::new(all.seconds.clone()))?;
        all.registry.register(Box::new(all.switches.clone()))?;
        all.registry.register(Box::new(all.leader.clone()))?;
        all.registry.register(Box::new(all.pressure.clone()))?;
        for gauge in [&all.ready, &all.active, &all.desired, &all.conditions] {
            all.registry.register(Box::new(gauge.clone()))?;
        }
        Ok(all)
    }

    /// A pass ended.
    pub fn passed(&self, result: &'static str, time: Duration) {
        self.reconciles.with_label_values(&[result]).inc();
        self.seconds.observe(time.as_secs_f64());
    }

    /// A switch ended.
    pub fn switched(&self, outcome: &'static str) {
        self.switches.with_label_values(&[outcome]).inc();
    }

    /// Whether this process is the leader.
    pub fn lead(&self, leader: bool) {
        self.leader.set(i64::from(leader));
    }

    /// What a pass saw of a ModelProfile.
    pub fn observed(&self, namespace: &str, name: &str, status: &ModelProfileStatus) {
        let model = [namespace, name];
        let pressure = status.last_decision.as_ref().and_then(|decision| decision.pressure_percent);
        match pressure {
            Some(percent) => self.pressure.with_label_values(&model).set(f64::from(percent) / 100.0),
            None => drop(self.pressure.remove_label_values(&model)),
        }
        self.ready.with_label_values(&model).set(i64::from(status.ready_replicas));
        for (gauge, profile) in [(&self.active, &status.active_profile), (&self.desired, &status.desired_profile)] {
            for row in &status.profiles {
                let labels = [namespace, name, &row.name];
                if profile.as_ref() == Some(&row.name) {
                    gauge.with_label_values(&labels).set(1);
                } else {
                    let _ = gauge.remove_label_values(&labels);
                }
            }
        }
        for condition in &status.conditions {
            let holds = match condition.status {
                ConditionStatus::True => "True",
                ConditionStatus::False => "False",
                ConditionStatus::Unknown => "Unknown",
            };
            for status in STATUSES {
                let gauge = self.conditions.with_label_values(&[namespace, name, &condition.kind, status]);
                gauge.set(i64::from(status == holds));
            }
        }
    }

    /// A ModelProfile is gone: its series end.
    pub fn forget(&self, namespace: &str, name: &str) {
        let _ = self.pressure.remove_label_values(&[namespace, name]);
        let _ = self.ready.remove_label_values(&[namespace, name]);
        for family in self.registry.gather() {
            for metric in family.get_metric() {
                let value = |label: &str| {
                    metric.get_label().iter().find(|pair| pair.name() == label).map(|pair| pair.value().to_owned())
                };
                if value("namespace").as_deref() != Some(namespace) || value("name").as_deref() != Some(name) {
                    continue;
                }
                if let Some(profile) = value("profile") {
                    let _ = self.active.remove_label_values(&[namespace, name, &profile]);
                    let _ = self.desired.remove_label_values(&[namespace, name, &profile]);
                } else if let (Some(kind), Some(status)) = (value("type"), value("status")) {
                    let _ = self.conditions.remove_label_values(&[namespace, name, &kind, &status]);
                }
            }
        }
    }

    /// All of them in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        // Encoding into memory does not fail.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        String::from_utf8(text).unwrap_or_default()
    }
}

/// Serves `/metrics` until the process ends.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve_metrics(address: SocketAddr, metrics: Metrics) -> anyhow::Result<()> {
    let render = async |State(metrics): State<Metrics>| {
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render()).into_response()
    };
    let router = Router::new().route("/metrics", get(render)).with_state(metrics);
    serve(address, "--metrics-address", router).await
}

/// Serves `/livez`, and `/readyz`: true from the moment when the API server has answered, for the leader and those that wait
/// to become it alike.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve_health(address: SocketAddr, ready: Arc<AtomicBool>) -> anyhow::Result<()> {
    let readyz = async |State(ready): State<Arc<AtomicBool>>| {
        if ready.load(Ordering::Relaxed) {
            (StatusCode::OK, "ok")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "the API server has not answered yet")
        }
    };
    let router = Router::new().route("/livez", get(async || "ok")).route("/readyz", get(readyz)).with_state(ready);
    serve(address, "--health-address", router).await
}

async fn serve(address: SocketAddr, flag: &str, router: Router) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("cannot listen on {address}: choose another {flag}"))?;
    Ok(axum::serve(listener, router).await?)
}

#[cfg(test)]
mod tests {
    use modelprofile_api::ProfileStatus;

    use super::*;

    #[test]
    fn a_model_has_its_series_while_it_exists() {
        let metrics = Metrics::new().unwrap();
        let row = |name: &str| ProfileStatus { name: name.to_owned(), ..ProfileStatus::default() };
        let status = ModelProfileStatus {
            active_profile: Some("quality".to_owned()),
            ready_replicas: 2,
            profiles: vec![row("quality"), row("density")],
            ..ModelProfileStatus::default()
        };
        metrics.observed("n", "llama", &status);
        let series = r#"modelprofile_operator_active_profile{name="llama",namespace="n",profile="quality"} 1"#;
        assert!(metrics.render().contains(series), "{}", metrics.render());
        metrics.observed("n", "llama", &ModelProfileStatus { active_profile: Some("density".to_owned()), ..status });
        assert!(!metrics.render().contains(series));
        metrics.forget("n", "llama");
        assert!(!metrics.render().contains("llama"), "{}", metrics.render());
    }
}
