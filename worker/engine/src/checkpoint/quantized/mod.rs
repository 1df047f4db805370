//! Checkpoints whose linear layers are already quantized, as hubs publish them: the stored codes, exactly.
//!
//! ```text
//! quantization_config, hf_quant_config.json --parse--> Quantization --parts--> shapes checked at opening
//!                                                            |
//! X.qweight, X.scales, ... ------------------read------------+--> StoredWeight --to_host--> HostWeight
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | this one | [`Quantization`]: which layout, which numbers, and the profile format that takes them over |
//! | `stored` | [`StoredWeight`]: codes and scales as the file has them, and how exactly a [`HostWeight`] holds them |
//! | `affine` | [`Affine`]: the group-wise ones |
//! | `parts` | the tensors of one linear layer, checked before they are read |
//! | `bits` | codes in 32-bit words |
//! | `compressed_tensors`, `awq`, `gptq`, `modelopt` | configuration and tensors of each layout |
//!
//! Nothing here rounds a weight again. What a layout cannot say in our formats is refused by name.
//!
//! [`HostWeight`]: modelprofile_kernels::HostWeight

mod affine;
pub(crate) mod awq;
pub(crate) mod bits;
pub(crate) mod compressed_tensors;
pub(crate) mod gptq;
pub(crate) mod modelopt;
pub(super) mod parts;
mod stored;

use modelprofile_kernels::FP8_BLOCK;
use serde_json::Value;

pub use affine::{Affine, Zeros};
pub use stored::{Fp8Scales, Rounding, StoredWeight};

use self::parts::{Expected, Module};
use crate::{EngineError, Method, ModelConfig, Result, WeightFormat, ZeroPoint, quantize::Recipe};

/// Configuration file of ModelOpt, beside `config.json`.
pub(crate) const HF_QUANT_CONFIG: &str = "hf_quant_config.json";

/// The convention that a quantized checkpoint follows: names, packing and configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `compressed-tensors` (llm-compressor, vLLM, transformers).
    CompressedTensors,
    /// AutoAWQ, version GEMM.
    AutoAwq,
    /// AutoGPTQ and GPTQModel.
    Gptq,
    /// NVIDIA ModelOpt, which TensorRT-LLM reads.
    ModelOpt,
    /// Ours, for what no other layout can say: 4 bits with a free minimum, INT8 with outlier columns in 16 bits.
    ModelProfile,
}

impl Layout {
    /// Name for messages and the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::CompressedTensors => "compressed-tensors",
            Self::AutoAwq => "autoawq",
            Self::Gptq => "gptq",
            Self::ModelOpt => "modelopt",
            Self::ModelProfile => "modelprofile",
        }
    }
}

/// What part of a weight shares one FP8 scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// The whole tensor.
    Tensor,
    /// One output row.
    Row,
    /// A block of rows and columns.
    Block([usize; 2]),
}

/// Numbers of the quantized layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// E4M3 codes.
    Fp8 {
        /// Extent of a scale.
        share: Share,
        /// Activations have one scale from calibration, stored as `input_scale`; else one per token.
        static_activations: bool,
    },
    /// INT8 codes with one scale per output row; activations INT8.
    Int8,
    /// As [`Self::Int8`], but for some input columns in BF16 (LLM.int8).
    Int8Outliers,
    /// 4- or 8-bit codes with one scale per group of inputs; activations in 16 bits.
    Grouped {
        /// 4 or 8.
        bits: u8,
        /// Inputs per scale; `None` is the whole row.
        group: Option<usize>,
        /// The grid.
        zero: ZeroPoint,
    },
}

/// How a checkpoint is quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantization {
    /// The convention.
    pub layout: Layout,
    /// The numbers.
    pub scheme: Scheme,
    /// Modules that the configuration says are left in 16 bits. Which ones really are, the files decide.
    pub ignored: Vec<String>,
    /// The configuration asks for an FP8 KV cache.
    pub fp8_kv_cache: bool,
    /// What a stored integer zero point lacks: 1 in the first GPTQ format, else 0.
    pub(super) zero_offset: u8,
    /// Group size in which our formats hold the codes.
    held_group: Option<u16>,
}

impl Quantization {
    pub(super) fn new(layout: Layout, scheme: Scheme, ignored: Vec<String>) -> Self {
        Self { layout, scheme, ignored, fp8_kv_cache: false, zero_offset: 0, held_group: None }
    }

