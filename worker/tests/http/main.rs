//! The worker's two APIs over HTTP, against an engine without a model.
//!
//! | module | what it holds |
//! |---|---|
//! | `access` | keys in files |
//! | `admin` | the admin port, and the worker while it prepares and drains |
//! | `answers` | what is answered |
//! | `connections` | what a connection may cost |
//! | `refusals` | what is refused |
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

mod access;
mod admin;
mod answers;
mod connections;
mod refusals;
#[path = "../signer/mod.rs"]
mod signer;
mod support;
