//! Kernels on a device, real or emulated, against plain references: one entry point at a time.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

#[macro_use]
mod device;
mod attention;
mod calibrate;
mod elementwise;
mod layout;
mod linear;
mod rotary;
mod sample;
