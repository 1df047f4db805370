//! `cache.keepOriginal: false`: the weights that were fetched go once everything is made of them, and come again when
//! something needs them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use modelprofile_api::ModelUri;
use modelprofile_engine::checkpoint::{Checkpoint, SourceDtype, testing::tiny_llama};
use modelprofile_worker::source::{Endpoint, Located, Settings, SourceError, fetch, prune};
use tempfile::TempDir;

use crate::hub::{COMMIT, Hub, ID};
use crate::tiny::{self, data, tokenizer};

const WEIGHTS: &str = "model.safetensors";

/// A repository with a checkpoint of the engine's tests.
fn repository(hub: &Hub, name: &str) {
    hub.file("README.md", b"---\nlicense: apache-2.0\n---\n", false);
    hub.file("tokenizer.json", tokenizer().as_bytes(), false);
    for entry in fs::read_dir(data(name)).unwrap().map(|entry| entry.unwrap()) {
        let file = entry.file_name().into_string().unwrap();
        hub.file(&file, &fs::read(entry.path()).unwrap(), file.ends_with(".safetensors"));
    }
}

fn settings(hub: &Hub, cache: &Path, without_weights: bool) -> Settings {
    let endpoint = Endpoint { url: hub.url.clone(), token: None, offline: false };
    Settings { endpoint, without_weights, ..Settings::new(cache, Path::new("/nowhere")) }
}

fn get(settings: &Settings, uri: &str) -> Result<Located, SourceError> {
    fetch(&ModelUri::parse(uri).unwrap(), None, settings, &mut |_| Ok(()), &mut |_| {})
}

fn repository_uri() -> String {
    format!("hf://{ID}")
}

fn pruned(located: &Located) -> Checkpoint {
    Checkpoint::open_pruned(&located.path, &located.pruned.as_ref().unwrap().remains).unwrap()
}

/// Weight files below a directory, links that lead nowhere included.
fn weight_files(cache: &Path) -> usize {
    let entries = fs::read_dir(cache.join("hub/models--acme--tiny/snapshots").join(COMMIT)).unwrap();
    entries.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|end| end == "safetensors")).count()
}

#[test]
fn a_repository_is_opened_without_its_weights_and_fetched_again_for_who_wants_them() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    repository(&hub, "llama3-tiny");
    let (whole, without) = (settings(&hub, cache.path(), false), settings(&hub, cache.path(), true));
    let located = get(&without, &repository_uri()).unwrap();
    assert_eq!(located.pruned, None);
    let checkpoint = Checkpoint::open(&located.path).unwrap();
    let size = fs::metadata(located.path.join(WEIGHTS)).unwrap().len();
    let blobs = |cache: &Path| fs::read_dir(cache.join("hub/models--acme--tiny/blobs")).unwrap().count();
    let before = blobs(cache.path());
    // Whoever else has it open keeps it.
    let other = get(&whole, &repository_uri()).unwrap();
    assert_eq!(prune(located, Some(&checkpoint.remains().unwrap())).unwrap(), 0);
    // The record is there, the files too: as after a kill between them. They are still one whole model.
    let located = get(&without, &repository_uri()).unwrap();
    assert_eq!(located, other);
    drop(other);
    assert_eq!(prune(located, Some(&checkpoint.remains().unwrap())).unwrap(), size);
    assert_eq!((blobs(cache.path()), weight_files(cache.path())), (before - 1, 0));

    hub.forget_hits();
    let left = get(&without, &repository_uri()).unwrap();
    assert_eq!(hub.hits("").len(), 1, "only what the branch means is asked");
    let record = left.pruned.clone().unwrap();
    assert_eq!((record.commit.as_deref(), &record.licences[..]), (Some(COMMIT), &["apache-2.0".to_owned()][..]));
    let [file] = &record.files[..] else { panic!("one file: {record:?}") };
    assert_eq!((file.path.as_str(), file.bytes, file.sha256.len()), (WEIGHTS, size, 64));
    assert_eq!(pruned(&left).revision(), checkpoint.revision());
    assert_eq!(prune(left, None).unwrap(), 0);

    let again = get(&whole, &repository_uri()).unwrap();
    assert_eq!(Checkpoint::open(&again.path).unwrap().revision(), checkpoint.revision());
}

#[test]
fn a_kill_in_the_middle_leaves_the_rest_to_the_next_start() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    repository(&hub, "mistral-tiny");
    let without = settings(&hub, cache.path(), true);
    let located = get(&without, &repository_uri()).unwrap();
    let remains = Checkpoint::open(&located.path).unwrap().remains().unwrap();
    let second = get(&without, &repository_uri()).unwrap();
    assert_eq!(prune(located, Some(&remains)).unwrap(), 0, "the second holds it");
    // One blob of three is gone, its link not yet.
    fs::remove_file(second.path.join("model-00001-of-00003.safetensors").canonicalize().unwrap()).unwrap();
    drop(second);
    let left = get(&without, &repository_uri()).unwrap();
    assert_eq!(pruned(&left).revision(), remains.revision);
    assert!(prune(left, None).unwrap() > 0);
    assert_eq!(weight_files(cache.path()), 0);
    // A record that cannot be read counts as none.
    let record = cache.path().join(format!("hub/models--acme--tiny/pruned/{COMMIT}.json"));
    fs::write(record, "{").unwrap();
    assert_eq!(get(&without, &repository_uri()).unwrap().pruned, None);
}

