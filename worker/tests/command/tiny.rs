//! A checkpoint so small that a command runs on it in a moment.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

/// A checkpoint of the engine's tests.
pub(crate) fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("engine/tests/data").join(name)
}

/// A tokenizer of 128 words, to which all others are unknown.
pub(crate) fn tokenizer() -> String {
    let word = |id: usize| if id == 0 { "<unk>".to_owned() } else { format!("w{id}") };
    let vocab: serde_json::Map<String, Value> = (0..128).map(|id| (word(id), json!(id))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    })
    .to_string()
}

/// A byte-level tokenizer of GPT-2's form, which a GGUF file can hold: the 128 bytes of ASCII and no merges. Other bytes have
/// no token.
pub(crate) fn byte_tokenizer() -> String {
    // GPT-2 writes printable bytes as themselves and the others, in their order, as the characters from U+0100 on.
    let others = (0..=b' ').chain([127]).map(|byte| (byte, char::from_u32(0x100 + u32::from(byte.min(33))).unwrap()));
    let bytes = (b'!'..=b'~').map(|byte| (byte, char::from(byte))).chain(others);
    let vocab: serde_json::Map<String, Value> = bytes.map(|(byte, name)| (name.to_string(), json!(byte))).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []}
    })
    .to_string()
}

/// Names and bytes of a small model's files, without card.
pub(crate) fn files() -> Vec<(String, Vec<u8>)> {
    let name = |entry: &fs::DirEntry| entry.file_name().into_string().unwrap();
    let entries = fs::read_dir(data("llama3-tiny")).unwrap().map(|entry| entry.unwrap());
    let read = entries.map(|entry| (name(&entry), fs::read(entry.path()).unwrap()));
    read.chain([("tokenizer.json".to_owned(), tokenizer().into_bytes())]).collect()
}

/// The small model in a directory, with a card of this front matter.
pub(crate) fn model(directory: &Path, front: &str) -> PathBuf {
    let model = directory.join("tiny");
    fs::create_dir(&model).unwrap();
    for (name, bytes) in files() {
        fs::write(model.join(name), bytes).unwrap();
    }
    fs::write(model.join("README.md"), format!("---\n{front}---\n# The original\n")).unwrap();
    model
}

/// The worker's command, without the environment of whoever runs the tests, and on the CPU unless a test says otherwise.
pub(crate) fn worker(cache: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_modelprofile-worker"));
    command.env("MODELPROFILE_CACHE", cache).env_remove("HF_TOKEN").env_remove("HF_HUB_OFFLINE");
    command.env("MODELPROFILE_DEVICE", "cpu");
    command
}

/// Runs a command that must end well; what it printed.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Runs a command that must fail; its errors.
pub(crate) fn fail(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{}{errors}", String::from_utf8_lossy(&output.stdout));
    errors
}

/// The artifacts of a cache by their format, sorted.
pub(crate) fn artifacts(cache: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(cache.join("artifacts")).unwrap().map(|entry| entry.unwrap().path());
    let format = |path: &Path| {
        let manifest: Value = serde_json::from_slice(&fs::read(path.join("manifest.json")).unwrap()).unwrap();
        manifest["format"].as_str().unwrap().to_owned()
    };
    let mut found: Vec<_> = entries.filter(|path| path.is_dir()).map(|path| (format(&path), path)).collect();
    found.sort();
    found
}

/// Serves the model at `model` with these profiles (the items of `spec.profiles`, a line each), until it logs `until`; the
/// log.
pub(crate) fn serve(cache: &Path, model: &Path, profiles: &[&str], until: &str) -> String {
    let manifest = format!(
        "apiVersion: modelprofile.dev/v1alpha1
kind: ModelProfile
metadata: {{name: tiny}}
spec:
  model: {{uri: 'file://{}'}}
  placement: {{memoryBudget: 1Gi}}
  quality: {{onFailure: Warn}}
  profiles:
  - {}
",
        model.display(),
        profiles.join("\n  - ")
    );
    let path = cache.with_extension("yaml");
    fs::write(&path, manifest).unwrap();
    serve_until(worker(cache).args(["serve", "--port", "0", "--admin-port", "0", "--config"]).arg(&path), until)
}

/// Starts a worker and ends it once it logs this text; what it logged until then.
pub(crate) fn serve_until(command: &mut Command, until: &str) -> String {
    let mut child = command
        .env("RUST_LOG", "info")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = String::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines().map(|line| line.unwrap()) {
        log += &line;
        log.push('\n');
        if line.contains(until) {
            break;
        }
    }
    // It may have ended itself.
    let _ = child.kill();
    child.wait().unwrap();
    assert!(log.contains(until), "{until} was never logged:\n{log}");
    log
}
