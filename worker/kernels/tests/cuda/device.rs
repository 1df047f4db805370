//! A device for kernel tests: loads units of kernels that were compiled as the worker compiles them, launches entries by
//! name.
//!
//! Nothing here knows whether the driver is real or emulated, but for the text of a fault, which only the emulated one has.

use std::{
    ffi::{CStr, c_char},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytemuck::Pod;
use cudarc::{
    driver::{
        CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr, LaunchArgs, LaunchConfig,
        PushKernelArg,
        sys::{self, CUfunction_attribute},
    },
    nvrtc::Ptx,
};
use modelprofile_kernels::cuda::{Images, Unit, units};

/// Arguments of a launch: buffers, numbers, [`NULL`].
macro_rules! args {
    ($($arg:expr),+ $(,)?) => { &[$($crate::device::Arg::from($arg)),+] };
}

/// One argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Arg {
    Word(u32),
    Long(u64),
    Float(f32),
}

/// A pointer to nothing.
pub(crate) const NULL: Arg = Arg::Long(0);

impl From<u32> for Arg {
    fn from(value: u32) -> Self {
        Self::Word(value)
    }
}
/// Sides and counts: 32 bits in every kernel.
impl From<usize> for Arg {
    fn from(value: usize) -> Self {
        Self::Word(u32::try_from(value).unwrap())
    }
}
impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Self::Long(value)
    }
}
impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Self::Float(value)
    }
}
impl<T> From<&Memory<T>> for Arg {
    fn from(memory: &Memory<T>) -> Self {
        Self::Long(memory.address)
    }
}

/// Memory on the device.
pub(crate) struct Memory<T> {
    slice: CudaSlice<T>,
    address: u64,
}

impl<T> Memory<T> {
    /// Where it starts on the device.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// The address of an element.
    pub(crate) fn at(&self, element: usize) -> Arg {
        Arg::Long(self.address + (element * size_of::<T>()) as u64)
    }
}

/// Blocks and threads of a launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) grid: (usize, usize, usize),
    pub(crate) threads: u32,
    /// Bytes of dynamic shared memory.
    pub(crate) shared: usize,
}

impl Shape {
    /// A one-dimensional grid of 256 threads.
    pub(crate) fn blocks(blocks: usize) -> Self {
        Self { grid: (blocks, 1, 1), threads: 256, shared: 0 }
    }
}

/// Units of kernels, loaded. Tests that hold one run one after the other: the emulated device has all cores for each.
pub(crate) struct Gpu {
    stream: Arc<CudaStream>,
    modules: Vec<Arc<CudaModule>>,
    _alone: MutexGuard<'static, ()>,
}

static ALONE: Mutex<()> = Mutex::new(());

