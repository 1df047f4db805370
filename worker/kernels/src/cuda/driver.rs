//! The driver's objects as Rust values: each frees itself, each failure is an error value.
//!
//! The bindings' own safe layer is not used: it records events for every slice (which break a capture), it leaves a
//! context or a graph behind when a later call of the same constructor fails, and its memory is not ours to place.

use std::{
    ffi::{CStr, CString, c_int, c_void},
    ptr::{self, NonNull},
    sync::Arc,
};

use cudarc::driver::sys;

use crate::{KernelError, Result};

/// An address in the device's memory.
pub(super) type Address = sys::CUdeviceptr;

/// Turns a driver's result into a value that names the call, the driver's reason and what helps.
pub(super) fn check(call: &str, code: sys::CUresult) -> Result<()> {
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

/// A device's primary context. Everything below keeps it alive.
#[derive(Debug)]
pub(super) struct Context {
    device: sys::CUdevice,
    raw: sys::CUcontext,
}

// SAFETY: a context may be current on several threads at once; the driver locks it.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Retains the primary context of a device that `cuDeviceGet` gave.
    pub(super) fn retain(device: sys::CUdevice) -> Result<Arc<Self>> {
        let mut raw = ptr::null_mut();
        // SAFETY: the device is the driver's.
        check("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut raw, device) })?;
        let context = Arc::new(Self { device, raw });
        context.bind()?;
        Ok(context)
    }

    /// Makes the context current on this thread: every entry of the backend begins with it, since a worker makes a
    /// device on one thread and computes on another.
    pub(super) fn bind(&self) -> Result<()> {
        // SAFETY: the context lives while `self` does.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.raw) })
    }

    /// As [`Self::bind`], for what frees: when it fails, freeing is tried all the same, and fails by itself if it must.
    pub(super) fn bind_if_possible(&self) {
        let _ = self.bind();
    }

    /// Free and total bytes of the device, by the driver's count.
    pub(super) fn free_and_total(&self) -> Result<(usize, usize)> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: two places to write.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) })?;
        Ok((free, total))
    }

    pub(super) fn device(&self) -> sys::CUdevice {
        self.device
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once; nothing of it is left, since everything holds an `Arc` of it.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// A queue of work on the device.
#[derive(Debug)]
pub(super) struct Stream {
    raw: sys::CUstream,
    context: Arc<Context>,
}

// SAFETY: the driver's streams may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream that does not wait for the default stream.
    pub(super) fn new(context: &Arc<Context>) -> Result<Arc<Self>> {
        context.bind()?;
        let mut raw = ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is current.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&raw mut raw, flags) })?;
        Ok(Arc::new(Self { raw, context: context.clone() }))
    }

    pub(super) fn raw(&self) -> sys::CUstream {
        self.raw
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Waits until all work of the stream is done; tells what failed in it.
    pub(super) fn synchronize(&self) -> Result<()> {
        self.context.bind()?;
        // SAFETY: the stream lives.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.raw) })
    }

    /// Work submitted from now on waits for the event.
    pub(super) fn wait(&self, event: &Event) -> Result<()> {
        // SAFETY: both live.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(self.raw, event.raw, 0) })
    }

    /// Copies pinned host memory to the device when the stream gets there.
    ///
    /// # Safety
    /// `from` and `len` bytes of it must stay untouched until the stream has done the copy; `to` must be mapped for
    /// `len` bytes then.
    pub(super) unsafe fn upload(&self, to: Address, from: *const u8, len: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        check("cuMemcpyHtoDAsync", unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast(), len, self.raw) })
    }

    /// Copies from the device to host memory.
    ///
    /// # Safety
    /// `to` must be valid for `len` bytes until the stream has done the copy; `from` must be mapped for `len` bytes.
    pub(super) unsafe fn download(&self, to: *mut u8, from: Address, len: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        check("cuMemcpyDtoHAsync", unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, len, self.raw) })
    }

    /// Fills a range with a word.
    ///
    /// # Safety
    /// The range must be mapped when the stream gets there.
    pub(super) unsafe fn fill(&self, at: Address, word: u32, count: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        check("cuMemsetD32Async", unsafe { sys::cuMemsetD32Async(at, word, count, self.raw) })
    }

    /// Records what `fill` submits to this stream as a graph instead of running it.
    ///
    /// # Errors
    /// What `fill` or the driver says; the stream is out of the capture in any case.
    pub(super) fn capture(self: &Arc<Self>, fill: impl FnOnce() -> Result<()>) -> Result<Graph> {
        // Other threads' calls are no concern of this capture: only this stream's order is recorded.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives and is not capturing.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(self.raw, mode) })?;
        let filled = fill();
        let mut graph = ptr::null_mut();
        // SAFETY: begun above.
        let ended = check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(self.raw, &raw mut graph) });
        if ended.is_err() {
            // Work would be recorded instead of run for ever after if the capture went on.
            // SAFETY: as above; where the capture has ended this is one more error.
            unsafe { sys::cuStreamEndCapture(self.raw, &raw mut graph) };
        }
        let mut captured = Graph { recorded: graph, exec: ptr::null_mut(), stream: self.clone() };
        filled.and(ended)?;
        if captured.recorded.is_null() {
            return Err(KernelError::Device("cuStreamEndCapture: the capture gave no graph".into()));
        }
        // SAFETY: the graph is whole.
        let made = unsafe { sys::cuGraphInstantiateWithFlags(&raw mut captured.exec, captured.recorded, 0) };
        check("cuGraphInstantiate", made)?;
        Ok(captured)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.context.bind_if_possible();
        // SAFETY: ours. Memory that its work uses is freed by owners that waited for it.
        unsafe { sys::cuStreamDestroy_v2(self.raw) };
    }
}

