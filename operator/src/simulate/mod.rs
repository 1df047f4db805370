//! `modelprofile simulate`: what a manifest would do on hardware that nobody has at hand.
//!
//! | module | what it holds |
//! |---|---|
//! | `hardware` | [`Hardware`]: the data sheet of an accelerator |
//! | `shape` | [`ModelShape`]: the dimensions of a model, and its bytes and operations |
//! | `roofline` | [`Roofline`]: how long a step takes |
//! | `replica` | [`Replica`]: one worker, its batch and its KV cache |
//! | `fleet` | [`simulate`]: workers, traffic and the real decision |
//! | `compare` | six ways to serve the same traffic, and the table |
//! | `picture` | [`svg`]: the same as a picture |
//! | `histogram` | [`Histogram`]: percentiles in constant memory |
//! | `published` | the step time held against published throughput |

mod compare;
mod fields;
mod fleet;
mod hardware;
mod histogram;
mod picture;
mod published;
mod replica;
mod roofline;
mod shape;

pub use compare::{Setting, ladder, scenarios, table};
pub use fleet::{Column, Outcome, Scenario, simulate};
pub use hardware::{Flops, Hardware, Interconnect};
pub use histogram::Histogram;
pub use picture::svg;
pub use published::{REGENERATE, report, summary};
pub use replica::{Finished, Interval, Replica, RungModel, Sequence};
pub use roofline::{Batch, Constants, Precision, Roofline};
pub use shape::{ModelShape, bits_per_weight};

#[cfg(test)]
mod tests;
