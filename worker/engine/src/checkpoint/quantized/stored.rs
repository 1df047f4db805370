//! A quantized weight as its file has it, and as our formats hold it.

use half::f16;
use modelprofile_kernels::{FP8_BLOCK, HostWeight, format::e4m3};

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

/// Zero points of group-wise codes.
#[derive(Clone, Debug, PartialEq)]
pub enum Zeros {
    /// The middle code, `2^(bits-1)`, everywhere.
    Middle,
    /// One per group, `[n, groups]`: `w = s (q - z)`.
    Integer(Vec<u8>),
    /// A free minimum per group, `[n, groups]`: `w = s q + m`.
    Minimum(Vec<f32>),
}

/// Group-wise codes with the scales of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Affine {
    /// Output features.
    pub n: usize,
    /// Input features.
    pub k: usize,
    /// 4 or 8.
    pub bits: u8,
    /// Inputs per scale; divides `k`.
    pub group: usize,
    /// Unsigned codes `[n, k]`, one per byte.
    pub codes: Vec<u8>,
    /// `[n, k / group]`, exactly as stored.
    pub scales: Vec<f32>,
    /// Zero points.
    pub zeros: Zeros,
    /// Group of each input, where that is not `i / group` (GPTQ with activation order and no static groups).
    pub groups_of: Option<Vec<u32>>,
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
    /// Checks what lengths and types do not say: no NaN code, positive row scales where a zero or negative one has no use.
    pub(super) fn check(&self) -> std::result::Result<(), String> {
        if let Self::Fp8 { codes, k, .. } = self
            && let Some(at) = codes.iter().position(|code| code & 0x7f == 0x7f)
        {
            return Err(format!("the FP8 code at row {}, column {} is NaN", at / k, at % k));
        }
        Ok(())
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
            Self::Grouped(affine) => affine.to_host(),
        }
    }

    /// The values `[n, k]`, row-major: the definition of each layout, in FP32.
    pub fn dequantize(&self) -> Vec<f32> {
        match self {
            Self::Fp8 { n, k, codes, scales, .. } => {
                let scale = |row: usize, col: usize| match scales {
                    Fp8Scales::Tensor(scale) => *scale,
                    Fp8Scales::Rows(scales) => scales[row],
                    Fp8Scales::Blocks { size: [rows, cols], values } => {
                        values[row / rows * k.div_ceil(*cols) + col / cols]
                    }
                };
                let values = (0..n * k).map(|i| scale(i / k, i % k) * e4m3::decode(codes[i]));
                values.collect()
            }
            Self::Int8 { k, codes, scales, .. } => {
                codes.iter().enumerate().map(|(i, code)| scales[i / k] * f32::from(*code)).collect()
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
            HostWeight::Grouped { .. } => Affine::from_host(weight, zero).map(Self::Grouped),
            _ => Err(format!("{:?} is no quantized kind", weight.spec().kind)),
        }
    }
}

impl Affine {
    /// Groups of a row.
    pub fn groups(&self) -> usize {
        self.k / self.group.max(1)
    }

    /// The zero point of a symmetric grid.
    pub fn middle(&self) -> u8 {
        1 << (self.bits - 1)
    }

    /// Zero points `[n, groups]`; `None` for free minima.
    pub fn integer_zeros(&self) -> Option<Vec<u8>> {
        match &self.zeros {
            Zeros::Middle => Some(vec![self.middle(); self.scales.len()]),
            Zeros::Integer(zeros) => Some(zeros.clone()),
            Zeros::Minimum(_) => None,
        }
    }

    /// `-z s` or the free minimum of a group. Exact: the product of at most 24 + 8 bits is rounded once.
    fn minimum(&self, at: usize) -> f32 {
        match &self.zeros {
            Zeros::Middle => -f32::from(self.middle()) * self.scales[at],
            Zeros::Integer(zeros) => -f32::from(zeros[at]) * self.scales[at],
            Zeros::Minimum(minima) => minima[at],
        }
    }

    fn dequantize(&self) -> Vec<f32> {
        let groups = self.groups();
        let value = |i: usize| {
            let (row, col) = (i / self.k, i % self.k);
            let group = self.groups_of.as_ref().map_or(col / self.group, |of| of[col] as usize);
            let at = row * groups + group;
            let code = f32::from(self.codes[i]);
            match &self.zeros {
                Zeros::Middle => self.scales[at] * (code - f32::from(self.middle())),
                Zeros::Integer(zeros) => self.scales[at] * (code - f32::from(zeros[at])),
                Zeros::Minimum(minima) => self.scales[at] * code + minima[at],
            }
        };
        (0..self.codes.len()).map(value).collect()
    }

