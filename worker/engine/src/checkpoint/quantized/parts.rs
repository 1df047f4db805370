//! The tensors of one quantized linear layer: found by suffix, checked when the checkpoint is opened, read by type.

use std::collections::BTreeMap;

use half::{bf16, f16};
use safetensors::Dtype;

use crate::{
    EngineError, Result,
    checkpoint::{
        SourceDtype,
        store::{SourceFile, StoredCodes, StoredTensor},
    },
};

/// Floating-point types that scales come in.
pub(super) const FLOATS: &[Dtype] = &[Dtype::F16, Dtype::BF16, Dtype::F32];

/// What a layout demands of one tensor of a layer.
#[derive(Debug)]
pub(in crate::checkpoint) struct Expected {
    /// Name after `model.layers.0.mlp.down_proj.`.
    pub(in crate::checkpoint) suffix: &'static str,
    dtypes: &'static [Dtype],
    /// Any of these; a scalar is `[1]`.
    shapes: Vec<Vec<usize>>,
    optional: bool,
}

impl Expected {
    pub(super) fn one(suffix: &'static str, dtypes: &'static [Dtype], shape: &[usize]) -> Self {
        Self { suffix, dtypes, shapes: vec![shape.to_vec()], optional: false }
    }

    pub(super) fn any(suffix: &'static str, dtypes: &'static [Dtype], shapes: Vec<Vec<usize>>) -> Self {
        Self { suffix, dtypes, shapes, optional: false }
    }

    pub(super) fn or_absent(self) -> Self {
        Self { optional: true, ..self }
    }
}

/// Scalars as files write them.
pub(super) fn scalar_shapes() -> Vec<Vec<usize>> {
    vec![vec![1], vec![1, 1]]
}

/// All tensors of the files.
#[derive(Clone, Copy)]
pub(in crate::checkpoint) struct Tensors<'a> {
    pub(in crate::checkpoint) files: &'a [SourceFile],
    pub(in crate::checkpoint) floats: &'a BTreeMap<String, StoredTensor>,
    pub(in crate::checkpoint) codes: &'a BTreeMap<String, StoredCodes>,
}

impl<'a> Tensors<'a> {
    /// The tensors of the layer `name` (`model.layers.0.mlp.down_proj`).
    pub(in crate::checkpoint) fn module(self, name: &str) -> Module<'a> {
        Module { tensors: self, name: name.to_owned() }
    }
}

/// The tensors of one layer.
pub(in crate::checkpoint) struct Module<'a> {
    tensors: Tensors<'a>,
    name: String,
}

impl<'a> Module<'a> {
    /// The part of this suffix, if there.
    pub(super) fn get(&self, suffix: &str) -> Option<Part<'a>> {
        let name = format!("{}.{suffix}", self.name);
        let (dtype, shape, file, offset, len) = if let Some(t) = self.tensors.codes.get(&name) {
            (t.dtype, &t.shape, t.file, t.offset, t.len)
        } else {
            let t = self.tensors.floats.get(&name)?;
            let dtype = match t.dtype {
                SourceDtype::F16 => Dtype::F16,
                SourceDtype::Bf16 => Dtype::BF16,
                SourceDtype::F32 => Dtype::F32,
                _ => return None,
            };
            (dtype, &t.shape, t.file, t.offset, t.len)
        };
        let file = &self.tensors.files[file];
        Some(Part { name, file: &file.name, dtype, shape, bytes: &file.map[offset..offset + len] })
    }

    /// The part of this suffix.
    ///
    /// # Errors
    /// When it is missing; opening the checkpoint has checked that those needed are there.
    pub(super) fn require(&self, suffix: &str) -> Result<Part<'a>> {
        self.get(suffix).ok_or_else(|| self.missing(suffix))
    }

    /// Checks every part that the layout names and gives the names of those there.
    ///
    /// # Errors
    /// A missing tensor, one of another type or shape, each by name.
    pub(in crate::checkpoint) fn check(&self, expected: &[Expected]) -> Result<Vec<String>> {
        let mut used = Vec::new();
        for part in expected {
            let Some(found) = self.get(part.suffix) else {
                if part.optional {
                    continue;
                }
                return Err(self.missing(part.suffix));
            };
            if !part.dtypes.contains(&found.dtype) {
                let wanted: Vec<String> = part.dtypes.iter().map(|d| format!("{d:?}")).collect();
                return Err(found.error(&format!("is {:?}, {} is needed", found.dtype, wanted.join(" or "))));
            }
            if !part.shapes.iter().any(|shape| shape == found.shape) {
                let wanted: Vec<String> = part.shapes.iter().map(|s| format!("{s:?}")).collect();
                let wanted = wanted.join(" or ");
                return Err(found.error(&format!("has the shape {:?}, the layer demands {wanted}", found.shape)));
            }
            used.push(found.name);
        }
        Ok(used)
    }

    /// Bytes of the parts.
    pub(in crate::checkpoint) fn bytes(&self, expected: &[Expected]) -> u64 {
        expected.iter().filter_map(|part| self.get(part.suffix)).map(|part| part.bytes.len() as u64).sum()
    }

    /// An error that names the layer.
    pub(super) fn error(&self, message: &str) -> EngineError {
        EngineError::checkpoint(&self.name, message)
    }

    fn missing(&self, suffix: &str) -> EngineError {
        self.error(&format!("tensor {}.{suffix} is missing; the checkpoint is incomplete", self.name))
    }
}

/// One tensor of a layer.
pub(super) struct Part<'a> {
    pub(super) name: String,
    file: &'a str,
    dtype: Dtype,
    pub(super) shape: &'a [usize],
    pub(super) bytes: &'a [u8],
}

impl Part<'_> {
    /// Its values as FP32, which holds all three floating-point types exactly.
    ///
    /// # Errors
    /// NaN or infinity, by position.
    pub(super) fn floats(&self) -> Result<Vec<f32>> {
        let half = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
        let values: Vec<f32> = match self.dtype {
            Dtype::F16 => self.bytes.chunks_exact(2).map(|b| f16::from_bits(half(b)).to_f32()).collect(),
            Dtype::BF16 => self.bytes.chunks_exact(2).map(|b| bf16::from_bits(half(b)).to_f32()).collect(),
            Dtype::F32 => self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            other => return Err(self.error(&format!("is {other:?}, not a floating-point type"))),
        };
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(values),
            Some(at) => Err(self.error(&format!("element {at} is {}", values[at]))),
        }
    }

    /// Its values as whole numbers.
    pub(super) fn integers(&self) -> Result<Vec<i64>> {
        let four = |b: &[u8]| i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        match self.dtype {
            Dtype::I32 => Ok(self.bytes.chunks_exact(4).map(four).collect()),
            Dtype::I64 => Ok(self
                .bytes
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
                .collect()),
            other => Err(self.error(&format!("is {other:?}, not I32 or I64"))),
        }
    }

    /// An error that names file and tensor.
    pub(super) fn error(&self, message: &str) -> EngineError {
        EngineError::checkpoint(self.file, format!("tensor {} {message}", self.name))
    }
}
