//! Work in order: streams, and points in them that others can wait for.

use std::{
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use cudarc::driver::sys;

use super::{Address, Context, check};
use crate::Result;

/// A queue of work on the device.
#[derive(Debug)]
pub(in crate::cuda) struct Stream {
    raw: sys::CUstream,
    context: Arc<Context>,
    /// The last thing submitted is a kernel of ours, which lets the next one start.
    behind_kernel: AtomicBool,
    overlaps: AtomicBool,
}

// SAFETY: the driver's streams may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream that does not wait for the default stream.
    pub(in crate::cuda) fn new(context: &Arc<Context>) -> Result<Arc<Self>> {
        context.bind()?;
        let mut raw = ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is current.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&raw mut raw, flags) })?;
        Ok(Arc::new(Self {
            raw,
            context: context.clone(),
            behind_kernel: AtomicBool::new(false),
            overlaps: AtomicBool::new(false),
        }))
    }

    /// For a call that submits something. What follows it waits for all of it.
    pub(in crate::cuda) fn raw(&self) -> sys::CUstream {
        self.behind_kernel.store(false, Ordering::Relaxed);
        self.raw
    }

    /// For the launch of a kernel that waits for the one ahead itself; whether it comes right behind such a one. Streams are
    /// submitted to by one thread at a time.
    pub(super) fn raw_for_kernel(&self) -> (sys::CUstream, bool) {
        let behind_kernel = self.behind_kernel.swap(true, Ordering::Relaxed);
        (self.raw, behind_kernel && self.overlaps.load(Ordering::Relaxed))
    }

    /// Whether kernels that come right behind each other may overlap, from now on.
    pub(in crate::cuda) fn overlap(&self, on: bool) {
        self.overlaps.store(on, Ordering::Relaxed);
    }

    pub(in crate::cuda) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Waits until all work of the stream is done; tells what failed in it.
    pub(in crate::cuda) fn synchronize(&self) -> Result<()> {
        self.context.bind()?;
        // SAFETY: the stream lives.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.raw) })
    }

    /// True when all work of the stream is done; does not wait.
    pub(in crate::cuda) fn is_idle(&self) -> Result<bool> {
        self.context.bind()?;
        // SAFETY: the stream lives.
        match unsafe { sys::cuStreamQuery(self.raw) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            code => check("cuStreamQuery", code).map(|()| true),
        }
    }

    /// True when the context takes no work any more. Does not wait.
    pub(in crate::cuda) fn is_lost(&self) -> bool {
        let bound = self.context.bind();
        // SAFETY: the stream lives.
        let code = unsafe { sys::cuStreamQuery(self.raw) };
        bound.is_err() || !matches!(code, sys::CUresult::CUDA_SUCCESS | sys::CUresult::CUDA_ERROR_NOT_READY)
    }

    /// Work submitted from now on waits for the event.
    pub(in crate::cuda) fn wait(&self, event: &Event) -> Result<()> {
        // SAFETY: both live.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(self.raw(), event.raw, 0) })
    }

    /// Copies pinned host memory to the device when the stream gets there.
    ///
    /// # Safety
    /// `from` and `len` bytes of it must stay untouched until the stream has done the copy; `to` must be mapped for
    /// `len` bytes then.
    pub(in crate::cuda) unsafe fn upload(&self, to: Address, from: *const u8, len: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        check("cuMemcpyHtoDAsync", unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast(), len, self.raw()) })
    }

    /// Copies from the device to host memory.
    ///
    /// # Safety
    /// `to` must be valid for `len` bytes until the stream has done the copy; `from` must be mapped for `len` bytes.
    pub(in crate::cuda) unsafe fn download(&self, to: *mut u8, from: Address, len: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        check("cuMemcpyDtoHAsync", unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, len, self.raw()) })
    }

    /// Fills a range with a word.
    ///
    /// # Safety
    /// The range must be mapped when the stream gets there.
    pub(in crate::cuda) unsafe fn fill(&self, at: Address, word: u32, count: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        check("cuMemsetD32Async", unsafe { sys::cuMemsetD32Async(at, word, count, self.raw()) })
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
pub(in crate::cuda) struct Event {
    raw: sys::CUevent,
    context: Arc<Context>,
}

// SAFETY: the driver's events may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// The point behind all that was submitted to the stream up to now.
    pub(in crate::cuda) fn record(stream: &Stream) -> Result<Self> {
        stream.context.bind()?;
        let mut raw = ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: the context is current.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&raw mut raw, flags) })?;
        let event = Self { raw, context: stream.context.clone() };
        // SAFETY: both live.
        check("cuEventRecord", unsafe { sys::cuEventRecord(event.raw, stream.raw()) })?;
        Ok(event)
    }

    /// True when the stream has passed it.
    pub(in crate::cuda) fn is_done(&self) -> Result<bool> {
        // SAFETY: the event lives.
        match unsafe { sys::cuEventQuery(self.raw) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            code => check("cuEventQuery", code).map(|()| true),
        }
    }

    /// Waits until the stream has passed it.
    pub(in crate::cuda) fn wait(&self) -> Result<()> {
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
