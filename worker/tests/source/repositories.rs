//! What is asked for of a repository, by whom, and what the cache answers.

use std::fs;

use modelprofile_worker::source::Progress;
use serde_json::json;

use super::*;

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
fn a_listing_without_sizes_lets_no_huge_file_pass_for_a_small_one() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    checkpoint(&hub, 1000);
    hub.list_names_only();
    let index = "model.safetensors.index.json";
    hub.file(index, b"{}", false);
    hub.fault(index, Fault::Total(1 << 40));
    let error = get(&settings(&hub, cache.path())).unwrap_err();
    assert!(matches!(error, SourceError::Selection(_)), "{error}");
    assert!(error.to_string().contains("model.safetensors.index.json is larger than 128 MiB"), "{error}");
    let ranges: Vec<_> = hub.hits(index).into_iter().map(|hit| hit.range.unwrap()).collect();
    assert_eq!(ranges, ["bytes=0-0"]);
    // Without sizes everything else comes all the same.
    let index_of_one = json!({"weight_map": {"a": WEIGHTS}}).to_string();
    hub.file(index, index_of_one.as_bytes(), false);
    assert!(get(&settings(&hub, cache.path())).unwrap().path.join(WEIGHTS).is_file());
}
