//! Group-wise codes with the scales of their file, and how our groups hold them.

use half::f16;
use modelprofile_kernels::HostWeight;

use super::Rounding;
use crate::{EngineError, Result, ZeroPoint};

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

    pub(super) fn dequantize(&self) -> Vec<f32> {
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

    pub(super) fn to_host(&self) -> Result<(HostWeight, Rounding)> {
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

    pub(super) fn from_host(weight: &HostWeight, zero: ZeroPoint) -> std::result::Result<Self, String> {
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
