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

use crate::{AlignedBytes, Bytes, FP8_BLOCK, HostWeight, KernelError, PackedWeight, Result, WeightKind, WeightSpec};

mod layout;
mod read;

use layout::code_at;
pub use layout::{OutlierLayout, PANEL, PanelLayout, packed_len, panel_count};

/// Packs a weight.
///
/// # Errors
/// [`KernelError::Shape`] when the parts of the weight do not have the lengths that its shape says.
pub fn pack(weight: &HostWeight) -> Result<PackedWeight> {
    let stack = Stack::new(vec![weight])?;
    let mut bytes = AlignedBytes::zeroed(packed_len(&stack.spec));
    let (panels, tail) = bytes.split_at_mut(stack.panels() * stack.layout.bytes);
    stack.pack_panels(0, panels);
    stack.pack_tail(tail);
    Ok(PackedWeight { spec: stack.spec, bytes: Bytes::from_memory(bytes) })
}

/// Weights one below the other that are packed as one, without being joined before: panel by panel, so that panels can be
/// shared out to threads and their bytes need not be in memory all at once.
///
/// ```text
/// packed bytes = | panel 0 | panel 1 | ... | tail |
/// ```
#[derive(Debug)]
pub struct Stack<'a> {
    parts: Vec<&'a HostWeight>,
    /// The row at which each part starts.
    starts: Vec<usize>,
    spec: WeightSpec,
    layout: PanelLayout,
}

impl<'a> Stack<'a> {
    /// These weights, the first on top.
    ///
    /// # Errors
    /// [`KernelError::Shape`] when they do not join ([`HostWeight::joins`]), there is none, or the parts of one do not have the
    /// lengths that its shape says.
    pub fn new(parts: Vec<&'a HostWeight>) -> Result<Self> {
        let first = *parts.first().ok_or_else(|| KernelError::Shape("no weights to join".into()))?;
        let (mut starts, mut n) = (Vec::with_capacity(parts.len()), 0);
        for part in &parts {
            first.joins(part)?;
            part.spec().validate()?;
            check_lengths(part)?;
            starts.push(n);
            n += part.spec().n;
        }
        let spec = WeightSpec { n, ..first.spec() };
        spec.validate()?;
        Ok(Self { parts, starts, layout: PanelLayout::new(&spec), spec })
    }

    /// Kind and shape of all of them as one.
    pub fn spec(&self) -> WeightSpec {
        self.spec
    }

    /// Panels.
    pub fn panels(&self) -> usize {
        panel_count(&self.spec)
    }

    /// Bytes of one of them.
    pub fn panel_bytes(&self) -> usize {
        self.layout.bytes
    }

    /// Bytes of the tail: what is not in panels, the outlier columns.
    pub fn tail_bytes(&self) -> usize {
        OutlierLayout::new(&self.spec).map_or(0, |layout| layout.len)
    }

    /// Packs as many panels as `bytes` has room for, beginning with panel `first`. `bytes` are zeros.
    pub fn pack_panels(&self, first: usize, bytes: &mut [u8]) {
        for (index, panel) in bytes.chunks_exact_mut(self.layout.bytes).enumerate() {
            for lane in 0..PANEL {
                let row = (first + index) * PANEL + lane;
                if row < self.spec.n {
                    let part = self.starts.partition_point(|start| *start <= row) - 1;
                    pack_row(self.parts[part], &self.layout, panel, row - self.starts[part], lane);
                }
            }
        }
    }

