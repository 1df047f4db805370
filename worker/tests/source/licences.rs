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
fn the_licences_of_a_merges_bases_are_looked_up_and_what_nobody_tells_is_unknown() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    checkpoint(&hub, 1000);
    hub.card(json!({"license": "apache-2.0", "base_model": ["lab/free", "lab/bound", "lab/gone"]}));
    hub.card_of("lab/free", json!({"license": "mit"}));
    hub.card_of("lab/bound", json!({"license": ["mit", "cc-by-nc-4.0"]}));
    let settings = settings(&hub, cache.path());
    let error = get(&settings).unwrap_err().to_string();
    assert!(error.contains("cc-by-nc-4.0 (Creative Commons non-commercial, by its base lab/bound)"), "{error}");
    assert!(error.contains("unknown (the licence of its base lab/gone could not be learned)"), "{error}");
    assert!(error.contains("license: {accepted: \"cc-by-nc-4.0, unknown\"}"), "{error}");
    let id = uri(&format!("hf://{ID}"));
    assert!(get_as(&settings, &id, None, Some("cc-by-nc-4.0")).is_err());
    assert!(hub.hits(WEIGHTS).is_empty());
    let both = Some("cc-by-nc-4.0, unknown");
    let located = get_as(&settings, &id, None, both).unwrap();
    assert_eq!(located.licence.strictest().id, "cc-by-nc-4.0");
    // Without network the bases are remembered, and so is that one was not found.
    hub.forget_hits();
    let pinned = get_as(&settings, &id, Some(COMMIT), Some("cc-by-nc-4.0")).unwrap_err();
    assert!(matches!(pinned, SourceError::Licence(_)), "{pinned}");
    assert_eq!(get_as(&settings, &id, Some(COMMIT), both).unwrap(), located);
    assert!(hub.hits("").is_empty());
}

#[test]
fn a_base_among_many_is_not_lost() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    checkpoint(&hub, 1000);
    let bases: Vec<String> = (10..30).map(|i| format!("lab/m{i}")).collect();
    for base in &bases {
        hub.card_of(base, json!({"license": if base == "lab/m29" { "cc-by-nc-4.0" } else { "mit" }}));
    }
    hub.card(json!({"license": "mit", "base_model": bases}));
    let error = get(&settings(&hub, cache.path())).unwrap_err().to_string();
    assert!(error.contains("more than 16 bases") && error.contains("license: {accepted: unknown}"), "{error}");
    assert!(hub.hits("lab/m25/revision/main").len() == 1 && hub.hits("lab/m26/revision/main").is_empty());
    assert!(hub.hits(WEIGHTS).is_empty());
}

#[test]
fn a_fine_tune_on_a_disk_says_how_to_accept_what_it_was_made_of() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    let settings = settings(&hub, cache.path());
    let model = cache.path().join("model");
    fs::create_dir(&model).unwrap();
    let card = |base: &str| {
        fs::write(model.join("README.md"), format!("---\nlicense: apache-2.0\nbase_model: {base}\n---\n")).unwrap();
    };
    let get = |accepted| get_as(&settings, &ModelUri::File(model.clone()), None, accepted);
    card("org/x");
    let error = get(None).unwrap_err().to_string();
    assert!(error.contains("base org/x") && error.contains("--accept-licence unknown"), "{error}");
    assert!(get(Some("unknown")).is_ok());
    // Who accepted the model's own licence learns that another one is missing.
    let error = get(Some("apache-2.0")).unwrap_err().to_string();
    assert!(error.contains("base org/x") && error.contains("write \"unknown\" there"), "{error}");
    // A name that everybody knows needs nobody to be asked.
    card("Qwen/Qwen2.5-0.5B");
    assert!(get(None).is_ok());
    assert!(hub.hits("").is_empty());
}

/// A GGUF file that names its base as converters do.
fn made_of(base: &str) -> Vec<u8> {
    let text = |text: &str| Value::Text(text.to_owned());
    GgufWriter::default()
        .entry("general.license", text("apache-2.0"))
        .entry("general.base_model.0.repo_url", text(&format!("https://huggingface.co/{base}")))
        .build()
}

#[test]
fn the_bases_that_a_gguf_file_names_are_looked_up_before_it_is_fetched() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    hub.card_of("lab/free", json!({"license": "mit"}));
    hub.card_of("lab/bound", json!({"license": "cc-by-nc-4.0"}));
    hub.file("free.gguf", &made_of("lab/free"), true);
    hub.file("bound.gguf", &made_of("lab/bound"), true);
    let settings = settings(&hub, cache.path());
    let address = |file: &str| uri(&format!("https://huggingface.co/{ID}/resolve/main/{file}"));
    assert!(get_as(&settings, &address("free.gguf"), None, None).is_ok());
    let error = get_as(&settings, &address("bound.gguf"), None, None).unwrap_err().to_string();
    assert!(error.contains("by its base lab/bound"), "{error}");
    assert!(hub.hits("bound.gguf").iter().all(|hit| hit.range.as_deref() == Some("bytes=0-65535")));
    // Elsewhere than on the hub the name has to do.
    for (base, accepted) in [("meta-llama/Llama-3.1-8B", "llama3.1"), ("lab/free", "unknown")] {
        let name = format!("{accepted}.gguf");
        hub.web(&name, &made_of(base), "v1");
        let error = get_as(&settings, &web(&hub, &name), None, None).unwrap_err().to_string();
        assert!(error.contains(&format!("accepted: {accepted}}}")), "{error}");
        assert_eq!(hub.hits(&name).len(), 1);
        assert!(get_as(&settings, &web(&hub, &name), None, Some(accepted)).is_ok());
    }
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
