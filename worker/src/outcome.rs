//! How a preparation ended, as a value: for whoever started it, not for a person alone.
//!
//! ```text
//! error -> reason (by the errors' types, never by their text) ┐
//! profiles ───────────────────────────────────────────────────┴> PrepareReport -> message, at most 4096 bytes of JSON
//! ```

use std::{error::Error, io};

use modelprofile_api::worker::{PrepareReason, PrepareReport};
use modelprofile_engine::EngineError;
use thiserror::Error;

use crate::{licence::Refusal, source::SourceError};

/// Ends a sentence that was cut.
const CUT: &str = "…";

/// Something that is wrong in the manifest, a flag or a file they name. Also the context of an error that such a thing causes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Invalid(pub String);

/// Context of an error that comes again however often it is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("")]
pub struct Settled;

/// Whether a preparation that ended with this error would end so again: it is the manifest or the licence, and no file that may
/// yet come.
pub fn is_settled(error: &anyhow::Error, reason: PrepareReason) -> bool {
    let lasting =
        matches!(reason, PrepareReason::Invalid | PrepareReason::LicenceDiffers | PrepareReason::NeedsAccelerator);
    lasting && !error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some())
}

/// Status that the process exits with.
pub fn exit_status(error: &anyhow::Error) -> u8 {
    if error.is::<Settled>() { PrepareReport::SETTLED as u8 } else { 1 }
}

/// An error and its causes in one line. Some errors repeat their cause in their own sentence; it is said once.
pub fn sentence(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| match said.as_str() {
        "" => cause,
        said if said.ends_with(&cause) => said.to_owned(),
        said => format!("{said}: {cause}"),
    })
}

/// What kind of error ended a preparation.
pub fn reason(error: &anyhow::Error) -> PrepareReason {
    // A full disk ends whatever wrote at that moment, and is mended in the same way.
    if error.chain().any(is_no_space) {
        return PrepareReason::NoSpace;
    }
    // A context is no link of the chain that could be asked for its type.
    if error.is::<Invalid>() {
        return PrepareReason::Invalid;
    }
    error.chain().find_map(own).unwrap_or(PrepareReason::QuantizeFailed)
}

