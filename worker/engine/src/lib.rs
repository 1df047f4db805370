//! One model at several precisions: reading checkpoints, quantizing, the KV cache, scheduling, sampling, and the switch
//! of precision in place.

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

pub use config::{Architecture, ModelConfig, RopeScaling};
pub use error::{EngineError, Result};
pub use profile::{Method, ProfileSpec, WeightFormat, ZeroPoint};
pub use request::{FinishReason, GenerateRequest, SamplingParams, TokenEvent, TokenLogprob};
