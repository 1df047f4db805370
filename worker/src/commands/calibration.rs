//! Text that calibrated methods look at.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use modelprofile_engine::{
    checkpoint::Checkpoint,
    quantize::{Calibration as Sequences, DEFAULT_CALIBRATION_TOKENS, Recipe},
    text::Text,
};

/// Options of commands that may calibrate.
#[derive(Debug, Clone, Args)]
#[allow(clippy::struct_field_names, reason = "these are names in the command lines that they join")]
pub(in crate::commands) struct Calibration {
    /// Text file, UTF-8, of the kind that the model will see; AWQ, GPTQ, SmoothQuant and LLM-INT8 look at it [default: a
    /// text of this program's own].
    #[arg(long = "calibration", value_name = "FILE")]
    calibration_file: Option<PathBuf>,
    /// Tokens to calibrate with, in sequences of 512 spread over the text.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CALIBRATION_TOKENS, value_parser = super::at_least_one)]
    calibration_tokens: usize,
    /// Shifts which sequences are taken; the same seed gives the same artifact.
    #[arg(long, value_name = "N", default_value_t = 0)]
    calibration_seed: u64,
}

impl Calibration {
    /// Whether a text was named.
    pub(in crate::commands) fn is_given(&self) -> bool {
        self.calibration_file.is_some()
    }

    /// The sequences, if one of these recipes looks at them.
    pub(in crate::commands) fn needed_by(
        &self,
        recipes: &[Recipe],
        checkpoint: &Checkpoint,
    ) -> anyhow::Result<Option<Sequences>> {
        let needed = recipes.iter().any(|recipe| recipe.needs_calibration());
        needed.then(|| self.sequences(checkpoint)).transpose()
    }

    /// The sequences.
    pub(in crate::commands) fn sequences(&self, checkpoint: &Checkpoint) -> anyhow::Result<Sequences> {
        Ok(Sequences::new(&self.tokens(checkpoint)?, self.calibration_tokens, self.calibration_seed)?)
    }

    /// The whole text.
    pub(in crate::commands) fn tokens(&self, checkpoint: &Checkpoint) -> anyhow::Result<Vec<u32>> {
        let text = match &self.calibration_file {
            None => super::CALIBRATION.to_owned(),
            Some(path) => std::fs::read_to_string(path).with_context(|| path.display().to_string())?,
        };
        Ok(Text::load(checkpoint)?.tokenizer.encode(&text, false)?)
    }
}
