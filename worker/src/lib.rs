//! The worker: one model, several precisions, an OpenAI-compatible API.
//!
//! ```text
//! client -> http (validate, template, tokenize) -> Engine (tokens) -> http::generation (text, stop strings) -> client
//! operator -> admin (state, switch, drain) -> Engine
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | [`commands`] | `serve`, `prepare`, `quantize`, `export`, `inspect`, `bench`, `evaluate` |
//! | [`outcome`] | how `prepare` ended: the kind of an error, the termination message |
//! | [`app`] | what all handlers share, and the life of the two servers |
//! | [`gate`] | which profiles may serve, by their measured quality |
//! | [`http`] | the OpenAI API |
//! | [`admin`] | probes, state, switch, drain |
//! | [`access`] | keys of the two APIs in files, read anew when they change |
//! | [`admin_token`] | the admin API's signed tokens, verified |
//! | [`server`] | one HTTP server: bounds on connections, an orderly end |
//! | `plan` | steps on a GPU that is not at hand, kernel by kernel (feature `cuda`) |
//! | [`quality`] | what an artifact costs in quality, measured once and kept beside it |
//! | [`metrics`] | Prometheus metrics under vLLM's names |
//! | [`source`] | models from a hub, a web server, a volume or a path |
//! | `hex` | digests as text |
//! | [`licence`] | what a model's licence asks, and whether it was accepted |

pub mod access;
pub mod admin;
pub mod admin_token;
pub mod app;
pub mod commands;
pub mod gate;
mod hex;
pub mod http;
pub mod licence;
pub mod metrics;
pub mod outcome;
#[cfg(feature = "cuda")]
pub mod plan;
pub mod quality;
pub mod server;
pub mod source;
