//! `inspect`: what a checkpoint is, and what each format would take in memory.

use std::collections::BTreeMap;

use anyhow::Context;
use clap::Args;
use modelprofile_engine::{
    ModelConfig, WeightFormat, ZeroPoint,
    artifact::Manifest,
    checkpoint::{
        Checkpoint, Quantization, Role,
        quantized::{self, Rounding},
    },
    model::Model,
    quantize::BlockTypes,
};
use modelprofile_kernels::{KvFormat, WeightSpec, cpu::Cpu, packed_len};

use crate::licence::publishing_notes;

/// Options of `inspect`.
#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// A Hugging Face directory, a GGUF file, or hf://OWNER/NAME, https://HOST/FILE.gguf, pvc://CLAIM/PATH.
    #[arg(value_name = "PATH|URI")]
    model: String,
    #[command(flatten)]
    fetch: super::model::Fetch,
    #[command(flatten)]
    compute: super::Compute,
    #[command(flatten)]
    cache: super::Cache,
    /// List every tensor.
    #[arg(long)]
    tensors: bool,
}

/// Formats worth comparing.
const FORMATS: [WeightFormat; 6] = [
    WeightFormat::Bf16,
    WeightFormat::Fp8,
    WeightFormat::Int8,
    WeightFormat::Q8_0,
    WeightFormat::Q4_1,
    WeightFormat::Int4 { group: 64, zero: ZeroPoint::Minimum },
];

impl Inspect {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let model = self.fetch.fetch(&self.model, &self.cache.directory())?;
        let checkpoint = Checkpoint::open(&model.path).context("the checkpoint cannot be read")?;
        let config = checkpoint.config();
        // Before anything is printed: a device that is asked for and missing is an error.
        let device = self.compute.describe(&self.cache.directory())?;
        println!("name          {}", checkpoint.name());
        println!("revision      {}", checkpoint.revision());
        for duties in model.licence.duties() {
            println!("licence       {duties}");
        }
        match publishing_notes(&model.licence)[..] {
            [] => println!("publishing    an artifact may be given to others with these notices"),
            ref notes => notes.iter().for_each(|note| println!("publishing    {note}")),
        }
        println!("architecture  {:?}", config.architecture);
        println!(
            "shape         {} layers, hidden {}, intermediate {}, {} heads, {} KV heads of {}, vocabulary {}",
            config.layers,
            config.hidden,
            config.intermediate,
            config.heads,
            config.kv_heads,
            config.head_dim,
            config.vocab
        );
        println!("context       {} tokens", config.max_positions);
        if let Some(window) = config.sliding_window {
            println!("window        {window} tokens");
        }
        if let Some(quantization) = checkpoint.quantization() {
            print_quantization(&checkpoint, quantization)?;
        }
        print_block_types(&checkpoint);
        let template = modelprofile_engine::text::Text::load(&checkpoint)?.template.is_some();
        println!("chat template {}", if template { "yes" } else { "none" });
        println!("device        {device}");
        let mut types: BTreeMap<String, (usize, u64)> = BTreeMap::new();
        let parameters = checkpoint.parameters();
        for tensor in checkpoint.tensors() {
            let entry = types.entry(format!("{:?}", tensor.dtype)).or_default();
            entry.0 += 1;
            entry.1 += tensor.bytes.len() as u64;
            if self.tensors {
                println!("  {:<48} {:?} [{}, {}]", tensor.name, tensor.dtype, tensor.rows, tensor.cols);
            }
        }
        for (name, dtype, shape, bytes) in checkpoint.codes() {
            let entry = types.entry(dtype.clone()).or_default();
            entry.0 += 1;
            entry.1 += bytes;
            if self.tensors {
                println!("  {name:<48} {dtype} {shape:?}");
            }
        }
        println!("parameters    {:.1} million", parameters as f64 / 1e6);
        for (dtype, (count, bytes)) in types {
            println!("  {dtype:<10} {count:>4} tensors {:>8.1} MiB", mib(bytes));
        }
        println!("\n{:<22} {:>12} {:>24}", "weights in memory", "MiB", "bits per weight");
        for format in FORMATS {
            match weight_bytes(config, format) {
                Ok(bytes) => println!(
                    "{:<22} {:>12.1} {:>24.2}",
                    format.canonical(),
                    mib(bytes),
                    bytes as f64 * 8.0 / parameters as f64
                ),
                Err(error) => println!("{:<22} not possible: {error}", format.canonical()),
            }
        }
        println!("\n{:<22} {:>12}", "KV cache", "KiB/token");
        for (name, format) in [("BF16, FP16", KvFormat::Bf16), ("FP8E4M3, FP8E5M2", KvFormat::Fp8E4m3)] {
            let bytes = config.kv_layout(format).block_bytes() as f64 / modelprofile_kernels::BLOCK_TOKENS as f64;
            println!("{name:<22} {:>12.1}", bytes / 1024.0);
        }
        println!("\nworkspace at 256 rows  {:>11.1} MiB", mib(Model::<Cpu>::workspace_bytes(config, 256)));
        Ok(())
    }
}

