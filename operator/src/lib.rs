//! The `modelprofile` command as a library.
//!
//! | module | what it holds |
//! |---|---|
//! | [`commands`] | the command line: one file per subcommand |
//! | [`cluster`] | `modelprofile operator`: workers are pods of a cluster |
//! | [`kubectl`] | `kubectl modelprofile`, a program of its own: the same as `status` and `switch` for a cluster, and more |
//! | [`scrape`] | a worker's metrics, as the signals of a decision |
//! | [`local`] | `modelprofile local`: a worker as a child process, without a cluster |
//! | [`recommend`] | `modelprofile recommend`: which ladder suits a model on given hardware, with the reasons |
//! | [`simulate`] | `modelprofile simulate`: what a manifest would do on given hardware with given traffic |
//! | [`replay`] | `modelprofile replay`: a trace sent to a server, and what came of it |
//! | [`traces`] | when requests arrive and how long they are: files, and synthetic days |

// Tests write whole objects of Kubernetes as one `json!`.
#![cfg_attr(test, recursion_limit = "256")]

pub mod cluster;
pub mod commands;
pub mod kubectl;
pub mod local;
pub mod recommend;
pub mod replay;
pub mod scrape;
pub mod simulate;
pub mod traces;
