//! The worker and the process that started it, with the real model.

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::json;

const MODEL: &str = "models/SmolLM2-135M-Instruct-Q4_1.gguf";

/// How long a test waits for what must come.
const LIMIT: Duration = Duration::from_secs(120);

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !holds().await {
        assert!(Instant::now() < end, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A worker that does not outlive its test.
struct Worker {
    process: Child,
    api: String,
}

impl Worker {
    fn start(folder: &Path) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        assert!(root.join(MODEL).exists(), "{MODEL} is missing: run `make model` first");
        let manifest = folder.join("profile.yaml");
        let text = format!(
            "apiVersion: modelprofile.dev/v1alpha1
kind: ModelProfile
metadata: {{name: demo}}
spec:
  model: {{uri: 'file://./{MODEL}', maxContextTokens: 2048}}
  profiles:
  - {{name: density, weights: {{format: Q4_1}}, kvCache: {{format: BF16}}}}
  placement: {{memoryBudget: 400Mi}}
"
        );
        std::fs::write(&manifest, text).unwrap();
        // Both are held at once, so that they differ.
        let ports = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
        let [port, admin] = ports.map(|listener| listener.local_addr().unwrap().port().to_string());
        let process = Command::new(env!("CARGO_BIN_EXE_modelprofile-worker"))
            .current_dir(root)
            .args(["serve", "--exit-with-parent", "--port", &port, "--admin-port", &admin])
            .arg("--config")
            .arg(&manifest)
            .arg("--cache")
            .arg(Path::new(env!("CARGO_TARGET_TMPDIR")).join("artifacts"))
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { process, api: format!("http://127.0.0.1:{port}") }
    }

    /// What the kernel does with the parent's end of the pipe when the parent ends.
    fn lose_parent(&mut self) {
        drop(self.process.stdin.take().unwrap());
    }

    async fn exit_code(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("the worker's end", async || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.and_then(|status| status.code())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail only for a worker that has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn a_worker_that_loses_its_parent_finishes_its_streams_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut worker = Worker::start(folder.path());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let health = format!("{}/health", worker.api);
    eventually("the start", async || client.get(&health).send().await.is_ok_and(|answer| answer.status() == 200)).await;
    let body = json!({"prompt": "One, two,", "max_tokens": 64, "ignore_eos": true, "stream": true});
    let stream = client.post(format!("{}/v1/completions", worker.api)).json(&body).send().await.unwrap();
    assert_eq!(stream.status(), 200);
    worker.lose_parent();
    let text = stream.text().await.unwrap();
    assert!(text.contains(r#""finish_reason":"length""#) && text.ends_with("data: [DONE]\n\n"), "{text}");
    assert_eq!(worker.exit_code().await, Some(0));
}

#[tokio::test]
async fn a_worker_whose_parent_is_gone_before_it_looks_ends_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut worker = Worker::start(folder.path());
    worker.lose_parent();
    assert_eq!(worker.exit_code().await, Some(0));
}
