//! Which tensor takes which type: the mixes under which llama.cpp publishes its files.
//!
//! | file type | most matrices | attention value, MLP down | output layer |
//! |---|---|---|---|
//! | `Q4_K_M`, `Q5_K_M` | `Q4_K`, `Q5_K` | `Q6_K` in the layers of [`more_bits`] | `Q6_K` |
//! | `Q4_0`, `Q4_1` | themselves | themselves | `Q6_K` |
//! | `Q6_K`, `Q8_0`, `F16`, `BF16` | themselves | themselves | themselves |
//!
//! The output layer of a tied model is its embedding. Vectors stay FP32. Where a row is no multiple of the type's block, the
//! type with blocks of 32 that is next in size takes its place, then `F16`.

use std::{fmt, str::FromStr};

use crate::{
    Architecture, EngineError, ModelConfig,
    checkpoint::{Role, SourceDtype},
};

/// What a GGUF file is called by: the type of most of its tensors, and the mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, non_camel_case_types)]
pub enum FileType {
    F16,
    BF16,
    Q8_0,
    Q6_K,
    Q5_K_M,
    Q4_K_M,
    Q4_1,
    Q4_0,
}

impl FileType {
    /// Every file type, the largest first.
    pub const ALL: [Self; 8] =
        [Self::F16, Self::BF16, Self::Q8_0, Self::Q6_K, Self::Q5_K_M, Self::Q4_K_M, Self::Q4_1, Self::Q4_0];

    /// The name that users write.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q6_K => "Q6_K",
            Self::Q5_K_M => "Q5_K_M",
            Self::Q4_K_M => "Q4_K_M",
            Self::Q4_1 => "Q4_1",
            Self::Q4_0 => "Q4_0",
        }
    }

    /// The value of `general.file_type`.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 7,
            Self::Q4_K_M => 15,
            Self::Q5_K_M => 17,
            Self::Q6_K => 18,
            Self::BF16 => 32,
        }
    }

    /// The type of most matrices.
    fn default_type(self) -> SourceDtype {
        match self {
            Self::F16 => SourceDtype::F16,
            Self::BF16 => SourceDtype::Bf16,
            Self::Q8_0 => SourceDtype::Q8_0,
            Self::Q6_K => SourceDtype::Q6_K,
            Self::Q5_K_M => SourceDtype::Q5_K,
            Self::Q4_K_M => SourceDtype::Q4_K,
            Self::Q4_1 => SourceDtype::Q4_1,
            Self::Q4_0 => SourceDtype::Q4_0,
        }
    }

    /// The type of a tensor in such a file. `importance` says whether an importance matrix is used: then the first layers'
    /// down projections of a `Q4_0` file take `Q4_1`, as published files do.
    pub(super) fn tensor_type(self, role: Role, config: &ModelConfig, importance: bool) -> SourceDtype {
        if role.is_vector() {
            return SourceDtype::F32;
        }
        let wanted = match (self, role) {
            (Self::F16 | Self::BF16 | Self::Q8_0 | Self::Q6_K, _) => self.default_type(),
            (_, Role::Output) => SourceDtype::Q6_K,
            (_, Role::Embedding) if config.tied_embeddings => SourceDtype::Q6_K,
            (Self::Q4_K_M | Self::Q5_K_M, Role::Value(layer) | Role::Down(layer))
                if more_bits(layer, config.layers) =>
            {
                SourceDtype::Q6_K
            }
            // Few key/value heads make the values small and their errors common to many queries.
            (Self::Q4_K_M, Role::Value(_)) if is_70b(config) => SourceDtype::Q5_K,
            (Self::Q4_0, Role::Down(layer)) if importance && layer < config.layers / 8 => SourceDtype::Q4_1,
            _ => self.default_type(),
        };
        fitting(wanted, role.shape(config).1)
    }
}

/// The layers whose values and down projections get more bits: the first and the last eighth, and every third between.
fn more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// 80 layers with grouped-query attention: the shape that llama.cpp calls 70B.
fn is_70b(config: &ModelConfig) -> bool {
    let llama = matches!(config.architecture, Architecture::Llama | Architecture::Mistral);
    config.layers == 80 && !(llama && config.heads == config.kv_heads)
}

/// `wanted`, or what takes its place where rows of `cols` are no multiple of its block.
fn fitting(wanted: SourceDtype, cols: usize) -> SourceDtype {
    let smaller = match wanted {
        SourceDtype::Q4_K => SourceDtype::Q5_0,
        SourceDtype::Q5_K => SourceDtype::Q5_1,
        SourceDtype::Q6_K => SourceDtype::Q8_0,
        other => other,
    };
    let fits = |dtype: &SourceDtype| cols.is_multiple_of(dtype.block_elements());
    [wanted, smaller].into_iter().find(fits).unwrap_or(SourceDtype::F16)
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FileType {
    type Err = EngineError;

    fn from_str(text: &str) -> Result<Self, EngineError> {
        Self::ALL.into_iter().find(|t| t.name().eq_ignore_ascii_case(text)).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            EngineError::Config(format!("{text} is no GGUF file type that is written here; there are {names}"))
        })
    }
}

#[cfg(test)]
#[path = "mix_tests.rs"]
mod tests;
