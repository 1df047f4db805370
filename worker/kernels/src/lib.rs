//! Number formats and compute. The only crate of the workspace with unsafe code.
//!
//! | module | what it holds |
//! |---|---|
//! | [`weight`], [`packed`] | quantized weights as values, and in a device's layout |
//! | [`kv`] | the paged KV cache's formats and geometry |
//! | [`plan`] | one engine step, described for a backend |
//! | [`backend`] | the traits that model code is written against |
//! | [`map`] | memory-mapped files |

pub mod backend;
mod error;
pub mod kv;
pub mod map;
pub mod packed;
pub mod plan;
pub mod weight;

pub use backend::{AttentionShape, Backend, Device, HostTensor, Rotary, Store};
pub use error::{KernelError, Result};
pub use kv::{BLOCK_TOKENS, BlockMove, KvFormat, KvLayout, KvScales};
pub use map::MappedFile;
pub use packed::{AlignedBytes, Bytes, PackedWeight};
pub use plan::{SequenceSpan, StepPlan};
pub use weight::{GroupedActivations, HostWeight, WeightKind, WeightSpec};
