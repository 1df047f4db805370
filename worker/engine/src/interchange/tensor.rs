//! A tensor to write, and the numbers that scales are written as.

use half::{bf16, f16};
use safetensors::Dtype;

/// One tensor of a linear layer, named by what follows `model.layers.0.mlp.down_proj.`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) suffix: &'static str,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Tensor {
    pub(crate) fn new(suffix: &'static str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Self {
        Self { suffix, dtype, shape: shape.to_vec(), bytes }
    }

    /// FP32 values.
    pub(crate) fn f32(suffix: &'static str, shape: &[usize], values: &[f32]) -> Self {
        Self::new(suffix, Dtype::F32, shape, bytemuck::cast_slice(values).to_vec())
    }

    /// Values in the given type.
    pub(crate) fn scales(suffix: &'static str, shape: &[usize], values: &[f32], scale: ScaleType) -> Self {
        match scale.of(values) {
            Dtype::F16 => {
                let bytes = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
                Self::new(suffix, Dtype::F16, shape, bytes)
            }
            Dtype::BF16 => {
                let bytes = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
                Self::new(suffix, Dtype::BF16, shape, bytes)
            }
            _ => Self::f32(suffix, shape, values),
        }
    }
}

/// The type that group scales are written in. None of them rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScaleType {
    /// FP32.
    F32,
    /// FP16 or BF16 where it holds every scale of the tensor exactly, else FP32.
    Narrowest,
}

impl ScaleType {
    fn of(self, values: &[f32]) -> Dtype {
        match self {
            Self::Narrowest if values.iter().all(|v| exact_f16(*v)) => Dtype::F16,
            Self::Narrowest if values.iter().all(|v| exact_bf16(*v)) => Dtype::BF16,
            _ => Dtype::F32,
        }
    }
}

/// Whether a number is an FP16 number.
fn exact_f16(value: f32) -> bool {
    f16::from_f32(value).to_f32().to_bits() == value.to_bits()
}

/// Whether a number is a BF16 number.
fn exact_bf16(value: f32) -> bool {
    bf16::from_f32(value).to_f32().to_bits() == value.to_bits()
}

/// Scales of `[n, groups]` as FP16, for layouts that have no other type.
///
/// # Errors
/// The first scale that is no FP16 number, by row and group.
pub(crate) fn f16_scales(scales: &[f32], groups: usize) -> Result<Vec<f16>, String> {
    match scales.iter().position(|scale| !exact_f16(*scale)) {
        None => Ok(scales.iter().map(|scale| f16::from_f32(*scale)).collect()),
        Some(at) => Err(format!(
            "the scale {:e} of row {}, group {} is no FP16 number, and this layout has no other; compressed-tensors keeps it",
            scales[at],
            at / groups.max(1),
            at % groups.max(1)
        )),
    }
}