/// A point in a stream's work.
#[derive(Debug)]
pub(super) struct Event {
    raw: sys::CUevent,
    context: Arc<Context>,
}

// SAFETY: the driver's events may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// The point behind all that was submitted to the stream up to now.
    pub(super) fn record(stream: &Stream) -> Result<Self> {
        stream.context.bind()?;
        let mut raw = ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: the context is current.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&raw mut raw, flags) })?;
        let event = Self { raw, context: stream.context.clone() };
        // SAFETY: both live.
        check("cuEventRecord", unsafe { sys::cuEventRecord(event.raw, stream.raw) })?;
        Ok(event)
    }

    /// True when the stream has passed it.
    pub(super) fn is_done(&self) -> Result<bool> {
        // SAFETY: the event lives.
        match unsafe { sys::cuEventQuery(self.raw) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            code => check("cuEventQuery", code).map(|()| true),
        }
    }

    /// Waits until the stream has passed it.
    pub(super) fn wait(&self) -> Result<()> {
        // SAFETY: the event lives.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.raw) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.context.bind_if_possible();
        // SAFETY: ours; the driver keeps it until the stream has passed it.
        unsafe { sys::cuEventDestroy_v2(self.raw) };
    }
}

/// Page-locked host memory: copies from and to it run beside the computation.
#[derive(Debug)]
pub(super) struct Pinned {
    base: NonNull<u8>,
    len: usize,
    context: Arc<Context>,
}

// SAFETY: plain memory of one owner.
unsafe impl Send for Pinned {}
// SAFETY: shared access only reads.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// `len` zero bytes, not write-combined: the host reads them too.
    pub(super) fn zeroed(context: &Arc<Context>, len: usize) -> Result<Self> {
        context.bind()?;
        let mut base: *mut c_void = ptr::null_mut();
        // SAFETY: a place to write the address to.
        check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&raw mut base, len.max(1), 0) }).map_err(|error| {
            match error {
                KernelError::OutOfMemory(_) => KernelError::OutOfMemory(format!(
                    "{len} bytes of page-locked host memory; raise the container's memory limit or its `memlock` limit"
                )),
                other => other,
            }
        })?;
        let base = NonNull::new(base.cast::<u8>())
            .ok_or_else(|| KernelError::Device("cuMemHostAlloc gave no memory".into()))?;
        // SAFETY: new memory of this length.
        unsafe { base.as_ptr().write_bytes(0, len) };
        Ok(Self { base, len, context: context.clone() })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: ours, initialized, and only `bytes_mut` writes it.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.context.bind_if_possible();
        // SAFETY: ours; owners wait for copies that use it.
        unsafe { sys::cuMemFreeHost(self.base.as_ptr().cast()) };
    }
}

/// A loaded device image.
#[derive(Debug)]
pub(super) struct Module {
    raw: sys::CUmodule,
    context: Arc<Context>,
}

