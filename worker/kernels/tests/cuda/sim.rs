//! What tests ask of the emulated device beyond the driver: failures on demand, counts of bytes and calls.

use std::ffi::{CString, c_char, c_int, c_void};

use modelprofile_kernels::cuda::CudaOptions;

/// The emulated device's controls; none on hardware.
pub struct Sim {
    library: *mut c_void,
}

impl Sim {
    /// The controls, when the driver that is loaded has them.
    pub fn find() -> Option<Self> {
        // SAFETY: a library that is loaded already is asked for, by a name that only the emulated driver answers to.
        let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) };
        let sim = Self { library };
        (!library.is_null() && !sim.symbol(c"cudasim_version").is_null()).then_some(sim)
    }

    fn symbol(&self, name: &std::ffi::CStr) -> *mut c_void {
        // SAFETY: the library is loaded for good.
        unsafe { libc::dlsym(self.library, name.as_ptr()) }
    }

    /// The nth next call of a driver function fails with a code.
    pub fn fail(&self, function: &str, nth: u64, code: i32) {
        let name = CString::new(function).unwrap();
        // SAFETY: the type that `gpu-sim/driver/control.h` declares.
        unsafe {
            let fail: extern "C" fn(*const c_char, u64, c_int) = std::mem::transmute(self.symbol(c"cudasim_fail"));
            fail(name.as_ptr(), nth, code);
        }
    }

    /// Takes back what has not struck yet, and forgets the devices' errors.
    pub fn calm(&self) {
        self.fail("*", 0, 0);
        // SAFETY: as above.
        unsafe {
            let clear: extern "C" fn(c_int) = std::mem::transmute(self.symbol(c"cudasim_clear_fault"));
            (0..4).for_each(|device| clear(device));
        }
    }

    /// Bytes of physical memory in use.
    pub fn bytes(&self) -> u64 {
        self.bytes_of(0)
    }

    /// Bytes of physical memory in use on a device.
    pub fn bytes_of(&self, device: usize) -> u64 {
        // SAFETY: as above.
        unsafe {
            let bytes: extern "C" fn(c_int) -> u64 = std::mem::transmute(self.symbol(c"cudasim_physical_bytes"));
            bytes(c_int::try_from(device).unwrap())
        }
    }

    /// The most that were in use since the last call.
    pub fn peak(&self) -> u64 {
        self.peak_of(0)
    }

    /// The most that were in use on a device since the last call.
    pub fn peak_of(&self, device: usize) -> u64 {
        let device = c_int::try_from(device).unwrap();
        // SAFETY: as above.
        unsafe {
            let peak: extern "C" fn(c_int) -> u64 = std::mem::transmute(self.symbol(c"cudasim_physical_peak"));
            let reset: extern "C" fn(c_int) = std::mem::transmute(self.symbol(c"cudasim_reset_peak"));
            let value = peak(device);
            reset(device);
            value
        }
    }

    /// Bytes that copies brought to the host so far.
    pub fn bytes_to_host(&self) -> u64 {
        // SAFETY: as above.
        unsafe {
            let bytes: extern "C" fn() -> u64 = std::mem::transmute(self.symbol(c"cudasim_bytes_to_host"));
            bytes()
        }
    }

    /// Calls of a driver function so far.
    pub fn calls(&self, function: &str) -> u64 {
        let name = CString::new(function).unwrap();
        // SAFETY: as above.
        unsafe {
            let calls: extern "C" fn(*const c_char) -> u64 = std::mem::transmute(self.symbol(c"cudasim_calls"));
            calls(name.as_ptr())
        }
    }
}

/// Options of small tests: a small budget and workspace, kernels compiled once for all tests and runs.
pub fn options() -> CudaOptions {
    CudaOptions {
        budget: Some(256 << 20),
        matmul_workspace: 1 << 20,
        // Right either way; this way the emulated device sees to it that kernels wait for each other.
        overlap: true,
        cache: Some(env!("CARGO_TARGET_TMPDIR").into()),
        // Compiled elsewhere, for machines without NVRTC.
        shipped: std::env::var_os("MODELPROFILE_TEST_KERNELS").map(Into::into),
        ..CudaOptions::default()
    }
}

/// Keeps other tests from the device: one at a time.
pub fn alone() -> impl Drop {
    crate::device::alone()
}
