//! A quantized weight as its file has it, and as our formats hold it.

use half::bf16;
use modelprofile_kernels::{FP8_BLOCK, HostWeight, format::e4m3};

use super::Affine;
use crate::{EngineError, Result, ZeroPoint};

/// FP8 scales by what shares them.
#[derive(Clone, Debug, PartialEq)]
pub enum Fp8Scales {
    /// One for the tensor.
    Tensor(f32),
    /// One per output row.
    Rows(Vec<f32>),
    /// One per block, `[ceil(n / rows), ceil(k / cols)]`.
    Blocks {
        /// Rows and columns of a block.
        size: [usize; 2],
        /// Row-major.
        values: Vec<f32>,
    },
}

impl Fp8Scales {
    /// All of them.
    fn values(&self) -> &[f32] {
        match self {
            Self::Tensor(scale) => std::slice::from_ref(scale),
            Self::Rows(values) | Self::Blocks { values, .. } => values,
        }
    }

    /// The scale of a weight with `k` inputs at a row and column.
    fn at(&self, row: usize, col: usize, k: usize) -> f32 {
        match self {
            Self::Tensor(scale) => *scale,
            Self::Rows(scales) => scales[row],
            Self::Blocks { size: [rows, cols], values } => values[row / rows * k.div_ceil(*cols) + col / cols],
        }
    }
}

/// A quantized linear weight, exactly as stored.
#[derive(Clone, Debug, PartialEq)]
pub enum StoredWeight {
    /// E4M3 codes.
    Fp8 {
        /// Output features.
        n: usize,
        /// Input features.
        k: usize,
        /// `[n, k]`.
        codes: Vec<u8>,
        /// Scales.
        scales: Fp8Scales,
        /// The scale of static activations.
        input_scale: Option<f32>,
    },
    /// INT8 codes, one scale per row.
    Int8 {
        /// Output features.
        n: usize,
        /// Input features.
        k: usize,
        /// `[n, k]`, -128 included: llm-compressor's step is the largest value over 127.5.
        codes: Vec<i8>,
        /// `[n]`.
        scales: Vec<f32>,
    },
    /// As [`Self::Int8`], but for the outlier columns (LLM.int8).
    Int8Outliers {
        /// Output features.
        n: usize,
        /// Input features.
        k: usize,
        /// `[n, k]`; 0 in the outlier columns.
        codes: Vec<i8>,
        /// `[n]`.
        scales: Vec<f32>,
        /// The outlier columns, ascending, all below `k`.
        columns: Vec<u32>,
        /// Their values `[n, columns]`.
        outliers: Vec<bf16>,
    },
    /// Group-wise codes.
    Grouped(Affine),
}

/// How far the numbers of a [`HostWeight`] are from the stored ones: the worst relative error, 0 when exact.
///
/// Our groups have FP16 scales and minima under one power of two per row. An FP16 or BF16 scale is exact unless scales of
/// a row lie more than about 2^14 apart; an FP32 scale is rounded unless its lower 13 bits are zero. A minimum `-z s` has
/// up to four significant bits more than its scale and is rounded to FP16, by at most 2^-11 of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rounding {
    /// Of scales.
    pub scales: f32,
    /// Of minima.
    pub minima: f32,
}

impl Rounding {
    /// The worse of both, part by part.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { scales: self.scales.max(other.scales), minima: self.minima.max(other.minima) }
    }
}

impl StoredWeight {
    /// Checks what lengths and types do not say of FP8 and INT8: no NaN code, and positive scales of codes that are not 0;
    /// tools write any scale for rows of zeros. Groups may have scales of both signs, as GGUF's blocks do.
    pub(super) fn check(&self) -> std::result::Result<(), String> {
        match self {
            Self::Fp8 { codes, k, scales, input_scale, .. } => {
                if let Some(at) = codes.iter().position(|code| code & 0x7f == 0x7f) {
                    return Err(format!("the FP8 code at row {}, column {} is NaN", at / k, at % k));
                }
                if let Some(scale) = input_scale.filter(|scale| *scale <= 0.0) {
                    return Err(format!("the scale of the inputs is {scale}, not positive; download the file again"));
                }
                let scale = |row, column| scales.at(row, column, *k);
                check_positive(scales.values(), *k, codes.iter().map(|code| code & 0x7f != 0), scale)
            }
            Self::Int8 { codes, k, scales, .. } => {
                check_positive(scales, *k, codes.iter().map(|code| *code != 0), |row, _| scales[row])
            }
            Self::Int8Outliers { codes, k, scales, columns, .. } => {
                let in_columns = |codes: &[i8]| columns.iter().any(|column| codes[*column as usize] != 0);
                if let Some(row) = codes.chunks_exact(*k).position(in_columns) {
                    return Err(format!(
                        "row {row} has INT8 codes in the outlier columns; quantize the original again"
                    ));
                }
                check_positive(scales, *k, codes.iter().map(|code| *code != 0), |row, _| scales[row])
            }
            Self::Grouped(_) => Ok(()),
        }
    }

