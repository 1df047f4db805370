//! A worker that serves, as a process that is asked over HTTP.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a failure is the test's result")]

use std::{
    io::Read,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use modelprofile_api::worker::{SwitchReport, WorkerState};
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};

use crate::tiny;

/// Time in which anything that is waited for must come.
const LIMIT: Duration = Duration::from_secs(300);

/// A worker that does not outlive its test.
pub(crate) struct Worker {
    pub(crate) process: Child,
    pub(crate) port: u16,
    pub(crate) admin: u16,
    log: Arc<Mutex<String>>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail only for a process that has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Status and text of an answer; `None` without one.
fn ask(request: impl FnOnce(Client) -> RequestBuilder) -> Option<(u16, String)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let answer = request(Client::builder().no_proxy().build().unwrap()).send().await.ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    })
}

impl Worker {
    /// Serves a manifest; `change` adds options to the command.
    pub(crate) fn serve(cache: &Path, manifest: &Path, change: impl FnOnce(&mut Command)) -> Self {
        // Both are held at once, so that they differ.
        let ports = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
        let [port, admin] = ports.map(|listener| listener.local_addr().unwrap().port());
        let mut command = tiny::worker(cache);
        command
            .args(["serve", "--port", &port.to_string(), "--admin-port", &admin.to_string(), "--config"])
            .arg(manifest)
            .env("MODELPROFILE_ADMIN_TOKEN", "secret")
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        change(&mut command);
        let mut process = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (mut errors, kept) = (process.stderr.take().unwrap(), log.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = errors.read(&mut bytes) {
                kept.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        let mut worker = Self { process, port, admin, log };
        let end = Instant::now() + LIMIT;
        while Self::get(worker.admin, "/readyz").is_none_or(|(status, _)| status != 200) {
            let ended = worker.process.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < end, "it is not ready ({ended:?}):\n{}", worker.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        worker
    }

    pub(crate) fn eventually(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let end = Instant::now() + LIMIT;
        while !holds() {
            assert!(Instant::now() < end, "{what} did not come:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn get(port: u16, path: &str) -> Option<(u16, String)> {
        ask(|client| client.get(format!("http://127.0.0.1:{port}{path}")).bearer_auth("secret"))
    }

    pub(crate) fn state(&self) -> WorkerState {
        let (status, text) = Self::get(self.admin, "/admin/v1/state").unwrap();
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    pub(crate) fn profiles(&self) -> Vec<String> {
        self.state().profiles.into_iter().map(|profile| profile.name).collect()
    }

    /// Waits until it has this ladder.
    pub(crate) fn has(&self, ladder: &[&str]) {
        self.eventually(&format!("the ladder {ladder:?}"), || self.profiles() == ladder);
    }

    pub(crate) fn switch(&self, profile: &str) -> (u16, String) {
        let url = format!("http://127.0.0.1:{}/admin/v1/profile", self.admin);
        let body = json!({"profile": profile});
        ask(|client| client.request(Method::PUT, url).bearer_auth("secret").json(&body)).unwrap()
    }

    pub(crate) fn switches(&self, profile: &str) {
        let (status, text) = self.switch(profile);
        let report: SwitchReport = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status}: {text}"));
        assert_eq!((status, report.to.as_str(), report.preempted), (200, profile, 0), "{report:?}");
        assert_eq!(self.state().active_profile.as_deref(), Some(profile));
    }

    /// Profiles of its metric, with the value of each.
    pub(crate) fn metric(&self) -> Vec<String> {
        let (_, text) = Self::get(self.admin, "/metrics").unwrap();
        let lines = text.lines().filter_map(|line| line.strip_prefix("modelprofile_active_profile{profile=\""));
        let mut found: Vec<String> = lines.map(|line| line.replace("\",model_name=\"tiny\"}", "")).collect();
        found.sort();
        found
    }

    /// The answer to a completion.
    pub(crate) fn complete(&self, body: &Value) -> Value {
        let url = format!("http://127.0.0.1:{}/v1/completions", self.port);
        let (status, text) = ask(|client| client.post(url).json(body)).unwrap();
        assert_eq!(status, 200, "{text}\n{}", self.log());
        serde_json::from_str(&text).unwrap()
    }
}

/// A client that streams one answer after the other.
pub(crate) struct Streams {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<String>>,
}

impl Streams {
    /// Answers of so many tokens.
    pub(crate) fn start(port: u16, tokens: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut streams = Vec::new();
            while !stopped.load(Ordering::Acquire) {
                let body = json!({"prompt": "w5 w7 w9", "max_tokens": tokens, "ignore_eos": true, "stream": true});
                let url = format!("http://127.0.0.1:{port}/v1/completions");
                let (status, text) = ask(|client| client.post(url).json(&body)).expect("an answer to the end");
                assert_eq!(status, 200, "{text}");
                streams.push(text);
            }
            streams
        });
        Self { stop, thread }
    }

    /// All answers, each of which has come to its end.
    pub(crate) fn ended(self) -> Vec<String> {
        self.stop.store(true, Ordering::Release);
        let streams = self.thread.join().unwrap();
        for text in &streams {
            let tokens = text.matches("\"finish_reason\":null").count() as u32;
            assert!(
                text.contains("\"finish_reason\":\"length\"") && text.ends_with("data: [DONE]\n\n"),
                "{tokens} tokens"
            );
        }
        streams
    }
}
