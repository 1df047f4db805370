//! Number formats and compute. The only crate of the workspace with unsafe code.
//!
//! | module | what it holds |
//! |---|---|
//! | [`weight`] | kinds and shapes of linear weights |
//! | [`host`], [`packed`] | quantized weights as values, and in a device's layout |
//! | [`kv`] | the paged KV cache's formats and geometry |
//! | [`plan`] | one engine step, described for a backend |
//! | [`backend`] | the traits that model code is written against |
//! | [`mod@calibrate`] | what calibrated quantization needs of a device |
//! | [`dense`] | dense algebra of calibration, on the host |
//! | [`mod@format`] | E4M3 and E5M2 |
//! | [`rtn`] | round to nearest: FP32 rows into codes |
//! | [`pack`](mod@pack) | the CPU's weight layout |
//! | [`cpu`] | the CPU backend |
//! | [`cuda`] | the GPU backend, with the feature `cuda` |
//! | [`map`] | memory-mapped files |
//! | [`end_process`] | the end of a process that computes |

pub mod backend;
pub mod calibrate;
pub mod cpu;
pub mod cuda;
pub mod dense;
pub mod draw;
mod end;
mod error;
pub mod format;
pub mod host;
pub mod kv;
pub mod map;
pub mod pack;
pub mod packed;
pub mod plan;
pub mod rtn;
pub mod weight;

pub use backend::{AttentionShape, Backend, Device, HostTensor, Presence, Rotary, Split, Store, Workload};
pub use calibrate::{Calibrate, GroupRounding};
pub use draw::Draw;
pub use end::end_process;
pub use error::{KernelError, Result};
pub use host::HostWeight;
pub use kv::{BLOCK_TOKENS, BlockMove, KvFormat, KvLayout, KvScales};
pub use map::MappedFile;
pub use pack::{Stack, pack, packed_len, panel_count};
pub use packed::{AlignedBytes, Bytes, PackedWeight};
pub use plan::{SequenceSpan, StepPlan};
pub use weight::{FP8_BLOCK, GroupedActivations, MAX_OUTLIERS, WeightKind, WeightSpec};
