//! Activations in the form that a weight kind multiplies with.

use half::bf16;

use crate::{GroupedActivations, WeightKind, format::e4m3, pack::PanelLayout};

/// Quantized rows; buffers are reused from call to call.
#[derive(Debug, Default)]
pub struct Activations {
    /// Values per row: K padded to 8.
    pub(crate) k: usize,
    /// BF16 bits `[rows, k]` (Bf16, Fp8, groups with BF16 activations).
    pub(crate) halves: Vec<u16>,
    /// Bytes `[rows, k]`: INT8 with 128 added (Int8), or plain INT8 (groups).
    pub(crate) bytes: Vec<u8>,
    /// One scale per row (Fp8, Int8).
    pub(crate) scales: Vec<f32>,
    /// Per row and group: the scale, and the sum of the group's dequantized activations.
    pub(crate) groups: Vec<[f32; 2]>,
    /// Groups per row.
    pub(crate) group_count: usize,
}

/// Smallest scale: keeps a row of zeros from dividing by zero.
const SMALLEST_SCALE: f32 = 1e-12;

impl Activations {
    /// Quantizes `rows` rows of `k` values as `kind` wants them.
    pub fn quantize(
        &mut self,
        x: &[f32],
        rows: usize,
        k: usize,
        layout: &PanelLayout,
        kind: WeightKind,
        grouped: GroupedActivations,
    ) {
        self.k = layout.k;
        self.group_count = if layout.group == 0 { 0 } else { k / layout.group };
        let size = rows * layout.k;
        match kind {
            WeightKind::Bf16 | WeightKind::Fp8 => {
                self.halves.resize(size, 0);
                self.scales.resize(rows, 1.0);
                for row in 0..rows {
                    let values = &x[row * k..(row + 1) * k];
                    let out = &mut self.halves[row * layout.k..(row + 1) * layout.k];
                    out[k..].fill(0);
                    if kind == WeightKind::Bf16 {
                        self.scales[row] = 1.0;
                        to_bf16(values, out);
                    } else {
                        let scale = (absmax(values) / e4m3::MAX).max(SMALLEST_SCALE);
                        self.scales[row] = scale;
                        let inverse = 1.0 / scale;
                        for (o, v) in out.iter_mut().zip(values) {
                            // E4M3 has fewer bits than BF16: the decoded value is exact.
                            *o = (e4m3_round(v * inverse).to_bits() >> 16) as u16;
                        }
                    }
                }
            }
            WeightKind::Int8 => {
                self.bytes.resize(size, 0);
                self.scales.resize(rows, 1.0);
                for row in 0..rows {
                    let values = &x[row * k..(row + 1) * k];
                    let out = &mut self.bytes[row * layout.k..(row + 1) * layout.k];
                    out[k..].fill(128);
                    let scale = (absmax(values) / 127.0).max(SMALLEST_SCALE);
                    self.scales[row] = scale;
                    let inverse = 1.0 / scale;
                    for (o, v) in out.iter_mut().zip(values) {
                        *o = ((v * inverse).round_ties_even() as i32 + 128) as u8;
                    }
                }
            }
            WeightKind::Int4 { .. } | WeightKind::Int8Group { .. } => {
                self.groups.resize(rows * self.group_count, [0.0; 2]);
                match grouped {
                    GroupedActivations::Int8 => self.group_bytes(x, rows, k, layout),
                    GroupedActivations::Bf16 => self.group_halves(x, rows, k, layout),
                }
            }
        }
    }

    fn group_bytes(&mut self, x: &[f32], rows: usize, k: usize, layout: &PanelLayout) {
        self.bytes.resize(rows * layout.k, 0);
        for row in 0..rows {
            let values = x[row * k..(row + 1) * k].chunks_exact(layout.group);
            let out = self.bytes[row * layout.k..(row + 1) * layout.k].chunks_exact_mut(layout.group);
            let groups = self.groups[row * self.group_count..].iter_mut();
            for ((values, out), group) in values.zip(out).zip(groups) {
                let scale = (absmax(values) / 127.0).max(SMALLEST_SCALE);
                let inverse = 1.0 / scale;
                let mut sum = 0i32;
                for (o, v) in out.iter_mut().zip(values) {
                    let code = (v * inverse).round_ties_even() as i32;
                    sum += code;
                    *o = code as u8;
                }
                *group = [scale, scale * sum as f32];
            }
        }
    }

    fn group_halves(&mut self, x: &[f32], rows: usize, k: usize, layout: &PanelLayout) {
        self.halves.resize(rows * layout.k, 0);
        for row in 0..rows {
            let values = x[row * k..(row + 1) * k].chunks_exact(layout.group);
            let out = self.halves[row * layout.k..(row + 1) * layout.k].chunks_exact_mut(layout.group);
            let groups = self.groups[row * self.group_count..].iter_mut();
            for ((values, out), group) in values.zip(out).zip(groups) {
                to_bf16(values, out);
                *group = [1.0, out.iter().map(|h| bf16::from_bits(*h).to_f32()).sum()];
            }
        }
    }
}

fn absmax(values: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let chunks = values.chunks_exact(16);
    let rest = chunks.remainder().iter().fold(0.0f32, |m, v| m.max(v.abs()));
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane = lane.max(v.abs());
        }
    }
    lanes.iter().fold(rest, |m, v| m.max(*v))
}

/// Round to nearest even; NaN is not expected here and stays some NaN or infinity.
fn to_bf16(values: &[f32], out: &mut [u16]) {
    for (o, v) in out.iter_mut().zip(values) {
        let bits = v.to_bits();
        *o = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
    }
}

/// The E4M3 value nearest to `v`, for `|v| <= 448` up to rounding, without branches.
fn e4m3_round(v: f32) -> f32 {
    let magnitude = v.abs().min(e4m3::MAX);
    // Adding and subtracting 2^20 x the value's power of two (at least 2^-6) keeps three bits of mantissa, rounded to even.
    let power = f32::from_bits((magnitude.to_bits() & 0x7f80_0000).max((127 - 6) << 23));
    let big = power * 1_048_576.0;
    ((magnitude + big) - big).copysign(v)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branchless_rounding_is_encode_then_decode() {
        for bits in (0..0x43e8_0000u32).step_by(997) {
            let v = f32::from_bits(bits);
            for v in [v, -v] {
                let expected = e4m3::decode(e4m3::encode(v));
                assert_eq!(e4m3_round(v).to_bits(), expected.to_bits(), "{v}");
            }
        }
    }
}
