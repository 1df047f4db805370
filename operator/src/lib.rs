//! The `modelprofile` command as a library.
//!
//! | module | what it holds |
//! |---|---|
//! | [`commands`] | the command line: one file per subcommand |
//! | [`local`] | `modelprofile local`: a worker as a child process, without a cluster |
//! | [`recommend`] | `modelprofile recommend`: which ladder suits a model on given hardware, with the reasons |
//! | [`simulate`] | `modelprofile simulate`: what a manifest would do on given hardware with given traffic |

pub mod commands;
pub mod local;
pub mod recommend;
pub mod simulate;
