//! One request: sent, streamed, timed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::{Value, json};

use super::prompts::Prompt;
use crate::traces::Arrival;

/// What asks for something small may not hold the replay up.
const SMALL: Duration = Duration::from_secs(2);

/// Profile of tokens whose chunk did not tell.
pub const UNKNOWN_PROFILE: &str = "unknown";

/// The server that is measured.
#[derive(Clone, Debug)]
pub struct Target {
    pub(super) http: reqwest::Client,
    /// Without a slash at the end, and without `/v1`.
    pub(super) base: String,
    pub(super) model: String,
    pub(super) api_key: Option<String>,
    pub(super) plain: bool,
    pub(super) timeout: Duration,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// No connection.
    Connect,
    /// Not done within the limit.
    Timeout,
    /// Status 429 or 503: the server takes no more.
    Overloaded,
    /// Another status of 400 to 499: the request was wrong.
    Refused,
    /// Another status that is no success.
    Server,
    /// An error in the middle of the stream.
    Stream,
    /// The stream broke off before its end, or had no token.
    BrokenOff,
}

impl Failure {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Overloaded => "overloaded",
            Self::Refused => "refused",
            Self::Server => "server",
            Self::Stream => "stream",
            Self::BrokenOff => "broken_off",
        }
    }
}

/// What became of one request. Times are seconds since the replay's start.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Place in the trace, from 0.
    pub index: usize,
    /// When the trace wanted it sent.
    pub due: f64,
    /// When it was sent.
    pub sent: f64,
    /// Tokens of the prompt: the server's count, or else the trace's.
    pub prompt_tokens: u32,
    /// Tokens of the answer: the server's count, or else the number of chunks.
    pub output_tokens: u32,
    /// When each chunk with text arrived.
    pub chunks: Vec<f64>,
    /// When the last byte arrived, or the failure.
    pub ended: f64,
    /// Tokens by the profile that computed them.
    pub by_profile: BTreeMap<String, u32>,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
    /// The server's words on a failure.
    pub message: String,
}

impl Record {
    /// Seconds from when it was due to the first token: what a user would have waited, the generator's own lag included.
    pub fn ttft(&self) -> Option<f64> {
        Some(self.chunks.first()? - self.due)
    }

    /// Seconds from when it was due to its end.
    pub fn end_to_end(&self) -> f64 {
        self.ended - self.due
    }

    /// Seconds between tokens, on average over the answer; `None` with fewer than two.
    pub fn mean_itl(&self) -> Option<f64> {
        let (first, last) = (self.chunks.first()?, self.chunks.last()?);
        (self.output_tokens > 1 && last > first).then(|| (last - first) / f64::from(self.output_tokens - 1))
    }
}

impl Target {
    fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.api_key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// `GET /v1/models`.
    pub(super) async fn models(&self) -> anyhow::Result<Value> {
        let sent = self.request(reqwest::Method::GET, "/v1/models").timeout(Duration::from_secs(10)).send().await;
        let answer = sent.with_context(|| format!("no server answers at {}; is it running?", self.base))?;
        let status = answer.status();
        if !status.is_success() {
            bail!(
                "{}/v1/models answered {status}; is it an OpenAI-compatible server, and the API key right?",
                self.base
            );
        }
        answer.json().await.with_context(|| format!("{}/v1/models did not answer with JSON", self.base))
    }

    /// `GET /metrics`; `None` if there are none.
    pub(super) async fn metrics(&self) -> Option<String> {
        let answer = self.request(reqwest::Method::GET, "/metrics").timeout(SMALL).send().await.ok()?;
        answer.error_for_status().ok()?.text().await.ok()
    }

    /// Asks for a small tokenization, where a server has it.
    ///
    /// # Errors
    /// It says that it is not ready: what it would be asked before its model is there would only be refused.
    pub(super) async fn check_ready(&self) -> anyhow::Result<()> {
        let answer = self.request(reqwest::Method::POST, "/tokenize").timeout(SMALL);
        let answer = answer.json(&json!({"model": self.model, "prompt": "a"})).send().await;
        if answer.is_ok_and(|answer| answer.status().as_u16() == 503) {
            bail!("the server at {} is not ready yet; wait until its model is loaded", self.base);
        }
        Ok(())
    }

