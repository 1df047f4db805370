//! How weights and activations are divided over devices: pure.
//!
//! ```text
//! Heads     outputs  [ Q | K | V ]        device r has the r-th part of each of the three
//! Halves    outputs  [ gate | up ]        ... of both
//! Outputs   outputs  [ vocabulary ]       ranges of whole 16 rows, as equal as these allow
//! Inputs    inputs   [ columns ]          equal ranges of whole groups and blocks
//! ```
//!
//! A product whose outputs are divided gives each device its columns, and one whose inputs are divided takes them: between the
//! two nothing is exchanged (Shoeybi et al. 2019).

use std::ops::Range;

use half::{bf16, f16};

use crate::{
    AttentionShape, FP8_BLOCK, HostWeight, KernelError, KvLayout, KvScales, Result, Split, WeightKind, WeightSpec,
};

/// Rows that a range of the vocabulary is a multiple of: what cuBLASLt takes in every format.
const VOCABULARY_UNIT: usize = 16;
/// Columns that a range of inputs is a multiple of: 16 bytes of FP32 rows.
const INPUT_UNIT: usize = 4;
/// Most devices that are named where a number of them does not work.
const MOST_DEVICES: usize = 16;

/// Which columns of a matrix, or rows of a weight, each device has: ranges of the whole, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Division {
    parts: Vec<Vec<Range<usize>>>,
}

impl Division {
    /// Sections that follow each other, each cut into as many equal ranges as there are devices.
    fn of_sections(sections: &[usize], devices: usize) -> Self {
        let part = |device: usize| {
            let mut start = 0;
            let ranges = sections.iter().map(|section| {
                let size = section / devices;
                let first = start + device * size;
                start += section;
                first..first + size
            });
            ranges.collect()
        };
        Self { parts: (0..devices).map(part).collect() }
    }

    /// Equal ranges.
    pub(super) fn even(whole: usize, devices: usize) -> Self {
        Self::of_sections(&[whole], devices)
    }

    /// Query, key and value heads.
    ///
    /// # Errors
    /// [`KernelError::Shape`] with the numbers of devices that divide the heads.
    pub(super) fn heads(heads: usize, kv_heads: usize, head_dim: usize, devices: usize) -> Result<Self> {
        check(&format!("{heads} query and {kv_heads} key/value heads"), devices, |d| {
            heads.is_multiple_of(d) && kv_heads.is_multiple_of(d)
        })?;
        let keys = kv_heads * head_dim;
        Ok(Self::of_sections(&[heads * head_dim, keys, keys], devices))
    }

    /// Gate and up, of `width` outputs together.
    ///
    /// # Errors
    /// [`KernelError::Shape`] with the numbers of devices that divide them.
    pub(super) fn halves(width: usize, devices: usize) -> Result<Self> {
        let half = width / 2;
        check(&format!("{half} gated activations"), devices, |d| half.is_multiple_of(d))?;
        Ok(Self::of_sections(&[half, half], devices))
    }

    /// A vocabulary.
    ///
    /// # Errors
    /// [`KernelError::Shape`] when there are more devices than pieces.
    pub(super) fn vocabulary(tokens: usize, devices: usize) -> Result<Self> {
        let units = tokens.div_ceil(VOCABULARY_UNIT);
        check(&format!("a vocabulary of {tokens} tokens"), devices, |d| units >= d)?;
        let bound = |device: usize| (units * device / devices * VOCABULARY_UNIT).min(tokens);
        let part = |device: usize| std::iter::once(bound(device)..bound(device + 1)).collect();
        Ok(Self { parts: (0..devices).map(part).collect() })
    }

    /// Inputs of a weight.
    ///
    /// # Errors
    /// [`KernelError::Shape`] with the numbers of devices that leave groups and blocks whole.
    pub(super) fn inputs(spec: &WeightSpec, devices: usize) -> Result<Self> {
        let unit = match spec.kind {
            WeightKind::Int4 { group } | WeightKind::Int8Group { group } => usize::from(group),
            WeightKind::Fp8Block => FP8_BLOCK,
            _ => INPUT_UNIT,
        };
        let k = spec.k;
        check(&format!("{k} inputs in pieces of {unit}"), devices, |d| k.is_multiple_of(d * unit))?;
        Ok(Self::even(k, devices))
    }

    /// The ranges of a device.
    pub(super) fn of(&self, device: usize) -> &[Range<usize>] {
        &self.parts[device]
    }

    /// Columns of a device.
    pub(super) fn width(&self, device: usize) -> usize {
        self.parts[device].iter().map(Range::len).sum()
    }

