//! What the engine computes: logits, texts and quality, on the real model and on a small one of each architecture.
//!
//! | module | what it holds |
//! |---|---|
//! | `architectures`, `golden` | logits and texts against transformers |
//! | `heartbeat` | the sign of life |
//! | `kv_formats`, `kv_scales` | the KV cache's formats and their scales |
//! | `ladder` | another ladder while the engine serves |
//! | `methods` | calibrated methods |
//! | `preemption`, `switch` | the switch in place, with room and without |
//! | `quality` | perplexity by format |
//! | `trace` | the backend that times another one |
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

mod architectures;
mod golden;
mod heartbeat;
mod kv_formats;
mod kv_scales;
mod ladder;
mod methods;
mod preemption;
mod quality;
#[path = "../support/mod.rs"]
mod support;
mod switch;
mod trace;
