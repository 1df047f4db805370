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
//!                     [K/128][16]              FP32 scales (Fp8Block)
//! Fp8Static:          the scale of the inputs (FP32) where Int8 has its column sums, in every panel
//! Int8Outliers:       | Int8 panels | Bf16 panels of the outlier columns | the columns (INT32), ascending |
//! ```
//!
//! N is padded to 16 and K to 8 with zeros (their row scale is zero, their activations are zero).

use crate::{AlignedBytes, Bytes, FP8_BLOCK, HostWeight, KernelError, PackedWeight, Result, WeightSpec};

mod layout;
mod read;

use layout::code_at;
pub use layout::{OutlierLayout, PANEL, PanelLayout, packed_len, panel_count};

/// Packs a weight.
///
/// # Errors
/// [`KernelError::Shape`] when the parts of the weight do not have the lengths that its shape says.
pub fn pack(weight: &HostWeight) -> Result<PackedWeight> {
    let spec = weight.spec();
    spec.validate()?;
    check_lengths(weight)?;
    let mut bytes = AlignedBytes::zeroed(packed_len(&spec));
    pack_panels(weight, &spec, &mut bytes);
    if let (HostWeight::Int8Outliers { n, columns, outliers, .. }, Some(layout)) = (weight, OutlierLayout::new(&spec)) {
        let values = HostWeight::Bf16 { n: *n, k: columns.len(), values: outliers.clone() };
        pack_panels(&values, &layout.spec, &mut bytes[layout.panels..layout.columns]);
        for (at, column) in columns.iter().enumerate() {
            put(&mut bytes, layout.columns + at * 4, &column.to_le_bytes());
        }
    }
    Ok(PackedWeight { spec, bytes: Bytes::from_memory(bytes) })
}

fn pack_panels(weight: &HostWeight, spec: &WeightSpec, bytes: &mut [u8]) {
    let layout = PanelLayout::new(spec);
    for (index, panel) in bytes.chunks_exact_mut(layout.bytes).enumerate().take(panel_count(spec)) {
        for lane in 0..PANEL {
            let row = index * PANEL + lane;
            if row < spec.n {
                pack_row(weight, &layout, panel, row, lane);
            }
        }
    }
}

/// That the parts of a weight have the lengths which its shape says.
pub(crate) fn check_lengths(weight: &HostWeight) -> Result<()> {
    let WeightSpec { n, k, .. } = weight.spec();
    let sound = match weight {
        HostWeight::Bf16 { values, .. } => values.len() == n * k,
        HostWeight::Fp8 { codes, scales, .. } => codes.len() == n * k && scales.len() == n,
        HostWeight::Int8 { codes, scales, .. } => codes.len() == n * k && scales.len() == n,
        HostWeight::Fp8Static { codes, scales, input_scale, .. } => {
            codes.len() == n * k && scales.len() == n && input_scale.is_finite() && *input_scale > 0.0
        }
        HostWeight::Fp8Block { codes, scales, .. } => codes.len() == n * k && scales.len() == n * (k / FP8_BLOCK),
        HostWeight::Int8Outliers { codes, scales, columns, outliers, .. } => {
            codes.len() == n * k
                && scales.len() == n
                && are_columns(columns, k)
                && outliers.len() == n * columns.len()
                && codes.chunks_exact(k).all(|row| columns.iter().all(|column| row[*column as usize] == 0))
        }
        HostWeight::Grouped { group, codes, scales, mins, row_scales, .. } => {
            let groups = n * (k / group);
            codes.len() == n * k && scales.len() == groups && mins.len() == groups && row_scales.len() == n
        }
    };
    if sound { Ok(()) } else { Err(KernelError::Shape(format!("a weight of {n} x {k} has parts that do not make it"))) }
}

/// Ascending, each once, inside K.
pub(crate) fn are_columns(columns: &[u32], k: usize) -> bool {
    columns.is_sorted_by(|a, b| a < b) && columns.last().is_none_or(|last| (*last as usize) < k)
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
        HostWeight::Fp8 { codes, scales, .. } | HostWeight::Fp8Static { codes, scales, .. } => {
            for (at, code) in codes[columns].iter().enumerate() {
                panel[code_at(kind, at, lane).0] = *code;
            }
            row_scale = scales[row];
            if let HostWeight::Fp8Static { input_scale, .. } = weight {
                put(panel, layout.sums, &input_scale.to_le_bytes());
            }
        }
        HostWeight::Fp8Block { codes, scales, .. } => {
            for (at, code) in codes[columns].iter().enumerate() {
                panel[code_at(kind, at, lane).0] = *code;
            }
            let blocks = k / FP8_BLOCK;
            for (block, scale) in scales[row * blocks..(row + 1) * blocks].iter().enumerate() {
                put(panel, layout.scales + (block * PANEL + lane) * 4, &scale.to_le_bytes());
            }
        }
        HostWeight::Int8 { codes, scales, .. } | HostWeight::Int8Outliers { codes, scales, .. } => {
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
