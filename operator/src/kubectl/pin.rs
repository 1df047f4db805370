//! `kubectl modelprofile pin NAME PROFILE` and `unpin NAME`: what is written, pure.

use std::process::ExitCode;

use anyhow::bail;
use modelprofile_api::SwitchingMode;
use serde_json::{Value, json};

use super::cluster::Cluster;
use super::view::View;

/// Annotation with the mode that a pin took the place of.
pub const UNPINNED_MODE: &str = "modelprofile.dev/unpinned-mode";

/// Arguments of `kubectl modelprofile pin`.
#[derive(Debug, clap::Args)]
pub struct PinArgs {
    /// The ModelProfile.
    name: String,
    /// The profile of its ladder to hold.
    profile: String,
}

/// Arguments of `kubectl modelprofile unpin`.
#[derive(Debug, clap::Args)]
pub struct UnpinArgs {
    /// The ModelProfile.
    name: String,
    /// The mode that follows [default: that before the pin].
    #[arg(long, value_name = "MODE", value_parser = ["Auto", "Recommend"])]
    mode: Option<String>,
}

/// Something to be done about an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// It is as it should be.
    Nothing(String),
    /// A merge patch, and a sentence for when it was taken.
    Write {
        /// With the version that it was made for, so that the API server refuses it for any other.
        patch: Value,
        /// What has happened then.
        says: String,
    },
}

/// Writes the pin.
///
/// # Errors
/// There is no such object or profile, or the profile may not serve.
pub async fn run_pin(cluster: &Cluster, args: &PinArgs) -> anyhow::Result<ExitCode> {
    let (_, says) = cluster.change(&args.name, |view| pin(view, &args.profile)).await?;
    println!("{says}");
    Ok(ExitCode::SUCCESS)
}

/// Takes the pin back.
///
/// # Errors
/// There is no such object, or nobody knows which mode it had.
pub async fn run_unpin(cluster: &Cluster, args: &UnpinArgs) -> anyhow::Result<ExitCode> {
    let mode = args.mode.as_deref().and_then(mode);
    let (_, says) = cluster.change(&args.name, |view| unpin(view, mode)).await?;
    println!("{says}");
    Ok(ExitCode::SUCCESS)
}

/// Holds `profile`, and remembers the mode that decided before.
///
/// # Errors
/// No such profile, or one that the quality gate keeps from serving.
pub fn pin(view: &View, profile: &str) -> anyhow::Result<Change> {
    let spec = view.spec()?;
    let title = view.title();
    if !spec.profiles.iter().any(|known| known.name == profile) {
        let ladder: Vec<&str> = spec.profiles.iter().map(|known| known.name.as_str()).collect();
        bail!("{title} has no profile {profile}; its ladder is {}, best quality first", ladder.join(", "));
    }
    if let Some(refusal) = view.refusal(profile) {
        bail!("{title} would not follow that pin: {refusal}");
    }
    let switching = &spec.switching;
    let back = view.command("unpin", "");
    if switching.mode == SwitchingMode::Pinned && switching.pinned_profile.as_deref() == Some(profile) {
        return Ok(Change::Nothing(format!("{title} is pinned to {profile} already; {back} takes that back")));
    }
    let mut metadata = json!({"resourceVersion": view.version});
    if switching.mode != SwitchingMode::Pinned {
        metadata["annotations"] = json!({UNPINNED_MODE: word(switching.mode)});
    }
    Ok(Change::Write {
        patch: json!({"metadata": metadata, "spec": {"switching": {"mode": "Pinned", "pinnedProfile": profile}}}),
        says: format!("{title} is pinned to {profile}; {back} takes that back"),
    })
}

/// Gives the decision back to who had it before, or to `mode`.
///
/// # Errors
/// The pin is not one of [`pin`], and no mode is given.
pub fn unpin(view: &View, mode: Option<SwitchingMode>) -> anyhow::Result<Change> {
    let spec = view.spec()?;
    let title = view.title();
    if spec.switching.mode != SwitchingMode::Pinned {
        return Ok(Change::Nothing(format!("{title} is not pinned: its mode is {}", word(spec.switching.mode))));
    }
    let Some(mode) = mode.or_else(|| self::mode(view.unpinned_mode.as_deref()?)) else {
        bail!(
            "{title} was pinned by its manifest, not by this command, so the mode before is not known: add --mode Auto (load and \
             schedule decide) or --mode Recommend (decisions are told, not carried out)"
        );
    };
    let word = word(mode);
    Ok(Change::Write {
        patch: json!({
            "metadata": {"resourceVersion": view.version, "annotations": {UNPINNED_MODE: null}},
            "spec": {"switching": {"mode": word, "pinnedProfile": null}},
        }),
        says: format!(
            "{title} is not pinned any more: its mode is {word}; {} says what that does",
            view.command("explain", "")
        ),
    })
}

