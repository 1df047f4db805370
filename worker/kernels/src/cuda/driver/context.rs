//! The context that everything else belongs to.

use std::{ptr, sync::Arc};

use cudarc::driver::sys;

use super::check;
use crate::Result;

/// A device's primary context. Everything below keeps it alive.
#[derive(Debug)]
pub(in crate::cuda) struct Context {
    device: sys::CUdevice,
    raw: sys::CUcontext,
}

// SAFETY: a context may be current on several threads at once; the driver locks it.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Retains the primary context of a device that `cuDeviceGet` gave.
    pub(in crate::cuda) fn retain(device: sys::CUdevice) -> Result<Arc<Self>> {
        let mut raw = ptr::null_mut();
        // SAFETY: the device is the driver's.
        check("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut raw, device) })?;
        let context = Arc::new(Self { device, raw });
        context.bind()?;
        Ok(context)
    }

    /// Makes the context current on this thread: every entry of the backend begins with it, since a worker makes a
    /// device on one thread and computes on another.
    pub(in crate::cuda) fn bind(&self) -> Result<()> {
        // SAFETY: the context lives while `self` does.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.raw) })
    }

    /// As [`Self::bind`], for what frees: when it fails, freeing is tried all the same, and fails by itself if it must.
    pub(in crate::cuda) fn bind_if_possible(&self) {
        let _ = self.bind();
    }

    /// Free and total bytes of the device, by the driver's count.
    pub(in crate::cuda) fn free_and_total(&self) -> Result<(usize, usize)> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: two places to write.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) })?;
        Ok((free, total))
    }

    pub(in crate::cuda) fn device(&self) -> sys::CUdevice {
        self.device
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once; nothing of it is left, since everything holds an `Arc` of it.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}
