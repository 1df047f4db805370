//! The operator's own metrics, and the ports that serve them and its health.
//!
//! | metric | labels |
//! |---|---|
//! | `modelprofile_operator_reconciles_total` | result: ok, invalid, conflict, transient, bug |
//! | `modelprofile_operator_reconcile_seconds` | |
//! | `modelprofile_operator_look_delay_seconds` | |
//! | `modelprofile_operator_switches_total` | outcome: Completed, Refused, Replaced, NoReport |
//! | `modelprofile_operator_leader` | |
//! | `modelprofile_operator_pressure_ratio` | namespace, name |
//! | `modelprofile_operator_ready_workers` | namespace, name |
//! | `modelprofile_operator_active_profile`, `…_desired_profile` | namespace, name, profile; 1 |
//! | `modelprofile_operator_condition` | namespace, name, type, status; 1 for the one that holds |

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::{Router, routing::get};
use futures_util::stream;
use modelprofile_api::{ConditionStatus, ModelProfileStatus, conditions};
use prometheus::{Encoder, Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

use super::index::Key;

/// Upper bounds of the time of a pass, in seconds: a steady one takes milliseconds, one with a silent worker two seconds.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// Upper bounds of the delay of a look, in seconds: none while there is time for all, else up to what makes metrics stale.
const DELAYS: [f64; 9] = [0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];
const STATUSES: [(&str, ConditionStatus); 3] =
    [("True", ConditionStatus::True), ("False", ConditionStatus::False), ("Unknown", ConditionStatus::Unknown)];
/// ModelProfiles that are written out at a time: between two such pieces of a large answer passes get on.
const PIECE: usize = 100;

/// The operator's metrics; clones share their values.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    reconciles: IntCounterVec,
    seconds: Histogram,
    delay: Histogram,
    switches: IntCounterVec,
    leader: IntGauge,
    /// Not in the registry, which keeps names, help and labels with each of the thirty series that a ModelProfile has.
    models: Arc<Mutex<BTreeMap<Key, Model>>>,
}

/// What is told of a ModelProfile.
#[derive(Clone, Debug, Default)]
struct Model {
    pressure_percent: Option<u32>,
    ready: u32,
    active: Option<Box<str>>,
    desired: Option<Box<str>>,
    /// In the order of [`conditions::ALL`].
    conditions: [Option<ConditionStatus>; conditions::ALL.len()],
}

/// A metric of ModelProfiles: writes its samples of one.
struct Family {
    name: &'static str,
    help: &'static str,
    samples: fn(&mut String, &str, &Key, &Model),
}