    fn to_host(&self) -> Result<(HostWeight, Rounding)> {
        if self.groups_of.is_some() {
            return Err(EngineError::Unsupported(
                "GPTQ groups in activation order (g_idx is not i / group) in a quantized profile: quantize with \
                 static_groups, or serve it in BF16, which dequantizes it"
                    .to_owned(),
            ));
        }
        let held = [128, 64, 32]
            .into_iter()
            .find(|held| self.group.is_multiple_of(*held))
            .ok_or_else(|| EngineError::Unsupported(format!("groups of {}; multiples of 32 are held", self.group)))?;
        // A wider group is several of ours with the same scale.
        let copies = self.group / held;
        let groups = self.groups();
        let capacity = self.scales.len() * copies;
        let (mut scales, mut mins) = (Vec::with_capacity(capacity), Vec::with_capacity(capacity));
        let mut row_scales = Vec::with_capacity(self.n);
        let mut rounding = Rounding::default();
        for (row, stored) in self.scales.chunks_exact(groups.max(1)).enumerate() {
            let first = row * groups;
            let row_scale = row_scale(stored, (first..first + groups).map(|at| self.minimum(at)));
            row_scales.push(row_scale);
            for (at, scale) in (first..).zip(stored) {
                let minimum = self.minimum(at);
                let (s, m) = (f16::from_f32(scale / row_scale), f16::from_f32(minimum / row_scale));
                rounding.scales = rounding.scales.max(relative(s.to_f32() * row_scale, *scale));
                rounding.minima = rounding.minima.max(relative(m.to_f32() * row_scale, minimum));
                scales.extend(std::iter::repeat_n(s, copies));
                mins.extend(std::iter::repeat_n(m, copies));
            }
        }
        let (n, k, bits, codes) = (self.n, self.k, self.bits, self.codes.clone());
        Ok((HostWeight::Grouped { n, k, bits, group: held, codes, scales, mins, row_scales }, rounding))
    }

    fn from_host(weight: &HostWeight, zero: ZeroPoint) -> std::result::Result<Self, String> {
        let HostWeight::Grouped { n, k, bits, group, codes, scales, mins, row_scales } = weight else {
            return Err("the weight has no groups".to_owned());
        };
        let groups = k / group;
        let row_scale = |at: usize| row_scales[at / groups.max(1)];
        let middle = 1u8 << (bits - 1);
        let top = f32::from(u8::MAX >> (8 - bits));
        let on_grid = |z: f32, at: usize| f16::from_f32(-z * scales[at].to_f32()) == mins[at];
        let off =
            |at: usize| format!("row {}, group {} is not on the {zero:?} grid", at / groups.max(1), at % groups.max(1));
        let zeros = match zero {
            ZeroPoint::Symmetric => match (0..scales.len()).find(|at| !on_grid(f32::from(middle), *at)) {
                None => Zeros::Middle,
                Some(at) => return Err(off(at)),
            },
            ZeroPoint::Integer => {
                let zero = |at: usize| {
                    let scale = scales[at].to_f32();
                    let z = if scale == 0.0 { 0.0 } else { (-mins[at].to_f32() / scale).round().clamp(0.0, top) };
                    if on_grid(z, at) { Ok(z as u8) } else { Err(off(at)) }
                };
                Zeros::Integer((0..scales.len()).map(zero).collect::<std::result::Result<_, _>>()?)
            }
            ZeroPoint::Minimum => {
                Zeros::Minimum(mins.iter().enumerate().map(|(at, m)| m.to_f32() * row_scale(at)).collect())
            }
        };
        let scales = scales.iter().enumerate().map(|(at, s)| s.to_f32() * row_scale(at)).collect();
        Ok(Self { n: *n, k: *k, bits: *bits, group: *group, codes: codes.clone(), scales, zeros, groups_of: None })
    }
}

/// 1 where every scale and minimum of the row lies in FP16's normal range, else the power of two that centres the
/// largest.
fn row_scale(scales: &[f32], minima: impl Iterator<Item = f32>) -> f32 {
    // Between 2^-14 and half of FP16's largest number.
    let normal = |v: f32| v == 0.0 || (f32::from_bits(0x3880_0000)..=32_752.0).contains(&v.abs());
    let mut largest = 0.0f32;
    let mut fits = true;
    for value in scales.iter().copied().chain(minima) {
        fits &= normal(value);
        largest = largest.max(value.abs());
    }
    let exponent = largest.to_bits() & 0x7f80_0000;
    if fits || exponent == 0 { 1.0 } else { f32::from_bits(exponent) }
}

fn relative(found: f32, expected: f32) -> f32 {
    let off = found - expected;
    // Both may be zero.
    if off.abs() > 0.0 { (off / expected).abs() } else { 0.0 }
}

#[cfg(test)]
#[path = "stored_tests.rs"]
mod tests;
