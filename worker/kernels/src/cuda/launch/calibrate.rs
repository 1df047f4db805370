//! Launches of calibration's kernels. The contracts are in `kernels/tiles.cuh` and the files behind it.

use super::{blocks, per_row};
use crate::{
    cuda::{
        driver::Parameters,
        kernels::{Kernel, Launch, Ptr, Rows, Side},
    },
    rtn::Grid,
};

/// Side of the tiles.
const TILE: usize = 128;

/// Tiles of a row of `k`: the partial sums of [`quadratic_partials`].
pub(in crate::cuda) fn tiles(k: Side) -> usize {
    k.get().div_ceil(TILE)
}

/// `gram += x^T x`.
pub(in crate::cuda) fn gram(rows: Rows, x: Ptr<f32>, k: Side, gram: Ptr<f32>) -> Launch {
    let parameters = Parameters::new().ptr(gram).ptr(x).with(rows.get() as u32).side(k);
    let tiles = tiles(k);
    Launch::new(Kernel::Gram, [(tiles * (tiles + 1) / 2) as u32, 1, 1], parameters)
}

/// `out[j] = max(out[j], |x[r, j]|)`.
pub(in crate::cuda) fn column_absmax(rows: Rows, x: Ptr<f32>, k: Side, out: Ptr<f32>) -> Launch {
    let parameters = Parameters::new().ptr(out).ptr(x).with(rows.get() as u32).side(k);
    // Blocks share the rows: enough of them to fill the device, each with rows for all its warps.
    let shares = rows.get().div_ceil(64).min(64) as u32;
    Launch::new(Kernel::ColumnAbsmax, [blocks(k.get(), TILE), shares, 1], parameters)
}

/// How groups are rounded; checked by the caller.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cuda) struct Rounding {
    pub(in crate::cuda) bits: u32,
    pub(in crate::cuda) group: u32,
    pub(in crate::cuda) grid: Grid,
    /// `[k]` or null.
    pub(in crate::cuda) scales: Ptr<f32>,
    pub(in crate::cuda) cut: f32,
}

/// `changes = Q(W s) / s - W`.
pub(in crate::cuda) fn rounding_changes(
    rows: Rows,
    weights: Ptr<f32>,
    k: Side,
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
        .side(k)
        .with(rounding.bits)
        .with(rounding.group)
        .with(grid)
        .with(rounding.cut);
    Launch::new(Kernel::RoundingChanges, per_row(rows), parameters)
}

/// Parts of `d_r gram d_r^T`: `partials` is `[tiles, rows]` in FP64.
pub(in crate::cuda) fn quadratic_partials(
    rows: Rows,
    delta: Ptr<f32>,
    gram: Ptr<f32>,
    k: Side,
    partials: Ptr<f64>,
) -> Launch {
    let parameters = Parameters::new().ptr(partials).ptr(delta).ptr(gram).with(rows.get() as u32).side(k);
    Launch::new(Kernel::QuadraticPartials, [tiles(k) as u32, blocks(rows.get(), TILE), 1], parameters)
}

/// Adds the parts up.
pub(in crate::cuda) fn quadratic_forms(rows: Rows, partials: Ptr<f64>, k: Side, out: Ptr<f32>) -> Launch {
    let parameters = Parameters::new().ptr(out).ptr(partials).with(rows.get() as u32).with(tiles(k) as u32);
    Launch::new(Kernel::QuadraticForms, [blocks(rows.get(), 256), 1, 1], parameters)
}
