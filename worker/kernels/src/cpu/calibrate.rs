//! [`Calibrate`] on the CPU.

use std::sync::{Mutex, PoisonError};

use super::{
    Cpu, Isa,
    device::{Disjoint, Matrix, fits},
    gemm::{self, DEPTH, MAX_TILE, Real, Region, Target, TileShape, Update, View},
    isa::per_isa,
    rounding,
    threads::Pool,
};
use crate::{Calibrate, GroupRounding, Result};

/// Columns of a strip whose maxima stay in the first-level cache.
const STRIP: usize = 256;
/// Side of the squares in which a triangle is mirrored.
const SQUARE: usize = 32;

impl Calibrate for Cpu {
    fn gram(&mut self, rows: usize, x: &Matrix, gram: &mut Matrix) -> Result<()> {
        let k = x.width;
        fits("the calibration rows", x, rows, k)?;
        fits("the Gram matrix", gram, k, k)?;
        let (isa, x) = (self.isa(), View::rows(&x.data, k));
        let target = Target { base: gram.data.as_mut_ptr(), stride: k };
        let mut pool = self.pool();
        let how = (Update::Add, Region::Upper);
        // SAFETY: the matrix is `[k, k]` and borrowed for this call; the instruction set is the machine's.
        unsafe { gemm::product(isa, &mut pool, [k, k, rows], x.transposed(), x, how, target) };
        mirror_upper(&mut pool, &mut gram.data, k);
        Ok(())
    }

    fn column_absmax(&mut self, rows: usize, x: &Matrix, out: &mut Matrix) -> Result<()> {
        let k = x.width;
        fits("the calibration rows", x, rows, k)?;
        fits("the maxima", out, 1, k)?;
        let (isa, target) = (self.isa(), Disjoint(out.data.as_mut_ptr()));
        self.pool().for_chunks(k.div_ceil(STRIP), 1, |_, range| {
            for first in range.map(|strip| strip * STRIP) {
                let columns = first..k.min(first + STRIP);
                // SAFETY: strips are disjoint; the instruction set is the machine's.
                unsafe { strip_absmax(isa, &x.data[..rows * k], k, first, target.slice(columns)) };
            }
        });
        Ok(())
    }

    fn rounding_changes(
        &mut self,
        rows: usize,
        weights: &Matrix,
        rounding: &GroupRounding<'_, Matrix>,
        changes: &mut Matrix,
    ) -> Result<()> {
        let k = weights.width;
        fits("the weights", weights, rows, k)?;
        fits("the changes", changes, rows, k)?;
        if let Some(scales) = rounding.scales {
            fits("the scales", scales, 1, k)?;
        }
        let how = rounding::How::new(rounding, k)?;
        let (isa, target) = (self.isa(), Disjoint(changes.data.as_mut_ptr()));
        self.pool().for_chunks(rows.div_ceil(gemm::BLOCK), 1, |_, range| {
            let rows = range.start * gemm::BLOCK * k..rows.min(range.end * gemm::BLOCK) * k;
            // SAFETY: blocks of rows are disjoint; the instruction set is the machine's.
            unsafe { rounding::changes(isa, &weights.data[rows.clone()], how, target.slice(rows)) };
        });
        Ok(())
    }

    fn quadratic_forms(&mut self, rows: usize, delta: &Matrix, gram: &Matrix, out: &mut Vec<f32>) -> Result<()> {
        let k = delta.width;
        fits("the changes", delta, rows, k)?;
        fits("the Gram matrix", gram, k, k)?;
        let isa = self.isa();
        let mut pool = self.pool();
        let half = HalfGram::pack(&mut pool, f32::shape(isa), &gram.data, k);
        let block = gemm::BLOCK * half.shape.rows;
        let scratch: Vec<Mutex<Forms>> = (0..pool.threads()).map(|_| Mutex::new(Forms::default())).collect();
        out.clear();
        out.resize(rows, 0.0);
        let target = Disjoint(out.as_mut_ptr());
        pool.for_chunks(rows.div_ceil(block), 1, |worker, range| {
            let mut scratch = scratch[worker].lock().unwrap_or_else(PoisonError::into_inner);
            for first in range.map(|index| index * block) {
                let rows = first..rows.min(first + block);
                let changes = &delta.data[rows.start * k..rows.end * k];
                // SAFETY: blocks are disjoint.
                let out = unsafe { target.slice(rows) };
                // SAFETY: the instruction set is the machine's.
                unsafe { scratch.block(isa, &half, changes, out) };
            }
        });
        Ok(())
    }
}

