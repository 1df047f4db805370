//! Kernels on a device, real or emulated, against plain references: one entry point at a time.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]
#![allow(unreachable_pub, reason = "one program of many files: what files share is public to each other")]

#[macro_use]
mod device;
mod absent;
mod attention;
mod backend;
mod calibrate;
mod compile;
mod draws;
mod elementwise;
mod layout;
mod linear;
mod measuring;
mod memory;
mod model;
mod parallel;
mod plan;
mod reserve;
mod rotary;
mod sample;
mod sim;
