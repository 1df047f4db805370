//! Pieces of the end-to-end scenarios: each scenario is a binary or a test that puts them together.
//!
//! | module | what it holds |
//! |---|---|
//! | [`client`] | requests to the OpenAI API, as a client makes them |
//! | [`sse`] | server-sent events out of a stream of bytes |
//! | [`load`] | a fixed number of streams kept running, and what each of them saw |
//! | [`stats`] | gaps between tokens and their limit |
//! | [`memory`] | resident memory of a process over time |
//! | [`local`] | `modelprofile local` as a child process |

pub mod client;
pub mod load;
pub mod local;
pub mod memory;
pub mod sse;
pub mod stats;
