//! Linear weights: the kind and the shape.
//!
//! ```text
//! checkpoint rows (f32) --quantize--> HostWeight (row-major codes + scales) --pack--> PackedWeight (device layout)
//! ```
//!
//! A [`HostWeight`](crate::HostWeight) is what an artifact stores; a [`PackedWeight`](crate::PackedWeight) is what a
//! backend computes with.

use crate::{KernelError, Result};

/// Side of the blocks of [`WeightKind::Fp8Block`].
pub const FP8_BLOCK: usize = 128;
/// Most columns that [`WeightKind::Int8Outliers`] keeps in BF16.
pub const MAX_OUTLIERS: usize = 64;

/// Longest side of a weight: no model comes near it, and bytes of a packed weight stay far from overflow.
pub(crate) const MAX_SIDE: usize = 1 << 28;

/// How a linear weight is stored and which activations it is multiplied with. `y[m, n] = sum_k x[m, k] w[n, k]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightKind {
    /// BF16 codes; activations rounded to BF16, FP32 accumulation.
    Bf16,
    /// E4M3 codes with one FP32 scale per output row; activations E4M3 with one dynamic scale per token (W8A8).
    Fp8,
    /// E4M3 codes with one FP32 scale per output row; activations E4M3 with one scale for all tokens, measured beforehand
    /// and stored with the weight, saturating.
    Fp8Static,
    /// E4M3 codes with one FP32 scale per block of 128 outputs x 128 inputs; activations E4M3 with one dynamic scale per
    /// token and 128 inputs (DeepSeek-V3, 2024, section 3.3). K is a multiple of [`FP8_BLOCK`].
    Fp8Block,
    /// INT8 codes (symmetric, -127..=127) with one FP32 scale per output row; activations INT8, one dynamic scale per token.
    Int8,
    /// [`Self::Int8`] but for some input columns, which are BF16 and multiplied with BF16 activations (LLM.int8, Dettmers et
    /// al. 2022). The columns are chosen beforehand and stored with the weight.
    Int8Outliers {
        /// Columns in BF16: 0 to [`MAX_OUTLIERS`].
        columns: u16,
    },
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

/// What the group-wise kinds ([`WeightKind::Int4`], [`WeightKind::Int8Group`]) multiply with. A choice on the CPU; what a device
/// has is [`Device::grouped_activations`](crate::Device::grouped_activations).
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
    /// [`KernelError::Shape`] when a dimension is zero or beyond 2^28, the group is not 32, 64 or 128 or does not divide K, K is not a
    /// whole number of FP8 blocks, or there are more outlier columns than [`MAX_OUTLIERS`] or K.
    pub fn validate(&self) -> Result<()> {
        if self.n == 0 || self.k == 0 {
            return Err(KernelError::Shape(format!("a weight of {} x {} has no elements", self.n, self.k)));
        }
        if self.n.max(self.k) > MAX_SIDE {
            return Err(KernelError::Shape(format!("a weight of {} x {} is larger than any model's", self.n, self.k)));
        }
        match self.kind {
            WeightKind::Bf16 | WeightKind::Fp8 | WeightKind::Fp8Static | WeightKind::Int8 => Ok(()),
            WeightKind::Fp8Block if self.k.is_multiple_of(FP8_BLOCK) => Ok(()),
            WeightKind::Fp8Block => Err(KernelError::Shape(format!(
                "blocks of {FP8_BLOCK} do not divide the {} inputs; use one FP8 scale per row or tensor",
                self.k
            ))),
            WeightKind::Int8Outliers { columns } if usize::from(columns) <= self.k.min(MAX_OUTLIERS) => Ok(()),
            WeightKind::Int8Outliers { columns } => Err(KernelError::Shape(format!(
                "{columns} outlier columns of {} inputs; at most {MAX_OUTLIERS} are kept",
                self.k
            ))),
            WeightKind::Int4 { group } | WeightKind::Int8Group { group } => {
                if matches!(group, 32 | 64 | 128) && self.k.is_multiple_of(usize::from(group)) {
                    return Ok(());
                }
                let divides: Vec<String> =
                    [32usize, 64, 128].iter().filter(|g| self.k.is_multiple_of(**g)).map(ToString::to_string).collect();
                Err(KernelError::Shape(format!(
                    "group size {group} does not divide the {} inputs; sizes that do: {}",
                    self.k,
                    if divides.is_empty() { "none".to_owned() } else { divides.join(", ") }
                )))
            }
        }
    }
}