    /// `POST /tokenize`: the tokens of a text, and the longest context; `None` if the server cannot tell.
    pub(super) async fn tokenize(&self, text: &str) -> Option<(Vec<u32>, Option<u32>)> {
        let body = json!({"model": self.model, "prompt": text, "add_special_tokens": false});
        let request = self.request(reqwest::Method::POST, "/tokenize").timeout(Duration::from_secs(10)).json(&body);
        let answer: Value = request.send().await.ok()?.error_for_status().ok()?.json().await.ok()?;
        let tokens = answer.get("tokens")?.as_array()?.iter();
        let tokens: Option<Vec<u32>> = tokens.map(|token| token.as_u64()?.try_into().ok()).collect();
        let context = answer.get("max_model_len").and_then(Value::as_u64).and_then(|tokens| tokens.try_into().ok());
        Some((tokens?, context))
    }
}

/// Sends a request and reads its answer to the end. Never fails: a failure is part of the record.
pub(super) async fn send(target: &Target, index: usize, arrival: Arrival, prompt: Prompt, start: Instant) -> Record {
    let seconds = || start.elapsed().as_secs_f64();
    let mut record = Record {
        index,
        due: arrival.at,
        sent: seconds(),
        prompt_tokens: arrival.prompt_tokens,
        output_tokens: 0,
        chunks: Vec::new(),
        ended: 0.0,
        by_profile: BTreeMap::new(),
        failure: None,
        message: String::new(),
    };
    let mut body = json!({
        "model": target.model, "prompt": prompt, "max_tokens": arrival.output_tokens, "temperature": 0,
        "stream": true, "stream_options": {"include_usage": true},
    });
    if !target.plain {
        body["ignore_eos"] = true.into();
    }
    let work = stream(target, &body, &mut record, start);
    let result = tokio::time::timeout(target.timeout, work).await;
    let result = result.unwrap_or_else(|_| Err((Failure::Timeout, format!("over {:?}", target.timeout))));
    record.ended = seconds();
    if let Err((failure, message)) = result {
        (record.failure, record.message) = (Some(failure), message);
    }
    settle_tokens(&mut record);
    record
}

type Failed = (Failure, String);

async fn stream(target: &Target, body: &Value, record: &mut Record, start: Instant) -> Result<(), Failed> {
    let request = target.request(reqwest::Method::POST, "/v1/completions").json(body);
    let mut answer = request.send().await.map_err(|error| {
        let failure = if error.is_connect() { Failure::Connect } else { Failure::BrokenOff };
        (failure, error.to_string())
    })?;
    let status = answer.status().as_u16();
    if !answer.status().is_success() {
        let failure = match status {
            429 | 503 => Failure::Overloaded,
            400..=499 => Failure::Refused,
            _ => Failure::Server,
        };
        let text = answer.text().await.unwrap_or_default();
        return Err((failure, format!("{status}: {}", text.chars().take(300).collect::<String>())));
    }
    // The fingerprint of a chunk is nearer to the truth; the header is what a proxy may leave of it.
    let header = answer.headers().get("x-modelprofile-active").and_then(|value| value.to_str().ok());
    let header = header.map(str::to_owned);
    let mut lines = Lines::default();
    loop {
        let bytes = answer.chunk().await.map_err(|error| (Failure::BrokenOff, error.to_string()))?;
        let Some(bytes) = bytes else { break };
        let at = start.elapsed().as_secs_f64();
        for line in lines.push(&bytes) {
            let Some(data) = line.strip_prefix("data:").map(str::trim) else { continue };
            if data == "[DONE]" {
                return if record.chunks.is_empty() { Err(no_token()) } else { Ok(()) };
            }
            event(data, at, header.as_deref(), record)?;
        }
    }
    Err((Failure::BrokenOff, "the stream ended before [DONE]".to_owned()))
}

fn no_token() -> Failed {
    (Failure::BrokenOff, "the answer has no token".to_owned())
}

