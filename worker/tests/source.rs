//! Fetching models from a server that speaks the hub's protocol: what is asked for, in which order, by whom, and what
//! happens when it fails.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

mod hub;

use std::{fs, path::Path, time::Duration};

use hub::{COMMIT, Fault, Hub, ID};
use modelprofile_api::ModelUri;
use modelprofile_engine::checkpoint::{
    SourceDtype, Value,
    testing::{GgufWriter, tiny_llama},
};
use modelprofile_worker::{
    licence::{self, Licence},
    source::{Endpoint, Located, Progress, Retry, Settings, SourceError, Timing, fetch},
};
use serde_json::json;

/// Bytes of a range in these tests.
const CHUNK: u64 = 64 << 10;
const WEIGHTS: &str = "model.safetensors";

/// Bytes that are all different from their neighbours, so that a piece in the wrong place is noticed.
fn bytes(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// A repository of a checkpoint with some files that nobody needs.
fn checkpoint(hub: &Hub, weights: usize) {
    hub.file("README.md", b"---\nlicense: apache-2.0\n---\n# Tiny", false);
    hub.file("config.json", b"{}", false);
    hub.file("tokenizer.json", &bytes(3000), true);
    hub.file("pytorch_model.bin", &bytes(100), true);
    hub.file("original/consolidated.pth", &bytes(100), true);
    hub.file(WEIGHTS, &bytes(weights), true);
}

fn settings(hub: &Hub, cache: &Path) -> Settings {
    Settings {
        cache: cache.to_owned(),
        volumes: cache.join("volumes"),
        endpoint: Endpoint { url: hub.url.clone(), token: None, offline: false },
        retry: Retry {
            attempts: 3,
            first: Duration::from_millis(5),
            most: Duration::from_millis(20),
            longest_wait: Duration::from_secs(3),
        },
        timing: Timing {
            connect: Duration::from_secs(5),
            answer: Duration::from_secs(5),
            stall: Duration::from_millis(400),
        },
        chunk: CHUNK,
        without_weights: false,
        description: false,
    }
}

fn uri(text: &str) -> ModelUri {
    ModelUri::parse(text).unwrap()
}

/// Fetches with the guard, as the commands do.
fn get_as(
    settings: &Settings,
    uri: &ModelUri,
    revision: Option<&str>,
    accepted: Option<&str>,
) -> Result<Located, SourceError> {
    fetch(uri, revision, settings, &mut |licence: &Licence| licence::check(licence, accepted), &mut |_| {})
}

fn get(settings: &Settings) -> Result<Located, SourceError> {
    get_as(settings, &uri(&format!("hf://{ID}")), None, None)
}

#[test]
fn a_checkpoint_arrives_whole_with_only_what_is_needed() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    checkpoint(&hub, 1_000_000);
    let mut seen = Vec::new();
    let settings = settings(&hub, cache.path());
    let located = fetch(&uri(&format!("hf://{ID}")), None, &settings, &mut |_| Ok(()), &mut |progress: Progress| {
        seen.push(progress);
    })
    .unwrap();
    assert_eq!(located.path, cache.path().join("hub/models--acme--tiny/snapshots").join(COMMIT));
    assert_eq!((located.commit.as_deref(), located.licence.declared()), (Some(COMMIT), Some("apache-2.0")));
    assert_eq!(fs::read(located.path.join(WEIGHTS)).unwrap(), bytes(1_000_000));
    assert_eq!(fs::read(located.path.join("tokenizer.json")).unwrap(), bytes(3000));
    let mut names: Vec<_> = fs::read_dir(&located.path).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["README.md", "config.json", WEIGHTS, "tokenizer.json"]);
    let last = seen.last().unwrap();
    assert_eq!(last.done, last.total);
    assert!(last.total > 1_003_000, "{last:?}");
    // Sixteen ranges, eight connections at most, and more than one.
    assert_eq!(hub.hits(WEIGHTS).iter().filter(|hit| hit.cdn).count(), 16);
    assert!((2..=8).contains(&hub.most_active()), "{}", hub.most_active());
    // No partial file stays behind.
    let blobs = fs::read_dir(cache.path().join("hub/models--acme--tiny/blobs")).unwrap();
    assert_eq!(blobs.count(), 4);
}

