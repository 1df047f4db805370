//! `prepare`, and the worker that serves from what it made.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use modelprofile_api::worker::{PrepareReason, PrepareReport, WorkerPhase, WorkerProfile, WorkerState};
use rstest::rstest;
use serde_json::json;
use tempfile::TempDir;

use crate::hub::{Fault, Hub, ID};
use crate::signer::{AUDIENCE, Signer};
use crate::tiny;

const WEIGHTS: &str = "model.safetensors";
const BUILT: &str = "the artifact was built";
/// How long a test waits for what must come.
const LIMIT: Duration = Duration::from_secs(120);

/// A hub with a small model, and a cache.
struct Setup {
    hub: Hub,
    folder: TempDir,
}

impl Setup {
    fn new() -> Self {
        let setup = Self { hub: Hub::start(), folder: tempfile::tempdir().unwrap() };
        setup.hub.file("README.md", b"---\nlicense: apache-2.0\n---\n", false);
        for (name, bytes) in tiny::files() {
            setup.hub.file(&name, &bytes, name.ends_with(".safetensors"));
        }
        setup.manifest(&format!("hf://{ID}"), "{onFailure: Warn}", true);
        setup
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn manifest(&self, uri: &str, quality: &str, keep_original: bool) {
        let text = format!(
            "apiVersion: modelprofile.dev/v1alpha1
kind: ModelProfile
metadata: {{name: tiny}}
spec:
  model: {{uri: '{uri}'}}
  placement: {{memoryBudget: 1Gi}}
  quality: {quality}
  cache: {{keepOriginal: {keep_original}}}
  profiles:
  - {{name: quality, weights: {{format: FP8}}, kvCache: {{format: FP8E4M3}}}}
  - {{name: density, weights: {{format: INT8}}, kvCache: {{format: FP8E4M3}}}}
"
        );
        fs::write(self.path("profile.yaml"), text).unwrap();
    }

    /// A command on the manifest, as a pod gets it.
    fn command(&self, command: &str, admin_port: u16) -> Command {
        fs::write(self.path("admin-keys"), Signer::new(1).line()).unwrap();
        let mut worker = tiny::worker(&self.path("cache"));
        worker
            .arg(command)
            .arg("--config")
            .arg(self.path("profile.yaml"))
            .args(["--admin-audience", AUDIENCE, "--admin-port", &admin_port.to_string(), "--admin-keys"])
            .arg(self.path("admin-keys"))
            .env("HF_ENDPOINT", &self.hub.url)
            .env("RUST_LOG", "info")
            .env_remove("MODELPROFILE_ADMIN_TOKEN")
            .env_remove("MODELPROFILE_API_KEYS")
            .stdin(Stdio::null());
        worker
    }

    fn prepare(&self) -> Output {
        self.prepare_at(0).output().unwrap()
    }

    fn prepare_at(&self, admin_port: u16) -> Command {
        let _ = fs::remove_file(self.path("outcome"));
        let mut command = self.command("prepare", admin_port);
        command.arg("--termination-log").arg(self.path("outcome")).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// What it left.
    fn outcome(&self) -> PrepareReport {
        serde_json::from_slice(&fs::read(self.path("outcome")).unwrap()).unwrap()
    }

    /// Prepares well; the log and the ladder.
    fn prepared(&self) -> (String, Vec<WorkerProfile>) {
        let output = self.prepare();
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{log}");
        let PrepareReport::Prepared { profiles } = self.outcome() else { panic!("{:?}", self.outcome()) };
        (log, profiles)
    }
}

#[rstest]
fn a_worker_that_starts_after_prepare_makes_nothing_and_fetches_nothing(#[values(true, false)] keep_original: bool) {
    let setup = Setup::new();
    setup.manifest(&format!("hf://{ID}"), "{onFailure: Warn}", keep_original);
    let (log, profiles) = setup.prepared();
    assert!(log.matches(BUILT).count() >= 2, "{log}");
    let names: Vec<&str> = profiles.iter().map(|profile| profile.name.as_str()).collect();
    assert_eq!(names, ["quality", "density"]);
    for profile in &profiles {
        assert_eq!((profile.prepared_percent, profile.activity.as_str()), (100.0, ""), "{profile:?}");
        assert!(profile.quality.is_some() && profile.weight_bytes > 0, "{profile:?}");
        assert!(setup.path("cache/artifacts").join(&profile.artifact_key).is_dir(), "{profile:?}");
    }
    let reference = tiny::artifacts(&setup.path("cache")).iter().any(|(format, _)| format == "bf16");
    assert_eq!((reference, log.contains("the original's weights were removed")), (keep_original, !keep_original));

    // Again there is nothing to do, and it says the same.
    setup.hub.forget_hits();
    let (log, again) = setup.prepared();
    assert!(!log.contains(BUILT) && !log.contains("fetching"), "{log}");
    assert_eq!(again, profiles);
    assert!(setup.hub.hits(WEIGHTS).is_empty());

    let mut serve = setup.command("serve", 0);
    serve.args(["--port", "0"]).env("HF_HUB_OFFLINE", "1");
    let log = tiny::serve_until(&mut serve, " ready");
    assert!(!log.contains(BUILT) && !log.contains("fetching"), "{log}");
    assert!(setup.hub.hits(WEIGHTS).is_empty());
}

#[test]
fn an_end_with_an_error_leaves_its_kind_and_what_to_do() {
    let setup = Setup::new();
    let failed = |what: &str| {
        let output = setup.prepare();
        let log = String::from_utf8(output.stderr).unwrap();
        let PrepareReport::Failed { reason, message } = setup.outcome() else {
            panic!("{what}: {:?}", setup.outcome())
        };
        // What may end otherwise the next time is not settled: a file that is not there may come.
        let settled = matches!(what, "licence" | "manifest");
        assert_eq!(output.status.code(), Some(if settled { PrepareReport::SETTLED } else { 1 }), "{what}: {log}");
        assert!(log.contains(&format!("error: {message}\n")), "{what}: {message}\n{log}");
        (reason, message)
    };
    setup.hub.card(json!({"license": "llama3.3"}));
    let (reason, message) = failed("licence");
    assert_eq!(reason, PrepareReason::LicenceDiffers, "{message}");
    assert!(message.contains("license: {accepted: llama3.3}"), "{message}");
    assert!(setup.hub.hits(WEIGHTS).is_empty());
    setup.hub.card(json!({"license": "apache-2.0"}));

    setup.manifest("hf://acme/absent", "{}", true);
    assert_eq!(failed("repository").0, PrepareReason::DownloadFailed);

    setup.manifest("hf://acme/tiny", "{dataset: {uri: 'file:///absent/text'}}", true);
    let (reason, message) = failed("dataset");
    assert_eq!(reason, PrepareReason::Invalid, "{message}");

    setup.manifest("hf://acme/tiny", "{onFailure: Never}", true);
    let (reason, message) = failed("manifest");
    assert_eq!(reason, PrepareReason::Invalid, "{message}");
    assert!(message.contains("spec.quality.onFailure"), "{message}");

    setup.manifest("hf://acme/tiny", "{onFailure: Warn}", true);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let output = setup.prepare_at(taken.local_addr().unwrap().port()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(matches!(setup.outcome(), PrepareReport::Failed { reason: PrepareReason::Invalid, .. }));

    fs::remove_dir_all(setup.path("cache/artifacts")).unwrap();
    fs::write(setup.path("cache/artifacts"), "a file where a directory belongs").unwrap();
    assert_eq!(failed("cache").0, PrepareReason::QuantizeFailed);
}

#[test]
fn for_an_engine_that_loads_files_as_they_are_they_are_brought_and_nothing_more() {
    let setup = Setup::new();
    let text = fs::read_to_string(setup.path("profile.yaml")).unwrap();
    let placement = "  placement: {memoryBudget: 1Gi}\n";
    let other = "  engine: {type: VLLM}\n  switching: {strategy: Surge}\n";
    fs::write(setup.path("profile.yaml"), text.replace(placement, other)).unwrap();
    let output = setup.prepare();
    assert_eq!(output.status.code(), Some(PrepareReport::SETTLED));
    let PrepareReport::Failed { reason, message } = setup.outcome() else { panic!("{:?}", setup.outcome()) };
    assert_eq!(reason, PrepareReason::Invalid);
    assert!(message.contains("--fetch-only"), "{message}");

    let output = setup.prepare_at(0).arg("--fetch-only").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let PrepareReport::Prepared { profiles } = setup.outcome() else { panic!("{:?}", setup.outcome()) };
    let names: Vec<&str> = profiles.iter().map(|profile| profile.name.as_str()).collect();
    assert_eq!((names, profiles[0].weight_bytes), (vec!["quality", "density"], 0));
    assert!(!setup.path("cache/artifacts").exists());
    let snapshots = setup.path("cache/hub").join(format!("models--{}", ID.replace('/', "--"))).join("snapshots");
    let commit = fs::read_dir(snapshots).unwrap().next().unwrap().unwrap().path();
    let fetched = fs::read(commit.join(WEIGHTS)).unwrap();
    assert_eq!(Some(fetched), tiny::files().into_iter().find(|(name, _)| name == WEIGHTS).map(|(_, bytes)| bytes));
}

/// A process that does not outlive its test.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn exit_code(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("the end", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.and_then(|status| status.code())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for a process that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < end, "{what} did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Ports that are free and differ.
fn ports() -> [u16; 2] {
    let held = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
    held.map(|listener| listener.local_addr().unwrap().port())
}

/// Status and text of an answer; `None` while nobody listens.
fn get(port: u16, path: &str, token: &str) -> Option<(u16, String)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = client.get(format!("http://127.0.0.1:{port}{path}")).bearer_auth(token).send().await.ok()?;
        Some((answer.status().as_u16(), answer.text().await.unwrap()))
    })
}