/// Takes one event of the stream into the record.
fn event(data: &str, at: f64, header: Option<&str>, record: &mut Record) -> Result<(), Failed> {
    let value: Value = serde_json::from_str(data).map_err(|error| (Failure::Stream, format!("no JSON: {error}")))?;
    if let Some(error) = value.get("error").filter(|error| !error.is_null()) {
        return Err((Failure::Stream, error.to_string()));
    }
    let count = |name: &str| value.pointer(&format!("/usage/{name}"))?.as_u64()?.try_into().ok();
    if let Some(tokens) = count("completion_tokens") {
        record.output_tokens = tokens;
    }
    if let Some(tokens) = count("prompt_tokens") {
        record.prompt_tokens = tokens;
    }
    let Some(choice) = value.pointer("/choices/0") else { return Ok(()) };
    let empty = choice.get("text").and_then(Value::as_str).is_none_or(str::is_empty);
    let last = choice.get("finish_reason").is_some_and(|reason| !reason.is_null());
    // A token without text of its own (half a character) is a token; the end without text is none.
    if empty && last {
        return Ok(());
    }
    record.chunks.push(at);
    let fingerprint = value.get("system_fingerprint").and_then(Value::as_str);
    let profile = fingerprint.and_then(|print| print.strip_prefix("fp_modelprofile_")).filter(|name| !name.is_empty());
    let profile = profile.or(header).unwrap_or(UNKNOWN_PROFILE);
    match record.by_profile.get_mut(profile) {
        Some(count) => *count += 1,
        None => {
            record.by_profile.insert(profile.to_owned(), 1);
        }
    }
    Ok(())
}

/// Makes the counts by profile, of chunks until now, add up to the server's count of tokens.
fn settle_tokens(record: &mut Record) {
    let chunks = record.chunks.len() as u64;
    if record.output_tokens == 0 {
        record.output_tokens = chunks as u32;
    }
    let (mut seen, mut given) = (0, 0);
    for count in record.by_profile.values_mut() {
        seen += u64::from(*count);
        // Rounding the running total keeps the sum exact.
        let upto = (seen * u64::from(record.output_tokens) + chunks / 2) / chunks.max(1);
        *count = (upto - given) as u32;
        given = upto;
    }
}

/// Cuts a stream of bytes into lines.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        self.0.extend_from_slice(bytes);
        let Some(end) = self.0.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
        let rest = self.0.split_off(end + 1);
        let whole = std::mem::replace(&mut self.0, rest);
        String::from_utf8_lossy(&whole).lines().map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(chunks: usize, output_tokens: u32, by_profile: &[(&str, u32)]) -> Record {
        Record {
            index: 0,
            due: 0.0,
            sent: 0.0,
            prompt_tokens: 1,
            output_tokens,
            chunks: vec![0.0; chunks],
            ended: 0.0,
            by_profile: by_profile.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
            failure: None,
            message: String::new(),
        }
    }

    #[test]
    fn tokens_by_profile_add_up_to_the_servers_count() {
        let mut answer = record(3, 10, &[("density", 1), ("quality", 2)]);
        settle_tokens(&mut answer);
        assert_eq!(answer.by_profile, record(0, 0, &[("density", 3), ("quality", 7)]).by_profile);
    }

    #[test]
    fn lines_come_whole_however_the_bytes_are_cut() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"data: \xc3"), Vec::<String>::new());
        assert_eq!(lines.push(b"\xa4\r\n\ndat"), ["data: ä", ""]);
        assert_eq!(lines.push(b"a: x\n"), ["data: x"]);
    }

    #[test]
    fn the_profile_is_that_of_each_chunk() {
        let mut answer = record(0, 0, &[]);
        for (profile, header) in [("quality", None), ("density", Some("quality")), ("", Some("quality")), ("", None)] {
            let data = json!({"system_fingerprint": format!("fp_modelprofile_{profile}"), "choices": [{"text": "a"}]});
            event(&data.to_string(), 1.0, header, &mut answer).unwrap();
        }
        assert_eq!(answer.by_profile, record(0, 0, &[("density", 1), ("quality", 2), ("unknown", 1)]).by_profile);
    }
}
