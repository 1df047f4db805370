//! `modelprofile simulate`: what a manifest would do on hardware that nobody has at hand.
//!
//! | module | what it holds |
//! |---|---|
//! | `hardware` | [`Hardware`]: the data sheet of an accelerator |
//! | `shape` | [`ModelShape`]: the dimensions of a model, and its bytes and operations |

mod fields;
mod hardware;
mod shape;

pub use hardware::{Flops, Hardware, Interconnect};
pub use shape::{ModelShape, bits_per_weight};
