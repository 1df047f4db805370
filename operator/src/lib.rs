//! The `modelprofile` command as a library.
//!
//! | module | what it holds |
//! |---|---|
//! | [`commands`] | the command line: one file per subcommand |

pub mod commands;