    /// The same codes in our storage, with what rounding of scales that takes.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] when no kind of ours has such scales: FP8 blocks of other sizes, groups in activation
    /// order, groups that 32 does not divide.
    pub fn to_host(&self) -> Result<(HostWeight, Rounding)> {
        let exact = Rounding::default();
        match self {
            Self::Fp8 { n, k, codes, scales, input_scale } => {
                let (n, k, codes) = (*n, *k, codes.clone());
                let weight = match (scales, *input_scale) {
                    (Fp8Scales::Tensor(scale), Some(input_scale)) => {
                        HostWeight::Fp8Static { n, k, codes, scales: vec![*scale; n], input_scale }
                    }
                    (Fp8Scales::Tensor(scale), None) => HostWeight::Fp8 { n, k, codes, scales: vec![*scale; n] },
                    (Fp8Scales::Rows(scales), _) => HostWeight::Fp8 { n, k, codes, scales: scales.clone() },
                    (Fp8Scales::Blocks { size: [FP8_BLOCK, FP8_BLOCK], values }, _) if k.is_multiple_of(FP8_BLOCK) => {
                        let of_row =
                            |row: usize| values[row / FP8_BLOCK * (k / FP8_BLOCK)..].iter().take(k / FP8_BLOCK);
                        HostWeight::Fp8Block { n, k, codes, scales: (0..n).flat_map(of_row).copied().collect() }
                    }
                    (Fp8Scales::Blocks { size: [rows, cols], .. }, _) => {
                        return Err(EngineError::Unsupported(format!(
                            "FP8 scales per block of {rows} x {cols} of {k} inputs in a quantized profile; BF16 dequantizes \
                             them"
                        )));
                    }
                };
                Ok((weight, exact))
            }
            Self::Int8 { n, k, codes, scales } => {
                Ok((HostWeight::Int8 { n: *n, k: *k, codes: codes.clone(), scales: scales.clone() }, exact))
            }
            Self::Int8Outliers { n, k, codes, scales, columns, outliers } => {
                let (codes, scales) = (codes.clone(), scales.clone());
                let (columns, outliers) = (columns.clone(), outliers.clone());
                Ok((HostWeight::Int8Outliers { n: *n, k: *k, codes, scales, columns, outliers }, exact))
            }
            Self::Grouped(affine) => affine.to_host(),
        }
    }

    /// The values `[n, k]`, row-major: the definition of each layout, in FP32.
    pub fn dequantize(&self) -> Vec<f32> {
        match self {
            Self::Fp8 { n, k, codes, scales, .. } => {
                (0..n * k).map(|i| scales.at(i / k, i % k, *k) * e4m3::decode(codes[i])).collect()
            }
            Self::Int8 { k, codes, scales, .. } => {
                codes.iter().enumerate().map(|(i, code)| scales[i / k] * f32::from(*code)).collect()
            }
            Self::Int8Outliers { k, codes, scales, columns, outliers, .. } => {
                let mut values: Vec<f32> =
                    codes.iter().enumerate().map(|(i, code)| scales[i / k] * f32::from(*code)).collect();
                for (row, outliers) in values.chunks_exact_mut(*k).zip(outliers.chunks_exact(columns.len().max(1))) {
                    for (column, value) in columns.iter().zip(outliers) {
                        row[*column as usize] = value.to_f32();
                    }
                }
                values
            }
            Self::Grouped(affine) => affine.dequantize(),
        }
    }

    /// A weight of an artifact as other layouts write it.
    ///
    /// # Errors
    /// The message says why the grid cannot hold it; none of our own builds leads there.
    pub fn from_host(weight: &HostWeight, zero: ZeroPoint) -> std::result::Result<Self, String> {
        match weight {
            HostWeight::Fp8 { n, k, codes, scales } => Ok(Self::Fp8 {
                n: *n,
                k: *k,
                codes: codes.clone(),
                scales: Fp8Scales::Rows(scales.clone()),
                input_scale: None,
            }),
            HostWeight::Fp8Static { n, k, codes, scales, input_scale } => Ok(Self::Fp8 {
                n: *n,
                k: *k,
                codes: codes.clone(),
                scales: Fp8Scales::Tensor(scales.first().copied().unwrap_or(1.0)),
                input_scale: Some(*input_scale),
            }),
            HostWeight::Fp8Block { n, k, codes, scales } => {
                let bands = scales.chunks_exact((k / FP8_BLOCK).max(1)).step_by(FP8_BLOCK);
                let scales = Fp8Scales::Blocks { size: [FP8_BLOCK; 2], values: bands.flatten().copied().collect() };
                Ok(Self::Fp8 { n: *n, k: *k, codes: codes.clone(), scales, input_scale: None })
            }
            HostWeight::Int8 { n, k, codes, scales } => {
                Ok(Self::Int8 { n: *n, k: *k, codes: codes.clone(), scales: scales.clone() })
            }
            HostWeight::Int8Outliers { n, k, codes, scales, columns, outliers } => Ok(Self::Int8Outliers {
                n: *n,
                k: *k,
                codes: codes.clone(),
                scales: scales.clone(),
                columns: columns.clone(),
                outliers: outliers.clone(),
            }),
            HostWeight::Grouped { .. } => Affine::from_host(weight, zero).map(Self::Grouped),
            HostWeight::Bf16 { .. } => Err(format!("{:?} is no quantized kind", weight.spec().kind)),
        }
    }
}

/// Refuses a scale that is not positive where a code needs it: `used` says of each code, row-major, whether it is not 0.
fn check_positive(
    scales: &[f32],
    k: usize,
    used: impl Iterator<Item = bool>,
    scale: impl Fn(usize, usize) -> f32,
) -> std::result::Result<(), String> {
    if scales.iter().all(|scale| *scale > 0.0) {
        return Ok(());
    }
    let place = |at: usize| (at / k, at % k);
    let mut bad = used.enumerate().filter(|(_, used)| *used).map(|(at, _)| place(at));
    match bad.find(|(row, column)| scale(*row, *column) <= 0.0) {
        None => Ok(()),
        Some((row, column)) => Err(format!(
            "the scale at row {row}, column {column} is {}, not positive; download the file again",
            scale(row, column)
        )),
    }
}

#[cfg(test)]
#[path = "stored_tests.rs"]
mod tests;
