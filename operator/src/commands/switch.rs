//! `modelprofile switch NAME PROFILE`.

use std::process::ExitCode;

use anyhow::bail;
use modelprofile_api::worker::SwitchOutcome;

use super::served::Served;
use crate::local::admin::Admin;
use crate::local::notes::sentence;

/// Arguments of `modelprofile switch`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    served: Served,
    /// Profile to change to.
    profile: String,
}

/// Asks the worker and waits for the end of the switch.
///
/// # Errors
/// No such model runs, its manifest pins another profile, or the worker did not answer.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let session = args.served.sessions()?.find(&args.served.name)?;
    if let Some(pinned) = session.pinned_profile.filter(|pinned| *pinned != args.profile) {
        let file = session.manifest.display();
        bail!(
            "{file} pins {pinned}, so a switch to {} would be undone; edit spec.switching.pinnedProfile there",
            args.profile
        );
    }
    let admin = Admin::new(session.admin_url, session.token)?;
    let report = super::runtime()?.block_on(admin.switch(&args.profile))?;
    if report.outcome != SwitchOutcome::Completed {
        eprintln!("{}", sentence(&report));
        return Ok(ExitCode::FAILURE);
    }
    println!("{}", sentence(&report));
    Ok(ExitCode::SUCCESS)
}
