//! Files: how checkpoints are read, whoever wrote them, and what our writers make of them.
//!
//! | module | what it holds against what |
//! |---|---|
//! | `checkpoint` | the reader, on sound files |
//! | `checkpoint_hostile` | the reader, on damaged and hostile files |
//! | `foreign` | checkpoints that other tools quantized, and what those tools read in them |
//! | `gguf` | GGUF files that were written, and their source |
//! | `interchange` | quantized checkpoints in every layout, and the artifacts that they were written from |
//! | `interchange_files` | the same files, and the published formulas |
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a failure is the test's result")]

mod checkpoint;
mod checkpoint_hostile;
mod foreign;
mod gguf;
mod interchange;
mod interchange_files;
#[path = "../support/mod.rs"]
mod support;
