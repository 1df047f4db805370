//! What is asked about before anything of the weights is transferred.

use std::fs;

use modelprofile_engine::checkpoint::{SourceDtype, testing::tiny_llama};
use serde_json::json;

use super::*;

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