fn state(port: u16) -> Option<WorkerState> {
    let (status, text) = get(port, "/admin/v1/state", &Signer::new(1).token(AUDIENCE, 60))?;
    assert_eq!(status, 200, "{text}");
    Some(serde_json::from_str(&text).unwrap())
}

#[test]
fn a_preparation_tells_how_far_it_is_and_ends_when_it_is_told_to() {
    let setup = Setup::new();
    setup.hub.fault(WEIGHTS, Fault::Stall(1000));
    let [port, _] = ports();
    let mut running = Running::start(&mut setup.prepare_at(port));
    eventually("the download", || {
        let state = state(port).unwrap_or_default();
        let told = state.profiles.iter().any(|profile| profile.activity.starts_with("downloading"));
        // Else the fault is still to come, and the preparation at the end waits until the client gives it up.
        told && setup.hub.hits(WEIGHTS).iter().any(|hit| hit.sent > 0)
    });
    let state = state(port).unwrap();
    assert_eq!((state.phase, state.profiles.len()), (WorkerPhase::Preparing, 2));
    assert_eq!(get(port, "/admin/v1/state", "secret").unwrap().0, 401);
    assert_eq!((get(port, "/livez", "").unwrap().0, get(port, "/readyz", "").unwrap().0), (200, 503));

    let told = Instant::now();
    assert!(Command::new("kill").args(["-TERM", &running.0.id().to_string()]).status().unwrap().success());
    assert_eq!(running.exit_code(), Some(1));
    assert!(told.elapsed() < Duration::from_secs(10), "{:?}", told.elapsed());
    assert!(!setup.path("outcome").exists(), "nothing is wrong with what it was to do");
    setup.prepared();
}

