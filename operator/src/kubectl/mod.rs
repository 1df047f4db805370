//! `kubectl modelprofile`: the ModelProfiles of a cluster, for a person at a terminal.
//!
//! ```text
//! API server ──> cluster ──> View ──┬──> status, explain, top: texts, pure
//!                   ^               └──> pin: what to write, pure ──┐
//!                   └────────────── merge patch ────────────────────┘
//! ```
//!
//! It has the rights of the person who runs it and asks nobody but the API server. All that it says comes from the objects: what
//! the operator decides, it writes into the status.
//!
//! | module | what it holds |
//! |---|---|
//! | [`cluster`] | which cluster, and reading and writing there |
//! | [`view`] | a ModelProfile as it was read; what is told of one that is not there |
//! | [`status`] | `status`: what it does, its workers, what happened |
//! | [`workers`] | its pods, a line each |
//! | [`explain`] | `explain`: what the policy does now, and what would change it |
//! | [`hours`] | the schedule's windows, now and next |
//! | [`pin`] | `pin`, `unpin`: what is written |
//! | [`switch`] | `switch`: a pin that is waited for |
//! | [`top`] | `top`: a line for each ModelProfile |
//! | `table` | columns |

pub mod cluster;
pub mod explain;
pub mod hours;
pub mod pin;
pub mod status;
pub mod switch;
mod table;
pub mod top;
pub mod view;
pub mod workers;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

/// See and change which profile the ModelProfiles of a cluster serve with.
#[derive(Debug, Parser)]
#[command(name = "kubectl-modelprofile", bin_name = "kubectl modelprofile", version, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    command: Command,
}

/// Which cluster and namespace, as for kubectl itself.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// Namespace [default: that of the context].
    #[arg(short, long, global = true, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Context of the kubeconfig [default: its current one].
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Path of the kubeconfig [default: the files of KUBECONFIG, else ~/.kube/config].
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what a ModelProfile does and why, its workers, its switches, and what happened.
    Status(status::Args),
    /// Say what the policy does now, why, and what would change it.
    Explain(explain::Args),
    /// List ModelProfiles with their load.
    Top(top::Args),
    /// Hold a profile until `unpin`, whatever load and schedule say.
    Pin(pin::PinArgs),
    /// Give the decision back to load and schedule.
    Unpin(pin::UnpinArgs),
    /// Change a pinned ModelProfile to another profile and wait until it serves; with --pin, also one that is not pinned yet.
    Switch(switch::Args),
}

impl Cli {
    /// Runs the chosen subcommand to its end.
    ///
    /// # Errors
    /// What the user can act on, as one chain of causes.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.context("cannot start the runtime")?.block_on(async {
            let cluster = cluster::Cluster::connect(&self.flags).await?;
            match &self.command {
                Command::Status(args) => status::run(&cluster, args).await,
                Command::Explain(args) => explain::run(&cluster, args).await,
                Command::Top(args) => top::run(&cluster, args).await,
                Command::Pin(args) => pin::run_pin(&cluster, args).await,
                Command::Unpin(args) => pin::run_unpin(&cluster, args).await,
                Command::Switch(args) => switch::run(&cluster, args).await,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_flags_stand_anywhere() {
        Cli::command().debug_assert();
        let cli = Cli::try_parse_from(["kubectl-modelprofile", "pin", "chat", "density", "-n", "team"]).unwrap();
        assert_eq!(cli.flags.namespace.as_deref(), Some("team"));
    }

    #[test]
    fn all_namespaces_and_one_name_do_not_go_together() {
        assert!(Cli::try_parse_from(["kubectl-modelprofile", "status", "chat", "-A"]).is_err());
        assert!(Cli::try_parse_from(["kubectl-modelprofile", "status", "-A"]).is_ok());
    }
}
