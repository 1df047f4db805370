//! `modelprofile simulate`: what a manifest would do on hardware that nobody has at hand.
//!
//! | module | what it holds |
//! |---|---|
//! | `replica` | [`Replica`]: one worker, its batch and its KV cache |
//! | `fleet` | [`simulate`]: workers, traffic and the real decision |
//! | `compare` | six ways to serve the same traffic, and the table |
//! | `picture` | [`svg`]: the same as a picture |
//! | `histogram` | [`Histogram`]: percentiles in constant memory |
//! | `published` | the step time held against published throughput |
//!
//! Hardware, model shapes and step times are those of `modelprofile-roofline`, which the worker's `bench --plan` has too.

mod compare;
mod fleet;
mod histogram;
mod picture;
mod published;
mod replica;

pub use compare::{Setting, ladder, scenarios, table};
pub use fleet::{Column, Outcome, Scenario, simulate};
pub use histogram::Histogram;
pub use modelprofile_roofline::{
    Batch, Constants, Flops, Hardware, Interconnect, ModelShape, Precision, Roofline, bits_per_weight,
};
pub use picture::svg;
pub use published::{REGENERATE, report, summary};
pub use replica::{Finished, Interval, Replica, RungModel, Sequence};

#[cfg(test)]
mod tests;
