//! Requests to the OpenAI API, as a client makes them.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::sse::Events;

/// No token for this long, and a stream counts as hung.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

/// A client of one model.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    model: String,
}

/// How a streamed completion ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// `finish_reason` of the choice.
    pub reason: String,
    /// `usage.completion_tokens`.
    pub tokens: u64,
}

impl Client {
    /// `base` is the URL of the API without `/v1`.
    ///
    /// # Errors
    /// The HTTP client cannot be built.
    pub fn new(base: &str, model: &str) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        Ok(Self { http, base: base.to_owned(), model: model.to_owned() })
    }

    /// One question, answered greedily in at most `max_tokens` tokens.
    ///
    /// # Errors
    /// The request failed or the answer has no text.
    pub async fn chat(&self, question: &str, max_tokens: u32) -> anyhow::Result<String> {
        let body = json!({
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": max_tokens,
            "temperature": 0,
        });
        let response = self.post("/v1/chat/completions", &body).await?;
        let answer: Value = response.json().await?;
        let text = answer.pointer("/choices/0/message/content").and_then(Value::as_str);
        Ok(text.with_context(|| format!("no text in {answer}"))?.trim().to_owned())
    }

    /// Streams a completion of exactly `max_tokens` tokens and calls `token` for every event that brings some, with their number.
    /// A token that alone is no text (of a character that takes several) has an event as well.
    ///
    /// # Errors
    /// The request failed, the stream broke off or fell silent, or it carried an error.
    pub async fn stream(
        &self,
        prompt: &str,
        max_tokens: u32,
        seed: u64,
        mut token: impl FnMut(u64),
    ) -> anyhow::Result<Finished> {
        let body = json!({
            "model": self.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "ignore_eos": true,
            "temperature": 0.8,
            "seed": seed,
            "stream": true,
            "stream_options": {"include_usage": true, "continuous_usage_stats": true},
        });
        let mut bytes = self.post("/v1/completions", &body).await?.bytes_stream();
        let (mut events, mut reason, mut tokens) = (Events::default(), None, None);
        loop {
            let chunk = tokio::time::timeout(SILENCE_LIMIT, bytes.next())
                .await
                .with_context(|| format!("no token for {} s", SILENCE_LIMIT.as_secs()))?
                .context("the stream broke off before [DONE]")?
                .context("the connection broke")?;
            for data in events.push(&chunk)? {
                if data == "[DONE]" {
                    return Ok(Finished {
                        reason: reason.context("the stream ended without a finish_reason")?,
                        tokens: tokens.context("the stream ended without usage")?,
                    });
                }
                let event: Value = serde_json::from_str(&data).with_context(|| format!("not JSON: {data}"))?;
                if let Some(error) = event.get("error") {
                    bail!("the stream carried an error: {error}");
                }
                let so_far = event.pointer("/usage/completion_tokens").and_then(Value::as_u64);
                let text = event.pointer("/choices/0/text").and_then(Value::as_str);
                ensure!(
                    text.is_none_or(str::is_empty) || so_far.is_some(),
                    "a piece of text came without the tokens so far"
                );
                let new = so_far.unwrap_or_default().saturating_sub(tokens.unwrap_or_default());
                if new > 0 {
                    token(new);
                }
                if let Some(value) = event.pointer("/choices/0/finish_reason").and_then(Value::as_str) {
                    reason = Some(value.to_owned());
                }
                tokens = so_far.or(tokens);
            }
        }
    }

    /// A counter of `/metrics`, summed over its labels.
    ///
    /// # Errors
    /// The metrics cannot be read or have no such counter.
    pub async fn counter(&self, name: &str) -> anyhow::Result<f64> {
        let url = format!("{}/metrics", self.base);
        let text = self.http.get(&url).send().await?.error_for_status()?.text().await?;
        sum_of(&text, name).with_context(|| format!("{url} has no {name}"))
    }

    async fn post(&self, path: &str, body: &Value) -> anyhow::Result<reqwest::Response> {
        let response = self.http.post(format!("{}{path}", self.base)).json(body).send().await?;
        let status = response.status();
        if !status.is_success() {
            bail!("{path} answered {status}: {}", response.text().await.unwrap_or_default());
        }
        ensure!(status == reqwest::StatusCode::OK, "{path} answered {status}, expected 200");
        Ok(response)
    }
}

/// Sum of the samples of `name` in Prometheus' text format; `None` if there is no sample.
fn sum_of(text: &str, name: &str) -> Option<f64> {
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        (rest.starts_with('{') || rest.starts_with(' ')).then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
    };
    let values: Vec<f64> = text.lines().filter_map(value).collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_summed_over_its_labels() {
        let text = "# TYPE a counter\na{x=\"1\"} 2\na{x=\"2\"} 3\nab 7\n";
        assert_eq!(sum_of(text, "a"), Some(5.0));
        assert_eq!(sum_of(text, "ab"), Some(7.0));
        assert_eq!(sum_of(text, "b"), None);
    }
}
