//! One model at several precisions: reading checkpoints, quantizing, the KV cache, scheduling, sampling, and the switch
//! of precision in place.

pub mod checkpoint;
mod config;
mod error;
mod request;
pub mod serve;
pub mod text;

pub use config::{Architecture, ModelConfig, RopeScaling};
pub use error::{EngineError, Result};
pub use request::{FinishReason, GenerateRequest, SamplingParams, TokenEvent, TokenLogprob};
