//! What a packed weight says, read back.

use half::{bf16, f16};

use super::{
    are_columns,
    layout::{OutlierLayout, PANEL, PanelLayout, code_at, packed_len},
};
use crate::{
    FP8_BLOCK, HostWeight, KernelError, MAX_OUTLIERS, PackedWeight, Result, WeightKind, WeightSpec, format::e4m3,
};

impl PackedWeight {
    /// The BF16 weight `[n, columns]` of the outlier columns, and the columns; `None` without any.
    ///
    /// # Errors
    /// [`KernelError::Format`] when the columns are not ascending inside K.
    pub fn outliers(&self) -> Result<Option<(Self, Vec<u32>)>> {
        let Some(layout) = OutlierLayout::new(&self.spec) else { return Ok(None) };
        let damaged = || KernelError::Format(format!("the outlier columns of {:?} are not ascending in K", self.spec));
        let bytes = self.bytes.part(layout.panels, layout.columns - layout.panels).ok_or_else(damaged)?;
        let list = self.bytes.get(layout.columns..layout.columns + layout.spec.k * 4).ok_or_else(damaged)?;
        let columns: Vec<u32> = list.as_chunks::<4>().0.iter().map(|c| u32::from_le_bytes(*c)).collect();
        if !are_columns(&columns, self.spec.k) {
            return Err(damaged());
        }
        Ok(Some((Self { spec: layout.spec, bytes }, columns)))
    }

    /// The scale of the inputs of [`WeightKind::Fp8Static`]; `None` of other kinds.
    ///
    /// # Errors
    /// [`KernelError::Format`] when it is no positive number.
    pub fn input_scale(&self) -> Result<Option<f32>> {
        if self.spec.kind != WeightKind::Fp8Static {
            return Ok(None);
        }
        let at = PanelLayout::new(&self.spec).sums;
        let scale = self.bytes.get(at..at + 4).map_or(0.0, |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        if scale.is_finite() && scale > 0.0 {
            Ok(Some(scale))
        } else {
            Err(KernelError::Format(format!("the input scale {scale} of {:?} is no positive number", self.spec)))
        }
    }

    /// The values of one row, as [`crate::HostWeight::dequantize_row`] gives them: an embedding's look-up.
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
        let float_at = |at: usize| f32::from_le_bytes([panel[at], panel[at + 1], panel[at + 2], panel[at + 3]]);
        let row_scale = float_at(layout.rows + lane * 4);
        for (column, value) in out.iter_mut().enumerate() {
            let (byte, shift) = code_at(kind, column, lane);
            *value = match kind {
                WeightKind::Bf16 => half::bf16::from_bits(half_at(byte)).to_f32(),
                WeightKind::Fp8 | WeightKind::Fp8Static => row_scale * e4m3::decode(panel[byte]),
                WeightKind::Fp8Block => {
                    let scale = float_at(layout.scales + (column / FP8_BLOCK * PANEL + lane) * 4);
                    scale * e4m3::decode(panel[byte])
                }
                WeightKind::Int8 | WeightKind::Int8Outliers { .. } => row_scale * f32::from(panel[byte] as i8),
                WeightKind::Int4 { group } | WeightKind::Int8Group { group } => {
                    let at = layout.scales + (column / usize::from(group) * 2 * PANEL + lane) * 2;
                    let mask = if matches!(kind, WeightKind::Int4 { .. }) { 15 } else { 255 };
                    let code = f32::from((panel[byte] >> shift) & mask);
                    let (scale, min) = (f16::from_bits(half_at(at)), f16::from_bits(half_at(at + PANEL * 2)));
                    row_scale * (scale.to_f32() * code + min.to_f32())
                }
            };
        }
        if let Some((outliers, columns)) = self.outliers()? {
            let mut values = [0.0; MAX_OUTLIERS];
            outliers.dequantize_row(row, &mut values[..columns.len()])?;
            for (column, value) in columns.iter().zip(values) {
                out[*column as usize] = value;
            }
        }
        Ok(())
    }

