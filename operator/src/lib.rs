//! The `modelprofile` command as a library.
//!
//! | module | what it holds |
//! |---|---|
//! | [`commands`] | the command line: one file per subcommand |
//! | [`local`] | `modelprofile local`: a worker as a child process, without a cluster |
//! | [`replay`] | `modelprofile replay`: a trace sent to a server, and what came of it |
//! | [`traces`] | when requests arrive and how long they are: files, and synthetic days |

pub mod commands;
pub mod local;
pub mod replay;
pub mod traces;
