//! Finding a GPU: whether there is a driver, which devices it has, and whether this backend can compute on them.

use std::{
    ffi::{CStr, c_int},
    path::PathBuf,
    sync::Arc,
};

use cudarc::driver::sys;

use super::{
    compile::Images,
    driver::{Context, Stream, check},
    kernels,
    libraries::{Library, load},
    linear::UNPACK_ROWS,
};
use crate::{KernelError, Result};

/// The oldest driver interface that the bindings' functions are all of: driver 580.
const DRIVER_VERSION: i32 = 13_000;
/// The oldest architecture that the kernels were made for.
const CAPABILITY: (i32, i32) = (9, 0);

/// How a [`Cuda`](super::Cuda) computes.
#[allow(clippy::struct_excessive_bools, reason = "each is a choice of its own")]
#[derive(Clone, Debug)]
pub struct CudaOptions {
    /// Number of the device, as `nvidia-smi -L` lists them (after `CUDA_VISIBLE_DEVICES`).
    pub ordinal: usize,
    /// Most bytes of device memory in use at any instant: weights, cache, buffers and workspace. `None` takes 92 % of
    /// what is free when the device is made.
    pub budget: Option<usize>,
    /// Folder of compiled kernels; `None` compiles at every start.
    pub cache: Option<PathBuf>,
    /// Folder of kernels that were compiled before and came with the program; looked at first.
    pub shipped: Option<PathBuf>,
    /// Record decode steps and replay them.
    pub graphs: bool,
    /// Let kernels start before the one ahead of them is done (programmatic dependent launch). Right in any case; off until
    /// `make gpu-check` shows that decode steps gain by it: see docs/h100.md.
    pub overlap: bool,
    /// The same kernels whatever the number of rows, so that a sequence's text does not depend on what else is in the
    /// batch. Slower for long prompts.
    pub deterministic: bool,
    /// Take devices older than compute capability 9.0. Nothing was measured on them.
    pub any_capability: bool,
    /// Rows from which products with group-wise weights unpack these for cuBLASLt.
    pub unpack_rows: usize,
    /// Workspace of cuBLASLt, fixed. 32 MiB is what it recommends for this architecture.
    pub matmul_workspace: usize,
    /// Called with each sentence for the log as it comes up, and once for each fact: what runs slower than it could, and why.
    pub on_note: fn(&str),
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self {
            ordinal: 0,
            budget: None,
            cache: None,
            shipped: None,
            graphs: true,
            overlap: false,
            deterministic: false,
            any_capability: false,
            unpack_rows: UNPACK_ROWS,
            matmul_workspace: 32 << 20,
            on_note: |_| {},
        }
    }
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Bytes of its memory.
    pub memory: usize,
    /// Compute capability: 9.0 is Hopper.
    pub capability: (i32, i32),
    /// Streaming multiprocessors.
    pub processors: u32,
}

/// The devices of the driver.
///
/// # Errors
/// [`KernelError::Device`] with a sentence that says what is missing (library, driver, device) and what helps. Never
/// panics: a worker with this backend starts on machines without a driver.
pub fn available() -> Result<Vec<DeviceInfo>> {
    initialize()?;
    let mut count: c_int = 0;
    // SAFETY: a place to write.
    check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&raw mut count) })?;
    (0..usize::try_from(count).unwrap_or(0)).map(|ordinal| describe(ordinal).map(|(_, info)| info)).collect()
}

/// Loads and starts the driver.
fn initialize() -> Result<()> {
    load(Library::Driver)?;
    let mut version: c_int = 0;
    // SAFETY: a place to write; may be called before `cuInit`.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&raw mut version) })?;
    // Functions of later versions are looked up when first called, and their absence is no value: so not here.
    if version < DRIVER_VERSION {
        return Err(KernelError::Device(format!(
            "the CUDA driver is of version {}.{}; {}.{} (driver 580) or later is needed",
            version / 1000,
            version % 1000 / 10,
            DRIVER_VERSION / 1000,
            DRIVER_VERSION % 1000 / 10
        )));
    }
    // SAFETY: no precondition.
    check("cuInit", unsafe { sys::cuInit(0) })
}

/// Version of the driver's interface, a part of the key of compiled kernels.
pub(super) fn driver_version() -> Result<i32> {
    let mut version: c_int = 0;
    // SAFETY: a place to write.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&raw mut version) })?;
    Ok(version)
}

