//! Where the parts of a packed weight are.

use crate::{FP8_BLOCK, WeightKind, WeightSpec};

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
    /// Start of the column sums, or of the scale of the inputs.
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
            WeightKind::Fp8 | WeightKind::Fp8Static | WeightKind::Int8 | WeightKind::Int8Outliers { .. } => (8, 0),
            WeightKind::Fp8Block => (8, FP8_BLOCK),
            WeightKind::Int4 { group } => (4, usize::from(group)),
            WeightKind::Int8Group { group } => (8, usize::from(group)),
        };
        let scales = k * PANEL * code_bits / 8;
        // A scale and a minimum of 16 bits, or an FP8 block's scale of 32.
        let rows = scales + if group == 0 { 0 } else { spec.k / group * PANEL * 4 };
        let sums = rows + PANEL * 4;
        let end = sums
            + match spec.kind {
                WeightKind::Int8 | WeightKind::Int8Outliers { .. } => PANEL * 4,
                WeightKind::Fp8Static => 4,
                _ => 0,
            };
        Self { k, group, scales, rows, sums, bytes: end.next_multiple_of(64) }
    }
}

/// Panels of a weight.
pub fn panel_count(spec: &WeightSpec) -> usize {
    spec.n.div_ceil(PANEL)
}

/// Bytes of a packed weight.
pub fn packed_len(spec: &WeightSpec) -> usize {
    let panels = panel_count(spec) * PanelLayout::new(spec).bytes;
    panels + OutlierLayout::new(spec).map_or(0, |outliers| outliers.len)
}

/// Where the outlier columns of [`WeightKind::Int8Outliers`] are, behind the panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierLayout {
    /// The BF16 weight of the columns, by itself.
    pub spec: WeightSpec,
    /// Where its panels start.
    pub panels: usize,
    /// Where the list of columns starts.
    pub columns: usize,
    /// Bytes of both, a multiple of 64.
    pub len: usize,
}

impl OutlierLayout {
    /// The layout of a weight; `None` when it has no such columns.
    pub fn new(spec: &WeightSpec) -> Option<Self> {
        let WeightKind::Int8Outliers { columns: count @ 1.. } = spec.kind else { return None };
        let outliers = WeightSpec { kind: WeightKind::Bf16, n: spec.n, k: usize::from(count) };
        let panels = panel_count(spec) * PanelLayout::new(spec).bytes;
        let columns = panels + packed_len(&outliers);
        let len = columns - panels + (outliers.k * 4).next_multiple_of(64);
        Some(Self { spec: outliers, panels, columns, len })
    }
}

/// Byte of input `k` of output `lane` among the codes; for 4 bits also the shift.
pub(super) fn code_at(kind: WeightKind, k: usize, lane: usize) -> (usize, u32) {
    match kind {
        WeightKind::Bf16 => ((k / 2 * PANEL + lane) * 4 + k % 2 * 2, 0),
        WeightKind::Fp8 | WeightKind::Fp8Static | WeightKind::Fp8Block => {
            // Position of the value among the 32 words of its step, as two registers of 32 words.
            let (step, word) = (k / 4, lane * 2 + k % 2);
            (step * 64 + word / 8 * 16 + k / 2 % 2 * 8 + word % 8, 0)
        }
        WeightKind::Int8 | WeightKind::Int8Outliers { .. } | WeightKind::Int8Group { .. } => {
            ((k / 4 * PANEL + lane) * 4 + k % 4, 0)
        }
        WeightKind::Int4 { .. } => ((k / 8 * PANEL + lane) * 4 + k % 4, if k % 8 < 4 { 0 } else { 4 }),
    }
}