fn is_no_space(cause: &(dyn Error + 'static)) -> bool {
    let full = |error: &io::Error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    cause.downcast_ref().is_some_and(full)
}

/// What an error of ours says.
fn own(cause: &(dyn Error + 'static)) -> Option<PrepareReason> {
    if cause.is::<Refusal>() {
        return Some(PrepareReason::LicenceDiffers);
    }
    if let Some(error) = cause.downcast_ref() {
        return Some(match error {
            SourceError::Licence(_) => PrepareReason::LicenceDiffers,
            SourceError::Config(_) | SourceError::Selection(_) => PrepareReason::Invalid,
            SourceError::Gated { .. }
            | SourceError::NotFound(_)
            | SourceError::Corrupt { .. }
            | SourceError::Unreachable { .. }
            | SourceError::Protocol { .. }
            | SourceError::Io { .. } => PrepareReason::DownloadFailed,
        });
    }
    Some(match cause.downcast_ref()? {
        EngineError::Checkpoint { .. } | EngineError::Unsupported(_) | EngineError::Config(_) => PrepareReason::Invalid,
        EngineError::Artifact { .. }
        | EngineError::Pruned { .. }
        | EngineError::Io { .. }
        | EngineError::Template(_)
        | EngineError::Kernel(_) => PrepareReason::QuantizeFailed,
    })
}

/// What a preparation that ended with this error reports.
pub fn failed(error: &anyhow::Error) -> PrepareReport {
    PrepareReport::Failed { reason: reason(error), message: sentence(error) }
}

/// A report as JSON that fits into a termination message: shortened as far as it must be.
pub fn message(mut report: PrepareReport) -> String {
    loop {
        let text = serde_json::to_string(&report).unwrap_or_default();
        let Some(over) = text.len().checked_sub(PrepareReport::MOST_BYTES).filter(|over| *over > 0) else {
            return text;
        };
        match &mut report {
            PrepareReport::Prepared { profiles } => {
                // A ladder of four has not so many names; one that had would lose them.
                if profiles.iter_mut().rev().find_map(|profile| profile.quality.take()).is_none() {
                    profiles.pop();
                }
            }
            // A byte of the sentence is at least a byte of JSON.
            PrepareReport::Failed { message, .. } => {
                let mut kept = message.len().saturating_sub(over + CUT.len());
                while !message.is_char_boundary(kept) {
                    kept -= 1;
                }
                message.truncate(kept);
                message.push_str(CUT);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};
    use modelprofile_api::{MeasuredQuality, worker::WorkerProfile};
    use modelprofile_kernels::KernelError;
    use rstest::rstest;

    use super::*;
    use crate::licence::{self, Licence};

    fn missing() -> io::Error {
        io::Error::new(io::ErrorKind::NotFound, "no such file")
    }

    fn full() -> io::Error {
        io::ErrorKind::StorageFull.into()
    }

    fn refused() -> Refusal {
        licence::check(&Licence::from_card(&serde_json::json!({"license": "gemma"})), None).unwrap_err()
    }

    fn unreachable_hub() -> SourceError {
        SourceError::Unreachable { what: "a".into(), reason: "no route".into(), attempts: 5 }
    }

    #[test]
    fn a_cause_that_an_error_repeats_is_said_once() {
        let error = EngineError::io("a.gguf", missing());
        let error = anyhow::Error::from(error).context("the checkpoint cannot be read");
        assert_eq!(sentence(&error), "the checkpoint cannot be read: a.gguf: no such file");
        let error = anyhow::Error::from(missing()).context("a text").context("the options");
        assert_eq!(sentence(&error), "the options: a text: no such file");
    }

    #[rstest]
    #[case(SourceError::Licence(refused()).into(), PrepareReason::LicenceDiffers)]
    #[case(refused().into(), PrepareReason::LicenceDiffers)]
    #[case(unreachable_hub().into(), PrepareReason::DownloadFailed)]
    #[case(SourceError::Config("a".into()).into(), PrepareReason::Invalid)]
    #[case(SourceError::Io { path: "a".into(), source: full() }.into(), PrepareReason::NoSpace)]
    #[case(SourceError::Io { path: "a".into(), source: missing() }.into(), PrepareReason::DownloadFailed)]
    #[case(EngineError::io("a", full()).into(), PrepareReason::NoSpace)]
    #[case(EngineError::io("a", io::ErrorKind::QuotaExceeded.into()).into(), PrepareReason::NoSpace)]
    #[case(EngineError::io("a", missing()).into(), PrepareReason::QuantizeFailed)]
    #[case(EngineError::Kernel(KernelError::Io { path: "a".into(), source: full() }).into(), PrepareReason::NoSpace)]
    #[case(EngineError::Kernel(KernelError::OutOfMemory("a".into())).into(), PrepareReason::QuantizeFailed)]
    #[case(EngineError::Config("a".into()).into(), PrepareReason::Invalid)]
    #[case(Invalid("a".into()).into(), PrepareReason::Invalid)]
    #[case(anyhow::Error::from(missing()).context(Invalid("a".into())), PrepareReason::Invalid)]
    #[case(anyhow::Error::from(full()).context(Invalid("a".into())), PrepareReason::NoSpace)]
    #[case(anyhow!("no space left, not accepted, download failed"), PrepareReason::QuantizeFailed)]
    fn the_reason_is_the_types_and_a_context_hides_none(#[case] error: anyhow::Error, #[case] expected: PrepareReason) {
        assert_eq!(reason(&error), expected);
        let error = Err::<(), _>(error).context("a profile").context("a ladder").unwrap_err();
        assert_eq!(reason(&error), expected, "{error:#}");
    }

    #[test]
    fn a_sentence_that_is_too_long_is_cut_and_stays_json() {
        for text in ["a".repeat(5000), "ä\n".repeat(3000), "\u{1}".repeat(5000)] {
            let text = message(failed(&anyhow!(text)));
            assert!(text.len() <= PrepareReport::MOST_BYTES, "{}", text.len());
            let PrepareReport::Failed { reason, message } = serde_json::from_str(&text).unwrap() else {
                panic!("{text}")
            };
            assert_eq!(reason, PrepareReason::QuantizeFailed);
            assert!(message.ends_with(CUT), "{message}");
        }
        let short = message(failed(&unreachable_hub().into()));
        assert!(short.starts_with(r#"{"reason":"DownloadFailed","message":"a: no route; gave up"#), "{short}");
    }

    #[test]
    fn a_ladder_that_is_too_long_loses_figures_before_names() {
        let quality = MeasuredQuality {
            perplexity: 1.0 / 3.0,
            reference_perplexity: 1.0 / 3.0,
            mean_kl_divergence: 1.0 / 3.0,
            p99_kl_divergence: 1.0 / 3.0,
            top1_agreement_percent: 100.0 / 3.0,
            rms_probability_change_percent: 1.0 / 3.0,
            tokens: 100_000,
            dataset: "built-in 0123456789ab".into(),
            measured_at: "2026-03-01T12:00:00Z".into(),
        };
        let profile = |index: usize| WorkerProfile {
            name: format!("{index}{}", "n".repeat(62)),
            artifact_key: "0".repeat(32),
            weight_bytes: u64::MAX,
            prepared_percent: 100.0,
            quality: Some(quality.clone()),
            ..WorkerProfile::default()
        };
        let told = |profiles: Vec<WorkerProfile>| {
            let text = message(PrepareReport::Prepared { profiles });
            let PrepareReport::Prepared { profiles } = serde_json::from_str(&text).unwrap() else { panic!("{text}") };
            profiles.iter().map(|profile| profile.quality.is_some()).collect::<Vec<_>>()
        };
        let mut profiles: Vec<_> = (0..4).map(profile).collect();
        assert_eq!(told(profiles.clone()), [true; 4], "a usual ladder fits");
        let quality = MeasuredQuality { dataset: "d".repeat(1500), ..quality.clone() };
        for profile in &mut profiles {
            profile.quality = Some(quality.clone());
        }
        assert_eq!(told(profiles), [true, false, false, false]);
    }
}
