//! The worker's command as a process: what it prints, leaves behind and serves from.
//!
//! | module | what it holds |
//! |---|---|
//! | `device` | `--device` on a machine without a GPU |
//! | `evaluate`, `evaluate_small` | `evaluate` |
//! | `export` | `export`, and models from a hub |
//! | `live_ladder` | a manifest that changes while a worker serves |
//! | `licence` | the licence of the manifest |
//! | `parent` | the process that started it |
//! | `prepare`, `prune` | `prepare`, and originals that are not kept |
//! | `quantize_kill`, `quantize_small`, `requantize` | `quantize` |
//! | `serve_artifacts` | which artifacts `serve` takes |
//! | `trace` | `bench --trace` |
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

mod device;
mod evaluate;
mod evaluate_small;
mod export;
#[allow(dead_code, reason = "each test binary uses its part")]
#[path = "../hub/mod.rs"]
mod hub;
mod licence;
mod live_ladder;
mod parent;
mod prepare;
#[allow(dead_code, reason = "each test binary uses its part")]
mod process;
mod prune;
mod quantize_kill;
mod quantize_small;
mod requantize;
mod serve_artifacts;
#[path = "../signer/mod.rs"]
mod signer;
mod tiny;
mod trace;