    /// A device's columns of a row.
    pub(super) fn take(&self, device: usize, row: &[f32]) -> Vec<f32> {
        self.parts[device].iter().flat_map(|range| &row[range.clone()]).copied().collect()
    }

    /// Puts a device's columns of rows into whole rows of `width` columns.
    pub(super) fn put(&self, device: usize, part: &[f32], width: usize, whole: &mut [f32]) {
        let own = self.width(device);
        if own == 0 {
            return;
        }
        for (row, mut part) in whole.chunks_exact_mut(width).zip(part.chunks_exact(own)) {
            for range in &self.parts[device] {
                let (values, rest) = part.split_at(range.len());
                row[range.clone()].copy_from_slice(values);
                part = rest;
            }
        }
    }
}

/// Refuses a number of devices that does not work, and names those that do.
fn check(what: &str, devices: usize, works: impl Fn(usize) -> bool) -> Result<()> {
    if works(devices) {
        return Ok(());
    }
    let numbers: Vec<String> = (1..=MOST_DEVICES).filter(|d| works(*d)).map(|d| d.to_string()).collect();
    Err(KernelError::Shape(format!(
        "{what} cannot be divided over {devices} GPUs; numbers of GPUs that work: {}",
        if numbers.is_empty() { "none".to_owned() } else { numbers.join(", ") }
    )))
}

/// What of a weight each device has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Share {
    /// All of it.
    Whole,
    /// Some outputs.
    Outputs(Division),
    /// Some inputs: its product is a part of the sum.
    Inputs(Division),
}

impl Share {
    /// # Errors
    /// [`KernelError::Shape`] when the weight cannot be divided over so many devices, with numbers that it can.
    pub(super) fn new(spec: &WeightSpec, split: Split, devices: usize) -> Result<Self> {
        let outputs = |division: Division, whole: usize| {
            let covered: usize = (0..devices).map(|device| division.width(device)).sum();
            if covered == whole && whole == spec.n {
                return Ok(Self::Outputs(division));
            }
            Err(KernelError::Shape(format!("{} outputs are not the {whole} of {split:?}", spec.n)))
        };
        match split {
            Split::Replicated => Ok(Self::Whole),
            Split::Heads { heads, kv_heads, head_dim } => {
                outputs(Division::heads(heads, kv_heads, head_dim, devices)?, (heads + 2 * kv_heads) * head_dim)
            }
            Split::Halves => outputs(Division::halves(spec.n, devices)?, spec.n / 2 * 2),
            Split::Outputs => outputs(Division::vocabulary(spec.n, devices)?, spec.n),
            Split::Inputs => Ok(Self::Inputs(Division::inputs(spec, devices)?)),
        }
    }

    /// Kind and shape of a device's part. Of outlier columns, which only the weight itself says, as many as there can be.
    pub(super) fn spec(&self, whole: &WeightSpec, device: usize) -> WeightSpec {
        match self {
            Self::Whole => *whole,
            Self::Outputs(division) => WeightSpec { n: division.width(device), ..*whole },
            Self::Inputs(division) => WeightSpec { k: division.width(device), ..*whole },
        }
    }

    /// A device's part of a weight.
    pub(super) fn part(&self, whole: &HostWeight, device: usize) -> HostWeight {
        match self {
            Self::Whole => whole.clone(),
            Self::Outputs(division) => rows(whole, division.of(device)),
            Self::Inputs(division) => division.of(device).first().map_or_else(|| whole.clone(), |r| columns(whole, r)),
        }
    }
}

/// Rows of a matrix of `width` columns.
fn pick<T: Copy>(values: &[T], width: usize, rows: &[Range<usize>]) -> Vec<T> {
    rows.iter().flat_map(|rows| &values[rows.start * width..rows.end * width]).copied().collect()
}

/// Columns of a matrix of `width` columns.
fn cut<T: Copy>(values: &[T], width: usize, columns: &Range<usize>) -> Vec<T> {
    if width == 0 {
        return Vec::new();
    }
    values.chunks_exact(width).flat_map(|row| &row[columns.clone()]).copied().collect()
}

