//! `modelprofile recommend`: which ladder suits a model on given hardware, with the reasons.
//!
//! | module | what it holds |
//! |---|---|
//! | `tree` | [`recommend`]: the decision tree, pure |
//! | `ladder` | the rungs that are considered, and what each holds |
//! | `impossible` | what to say where nothing fits |
//! | `manifest` | a [`Plan`] as a manifest with its reasons in comments |
//! | `catalog` | the models and the hardware that are known by name |

mod catalog;
mod impossible;
mod ladder;
mod manifest;
mod tree;

pub use catalog::{hardware, model};
pub use impossible::Impossible;
pub use ladder::Rung;
pub use manifest::{Labels, json, manifest, text, yaml};
pub use tree::{Answer, Plan, recommend};

use serde::Serialize;

use crate::simulate::{Hardware, ModelShape};

#[cfg(test)]
mod tests;

/// What matters most where not everything can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// The finest format that fits, on as many accelerators per worker as it takes.
    Quality,
    /// 8 bits where the hardware computes in FP8, on as few accelerators per worker as possible.
    Balanced,
    /// As `Balanced`, and every rung must hold the whole concurrency.
    Density,
}

/// Where the model is to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// Name for reasons.
    pub name: String,
    /// Memory of one accelerator, or of the machine without one, in bytes.
    pub memory_bytes: u64,
    /// What it computes with.
    pub compute: Compute,
}

/// What a machine computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    /// A data-centre accelerator.
    Accelerator {
        /// Whether it multiplies in FP8.
        fp8: bool,
        /// Whether it multiplies in INT8.
        int8: bool,
    },
    /// No data-centre accelerator.
    Cpu,
}

impl From<&Hardware> for Machine {
    fn from(hardware: &Hardware) -> Self {
        let (fp8, int8) = (hardware.flops.fp8.is_some(), hardware.flops.int8.is_some());
        Self {
            name: hardware.name.clone(),
            memory_bytes: hardware.memory_bytes,
            compute: Compute::Accelerator { fp8, int8 },
        }
    }
}

/// What a recommendation is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The model.
    pub shape: ModelShape,
    /// The hardware.
    pub machine: Machine,
    /// Accelerators in all; at least 1. Without effect on a CPU.
    pub gpus: u32,
    /// Longest prompt plus answer, in tokens.
    pub context_tokens: u32,
    /// Requests of that length that are served at once, over all workers; at least 1.
    pub concurrency: u32,
    /// What matters most.
    pub priority: Priority,
}
