//! Linear weights as values: the kind, the shape, and the quantized rows before they are packed for a device.
//!
//! ```text
//! checkpoint rows (f32) --quantize--> HostWeight (row-major codes + scales) --pack--> PackedWeight (device layout)
//! ```
//!
//! A `HostWeight` is what an artifact stores; a `PackedWeight` is what a backend computes with.

use half::{bf16, f16};

use crate::{KernelError, Result};

/// How a linear weight is stored and which activations it is multiplied with. `y[m, n] = sum_k x[m, k] w[n, k]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightKind {
    /// BF16 codes; activations rounded to BF16, FP32 accumulation.
    Bf16,
    /// E4M3 codes with one FP32 scale per output row; activations E4M3 with one dynamic scale per token (W8A8).
    Fp8,
    /// INT8 codes (symmetric, -127..=127) with one FP32 scale per output row; activations INT8, one dynamic scale per token.
    Int8,
    /// Unsigned 4-bit codes, `w = s q + m` per group of `group` inputs. Activations see [`GroupedActivations`].
    Int4 {
        /// Inputs that share one scale and minimum: 32, 64 or 128; divides K.
        group: u16,
    },
    /// Unsigned 8-bit codes, `w = s q + m` per group (GGUF `Q8_0` is `q = code + 128`, `m = -128 s`).
    Int8Group {
        /// Inputs that share one scale and minimum: 32, 64 or 128; divides K.
        group: u16,
    },
}

/// What the group-wise kinds ([`WeightKind::Int4`], [`WeightKind::Int8Group`]) multiply with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum GroupedActivations {
    /// Activations quantized to INT8 with one scale per token **and group**: integer dot products.
    #[default]
    Int8,
    /// Activations rounded to BF16 (the W4A16 definition), FP32 accumulation.
    Bf16,
}

/// Kind and shape of one linear weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WeightSpec {
    /// Storage and arithmetic.
    pub kind: WeightKind,
    /// Output features N (rows of the checkpoint tensor).
    pub n: usize,
    /// Input features K (columns of the checkpoint tensor).
    pub k: usize,
}

impl WeightSpec {
    /// Checks that the kind can hold the shape.
    ///
    /// # Errors
    /// [`KernelError::Shape`] when a dimension is zero, or the group is not 32, 64 or 128 or does not divide K.
    pub fn validate(&self) -> Result<()> {
        if self.n == 0 || self.k == 0 {
            return Err(KernelError::Shape(format!("a weight of {} x {} has no elements", self.n, self.k)));
        }
        if let WeightKind::Int4 { group } | WeightKind::Int8Group { group } = self.kind {
            let divides: Vec<String> =
                [32usize, 64, 128].iter().filter(|g| self.k.is_multiple_of(**g)).map(ToString::to_string).collect();
            if !matches!(group, 32 | 64 | 128) || !self.k.is_multiple_of(usize::from(group)) {
                return Err(KernelError::Shape(format!(
                    "group size {group} does not divide the {} inputs; sizes that do: {}",
                    self.k,
                    if divides.is_empty() { "none".to_owned() } else { divides.join(", ") }
                )));
            }
        }
        Ok(())
    }
}

/// A quantized weight in row-major order, independent of any device: what an artifact stores.
#[derive(Clone, Debug, PartialEq)]
pub enum HostWeight {
    /// BF16 values `[n, k]`.
    Bf16 {
        /// Output features.
        n: usize,
        /// Input features.
        k: usize,
        /// Values, row-major.
        values: Vec<bf16>,
    },
    /// E4M3 codes `[n, k]`, `w = scale[n] * e4m3(code)`.
    Fp8 {
        /// Output features.
        n: usize,
        /// Input features.
        k: usize,
        /// E4M3 bytes, row-major; never the NaN codes 0x7f and 0xff.
        codes: Vec<u8>,
        /// One scale per row.
        scales: Vec<f32>,
    },
    /// Symmetric INT8 codes `[n, k]`, `w = scale[n] * code`.
    Int8 {
        /// Output features.
        n: usize,
        /// Input features.
        k: usize,
        /// Codes in -127..=127, row-major.
        codes: Vec<i8>,
        /// One scale per row.
        scales: Vec<f32>,
    },
    /// Group-affine codes `[n, k]`: `w = row_scale[n] * (scale[n, k/group] * code + min[n, k/group])`.
    ///
    /// `row_scale` is a power of two (1 for GGUF blocks): it keeps the FP16 scales of very small or large rows in range.
    Grouped {
        /// Output features.
        n: usize,
        /// Input features.
        k: usize,
        /// 4 or 8.
        bits: u8,
        /// Inputs per scale.
        group: usize,
        /// One code per byte, row-major: 0..=15 (4 bits) or 0..=255 (8 bits).
        codes: Vec<u8>,
        /// Scales `[n, k / group]`.
        scales: Vec<f16>,
        /// Minima `[n, k / group]`.
        mins: Vec<f16>,
        /// One factor per row.
        row_scales: Vec<f32>,
    },
}

impl HostWeight {
    /// Kind and shape.
    pub fn spec(&self) -> WeightSpec {
        match *self {
            Self::Bf16 { n, k, .. } => WeightSpec { kind: WeightKind::Bf16, n, k },
            Self::Fp8 { n, k, .. } => WeightSpec { kind: WeightKind::Fp8, n, k },
            Self::Int8 { n, k, .. } => WeightSpec { kind: WeightKind::Int8, n, k },
            Self::Grouped { n, k, bits: 4, group, .. } => {
                WeightSpec { kind: WeightKind::Int4 { group: group as u16 }, n, k }
            }
            Self::Grouped { n, k, group, .. } => {
                WeightSpec { kind: WeightKind::Int8Group { group: group as u16 }, n, k }
            }
        }
    }
}
