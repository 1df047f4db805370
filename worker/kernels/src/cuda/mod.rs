//! The GPU backend. Without the feature `cuda` only the pure parts are built.
//!
//! | module | what it does |
//! |---|---|
//! | [`layout`] | the GPU's weight layouts: pure packing |
//! | `device` | finding a GPU, and whether it can be computed on |
//! | `libraries` | finding the driver's and CUDA's libraries |
//! | `driver` | the driver's objects as values that free themselves |
//! | `compile` | kernel sources into device images, kept on disk |
//! | `table`, `arguments` | the table of kernels; what they take, by type |
//! | `kernels` | a device's kernels; launches of them as values |
//! | `launch` | typed launches: grids and shared memory |
//! | `memory`, `physical` | address ranges; the chunks below them, the budget |
//! | `kv` | the paged pool |
//! | `weights` | weights on the host and, while used, on the device |
//! | `cublaslt` | products of cuBLASLt |
//! | `graph` | the queue of work; recorded decode steps |
//! | `step`, `staging` | a step's description on the device; the way there |
//! | `content` | what buffers hold: values, or the promise of a norm or a gated activation |
//! | `scratch` | memory between the kernels of one operation |
//! | `reserve` | how much of it steps need, set aside before they come |
//! | `shared` | device and queue, which everything shares |
//! | `open` | `Cuda`: an opened GPU with its memory and queue |
//! | `storage`, `backend` | the traits, implemented for it |
//! | `operations`, `linear`, `attention` | the operations of a step: what is checked, and what launched |
//! | `executor` | what those are written against: `Cuda`, or a plan |
//! | `present` | the present step, as they see it |
//! | `draw` | tokens drawn from logits |
//! | `calibrate` | statistics of calibration |
//! | `parallel` | `Parallel`: several of them that compute one model together |
//! | `collective`, `nccl` | what a `Cuda` does for that; sums over devices |
//! | `work` | the bytes and operations of a launch |
//! | `plan` | `Planner`: the kernels of a step, without a device |
//! | `profile` | how long each kernel of a step takes on the device |
//!
//! ```text
//! Backend -> operations -> Command (a launch by value) -> Queue -> stream, or a recorded graph
//!                                                     \-> Planner: a list
//! ```
//!
//! # Threads
//! One thread computes (of several devices, one each). Buffers, weights and pools may be dropped on any other; everything they
//! share is locked.

pub mod layout;

#[cfg(feature = "cuda")]
mod arguments;
#[cfg(feature = "cuda")]
mod attention;
#[cfg(feature = "cuda")]
mod backend;
#[cfg(feature = "cuda")]
mod calibrate;
#[cfg(feature = "cuda")]
mod collective;
#[cfg(feature = "cuda")]
mod compile;
#[cfg(feature = "cuda")]
mod content;
#[cfg(feature = "cuda")]
mod cublaslt;
#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
mod draw;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "cuda")]
mod executor;
#[cfg(feature = "cuda")]
mod graph;
#[cfg(feature = "cuda")]
mod kernels;
#[cfg(feature = "cuda")]
mod kv;
#[cfg(feature = "cuda")]
mod launch;
#[cfg(feature = "cuda")]
mod libraries;
#[cfg(feature = "cuda")]
mod linear;
#[cfg(feature = "cuda")]
mod memory;
#[cfg(feature = "cuda")]
mod nccl;
#[cfg(feature = "cuda")]
mod open;
#[cfg(feature = "cuda")]
mod operand;
#[cfg(feature = "cuda")]
mod operations;
#[cfg(feature = "cuda")]
mod parallel;
#[cfg(feature = "cuda")]
mod physical;
#[cfg(feature = "cuda")]
mod plan;
#[cfg(feature = "cuda")]
mod present;
#[cfg(feature = "cuda")]
mod profile;
#[cfg(feature = "cuda")]
mod reserve;
#[cfg(feature = "cuda")]
mod scratch;
#[cfg(feature = "cuda")]
mod shared;
#[cfg(feature = "cuda")]
mod staging;
#[cfg(feature = "cuda")]
mod step;
#[cfg(feature = "cuda")]
mod storage;
#[cfg(feature = "cuda")]
mod table;
#[cfg(feature = "cuda")]
mod weights;
#[cfg(feature = "cuda")]
mod work;

#[cfg(feature = "cuda")]
pub use self::{
    compile::{Images, Origin, Unit, nvrtc_options},
    content::CudaBuffer,
    device::{CudaOptions, DeviceInfo, available, usable},
    kernels::ship,
    kv::CudaKv,
    libraries::look_first_in,
    open::Cuda,
    parallel::{Parallel, ParallelBuffer, ParallelKv, ParallelStep, ParallelWeight},
    physical::Physical,
    plan::{PlanBuffer, PlanKv, PlanOptions, PlanStep, PlanWeight, Planned, Planner, What},
    profile::{Bandwidth, Profiled},
    step::CudaStep,
    table::{EntryPoint, entry_points, units},
    weights::CudaWeight,
    work::{Cores, MMA_SYNC_SHARE, Work},
};