fn describe(ordinal: usize) -> Result<(sys::CUdevice, DeviceInfo)> {
    let mut device = 0;
    let index = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
    // SAFETY: a place to write.
    check("cuDeviceGet", unsafe { sys::cuDeviceGet(&raw mut device, index) })?;
    let mut name = [0u8; 256];
    // SAFETY: the driver writes at most this many bytes, the last zero.
    check("cuDeviceGetName", unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast(), 256, device) })?;
    let name = CStr::from_bytes_until_nul(&name).map_or("GPU".into(), CStr::to_string_lossy).into_owned();
    let mut memory = 0;
    // SAFETY: a place to write.
    check("cuDeviceTotalMem", unsafe { sys::cuDeviceTotalMem_v2(&raw mut memory, device) })?;
    use sys::CUdevice_attribute as Attribute;
    let capability = (
        attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    let processors = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32;
    Ok((device, DeviceInfo { ordinal, name, memory, capability, processors }))
}

/// Those of some devices, by their numbers, that can read and write another one's memory.
pub(super) fn peers_of(owner: usize, ordinals: &[usize]) -> Result<Vec<sys::CUdevice>> {
    let device = |ordinal: usize| {
        let mut device = 0;
        let index = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
        // SAFETY: a place to write.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&raw mut device, index) })?;
        Ok(device)
    };
    let owned = device(owner)?;
    let mut peers = Vec::new();
    for ordinal in ordinals.iter().filter(|ordinal| **ordinal != owner) {
        let (peer, mut can) = (device(*ordinal)?, 0);
        // SAFETY: a place to write, devices of the driver.
        check("cuDeviceCanAccessPeer", unsafe { sys::cuDeviceCanAccessPeer(&raw mut can, peer, owned) })?;
        if can != 0 {
            peers.push(peer);
        }
    }
    Ok(peers)
}

fn attribute(device: sys::CUdevice, attribute: sys::CUdevice_attribute) -> Result<i32> {
    let mut value: c_int = 0;
    // SAFETY: a place to write, a device of the driver.
    check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&raw mut value, attribute, device) })?;
    Ok(value)
}

/// An opened device: its context and the two streams of work.
pub(super) struct Gpu {
    pub(super) info: DeviceInfo,
    pub(super) context: Arc<Context>,
    /// Kernels, in order.
    pub(super) compute: Arc<Stream>,
    /// Weights on their way to the device.
    pub(super) copies: Arc<Stream>,
}

impl Gpu {
    /// Opens the device that the options name.
    pub(super) fn open(options: &CudaOptions) -> Result<Self> {
        let (device, info) = examine(options)?;
        let context = Context::retain(device)?;
        let (compute, copies) = (Stream::new(&context)?, Stream::new(&context)?);
        Ok(Self { info, context, compute, copies })
    }
}

/// The device that the options name, if it can be computed on: it is there, is of a kind that the kernels were made for, and
/// the kernels came with the program or can be compiled. Opens nothing.
///
/// # Errors
/// [`KernelError::Device`] with a sentence that says what is missing or refused and what helps.
pub fn usable(options: &CudaOptions) -> Result<DeviceInfo> {
    let (_, info) = examine(options)?;
    kernels::obtainable(&Images::of(options), info.capability)?;
    Ok(info)
}

/// The device that the options name, and what it is.
fn examine(options: &CudaOptions) -> Result<(sys::CUdevice, DeviceInfo)> {
    initialize()?;
    let (device, info) = describe(options.ordinal)?;
    accept(&info, options.any_capability)?;
    use sys::CUdevice_attribute as Attribute;
    if attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED)? == 0 {
        return Err(KernelError::Device(format!(
            "{} has no virtual memory management, which the cache and the weights are placed with (some virtual GPUs lack \
             it)",
            info.name
        )));
    }
    Ok((device, info))
}

/// Refuses what the kernels were not made for.
fn accept(info: &DeviceInfo, any: bool) -> Result<()> {
    if info.capability >= CAPABILITY || any {
        return Ok(());
    }
    let ((major, minor), (need, _)) = (info.capability, CAPABILITY);
    Err(KernelError::Device(format!(
        "{} has compute capability {major}.{minor}; the kernels are made for {need}.0 (Hopper) and later. Allow older \
         devices explicitly to try them, or run with the CPU as the device",
        info.name
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_device_is_refused_unless_allowed() {
        let info = |capability| DeviceInfo { ordinal: 0, name: "A100".into(), memory: 1, capability, processors: 1 };
        assert!(accept(&info((9, 0)), false).is_ok());
        assert!(accept(&info((10, 0)), false).is_ok());
        assert!(accept(&info((8, 0)), true).is_ok());
        let refused = accept(&info((8, 9)), false).unwrap_err().to_string();
        assert!(refused.contains("8.9") && refused.contains("9.0"), "{refused}");
    }
}
