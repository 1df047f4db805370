//! Dense algebra of calibrated quantization on the host: plain slices, row-major, on all compute threads.
//!
//! FP64 throughout for what is inverted: the Gram matrix of real activations has a few inputs that are thousands of times
//! larger than the others, and damping of one per cent of the mean diagonal leaves condition numbers above 1e5. FP32 would
//! lose the small eigenvalues' directions, which are those that GPTQ moves errors into, and an FP64 factorization of one
//! weight costs less than one pass of calibration rows over it.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use crate::cpu::{
    Isa,
    gemm::{self, Real, Region, Target, Update, View},
    isa::per_isa,
    threads::Pool,
};

/// Columns that are factored at once.
const BLOCK: usize = 64;
/// Rows that a thread solves for at once.
const ROWS: usize = 32;

/// `C[m, n] -= A[m, p] B[p, n]`: GPTQ's lazy update of the columns behind a block. Row-major; `ldc`, `lda` and `ldb` are the
/// elements from row to row. The result does not depend on `threads`.
///
/// # Panics
/// When a slice is too short for its shape.
pub fn subtract_product(
    threads: usize,
    c: &mut [f32],
    ldc: usize,
    a: &[f32],
    lda: usize,
    b: &[f32],
    ldb: usize,
    m: usize,
    n: usize,
    p: usize,
) {
    let holds = |len: usize, stride: usize, rows: usize, width: usize| {
        rows == 0 || width == 0 || (stride >= width && len >= (rows - 1) * stride + width)
    };
    assert!(holds(c.len(), ldc, m, n), "C [{m}, {n}] by {ldc} does not fit {} elements", c.len());
    assert!(holds(a.len(), lda, m, p), "A [{m}, {p}] by {lda} does not fit {} elements", a.len());
    assert!(holds(b.len(), ldb, p, n), "B [{p}, {n}] by {ldb} does not fit {} elements", b.len());
    let (a, b) = (View::rows(a, lda), View::rows(b, ldb));
    product(Isa::detect(), &mut pool(threads), [m, n, p], a, b, (Update::Subtract, Region::All), c, ldc);
}

/// Replaces a symmetric positive definite H `[k, k]`, row-major, by the upper triangular U with `U^T U = H^-1`; its lower
/// triangle becomes zero. Only H's upper triangle is read. The result does not depend on `threads`.
///
/// U is what GPTQ calls the Cholesky factor of the inverse Hessian (Frantar et al. 2022, step 3): row `i` holds how the error
/// of input `i` moves to the later ones. It is computed without forming the inverse: with the upper factor `H = R R^T`,
/// taken from the last column to the first, `H^-1 = R^-T R^-1`, so `U = R^-1`. Half the work, and no rounding of an inverse.
///
/// # Errors
/// The column at which H turned out not to be positive definite (or not finite), counted from 0; H then holds no result.
///
/// # Panics
/// When `h` has not `k * k` elements.
pub fn inverse_cholesky_upper(threads: usize, k: usize, h: &mut [f64]) -> Result<(), usize> {
    assert_eq!(h.len(), k * k, "H is [{k}, {k}]");
    let (isa, mut pool) = (Isa::detect(), pool(threads));
    upper_factor(isa, &mut pool, k, h)?;
    invert_upper(isa, &mut pool, k, h);
    Ok(())
}

/// As many of `threads` as the system grants.
fn pool(threads: usize) -> Pool {
    (1..=threads.max(1)).rev().find_map(|threads| Pool::new(threads).ok()).expect("one thread is the caller's")
}

/// [`gemm::product`] into a slice that starts with C's first element.
fn product<T: Real>(
    isa: Isa,
    pool: &mut Pool,
    shape: [usize; 3],
    a: View<'_, T>,
    b: View<'_, T>,
    how: (Update, Region),
    c: &mut [T],
    stride: usize,
) {
    let [m, n, p] = shape;
    if m == 0 || n == 0 || p == 0 {
        return;
    }
    assert!(stride >= n && c.len() >= (m - 1) * stride + n, "C holds its rows");
    let target = Target { base: c.as_mut_ptr(), stride };
    // SAFETY: C holds the rows and is borrowed for this call; the instruction set is the machine's.
    unsafe { gemm::product(isa, pool, shape, a, b, how, target) };
}

