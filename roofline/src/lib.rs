//! What accelerators and models are in numbers, and how long work takes by them: the one set of figures of the simulator
//! (`modelprofile simulate`, `recommend`) and of the GPU's kernel-by-kernel plan (`modelprofile-worker bench --plan`).
//!
//! ```text
//! Hardware (data sheet)  x  Constants (what is reached)  ->  Ceilings  ->  seconds and bound of a kernel
//!                                                                     \->  Roofline: seconds of a whole step
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | `hardware` | [`Hardware`]: the data sheet of an accelerator |
//! | `shape` | [`ModelShape`]: the dimensions of a model, and its bytes and operations |
//! | `catalog` | the hardware and the models that are known by name |
//! | `ceilings` | [`Ceilings`]: what divides bytes and operations into seconds |
//! | `step` | [`Roofline`]: how long a step takes, without looking at its kernels |
//! | `published` | [`published::ROWS`]: measured throughput that both are held against |
//!
//! Every time is modelled. `make gpu-check` measures beside them.

mod catalog;
mod ceilings;
mod fields;
mod hardware;
pub mod published;
mod shape;
mod step;

pub use catalog::{hardware, hardware_names, model, model_names};
pub use ceilings::{Bound, Ceilings, Constants, Cost, Unit};
pub use fields::DescriptionError;
pub use hardware::{Flops, Hardware, Interconnect};
pub use shape::{ModelShape, bits_per_weight};
pub use step::{Batch, Precision, Roofline};
