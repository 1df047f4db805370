//! Products of cuBLASLt: BF16, FP8 and INT8, planned once per shape.
//!
//! ```text
//! out [rows, n] (FP32, row-major)  =  x [rows, k]  w [n, k]^T
//! as cuBLASLt sees it, column-major:  D [n, rows] = A^T B  with A = w as [k, n], B = x as [k, rows]
//! ```
//!
//! So both operands lie with k consecutive ("TN"), the one form of FP8 on this architecture, and nothing is transposed.
//!
//! The library is loaded when it is there; without it the backend's own kernels compute everything.

use std::{
    collections::HashMap,
    ffi::c_void,
    ptr,
    sync::{Arc, Mutex},
};

use cudarc::cublaslt::sys;

use super::{
    driver::{Address, Stream},
    libraries::{Library, load},
    memory::{Block, lock},
    work::{Cores, Work, floats},
};
use crate::{KernelError, Result};

/// What operands are and what comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Operands {
    /// BF16 with BF16, out FP32.
    Bf16,
    /// E4M3 with E4M3, out FP32, without scales: a kernel multiplies with them afterwards.
    Fp8,
    /// E4M3 with E4M3, each row of either with a scale of its own, out FP32.
    Fp8Scaled,
    /// INT8 with INT8, out INT32.
    Int8,
}

/// A product's kind and shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    /// Types.
    pub(super) operands: Operands,
    /// Rows of x and out.
    pub(super) rows: usize,
    /// Columns of out.
    pub(super) n: usize,
    /// Columns of x and w.
    pub(super) k: usize,
    /// Adds to what out holds (FP32 only).
    pub(super) add: bool,
}

impl Shape {
    /// What the library asks of shapes: rows of operands at multiples of 16 bytes, and for 8-bit operands sides that are
    /// multiples of 16.
    pub(super) fn is_aligned(&self) -> bool {
        match self.operands {
            Operands::Bf16 => self.k.is_multiple_of(8) && self.n.is_multiple_of(4),
            Operands::Fp8 | Operands::Fp8Scaled => self.k.is_multiple_of(16) && self.n.is_multiple_of(16),
            Operands::Int8 => self.k.is_multiple_of(16) && self.n.is_multiple_of(16) && !self.add,
        }
    }
}

impl Shape {
    /// Its bytes and operations.
    pub(super) fn work(&self) -> Work {
        let (bytes, scales, cores) = match self.operands {
            Operands::Bf16 => (2, 0, Cores::LibraryBf16),
            Operands::Fp8 => (1, 0, Cores::LibraryFp8),
            Operands::Fp8Scaled => (1, self.rows + self.n, Cores::LibraryFp8),
            Operands::Int8 => (1, 0, Cores::LibraryInt8),
        };
        let out = floats(self.rows * self.n);
        let read = bytes * (self.n + self.rows) * self.k + floats(scales) + if self.add { out } else { 0 };
        Work::bytes(read, out).with(2 * self.rows * self.n * self.k, cores)
    }

    /// Its name in lists of kernels.
    pub(super) fn name(&self) -> &'static str {
        match self.operands {
            Operands::Bf16 => "cublaslt_bf16",
            Operands::Fp8 => "cublaslt_fp8",
            Operands::Fp8Scaled => "cublaslt_fp8_scaled",
            Operands::Int8 => "cublaslt_int8",
        }
    }
}

/// One product, by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Product {
    /// Kind and shape.
    pub(super) shape: Shape,
    /// `[rows, k]`.
    pub(super) x: Address,
    /// `[n, k]`.
    pub(super) w: Address,
    /// `[rows, n]`.
    pub(super) out: Address,
    /// Scales of x's rows and w's rows; read by [`Operands::Fp8Scaled`].
    pub(super) scales: [Address; 2],
}

fn check(call: &str, code: sys::cublasStatus_t) -> Result<()> {
    if code == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        return Ok(());
    }
    Err(KernelError::Device(format!("{call}: {code:?}")))
}

/// The library, its workspace, and the plans made so far.
pub(super) struct Lt {
    handle: sys::cublasLtHandle_t,
    workspace: Block,
    /// None: the library has no algorithm for the shape.
    plans: Mutex<HashMap<Shape, Option<Arc<Plan>>>>,
}

// SAFETY: a handle may be used from any thread; plans are behind a lock.
unsafe impl Send for Lt {}

