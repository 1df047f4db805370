//! The ModelProfile API.

pub mod worker;