/// The word of a mode in a manifest.
pub fn word(mode: SwitchingMode) -> &'static str {
    match mode {
        SwitchingMode::Auto => "Auto",
        SwitchingMode::Recommend => "Recommend",
        SwitchingMode::Pinned => "Pinned",
    }
}

/// A mode that can follow a pin.
fn mode(word: &str) -> Option<SwitchingMode> {
    [SwitchingMode::Auto, SwitchingMode::Recommend].into_iter().find(|mode| self::word(*mode) == word)
}

#[cfg(test)]
mod tests {
    use super::super::view::fixture::{calm, view};
    use super::*;

    const PINNED: &str = "{mode: Pinned, pinnedProfile: density}";

    #[test]
    fn a_pin_remembers_the_mode_and_holds_for_the_version_that_was_read() {
        assert_eq!(
            pin(&view("{mode: Recommend}", calm("quality")), "density").unwrap(),
            Change::Write {
                patch: json!({
                    "metadata": {"resourceVersion": "41", "annotations": {"modelprofile.dev/unpinned-mode": "Recommend"}},
                    "spec": {"switching": {"mode": "Pinned", "pinnedProfile": "density"}},
                }),
                says: "team/chat is pinned to density; `kubectl modelprofile unpin chat -n team` takes that back"
                    .to_owned(),
            }
        );
    }

    #[test]
    fn a_pin_that_moves_does_not_forget_the_mode_before_the_first() {
        let Change::Write { patch, .. } = pin(&view(PINNED, calm("density")), "quality").unwrap() else {
            unreachable!("it moves")
        };
        assert_eq!(
            patch,
            json!({"metadata": {"resourceVersion": "41"},
                "spec": {"switching": {"mode": "Pinned", "pinnedProfile": "quality"}}})
        );
        assert_eq!(
            pin(&view(PINNED, calm("density")), "density").unwrap(),
            Change::Nothing(
                "team/chat is pinned to density already; `kubectl modelprofile unpin chat -n team` takes that back"
                    .to_owned()
            )
        );
    }

    #[test]
    fn a_profile_that_is_not_there_or_may_not_serve_is_not_pinned() {
        let mut status = calm("quality");
        status["profiles"][1]["qualityGate"] = json!("NotMeasured");
        let view = view("{}", status);
        assert_eq!(
            pin(&view, "fast").unwrap_err().to_string(),
            "team/chat has no profile fast; its ladder is quality, density, best quality first"
        );
        assert_eq!(
            pin(&view, "density").unwrap_err().to_string(),
            "team/chat would not follow that pin: the quality of density was not measured; restart its worker, which measures \
             it, or set spec.quality.onFailure: Warn"
        );
    }

    #[test]
    fn unpin_restores_the_mode_and_takes_its_traces_away() {
        let pinned = View { unpinned_mode: Some("Recommend".to_owned()), ..view(PINNED, calm("density")) };
        let expected = |mode: &str| Change::Write {
            patch: json!({
                "metadata": {"resourceVersion": "41", "annotations": {"modelprofile.dev/unpinned-mode": null}},
                "spec": {"switching": {"mode": mode, "pinnedProfile": null}},
            }),
            says: format!(
                "team/chat is not pinned any more: its mode is {mode}; `kubectl modelprofile explain chat -n team` says what that does"
            ),
        };
        assert_eq!(unpin(&pinned, None).unwrap(), expected("Recommend"));
        assert_eq!(unpin(&pinned, Some(SwitchingMode::Auto)).unwrap(), expected("Auto"));
    }

    #[test]
    fn unpin_asks_for_the_mode_where_it_cannot_be_known() {
        for unpinned_mode in [None, Some("Pinned".to_owned()), Some("auto".to_owned())] {
            let pinned = View { unpinned_mode, ..view(PINNED, calm("density")) };
            assert_eq!(
                unpin(&pinned, None).unwrap_err().to_string(),
                "team/chat was pinned by its manifest, not by this command, so the mode before is not known: add --mode Auto \
                 (load and schedule decide) or --mode Recommend (decisions are told, not carried out)"
            );
        }
        assert_eq!(
            unpin(&view("{}", calm("density")), None).unwrap(),
            Change::Nothing("team/chat is not pinned: its mode is Auto".to_owned())
        );
    }
}
