//! The command line: what a subcommand takes, and where it runs.

pub mod crd;
pub mod events;
pub mod local;
pub mod operator;
pub mod output;
pub mod probe;
pub mod recommend;
pub mod replay;
pub mod served;
pub mod simulate;
pub mod status;
pub mod switch;
pub mod validate;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

/// Serve one language model at several precisions and change precision in place.
#[derive(Debug, Parser)]
#[command(name = "modelprofile", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a manifest on this machine, without a cluster.
    Local(local::Args),
    /// Act on the ModelProfiles of a cluster: what its Deployment runs.
    Operator(Box<operator::Args>),
    /// Print a manifest that suits a model on given hardware, with the reasons.
    Recommend(recommend::Args),
    /// Simulate what a manifest would do with given traffic on given hardware.
    Simulate(simulate::Args),
    /// Change the profile of a model that `modelprofile local` serves.
    Switch(switch::Args),
    /// Show what a model that `modelprofile local` serves does, and why.
    Status(status::Args),
    /// List what happened to a model that `modelprofile local` serves, or served last.
    Events(events::Args),
    /// Replay a trace of requests against a server and measure its answers.
    Replay(Box<replay::Args>),
    /// Check a manifest and print everything that is wrong with it.
    Validate(validate::Args),
    /// Ask web addresses until they answer; for pods that have no shell.
    Probe(probe::Args),
    /// Print the CustomResourceDefinition of ModelProfile as YAML, for `kubectl apply -f -`.
    Crd,
}

impl Cli {
    /// Runs the chosen subcommand to its end.
    ///
    /// # Errors
    /// What the user can act on, as one chain of causes; `main` prints it. A command that ran but has bad news for its
    /// caller (an invalid manifest, say) returns a non-zero [`ExitCode`] instead, having said why itself.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Local(args) => local::run(args),
            Command::Operator(args) => operator::run(*args),
            Command::Recommend(args) => recommend::run(&args),
            Command::Simulate(args) => simulate::run(&args),
            Command::Switch(args) => switch::run(&args),
            Command::Status(args) => status::run(&args),
            Command::Events(args) => events::run(&args),
            Command::Replay(args) => replay::run(&args),
            Command::Validate(args) => validate::run(&args),
            Command::Probe(args) => probe::run(&args),
            Command::Crd => crd::run(),
        }
    }
}

/// Waiting for workers takes one thread; what computes is another process.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}
