//! The driver's objects as Rust values: each frees itself, each failure is an error value.
//!
//! | module | what it wraps |
//! |---|---|
//! | `check` | result codes |
//! | `context` | a device's primary context |
//! | `stream` | streams and events, copies in a stream's order |
//! | `pinned` | page-locked host memory |
//! | `module` | modules, functions, launches |
//! | `parameters` | what a launch passes to its kernel |
//! | `graph` | capture and replay |
//!
//! Device memory is reserved, mapped and counted by [`memory`](super::memory).
//!
//! The bindings' own safe layer is not used: it records events for every slice (which break a capture), it leaves a
//! context or a graph behind when a later call of the same constructor fails, and its memory is not ours to place.

use cudarc::driver::sys;

mod check;
mod context;
mod graph;
mod module;
mod parameters;
mod pinned;
mod stream;

pub(super) use self::{
    check::check,
    context::Context,
    graph::Graph,
    module::{Function, Module},
    parameters::Parameters,
    pinned::Pinned,
    stream::{Event, Stream},
};

/// An address in the device's memory.
pub(super) type Address = sys::CUdeviceptr;
