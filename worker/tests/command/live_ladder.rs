//! The manifest changes while a worker serves: profiles join its ladder and leave it, and requests go on.

use std::{fs, path::PathBuf};

use modelprofile_api::worker::{AwaitedReason, WorkerProfile};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    process::{Streams, Worker},
    tiny,
};

/// Context of the model: a stream of as many tokens takes a while.
const CONTEXT: u32 = 4096;
const QUALITY: &str = "{name: quality, weights: {format: BF16}}";
const MIDDLE: &str = "{name: middle, weights: {format: FP8}}";
const DENSITY: &str = "{name: density, weights: {format: INT8}}";

/// A model, its cache, and the manifest that a worker follows.
struct Setup {
    folder: TempDir,
}

impl Setup {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = tiny::model(folder.path(), "license: mit\n");
        let config: Value = serde_json::from_slice(&fs::read(model.join("config.json")).unwrap()).unwrap();
        let Value::Object(mut config) = config else { panic!("{config}") };
        config.insert("max_position_embeddings".into(), json!(CONTEXT));
        fs::write(model.join("config.json"), Value::Object(config).to_string()).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces the manifest as a whole, as a mounted ConfigMap is replaced.
    fn write(&self, profiles: &[&str], rest: &str) {
        self.write_text(&self.text(profiles, rest));
    }

    fn write_text(&self, text: &str) {
        fs::write(self.path("next.yaml"), text).unwrap();
        fs::rename(self.path("next.yaml"), self.path("profile.yaml")).unwrap();
    }

    fn text(&self, profiles: &[&str], rest: &str) -> String {
        let budget = if rest.contains("memoryBudget") { "" } else { "\n  placement: {memoryBudget: 1Gi}" };
        format!(
            "apiVersion: modelprofile.dev/v1alpha1
kind: ModelProfile
metadata: {{name: tiny}}
spec:
  model: {{uri: 'file://{}'}}{budget}
  quality: {{onFailure: Warn}}
  profiles:
  - {}
  {rest}
",
            self.path("tiny").display(),
            profiles.join("\n  - ")
        )
    }

    /// Prepares these profiles in the cache, as the Job before a ConfigMap does.
    fn prepare(&self, profiles: &[&str]) {
        fs::write(self.path("prepare.yaml"), self.text(profiles, "")).unwrap();
        let mut worker = tiny::worker(&self.path("cache"));
        worker.args(["prepare", "--admin-port", "0", "--config"]).arg(self.path("prepare.yaml"));
        tiny::run(worker.arg("--termination-log").arg(self.path("outcome")));
    }

    fn serve(&self) -> Worker {
        Worker::serve(&self.path("cache"), &self.path("profile.yaml"), |_| {})
    }
}

#[test]
fn a_prepared_profile_joins_and_is_switched_to_while_streams_run_and_leaves_again() {
    let setup = Setup::new();
    setup.prepare(&[QUALITY, MIDDLE, DENSITY]);
    setup.write(&[QUALITY], "");
    let worker = setup.serve();
    assert_eq!(worker.profiles(), ["quality"]);
    let id = worker.process.id();
    let streams = Streams::start(worker.port, CONTEXT - 64);

    setup.write(&[QUALITY, MIDDLE, DENSITY], "switching: {mode: Pinned, pinnedProfile: density}");
    worker.has(&["quality", "middle", "density"]);
    let state = worker.state();
    let known = |profile: &WorkerProfile| {
        profile.quality.is_some()
            && profile.kv_tokens > 0
            && profile.weight_bytes > 0
            && !profile.artifact_key.is_empty()
    };
    assert!(state.profiles.iter().all(known), "{:?}", state.profiles);
    assert_eq!((state.active_profile.as_deref(), state.awaited_profiles), (Some("quality"), vec![]));
    worker.switches("density");
    assert_eq!(worker.metric(), ["density 1", "middle 0", "quality 0"]);

    // The active one leaves, another one moves.
    setup.write(&[MIDDLE, QUALITY], "");
    worker.has(&["middle", "quality", "density"]);
    assert_eq!(worker.state().active_profile.as_deref(), Some("density"));
    worker.switches("quality");
    worker.has(&["middle", "quality"]);
    assert_eq!(worker.metric(), ["middle 0", "quality 1"]);
    assert_eq!(worker.switch("density").0, 404);

    let streams = streams.ended();
    let both = |text: &&String| text.contains("fp_modelprofile_quality") && text.contains("fp_modelprofile_density");
    assert!(streams.iter().any(|text| both(&text)), "a stream went through a switch: {} streams", streams.len());
    let log = worker.log();
    assert!(!log.contains("the artifact was built") && !log.contains("WARN"), "{log}");
    assert_eq!(worker.process.id(), id);
    let (_, models) = Worker::get(worker.port, "/v1/models").unwrap();
    assert!(models.contains(&format!("\"max_model_len\":{CONTEXT}")), "{models}");
}

