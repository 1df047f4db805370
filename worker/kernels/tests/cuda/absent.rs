//! A program with the GPU backend on a machine without a driver, without NVRTC, or with a device it does not take: it
//! starts, and says what is missing.

use std::process::Command;

use modelprofile_kernels::cuda::{Cuda, CudaOptions, available};

use crate::sim::{alone, options};

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
