//! The CPU backend.
//!
//! | module | what it does |
//! |---|---|
//! | [`isa`] | which instruction set, at run time |
//! | [`threads`] | the compute threads: fork and join with a spinning barrier |
//! | [`activations`] | activations quantized as a weight kind wants them |
//! | [`linear`] | products: the choice of kernel, and the reference |
//! | `avx512` | products with VNNI and BF16 instructions |
//! | `avx2` | products with AVX2 and FMA |
//! | [`kv`] | the paged pool in reserved memory |
//! | [`attention`] | paged attention |
//! | [`elementwise`] | norms, rotation, gated activation |
//! | [`device`] | [`Cpu`]: threads, buffers, products |
//! | `backend` | the operations of a step with these |
//! | `gemm` | products of FP32 and FP64 matrices |
//! | `rounding` | what rounding in groups makes of rows |
//! | `calibrate` | the statistics of calibration with these |
//! | [`probe`] | the machine's own limits, measured |

pub mod activations;
pub mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod backend;
mod calibrate;
pub mod device;
pub mod elementwise;
pub(crate) mod gemm;
pub mod isa;
pub mod kv;
pub mod linear;
pub mod probe;
mod rounding;
pub mod threads;

pub use device::{Cpu, CpuOptions};
pub use isa::Isa;
