//! Talking to worker pods: their admin API, their metrics, and a first real request.

use std::time::Duration;

use modelprofile_api::Quality;
use modelprofile_api::worker::{SwitchReport, WorkerState};
use serde_json::json;

use crate::local::admin::Admin;

/// Longest wait for one answer of a probe: one token of a loaded model.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// How long a connection is kept without use: from one question of a pass to the next.
const BETWEEN_QUESTIONS: Duration = Duration::from_millis(200);

/// What a worker said in one pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heard {
    /// Its state; `None` without an answer, or of an engine that has no admin API.
    pub state: Option<WorkerState>,
    /// Its metrics in Prometheus' text format.
    pub metrics: Option<String>,
}

/// The HTTP client of all workers: one pool of connections.
#[derive(Clone, Debug)]
pub struct Workers {
    http: reqwest::Client,
}

impl Workers {
    /// A client.
    ///
    /// # Errors
    /// It cannot be built.
    pub fn new() -> Result<Self, reqwest::Error> {
        // Pods are reached directly, whatever proxy the environment names. Connections are not kept from pass to pass: each
        // has 30 KB of buffers, which with thousands of workers would be most of the memory.
        let builder = reqwest::Client::builder().no_proxy().connect_timeout(Duration::from_secs(2));
        Ok(Self { http: builder.pool_max_idle_per_host(1).pool_idle_timeout(BETWEEN_QUESTIONS).build()? })
    }

    /// Asks a worker how it is: its admin API where it has one, and its metrics where they are.
    pub async fn hear(&self, address: &Address, token: &str) -> Heard {
        let admin = self.admin(address, token);
        // One after the other, so that one connection serves both, and is closed by the second. Who is silent is not waited for
        // twice.
        let state = match address.admin {
            Some(_) => match admin.state().await {
                Err(error) if silent(&error) => return Heard::default(),
                state => state.ok(),
            },
            None => None,
        };
        Heard { state, metrics: admin.metrics_at_last(&address.metrics()).await.ok() }
    }

    /// Asks for a change of profile; returns when the switch ended.
    ///
    /// # Errors
    /// Why there is no report.
    pub async fn switch(&self, address: &Address, token: &str, profile: &str) -> Result<SwitchReport, String> {
        self.admin(address, token).switch(profile).await.map_err(|error| format!("{error:#}"))
    }

    /// Tells the limits to hold profiles against.
    ///
    /// # Errors
    /// The worker did not take them.
    pub async fn set_quality(&self, address: &Address, token: &str, limits: &Quality) -> Result<(), String> {
        self.admin(address, token).set_quality(limits).await.map_err(|error| format!("{error:#}"))
    }

    /// Whether the worker answers a real request, of one token. One that asks for an API key has answered: the operator holds
    /// none, because it may read no Secret outside its namespace.
    pub async fn answers(&self, address: &Address, model: &str) -> bool {
        let url = format!("{}/v1/completions", address.api());
        let body = json!({"model": model, "prompt": "Hello", "max_tokens": 1, "temperature": 0});
        match self.http.post(url).json(&body).timeout(PROBE_LIMIT).send().await {
            Ok(answer) => answer.status().is_success() || answer.status() == reqwest::StatusCode::UNAUTHORIZED,
            Err(_) => false,
        }
    }

    fn admin(&self, address: &Address, token: &str) -> Admin {
        Admin::with_client(self.http.clone(), address.admin_url(), token)
    }
}

/// Whether a worker did not answer at all.
fn silent(error: &anyhow::Error) -> bool {
    error.downcast_ref::<reqwest::Error>().is_some_and(|error| error.is_timeout() || error.is_connect())
}

/// Where a pod listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Its IP address.
    pub ip: String,
    /// Port of the OpenAI API.
    pub port: u16,
    /// Port of the admin API, of engines that have one.
    pub admin: Option<u16>,
    /// Path of the metrics on the API's port.
    pub metrics_path: &'static str,
}

impl Address {
    fn host(&self) -> String {
        if self.ip.contains(':') { format!("[{}]", self.ip) } else { self.ip.clone() }
    }

    fn api(&self) -> String {
        format!("http://{}:{}", self.host(), self.port)
    }

    fn admin_url(&self) -> String {
        format!("http://{}:{}", self.host(), self.admin.unwrap_or(self.port))
    }

    /// Our worker's metrics are open on its admin port too, which an API key does not guard.
    fn metrics(&self) -> String {
        match self.admin {
            Some(_) => format!("{}/metrics", self.admin_url()),
            None => format!("{}{}", self.api(), self.metrics_path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_make_urls() {
        let native = Address { ip: "fd00::7".to_owned(), port: 8000, admin: Some(8001), metrics_path: "/metrics" };
        assert_eq!(native.metrics(), "http://[fd00::7]:8001/metrics");
        let foreign =
            Address { ip: "10.0.0.7".to_owned(), port: 8000, admin: None, metrics_path: "/prometheus/metrics" };
        assert_eq!(
            (foreign.api(), foreign.metrics()),
            ("http://10.0.0.7:8000".to_owned(), "http://10.0.0.7:8000/prometheus/metrics".to_owned())
        );
    }
}
