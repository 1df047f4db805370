//! `quantize` as a process that is killed, raced, fed a damaged cache, and kept from disk and memory: what stands under
//! a key is always whole.

use std::{
    fs,
    os::unix::{fs::MetadataExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use modelprofile_engine::artifact::{Artifact, store};
use rstest::rstest;
use tempfile::TempDir;

/// Four bits in groups write the least, and are computed rather than taken over from the file.
const FORMAT: &str = "INT4:g64";
const BUILT: &str = "the artifact was built";
const DAMAGED: &str = "the artifact is damaged and is rebuilt";
/// Bytes of the model's largest tensor, the embedding, as FP32. The whole model takes almost five times as much.
const LARGEST_TENSOR: u64 = 49_152 * 576 * 4;
/// Far more than any machine needs: a limit for what would never come.
const PATIENCE: Duration = Duration::from_secs(300);

/// A cache directory of one test.
struct Cache(TempDir);

impl Cache {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// The worker under limits of the shell: `ulimit -d 1000; ` or nothing.
    fn command(&self, limits: &str, format: &str) -> Command {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/SmolLM2-135M-Instruct-Q4_1.gguf");
        assert!(model.exists(), "{} is missing: run `make model` first", model.display());
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("{limits}exec \"$@\""), "sh", env!("CARGO_BIN_EXE_modelprofile-worker"), "quantize"])
            .arg("--model")
            .arg(model)
            // Measuring needs a second artifact, the reference.
            .args(["--no-measure", "--format", format, "--cache"])
            .arg(self.0.path())
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn start(&self) -> Child {
        self.command("", FORMAT).spawn().unwrap()
    }

    fn quantize(&self) -> Finished {
        Finished::of(self.command("", FORMAT).output().unwrap())
    }

    /// What is in the cache, without the lock file: that stays, so that nobody locks a file that another one removes.
    fn entries(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.0.path().join("artifacts")) else { return Vec::new() };
        let paths = entries.map(|e| e.unwrap().path());
        paths.filter(|path| path.extension().is_none_or(|e| e != "lock")).collect()
    }

    /// The one finished artifact, verified; fails when anything else is there.
    fn artifact(&self) -> (PathBuf, Artifact) {
        let entries = self.entries();
        let [directory] = entries.as_slice() else { panic!("one artifact and no temporary rest: {entries:?}") };
        let artifact = Artifact::open(directory).unwrap();
        assert_eq!(directory.file_name().unwrap().to_str(), Some(artifact.manifest().key.as_str()));
        (directory.clone(), artifact)
    }

    fn temporary(&self) -> Option<PathBuf> {
        self.entries().into_iter().find(|path| path.extension().is_some_and(|e| e == "tmp"))
    }

    /// Bytes of the packed file in the temporary directory.
    fn written(&self) -> u64 {
        self.temporary().and_then(|path| fs::metadata(path.join(store::PACKED)).ok()).map_or(0, |m| m.len())
    }

    /// Groups of tensors (the model's ends, then layers) that a killed build would not have to write again.
    fn groups(&self) -> u64 {
        let text = self.temporary().and_then(|path| fs::read_to_string(path.join("build.json")).ok());
        let journal = text.and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
        journal.and_then(|journal| journal["groups"].as_u64()).unwrap_or(0)
    }
}

/// A process that ended, its output as text.
struct Finished {
    status: std::process::ExitStatus,
    stdout: String,
    stderr: String,
}

impl Finished {
    fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    fn succeeded(self) -> Self {
        assert!(self.status.success(), "{}: {}", self.status, self.stderr);
        self
    }

    fn built(&self) -> bool {
        self.stderr.contains(BUILT)
    }
}

/// Checksum of the artifact that nothing disturbed.
fn undisturbed() -> &'static str {
    static SHA256: OnceLock<String> = OnceLock::new();
    SHA256.get_or_init(|| {
        let cache = Cache::new();
        assert!(cache.quantize().succeeded().built());
        cache.artifact().1.manifest().sha256.clone()
    })
}

/// Polls until `condition` holds; fails when the process ends before.
fn wait_until(child: &mut Child, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert_eq!(child.try_wait().unwrap(), None, "the process ended before {what}");
        assert!(Instant::now() < deadline, "no sign of {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_killed_quantization_leaves_nothing_under_the_key_and_the_next_one_goes_on() {
    let cache = Cache::new();
    let mut child = cache.start();
    wait_until(&mut child, "a few layers", || cache.groups() > 2);
    let first = cache.written();
    wait_until(&mut child, "a growing file", || cache.written() > first);
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));

    let left = cache.entries();
    assert!(left.iter().all(|path| path.extension().is_some_and(|e| e == "tmp")), "half an artifact: {left:?}");
    assert_eq!(left.len(), 1, "the rest that the next run goes on with");
    let groups = cache.groups();

    let again = cache.quantize().succeeded();
    assert!(again.built() && !again.stderr.contains(DAMAGED), "{}", again.stderr);
    assert!(again.stderr.contains("interrupted") && groups > 2, "{groups}: {}", again.stderr);
    let (_, artifact) = cache.artifact();
    assert_eq!(artifact.manifest().sha256, undisturbed());
    assert!(again.stdout.contains(&artifact.manifest().key), "{}", again.stdout);
}

