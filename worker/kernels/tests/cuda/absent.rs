//! A program with the GPU backend on a machine without a driver, without NVRTC or cuBLASLt, or with a device it does not
//! take: it starts, and says what is missing. Libraries where the loader does not look are found.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use modelprofile_kernels::{
    Store, WeightKind,
    cuda::{Cuda, CudaOptions, Images, Origin, Unit, available, look_first_in, usable},
    pack,
};
use tempfile::TempDir;

use crate::{
    backend::{UNPACKED, cpu, product},
    model::{error, weight},
    sim::{alone, options},
};

/// Runs an ignored test of this program in a process of its own, with some of the environment changed.
fn child(name: &str, change: impl FnOnce(&mut Command)) -> (bool, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("absent::{name}"), "--ignored", "--nocapture", "--test-threads=1"]);
    change(&mut command);
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (output.status.success(), text)
}

#[test]
fn without_a_driver_a_sentence_says_so() {
    let (passed, text) = child("in_a_process_without_a_driver", |c| {
        c.env_remove("LD_LIBRARY_PATH");
    });
    assert!(passed, "{text}");
}

#[test]
#[ignore = "started by without_a_driver_a_sentence_says_so"]
fn in_a_process_without_a_driver() {
    // A machine with a driver of its own cannot show this.
    let Err(error) = available() else { return };
    let text = error.to_string();
    assert!(text.contains("libcuda.so.1") && text.contains("CPU"), "{text}");
    let text = Cuda::new(CudaOptions::default()).err().unwrap().to_string();
    assert!(text.contains("libcuda.so.1"), "{text}");
}

#[test]
fn a_device_that_is_not_there_is_a_sentence() {
    let _alone = alone();
    let devices = available().unwrap();
    assert!(!devices.is_empty() && devices[0].capability >= (9, 0) && devices[0].memory > 1 << 30, "{devices:?}");
    let error = Cuda::new(CudaOptions { ordinal: devices.len(), ..options() }).err().unwrap().to_string();
    assert!(error.contains("nvidia-smi -L"), "{error}");
}

#[test]
fn a_budget_beyond_the_device_is_refused() {
    let _alone = alone();
    let error = Cuda::new(CudaOptions { budget: Some(usize::MAX), ..options() }).err().unwrap().to_string();
    assert!(error.contains("are free"), "{error}");
}

/// A machine with some of this one's libraries on the loader's path and no others anywhere, as far as the environment says.
struct Machine {
    /// Libraries and nothing else.
    path: TempDir,
}

impl Machine {
    fn with(libraries: &[&str]) -> Self {
        let path = tempfile::tempdir().unwrap();
        for name in libraries {
            std::os::unix::fs::symlink(library(name), path.path().join(name)).unwrap();
        }
        Self { path }
    }

    fn run(&self, name: &str, change: impl FnOnce(&mut Command)) {
        let (passed, text) = child(name, |command| {
            for variable in ["VIRTUAL_ENV", "CONDA_PREFIX", "CUDA_HOME", "CUDA_PATH"] {
                command.env_remove(variable);
            }
            let kernels = library("libcuda.so.1").with_file_name("libcudasim_kernels.so");
            command.env("LD_LIBRARY_PATH", self.path.path()).env("CUDASIM_KERNELS", kernels);
            command.env("PATH", self.path.path()).env("HOME", self.path.path());
            change(command);
        });
        assert!(passed, "{text}");
    }
}

/// Where the loader's path of the tests has a library.
fn library(name: &str) -> PathBuf {
    let path = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.exists());
    fs::canonicalize(found.unwrap_or_else(|| panic!("no folder of LD_LIBRARY_PATH has {name}"))).unwrap()
}

const DRIVER: &str = "libcuda.so.1";
const COMPILER: &str = "libnvrtc.so.13";
const NOTHING: Unit = Unit { name: "nothing", files: &["extern \"C\" __global__ void nothing() {}\n"] };

/// A toolkit of the machine itself is found whatever the environment says.
fn has_a_toolkit() -> bool {
    let entries = fs::read_dir("/usr/local").into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("cuda"))
}

#[test]
fn without_a_compiler_a_sentence_says_where_it_was_looked_for() {
    if !has_a_toolkit() {
        Machine::with(&[DRIVER]).run("in_a_process_without_a_compiler", |command| {
            command.env("CUDA_HOME", "/nowhere");
        });
    }
}