/// `H = R R^T` with R upper triangular, in H's upper triangle: blocks of columns from the last to the first.
fn upper_factor(isa: Isa, pool: &mut Pool, k: usize, h: &mut [f64]) -> Result<(), usize> {
    for start in (0..k).step_by(BLOCK).rev() {
        let width = BLOCK.min(k - start);
        let mut block = columns_of(h, k, start..start + width, start..start + width);
        factor_block(width, &mut block).map_err(|column| start + column)?;
        set_columns(h, k, start..start + width, start, &block);
        // The rows above: X R22^T = B, each row by itself.
        let transposed: Vec<f64> = (0..width * width).map(|i| block[i % width * width + i / width]).collect();
        let mut above = columns_of(h, k, 0..start, start..start + width);
        let parts: Vec<Mutex<&mut [f64]>> = above.chunks_mut(ROWS * width).map(Mutex::new).collect();
        pool.for_chunks(parts.len(), 1, |_, range| {
            for part in &parts[range] {
                let mut rows = part.lock().unwrap_or_else(PoisonError::into_inner);
                // SAFETY: the instruction set is the machine's.
                unsafe { solve_rows(isa, width, &transposed, &mut rows) };
            }
        });
        set_columns(h, k, 0..start, start, &above);
        let x = View::rows(&above, width);
        let how = (Update::Subtract, Region::Upper);
        product(isa, pool, [start, start, width], x, x.transposed(), how, h, k);
    }
    Ok(())
}

/// [`upper_factor`] of one block `[width, width]`.
fn factor_block(width: usize, block: &mut [f64]) -> Result<(), usize> {
    for j in (0..width).rev() {
        let pivot = block[j * width + j];
        if !(pivot > 0.0 && pivot.is_finite()) {
            return Err(j);
        }
        let root = pivot.sqrt();
        block[j * width + j] = root;
        let mut column = [0.0; BLOCK];
        for (i, value) in column.iter_mut().enumerate().take(j) {
            block[i * width + j] /= root;
            *value = block[i * width + j];
        }
        for i in 0..j {
            for (value, factor) in block[i * width..][i..j].iter_mut().zip(&column[i..j]) {
                *value -= column[i] * factor;
            }
        }
    }
    Ok(())
}

per_isa! {
    /// Solves `x R^T = b` for each row of `width` in place, R upper and given transposed.
    ///
    /// # Safety
    /// The instruction set is available.
    unsafe fn solve_rows(width: usize, transposed: &[f64], rows: &mut [f64]) = substitute;
}

#[inline(always)]
fn substitute(width: usize, transposed: &[f64], rows: &mut [f64]) {
    for row in rows.chunks_exact_mut(width) {
        for last in (0..width).rev() {
            let factors = &transposed[last * width..][..=last];
            let value = row[last] / factors[last];
            row[last] = value;
            for (x, factor) in row[..last].iter_mut().zip(factors) {
                *x -= value * factor;
            }
        }
    }
}

/// Replaces an upper triangular R by its inverse V, blocks of columns from the first to the last:
/// `V12 = -V11 R12 V22`. What is below the diagonal becomes zero.
fn invert_upper(isa: Isa, pool: &mut Pool, k: usize, r: &mut [f64]) {
    for (i, row) in r.chunks_exact_mut(k.max(1)).enumerate() {
        row[..i].fill(0.0);
    }
    for start in (0..k).step_by(BLOCK) {
        let width = BLOCK.min(k - start);
        let mut block = columns_of(r, k, start..start + width, start..start + width);
        invert_block(width, &mut block);
        set_columns(r, k, start..start + width, start, &block);
        let above = columns_of(r, k, 0..start, start..start + width);
        let mut left = vec![0.0; start * width];
        let (v, right) = (View::rows(r, k), View::rows(&above, width));
        let how = (Update::Subtract, Region::All);
        product(isa, pool, [start, width, start], v, right, how, &mut left, width);
        let mut inverse = vec![0.0; start * width];
        let (left, right) = (View::rows(&left, width), View::rows(&block, width));
        let how = (Update::Add, Region::All);
        product(isa, pool, [start, width, width], left, right, how, &mut inverse, width);
        set_columns(r, k, 0..start, start, &inverse);
    }
}

/// [`invert_upper`] of one block `[width, width]`.
fn invert_block(width: usize, block: &mut [f64]) {
    for j in 0..width {
        let inverse = 1.0 / block[j * width + j];
        block[j * width + j] = inverse;
        let mut column = [0.0; BLOCK];
        for (l, value) in column.iter_mut().enumerate().take(j) {
            *value = block[l * width + j];
        }
        for i in 0..j {
            let sum: f64 = block[i * width..][i..j].iter().zip(&column[i..j]).map(|(v, r)| v * r).sum();
            block[i * width + j] = -sum * inverse;
        }
    }
}

/// A copy of some rows and columns of a matrix of width `k`.
fn columns_of(matrix: &[f64], k: usize, rows: Range<usize>, columns: Range<usize>) -> Vec<f64> {
    rows.flat_map(|row| &matrix[row * k..][columns.clone()]).copied().collect()
}

/// Writes [`columns_of`] back, at column `first`.
fn set_columns(matrix: &mut [f64], k: usize, rows: Range<usize>, first: usize, values: &[f64]) {
    let width = values.len() / rows.len().max(1);
    for (row, values) in rows.zip(values.chunks_exact(width.max(1))) {
        matrix[row * k + first..][..width].copy_from_slice(values);
    }
}

#[cfg(test)]
#[path = "dense_tests.rs"]
mod tests;