#[test]
fn a_profile_whose_artifact_is_missing_is_awaited_until_it_is_there() {
    let setup = Setup::new();
    setup.write(&[QUALITY], "");
    let worker = setup.serve();
    setup.write(&[QUALITY, DENSITY], "");
    // Who asks for it need not wait for the next look.
    let (status, text) = worker.switch("density");
    assert_eq!(status, 404, "{text}");
    let lacks = "of density is not in the cache; a worker that serves makes none";
    assert!(text.contains("there are quality") && text.contains(lacks), "{text}");
    let state = worker.state();
    let awaited = &state.awaited_profiles[..];
    assert!(
        matches!(awaited, [one] if one.name == "density" && one.message.contains(lacks) && one.reason == AwaitedReason::ArtifactMissing),
        "{awaited:?}"
    );
    assert_eq!(worker.profiles(), ["quality"]);

    setup.prepare(&[QUALITY, DENSITY]);
    worker.has(&["quality", "density"]);
    worker.eventually("its quality", || worker.state().profiles.iter().all(|profile| profile.quality.is_some()));
    assert_eq!(worker.state().awaited_profiles, []);
    worker.switches("density");
    let log = worker.log();
    assert_eq!(log.matches("it was added to the manifest and is not served yet").count(), 1, "told once:\n{log}");
    assert!(!log.contains("int8"), "the worker made nothing of it:\n{log}");
}

#[test]
fn a_profile_that_was_just_added_can_be_asked_for_at_once() {
    let setup = Setup::new();
    setup.prepare(&[QUALITY, DENSITY]);
    setup.write(&[QUALITY], "");
    let worker = setup.serve();
    for ladder in [&[QUALITY, DENSITY][..], &[QUALITY], &[QUALITY, DENSITY]] {
        worker.switches("quality");
        worker.eventually("the ladder before", || worker.profiles().len() != ladder.len());
        setup.write(ladder, "");
        match ladder.len() {
            1 => worker.has(&["quality"]),
            _ => worker.switches("density"),
        }
    }
}

#[test]
fn any_other_edit_is_ignored_with_one_warning_until_it_is_taken_back() {
    let setup = Setup::new();
    setup.prepare(&[QUALITY, DENSITY]);
    setup.write(&[QUALITY], "");
    let worker = setup.serve();
    let warnings =
        |text: &str| worker.log().lines().filter(|line| line.contains("WARN") && line.contains(text)).count();
    let other = DENSITY.replace("INT8", "FP8");
    let ignored = [
        (setup.text(&[QUALITY, DENSITY], "placement: {memoryBudget: 2Gi}"), "spec.placement takes another start"),
        (setup.text(&[&QUALITY.replace("BF16", "FP8"), DENSITY], ""), "other weights under the name quality"),
        (setup.text(&[QUALITY, &DENSITY.replace("weights", "wheights")], ""), "spec.profiles[1]"),
        (String::new(), "is not followed"),
    ];
    for (text, why) in &ignored {
        let before = warnings(why);
        setup.write_text(text);
        worker.eventually(why, || warnings(why) > before);
    }
    // Some more looks.
    for _ in 0..4 {
        assert_eq!(worker.switch("density").0, 404);
    }
    assert_eq!(worker.profiles(), ["quality"]);
    assert_eq!(warnings("is not followed"), ignored.len(), "{}", worker.log());
    fs::remove_file(setup.path("profile.yaml")).unwrap();
    assert_eq!(worker.switch("density").0, 404);
    assert_eq!(worker.profiles(), ["quality"]);
    setup.write(&[QUALITY, DENSITY], "");
    worker.has(&["quality", "density"]);
    // Nor does a profile get other weights under the name that it has by now.
    setup.write(&[QUALITY, &other], "");
    worker.eventually("another warning", || warnings("other weights under the name density") == 1);
    worker.switches("density");
}

#[test]
fn a_profile_without_room_for_requests_as_long_as_they_may_be_asks_for_another_start() {
    let setup = Setup::new();
    setup.prepare(&[QUALITY, DENSITY]);
    setup.write(&[DENSITY], "");
    let memory = setup.serve().state().memory;
    // 1024 tokens beside the weights of density, in blocks of two layers, two heads and 16 elements of two bytes.
    let budget = memory.workspace_bytes + memory.weight_bytes + 1024 * 2 * 2 * 2 * 16 * 2;
    let budget = format!("placement: {{memoryBudget: '{budget}'}}");
    setup.write(&[DENSITY], &budget);
    let worker = setup.serve();
    setup.write(&[QUALITY, DENSITY], &budget);
    let (status, text) = worker.switch("quality");
    assert_eq!(status, 404, "{text}");
    let awaited = worker.state().awaited_profiles;
    assert!(awaited.len() == 1 && awaited[0].reason == AwaitedReason::NeedsRestart, "{awaited:?}");
    assert!(awaited[0].message.contains("requests may have 1024 since the worker started"), "{awaited:?}");
    drop(worker);
    assert_eq!(setup.serve().profiles(), ["quality", "density"], "a worker that starts takes it");
}
