//! What the driver says, as an error that tells the user what helps.

use std::{ffi::CStr, ptr};

use cudarc::driver::sys;

use crate::{KernelError, Result};

/// Turns a driver's result into a value that names the call, the driver's reason and what helps.
pub(in crate::cuda) fn check(call: &str, code: sys::CUresult) -> Result<()> {
    use sys::CUresult as Code;
    if code == Code::CUDA_SUCCESS {
        return Ok(());
    }
    let help = match code {
        Code::CUDA_ERROR_OUT_OF_MEMORY => {
            return Err(KernelError::OutOfMemory(format!(
                "{call}: the GPU has no memory left; give the worker a smaller budget, or end what else runs on the GPU"
            )));
        }
        Code::CUDA_ERROR_NO_DEVICE => "; the driver sees no GPU: check `nvidia-smi`, or run with the CPU as the device",
        Code::CUDA_ERROR_INVALID_DEVICE => "; there is no GPU of this number: `nvidia-smi -L` lists them",
        Code::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => "; kernel module and driver library differ: restart the machine",
        Code::CUDA_ERROR_ILLEGAL_ADDRESS
        | Code::CUDA_ERROR_MISALIGNED_ADDRESS
        | Code::CUDA_ERROR_INVALID_PC
        | Code::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | Code::CUDA_ERROR_LAUNCH_FAILED
        | Code::CUDA_ERROR_ECC_UNCORRECTABLE => {
            "; the GPU context is lost, and this may be of an earlier operation: restart the worker"
        }
        _ => "",
    };
    Err(KernelError::Device(format!("{call}: {}{help}", name(code))))
}

fn name(code: sys::CUresult) -> String {
    let text = |get: unsafe fn(sys::CUresult, *mut *const std::ffi::c_char) -> sys::CUresult| {
        let mut text = ptr::null();
        // SAFETY: the driver writes a pointer to a static string, or fails.
        let known = unsafe { get(code, &raw mut text) } == sys::CUresult::CUDA_SUCCESS && !text.is_null();
        // SAFETY: as above.
        known.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    };
    match (text(sys::cuGetErrorName), text(sys::cuGetErrorString)) {
        (Some(name), Some(sentence)) => format!("{name} ({sentence})"),
        (Some(name), None) => name,
        _ => format!("error {}", code as u32),
    }
}