impl Lt {
    /// Loads the library.
    ///
    /// # Errors
    /// [`KernelError::Device`]: it is not there; where was looked, and what helps.
    pub(super) fn load() -> Result<()> {
        load(Library::CublasLt).map(drop)
    }

    /// Begins to use the library, which is loaded, in the current context.
    pub(super) fn new(workspace: Block) -> Result<Self> {
        let mut handle = ptr::null_mut();
        // SAFETY: a place to write.
        check("cublasLtCreate", unsafe { sys::cublasLtCreate(&raw mut handle) })?;
        Ok(Self { handle, workspace, plans: Mutex::default() })
    }

    /// True when the library has an algorithm for the shape.
    pub(super) fn takes(&self, shape: Shape) -> Result<bool> {
        Ok(self.plan(shape)?.is_some())
    }

    fn plan(&self, shape: Shape) -> Result<Option<Arc<Plan>>> {
        let mut plans = lock(&self.plans);
        if let Some(plan) = plans.get(&shape) {
            return Ok(plan.clone());
        }
        let plan =
            if shape.is_aligned() { Plan::new(self.handle, shape, &self.workspace)?.map(Arc::new) } else { None };
        plans.insert(shape, plan.clone());
        Ok(plan)
    }

    /// Submits a product.
    pub(super) fn submit(&self, stream: &Stream, product: &Product) -> Result<()> {
        let Some(plan) = self.plan(product.shape)? else {
            return Err(KernelError::Shape(format!("cuBLASLt has no algorithm for {:?}", product.shape)));
        };
        if product.shape.operands == Operands::Fp8Scaled {
            use sys::cublasLtMatmulDescAttributes_t as Attribute;
            let [x, w] = product.scales;
            // The description is read when the product is submitted: the next one may set others.
            plan.set(Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &w)?;
            plan.set(Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &x)?;
        }
        let float = [1.0f32, if product.shape.add { 1.0 } else { 0.0 }];
        let integer = [1i32, 0];
        let [alpha, beta]: [*const c_void; 2] = if product.shape.operands == Operands::Int8 {
            [(&raw const integer[0]).cast(), (&raw const integer[1]).cast()]
        } else {
            [(&raw const float[0]).cast(), (&raw const float[1]).cast()]
        };
        let out = product.out as *mut c_void;
        // SAFETY: a plan of this shape; whoever made the product owns its memory; the workspace is used in stream order.
        let submitted = unsafe {
            sys::cublasLtMatmul(
                self.handle,
                plan.description.0,
                alpha,
                product.w as *const c_void,
                plan.w.0,
                product.x as *const c_void,
                plan.x.0,
                beta,
                out,
                plan.out.0,
                out,
                plan.out.0,
                &raw const plan.algorithm,
                self.workspace.address() as *mut c_void,
                self.workspace.len(),
                stream.raw().cast(),
            )
        };
        check("cublasLtMatmul", submitted)
    }
}

impl Drop for Lt {
    fn drop(&mut self) {
        lock(&self.plans).clear();
        // SAFETY: ours.
        unsafe { sys::cublasLtDestroy(self.handle) };
    }
}

struct Description(sys::cublasLtMatmulDesc_t);

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: ours.
        unsafe { sys::cublasLtMatmulDescDestroy(self.0) };
    }
}

struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(of: sys::cudaDataType_t, rows: usize, columns: usize) -> Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: a place to write.
        let made =
            unsafe { sys::cublasLtMatrixLayoutCreate(&raw mut raw, of, rows as u64, columns as u64, rows as i64) };
        check("cublasLtMatrixLayoutCreate", made)?;
        Ok(Self(raw))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: ours.
        unsafe { sys::cublasLtMatrixLayoutDestroy(self.0) };
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: ours.
        unsafe { sys::cublasLtMatmulPreferenceDestroy(self.0) };
    }
}

