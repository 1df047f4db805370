//! GGUF blocks of one scale per 32 weights, taken over exactly: the same codes, the same FP16 scales.

use half::f16;
use modelprofile_kernels::HostWeight;

use super::{
    SourceDtype, SourceTensor,
    ggml::{BlockQ4_0, BlockQ4_1, BlockQ8_0},
};
use crate::{EngineError, Result};

/// Weights of a block.
const BLOCK: usize = 32;

impl SourceTensor<'_> {
    /// The tensor as group-wise codes, `w = s q + m`: `Q4_1` as it is, `Q4_0` with `m = -8 s`, `Q8_0` with codes raised by
    /// 128 and `m = -128 s`. `None` for other types, and where that minimum is not an FP16 number.
    ///
    /// # Errors
    /// A scale that is NaN or infinite; names file and tensor.
    pub fn as_grouped(&self) -> Result<Option<HostWeight>> {
        let bits = match self.dtype {
            SourceDtype::Q4_1 | SourceDtype::Q4_0 => 4,
            SourceDtype::Q8_0 => 8,
            _ => return Ok(None),
        };
        let mut codes = Vec::with_capacity(self.elements());
        let (mut scales, mut mins) = (Vec::new(), Vec::new());
        for row in 0..self.rows {
            let bytes = self.row_bytes(row)?;
            let first = scales.len();
            match self.dtype {
                SourceDtype::Q4_1 => {
                    for block in bytemuck::cast_slice::<u8, BlockQ4_1>(bytes) {
                        nibbles(&block.qs, &mut codes);
                        scales.push(block.d.f16());
                        mins.push(block.m.f16());
                    }
                }
                SourceDtype::Q4_0 => {
                    for block in bytemuck::cast_slice::<u8, BlockQ4_0>(bytes) {
                        nibbles(&block.qs, &mut codes);
                        scales.push(block.d.f16());
                        mins.push(f16::from_f32(-8.0 * block.d.f16().to_f32()));
                    }
                }
                _ => {
                    for block in bytemuck::cast_slice::<u8, BlockQ8_0>(bytes) {
                        codes.extend(block.qs.iter().map(|q| (i16::from(*q) + 128) as u8));
                        scales.push(block.d.f16());
                        mins.push(f16::from_f32(-128.0 * block.d.f16().to_f32()));
                    }
                }
            }
            if let Some(at) = (first..scales.len()).find(|i| !scales[*i].is_finite()) {
                let message =
                    format!("tensor {}: row {row}, block {} has a scale of {}", self.name, at - first, scales[at]);
                return Err(EngineError::checkpoint(self.file, message));
            }
            // A multiple by a power of two is exact in FP16 until it overflows.
            if mins[first..].iter().any(|m| !m.is_finite()) {
                return Ok(None);
            }
        }
        let row_scales = vec![1.0; self.rows];
        Ok(Some(HostWeight::Grouped {
            n: self.rows,
            k: self.cols,
            bits,
            group: BLOCK,
            codes,
            scales,
            mins,
            row_scales,
        }))
    }
}

/// Low nibbles are elements 0..16, high nibbles 16..32.
fn nibbles(bytes: &[u8], codes: &mut Vec<u8>) {
    codes.extend(bytes.iter().map(|b| b & 15));
    codes.extend(bytes.iter().map(|b| b >> 4));
}
