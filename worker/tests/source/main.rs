//! Fetching models from a server that speaks the hub's protocol: what is asked for, in which order, by whom, and what
//! happens when it fails.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

#[path = "../hub/mod.rs"]
mod hub;
mod licences;
mod repositories;
mod transfers;

use std::{path::Path, time::Duration};

use hub::{COMMIT, Fault, Hub, ID};
use modelprofile_api::ModelUri;
use modelprofile_engine::checkpoint::{Value, testing::GgufWriter};
use modelprofile_worker::{
    licence::{self, Licence},
    source::{Endpoint, Located, Retry, Settings, SourceError, Timing, fetch},
};

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

/// A URL on this machine, which `ModelUri::parse` does not let through from a manifest.
fn web(hub: &Hub, name: &str) -> ModelUri {
    ModelUri::Https(format!("{}/web/{name}", hub.url))
}

fn gguf(licence: &str, len: usize) -> Vec<u8> {
    let mut file = GgufWriter::default().entry("general.license", Value::Text(licence.to_owned())).build();
    file.extend(bytes(len));
    file
}