    /// Reads the configuration: `quantization_config` of `config.json`, or else ModelOpt's own file. `None` when there
    /// is neither.
    pub(super) fn parse(config: &[u8], modelopt: Option<&[u8]>, model: &ModelConfig) -> Result<Option<Self>> {
        let json: Value = serde_json::from_slice(config)
            .map_err(|error| EngineError::checkpoint(super::hugging_face::CONFIG, error.to_string()))?;
        let in_config = json.get("quantization_config").or_else(|| json.get("compression_config"));
        let found = match (in_config.filter(|q| !q.is_null()), modelopt) {
            (None, None) => return Ok(None),
            (None, Some(file)) => modelopt::parse_file(file)?,
            (Some(value), _) => match value.get("quant_method").and_then(Value::as_str).unwrap_or_default() {
                "compressed-tensors" | compressed_tensors::OWN_METHOD | compressed_tensors::OUTLIERS_METHOD => {
                    compressed_tensors::parse(value)?
                }
                "awq" => awq::parse(value)?,
                "gptq" => gptq::parse(value)?,
                "modelopt" => modelopt::parse(value)?,
                other => {
                    return Err(unsupported(&format!(
                        "quantization_config of method {other:?}; read are compressed-tensors, awq, gptq and modelopt. \
                         Give the original checkpoint, this worker quantizes it itself"
                    )));
                }
            },
        };
        let held_group = match found.scheme {
            Scheme::Grouped { group, .. } => held_group(group, model),
            Scheme::Fp8 { share: Share::Block(_), .. } => held_group(None, model),
            _ => None,
        };
        Ok(Some(Self { held_group, ..found }))
    }

    /// The recipe that takes the codes over bit for bit; `None` when none of this build's does, and only BF16, dequantized,
    /// can be made of the checkpoint.
    pub fn recipe(&self) -> Option<Recipe> {
        let method = if self.scheme == Scheme::Int8Outliers { Method::LlmInt8 } else { Method::RoundToNearest };
        self.format().map(|format| Recipe { format, method })
    }

    /// The format of [`Self::recipe`].
    pub fn format(&self) -> Option<WeightFormat> {
        match self.scheme {
            Scheme::Fp8 { share: Share::Tensor, static_activations: true } => Some(WeightFormat::Fp8Static),
            Scheme::Fp8 { share: Share::Tensor, .. } => Some(WeightFormat::Fp8Tensor),
            Scheme::Fp8 { share: Share::Row, .. } => Some(WeightFormat::Fp8),
            Scheme::Fp8 { share: Share::Block([FP8_BLOCK, FP8_BLOCK]), .. } => {
                self.held_group.filter(|group| usize::from(*group) == FP8_BLOCK).map(|_| WeightFormat::Fp8Block)
            }
            Scheme::Int8 | Scheme::Int8Outliers => Some(WeightFormat::Int8),
            Scheme::Grouped { bits: 4, zero, .. } => self.held_group.map(|group| WeightFormat::Int4 { group, zero }),
            // Groups of 32 hold wider ones: the same scale, several times.
            Scheme::Grouped { zero: ZeroPoint::Symmetric, .. } => self.held_group.map(|_| WeightFormat::Q8_0),
            Scheme::Fp8 { share: Share::Block(_), .. } | Scheme::Grouped { .. } => None,
        }
    }

    /// What a manifest's format means for this checkpoint: FP8 is whichever kind of FP8 it comes in, since a manifest names
    /// none and nothing is rounded again. Every other format stands for itself.
    #[must_use]
    pub fn meant(&self, format: WeightFormat) -> WeightFormat {
        match self.format() {
            Some(own @ (WeightFormat::Fp8Tensor | WeightFormat::Fp8Static | WeightFormat::Fp8Block))
                if format == WeightFormat::Fp8 =>
            {
                own
            }
            _ => format,
        }
    }

    /// One line for a person: layout, numbers, what is left out.
    pub fn describe(&self) -> String {
        let numbers = match self.scheme {
            Scheme::Fp8 { share, static_activations } => {
                let share = match share {
                    Share::Tensor => "tensor".to_owned(),
                    Share::Row => "output row".to_owned(),
                    Share::Block([rows, cols]) => format!("block of {rows} x {cols}"),
                };
                let activations = if static_activations { "static" } else { "per token" };
                format!("FP8 E4M3, a scale per {share}, activation scales {activations}")
            }
            Scheme::Int8 => "INT8, a scale per output row".to_owned(),
            Scheme::Int8Outliers => "INT8, a scale per output row, outlier columns in BF16".to_owned(),
            Scheme::Grouped { bits, group, zero } => {
                let group = group.map_or("whole rows".to_owned(), |group| format!("groups of {group}"));
                let zero = match zero {
                    ZeroPoint::Symmetric => "symmetric",
                    ZeroPoint::Integer => "integer zero points",
                    ZeroPoint::Minimum => "a free minimum",
                };
                format!("INT{bits} in {group}, {zero}")
            }
        };
        let ignored =
            if self.ignored.is_empty() { String::new() } else { format!("; not {}", self.ignored.join(", ")) };
        let kv = if self.fp8_kv_cache { "; FP8 KV cache" } else { "" };
        format!("{}: {numbers}{ignored}{kv}", self.layout.name())
    }

