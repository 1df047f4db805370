//! Host memory that the device copies from and to by itself.

use std::{
    ffi::c_void,
    ptr::{self, NonNull},
    sync::Arc,
};

use cudarc::driver::sys;

use super::{Context, check};
use crate::{KernelError, Result};

/// Page-locked host memory: copies from and to it run beside the computation.
#[derive(Debug)]
pub(in crate::cuda) struct Pinned {
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
    pub(in crate::cuda) fn zeroed(context: &Arc<Context>, len: usize) -> Result<Self> {
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

    pub(in crate::cuda) fn bytes(&self) -> &[u8] {
        // SAFETY: ours, initialized, and only `bytes_mut` writes it.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }

    pub(in crate::cuda) fn bytes_mut(&mut self) -> &mut [u8] {
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
