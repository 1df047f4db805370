//! Client of a worker's admin API.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use modelprofile_api::Quality;
use modelprofile_api::worker::{SwitchReport, SwitchRequest, WorkerState};
use reqwest::header::CONNECTION;
use reqwest::{RequestBuilder, StatusCode};

/// A look at the state must not hold the loop up: a worker that needs longer counts as silent in this pass.
const STATE_LIMIT: Duration = Duration::from_secs(2);

/// The answer to a switch comes when the switch ended, so it may have to wait for a shrinking KV cache.
const SWITCH_LIMIT: Duration = Duration::from_secs(300);

/// Where a worker's admin API is, and the token that opens it.
#[derive(Clone, Debug)]
pub struct Admin {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Admin {
    /// `base` is the URL of the admin port, such as `http://127.0.0.1:8001`.
    ///
    /// # Errors
    /// The HTTP client cannot be built.
    pub fn new(base: impl Into<String>, token: impl Into<String>) -> anyhow::Result<Self> {
        // The worker is on this machine: a proxy from the environment would only be in the way.
        let http = reqwest::Client::builder().no_proxy().build().context("cannot build an HTTP client")?;
        Ok(Self::with_client(http, base, token))
    }

    /// As [`Admin::new`], with the connections of a client that others use too.
    pub fn with_client(http: reqwest::Client, base: impl Into<String>, token: impl Into<String>) -> Self {
        Self { http, base: base.into(), token: token.into() }
    }

    /// `GET /admin/v1/state`.
    ///
    /// # Errors
    /// No answer within two seconds, or not a state.
    pub async fn state(&self) -> anyhow::Result<WorkerState> {
        let url = format!("{}/admin/v1/state", self.base);
        let response = self.http.get(&url).bearer_auth(&self.token).timeout(STATE_LIMIT).send().await?;
        response.error_for_status()?.json().await.with_context(|| format!("{url} did not answer with a worker's state"))
    }

    /// `GET /metrics`, Prometheus' text format.
    ///
    /// # Errors
    /// No answer within two seconds.
    pub async fn metrics(&self) -> anyhow::Result<String> {
        text(self.http.get(format!("{}/metrics", self.base))).await
    }

    /// Prometheus' text format of an URL, and then the connection is closed.
    ///
    /// # Errors
    /// No answer within two seconds.
    pub async fn metrics_at_last(&self, url: &str) -> anyhow::Result<String> {
        text(self.http.get(url).header(CONNECTION, "close")).await
    }

    /// `PUT /admin/v1/profile`; returns when the switch ended. A refused switch is a report too.
    ///
    /// # Errors
    /// The worker is not ready, or did not answer; the sentence says which.
    pub async fn switch(&self, profile: &str) -> anyhow::Result<SwitchReport> {
        let url = format!("{}/admin/v1/profile", self.base);
        let body = SwitchRequest { profile: profile.to_owned() };
        let response = self
            .http
            .put(&url)
            .bearer_auth(&self.token)
            .timeout(SWITCH_LIMIT)
            .json(&body)
            .send()
            .await
            .with_context(|| format!("the worker at {} did not answer", self.base))?;
        match response.status() {
            StatusCode::OK => {
                response.json().await.with_context(|| format!("{url} did not answer with a switch report"))
            }
            StatusCode::SERVICE_UNAVAILABLE => bail!(
                "the worker cannot switch yet ({}); try again when `modelprofile local` says that it is ready",
                error_message(&response.text().await.unwrap_or_default())
            ),
            status => {
                let text = response.text().await.unwrap_or_default();
                // A refusal is a report: of a profile that does not fit as of one that nobody knows.
                serde_json::from_str(&text)
                    .map_err(|_| anyhow!("the worker answered {status}: {}", error_message(&text)))
            }
        }
    }

    /// `PUT /admin/v1/quality`: the limits to hold the profiles against from now on.
    ///
    /// # Errors
    /// No answer within two seconds, or the worker does not take them.
    pub async fn set_quality(&self, limits: &Quality) -> anyhow::Result<()> {
        let url = format!("{}/admin/v1/quality", self.base);
        let response = self.http.put(url).bearer_auth(&self.token).timeout(STATE_LIMIT).json(limits).send().await?;
        response.error_for_status()?;
        Ok(())
    }
}

async fn text(request: RequestBuilder) -> anyhow::Result<String> {
    Ok(request.timeout(STATE_LIMIT).send().await?.error_for_status()?.text().await?)
}

/// The message of an error body `{"error": {"message": …}}`, or the body itself where it has another shape.
fn error_message(body: &str) -> String {
    let parsed: Option<serde_json::Value> = serde_json::from_str(body).ok();
    let message = parsed.as_ref().and_then(|value| value.pointer("/error/message")).and_then(|value| value.as_str());
    message.unwrap_or(body).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_of_an_error_body_is_shown_without_its_wrapping() {
        assert_eq!(error_message(r#"{"error": {"message": "no profile named x", "type": "y"}}"#), "no profile named x");
        assert_eq!(error_message("plain text\n"), "plain text");
    }
}
