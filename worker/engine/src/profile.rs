//! A profile as the engine sees it: which format every tensor of the model takes.

use modelprofile_kernels::{KvFormat, WeightKind};

use crate::{EngineError, ModelConfig, Result, quantize::Recipe};

/// How the four bits of INT4 map to values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ZeroPoint {
    /// `w = s (q - 8)`.
    Symmetric,
    /// `w = s (q - z)` with an integer z.
    Integer,
    /// `w = s q + m` with any m.
    Minimum,
}

/// Weight format of a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// BF16.
    Bf16,
    /// FP8 E4M3, W8A8, one scale per output.
    Fp8,
    /// FP8 E4M3, W8A8, one scale per tensor.
    Fp8Tensor,
    /// FP8 E4M3, W8A8, one scale per tensor and one for all its inputs, calibrated.
    Fp8Static,
    /// FP8 E4M3, W8A8, one scale per block of 128 x 128; activations per token and 128 inputs.
    Fp8Block,
    /// INT8, W8A8.
    Int8,
    /// 4 bits per weight in groups.
    Int4 {
        /// Inputs per scale.
        group: u16,
        /// The grid.
        zero: ZeroPoint,
    },
    /// 4-bit blocks of 32 with a free minimum; a GGUF file's own `Q4_1` blocks are taken over exactly.
    Q4_1,
    /// 4-bit symmetric blocks of 32; a GGUF file's own `Q4_0` blocks are taken over exactly.
    Q4_0,
    /// 8-bit symmetric blocks of 32; a GGUF file's own `Q8_0` blocks are taken over exactly.
    Q8_0,
}

impl WeightFormat {
    /// Canonical text, part of the artifact key.
    pub fn canonical(self) -> String {
        match self {
            Self::Bf16 => "bf16".into(),
            Self::Fp8 => "fp8-e4m3-row".into(),
            Self::Fp8Tensor => "fp8-e4m3-tensor".into(),
            Self::Fp8Static => "fp8-e4m3-static".into(),
            Self::Fp8Block => "fp8-e4m3-block".into(),
            Self::Int8 => "int8-row".into(),
            Self::Int4 { group, zero } => format!("int4-g{group}-{zero:?}").to_lowercase(),
            Self::Q4_1 => "q4_1".into(),
            Self::Q4_0 => "q4_0".into(),
            Self::Q8_0 => "q8_0".into(),
        }
    }

    /// The grid of group-wise weights; the other formats are symmetric.
    pub fn zero(self) -> ZeroPoint {
        match self {
            Self::Int4 { zero, .. } => zero,
            Self::Q4_1 => ZeroPoint::Minimum,
            _ => ZeroPoint::Symmetric,
        }
    }

    /// Storage of the linear layers.
    pub fn kind(self) -> WeightKind {
        match self {
            Self::Bf16 => WeightKind::Bf16,
            Self::Fp8 | Self::Fp8Tensor => WeightKind::Fp8,
            Self::Fp8Static => WeightKind::Fp8Static,
            Self::Fp8Block => WeightKind::Fp8Block,
            Self::Int8 => WeightKind::Int8,
            Self::Int4 { group, .. } => WeightKind::Int4 { group },
            Self::Q4_1 | Self::Q4_0 => WeightKind::Int4 { group: 32 },
            Self::Q8_0 => WeightKind::Int8Group { group: 32 },
        }
    }

    /// Storage of the embedding and the output layer: BF16 in a BF16 profile, else 8 bits in groups of 32, which cost
    /// nothing on a file that stores them so (`Q8_0`) and little elsewhere. BF16 where 32 does not divide the width.
    pub fn output_kind(self, hidden: usize) -> WeightKind {
        if self == Self::Bf16 || !hidden.is_multiple_of(32) {
            WeightKind::Bf16
        } else {
            WeightKind::Int8Group { group: 32 }
        }
    }
}

/// How weights are brought to a format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Method {
    /// Each weight to the nearest point of its grid.
    #[default]
    RoundToNearest,
    /// Activation-aware weight quantization (Lin et al. 2023): INT4.
    Awq,
    /// GPTQ (Frantar et al. 2022): INT4 and INT8.
    Gptq,
    /// SmoothQuant (Xiao et al. 2022): INT8.
    SmoothQuant,
    /// LLM.int8 (Dettmers et al. 2022): INT8 with outlier columns in 16 bits.
    LlmInt8,
}

impl Method {
    /// Canonical text, part of the artifact key.
    pub fn canonical(self) -> &'static str {
        match self {
            Self::RoundToNearest => "rtn",
            Self::Awq => "awq",
            Self::Gptq => "gptq",
            Self::SmoothQuant => "smoothquant",
            Self::LlmInt8 => "llm-int8",
        }
    }

    /// Whether it looks at what calibration text makes of the activations.
    pub fn needs_calibration(self) -> bool {
        self != Self::RoundToNearest
    }
}

/// One rung of the ladder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileSpec {
    /// Name in the manifest.
    pub name: String,
    /// Weights.
    pub weights: WeightFormat,
    /// How they are brought to it.
    pub method: Method,
    /// KV cache; the same in all profiles of a ladder.
    pub kv: KvFormat,
}

impl ProfileSpec {
    /// What is made of the checkpoint for this profile.
    pub fn recipe(&self) -> Recipe {
        Recipe { format: self.weights, method: self.method }
    }

    /// Checks the profile against the model.
    ///
    /// # Errors
    /// As [`Recipe::fits`], with the profile's name.
    pub fn validate(&self, config: &ModelConfig) -> Result<()> {
        let named = |error| EngineError::Config(format!("profile {}: {error}", self.name));
        self.recipe().fits(config).map_err(named)
    }
}
