//! `modelprofile recommend`.

use std::process::ExitCode;

use anyhow::Context;
use modelprofile_api::parse_quantity;

use crate::recommend::{Labels, Priority, Request, hardware, json, model, recommend, text, yaml};

/// Arguments of `modelprofile recommend`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Shape of the model: a name such as llama-3.1-8b, or a file like those of deploy/models.
    #[arg(long, value_name = "FILE_OR_NAME")]
    model: String,
    /// Hardware: a name such as h100-80gb, `cpu`, or a file like those of deploy/hardware.
    #[arg(long, value_name = "FILE_OR_NAME")]
    hardware: String,
    /// Accelerators in all.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    gpus: u32,
    /// Longest prompt plus answer, in tokens.
    #[arg(long, value_name = "TOKENS")]
    context: u32,
    /// Requests of that length to be served at once, over all workers.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: u32,
    /// What matters most.
    #[arg(long, value_enum, default_value = "balanced")]
    priority: Priority,
    /// Memory of one accelerator, or of the machine with `--hardware cpu`. Left out: that of the hardware, 16Gi for a CPU.
    #[arg(long, value_name = "QUANTITY")]
    memory: Option<String>,
    /// Name of the ModelProfile. Left out: made of the model's name.
    #[arg(long)]
    name: Option<String>,
    /// Where the checkpoint is. Left out: file:///models/NAME, to be replaced.
    #[arg(long)]
    uri: Option<String>,
    /// Licence of the checkpoint that you accept.
    #[arg(long)]
    license: Option<String>,
    /// What is printed: the manifest with reasons in comments, the reasons alone, or both as JSON.
    #[arg(long, value_enum, default_value = "yaml")]
    format: Format,
}

/// What is printed.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Text,
    Yaml,
    Json,
}

/// Prints a recommendation to standard output.
///
/// # Errors
/// A file is not valid, the labels break a rule, or nothing fits; the error says what would fit.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut machine = hardware(&args.hardware)?;
    if let Some(memory) = &args.memory {
        machine.memory_bytes = parse_quantity(memory).with_context(|| format!("--memory {memory}"))?;
    }
    let request = Request {
        shape: model(&args.model)?,
        machine,
        gpus: args.gpus,
        context_tokens: args.context,
        concurrency: args.concurrency,
        priority: args.priority,
    };
    let plan = recommend(&request)?;
    let name = args.name.clone().unwrap_or_else(|| label(&request.shape.name));
    let uri = args.uri.clone().unwrap_or_else(|| format!("file:///models/{name}"));
    let labels = Labels { name, uri, license: args.license.clone() };
    let output = match args.format {
        Format::Text => text(&plan),
        Format::Yaml => yaml(&request, &plan, &labels)?,
        Format::Json => json(&request, &plan, &labels)?,
    };
    print!("{output}");
    Ok(ExitCode::SUCCESS)
}

/// A model's name as a name of an object.
fn label(name: &str) -> String {
    let lower = name.to_ascii_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let start = lower.trim_start_matches(|c: char| !c.is_ascii_lowercase());
    let short: String = start.chars().take(63).collect();
    let short = short.trim_end_matches('-');
    if short.is_empty() { "model".to_owned() } else { short.to_owned() }
}