    /// The rows as they were packed: [`super::pack`] undone, bit for bit. Another device's layout starts from them.
    ///
    /// # Errors
    /// [`KernelError::Format`] when the bytes are not a weight of this kind and shape.
    pub fn unpack(&self) -> Result<HostWeight> {
        let WeightSpec { kind, n, k } = self.spec;
        self.spec.validate()?;
        if self.bytes.len() != packed_len(&self.spec) {
            return Err(KernelError::Format(format!("{} bytes are not {:?}", self.bytes.len(), self.spec)));
        }
        let rows = Rows { weight: self, layout: PanelLayout::new(&self.spec) };
        Ok(match kind {
            WeightKind::Bf16 => HostWeight::Bf16 { n, k, values: rows.halves().collect() },
            WeightKind::Fp8 => HostWeight::Fp8 { n, k, codes: rows.codes().collect(), scales: rows.row_scales() },
            WeightKind::Fp8Static => {
                let input_scale = self.input_scale()?.unwrap_or(1.0);
                let (codes, scales) = (rows.codes().collect(), rows.row_scales());
                HostWeight::Fp8Static { n, k, codes, scales, input_scale }
            }
            WeightKind::Fp8Block => {
                HostWeight::Fp8Block { n, k, codes: rows.codes().collect(), scales: rows.block_scales() }
            }
            WeightKind::Int8 => {
                let codes = rows.codes().map(|code| code as i8).collect();
                HostWeight::Int8 { n, k, codes, scales: rows.row_scales() }
            }
            WeightKind::Int8Outliers { .. } => {
                let (columns, outliers) = match self.outliers()? {
                    Some((values, columns)) => match values.unpack()? {
                        HostWeight::Bf16 { values, .. } => (columns, values),
                        _ => (columns, Vec::new()),
                    },
                    None => (Vec::new(), Vec::new()),
                };
                let codes = rows.codes().map(|code| code as i8).collect();
                HostWeight::Int8Outliers { n, k, codes, scales: rows.row_scales(), columns, outliers }
            }
            WeightKind::Int4 { group } | WeightKind::Int8Group { group } => {
                let bits = if matches!(kind, WeightKind::Int4 { .. }) { 4 } else { 8 };
                let (scales, mins) = rows.group_scales();
                let (codes, row_scales) = (rows.codes().collect(), rows.row_scales());
                HostWeight::Grouped { n, k, bits, group: usize::from(group), codes, scales, mins, row_scales }
            }
        })
    }
}

/// The parts of a packed weight, row after row.
struct Rows<'a> {
    weight: &'a PackedWeight,
    layout: PanelLayout,
}

impl<'a> Rows<'a> {
    /// A row's panel and its lane there.
    fn panel(&self, row: usize) -> (&'a [u8], usize) {
        (&self.weight.bytes[row / PANEL * self.layout.bytes..][..self.layout.bytes], row % PANEL)
    }

    /// The bytes at a place that depends on the lane, of every row.
    fn at<const N: usize>(&self, place: impl Fn(usize, usize) -> usize, count: usize) -> Vec<[u8; N]> {
        let mut out = Vec::with_capacity(self.weight.spec.n * count);
        for row in 0..self.weight.spec.n {
            let (panel, lane) = self.panel(row);
            out.extend((0..count).map(|index| {
                let mut bytes = [0; N];
                bytes.copy_from_slice(&panel[place(index, lane)..][..N]);
                bytes
            }));
        }
        out
    }

    fn codes(&self) -> impl Iterator<Item = u8> {
        let WeightSpec { kind, n, k } = self.weight.spec;
        let mask = if matches!(kind, WeightKind::Int4 { .. }) { 15 } else { 255 };
        (0..n).flat_map(move |row| {
            let (panel, lane) = self.panel(row);
            (0..k).map(move |column| {
                let (byte, shift) = code_at(kind, column, lane);
                panel[byte] >> shift & mask
            })
        })
    }

    fn halves(&self) -> impl Iterator<Item = bf16> {
        let WeightSpec { kind, k, .. } = self.weight.spec;
        self.at::<2>(move |column, lane| code_at(kind, column, lane).0, k).into_iter().map(bf16::from_le_bytes)
    }

    fn row_scales(&self) -> Vec<f32> {
        let start = self.layout.rows;
        self.at::<4>(|_, lane| start + lane * 4, 1).into_iter().map(f32::from_le_bytes).collect()
    }

    fn block_scales(&self) -> Vec<f32> {
        let (start, blocks) = (self.layout.scales, self.weight.spec.k / FP8_BLOCK);
        let place = |block: usize, lane: usize| start + (block * PANEL + lane) * 4;
        self.at::<4>(place, blocks).into_iter().map(f32::from_le_bytes).collect()
    }

    /// Scales and minima.
    fn group_scales(&self) -> (Vec<f16>, Vec<f16>) {
        let (start, groups) = (self.layout.scales, self.weight.spec.k / self.layout.group);
        let half = |second: usize| {
            let place = |group: usize, lane: usize| start + ((group * 2 + second) * PANEL + lane) * 2;
            self.at::<2>(place, groups).into_iter().map(f16::from_le_bytes).collect()
        };
        (half(0), half(1))
    }
}
