//! Quantized rows on the host, before they are packed for a device: what an artifact stores, and what each format means.

use half::{bf16, f16};

use crate::{KernelError, Result, WeightKind, WeightSpec, format::e4m3, weight::FP8_BLOCK};

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
    /// As [`Self::Fp8`], with the scale of its inputs: `x ~ input_scale * e4m3(x / input_scale)`.
    Fp8Static {
        /// Output features.
        n: usize,
        /// Input features.
        k: usize,
        /// E4M3 bytes, row-major; never the NaN codes.
        codes: Vec<u8>,
        /// One scale per row; the same for all rows of a tensor.
        scales: Vec<f32>,
        /// Scale of all inputs; positive.
        input_scale: f32,
    },
    /// E4M3 codes `[n, k]`, `w = scale[n, k / 128] * e4m3(code)`.
    Fp8Block {
        /// Output features.
        n: usize,
        /// Input features, a multiple of 128.
        k: usize,
        /// E4M3 bytes, row-major; never the NaN codes.
        codes: Vec<u8>,
        /// Scales `[n, k / 128]`: the same for 128 rows of a tensor. A scale per row keeps joined tensors exact whose rows
        /// are no multiple of 128.
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
    /// As [`Self::Int8`] but for the outlier columns, whose codes are zero and whose values are BF16.
    Int8Outliers {
        /// Output features.
        n: usize,
        /// Input features.
        k: usize,
        /// Codes in -127..=127, row-major; 0 in the outlier columns.
        codes: Vec<i8>,
        /// One scale per row, of the other columns.
        scales: Vec<f32>,
        /// The outlier columns, ascending.
        columns: Vec<u32>,
        /// Their values `[n, columns]`.
        outliers: Vec<bf16>,
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
            Self::Fp8Static { n, k, .. } => WeightSpec { kind: WeightKind::Fp8Static, n, k },
            Self::Fp8Block { n, k, .. } => WeightSpec { kind: WeightKind::Fp8Block, n, k },
            Self::Int8 { n, k, .. } => WeightSpec { kind: WeightKind::Int8, n, k },
            Self::Int8Outliers { n, k, ref columns, .. } => {
                // More columns than a u16 tells are refused by every check of the kind.
                let columns = u16::try_from(columns.len()).unwrap_or(u16::MAX);
                WeightSpec { kind: WeightKind::Int8Outliers { columns }, n, k }
            }
            Self::Grouped { n, k, bits: 4, group, .. } => {
                WeightSpec { kind: WeightKind::Int4 { group: group as u16 }, n, k }
            }
            Self::Grouped { n, k, group, .. } => {
                WeightSpec { kind: WeightKind::Int8Group { group: group as u16 }, n, k }
            }
        }
    }
}

impl HostWeight {
    /// That another weight can stand below this one: the same kind and K, and the same of what belongs to the common input (its
    /// scale, its outlier columns).
    ///
    /// # Errors
    /// [`KernelError::Shape`] with what differs.
    pub fn joins(&self, below: &Self) -> Result<()> {
        let (a, b) = (self.spec(), below.spec());
        if a.kind != b.kind || a.k != b.k {
            return Err(KernelError::Shape(format!("{a:?} and {b:?} cannot be joined")));
        }
        match (self, below) {
            (Self::Fp8Static { input_scale, .. }, Self::Fp8Static { input_scale: other, .. })
                if input_scale.to_bits() != other.to_bits() =>
            {
                Err(KernelError::Shape(format!(
                    "weights of one input with input scales {input_scale} and {other} cannot be joined"
                )))
            }
            (Self::Int8Outliers { columns, .. }, Self::Int8Outliers { columns: other, .. }) if columns != other => {
                Err(KernelError::Shape(format!(
                    "weights of one input with outlier columns {columns:?} and {other:?} cannot be joined"
                )))
            }
            _ => Ok(()),
        }
    }

