//! The worker's command on a GPU, real or emulated.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

mod model;
#[allow(dead_code, reason = "each test binary uses its part")]
#[path = "../command/process.rs"]
mod process;
#[allow(dead_code, reason = "each test binary uses its part")]
#[path = "../command/tiny.rs"]
mod tiny;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use serde_json::json;
use tempfile::TempDir;

use process::{Streams, Worker};

/// Devices of the emulated driver.
const DEVICES: &str = "2";

/// A manifest whose ladder is an FP8 rung and an INT4 rung, which so many GPUs share. Their quality is measured on `text`.
fn manifest(model: &Path, text: &Path, gpus: usize) -> String {
    format!(
        "apiVersion: modelprofile.dev/v1alpha1
kind: ModelProfile
metadata: {{name: tiny}}
spec:
  model: {{uri: 'file://{}'}}
  placement: {{memoryBudget: 256Mi}}
  quality: {{onFailure: Warn, dataset: {{uri: 'file://{}', contextTokens: 64}}}}
  profiles:
  - {{name: quality, weights: {{format: FP8}}, kvCache: {{format: FP8E4M3}}, tensorParallel: {gpus}}}
  - name: density
    weights: {{format: INT4, groupSize: 64, zeroPoint: Integer}}
    kvCache: {{format: FP8E4M3}}
    tensorParallel: {gpus}
",
        model.display(),
        text.display()
    )
}

/// Text of a greedy answer, and the logarithm of the probability of its first token. That is what the model computes; the text
/// behind it is what it does with it.
fn ask(worker: &Worker) -> (String, f64) {
    let body = json!({"prompt": "w5 w7 w9 w11", "max_tokens": 6, "temperature": 0, "ignore_eos": true, "logprobs": 5});
    let answer = worker.complete(&body);
    let choice = &answer["choices"][0];
    let first = choice["logprobs"]["token_logprobs"][0].as_f64().unwrap();
    (choice["text"].as_str().unwrap().to_owned(), first)
}

/// What two devices say of the same weights: rounding to FP8 in another order of sums, no more.
fn assert_alike(what: &str, one: &(String, f64), other: &(String, f64)) {
    assert_within(0.05, what, one, other);
    assert_eq!(one.0, other.0, "{what}");
}

/// The first token is the same, and its probability but for a budget.
fn assert_within(budget: f64, what: &str, one: &(String, f64), other: &(String, f64)) {
    assert!((one.1 - other.1).abs() < budget, "{what}: {one:?} and {other:?}");
    let first = |text: &str| text.split('w').nth(1).map(str::to_owned);
    assert!(first(&one.0).is_some() && first(&one.0) == first(&other.0), "{what}: {one:?} and {other:?}");
}

/// Kernels are compiled once for all tests and runs: under the cache of each test lies the same folder of images.
fn share_kernels(cache: &Path) {
    let images = Path::new(env!("CARGO_TARGET_TMPDIR")).join("worker-kernels");
    fs::create_dir_all(&images).unwrap();
    fs::create_dir_all(cache).unwrap();
    std::os::unix::fs::symlink(images, cache.join("kernels")).unwrap();
}

/// A model that a GPU's kernels take, and a cache.
struct Setup {
    folder: TempDir,
}

impl Setup {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        model::write(&folder.path().join("model"));
        // Three windows, where the worker's own text would have fifty: they go through an emulated device.
        let text: Vec<String> = (0..200).map(|word| format!("w{}", word % 100)).collect();
        fs::write(folder.path().join("text.txt"), text.join(" ")).unwrap();
        share_kernels(&folder.path().join("cache"));
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn manifest(&self, gpus: usize) -> String {
        manifest(&self.path("model"), &self.path("text.txt"), gpus)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = tiny::worker(&self.path("cache"));
        command
            .env_remove("MODELPROFILE_DEVICE")
            .env("CUDASIM_DEVICES", DEVICES)
            .env("RUST_LOG", "info")
            .args(arguments);
        command
    }

    /// The log of a command on the model that must end well.
    fn log(&self, command: &mut Command) -> String {
        let output = command.arg("--model").arg(self.path("model")).output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{}{log}", String::from_utf8_lossy(&output.stdout));
        log
    }

    fn serve(&self, device: &str, gpus: usize) -> Worker {
        let path = self.path("profile.yaml");
        fs::write(&path, self.manifest(gpus)).unwrap();
        Worker::serve(&self.path("cache"), &path, |command| {
            // As the GPU computes groups: W4A16.
            command.env("CUDASIM_DEVICES", DEVICES).args([
                "--device",
                device,
                "--activations",
                "bf16",
                "--max-batched-tokens",
                "64",
            ]);
        })
    }
}