// SAFETY: the driver's modules may be used from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Loads a cubin.
    pub(super) fn load(context: &Arc<Context>, image: &[u8]) -> Result<Arc<Self>> {
        context.bind()?;
        let mut raw = ptr::null_mut();
        // SAFETY: the driver reads the image by its own headers, which `compile` checked to be a whole ELF file.
        check("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&raw mut raw, image.as_ptr().cast()) })?;
        Ok(Arc::new(Self { raw, context: context.clone() }))
    }

    /// An entry point, allowed this many bytes of dynamic shared memory.
    pub(super) fn function(self: &Arc<Self>, name: &str, shared: u32) -> Result<Function> {
        let entry = CString::new(name).map_err(|_| KernelError::Device(format!("a kernel named {name:?}")))?;
        let mut raw = ptr::null_mut();
        // SAFETY: the module lives, the name is a string.
        let found = unsafe { sys::cuModuleGetFunction(&raw mut raw, self.raw, entry.as_ptr()) };
        check(&format!("cuModuleGetFunction {name}"), found)?;
        // 48 KiB are allowed without asking.
        if shared > 48 * 1024 {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function was found.
            let set = unsafe { sys::cuFuncSetAttribute(raw, attribute, shared as c_int) };
            check(&format!("cuFuncSetAttribute {name}"), set)?;
        }
        Ok(Function { raw, _module: self.clone() })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        self.context.bind_if_possible();
        // SAFETY: ours; functions keep it alive.
        unsafe { sys::cuModuleUnload(self.raw) };
    }
}

/// An entry point of a module.
#[derive(Clone, Debug)]
pub(super) struct Function {
    raw: sys::CUfunction,
    _module: Arc<Module>,
}

// SAFETY: the driver's functions may be used from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    /// Submits a launch.
    ///
    /// # Safety
    /// Parameters must be what the kernel takes, and its pointers mapped when the stream gets there.
    pub(super) unsafe fn launch(
        &self,
        stream: &Stream,
        grid: [u32; 3],
        block: u32,
        shared: u32,
        parameters: &Parameters,
    ) -> Result<()> {
        let mut pointers = parameters.pointers();
        let [x, y, z] = grid;
        // SAFETY: the caller's promise; the driver copies the parameters before it returns.
        let launched = unsafe {
            sys::cuLaunchKernel(
                self.raw,
                x,
                y,
                z,
                block,
                1,
                1,
                shared,
                stream.raw,
                pointers.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        check("cuLaunchKernel", launched)
    }
}

/// Most parameters of a kernel, and most words of them: a structure passed by value takes several.
const MAX_PARAMETERS: usize = 24;
const MAX_WORDS: usize = 48;

/// A kernel's parameters by value, comparable: two launches with equal parameters do the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parameters {
    words: [u64; MAX_WORDS],
    /// Where each parameter starts.
    starts: [u8; MAX_PARAMETERS],
    count: u8,
    used: u8,
}

impl Parameters {
    pub(super) const fn new() -> Self {
        Self { words: [0; MAX_WORDS], starts: [0; MAX_PARAMETERS], count: 0, used: 0 }
    }

    /// Appends a parameter: a number, an address or a structure of them, as the kernel declares it.
    pub(super) fn with<T: bytemuck::NoUninit>(mut self, value: T) -> Self {
        const { assert!(align_of::<T>() <= 8, "parameters start at words") };
        let (start, words) = (usize::from(self.used), size_of::<T>().div_ceil(8));
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.words[start..start + words]);
        bytes[..size_of::<T>()].copy_from_slice(bytemuck::bytes_of(&value));
        self.starts[usize::from(self.count)] = self.used;
        self.count += 1;
        self.used += words as u8;
        self
    }

    fn pointers(&self) -> [*mut c_void; MAX_PARAMETERS] {
        let mut pointers = [ptr::null_mut(); MAX_PARAMETERS];
        for (pointer, start) in pointers.iter_mut().zip(&self.starts[..usize::from(self.count)]) {
            *pointer = ptr::from_ref(&self.words[usize::from(*start)]).cast_mut().cast();
        }
        pointers
    }
}

/// Recorded work that can be submitted again with one call.
#[derive(Debug)]
pub(super) struct Graph {
    recorded: sys::CUgraph,
    exec: sys::CUgraphExec,
    stream: Arc<Stream>,
}

// SAFETY: used by one thread at a time, through `&mut` of its owner or under its lock.
unsafe impl Send for Graph {}

impl Graph {
    /// Submits the recorded work to the stream it was recorded from.
    ///
    /// # Safety
    /// All memory of the recorded work must be mapped when the stream gets there.
    pub(super) unsafe fn launch(&self) -> Result<()> {
        // SAFETY: instantiated by `capture`; the caller's promise.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.exec, self.stream.raw) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.stream.context.bind_if_possible();
        if !self.exec.is_null() {
            // SAFETY: ours.
            unsafe { sys::cuGraphExecDestroy(self.exec) };
        }
        if !self.recorded.is_null() {
            // SAFETY: ours.
            unsafe { sys::cuGraphDestroy(self.recorded) };
        }
    }
}
