//! What a packed weight says, read back.

use half::f16;

use super::{
    are_columns,
    layout::{OutlierLayout, PANEL, PanelLayout, code_at},
};
use crate::{FP8_BLOCK, KernelError, MAX_OUTLIERS, PackedWeight, Result, WeightKind, WeightSpec, format::e4m3};

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
}