/// Copies the upper triangle of a `[k, k]` matrix to the lower one, square by square.
fn mirror_upper(pool: &mut Pool, matrix: &mut [f32], k: usize) {
    let matrix = Target { base: matrix.as_mut_ptr(), stride: k };
    pool.for_chunks(k.div_ceil(SQUARE), 1, |_, range| {
        for rows in range.map(|index| index * SQUARE..k.min((index + 1) * SQUARE)) {
            for first in (0..rows.end).step_by(SQUARE) {
                for row in rows.clone() {
                    for column in first..row.min(first + SQUARE) {
                        // SAFETY: both elements are inside the matrix. Threads write rows of their own below the
                        // diagonal and read only above it.
                        unsafe { *matrix.element(row, column) = *matrix.element(column, row) };
                    }
                }
            }
        }
    });
}

per_isa! {
    /// Raises `out` to the magnitudes of its columns, which start at `first`, of rows of `k`.
    ///
    /// # Safety
    /// The instruction set is available.
    unsafe fn strip_absmax(x: &[f32], k: usize, first: usize, out: &mut [f32]) = raise_to_magnitudes;
}

#[inline(always)]
fn raise_to_magnitudes(x: &[f32], k: usize, first: usize, out: &mut [f32]) {
    for row in x.chunks_exact(k) {
        for (out, v) in out.iter_mut().zip(&row[first..]) {
            *out = out.max(v.abs());
        }
    }
}

/// The upper triangle of a symmetric matrix with half its diagonal, packed in panels: `d G d^T = 2 d H d^T`, at half the
/// work of a product with G.
struct HalfGram {
    k: usize,
    shape: TileShape,
    /// Panels `[steps][columns]`; a panel ends with the row of its last column.
    panels: Vec<Vec<f32>>,
}

impl HalfGram {
    fn pack(pool: &mut Pool, shape: TileShape, gram: &[f32], k: usize) -> Self {
        let panels: Vec<Mutex<Vec<f32>>> = (0..k.div_ceil(shape.columns)).map(|_| Mutex::default()).collect();
        pool.for_chunks(panels.len(), 1, |_, range| {
            for index in range {
                let columns = index * shape.columns..k.min((index + 1) * shape.columns);
                let mut panel = vec![0.0; columns.end * shape.columns];
                for (row, out) in panel.chunks_exact_mut(shape.columns).enumerate() {
                    let above = columns.start.max(row)..columns.end;
                    out[above.start - columns.start..columns.len()].copy_from_slice(&gram[row * k..][above]);
                    if columns.contains(&row) {
                        out[row - columns.start] *= 0.5;
                    }
                }
                *panels[index].lock().unwrap_or_else(PoisonError::into_inner) = panel;
            }
        });
        let panels = panels.into_iter().map(|p| p.into_inner().unwrap_or_else(PoisonError::into_inner)).collect();
        Self { k, shape, panels }
    }
}

/// A thread's scratch for quadratic forms.
#[derive(Default)]
struct Forms {
    /// Packed rows of the block.
    packed: Vec<f32>,
    /// `d H` of the block's rows and one panel's columns.
    product: Vec<f32>,
    /// The forms so far.
    sums: Vec<f64>,
}

impl Forms {
    /// The forms of a block of rows.
    ///
    /// # Safety
    /// The instruction set is available.
    unsafe fn block(&mut self, isa: Isa, half: &HalfGram, changes: &[f32], out: &mut [f32]) {
        let HalfGram { k, shape: TileShape { rows: height, columns }, ref panels } = *half;
        let tiles = out.len().div_ceil(height);
        gemm::pack_rows(&mut self.packed, View::rows(changes, k), &(0..out.len()), &(0..k), height);
        self.sums.clear();
        self.sums.resize(out.len(), 0.0);
        let mut tile = [0.0f32; MAX_TILE];
        for (index, panel) in panels.iter().enumerate() {
            self.product.clear();
            self.product.resize(tiles * height * columns, 0.0);
            let steps = panel.len() / columns;
            // By pieces of K, so that a piece of the panel stays in the first-level cache for all tiles.
            for start in (0..steps).step_by(DEPTH) {
                let depth = DEPTH.min(steps - start);
                let b = &panel[start * columns..];
                for (a, product) in
                    self.packed.chunks_exact(k * height).zip(self.product.chunks_exact_mut(height * columns))
                {
                    // SAFETY: the caller's promise.
                    unsafe { f32::tile(isa, depth, &a[start * height..], b, &mut tile) };
                    for (product, sum) in product.iter_mut().zip(&tile) {
                        *product += sum;
                    }
                }
            }
            let first = index * columns;
            for ((sum, product), row) in
                self.sums.iter_mut().zip(self.product.chunks_exact(columns)).zip(changes.chunks_exact(k))
            {
                let part: f32 = product.iter().zip(&row[first..]).map(|(p, d)| p * d).sum();
                *sum += f64::from(part);
            }
        }
        for (out, sum) in out.iter_mut().zip(&self.sums) {
            *out = (2.0 * sum) as f32;
        }
    }
}
