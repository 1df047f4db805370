//! The CPU's weight layout: panels of 16 outputs, everything that a panel needs in one piece, in the order of use.
//!
//! ```text
//! panel = | codes, K in steps | group scales (FP16) | 16 row scales (FP32) | 16 column sums (INT32, Int8 only) |
//!
//! Bf16, K by 2:       [K/2][16 outputs][2]     one register (64 bytes) per step
//! Fp8, K by 4:        two Bf16 steps as bytes; in each 16-byte lane the 8 bytes of the first step, then of the second,
//!                     so that byte unpacking of decoded halves gives the two registers in order
//! Int8(Group), K by 4: [K/4][16 outputs][4]    one register per step, for vpdpbusd
//! Int4, K by 8:       [K/8][16 outputs][4]     low nibbles: the first 4 inputs; high nibbles: the next 4
//! group scales:       [K/group][2][16]         scales, then minima, of the 16 outputs
//! ```
//!
//! N is padded to 16 and K to 8 with zeros (their row scale is zero, their activations are zero).

use half::f16;

use crate::{AlignedBytes, Bytes, HostWeight, KernelError, PackedWeight, Result, WeightKind, WeightSpec, format::e4m3};

/// Outputs of one panel.
pub const PANEL: usize = 16;

/// Where the parts of a panel are, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PanelLayout {
    /// K rounded up to 8.
    pub k: usize,
    /// Inputs per scale; 0 without groups.
    pub group: usize,
    /// Start of the group scales: bytes of codes.
    pub scales: usize,
    /// Start of the row scales.
    pub rows: usize,
    /// Start of the column sums.
    pub sums: usize,
    /// Bytes of a panel, a multiple of 64.
    pub bytes: usize,
}

impl PanelLayout {
    /// The layout of a weight.
    pub fn new(spec: &WeightSpec) -> Self {
        let k = spec.k.next_multiple_of(8);
        let (code_bits, group) = match spec.kind {
            WeightKind::Bf16 => (16, 0),
            WeightKind::Fp8 | WeightKind::Int8 => (8, 0),
            WeightKind::Int4 { group } => (4, usize::from(group)),
            WeightKind::Int8Group { group } => (8, usize::from(group)),
        };
        let scales = k * PANEL * code_bits / 8;
        let rows = scales + if group == 0 { 0 } else { spec.k / group * 2 * PANEL * 2 };
        let sums = rows + PANEL * 4;
        let end = sums + if spec.kind == WeightKind::Int8 { PANEL * 4 } else { 0 };
        Self { k, group, scales, rows, sums, bytes: end.next_multiple_of(64) }
    }
}

/// Panels of a weight.
pub fn panel_count(spec: &WeightSpec) -> usize {
    spec.n.div_ceil(PANEL)
}

/// Bytes of a packed weight.
pub fn packed_len(spec: &WeightSpec) -> usize {
    panel_count(spec) * PanelLayout::new(spec).bytes
}

/// Packs a weight.
///
/// # Errors
/// [`KernelError::Shape`] when the parts of the weight do not have the lengths that its shape says.
pub fn pack(weight: &HostWeight) -> Result<PackedWeight> {
    let spec = weight.spec();
    spec.validate()?;
    check_lengths(weight)?;
    let layout = PanelLayout::new(&spec);
    let mut bytes = AlignedBytes::zeroed(packed_len(&spec));
    for (index, panel) in bytes.chunks_exact_mut(layout.bytes).enumerate() {
        for lane in 0..PANEL {
            let row = index * PANEL + lane;
            if row < spec.n {
                pack_row(weight, &layout, panel, row, lane);
            }
        }
    }
    Ok(PackedWeight { spec, bytes: Bytes::from_memory(bytes) })
}

fn check_lengths(weight: &HostWeight) -> Result<()> {
    let WeightSpec { n, k, .. } = weight.spec();
    let sound = match weight {
        HostWeight::Bf16 { values, .. } => values.len() == n * k,
        HostWeight::Fp8 { codes, scales, .. } => codes.len() == n * k && scales.len() == n,
        HostWeight::Int8 { codes, scales, .. } => codes.len() == n * k && scales.len() == n,
        HostWeight::Grouped { group, codes, scales, mins, row_scales, .. } => {
            let groups = n * (k / group);
            codes.len() == n * k && scales.len() == groups && mins.len() == groups && row_scales.len() == n
        }
    };
    if sound { Ok(()) } else { Err(KernelError::Shape(format!("a weight of {n} x {k} has parts of other lengths"))) }
}