const FAMILIES: [Family; 5] = [
    Family {
        name: "modelprofile_operator_active_profile",
        help: "The profile that serves",
        samples: |text, metric, key, model| profile(text, metric, key, model.active.as_deref()),
    },
    Family {
        name: "modelprofile_operator_condition",
        help: "Conditions of the status",
        samples: |text, metric, (namespace, name), model| {
            for (kind, holds) in conditions::ALL.iter().zip(&model.conditions) {
                let Some(holds) = holds else { continue };
                for (word, status) in &STATUSES {
                    let value = u8::from(status == holds);
                    let _ = writeln!(
                        text,
                        r#"{metric}{{name="{name}",namespace="{namespace}",status="{word}",type="{kind}"}} {value}"#
                    );
                }
            }
        },
    },
    Family {
        name: "modelprofile_operator_desired_profile",
        help: "The profile that should serve",
        samples: |text, metric, key, model| profile(text, metric, key, model.desired.as_deref()),
    },
    Family {
        name: "modelprofile_operator_pressure_ratio",
        help: "Load over target; 1 is at target",
        samples: |text, metric, (namespace, name), model| {
            if let Some(percent) = model.pressure_percent {
                let ratio = f64::from(percent) / 100.0;
                let _ = writeln!(text, r#"{metric}{{name="{name}",namespace="{namespace}"}} {ratio}"#);
            }
        },
    },
    Family {
        name: "modelprofile_operator_ready_workers",
        help: "Workers that serve",
        samples: |text, metric, (namespace, name), model| {
            let _ = writeln!(text, r#"{metric}{{name="{name}",namespace="{namespace}"}} {}"#, model.ready);
        },
    },
];

/// Names of namespaces, objects and profiles have no character that a label's value would have to escape.
fn profile(text: &mut String, metric: &str, (namespace, name): &Key, profile: Option<&str>) {
    if let Some(profile) = profile {
        let _ = writeln!(text, r#"{metric}{{name="{name}",namespace="{namespace}",profile="{profile}"}} 1"#);
    }
}

impl Metrics {
    /// Metrics in a registry of their own.
    ///
    /// # Errors
    /// Two have one name, which a test excludes.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let name = |name: &str| format!("modelprofile_operator_{name}");
        let all = Self {
            reconciles: IntCounterVec::new(
                Opts::new(name("reconciles_total"), "Passes, by how they ended"),
                &["result"],
            )?,
            seconds: Histogram::with_opts(
                HistogramOpts::new(name("reconcile_seconds"), "Time of a pass").buckets(BUCKETS.to_vec()),
            )?,
            delay: Histogram::with_opts(
                HistogramOpts::new(
                    name("look_delay_seconds"),
                    "Time from when a look was due to when it was begun with",
                )
                .buckets(DELAYS.to_vec()),
            )?,
            switches: IntCounterVec::new(
                Opts::new(name("switches_total"), "Switches that workers were asked for"),
                &["outcome"],
            )?,
            leader: IntGauge::new(name("leader"), "1 while this process is the leader")?,
            models: Arc::default(),
            registry,
        };
        all.registry.register(Box::new(all.reconciles.clone()))?;
        all.registry.register(Box::new(all.seconds.clone()))?;
        all.registry.register(Box::new(all.delay.clone()))?;
        all.registry.register(Box::new(all.switches.clone()))?;
        all.registry.register(Box::new(all.leader.clone()))?;
        Ok(all)
    }

    /// A pass ended.
    pub fn passed(&self, result: &'static str, time: Duration) {
        self.reconciles.with_label_values(&[result]).inc();
        self.seconds.observe(time.as_secs_f64());
    }

    /// A look was begun with, so late.
    pub fn looked(&self, late: Duration) {
        self.delay.observe(late.as_secs_f64());
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
        let listed = |profile: &Option<String>| {
            let row = status.profiles.iter().find(|row| profile.as_ref() == Some(&row.name))?;
            Some(row.name.as_str().into())
        };
        let model = Model {
            pressure_percent: status.last_decision.as_ref().and_then(|decision| decision.pressure_percent),
            ready: status.ready_replicas,
            active: listed(&status.active_profile),
            desired: listed(&status.desired_profile),
            conditions: conditions::ALL.map(|kind| {
                status.conditions.iter().find(|condition| condition.kind == kind).map(|condition| condition.status)
            }),
        };
        self.models().insert((namespace.to_owned(), name.to_owned()), model);
    }

    /// The series of ModelProfiles that are gone end. Asked for each that has series, not for each that is known to go: a pass
    /// that was under way when one went tells of it once more.
    pub fn keep(&self, there: impl Fn(&Key) -> bool) {
        self.models().retain(|key, _| there(key));
    }

    fn models(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, Model>> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them in Prometheus' text format, in pieces that are made when they are asked for.
    pub fn pieces(&self) -> impl Iterator<Item = String> + use<> {
        let mut text = Vec::new();
        // Encoding into memory does not fail.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        let models: Arc<[(Key, Model)]> =
            self.models().iter().map(|(key, model)| (key.clone(), model.clone())).collect();
        let of_models = FAMILIES.into_iter().flat_map(move |Family { name, help, samples }| {
            let models = models.clone();
            let head = (!models.is_empty()).then(|| format!("# HELP {name} {help}\n# TYPE {name} gauge\n"));
            head.into_iter().chain((0..models.len()).step_by(PIECE).map(move |start| {
                let mut text = String::new();
                let end = models.len().min(start + PIECE);
                models[start..end].iter().for_each(|(key, model)| samples(&mut text, name, key, model));
                text
            }))
        });
        std::iter::once(String::from_utf8(text).unwrap_or_default()).chain(of_models)
    }
}

/// Serves `/metrics` until the process ends.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve_metrics(address: SocketAddr, metrics: Metrics) -> anyhow::Result<()> {
    let render = async |State(metrics): State<Metrics>| {
        let pieces = stream::iter(metrics.pieces().map(Ok::<_, std::convert::Infallible>));
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], Body::from_stream(pieces)).into_response()
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
        let render = || metrics.pieces().collect::<String>();
        let row = |name: &str| ProfileStatus { name: name.to_owned(), ..ProfileStatus::default() };
        let status = ModelProfileStatus {
            active_profile: Some("quality".to_owned()),
            ready_replicas: 2,
            profiles: vec![row("quality"), row("density")],
            ..ModelProfileStatus::default()
        };
        metrics.observed("n", "llama", &status);
        let series = r#"modelprofile_operator_active_profile{name="llama",namespace="n",profile="quality"} 1"#;
        assert!(render().contains(series), "{}", render());
        metrics.observed("n", "llama", &ModelProfileStatus { active_profile: Some("density".to_owned()), ..status });
        assert!(!render().contains(series));
        metrics.observed("n", "staying", &ModelProfileStatus::default());
        let there = |key: &Key| key.1 == "staying";
        metrics.keep(there);
        assert!(!render().contains("llama") && render().contains("staying"), "{}", render());
        // By a pass that began before it went.
        metrics.observed("n", "llama", &ModelProfileStatus::default());
        metrics.keep(there);
        assert!(!render().contains("llama"), "{}", render());
    }
}