#[test]
fn a_licence_that_was_not_accepted_costs_no_byte_of_the_weights() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    checkpoint(&hub, 200_000);
    hub.card(json!({"license": "llama3.3"}));
    let settings = settings(&hub, cache.path());
    let error = get(&settings).unwrap_err();
    assert!(matches!(error, SourceError::Licence(_)), "{error}");
    assert!(error.to_string().contains("write license: {accepted: llama3.3}"), "{error}");
    assert!(hub.hits(WEIGHTS).is_empty());
    // The card in the repository said Apache-2.0: what both say applies.
    let both = Some("llama3.3, apache-2.0");
    assert!(get_as(&settings, &uri(&format!("hf://{ID}")), None, both).is_ok());
    // From the cache it is held against what was accepted as well.
    assert!(matches!(get(&settings).unwrap_err(), SourceError::Licence(_)));
}

#[test]
fn the_licences_of_a_merges_bases_are_looked_up() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    checkpoint(&hub, 1000);
    hub.card(json!({"license": "apache-2.0", "base_model": ["lab/free", "lab/bound", "lab/gone"]}));
    hub.card_of("lab/free", json!({"license": "mit"}));
    hub.card_of("lab/bound", json!({"license": "cc-by-nc-4.0"}));
    let settings = settings(&hub, cache.path());
    let error = get(&settings).unwrap_err().to_string();
    assert!(error.contains("cc-by-nc-4.0 (Creative Commons non-commercial, by its base lab/bound)"), "{error}");
    assert!(hub.hits(WEIGHTS).is_empty());
    let located = get_as(&settings, &uri(&format!("hf://{ID}")), None, Some("cc-by-nc-4.0")).unwrap();
    assert_eq!(located.licence.strictest().id, "cc-by-nc-4.0");
    // Without network the bases are remembered.
    hub.forget_hits();
    let pinned = get_as(&settings, &uri(&format!("hf://{ID}")), Some(COMMIT), None).unwrap_err();
    assert!(matches!(pinned, SourceError::Licence(_)), "{pinned}");
    assert!(hub.hits("").is_empty());
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    checkpoint(&hub, 100_000);
    hub.gate("hf_secret");
    let mut settings = settings(&hub, cache.path());
    settings.endpoint.token = Some("hf_secret".into());
    get(&settings).unwrap();
    let hits = hub.hits("");
    assert!(hits.iter().any(|hit| hit.cdn) && hits.iter().any(|hit| !hit.cdn));
    for hit in hits {
        let expected = (!hit.cdn).then(|| "Bearer hf_secret".to_owned());
        assert_eq!(hit.token, expected, "{hit:?}");
    }
}

#[test]
fn gated_and_missing_repositories_say_what_to_do() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    checkpoint(&hub, 1000);
    let mut settings = settings(&hub, cache.path());
    let error = |settings: &Settings, id: &str, revision| {
        get_as(settings, &uri(&format!("hf://{id}")), revision, None).unwrap_err().to_string()
    };
    let missing = error(&settings, "acme/none", Some("v2"));
    assert!(missing.starts_with("acme/none at v2: ") && missing.contains("does not exist"), "{missing}");
    let revision = error(&settings, ID, Some("v9"));
    assert!(revision.starts_with("acme/tiny at v9: ") && revision.contains("not that revision"), "{revision}");
    hub.gate("");
    let gated = error(&settings, ID, None);
    assert!(gated.contains("/acme/tiny is gated") && gated.contains("accept its terms"), "{gated}");
    assert!(gated.contains("HF_TOKEN") && gated.contains("no token was sent"), "{gated}");
    settings.endpoint.token = Some("hf_other".into());
    let gated = error(&settings, ID, None);
    assert!(gated.contains("a token was sent, but has no access yet"), "{gated}");
    assert!(!gated.contains("hf_other"));
}