    /// Joins weights of the same kind and K, one below the other (Q, K and V become one product).
    ///
    /// # Errors
    /// As [`Self::joins`]; or when there is none.
    pub fn concat_rows(weights: Vec<Self>) -> Result<Self> {
        let mut weights = weights.into_iter();
        let mut first = weights.next().ok_or_else(|| KernelError::Shape("no weights to join".into()))?;
        for next in weights {
            first.joins(&next)?;
            match (&mut first, next) {
                (Self::Bf16 { n, values, .. }, Self::Bf16 { n: m, values: v, .. }) => {
                    *n += m;
                    values.extend(v);
                }
                (Self::Fp8 { n, codes, scales, .. }, Self::Fp8 { n: m, codes: c, scales: s, .. })
                | (Self::Fp8Block { n, codes, scales, .. }, Self::Fp8Block { n: m, codes: c, scales: s, .. })
                | (Self::Fp8Static { n, codes, scales, .. }, Self::Fp8Static { n: m, codes: c, scales: s, .. }) => {
                    *n += m;
                    codes.extend(c);
                    scales.extend(s);
                }
                (
                    Self::Int8Outliers { n, codes, scales, outliers, .. },
                    Self::Int8Outliers { n: m, codes: c, scales: s, outliers: o, .. },
                ) => {
                    *n += m;
                    codes.extend(c);
                    scales.extend(s);
                    outliers.extend(o);
                }
                (Self::Int8 { n, codes, scales, .. }, Self::Int8 { n: m, codes: c, scales: s, .. }) => {
                    *n += m;
                    codes.extend(c);
                    scales.extend(s);
                }
                (
                    Self::Grouped { n, codes, scales, mins, row_scales, .. },
                    Self::Grouped { n: m, codes: c, scales: s, mins: mm, row_scales: r, .. },
                ) => {
                    *n += m;
                    codes.extend(c);
                    scales.extend(s);
                    mins.extend(mm);
                    row_scales.extend(r);
                }
                _ => return Err(KernelError::Shape("weights of different kinds cannot be joined".into())),
            }
        }
        Ok(first)
    }

    /// The values of one row: the definition of each format.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        match self {
            Self::Bf16 { k, values, .. } => {
                for (o, v) in out.iter_mut().zip(&values[row * k..]) {
                    *o = v.to_f32();
                }
            }
            Self::Fp8 { k, codes, scales, .. } | Self::Fp8Static { k, codes, scales, .. } => {
                for (o, c) in out.iter_mut().zip(&codes[row * k..]) {
                    *o = scales[row] * e4m3::decode(*c);
                }
            }
            Self::Fp8Block { k, codes, scales, .. } => {
                let blocks = k / FP8_BLOCK;
                for (i, (o, c)) in out.iter_mut().zip(&codes[row * k..(row + 1) * k]).enumerate() {
                    *o = scales[row * blocks + i / FP8_BLOCK] * e4m3::decode(*c);
                }
            }
            Self::Int8Outliers { k, codes, scales, columns, outliers, .. } => {
                for (o, c) in out.iter_mut().zip(&codes[row * k..]) {
                    *o = scales[row] * f32::from(*c);
                }
                for (column, value) in columns.iter().zip(&outliers[row * columns.len()..]) {
                    out[*column as usize] = value.to_f32();
                }
            }
            Self::Int8 { k, codes, scales, .. } => {
                for (o, c) in out.iter_mut().zip(&codes[row * k..]) {
                    *o = scales[row] * f32::from(*c);
                }
            }
            Self::Grouped { k, group, codes, scales, mins, row_scales, .. } => {
                for (i, (o, c)) in out.iter_mut().zip(&codes[row * k..(row + 1) * k]).enumerate() {
                    let g = row * (k / group) + i / group;
                    *o = row_scales[row] * (scales[g].to_f32() * f32::from(*c) + mins[g].to_f32());
                }
            }
        }
    }
}