    /// The tensors that a linear layer of `n` outputs and `k` inputs must and may have.
    ///
    /// # Errors
    /// Groups that do not divide the inputs; the message says so.
    pub(super) fn parts(&self, n: usize, k: usize) -> std::result::Result<Vec<Expected>, String> {
        if let Scheme::Grouped { group: Some(group), .. } = self.scheme
            && !k.is_multiple_of(group)
        {
            return Err(format!("groups of {group} do not divide {k} inputs"));
        }
        Ok(match self.layout {
            Layout::CompressedTensors | Layout::ModelProfile => compressed_tensors::parts(&self.scheme, n, k),
            Layout::AutoAwq => awq::parts(&self.scheme, n, k),
            Layout::Gptq => gptq::parts(&self.scheme, n, k),
            Layout::ModelOpt => modelopt::parts(&self.scheme, n, k),
        })
    }

    /// The weight of a linear layer.
    pub(super) fn read(&self, module: &Module<'_>, n: usize, k: usize) -> Result<StoredWeight> {
        let weight = match self.layout {
            Layout::CompressedTensors | Layout::ModelProfile => compressed_tensors::read(self, module, n, k),
            Layout::AutoAwq => awq::read(self, module, n, k),
            Layout::Gptq => gptq::read(self, module, n, k),
            Layout::ModelOpt => modelopt::read(self, module, n, k),
        }?;
        weight.check().map_err(|message| module.error(&message))?;
        Ok(weight)
    }
}

/// How users write a recipe in `--format`, and in a manifest where that is another text: there groups, grids and methods have
/// fields, and FP8 is every kind of it, see [`Quantization::meant`].
pub fn written(recipe: Recipe) -> String {
    let (mut text, mut fields) = match recipe.format {
        WeightFormat::Int4 { group, zero } => (
            format!("INT4:g{group}:{}", format!("{zero:?}").to_lowercase()),
            format!("INT4, groupSize: {group}, zeroPoint: {zero:?}"),
        ),
        WeightFormat::Fp8Tensor => ("FP8:tensor".to_owned(), "FP8".to_owned()),
        WeightFormat::Fp8Static => ("FP8:static".to_owned(), "FP8".to_owned()),
        WeightFormat::Fp8Block => ("FP8:block".to_owned(), "FP8".to_owned()),
        other => {
            let name = other.canonical().split('-').next().unwrap_or_default().to_uppercase();
            (name.clone(), name)
        }
    };
    let method = match recipe.method {
        Method::RoundToNearest => None,
        Method::Awq => Some("AWQ"),
        Method::Gptq => Some("GPTQ"),
        Method::SmoothQuant => Some("SmoothQuant"),
        Method::LlmInt8 => Some("LLMInt8"),
    };
    if let Some(method) = method {
        text = format!("{text}:{}", recipe.method.canonical());
        fields = format!("{fields}, method: {method}");
    }
    if text == fields { text } else { format!("{text} (in a manifest {{format: {fields}}})") }
}

/// The widest group of ours that divides the stored one in every layer.
fn held_group(group: Option<usize>, config: &ModelConfig) -> Option<u16> {
    let inputs = [config.hidden, config.intermediate, config.heads * config.head_dim];
    [128u16, 64, 32].into_iter().find(|held| {
        let held = usize::from(*held);
        group.is_none_or(|group| group.is_multiple_of(held)) && inputs.iter().all(|k| k.is_multiple_of(held))
    })
}

pub(super) fn unsupported(message: &str) -> EngineError {
    EngineError::Unsupported(format!("{}: {message}", super::hugging_face::CONFIG))
}

/// A list of module names.
fn names(value: Option<&Value>) -> Vec<String> {
    let list = value.and_then(Value::as_array);
    list.map(|list| list.iter().filter_map(Value::as_str).map(str::to_owned).collect()).unwrap_or_default()
}

/// A group size as configurations write it: -1 or 0 is the whole row.
fn group_size(value: Option<&Value>) -> Result<Option<usize>> {
    match value.and_then(Value::as_i64) {
        Some(-1 | 0) => Ok(None),
        Some(size) if (1..1 << 24).contains(&size) => Ok(Some(size as usize)),
        _ => Err(EngineError::checkpoint(
            super::hugging_face::CONFIG,
            format!("quantization_config: the group size is {}", value.unwrap_or(&Value::Null)),
        )),
    }
}

/// Groups of a row; one when the group is the whole row.
pub(crate) fn groups(group: Option<usize>, k: usize) -> usize {
    k / group.unwrap_or(k).max(1)
}