/// Byte of input `k` of output `lane` among the codes; for 4 bits also the shift.
fn code_at(kind: WeightKind, k: usize, lane: usize) -> (usize, u32) {
    match kind {
        WeightKind::Bf16 => ((k / 2 * PANEL + lane) * 4 + k % 2 * 2, 0),
        WeightKind::Fp8 => {
            // Position of the value among the 32 words of its step, as two registers of 32 words.
            let (step, word) = (k / 4, lane * 2 + k % 2);
            (step * 64 + word / 8 * 16 + k / 2 % 2 * 8 + word % 8, 0)
        }
        WeightKind::Int8 | WeightKind::Int8Group { .. } => ((k / 4 * PANEL + lane) * 4 + k % 4, 0),
        WeightKind::Int4 { .. } => ((k / 8 * PANEL + lane) * 4 + k % 4, if k % 8 < 4 { 0 } else { 4 }),
    }
}

fn pack_row(weight: &HostWeight, layout: &PanelLayout, panel: &mut [u8], row: usize, lane: usize) {
    let spec = weight.spec();
    let (kind, k) = (spec.kind, spec.k);
    let columns = row * k..(row + 1) * k;
    let mut row_scale = 1.0f32;
    match weight {
        HostWeight::Bf16 { values, .. } => {
            for (at, value) in values[columns].iter().enumerate() {
                let (byte, _) = code_at(kind, at, lane);
                panel[byte..byte + 2].copy_from_slice(&value.to_le_bytes());
            }
        }
        HostWeight::Fp8 { codes, scales, .. } => {
            for (at, code) in codes[columns].iter().enumerate() {
                panel[code_at(kind, at, lane).0] = *code;
            }
            row_scale = scales[row];
        }
        HostWeight::Int8 { codes, scales, .. } => {
            let mut sum = 0i32;
            for (at, code) in codes[columns].iter().enumerate() {
                panel[code_at(kind, at, lane).0] = *code as u8;
                sum += i32::from(*code);
            }
            put(panel, layout.sums + lane * 4, &sum.to_le_bytes());
            row_scale = scales[row];
        }
        HostWeight::Grouped { codes, scales, mins, row_scales, group, .. } => {
            for (at, code) in codes[columns].iter().enumerate() {
                let (byte, shift) = code_at(kind, at, lane);
                panel[byte] |= code << shift;
            }
            let groups = k / group;
            for g in 0..groups {
                let at = layout.scales + (g * 2 * PANEL + lane) * 2;
                put(panel, at, &scales[row * groups + g].to_le_bytes());
                put(panel, at + PANEL * 2, &mins[row * groups + g].to_le_bytes());
            }
            row_scale = row_scales[row];
        }
    }
    put(panel, layout.rows + lane * 4, &row_scale.to_le_bytes());
}

fn put(panel: &mut [u8], at: usize, bytes: &[u8]) {
    panel[at..at + bytes.len()].copy_from_slice(bytes);
}

impl PackedWeight {
    /// The values of one row, as [`HostWeight::dequantize_row`] gives them: an embedding's look-up.
    ///
    /// # Errors
    /// [`KernelError::Shape`] when the row or the length of `out` leaves the weight.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) -> Result<()> {
        let WeightSpec { kind, n, k } = self.spec;
        if row >= n || out.len() != k {
            return Err(KernelError::Shape(format!("row {row} of {} values is not in {n} x {k}", out.len())));
        }
        let layout = PanelLayout::new(&self.spec);
        let (index, lane) = (row / PANEL, row % PANEL);
        let panel = &self.bytes[index * layout.bytes..(index + 1) * layout.bytes];
        let half_at = |at: usize| u16::from_le_bytes([panel[at], panel[at + 1]]);
        let at = layout.rows + lane * 4;
        let row_scale = f32::from_le_bytes([panel[at], panel[at + 1], panel[at + 2], panel[at + 3]]);
        for (column, value) in out.iter_mut().enumerate() {
            let (byte, shift) = code_at(kind, column, lane);
            *value = match kind {
                WeightKind::Bf16 => half::bf16::from_bits(half_at(byte)).to_f32(),
                WeightKind::Fp8 => row_scale * e4m3::decode(panel[byte]),
                WeightKind::Int8 => row_scale * f32::from(panel[byte] as i8),
                WeightKind::Int4 { group } | WeightKind::Int8Group { group } => {
                    let at = layout.scales + (column / usize::from(group) * 2 * PANEL + lane) * 2;
                    let mask = if matches!(kind, WeightKind::Int4 { .. }) { 15 } else { 255 };
                    let code = f32::from((panel[byte] >> shift) & mask);
                    let (scale, min) = (f16::from_bits(half_at(at)), f16::from_bits(half_at(at + PANEL * 2)));
                    row_scale * (scale.to_f32() * code + min.to_f32())
                }
            };
        }
        Ok(())
    }
}