/// The algorithm for a shape.
struct Plan {
    description: Description,
    w: Layout,
    x: Layout,
    out: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

// SAFETY: descriptions are changed and read under the lock of the plans' owner, by one thread at a time.
unsafe impl Send for Plan {}
// SAFETY: as above.
unsafe impl Sync for Plan {}

impl Plan {
    /// None when the library has no algorithm.
    fn new(handle: sys::cublasLtHandle_t, shape: Shape, workspace: &Block) -> Result<Option<Self>> {
        use sys::{
            cublasComputeType_t as Compute, cublasLtMatmulDescAttributes_t as Attribute, cudaDataType_t as Type,
        };
        let (operand, out, compute, scale) = match shape.operands {
            Operands::Bf16 => (Type::CUDA_R_16BF, Type::CUDA_R_32F, Compute::CUBLAS_COMPUTE_32F, Type::CUDA_R_32F),
            Operands::Fp8 | Operands::Fp8Scaled => {
                (Type::CUDA_R_8F_E4M3, Type::CUDA_R_32F, Compute::CUBLAS_COMPUTE_32F, Type::CUDA_R_32F)
            }
            Operands::Int8 => (Type::CUDA_R_8I, Type::CUDA_R_32I, Compute::CUBLAS_COMPUTE_32I, Type::CUDA_R_32I),
        };
        let mut raw = ptr::null_mut();
        // SAFETY: a place to write.
        check("cublasLtMatmulDescCreate", unsafe { sys::cublasLtMatmulDescCreate(&raw mut raw, compute, scale) })?;
        let mut plan = Self {
            description: Description(raw),
            w: Layout::new(operand, shape.k, shape.n)?,
            x: Layout::new(operand, shape.k, shape.rows)?,
            out: Layout::new(out, shape.n, shape.rows)?,
            // SAFETY: a C structure of numbers.
            algorithm: unsafe { std::mem::zeroed() },
        };
        const TRANSPOSED: i32 = 1;
        plan.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        if shape.operands == Operands::Fp8Scaled {
            // One FP32 factor per row of either operand. Libraries before 12.9 do not know the mode: then no algorithm.
            const OUTER_VECTOR: i32 = 3;
            for attribute in
                [Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_MODE, Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_MODE]
            {
                if plan.set(attribute, &OUTER_VECTOR).is_err() {
                    return Ok(None);
                }
            }
            // The mode is complete with pointers only; those of a product come when it is submitted.
            let place = workspace.address();
            plan.set(Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &place)?;
            plan.set(Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &place)?;
        }
        let mut raw = ptr::null_mut();
        // SAFETY: a place to write.
        check("cublasLtMatmulPreferenceCreate", unsafe { sys::cublasLtMatmulPreferenceCreate(&raw mut raw) })?;
        let preference = Preference(raw);
        let bytes = workspace.len();
        let most = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        // SAFETY: the attribute is a size.
        let set = unsafe {
            sys::cublasLtMatmulPreferenceSetAttribute(raw, most, (&raw const bytes).cast(), size_of::<usize>())
        };
        check("cublasLtMatmulPreferenceSetAttribute", set)?;
        // SAFETY: a C structure of numbers.
        let mut best: sys::cublasLtMatmulHeuristicResult_t = unsafe { std::mem::zeroed() };
        let mut found = 0;
        // SAFETY: descriptions that live, room for one result.
        let asked = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                handle,
                plan.description.0,
                plan.w.0,
                plan.x.0,
                plan.out.0,
                plan.out.0,
                preference.0,
                1,
                &raw mut best,
                &raw mut found,
            )
        };
        match asked {
            sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED | sys::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE => {
                return Ok(None);
            }
            code => check("cublasLtMatmulAlgoGetHeuristic", code)?,
        }
        if found == 0 || best.state != sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS {
            return Ok(None);
        }
        plan.algorithm = best.algo;
        Ok(Some(plan))
    }

    fn set<T: Copy>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
        // SAFETY: the description lives; the callers pass what the attribute is.
        let set = unsafe {
            sys::cublasLtMatmulDescSetAttribute(
                self.description.0,
                attribute,
                ptr::from_ref(value).cast(),
                size_of::<T>(),
            )
        };
        check("cublasLtMatmulDescSetAttribute", set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_the_library_cannot_take_are_known_beforehand() {
        let shape = |operands, n, k, add| Shape { operands, rows: 3, n, k, add }.is_aligned();
        assert!(shape(Operands::Bf16, 12, 72, true));
        assert!(!shape(Operands::Bf16, 12, 68, true));
        assert!(shape(Operands::Fp8Scaled, 48, 64, true));
        assert!(!shape(Operands::Fp8, 40, 64, false));
        assert!(!shape(Operands::Int8, 48, 64, true));
    }
}