#[test]
#[ignore = "started by without_a_compiler_a_sentence_says_where_it_was_looked_for"]
fn in_a_process_without_a_compiler() {
    let given = tempfile::tempdir().unwrap();
    look_first_in(&[given.path().into()]);
    let options = CudaOptions { cache: None, ..options() };
    for error in [usable(&options).err().unwrap(), Cuda::new(options.clone()).err().unwrap()] {
        let text = error.to_string();
        for part in ["no NVRTC", "libnvrtc.so.13", given.path().to_str().unwrap(), "pip install"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
    // What was compiled before and came along needs none.
    let folder = tempfile::tempdir().unwrap();
    let images = Images { shipped: Some(folder.path().into()), cache: None };
    assert!(images.get(&NOTHING, (9, 0), 13_000).is_err());
}

/// A Python installation with NVIDIA's wheel of the compiler.
fn wheel(of: &Path) -> TempDir {
    let prefix = tempfile::tempdir().unwrap();
    let packages = prefix.path().join("lib/python3.12/site-packages/nvidia/cu13");
    fs::create_dir_all(&packages).unwrap();
    std::os::unix::fs::symlink(of.parent().unwrap(), packages.join("lib")).unwrap();
    prefix
}

#[test]
fn a_compiler_in_a_virtual_environment_is_found() {
    let prefix = wheel(&library(COMPILER));
    Machine::with(&[DRIVER]).run("in_a_process_with_a_compiler_somewhere", |command| {
        command.env("VIRTUAL_ENV", prefix.path());
    });
}

#[test]
fn a_compiler_beside_the_interpreter_on_the_path_is_found() {
    let prefix = wheel(&library(COMPILER));
    fs::create_dir(prefix.path().join("bin")).unwrap();
    fs::write(prefix.path().join("bin/python3"), "").unwrap();
    Machine::with(&[DRIVER]).run("in_a_process_with_a_compiler_somewhere", |command| {
        command.env("PATH", prefix.path().join("bin"));
    });
}

#[test]
fn a_compiler_in_a_folder_that_is_named_is_found() {
    let folder = library(COMPILER).parent().unwrap().to_owned();
    Machine::with(&[DRIVER]).run("in_a_process_with_a_compiler_somewhere", |command| {
        command.env("TEST_LIBRARIES", folder);
    });
}

#[test]
#[ignore = "started by the tests above"]
fn in_a_process_with_a_compiler_somewhere() {
    let named: Vec<PathBuf> =
        env::var_os("TEST_LIBRARIES").as_ref().map(env::split_paths).into_iter().flatten().collect();
    look_first_in(&named);
    usable(&options()).unwrap();
    // It compiles: the parts of itself that it loads by itself are found as well.
    assert_eq!(Images::default().get(&NOTHING, (9, 0), 13_000).unwrap().1, Origin::Compiled);
}

static NOTES: Mutex<Vec<String>> = Mutex::new(Vec::new());

#[test]
fn without_cublaslt_own_kernels_compute_and_a_note_says_so() {
    let compiler: OsString = library(COMPILER).parent().unwrap().into();
    let machine = Machine::with(&[DRIVER]);
    if !has_a_toolkit() {
        let path = env::join_paths([machine.path.path(), Path::new(&compiler)]).unwrap();
        machine.run("in_a_process_without_cublaslt", |command| {
            command.env("LD_LIBRARY_PATH", path);
        });
    }
}

#[test]
#[ignore = "started by without_cublaslt_own_kernels_compute_and_a_note_says_so"]
fn in_a_process_without_cublaslt() {
    let options = CudaOptions { on_note: |note| NOTES.lock().unwrap().push(note.into()), ..options() };
    let mut gpu = Cuda::new(options).unwrap();
    let notes = NOTES.lock().unwrap().clone();
    assert_eq!(notes, gpu.take_notes());
    assert!(
        notes.len() == 1 && notes[0].contains("own kernels") && notes[0].contains("libcublasLt.so.13"),
        "{notes:?}"
    );
    // As many rows as the library would have been asked for.
    let packed = pack(&weight(WeightKind::Bf16, 64, 128, 7)).unwrap();
    let expected = product(&mut cpu(), &packed, 256, false, Store::Overwrite);
    let error = error(&product(&mut gpu, &packed, 256, false, Store::Overwrite), &expected);
    assert!(error < UNPACKED, "{error}");
}