#[test]
fn a_ladder_is_quantized_measured_served_and_switched_on_a_gpu_and_says_what_the_cpu_says() {
    let setup = Setup::new();
    let gpu = setup.serve("cuda", 1);
    let log = gpu.log();
    assert!(log.contains("(cuda:0): --device cuda:0"), "{log}");
    let state = gpu.state();
    assert!(state.profiles.iter().all(|profile| profile.quality.is_some() && profile.kv_tokens > 0), "{state:?}");
    assert!(state.memory.budget_bytes <= 256 << 20, "{:?}", state.memory);
    let (_, metrics) = Worker::get(gpu.admin, "/metrics").unwrap();
    let device = metrics.lines().find(|line| line.starts_with("modelprofile_device_info{")).unwrap();
    assert!(!device.contains("CPU") && device.ends_with(" 1"), "{device}");

    let fp8 = ask(&gpu);
    let streams = [48, 32, 24].map(|tokens| Streams::start(gpu.port, tokens));
    gpu.switches("density");
    let int4 = ask(&gpu);
    gpu.switches("quality");
    gpu.switches("density");
    gpu.switches("quality");
    let streams: Vec<String> = streams.into_iter().flat_map(Streams::ended).collect();
    assert!(streams.len() >= 3);
    // A step recorded for one profile's weights is not replayed on the other's.
    assert_eq!(ask(&gpu).0, fp8.0);
    drop(gpu);

    let cpu = setup.serve("cpu", 1);
    assert_alike("FP8 on the GPU and on the CPU", &fp8, &ask(&cpu));
    cpu.switches("density");
    assert_alike("INT4 on the GPU and on the CPU", &int4, &ask(&cpu));
}

#[test]
fn two_gpus_share_a_model_and_say_what_one_says() {
    let setup = Setup::new();
    let mut second = setup.command(&["inspect", "--device", "cuda:1"]);
    if !second.arg(setup.path("model")).output().unwrap().status.success() {
        // A machine with one GPU cannot show this; the emulated driver has two.
        return;
    }
    let answers = |gpus: usize| {
        let worker = setup.serve("auto", gpus);
        let (log, fp8) = (worker.log(), ask(&worker));
        let stream = Streams::start(worker.port, 40);
        worker.switches("density");
        assert!(!stream.ended().is_empty());
        (log, fp8, ask(&worker))
    };
    let (log, fp8, int4) = answers(2);
    assert!(log.contains("(cuda:0) and ") && log.contains("(cuda:1): the first 2 usable GPUs"), "{log}");
    let (_, fp8_of_one, int4_of_one) = answers(1);
    assert_alike("INT4 on two GPUs and on one", &int4, &int4_of_one);
    // Each GPU has a scale for its own part of a token's activations, so that they round to other FP8 values.
    assert_within(0.3, "FP8 on two GPUs and on one", &fp8, &fp8_of_one);

    fs::write(setup.path("shared.yaml"), setup.manifest(2)).unwrap();
    let mut command = setup.command(&["serve", "--port", "0", "--admin-port", "0", "--device", "cpu", "--config"]);
    let error = tiny::fail(command.arg(setup.path("shared.yaml")));
    assert!(error.contains("tensorParallel is 2") && error.contains("--device cpu"), "{error}");
    let mut command = setup.command(&["serve", "--port", "0", "--admin-port", "0", "--config"]);
    let error = tiny::fail(command.arg(setup.path("shared.yaml")).env("CUDASIM_DEVICES", "1"));
    assert!(error.contains("1 usable GPUs, where 2 are wanted"), "{error}");
}

#[test]
fn a_calibrated_quantization_runs_on_the_gpu() {
    let setup = Setup::new();
    let mut command =
        setup.command(&["quantize", "--device", "cuda:0", "--format", "FP8:static", "--calibration-tokens", "512"]);
    let log = setup.log(command.env("CUDASIM_MEMORY", (1u64 << 30).to_string()));
    assert!(log.contains("(cuda:0)"), "{log}");
    let made = tiny::artifacts(&setup.path("cache"));
    assert_eq!(made.len(), 1, "{made:?}");
    // Measured on the GPU too, with the activations that it multiplies groups with.
    let files = fs::read_dir(&made[0].1).unwrap().map(|entry| entry.unwrap().path());
    let quality = files.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("quality"));
    let quality: Vec<String> = quality.map(|path| fs::read_to_string(path).unwrap()).collect();
    assert!(quality.len() == 1 && quality[0].contains("BF16 activations"), "{quality:?}");
}

