//! `modelprofile simulate`: what a manifest would do on hardware that nobody has at hand.
//!
//! | module | what it holds |
//! |---|---|
//! | `hardware` | [`Hardware`]: the data sheet of an accelerator |
//! | `shape` | [`ModelShape`]: the dimensions of a model, and its bytes and operations |
//! | `roofline` | [`Roofline`]: how long a step takes |
//! | `published` | the step time held against published throughput |

mod fields;
mod hardware;
mod published;
mod roofline;
mod shape;

pub use hardware::{Flops, Hardware, Interconnect};
pub use published::{REGENERATE, report};
pub use roofline::{Batch, Constants, Precision, Roofline};
pub use shape::{ModelShape, bits_per_weight};