#[test]
fn a_cut_connection_goes_on_where_it_was_cut() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    checkpoint(&hub, 60_000);
    hub.fault(WEIGHTS, Fault::Cut(40_000));
    hub.fault(WEIGHTS, Fault::Stall(10_000));
    let located = get(&settings(&hub, cache.path())).unwrap();
    assert_eq!(fs::read(located.path.join(WEIGHTS)).unwrap(), bytes(60_000));
    let ranges: Vec<_> =
        hub.hits(WEIGHTS).into_iter().filter(|hit| hit.cdn).map(|hit| hit.range.unwrap_or_default()).collect();
    assert_eq!(ranges, ["", "bytes=40000-59999", "bytes=50000-59999"]);
}

#[test]
fn a_later_start_asks_only_for_the_rest() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    checkpoint(&hub, 4 * CHUNK as usize);
    for _ in 0..100 {
        hub.fault(WEIGHTS, Fault::Status(503, None));
    }
    let settings = settings(&hub, cache.path());
    let error = get(&settings).unwrap_err();
    assert!(matches!(error, SourceError::Unreachable { attempts: 3, .. }), "{error}");
    assert!(error.to_string().contains("503") && error.to_string().contains("goes on from there"), "{error}");

    // A second hub with the same content, whose first answer breaks off for good.
    let hub = Hub::start();
    checkpoint(&hub, 60_000);
    let cache = tempfile::tempdir().unwrap();
    hub.fault(WEIGHTS, Fault::Cut(40_000));
    for _ in 0..2 {
        hub.fault(WEIGHTS, Fault::Status(500, None));
    }
    let settings = Settings { endpoint: Endpoint { url: hub.url.clone(), ..settings.endpoint }, ..settings };
    let settings = Settings { cache: cache.path().to_owned(), ..settings };
    get(&settings).unwrap_err();
    hub.forget_hits();
    let located = get(&settings).unwrap();
    assert_eq!(fs::read(located.path.join(WEIGHTS)).unwrap(), bytes(60_000));
    let ranges: Vec<_> = hub.hits(WEIGHTS).into_iter().filter(|hit| hit.cdn).map(|hit| hit.range.unwrap()).collect();
    assert_eq!(ranges, ["bytes=40000-59999"]);
    // What was complete is not asked for again.
    assert!(hub.hits("tokenizer.json").is_empty());
}

#[test]
fn busy_servers_are_asked_again_when_they_say_so() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    checkpoint(&hub, 1000);
    hub.fault("config.json", Fault::Status(429, Some(1)));
    hub.fault(WEIGHTS, Fault::Status(500, None));
    hub.fault(WEIGHTS, Fault::Slow(Duration::from_millis(50)));
    let start = std::time::Instant::now();
    get(&settings(&hub, cache.path())).unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
    // One that asks for too much patience is given up at once, with its wish named.
    let cache = tempfile::tempdir().unwrap();
    hub.fault("config.json", Fault::Status(429, Some(3600)));
    let error = get(&settings(&hub, cache.path())).unwrap_err().to_string();
    assert!(error.contains("429") && error.contains("asks to wait 3600 s"), "{error}");
}

#[test]
fn a_wrong_checksum_is_an_error_and_the_file_is_not_used() {
    for (path, wrong) in [(WEIGHTS, "0".repeat(64)), ("config.json", "1".repeat(40))] {
        let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
        checkpoint(&hub, 1000);
        hub.announce(path, &wrong);
        let error = get(&settings(&hub, cache.path())).unwrap_err();
        assert!(matches!(error, SourceError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains(path) && error.to_string().contains(&wrong), "{error}");
        let root = cache.path().join("hub/models--acme--tiny");
        assert!(!root.join("snapshots").join(COMMIT).join(path).exists());
        assert!(!root.join("complete").exists());
        let wrong_blobs = fs::read_dir(root.join("blobs"))
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with(&wrong));
        assert_eq!(wrong_blobs.count(), 0);
    }
}