/// Compiled kernels by name, with when they were written.
fn images(folder: &Path) -> BTreeMap<String, SystemTime> {
    let files = fs::read_dir(folder).unwrap().map(Result::unwrap);
    files.map(|file| (file.file_name().into_string().unwrap(), file.metadata().unwrap().modified().unwrap())).collect()
}

#[test]
fn kernels_are_compiled_beforehand_once_and_then_not_by_the_worker() {
    let setup = Setup::new();
    // Kept between runs: all of them take the compiler most of a minute.
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shipped-kernels");
    let ship = || {
        let mut command = setup.command(&["kernels", "--capability", "9.0", "--out"]);
        // It needs no GPU.
        let output = command.arg(&out).env("CUDASIM_DEVICES", "0").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let said = ship();
    assert!(said.contains("units of kernels for 9.0 in "), "{said}");
    let missing: Vec<String> = images(&out).into_keys().filter(|name| name.starts_with("rotary-")).collect();
    for name in &missing {
        fs::remove_file(out.join(name)).unwrap();
    }
    let kept = images(&out);
    assert!(!missing.is_empty() && !kept.is_empty(), "{missing:?} {kept:?}");
    assert_eq!(ship(), said);
    let now = images(&out);
    assert!(missing.iter().any(|name| now.contains_key(name)), "what is missing is compiled: {now:?}");
    assert!(kept.iter().all(|(name, written)| now.get(name) == Some(written)), "and nothing else: {kept:?} {now:?}");

    // A cache of its own: nothing was compiled into it.
    let cache = setup.path("other-cache");
    let mut command = tiny::worker(&cache);
    command.env_remove("MODELPROFILE_DEVICE").env("CUDASIM_DEVICES", DEVICES).env("RUST_LOG", "info");
    command.env("MODELPROFILE_KERNELS", &out).args(["quantize", "--device", "cuda:0", "--no-measure"]);
    let log = setup.log(command.args(["--format", "FP8:static", "--calibration-tokens", "128"]));
    assert!(log.contains("(cuda:0)"), "{log}");
    assert!(!cache.join("kernels").exists(), "kernels were compiled again");

    let error = tiny::fail(&mut setup.command(&["kernels", "--capability", "sm_90", "--out", "unused"]));
    assert!(error.contains("sm_90 is not a compute capability"), "{error}");
}

#[test]
fn the_gpu_is_taken_by_itself_unless_the_cpu_is_asked_for() {
    let setup = Setup::new();
    let quantize = ["quantize", "--no-measure", "--format", "INT8"];
    let log = setup.log(&mut setup.command(&quantize));
    assert!(log.contains("(cuda:0): the first usable GPU"), "{log}");
    let log = setup.log(setup.command(&quantize).args(["--device", "cpu"]));
    assert!(log.contains("computing on the CPU"), "{log}");
    let log = setup.log(setup.command(&quantize).env("MODELPROFILE_DEVICE", "cuda"));
    assert!(log.contains("(cuda:0): --device cuda:0"), "{log}");
}

#[test]
fn a_gpu_that_is_not_there_or_does_not_compute_what_is_asked_is_a_sentence() {
    let setup = Setup::new();
    let model = setup.path("model");
    let fail = |arguments: &[&str]| {
        let mut command = setup.command(&["quantize", "--format", "INT8", "--model", model.to_str().unwrap()]);
        tiny::fail(command.args(arguments))
    };
    let error = fail(&["--device", "cuda:4095"]);
    assert!(error.contains("cuda:4095 cannot be computed on") && error.contains("nvidia-smi -L"), "{error}");
    let error = fail(&["--device", "cuda", "--activations", "int8"]);
    assert!(error.contains("--activations int8 is computed on the CPU alone"), "{error}");
}

#[test]
fn without_a_driver_or_a_gpu_the_cpu_is_taken() {
    let setup = Setup::new();
    let quantize = ["quantize", "--no-measure", "--format", "INT8"];
    let log = setup.log(setup.command(&quantize).env("CUDASIM_DEVICES", "0"));
    assert!(log.contains("computing on the CPU"), "{log}");
    let log = setup.log(setup.command(&quantize).env_remove("LD_LIBRARY_PATH"));
    // A machine with a driver of its own cannot show this.
    assert!(log.contains("computing on the CPU") && log.contains("libcuda.so.1") || log.contains("cuda:0"), "{log}");
}