    /// Packs the tail into `bytes`, which are zeros and as many as [`Self::tail_bytes`].
    pub fn pack_tail(&self, bytes: &mut [u8]) {
        let Some(layout) = OutlierLayout::new(&self.spec) else { return };
        let values = self.parts.iter().filter_map(|part| match part {
            HostWeight::Int8Outliers { n, columns, outliers, .. } => {
                Some(HostWeight::Bf16 { n: *n, k: columns.len(), values: outliers.clone() })
            }
            _ => None,
        });
        let values: Vec<HostWeight> = values.collect();
        let (panels, list) = bytes.split_at_mut(layout.columns - layout.panels);
        let (starts, spec) = (self.starts.clone(), layout.spec);
        Stack { parts: values.iter().collect(), starts, spec, layout: PanelLayout::new(&spec) }.pack_panels(0, panels);
        if let Some(HostWeight::Int8Outliers { columns, .. }) = self.parts.first() {
            for (at, column) in columns.iter().enumerate() {
                put(list, at * 4, &column.to_le_bytes());
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
        HostWeight::Bf16 { values, .. } => pack_words(panel, lane, bytemuck::cast_slice(&values[columns])),
        HostWeight::Fp8 { codes, scales, .. } | HostWeight::Fp8Static { codes, scales, .. } => {
            pack_fp8(kind, panel, lane, &codes[columns]);
            row_scale = scales[row];
            if let HostWeight::Fp8Static { input_scale, .. } = weight {
                put(panel, layout.sums, &input_scale.to_le_bytes());
            }
        }
        HostWeight::Fp8Block { codes, scales, .. } => {
            pack_fp8(kind, panel, lane, &codes[columns]);
            let blocks = k / FP8_BLOCK;
            for (block, scale) in scales[row * blocks..(row + 1) * blocks].iter().enumerate() {
                put(panel, layout.scales + (block * PANEL + lane) * 4, &scale.to_le_bytes());
            }
        }
        HostWeight::Int8 { codes, scales, .. } | HostWeight::Int8Outliers { codes, scales, .. } => {
            let codes = &codes[columns];
            pack_words(panel, lane, bytemuck::cast_slice(codes));
            let sum: i32 = codes.iter().map(|code| i32::from(*code)).sum();
            put(panel, layout.sums + lane * 4, &sum.to_le_bytes());
            row_scale = scales[row];
        }
        HostWeight::Grouped { codes, scales, mins, row_scales, group, bits, .. } => {
            if *bits == 4 {
                pack_nibbles(kind, panel, lane, &codes[columns]);
            } else {
                pack_words(panel, lane, &codes[columns]);
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

/// Bytes of a step of all lanes.
const STEP: usize = PANEL * 4;

// What follows writes [`code_at`]'s places a step at a time.

/// A row whose bytes go to the lane's word of each step in their order: Bf16, Int8, Int8Group.
fn pack_words(panel: &mut [u8], lane: usize, row: &[u8]) {
    let (words, rest) = row.as_chunks::<4>();
    let (steps, _) = panel.as_chunks_mut::<STEP>();
    for (step, word) in steps.iter_mut().zip(words) {
        put(step, lane * 4, word);
    }
    if !rest.is_empty() {
        put(&mut steps[words.len()], lane * 4, rest);
    }
}

fn pack_fp8(kind: WeightKind, panel: &mut [u8], lane: usize, row: &[u8]) {
    let (words, rest) = row.as_chunks::<4>();
    let (steps, _) = panel.as_chunks_mut::<STEP>();
    let (at, _) = code_at(kind, 0, lane);
    for (step, word) in steps.iter_mut().zip(words) {
        put(step, at, &word[..2]);
        put(step, at + 8, &word[2..]);
    }
    for (index, code) in rest.iter().enumerate() {
        panel[code_at(kind, words.len() * 4 + index, lane).0] = *code;
    }
}

fn pack_nibbles(kind: WeightKind, panel: &mut [u8], lane: usize, row: &[u8]) {
    let (words, rest) = row.as_chunks::<8>();
    let (steps, _) = panel.as_chunks_mut::<STEP>();
    for (step, codes) in steps.iter_mut().zip(words) {
        put(step, lane * 4, &[0, 1, 2, 3].map(|i: usize| codes[i] | codes[i + 4] << 4));
    }
    for (index, code) in rest.iter().enumerate() {
        let (byte, shift) = code_at(kind, words.len() * 8 + index, lane);
        panel[byte] |= code << shift;
    }
}

fn put(panel: &mut [u8], at: usize, bytes: &[u8]) {
    panel[at..at + bytes.len()].copy_from_slice(bytes);
}