#[test]
fn old_bytes_that_are_wrong_cost_one_more_transfer_and_no_error() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    checkpoint(&hub, 60_000);
    hub.fault(WEIGHTS, Fault::Cut(40_000));
    for _ in 0..2 {
        hub.fault(WEIGHTS, Fault::Status(500, None));
    }
    let settings = settings(&hub, cache.path());
    get(&settings).unwrap_err();
    let blobs = cache.path().join("hub/models--acme--tiny/blobs");
    let partial =
        fs::read_dir(&blobs).unwrap().map(|e| e.unwrap().path()).find(|p| p.to_string_lossy().ends_with(".incomplete"));
    let partial = partial.unwrap();
    let mut damaged = fs::read(&partial).unwrap();
    damaged[123] ^= 1;
    fs::write(&partial, damaged).unwrap();
    let located = get(&settings).unwrap();
    assert_eq!(fs::read(located.path.join(WEIGHTS)).unwrap(), bytes(60_000));
}

#[test]
fn a_model_that_is_there_starts_without_network() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    checkpoint(&hub, 1000);
    let settings = settings(&hub, cache.path());
    let first = get(&settings).unwrap();
    // A pinned commit asks nobody.
    hub.forget_hits();
    let id = uri(&format!("hf://{ID}"));
    assert_eq!(get_as(&settings, &id, Some(COMMIT), None).unwrap(), first);
    assert!(hub.hits("").is_empty());
    // A branch asks what it is, and fetches nothing when it is the same.
    assert_eq!(get(&settings).unwrap(), first);
    assert_eq!(hub.hits("").len(), 1);
    // A branch that moved shares the blobs that did not change.
    let moved = "f".repeat(40);
    hub.move_to(&moved);
    hub.file("config.json", b"{\"new\": 1}", false);
    hub.forget_hits();
    let second = get(&settings).unwrap();
    assert_eq!(second.commit.as_deref(), Some(moved.as_str()));
    assert!(hub.hits(WEIGHTS).is_empty() && hub.hits("config.json").len() == 1);
    // Without the hub the branch is what it was last; what was never fetched is an error.
    drop(hub);
    assert_eq!(get(&settings).unwrap(), second);
    let error = get_as(&settings, &id, Some("v2"), None).unwrap_err();
    assert!(matches!(error, SourceError::Unreachable { .. }), "{error}");
    let offline = Settings { endpoint: Endpoint { offline: true, ..settings.endpoint.clone() }, ..settings };
    assert_eq!(get(&offline).unwrap(), second);
    // A file that went missing makes the snapshot incomplete again.
    fs::remove_file(second.path.join(WEIGHTS).canonicalize().unwrap()).unwrap();
    assert!(get(&offline).unwrap_err().to_string().contains("HF_HUB_OFFLINE is set"));
}

#[test]
fn one_gguf_file_of_a_repository_is_named_by_its_address() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    let file = |licence: &str| GgufWriter::default().entry("general.license", Value::Text(licence.to_owned())).build();
    hub.file("README.md", b"---\nlicense: apache-2.0\n---\n", false);
    hub.file("a-Q4_0.gguf", &file("apache-2.0"), true);
    hub.file("q/a-Q8_0.gguf", &file("gemma"), true);
    let settings = settings(&hub, cache.path());
    let error = get(&settings).unwrap_err().to_string();
    assert!(error.contains("has 2 GGUF files") && error.contains("a-Q4_0.gguf"), "{error}");
    let address = |file: &str| uri(&format!("https://huggingface.co/{ID}/resolve/main/{file}"));
    let located = get_as(&settings, &address("a-Q4_0.gguf"), None, None).unwrap();
    assert!(located.path.ends_with("a-Q4_0.gguf") && located.path.is_file());
    // A file that names another licence than its card is asked about before more than its head is read.
    let error = get_as(&settings, &address("q/a-Q8_0.gguf"), None, None).unwrap_err();
    assert!(error.to_string().contains("gemma"), "{error}");
    let ranges: Vec<_> = hub.hits("a-Q8_0.gguf").into_iter().map(|hit| hit.range.unwrap()).collect();
    assert_eq!(ranges, ["bytes=0-65535"; 2]);
    assert!(get_as(&settings, &address("q/a-Q8_0.gguf"), None, Some("gemma")).is_ok());
}