/// How the checkpoint is quantized, what takes it over, and what our scales cannot hold exactly.
fn print_quantization(checkpoint: &Checkpoint, quantization: &Quantization) -> anyhow::Result<()> {
    println!("quantization  {}", quantization.describe());
    let Some(recipe) = quantization.recipe() else {
        println!("taken over by BF16 alone, which dequantizes it");
        return Ok(());
    };
    println!("taken over by {}, bit for bit; BF16 dequantizes it", quantized::written(recipe));
    let mut worst = Rounding::default();
    for role in Role::all(checkpoint.config()) {
        match checkpoint.quantized(role)?.map(|weight| weight.to_host()) {
            None => {}
            Some(Ok((_, rounding))) => worst = worst.or(rounding),
            Some(Err(error)) => {
                println!("              not possible: {error}");
                return Ok(());
            }
        }
    }
    let part = |error: f32| if error == 0.0 { "exact".to_owned() } else { format!("within {error:.1e}") };
    println!("              scales {}, minima {}", part(worst.scales), part(worst.minima));
    Ok(())
}

/// What of the weights was rounded before: the blocks of a GGUF file with the formats that take them over, or those that an
/// artifact was made of.
fn print_block_types(checkpoint: &Checkpoint) {
    let types = BlockTypes::of(checkpoint);
    if !types.is_empty() {
        println!("quantization  {types}");
        let own = [WeightFormat::Q8_0, WeightFormat::Q4_1, WeightFormat::Q4_0];
        let whole = own.into_iter().filter(|format| BlockTypes::requantized(checkpoint, (*format).into()).is_empty());
        let whole: Vec<String> = whole.map(|format| quantized::written(format.into())).collect();
        match &whole[..] {
            [] => println!(
                "              each format but BF16 rounds weights of these a second time; prefer the original"
            ),
            own => println!(
                "taken over by {}, bit for bit; other formats but BF16 round a second time: prefer the original for them",
                own.join(", ")
            ),
        }
    }
    // A file of that name that is no artifact's tells nothing.
    if checkpoint.gguf_metadata().is_none()
        && let Ok(Some(manifest)) = Manifest::read(checkpoint.directory())
        && !manifest.source_quantization.is_empty()
    {
        println!(
            "source        {}, quantized already: {}; rounded a second time here",
            manifest.source, manifest.source_quantization
        );
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Packed bytes of the model in a format; norms and biases are too small to count.
fn weight_bytes(config: &ModelConfig, format: WeightFormat) -> modelprofile_kernels::Result<u64> {
    let kind = format.kind();
    let heads = config.heads * config.head_dim;
    let layer = [
        (heads + 2 * config.kv_heads * config.head_dim, config.hidden),
        (config.hidden, heads),
        (2 * config.intermediate, config.hidden),
        (config.hidden, config.intermediate),
    ];
    let mut bytes = 0u64;
    for (n, k) in layer {
        let spec = WeightSpec { kind, n, k };
        spec.validate()?;
        bytes += (packed_len(&spec) * config.layers) as u64;
    }
    let output = WeightSpec { kind: format.output_kind(config.hidden), n: config.vocab, k: config.hidden };
    Ok(bytes + packed_len(&output) as u64 * if config.tied_embeddings { 1 } else { 2 })
}
