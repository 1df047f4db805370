//! Device images, their entry points, and launches.

use std::{
    ffi::{CString, c_int},
    ptr,
    sync::Arc,
};

use cudarc::driver::sys;

use super::{Context, Parameters, Stream, check};
use crate::{KernelError, Result};

/// A loaded device image.
#[derive(Debug)]
pub(in crate::cuda) struct Module {
    raw: sys::CUmodule,
    context: Arc<Context>,
}

// SAFETY: the driver's modules may be used from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Loads a cubin.
    pub(in crate::cuda) fn load(context: &Arc<Context>, image: &[u8]) -> Result<Arc<Self>> {
        context.bind()?;
        let mut raw = ptr::null_mut();
        // SAFETY: the driver reads the image by its own headers, which `compile` checked to be a whole ELF file.
        check("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&raw mut raw, image.as_ptr().cast()) })?;
        Ok(Arc::new(Self { raw, context: context.clone() }))
    }

    /// An entry point, allowed this many bytes of dynamic shared memory.
    pub(in crate::cuda) fn function(self: &Arc<Self>, name: &str, shared: u32) -> Result<Function> {
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
pub(in crate::cuda) struct Function {
    raw: sys::CUfunction,
    _module: Arc<Module>,
}

// SAFETY: the driver's functions may be used from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    /// Submits a launch. On a stream whose kernels overlap and right behind another kernel its blocks may start before that one is
    /// done (programmatic dependent launch): the kernel waits for it itself, by `grid_wait` of `kernels/prim.cuh`. Behind anything
    /// else, a wait for a copy among it, it starts when that is done.
    ///
    /// # Safety
    /// Parameters must be what the kernel takes, and its pointers mapped when the stream gets there. Every thread of the kernel
    /// must wait.
    pub(in crate::cuda) unsafe fn launch(
        &self,
        stream: &Stream,
        grid: [u32; 3],
        block: u32,
        shared: u32,
        parameters: &Parameters,
    ) -> Result<()> {
        let mut pointers = parameters.pointers();
        let [x, y, z] = grid;
        let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
        let (stream, overlaps) = stream.raw_for_kernel();
        value.programmaticStreamSerializationAllowed = i32::from(overlaps);
        let id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        let mut attribute = sys::CUlaunchAttribute { id, pad: [0; 4], value };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared,
            hStream: stream,
            attrs: &raw mut attribute,
            numAttrs: 1,
        };
        // SAFETY: the caller's promise; the driver copies configuration and parameters before it returns.
        let launched =
            unsafe { sys::cuLaunchKernelEx(&raw const config, self.raw, pointers.as_mut_ptr(), ptr::null_mut()) };
        check("cuLaunchKernelEx", launched)
    }
}