/// Some outputs of a weight.
fn rows(whole: &HostWeight, ranges: &[Range<usize>]) -> HostWeight {
    let n = ranges.iter().map(Range::len).sum();
    match whole {
        HostWeight::Bf16 { k, values, .. } => HostWeight::Bf16 { n, k: *k, values: pick(values, *k, ranges) },
        HostWeight::Fp8 { k, codes, scales, .. } => {
            HostWeight::Fp8 { n, k: *k, codes: pick(codes, *k, ranges), scales: pick(scales, 1, ranges) }
        }
        HostWeight::Fp8Static { k, codes, scales, input_scale, .. } => HostWeight::Fp8Static {
            n,
            k: *k,
            codes: pick(codes, *k, ranges),
            scales: pick(scales, 1, ranges),
            input_scale: *input_scale,
        },
        HostWeight::Fp8Block { k, codes, scales, .. } => HostWeight::Fp8Block {
            n,
            k: *k,
            codes: pick(codes, *k, ranges),
            scales: pick(scales, k / FP8_BLOCK, ranges),
        },
        HostWeight::Int8 { k, codes, scales, .. } => {
            HostWeight::Int8 { n, k: *k, codes: pick(codes, *k, ranges), scales: pick(scales, 1, ranges) }
        }
        HostWeight::Int8Outliers { k, codes, scales, columns, outliers, .. } => HostWeight::Int8Outliers {
            n,
            k: *k,
            codes: pick(codes, *k, ranges),
            scales: pick(scales, 1, ranges),
            columns: columns.clone(),
            outliers: pick(outliers, columns.len(), ranges),
        },
        HostWeight::Grouped { k, bits, group, codes, scales, mins, row_scales, .. } => HostWeight::Grouped {
            n,
            k: *k,
            bits: *bits,
            group: *group,
            codes: pick(codes, *k, ranges),
            scales: pick::<f16>(scales, k / group, ranges),
            mins: pick::<f16>(mins, k / group, ranges),
            row_scales: pick(row_scales, 1, ranges),
        },
    }
}

/// Some inputs of a weight, whole groups and blocks.
fn columns(whole: &HostWeight, range: &Range<usize>) -> HostWeight {
    let own = range.len();
    let pieces = |size: usize| range.start / size..range.end / size;
    match whole {
        HostWeight::Bf16 { n, k, values } => HostWeight::Bf16 { n: *n, k: own, values: cut(values, *k, range) },
        HostWeight::Fp8 { n, k, codes, scales } => {
            HostWeight::Fp8 { n: *n, k: own, codes: cut(codes, *k, range), scales: scales.clone() }
        }
        HostWeight::Fp8Static { n, k, codes, scales, input_scale } => HostWeight::Fp8Static {
            n: *n,
            k: own,
            codes: cut(codes, *k, range),
            scales: scales.clone(),
            input_scale: *input_scale,
        },
        HostWeight::Fp8Block { n, k, codes, scales } => HostWeight::Fp8Block {
            n: *n,
            k: own,
            codes: cut(codes, *k, range),
            scales: cut(scales, k / FP8_BLOCK, &pieces(FP8_BLOCK)),
        },
        HostWeight::Int8 { n, k, codes, scales } => {
            HostWeight::Int8 { n: *n, k: own, codes: cut(codes, *k, range), scales: scales.clone() }
        }
        HostWeight::Int8Outliers { n, k, codes, scales, columns, outliers } => {
            // Ascending: those of the range follow each other.
            let first = columns.partition_point(|column| (*column as usize) < range.start);
            let end = columns.partition_point(|column| (*column as usize) < range.end);
            HostWeight::Int8Outliers {
                n: *n,
                k: own,
                codes: cut(codes, *k, range),
                scales: scales.clone(),
                columns: columns[first..end].iter().map(|column| column - range.start as u32).collect(),
                outliers: cut::<bf16>(outliers, columns.len(), &(first..end)),
            }
        }
        HostWeight::Grouped { n, k, bits, group, codes, scales, mins, row_scales } => HostWeight::Grouped {
            n: *n,
            k: own,
            bits: *bits,
            group: *group,
            codes: cut(codes, *k, range),
            scales: cut::<f16>(scales, k / group, &pieces(*group)),
            mins: cut::<f16>(mins, k / group, &pieces(*group)),
            row_scales: row_scales.clone(),
        },
    }
}

/// A device's part of attention. The heads are divided: [`Division::heads`].
pub(super) fn attention(whole: &AttentionShape, devices: usize) -> AttentionShape {
    AttentionShape { heads: whole.heads / devices, kv_heads: whole.kv_heads / devices, ..*whole }
}

/// A device's part of a cache and its scales.
pub(super) fn cache(layout: KvLayout, scales: &KvScales, device: usize, devices: usize) -> (KvLayout, KvScales) {
    let own = layout.kv_heads / devices;
    let heads = device * own..(device + 1) * own;
    let part = |all: &[f32]| cut(all, layout.kv_heads, &heads);
    (KvLayout { kv_heads: own, ..layout }, KvScales { k: part(&scales.k), v: part(&scales.v) })
}

#[cfg(test)]
mod tests;
