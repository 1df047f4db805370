//! Work that is recorded once and submitted often.

use std::{ptr, sync::Arc};

use cudarc::driver::sys;

use super::{Stream, check};
use crate::{KernelError, Result};

/// Recorded work that can be submitted again with one call.
#[derive(Debug)]
pub(in crate::cuda) struct Graph {
    recorded: sys::CUgraph,
    exec: sys::CUgraphExec,
    stream: Arc<Stream>,
}

// SAFETY: used by one thread at a time, through `&mut` of its owner or under its lock.
unsafe impl Send for Graph {}

impl Stream {
    /// Records what `fill` submits to this stream as a graph instead of running it.
    ///
    /// # Errors
    /// What `fill` or the driver says; the stream is out of the capture in any case.
    pub(in crate::cuda) fn capture(self: &Arc<Self>, fill: impl FnOnce() -> Result<()>) -> Result<Graph> {
        // Other threads' calls are no concern of this capture: only this stream's order is recorded.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives and is not capturing.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(self.raw(), mode) })?;
        let filled = fill();
        let mut graph = ptr::null_mut();
        // SAFETY: begun above.
        let ended = check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(self.raw(), &raw mut graph) });
        if ended.is_err() {
            // Work would be recorded instead of run for ever after if the capture went on.
            // SAFETY: as above; where the capture has ended this is one more error.
            unsafe { sys::cuStreamEndCapture(self.raw(), &raw mut graph) };
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

impl Graph {
    /// Submits the recorded work to the stream it was recorded from.
    ///
    /// # Safety
    /// All memory of the recorded work must be mapped when the stream gets there.
    pub(in crate::cuda) unsafe fn launch(&self) -> Result<()> {
        // SAFETY: instantiated by `capture`; the caller's promise.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.exec, self.stream.raw()) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.stream.context().bind_if_possible();
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