/// A URL on this machine, which `ModelUri::parse` does not let through from a manifest.
fn web(hub: &Hub, name: &str) -> ModelUri {
    ModelUri::Https(format!("{}/web/{name}", hub.url))
}

fn gguf(licence: &str, len: usize) -> Vec<u8> {
    let mut file = GgufWriter::default().entry("general.license", Value::Text(licence.to_owned())).build();
    file.extend(bytes(len));
    file
}

#[test]
fn a_file_of_a_web_server_shows_its_licence_before_the_rest_is_asked_for() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    let content = gguf("gemma", 300_000);
    hub.web("a.gguf", &content, "v1");
    let settings = settings(&hub, cache.path());
    let error = get_as(&settings, &web(&hub, "a.gguf"), None, None).unwrap_err();
    assert!(error.to_string().contains("Gemma Terms of Use"), "{error}");
    let hits = hub.hits("a.gguf");
    assert_eq!((hits.len(), hits[0].sent), (1, 64 << 10));
    let located = get_as(&settings, &web(&hub, "a.gguf"), None, Some("gemma")).unwrap();
    assert_eq!(fs::read(&located.path).unwrap(), content);
    // It is in the cache then.
    hub.forget_hits();
    assert_eq!(get_as(&settings, &web(&hub, "a.gguf"), None, Some("gemma")).unwrap(), located);
    assert!(hub.hits("").is_empty());
    let error = get_as(&settings, &ModelUri::Https(format!("{}/web/a.bin", hub.url)), None, None).unwrap_err();
    assert!(error.to_string().contains("does not name a .gguf file"), "{error}");
}

#[test]
fn a_file_that_changes_between_two_tries_starts_over() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    let (old, new) = (gguf("mit", 50_000), gguf("mit", 51_000));
    hub.web("a.gguf", &old, "v1");
    // The head and the probe go through; the transfer breaks off.
    hub.fault("a.gguf", Fault::NoRange);
    hub.fault("a.gguf", Fault::Slow(Duration::ZERO));
    hub.fault("a.gguf", Fault::Cut(20_000));
    for _ in 0..2 {
        hub.fault("a.gguf", Fault::Status(503, None));
    }
    let settings = settings(&hub, cache.path());
    get_as(&settings, &web(&hub, "a.gguf"), None, None).unwrap_err();
    hub.web("a.gguf", &new, "v2");
    let located = get_as(&settings, &web(&hub, "a.gguf"), None, None).unwrap();
    assert_eq!(fs::read(&located.path).unwrap(), new);

    // And within one start: the second request meets the new file.
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    hub.web("a.gguf", &old, "v1");
    for fault in [
        Fault::Slow(Duration::ZERO),
        Fault::Slow(Duration::ZERO),
        Fault::Cut(20_000),
        Fault::Slow(Duration::from_millis(300)),
    ] {
        hub.fault("a.gguf", fault);
    }
    let settings = Settings { cache: cache.path().to_owned(), ..settings };
    let target = web(&hub, "a.gguf");
    let located = std::thread::scope(|scope| {
        let fetching = scope.spawn(|| get_as(&settings, &target, None, None).unwrap());
        while hub.hits("a.gguf").len() < 3 || hub.hits("a.gguf")[2].sent == 0 {
            std::thread::yield_now();
        }
        hub.web("a.gguf", &new, "v2");
        fetching.join().unwrap()
    });
    assert_eq!(fs::read(&located.path).unwrap(), new);
}

