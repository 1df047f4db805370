//! Matrix products of FP32 and FP64 matrices: what calibration computes, not what a model runs.
//!
//! The classic scheme of packed panels (Goto and van de Geijn 2008): a slab of B is packed once for all threads; each
//! thread packs a block of A's rows and walks the slab in register tiles.
//!
//! ```text
//! for columns of C by SLAB panels, for K by DEPTH:       pack B: [panel][DEPTH][columns of a tile]
//!   for rows of C by BLOCK tiles (threads claim them):   pack A: [tile][DEPTH][rows of a tile]
//!     for panels, for tiles:                             C tile (+/-)= A tile x B panel, in registers
//! ```
//!
//! An element of C is always summed in the same order by one thread, so results do not depend on the number of threads.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use super::{Isa, threads::Pool};

mod tile;

pub(crate) use tile::{MAX_TILE, Real, TileShape};

/// Steps of K that are packed and summed at once: a panel of B then fits the first-level cache.
pub(super) const DEPTH: usize = 256;
/// Tiles of a block of A: the block fits the second-level cache beside the slab's part in use.
pub(super) const BLOCK: usize = 8;
/// Panels of a slab of B.
const SLAB: usize = 24;

/// A matrix by its strides: element `(i, j)` is `data[i * row + j * column]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a, T> {
    /// Elements.
    pub(crate) data: &'a [T],
    /// Elements from row to row.
    pub(crate) row: usize,
    /// Elements from column to column.
    pub(crate) column: usize,
}

impl<'a, T> View<'a, T> {
    /// A row-major matrix.
    pub(crate) fn rows(data: &'a [T], stride: usize) -> Self {
        Self { data, row: stride, column: 1 }
    }

    /// Rows become columns.
    pub(crate) fn transposed(self) -> Self {
        Self { data: self.data, row: self.column, column: self.row }
    }
}

/// Which elements of C are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Region {
    /// All of them.
    All,
    /// Those on and above the diagonal; some below it are updated too.
    Upper,
}

/// What a product does with C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Update {
    /// `C += A B`.
    Add,
    /// `C -= A B`.
    Subtract,
}

/// A row-major matrix that threads write disjoint rows of.
#[derive(Clone, Copy)]
pub(crate) struct Target<T> {
    /// Element `(0, 0)`.
    pub(crate) base: *mut T,
    /// Elements from row to row.
    pub(crate) stride: usize,
}
// SAFETY: threads write different rows, as `product` distributes them.
unsafe impl<T: Send> Send for Target<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Target<T> {}

impl<T> Target<T> {
    /// The place of an element.
    ///
    /// # Safety
    /// The element is inside the matrix.
    pub(crate) unsafe fn element(&self, row: usize, column: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.base.add(row * self.stride + column) }
    }
}

/// `C[m, n] (+/-)= A[m, p] B[p, n]` for `[m, n, p]`.
///
/// # Safety
/// `c` must hold `m` rows of `n` elements that nobody else uses meanwhile, A and B included; `isa` must be available.
pub(crate) unsafe fn product<T: Real>(
    isa: Isa,
    pool: &mut Pool,
    [m, n, p]: [usize; 3],
    a: View<'_, T>,
    b: View<'_, T>,
    (update, region): (Update, Region),
    c: Target<T>,
) {
    let shape = T::shape(isa);
    let panels = n.div_ceil(shape.columns);
    let blocks = m.div_ceil(BLOCK * shape.rows);
    let depth = DEPTH.min(p);
    let mut slab = vec![T::default(); SLAB.min(panels) * depth * shape.columns];
    let scratch: Vec<Mutex<Vec<T>>> = (0..pool.threads()).map(|_| Mutex::new(Vec::new())).collect();
    for first_panel in (0..panels).step_by(SLAB) {
        let slab_panels = first_panel..panels.min(first_panel + SLAB);
        for start in (0..p).step_by(DEPTH) {
            let steps = start..p.min(start + DEPTH);
            let size = steps.len() * shape.columns;
            pack_panels(pool, &mut slab[..slab_panels.len() * size], b.transposed(), n, &slab_panels, &steps, shape);
            let slab = &slab;
            // Rows below the slab's last column have no element on or above the diagonal.
            let wanted = match region {
                Region::All => blocks,
                Region::Upper => blocks.min((slab_panels.end * shape.columns).div_ceil(BLOCK * shape.rows)),
            };
            pool.for_chunks(wanted, 1, |worker, range| {
                let mut packed = scratch[worker].lock().unwrap_or_else(PoisonError::into_inner);
                for block in range {
                    let rows = block * BLOCK * shape.rows..m.min((block + 1) * BLOCK * shape.rows);
                    pack_rows(&mut packed, a, &rows, &steps, shape.rows);
                    let b = Slab { panels: slab_panels.clone(), codes: slab };
                    // SAFETY: the caller's promises; blocks are disjoint rows.
                    unsafe { block_product(isa, shape, &packed, rows, b, steps.len(), n, update, region, c) };
                }
            });
        }
    }
}

