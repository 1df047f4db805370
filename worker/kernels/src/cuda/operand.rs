//! A weight's parts at an address, in the forms that launches take them.

use super::{
    driver::Address,
    kernels::Ptr,
    launch::{
        linear::{Grouped, Weight},
        rows::{Columns, Table},
    },
    layout::{GpuLayout, Part},
};
use crate::{KernelError, Result, WeightKind};

/// A weight in the device's layout at an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) layout: GpuLayout,
    /// Scale of all inputs (FP8 with static activations).
    pub(super) input_scale: Option<f32>,
    pub(super) at: Address,
}

impl Placed {
    fn part<T>(&self, part: Part) -> Ptr<T> {
        Ptr::new(self.at + part.offset as Address)
    }

    /// The weight as products read it.
    pub(super) fn operand(&self) -> Weight {
        let GpuLayout { codes, scales, rows, .. } = self.layout;
        let codes_at = self.part(codes);
        match self.layout.spec.kind {
            WeightKind::Bf16 => Weight::Bf16(self.part(codes)),
            WeightKind::Fp8 | WeightKind::Fp8Static => Weight::Fp8 { codes: codes_at, scales: self.part(rows) },
            WeightKind::Fp8Block => Weight::Fp8Block { codes: codes_at, scales: self.part(scales) },
            WeightKind::Int8 | WeightKind::Int8Outliers { .. } => {
                Weight::Int8 { codes: codes_at, scales: self.part(rows) }
            }
            WeightKind::Int4 { group } | WeightKind::Int8Group { group } => Weight::Grouped(Grouped {
                codes: codes_at,
                affine: self.part(scales),
                row_scales: self.part(rows),
                group: u32::from(group),
                eight_bits: self.layout.planes() == 2,
            }),
        }
    }

    /// The weight as an embedding.
    ///
    /// # Errors
    /// [`KernelError::Shape`] for the kind that keeps some columns apart: no embedding is stored so.
    pub(super) fn table(&self) -> Result<Table> {
        if self.outliers().is_some() {
            return Err(KernelError::Shape("an embedding with outlier columns; store it in BF16 or INT8".into()));
        }
        Ok(match self.operand() {
            Weight::Bf16(values) => Table::Bf16(values),
            Weight::Fp8 { codes, scales } => Table::E4m3 { codes, scales },
            Weight::Fp8Block { codes, scales } => Table::E4m3Block { codes, scales },
            Weight::Int8 { codes, scales } => Table::Int8 { codes, scales },
            Weight::Grouped(Grouped { codes, affine, row_scales, group, eight_bits }) => {
                let planes = if eight_bits { 2 } else { 1 };
                Table::Grouped { codes, group_scales: affine, row_scales, group, planes }
            }
        })
    }

    /// The outlier columns: which, their BF16 weight, and its padded K; none without any.
    pub(super) fn outliers(&self) -> Option<(Columns, Weight, usize)> {
        let WeightKind::Int8Outliers { columns: count @ 1.. } = self.layout.spec.kind else { return None };
        let columns = Columns { at: self.part(self.layout.columns), count: u32::from(count) };
        Some((columns, Weight::Bf16(self.part(self.layout.outliers)), self.layout.outlier_k))
    }
}
