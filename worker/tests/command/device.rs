//! `--device` where there is no GPU: the CPU is taken, and whoever asks for a GPU is told what is missing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

use std::process::Command;

use crate::tiny;

/// `quantize` of the small model with these options, on a machine without a driver: that of one with a driver is hidden where
/// it can be.
fn quantize(folder: &std::path::Path) -> Command {
    let model = folder.join("tiny");
    let model = if model.exists() { model } else { tiny::model(folder, "license: mit\n") };
    let mut command = tiny::worker(&folder.join("cache"));
    command.env_remove("LD_LIBRARY_PATH").env_remove("MODELPROFILE_DEVICE").env("RUST_LOG", "info");
    command.args(["quantize", "--no-measure", "--format", "INT8", "--model"]).arg(model);
    command
}

/// What a command logs.
fn log(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    errors
}

#[test]
fn the_cpu_is_taken_where_there_is_no_gpu_and_the_log_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let log = log(&mut quantize(folder.path()));
    let line = log.lines().find(|line| line.contains("computing on ")).unwrap_or_else(|| panic!("{log}"));
    // A machine with a GPU computes on it.
    if line.contains("computing on the CPU") {
        assert!(line.contains("libcuda.so.1") || line.contains("GPU"), "{line}");
        assert!(!log.contains("WARN"), "{log}");
    }
}

#[test]
fn the_cpu_is_taken_where_that_is_said_and_the_command_line_comes_before_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    for command in [
        quantize(folder.path()).args(["--device", "cpu"]).env("MODELPROFILE_DEVICE", "cuda"),
        quantize(folder.path()).env("MODELPROFILE_DEVICE", "cpu"),
    ] {
        let log = log(command);
        assert!(log.contains("computing on the CPU") && log.contains("--device cpu"), "{log}");
    }
}

#[test]
fn inspect_says_which_device_it_would_be() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny::model(folder.path(), "license: mit\n");
    let text = tiny::run(tiny::worker(&folder.path().join("cache")).arg("inspect").arg(model));
    let line = text.lines().find(|line| line.starts_with("device ")).unwrap_or_else(|| panic!("{text}"));
    assert!(line.contains("the CPU, ") && line.ends_with("(--device cpu)"), "{line}");
}

#[test]
fn a_gpu_that_is_asked_for_and_missing_is_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    // No machine has this many.
    let error = tiny::fail(quantize(folder.path()).args(["--device", "cuda:4095"]));
    assert!(error.contains("cuda:4095 cannot be computed on"), "{error}");
    assert!(["libcuda.so.1", "nvidia-smi", "580"].iter().any(|help| error.contains(help)), "{error}");
    let error = tiny::fail(quantize(folder.path()).args(["--device", "gpu"]));
    assert!(error.contains("gpu is no device: write auto, cpu, cuda or cuda:N"), "{error}");
}