#[test]
fn the_head_of_a_gguf_file_stays_from_a_hub_and_from_the_web() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    let bytes = tiny_llama(SourceDtype::F16).build();
    hub.file("q/tiny.gguf", &bytes, true);
    hub.web("tiny.gguf", &bytes, "v1");
    let without = settings(&hub, cache.path(), true);
    for uri in [
        format!("https://huggingface.co/{ID}/resolve/main/q/tiny.gguf"),
        format!("{}/web/tiny.gguf", hub.url.replace("http://", "https://")),
    ] {
        // The test's server has no TLS.
        let uri = match uri.strip_prefix("https://127") {
            Some(rest) => ModelUri::Https(format!("http://127{rest}")),
            None => ModelUri::parse(&uri).unwrap(),
        };
        let get = || fetch(&uri, None, &without, &mut |_| Ok(()), &mut |_| {}).unwrap();
        let located = get();
        let whole = Checkpoint::open(&located.path).unwrap();
        let (path, licence) = (located.path.clone(), located.licence.clone());
        assert_eq!(prune(located, Some(&whole.remains().unwrap())).unwrap(), bytes.len() as u64);
        assert!(!path.exists() && !path.is_symlink());
        let left = get();
        assert!(fs::metadata(&left.path).unwrap().len() < bytes.len() as u64);
        assert_eq!((pruned(&left).revision(), &left.licence), (whole.revision(), &licence));
    }
}

#[test]
fn files_of_the_user_are_never_touched() {
    let (hub, cache, own) = (Hub::start(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = own.path().join("tiny.gguf");
    fs::write(&path, tiny_llama(SourceDtype::F16).build()).unwrap();
    let without = settings(&hub, cache.path(), true);
    let remains = Checkpoint::open(&path).unwrap().remains().unwrap();
    let located = fetch(&ModelUri::File(path.clone()), None, &without, &mut |_| Ok(()), &mut |_| {}).unwrap();
    assert_eq!(prune(located, Some(&remains)).unwrap(), 0);
    assert!(path.is_file());
    // Nor what somebody put into the cache as a link to elsewhere.
    repository(&hub, "llama3-tiny");
    let located = get(&without, &repository_uri()).unwrap();
    let (link, mine) = (located.path.join(WEIGHTS), own.path().join(WEIGHTS));
    fs::copy(&link, &mine).unwrap();
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&mine, &link).unwrap();
    let remains = Checkpoint::open(&located.path).unwrap().remains().unwrap();
    assert_eq!(prune(located, Some(&remains)).unwrap(), 0);
    assert!(mine.is_file());
}

/// A manifest, a cache and a hub.
struct Setup {
    hub: Hub,
    folder: TempDir,
}

impl Setup {
    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    /// Starts the worker and ends it once it has logged `until`, or has ended itself; its log.
    fn serve(&self, offline: bool, until: &str) -> String {
        let manifest = format!(
            "apiVersion: modelprofile.dev/v1alpha1
kind: ModelProfile
metadata: {{name: tiny}}
spec:
  model: {{uri: 'hf://{ID}'}}
  placement: {{memoryBudget: 1Gi}}
  quality: {{onFailure: Warn}}
  cache: {{keepOriginal: false}}
  profiles:
  - {{name: quality, weights: {{format: INT8}}, kvCache: {{format: FP8E4M3}}}}
"
        );
        let path = self.folder.path().join("profile.yaml");
        fs::write(&path, manifest).unwrap();
        let mut command = tiny::worker(&self.cache());
        command.args(["serve", "--port", "0", "--admin-port", "0", "--config"]).arg(&path);
        command.env("HF_ENDPOINT", &self.hub.url).env("HF_HUB_OFFLINE", if offline { "1" } else { "0" });
        tiny::serve_until(&mut command, until)
    }

    fn artifacts(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.cache().join("artifacts")).unwrap();
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
    }
}

#[test]
fn a_worker_prunes_starts_offline_and_fetches_again_what_it_needs() {
    const PRUNED: &str = "the original's weights were removed";
    let setup = Setup { hub: Hub::start(), folder: tempfile::tempdir().unwrap() };
    repository(&setup.hub, "llama3-tiny");
    let log = setup.serve(false, PRUNED);
    assert!(log.contains("the BF16 reference was pruned"), "{log}");
    assert_eq!(weight_files(&setup.cache()), 0);
    let [artifact] = &setup.artifacts()[..] else { panic!("the profile's artifact alone: {:?}", setup.artifacts()) };
    assert!(artifact.join("quality.json").is_file() && artifact.join("README.md").is_file());

    let log = setup.serve(true, "ready");
    assert!(!log.contains("again") && !log.contains("was built"), "{log}");

    fs::write(artifact.join("packed-cpu.bin"), "damaged").unwrap();
    let log = setup.serve(true, "error: ");
    let error = log.lines().last().unwrap();
    assert!(error.contains("pruned (spec.cache.keepOriginal is false)") && error.contains("HF_HUB_OFFLINE"), "{log}");
    setup.hub.forget_hits();
    let log = setup.serve(false, PRUNED);
    assert!(log.contains("fetching the original again") && log.contains("the artifact was built"), "{log}");
    assert!(!setup.hub.hits(WEIGHTS).is_empty());
    assert_eq!((weight_files(&setup.cache()), setup.artifacts().len()), (0, 1));
    setup.serve(true, "ready");
}
