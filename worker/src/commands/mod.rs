//! The commands of `modelprofile-worker`, one module each.

mod bench;
mod calibration;
mod device;
mod evaluate;
mod export;
mod follow;
mod inspect;
#[cfg(feature = "cuda")]
mod kernels;
mod listen;
mod measure;
mod model;
mod original;
mod plan;
mod preparation;
mod prepare;
mod quantize;
mod serve;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use modelprofile_engine::{Method, WeightFormat, ZeroPoint, quantize::Recipe};
use modelprofile_kernels::KvFormat;

use device::{Compute, Devices, Wish, on_device};

/// Text that calibration looks at when the manifest names none.
const CALIBRATION: &str = include_str!("../texts/calibration.txt");

/// Serves one language model at several precisions and changes precision in place.
#[derive(Debug, Parser)]
#[command(name = "modelprofile-worker", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the model of a ModelProfile manifest with an OpenAI-compatible API.
    Serve(serve::Serve),
    /// Do what `serve` does before it serves, and end: bring the model, quantize and measure every profile.
    Prepare(prepare::Prepare),
    /// Quantize a checkpoint into the artifact cache.
    Quantize(quantize::Quantize),
    /// Say what a checkpoint is and what each format would take in memory.
    Inspect(inspect::Inspect),
    /// Measure prefill and decode throughput beside the machine's own limits.
    Bench(bench::Bench),
    /// Write a checkpoint in a format that other engines read.
    Export(export::Export),
    /// Score a text: perplexity of each format and its divergence from BF16.
    Evaluate(evaluate::Evaluate),
    /// Compile the GPU's kernels into a folder that is installed with the worker. Needs NVRTC, and no GPU.
    #[cfg(feature = "cuda")]
    Kernels(kernels::Kernels),
}

impl Cli {
    /// Whether the command serves: then threads go on when it is over.
    pub const fn serves(&self) -> bool {
        matches!(self.command, Command::Serve(_))
    }

    /// Runs the chosen command.
    ///
    /// # Errors
    /// A sentence that says what to do next.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Serve(command) => command.run(),
            Command::Prepare(command) => command.run(),
            Command::Quantize(command) => command.run(),
            Command::Inspect(command) => command.run(),
            Command::Bench(command) => command.run(),
            Command::Evaluate(command) => command.run(),
            Command::Export(command) => command.run(),
            #[cfg(feature = "cuda")]
            Command::Kernels(command) => command.run(),
        }
    }
}

/// Logs to standard error; `RUST_LOG` chooses what (default `info`).
pub fn logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}

/// The artifact cache, by default in the user's cache directory.
#[derive(Debug, Clone, Args)]
struct Cache {
    /// Directory of artifacts [default: $XDG_CACHE_HOME/modelprofile or ~/.cache/modelprofile].
    #[arg(long, value_name = "DIR", env = "MODELPROFILE_CACHE")]
    cache: Option<PathBuf>,
}

impl Cache {
    fn directory(&self) -> PathBuf {
        self.cache.clone().unwrap_or_else(|| {
            let base = std::env::var_os("XDG_CACHE_HOME")
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
                .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
            base.unwrap_or_else(std::env::temp_dir).join("modelprofile")
        })
    }
}

/// A count of which none makes no sense.
fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("{text} is not a whole number of at least 1"))
}

/// The name of a format as users write it, which [`parse_format`] reads.
fn format_name(format: WeightFormat) -> String {
    match format {
        WeightFormat::Bf16 => "BF16".into(),
        WeightFormat::Fp8 => "FP8".into(),
        WeightFormat::Fp8Tensor => "FP8:tensor".into(),
        WeightFormat::Fp8Static => "FP8:static".into(),
        WeightFormat::Fp8Block => "FP8:block".into(),
        WeightFormat::Int8 => "INT8".into(),
        WeightFormat::Int4 { group, zero: ZeroPoint::Minimum } => format!("INT4:g{group}"),
        WeightFormat::Int4 { group, zero } => format!("INT4:g{group}:{}", format!("{zero:?}").to_lowercase()),
        WeightFormat::Q4_1 => "Q4_1".into(),
        WeightFormat::Q4_0 => "Q4_0".into(),
        WeightFormat::Q8_0 => "Q8_0".into(),
    }
}

