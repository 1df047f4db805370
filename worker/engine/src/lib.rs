//! One model at several precisions: reading checkpoints, quantizing, the KV cache, scheduling, sampling, and the switch
//! of precision in place.

// Tests compare values that must be exact.
#![cfg_attr(test, allow(clippy::float_cmp))]

pub mod artifact;
pub mod calibrate;
pub mod checkpoint;
mod config;
mod error;
pub mod evaluate;
pub mod gguf;
pub mod interchange;
pub mod model;
mod profile;
pub mod quantize;
mod request;
pub mod sample;
pub mod sched;
pub mod serve;
mod softmax;
pub mod text;
pub mod trace;

pub use config::{Architecture, ModelConfig, RopeScaling};
pub use error::{EngineError, Result};
pub use profile::{Method, ProfileSpec, WeightFormat, ZeroPoint};
pub use request::{FinishReason, GenerateRequest, SamplingParams, TokenEvent, TokenLogprob};
