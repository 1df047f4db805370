//! The `modelprofile` command as a library.
//!
//! | module | what it holds |
//! |---|---|
//! | [`commands`] | the command line: one file per subcommand |
//! | [`local`] | `modelprofile local`: a worker as a child process, without a cluster |

pub mod commands;
pub mod local;
