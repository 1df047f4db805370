//! Pieces of the end-to-end scenarios: each scenario is a binary or a test that puts them together.
//!
//! | module | what it holds |
//! |---|---|
//! | [`by_hand`] | switches by hand while streams run |
//! | [`client`] | requests to the OpenAI API, as a client makes them |
//! | [`sse`] | server-sent events out of a stream of bytes |
//! | [`load`] | a fixed number of streams kept running, and what each of them saw |
//! | [`stats`] | gaps between tokens and their limit |
//! | [`memory`] | resident memory of a process over time |
//! | [`local`] | `modelprofile local` as a child process |
//! | [`peak`] | a peak of requests, with load deciding and with the profile pinned |

pub mod by_hand;
pub mod client;
pub mod load;
pub mod local;
pub mod memory;
pub mod peak;
pub mod sse;
pub mod stats;
