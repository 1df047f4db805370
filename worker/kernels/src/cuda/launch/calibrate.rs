//! Launches of calibration's kernels. The contracts are in `kernels/calibrate.cu`.

use super::blocks;
use crate::{
    cuda::{
        driver::Parameters,
        kernels::{Kernel, Launch, Ptr, Rows},
    },
    rtn::Grid,
};

/// `out[j] = max(out[j], |x[r, j]|)`.
pub(in crate::cuda) fn column_absmax(rows: Rows, x: Ptr<f32>, k: usize, out: Ptr<f32>) -> Launch {
    let parameters = Parameters::new().ptr(out).ptr(x).with(rows.get() as u32).with(k as u32);
    Launch::new(Kernel::ColumnAbsmax, [blocks(k, 32), 1, 1], parameters)
}

/// How groups are rounded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cuda) struct Rounding {
    pub(in crate::cuda) bits: u32,
    pub(in crate::cuda) group: usize,
    pub(in crate::cuda) grid: Grid,
    /// `[k]` or null.
    pub(in crate::cuda) scales: Ptr<f32>,
    pub(in crate::cuda) cut: f32,
}

/// `changes = Q(W s) / s - W`.
pub(in crate::cuda) fn rounding_changes(
    rows: Rows,
    weights: Ptr<f32>,
    k: usize,
    rounding: &Rounding,
    changes: Ptr<f32>,
) -> Launch {
    let grid: u32 = match rounding.grid {
        Grid::Symmetric => 0,
        Grid::Integer => 1,
        Grid::Minimum => 2,
    };
    let parameters = Parameters::new()
        .ptr(changes)
        .ptr(weights)
        .ptr(rounding.scales)
        .with(k as u32)
        .with(rounding.group as u32)
        .with(rounding.bits)
        .with(grid)
        .with(rounding.cut);
    Launch::new(Kernel::RoundingChanges, [rows.get() as u32, 1, 1], parameters)
}

/// A matrix for [`matmul`]: element (i, j) is at `i * row + j * column`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cuda) struct View {
    pub(in crate::cuda) at: Ptr<f32>,
    pub(in crate::cuda) row: usize,
    pub(in crate::cuda) column: usize,
}

/// `out [m, n] (+)= a [m, depth] b [depth, n]`, in FP32.
pub(in crate::cuda) fn matmul([m, n, depth]: [usize; 3], a: View, b: View, add: bool, out: Ptr<f32>) -> Launch {
    let parameters = Parameters::new()
        .ptr(out)
        .ptr(a.at)
        .ptr(b.at)
        .with(m as u32)
        .with(n as u32)
        .with(depth as u32)
        .with(a.row as u32)
        .with(a.column as u32)
        .with(b.row as u32)
        .with(b.column as u32)
        .with(u32::from(add));
    Launch::new(Kernel::MatmulF32, [blocks(n, 64), blocks(m, 64), 1], parameters)
}

/// `out[r] = a[r] . b[r]`.
pub(in crate::cuda) fn row_dots(rows: Rows, a: Ptr<f32>, b: Ptr<f32>, k: usize, out: Ptr<f32>) -> Launch {
    let parameters = Parameters::new().ptr(out).ptr(a).ptr(b).with(k as u32);
    Launch::new(Kernel::RowDots, [rows.get() as u32, 1, 1], parameters)
}