/// A weight format as users write it: `FP8`, `INT4:g64:integer`, `Q4_1`.
fn parse_format(text: &str) -> Result<WeightFormat, String> {
    let upper = text.to_uppercase();
    let mut parts = upper.split(':');
    let name = parts.next().unwrap_or_default();
    let plain = |format| if upper.contains(':') { Err(format!("{name} takes no options")) } else { Ok(format) };
    match name {
        "BF16" => plain(WeightFormat::Bf16),
        "FP8" => match parts.collect::<Vec<_>>()[..] {
            [] | ["ROW"] => Ok(WeightFormat::Fp8),
            ["TENSOR"] => Ok(WeightFormat::Fp8Tensor),
            ["STATIC"] => Ok(WeightFormat::Fp8Static),
            ["BLOCK"] => Ok(WeightFormat::Fp8Block),
            _ => Err(format!("{text}: FP8 takes one of row, tensor, block and static")),
        },
        "INT8" => plain(WeightFormat::Int8),
        "Q4_1" => plain(WeightFormat::Q4_1),
        "Q4_0" => plain(WeightFormat::Q4_0),
        "Q8_0" => plain(WeightFormat::Q8_0),
        "INT4" => {
            let (mut group, mut zero) = (128, ZeroPoint::Minimum);
            for part in parts {
                match part {
                    "G32" => group = 32,
                    "G64" => group = 64,
                    "G128" => group = 128,
                    "SYMMETRIC" => zero = ZeroPoint::Symmetric,
                    "INTEGER" => zero = ZeroPoint::Integer,
                    "MINIMUM" => zero = ZeroPoint::Minimum,
                    other => {
                        return Err(format!(
                            "{other} is no option of INT4: use g32, g64 or g128, and symmetric, integer or minimum"
                        ));
                    }
                }
            }
            Ok(WeightFormat::Int4 { group, zero })
        }
        _ => Err(format!(
            "{text} is not a format: use BF16, FP8[:tensor|:block|:static], INT8[:gptq|:smoothquant|:llm-int8], \
             INT4[:g32|:g64|:g128][:symmetric|:integer|:minimum][:awq|:gptq], Q4_1, Q4_0 or Q8_0; `export gguf` writes the \
             other types of GGUF"
        )),
    }
}

/// A weight format with the method that makes it, in any order after the name: `INT4:g128:awq`, `INT8:smoothquant`.
fn parse_recipe(text: &str) -> Result<Recipe, String> {
    let mut method = Method::RoundToNearest;
    let mut format = Vec::new();
    for part in text.split(':') {
        match part.to_uppercase().as_str() {
            "RTN" => method = Method::RoundToNearest,
            "AWQ" => method = Method::Awq,
            "GPTQ" => method = Method::Gptq,
            "SMOOTHQUANT" => method = Method::SmoothQuant,
            "LLM-INT8" => method = Method::LlmInt8,
            _ => format.push(part),
        }
    }
    let recipe = Recipe { format: parse_format(&format.join(":"))?, method };
    recipe.validate().map_err(|error| error.to_string())?;
    Ok(recipe)
}

/// A KV cache format as users write it.
fn parse_kv(text: &str) -> Result<KvFormat, String> {
    match text.to_uppercase().as_str() {
        "BF16" => Ok(KvFormat::Bf16),
        "FP16" => Ok(KvFormat::Fp16),
        "FP8E4M3" => Ok(KvFormat::Fp8E4m3),
        "FP8E5M2" => Ok(KvFormat::Fp8E5m2),
        _ => Err(format!("{text} is not a KV cache format: use BF16, FP16, FP8E4M3 or FP8E5M2")),
    }
}

/// A progress bar in bytes that shows an activity.
fn progress_bar(name: &str) -> indicatif::ProgressBar {
    let bar = indicatif::ProgressBar::new(0);
    if let Ok(style) = indicatif::ProgressStyle::with_template(
        "{prefix:>12} [{bar:30}] {percent:>3}% {bytes}/{total_bytes} eta {eta} {msg}",
    ) {
        bar.set_style(style);
    }
    bar.set_prefix(name.to_owned());
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_read_as_users_write_them() {
        assert_eq!(parse_format("fp8"), Ok(WeightFormat::Fp8));
        assert_eq!(parse_format("FP8:row"), Ok(WeightFormat::Fp8));
        assert_eq!(parse_format("FP8:tensor"), Ok(WeightFormat::Fp8Tensor));
        assert_eq!(parse_format("fp8:Static"), Ok(WeightFormat::Fp8Static));
        assert_eq!(parse_format("FP8:block"), Ok(WeightFormat::Fp8Block));
        assert_eq!(parse_format("INT4:g64:integer"), Ok(WeightFormat::Int4 { group: 64, zero: ZeroPoint::Integer }));
        for name in ["BF16", "FP8", "FP8:block", "INT8", "INT4:g64", "INT4:g32:symmetric", "Q4_1", "Q8_0"] {
            assert_eq!(format_name(parse_format(name).unwrap()), name);
        }
        for wrong in ["FP4", "INT4:g48", "FP8:g32", "FP8:block:tensor", ""] {
            assert!(parse_format(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_method_stands_beside_the_options_of_its_format() {
        let int4 = WeightFormat::Int4 { group: 64, zero: ZeroPoint::Symmetric };
        for text in ["INT4:g64:symmetric:gptq", "int4:GPTQ:symmetric:g64"] {
            assert_eq!(parse_recipe(text), Ok(Recipe { format: int4, method: Method::Gptq }));
        }
        assert_eq!(parse_recipe("FP8"), Ok(WeightFormat::Fp8.into()));
        assert!(parse_recipe("FP8:awq").unwrap_err().contains("makes INT4"));
    }
}