#[test]
fn a_server_without_ranges_sends_the_whole_file() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    checkpoint(&hub, 300_000);
    for _ in 0..20 {
        hub.fault(WEIGHTS, Fault::NoRange);
    }
    let located = get(&settings(&hub, cache.path())).unwrap();
    assert_eq!(fs::read(located.path.join(WEIGHTS)).unwrap(), bytes(300_000));
}

#[test]
fn two_fetches_at_once_transfer_the_model_once() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    checkpoint(&hub, 100_000);
    let settings = settings(&hub, cache.path());
    std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| get(&settings).unwrap()));
        let [first, second] = both.map(|fetch| fetch.join().unwrap());
        assert_eq!(first, second);
    });
    let sent: usize = hub.hits(WEIGHTS).iter().map(|hit| hit.sent).sum();
    assert_eq!(sent, 100_000);
}

#[test]
fn plain_http_leads_nowhere_but_to_this_machine() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    hub.web("a.gguf", &gguf("mit", 10), "v1");
    hub.fault("a.gguf", Fault::Redirect("http://192.0.2.1/a.gguf".into()));
    // The endpoint is the public one, so that nothing allows plain HTTP in general.
    let mut settings = settings(&hub, cache.path());
    settings.endpoint.url = "https://hub.invalid".into();
    let error = get_as(&settings, &web(&hub, "a.gguf"), None, None).unwrap_err().to_string();
    assert!(error.contains("http://192.0.2.1/a.gguf: http:// has no protection"), "{error}");
    assert!(get_as(&settings, &web(&hub, "a.gguf"), None, None).is_ok());
}

#[test]
fn a_shard_index_decides_which_weights_are_fetched() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    checkpoint(&hub, 1000);
    let index =
        json!({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}});
    hub.file("model.safetensors.index.json", index.to_string().as_bytes(), false);
    for shard in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "consolidated.safetensors"] {
        hub.file(shard, &bytes(2000 + shard.len()), true);
    }
    let located = get(&settings(&hub, cache.path())).unwrap();
    assert!(located.path.join("model-00002-of-00002.safetensors").is_file());
    assert!(hub.hits("consolidated.safetensors").is_empty() && hub.hits("/model.safetensors").is_empty());
}

#[test]
fn quantize_takes_an_address_and_the_artifact_gets_a_card() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    hub.card(json!({"license": "llama3.3"}));
    hub.file("tiny.gguf", &tiny_llama(SourceDtype::F16).build(), true);
    let quantize = |accepted: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_modelprofile-worker"))
            .args(["quantize", "--no-measure", "--format", "FP8", "--model"])
            .arg(format!("https://huggingface.co/{ID}/resolve/main/tiny.gguf"))
            .arg("--cache")
            .arg(cache.path())
            .args(accepted)
            .env("HF_ENDPOINT", &hub.url)
            .env_remove("HF_TOKEN")
            .env_remove("HF_HUB_OFFLINE")
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let (done, errors) = quantize(&[]);
    assert!(!done && errors.contains("--accept-licence"), "{errors}");
    let heads = hub.hits("tiny.gguf").into_iter().filter(|hit| hit.range.as_deref() != Some("bytes=0-65535"));
    assert_eq!(heads.count(), 0);
    assert!(!cache.path().join("artifacts").exists());
    let (done, errors) = quantize(&["--accept-licence", "llama3.3"]);
    assert!(done, "{errors}");
    let artifacts = fs::read_dir(cache.path().join("artifacts")).unwrap().map(|entry| entry.unwrap().path());
    let card = artifacts.filter(|path| path.is_dir()).map(|path| fs::read_to_string(path.join("README.md")).unwrap());
    let [card] = &card.collect::<Vec<_>>()[..] else { panic!("one artifact was expected") };
    for part in
        ["license: llama3.3\n", "base_model: acme/tiny\n", "base_model_relation: quantized\n", "| format | fp8", COMMIT]
    {
        assert!(card.to_lowercase().contains(part), "{part} is missing:\n{card}");
    }
    // The file itself says Apache-2.0, which needs no acceptance and is repeated.
    assert!(card.contains("**apache-2.0**") && card.contains("Built with Llama"), "{card}");
}
