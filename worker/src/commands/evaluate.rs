//! `evaluate`: perplexity of formats on a text, and their divergence from the first.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use modelprofile_engine::{
    WeightFormat, artifact::Store, calibrate::kv_scales, checkpoint::Checkpoint, evaluate::Evaluator,
    model::ProfileWeights, text::Text,
};
use modelprofile_kernels::KvFormat;

/// Options of `evaluate`.
#[derive(Debug, Args)]
pub(super) struct Evaluate {
    /// A Hugging Face directory or a GGUF file.
    #[arg(long, value_name = "PATH")]
    model: PathBuf,
    /// Formats to score; the first is the reference of the divergence.
    #[arg(long, value_delimiter = ',', default_value = "BF16,FP8,INT8,Q4_1", value_parser = super::parse_format)]
    format: Vec<WeightFormat>,
    /// Text file, UTF-8.
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Score only the first characters of the text.
    #[arg(long, value_name = "N")]
    characters: Option<usize>,
    /// Tokens of a window.
    #[arg(long, default_value_t = 512, value_parser = super::at_least_one)]
    window: usize,
    /// Also score the first format with its output layer in 8-bit groups, as the quantized formats keep it.
    #[arg(long)]
    output_layer: bool,
    /// KV cache format: BF16, FP16, FP8E4M3 or FP8E5M2.
    #[arg(long, default_value = "BF16", value_parser = super::parse_kv)]
    kv: KvFormat,
    #[command(flatten)]
    compute: super::Compute,
    #[command(flatten)]
    cache: super::Cache,
}

impl Evaluate {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let checkpoint = Checkpoint::open(&self.model).context("the checkpoint cannot be read")?;
        let text = std::fs::read_to_string(&self.text).with_context(|| self.text.display().to_string())?;
        let text: String = text.chars().take(self.characters.unwrap_or(usize::MAX)).collect();
        let tokenizer = Text::load(&checkpoint)?.tokenizer;
        let tokens = tokenizer.encode(&text, false)?;
        let windows = tokens.len() / self.window;
        anyhow::ensure!(windows > 0, "the text has {} tokens, fewer than one window of {}", tokens.len(), self.window);
        let store = Store::new(&self.cache.directory());
        let config = checkpoint.config();
        let mut backend = self.compute.backend()?;
        let layout = config.kv_layout(self.kv);
        let calibration = tokenizer.encode(super::CALIBRATION, false)?;
        let scales = kv_scales(&mut backend, &checkpoint, &self.cache.directory(), &layout, &calibration, &mut |_| {})?;
        let mut evaluator = Evaluator::with_scales(backend, config, layout, &scales, self.window)?;
        let (mut names, mut profiles) = (Vec::new(), Vec::new());
        for format in &self.format {
            let artifact = store.prepare(&checkpoint, *format, &mut |_| {})?;
            names.push(format.canonical());
            profiles.push(ProfileWeights::load(evaluator.backend(), config, &artifact)?);
        }
        if self.output_layer {
            let first = *self.format.first().context("--format names no format")?;
            let mut weights =
                ProfileWeights::load(evaluator.backend(), config, &store.prepare(&checkpoint, first, &mut |_| {})?)?;
            // Any quantized format has the output layer that is asked about.
            let quantized = store.prepare(&checkpoint, WeightFormat::Fp8, &mut |_| {})?;
            let ends = ProfileWeights::load(evaluator.backend(), config, &quantized)?;
            (weights.embedding, weights.output) = (ends.embedding, ends.output);
            names.push(format!("{} 8-bit output", first.canonical()));
            profiles.push(weights);
        }
        let bar = super::progress_bar("windows");
        let references: Vec<_> = profiles.iter().collect();
        let scores = evaluator.score(&references, &tokens, &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        println!("{} tokens, {windows} windows of {}", tokens.len(), self.window);
        println!(
            "{:<24} {:>10} {:>12} {:>9} {:>12} {:>9}",
            "format", "perplexity", "second half", "vs first", "mean KLD", "same top"
        );
        let base = scores.first().map_or(1.0, modelprofile_engine::evaluate::Score::perplexity);
        for (name, score) in names.iter().zip(&scores) {
            println!(
                "{:<24} {:>10.4} {:>12.4} {:>+8.2}% {:>12.6} {:>8.2}%",
                name,
                score.perplexity(),
                score.half_perplexity().value,
                (score.perplexity() / base - 1.0) * 100.0,
                score.mean_divergence(),
                score.comparison().top1_agreement_percent.value,
            );
        }
        Ok(())
    }
}
