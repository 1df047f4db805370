//! Options of `evaluate`, and what they mean: the text, the candidates, the prompts.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Args;
use modelprofile_engine::{ModelConfig, ProfileSpec, quantize::Recipe};
use modelprofile_kernels::{GroupedActivations, KvFormat};

use super::health::{self, Prompt};
use crate::{
    commands::{Cache, at_least_one, calibration::Calibration, device::Compute, model::Fetch, parse_kv, parse_recipe},
    quality::{self, Dataset},
};

/// Options of `evaluate`.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub(in crate::commands) struct Evaluate {
    /// A Hugging Face directory, a GGUF file, or hf://OWNER/NAME, https://HOST/FILE.gguf, pvc://CLAIM/PATH.
    #[arg(long, value_name = "PATH|URI", required_unless_present = "score")]
    pub(super) model: Option<String>,
    #[command(flatten)]
    pub(super) fetch: Fetch,
    /// Formats to evaluate; the first is the reference of the others.
    #[arg(long, value_delimiter = ',', default_value = "BF16,FP8,INT8,Q4_1", value_parser = parse_recipe)]
    pub(super) format: Vec<Recipe>,
    #[command(flatten)]
    pub(super) calibration: Calibration,
    /// Text file, UTF-8 [default: a text that comes with the worker].
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Score only the first characters of the text.
    #[arg(long, value_name = "N")]
    characters: Option<usize>,
    /// Tokens of a window.
    #[arg(long, default_value_t = quality::WINDOW, value_parser = at_least_one)]
    pub(super) window: usize,
    /// Also score the first format with its output layer in 8-bit groups, as the quantized formats keep it.
    #[arg(long)]
    pub(super) output_layer: bool,
    /// KV cache format: BF16, FP16, FP8E4M3 or FP8E5M2.
    #[arg(long, default_value = "BF16", value_parser = parse_kv)]
    pub(super) kv: KvFormat,
    /// Prompts to answer, one JSON object a line: id, topic, language, messages [default: 48 that come with the worker].
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Most tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 96, value_parser = at_least_one)]
    pub(super) max_tokens: usize,
    /// Seed of the sampled answers, of the long texts and of the order of a blind sheet.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) seed: u64,
    /// Generate no answers.
    #[arg(long)]
    pub(super) skip_generation: bool,
    /// Lengths of the long-context test in tokens; longer ones than the model takes are left out.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1024,2048,4096,8192")]
    pub(super) needle: Vec<usize>,
    /// Leave the long-context test out.
    #[arg(long)]
    pub(super) skip_needle: bool,
    /// Write a report for people: FILE.html or FILE.md. Can be given twice.
    #[arg(long, value_name = "FILE")]
    pub(super) report: Vec<PathBuf>,
    /// Write a blind sheet of the answers of two formats into this directory, and nothing else.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["score", "skip_generation"])]
    pub(super) sheets: Option<PathBuf>,
    /// Count a filled blind sheet (sheet.csv).
    #[arg(long, value_name = "SHEET", requires = "key")]
    pub(super) score: Option<PathBuf>,
    /// The key of the sheet (key.json).
    #[arg(long, value_name = "KEY")]
    pub(super) key: Option<PathBuf>,
    #[command(flatten)]
    pub(super) compute: Compute,
    #[command(flatten)]
    pub(super) cache: Cache,
}

impl Evaluate {
    /// The text to score, with these activations.
    pub(super) fn dataset(&self, activations: GroupedActivations) -> anyhow::Result<Dataset> {
        let whole = match &self.text {
            None => Dataset::built_in(),
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
                Dataset::new(path.file_name().unwrap_or_default().to_string_lossy(), text)
            }
        };
        let cut = match self.characters {
            None => whole,
            Some(count) => whole.map_text(|text| text.chars().take(count).collect()),
        };
        Ok(cut.with_window(self.window).with_activations(activations))
    }

    /// Whether the measurement is the one that the gate would make, so that it need not make it again.
    pub(super) fn measures_for_the_gate(&self) -> bool {
        self.text.is_none()
            && self.characters.is_none()
            && self.window == quality::WINDOW
            && self.kv == KvFormat::Bf16
            && self.format.first() == Some(&Recipe::from(modelprofile_engine::WeightFormat::Bf16))
    }

    /// The prompts to answer.
    pub(super) fn prompts(&self) -> anyhow::Result<Vec<Prompt>> {
        let prompts = match &self.prompts {
            None => health::read_prompts(health::BUILT_IN)?,
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
                health::read_prompts(&text).with_context(|| path.display().to_string())?
            }
        };
        ensure!(!prompts.is_empty(), "the prompt file has no prompts");
        Ok(prompts)
    }

    /// What is evaluated: one profile per format.
    pub(super) fn candidates(&self, config: &ModelConfig) -> anyhow::Result<Vec<ProfileSpec>> {
        ensure!(!self.format.is_empty(), "--format names no format");
        self.format
            .iter()
            .map(|recipe| {
                let profile = ProfileSpec {
                    name: recipe.canonical(),
                    weights: recipe.format,
                    method: recipe.method,
                    kv: self.kv,
                };
                profile.validate(config)?;
                Ok(profile)
            })
            .collect()
    }

    /// Lengths of the long-context test that leave room for an answer in `most` tokens: the last may be cut to it.
    pub(super) fn needle_lengths(&self, most: usize) -> Vec<usize> {
        if self.skip_generation || self.skip_needle {
            return Vec::new();
        }
        self.needle.iter().copied().filter(|length| *length <= most).collect()
    }
}