/// Keeps other tests from the device, as a [`Gpu`] does.
pub fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// The worker's units of these names.
    pub(crate) fn new(names: &[&str]) -> Self {
        let named = |name: &&str| units().iter().find(|unit| unit.name == *name).copied();
        Self::with(
            &names.iter().map(|name| named(name).unwrap_or_else(|| panic!("no unit {name}"))).collect::<Vec<_>>(),
        )
    }

    pub(crate) fn with(units: &[Unit]) -> Self {
        let alone = alone();
        let context = CudaContext::new(0).unwrap();
        // One stream: no events, and no drop of a buffer that waits for some.
        // SAFETY: buffers are used on one stream only.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().unwrap();
        let modules = units.iter().map(|unit| context.load_module(image(unit, &context)).unwrap()).collect();
        Self { stream, modules, _alone: alone }
    }

    pub(crate) fn upload<T: DeviceRepr>(&self, values: &[T]) -> Memory<T> {
        let slice = self.stream.clone_htod(values).unwrap();
        let address = slice.device_ptr(&self.stream).0;
        Memory { slice, address }
    }

    /// Memory for results: every byte 0xff, which is NaN as FP32, so that what no thread writes does not look right.
    pub(crate) fn output<T: DeviceRepr + Pod>(&self, count: usize) -> Memory<T> {
        let mut values = vec![T::zeroed(); count];
        bytemuck::cast_slice_mut::<T, u8>(&mut values).fill(0xff);
        self.upload(&values)
    }

    /// Launches a kernel and waits for it.
    ///
    /// # Panics
    /// When the launch is refused or the kernel fails, with what the device says about it.
    pub(crate) fn launch(&self, name: &str, shape: Shape, args: &[Arg]) {
        let function = self.function(name, shape);
        let mut builder = self.stream.launch_builder(&function);
        for arg in args {
            match arg {
                Arg::Word(value) => builder.arg(value),
                Arg::Long(value) => builder.arg(value),
                Arg::Float(value) => builder.arg(value),
            };
        }
        self.run(name, shape, builder);
    }

    /// [`Self::launch`] of a kernel whose one argument is a struct.
    pub(crate) fn launch_struct<T: DeviceRepr>(&self, name: &str, shape: Shape, argument: &T) {
        let function = self.function(name, shape);
        let mut builder = self.stream.launch_builder(&function);
        builder.arg(argument);
        self.run(name, shape, builder);
    }

    fn function(&self, name: &str, shape: Shape) -> CudaFunction {
        let found = self.modules.iter().find_map(|module| module.load_function(name).ok());
        let function = found.unwrap_or_else(|| panic!("no kernel {name}"));
        if shape.shared > 48 << 10 {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(attribute, i32::try_from(shape.shared).unwrap()).unwrap();
        }
        function
    }

    fn run(&self, name: &str, shape: Shape, mut builder: LaunchArgs<'_>) {
        let side = |side: usize| u32::try_from(side).unwrap();
        let config = LaunchConfig {
            grid_dim: (side(shape.grid.0), side(shape.grid.1), side(shape.grid.2)),
            block_dim: (shape.threads, 1, 1),
            shared_mem_bytes: side(shape.shared),
        };
        // SAFETY: the test passes what the kernel's head says; a device under test reports what goes beyond.
        let launched = unsafe { builder.launch(config) }.map(|_| ());
        if let Err(error) = launched.and_then(|()| self.stream.synchronize()) {
            panic!("{name} {shape:?}: {error:?}{}", fault());
        }
    }

    pub(crate) fn download<T: DeviceRepr + Clone + Default>(&self, memory: &Memory<T>) -> Vec<T> {
        let values = self.stream.clone_dtoh(&memory.slice).unwrap();
        self.stream.synchronize().unwrap();
        values
    }
}

/// A unit's image: compiled once for all tests and runs, and the very image that a worker on this device computes with. Images
/// in the folder that `MODELPROFILE_TEST_UNITS` names come first, so that a machine without NVRTC can run these tests.
fn image(unit: &Unit, context: &CudaContext) -> Ptx {
    let shipped = std::env::var_os("MODELPROFILE_TEST_UNITS").map(PathBuf::from);
    let images = Images { shipped, cache: Some(env!("CARGO_TARGET_TMPDIR").into()) };
    let mut driver = 0;
    // SAFETY: a place to write.
    unsafe { sys::cuDriverGetVersion(&raw mut driver) }.result().unwrap();
    let (image, _) = images.get(unit, context.compute_capability().unwrap(), driver).unwrap();
    Ptx::from_binary(image)
}

/// What the emulated device says about the last fault: kernel, block, thread, line.
fn fault() -> String {
    // SAFETY: a library that is loaded already is asked for a function of this name and type, which only the emulated
    // driver has.
    let text = unsafe {
        let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_NOW);
        let symbol = if library.is_null() { library } else { libc::dlsym(library, c"cudasim_last_fault".as_ptr()) };
        if symbol.is_null() {
            return String::new();
        }
        let last_fault: extern "C" fn() -> *const c_char = std::mem::transmute(symbol);
        CStr::from_ptr(last_fault())
    };
    format!("\n{}", text.to_string_lossy())
}

/// Reproducible values in -1..1.
pub(crate) fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32 * 2.0 - 1.0
        })
        .collect()
}

/// Values that a model's activations resemble: most small, some large.
pub(crate) fn activations(count: usize, seed: u32) -> Vec<f32> {
    noise(count, seed).into_iter().map(|v| v * v * v * 12.0).collect()
}

/// The largest difference, relative to the expected value or, below it, to `floor`.
pub(crate) fn worst(found: &[f32], expected: &[f32], floor: f32) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).fold(0.0, |worst, (found, expected)| {
        let error = (found - expected).abs() / expected.abs().max(floor);
        // NaN is worse than anything.
        if error.is_nan() { f32::INFINITY } else { worst.max(error) }
    })
}