#[test]
fn of_two_processes_at_once_one_builds_and_both_succeed() {
    let cache = Cache::new();
    let mut first = cache.start();
    wait_until(&mut first, "the temporary directory", || !cache.entries().is_empty());
    let second = cache.start();
    let runs = [first, second].map(|child| Finished::of(child.wait_with_output().unwrap()).succeeded());
    assert_eq!(runs.iter().map(Finished::built).collect::<Vec<_>>(), [true, false]);
    // Format, size and key are the same; the seconds that follow are not.
    let [first, second] = runs.each_ref().map(|run| run.stdout.split("  ").take(3).collect::<Vec<_>>());
    assert_eq!(first, second);
    assert_eq!(cache.artifact().1.manifest().sha256, undisturbed());
}

#[test]
fn a_damaged_artifact_is_rebuilt_and_a_sound_one_is_kept() {
    let cache = Cache::new();
    cache.quantize().succeeded();
    let (directory, _) = cache.artifact();
    let (packed, manifest) = (directory.join(store::PACKED), directory.join(store::MANIFEST));
    let inode = || fs::metadata(&packed).unwrap().ino();
    let whole = inode();
    assert!(!cache.quantize().succeeded().built());
    assert_eq!(inode(), whole, "a sound artifact was written again");

    let flip = || {
        let mut bytes = fs::read(&packed).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&packed, bytes).unwrap();
    };
    let truncate = || {
        let file = fs::OpenOptions::new().write(true).open(&packed).unwrap();
        file.set_len(file.metadata().unwrap().len() - 4096).unwrap();
    };
    let halve_manifest = || {
        let text = fs::read(&manifest).unwrap();
        fs::write(&manifest, &text[..text.len() / 2]).unwrap();
    };
    // What is missing is not said to be damaged: it looks like a cache that somebody cleaned.
    let damages: [(&str, &dyn Fn(), bool); 5] = [
        ("a flipped bit", &flip, true),
        ("a truncated packed file", &truncate, true),
        ("half a manifest", &halve_manifest, true),
        ("a missing manifest", &|| fs::remove_file(&manifest).unwrap(), false),
        ("a missing packed file", &|| fs::remove_file(&packed).unwrap(), false),
    ];
    for (damage, inflict, warns) in damages {
        inflict();
        assert!(Artifact::open(&directory).is_err(), "{damage} goes unnoticed");
        let run = cache.quantize().succeeded();
        assert!(run.built(), "{damage}: {}", run.stderr);
        assert_eq!(run.stderr.contains(DAMAGED), warns, "{damage}: {}", run.stderr);
        assert_eq!(cache.artifact().1.manifest().sha256, undisturbed(), "{damage}");
    }
}

/// A limit on the size of files stands for a full disk: the write that crosses it fails in the same way. At the first
/// one the file of a layer is cut short; at the second nothing can be written at all.
#[rstest]
#[case::in_the_middle(60 << 10)]
#[case::at_once(0)]
fn a_disk_without_room_is_an_error_that_names_the_file_and_leaves_no_rest(#[case] kib: u64) {
    let cache = Cache::new();
    // Ignoring the signal of the limit makes the write fail, as it does on a full disk. `ulimit -f` counts 512 bytes.
    let run = Finished::of(cache.command(&format!("trap '' XFSZ; ulimit -f {}; ", kib * 2), FORMAT).output().unwrap());
    assert_eq!(run.status.code(), Some(1), "{}", run.stderr);
    assert!(run.stderr.contains(".tmp/") && run.stderr.contains("File too large"), "{}", run.stderr);
    assert_eq!(cache.entries(), Vec::<PathBuf>::new(), "a rest would keep the disk full");
    cache.quantize().succeeded();
    assert_eq!(cache.artifact().1.manifest().sha256, undisturbed());
}

/// What a process may hold for itself is limited, so that no peak can be missed. Mapped files, the checkpoint above all,
/// do not count: the kernel drops their pages when it needs them.
#[rstest]
#[case::in_groups("INT4:g64")]
#[case::by_rows("FP8")]
#[case::unrounded("BF16")]
#[cfg(target_os = "linux")]
fn quantizing_needs_memory_for_one_tensor_and_not_for_the_model(#[case] format: &str) {
    let cache = Cache::new();
    let run =
        |bytes: u64| Finished::of(cache.command(&format!("ulimit -d {}; ", bytes >> 10), format).output().unwrap());
    // The limit is real: the largest tensor's codes beside their packed copy are too much for it.
    assert!(!run(LARGEST_TENSOR / 3).status.success());
    // As BF16 the tensor is half of its FP32 values, and there twice for a moment; a half for all the rest. That is a third
    // of what the model takes as FP32.
    run(LARGEST_TENSOR * 3 / 2).succeeded();
    cache.artifact();
}