/// Packed panels of B.
struct Slab<'a, T> {
    panels: Range<usize>,
    codes: &'a [T],
}

/// One block of rows times a slab.
///
/// # Safety
/// As [`product`]; the operands are packed with `depth` steps.
unsafe fn block_product<T: Real>(
    isa: Isa,
    shape: TileShape,
    a: &[T],
    rows: Range<usize>,
    b: Slab<'_, T>,
    depth: usize,
    n: usize,
    update: Update,
    region: Region,
    c: Target<T>,
) {
    let mut tile = [T::default(); MAX_TILE];
    for (panel, b) in b.panels.zip(b.codes.chunks_exact(depth * shape.columns)) {
        let first_column = panel * shape.columns;
        let columns = shape.columns.min(n - first_column);
        for (first_row, a) in rows.clone().step_by(shape.rows).zip(a.chunks_exact(depth * shape.rows)) {
            if region == Region::Upper && first_row >= first_column + columns {
                break;
            }
            // SAFETY: the chunks hold `depth` steps of a tile; the instruction set is available.
            unsafe { T::tile(isa, depth, a, b, &mut tile) };
            for (row, sums) in (first_row..rows.end).zip(tile.chunks_exact(shape.columns).take(shape.rows)) {
                // SAFETY: row and columns are inside C by the bounds above; no other thread has this row.
                let out = unsafe { std::slice::from_raw_parts_mut(c.element(row, first_column), columns) };
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = if update == Update::Add { *out + *sum } else { *out - *sum };
                }
            }
        }
    }
}

/// Packs the panels of B, given transposed (a row per column of B), on all threads.
fn pack_panels<T: Real>(
    pool: &mut Pool,
    slab: &mut [T],
    columns: View<'_, T>,
    n: usize,
    panels: &Range<usize>,
    steps: &Range<usize>,
    shape: TileShape,
) {
    let targets: Vec<Mutex<&mut [T]>> = slab.chunks_exact_mut(steps.len() * shape.columns).map(Mutex::new).collect();
    pool.for_chunks(targets.len(), 4, |_, range| {
        for index in range {
            let first = (panels.start + index) * shape.columns;
            let wanted = first..n.min(first + shape.columns);
            let mut target = targets[index].lock().unwrap_or_else(PoisonError::into_inner);
            pack(&mut target, columns, &wanted, steps, shape.columns);
        }
    });
}

/// Packs rows of A as tiles, one after the other.
pub(super) fn pack_rows<T: Real>(
    packed: &mut Vec<T>,
    a: View<'_, T>,
    rows: &Range<usize>,
    steps: &Range<usize>,
    height: usize,
) {
    packed.resize(rows.len().div_ceil(height) * height * steps.len(), T::default());
    for (first, tile) in rows.clone().step_by(height).zip(packed.chunks_exact_mut(height * steps.len())) {
        pack(tile, a, &(first..rows.end.min(first + height)), steps, height);
    }
}

/// `out[step * width + lane] = a(lanes.start + lane, step)`, zero in the lanes that do not exist.
fn pack<T: Real>(out: &mut [T], a: View<'_, T>, lanes: &Range<usize>, steps: &Range<usize>, width: usize) {
    if a.row == 1 {
        for (step, out) in steps.clone().zip(out.chunks_exact_mut(width)) {
            let at = step * a.column + lanes.start;
            out[..lanes.len()].copy_from_slice(&a.data[at..at + lanes.len()]);
            out[lanes.len()..].fill(T::default());
        }
        return;
    }
    for lane in 0..width {
        if lane >= lanes.len() {
            out.iter_mut().skip(lane).step_by(width).for_each(|o| *o = T::default());
            continue;
        }
        let first = (lanes.start + lane) * a.row + steps.start * a.column;
        let values = a.data[first..].iter().step_by(a.column);
        for (out, value) in out.iter_mut().skip(lane).step_by(width).zip(values) {
            *out = *value;
        }
    }
}
