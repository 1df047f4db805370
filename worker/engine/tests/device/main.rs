//! The engine on a GPU, real or emulated: on small random models, and some tokens of the real one.
//!
//! | module | what it holds |
//! |---|---|
//! | `agreement` | logits of every format and architecture against the CPU |
//! | `serving` | texts, the prefix cache, cancellation, the ladder, failures |
//! | `sampling` | tokens drawn on the device |
//! | `switching` | the switch layer by layer under load, and the budget meanwhile |
//! | `methods` | artifacts that the device calibrated |
//! | `real` | SmolLM2 |
//! | `device`, `tiny` | the device under test, the models |
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

mod agreement;
mod device;
mod methods;
mod real;
mod sampling;
mod serving;
#[path = "../../../kernels/tests/cuda/sim.rs"]
#[allow(
    unsafe_code,
    dead_code,
    unreachable_pub,
    reason = "the emulated driver's controls, shared with the kernels' tests"
)]
mod sim;
#[path = "../support/mod.rs"]
mod support;
mod switching;
mod tiny;