#[test]
fn a_worker_starts_in_the_profile_that_its_file_names_and_lets_in_whom_its_files_name() {
    let setup = Setup::new();
    let keys = setup.path("api-keys");
    fs::create_dir(&keys).unwrap();
    fs::write(keys.join("alice"), "a-key\n").unwrap();
    fs::write(setup.path("start-profile"), "density\n").unwrap();
    let [port, admin] = ports();
    let serve = |start: &Path| {
        let mut command = setup.command("serve", admin);
        command.args(["--port", &port.to_string(), "--start-profile-file"]).arg(start);
        command.arg("--api-keys-dir").arg(&keys);
        Running::start(&mut command)
    };
    let started = || {
        eventually("the start", || get(admin, "/readyz", "").is_some_and(|(status, _)| status == 200));
        state(admin).unwrap()
    };
    {
        let _running = serve(&setup.path("start-profile"));
        let state = started();
        assert_eq!(state.active_profile.as_deref(), Some("density"));
        let models = |key: &str| get(port, "/v1/models", key).unwrap().0;
        assert_eq!((models("a-key"), models("another"), models("")), (200, 401, 401));
    }
    fs::write(setup.path("start-profile"), "gone").unwrap();
    let _running = serve(&setup.path("start-profile"));
    assert_eq!(started().active_profile.as_deref(), Some("quality"));
}
