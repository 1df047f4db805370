use modelprofile_kernels::rtn::Grid;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;

const TARGET: Target = Target::Groups { bits: 4, group: 32, grid: Grid::Integer };

fn noise(rng: &mut StdRng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.random::<f32>() + rng.random::<f32>() + rng.random::<f32>() - 1.5).collect()
}

/// Inputs of which neighbours go together, and their Gram matrix.
fn inputs(rng: &mut StdRng, rows: usize, k: usize) -> (Vec<f32>, Vec<f32>) {
    let mut x = noise(rng, rows * k);
    for row in x.chunks_exact_mut(k) {
        for j in 1..k {
            row[j] += 0.9 * row[j - 1];
        }
        for (j, v) in row.iter_mut().enumerate() {
            *v *= 0.2 + (j * 7 % k) as f32 / k as f32;
        }
    }
    let mut gram = vec![0.0f32; k * k];
    for row in x.chunks_exact(k) {
        for i in 0..k {
            for j in 0..k {
                gram[i * k + j] += row[i] * row[j];
            }
        }
    }
    (x, gram)
}

fn restored(weight: &HostWeight, n: usize, k: usize) -> Vec<f32> {
    let mut all = vec![0.0; n * k];
    for (row, out) in all.chunks_exact_mut(k).enumerate() {
        weight.dequantize_row(row, out);
    }
    all
}

/// `|| (W' - W) X ||^2`.
fn output_error(found: &[f32], weights: &[f32], x: &[f32], k: usize) -> f64 {
    let mut total = 0.0;
    for (a, b) in found.chunks_exact(k).zip(weights.chunks_exact(k)) {
        for row in x.chunks_exact(k) {
            let dot: f64 = row.iter().zip(a.iter().zip(b)).map(|(x, (a, b))| f64::from(*x) * f64::from(a - b)).sum();
            total += dot * dot;
        }
    }
    total
}

/// The published iteration (optimal brain quantization with a fixed order), stated plainly: after each column the inverse
/// of H over the columns that are left is computed anew, and `w_j -= (w_i - q_i) / [H^-1]_ii [H^-1]_ij`.
fn reference(matrix: &Matrix, gram: &[f32], target: Target) -> Vec<f32> {
    let (n, k) = (matrix.rows, matrix.cols);
    let diagonal: Vec<f32> = (0..k).map(|j| gram[j * k + j]).collect();
    let mean = diagonal.iter().map(|d| f64::from(*d)).sum::<f64>() / k as f64;
    let mut order: Vec<usize> = (0..k).collect();
    order.sort_by(|a, b| diagonal[*b].total_cmp(&diagonal[*a]));
    let steps = steps(1, matrix, &diagonal, target);
    let mut free: Vec<f64> =
        matrix.data.iter().enumerate().map(|(at, w)| f64::from(w / steps.row_scales[at / k])).collect();
    for i in 0..k {
        let left = &order[i..];
        let m = left.len();
        let h: Vec<f64> = (0..m * m)
            .map(|at| {
                let (r, c) = (left[at / m], left[at % m]);
                f64::from(gram[r * k + c]) + if r == c { DAMPING * mean } else { 0.0 }
            })
            .collect();
        let inverse = invert(&h, m);
        for row in 0..n {
            let at = row * k + order[i];
            let (_, value) = steps.round(row, order[i], free[at] as f32, target);
            let error = (free[at] - f64::from(value)) / inverse[0];
            for (j, column) in left.iter().enumerate() {
                free[row * k + column] -= error * inverse[j];
            }
        }
    }
    free.iter().enumerate().map(|(at, w)| *w as f32 * steps.row_scales[at / k]).collect()
}

/// Gauss-Jordan.
fn invert(a: &[f64], n: usize) -> Vec<f64> {
    let mut a = a.to_vec();
    let mut out: Vec<f64> = (0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect();
    for i in 0..n {
        let pivot = a[i * n + i];
        for j in 0..n {
            a[i * n + j] /= pivot;
            out[i * n + j] /= pivot;
        }
        for r in (0..n).filter(|r| *r != i) {
            let factor = a[r * n + i];
            for j in 0..n {
                a[r * n + j] -= factor * a[i * n + j];
                out[r * n + j] -= factor * out[i * n + j];
            }
        }
    }
    out
}

#[test]
fn blocks_and_the_cholesky_factor_give_what_the_plain_iteration_gives() {
    let mut rng = StdRng::seed_from_u64(1);
    // More columns than a block has.
    let (n, k) = (6, 160);
    let (x, gram) = inputs(&mut rng, 400, k);
    let matrix = Matrix { rows: n, cols: k, data: noise(&mut rng, n * k) };
    let fast = Solver::new(2, k, &gram).unwrap().quantize(&matrix, TARGET);
    let fast = restored(&fast, n, k);
    let plain = reference(&matrix, &gram, TARGET);
    // FP32 against FP64: a value near the middle between two points may fall to the other side, and what follows with it.
    let same = fast.iter().zip(&plain).filter(|(a, b)| (*a - *b).abs() < 1e-5).count();
    assert!(same * 100 >= n * k * 97, "{same} of {} codes are the same", n * k);
    let [found, expected] = [&fast, &plain].map(|w| output_error(w, &matrix.data, &x, k));
    assert!((found / expected - 1.0).abs() < 0.05, "{found} against {expected}");
}

#[test]
fn the_outputs_error_falls_far_below_that_of_rounding_to_the_nearest() {
    let mut rng = StdRng::seed_from_u64(2);
    let (n, k) = (16, 128);
    let (x, gram) = inputs(&mut rng, 600, k);
    let matrix = Matrix { rows: n, cols: k, data: noise(&mut rng, n * k) };
    let kind = modelprofile_kernels::WeightKind::Int4 { group: 32 };
    let nearest = rtn::quantize(kind, Grid::Integer, n, k, &matrix.data).unwrap();
    let found = Solver::new(2, k, &gram).unwrap().quantize(&matrix, TARGET);
    let [found, nearest] = [found, nearest].map(|w| output_error(&restored(&w, n, k), &matrix.data, &x, k));
    assert!(found < 0.5 * nearest, "{found} against {nearest}");
    let target = Target::Rows8;
    let nearest = rtn::quantize(modelprofile_kernels::WeightKind::Int8, Grid::Symmetric, n, k, &matrix.data).unwrap();
    let found = Solver::new(2, k, &gram).unwrap().quantize(&matrix, target);
    let [found, nearest] = [found, nearest].map(|w| output_error(&restored(&w, n, k), &matrix.data, &x, k));
    assert!(found < 0.5 * nearest, "{found} against {nearest}");
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let mut rng = StdRng::seed_from_u64(3);
    let (_, gram) = inputs(&mut rng, 300, 160);
    let matrix = Matrix { rows: 7, cols: 160, data: noise(&mut rng, 7 * 160) };
    let [one, three] = [1, 3].map(|threads| Solver::new(threads, 160, &gram).unwrap().quantize(&matrix, TARGET));
    assert_eq!(one, three);
}

#[test]
fn inputs_that_never_carry_anything_and_a_text_too_short_are_no_errors() {
    let mut rng = StdRng::seed_from_u64(4);
    // Five rows say little about 64 inputs; two inputs are dead.
    let (mut x, _) = inputs(&mut rng, 5, 64);
    for row in x.chunks_exact_mut(64) {
        (row[3], row[40]) = (0.0, 0.0);
    }
    let mut gram = vec![0.0f32; 64 * 64];
    for row in x.chunks_exact(64) {
        for (at, slot) in gram.iter_mut().enumerate() {
            *slot += row[at / 64] * row[at % 64];
        }
    }
    let matrix = Matrix { rows: 3, cols: 64, data: noise(&mut rng, 3 * 64) };
    let weight = Solver::new(1, 64, &gram).unwrap().quantize(&matrix, TARGET);
    assert!(restored(&weight, 3, 64).iter().all(|v| v.is_finite() && v.abs() < 4.0));
}
/// A symmetric matrix of ones on its diagonal whose smallest eigenvalue is `1 - share`: below zero it is the Gram matrix
/// of no inputs, as rounding noise makes of inputs that almost cancel.
fn opposed(k: usize, share: f32) -> Vec<f32> {
    (0..k * k).map(|at| if at / k == at % k { 1.0 } else { -share / (k - 1) as f32 }).collect()
}

/// The matrix with `damping` on its diagonal of ones.
fn damped(gram: &[f32], k: usize, damping: f64) -> Vec<f64> {
    gram.iter().enumerate().map(|(at, h)| f64::from(*h) + if at / k == at % k { damping } else { 0.0 }).collect()
}

#[test]
fn a_gram_matrix_that_is_not_positive_is_damped_more_until_it_is() {
    let k = 32;
    // An eigenvalue of -0.05: the paper's 1 % is too little, ten times as much is enough.
    let gram = opposed(k, 1.05);
    assert!(dense::inverse_cholesky_upper(1, k, &mut damped(&gram, k, DAMPING)).is_err());
    let solver = Solver::new(1, k, &gram).unwrap();
    assert!(solver.order.is_sorted(), "equal columns keep their order");
    // U^T U is the inverse of what was factored.
    let expected = invert(&damped(&gram, k, 10.0 * DAMPING), k);
    for (at, expected) in expected.iter().enumerate() {
        let (r, c) = (at / k, at % k);
        let found: f64 =
            (0..k).map(|i| f64::from(solver.factor[i * k + r]) * f64::from(solver.factor[i * k + c])).sum();
        assert!((found - expected).abs() < 1e-4, "({r}, {c}): {found} instead of {expected}");
    }
    let mut rng = StdRng::seed_from_u64(5);
    let matrix = Matrix { rows: 3, cols: k, data: noise(&mut rng, 3 * k) };
    let weight = solver.quantize(&matrix, TARGET);
    assert!(restored(&weight, 3, k).iter().all(|v| v.is_finite() && v.abs() < 4.0));
}

#[test]
fn a_gram_matrix_that_no_damping_saves_asks_for_more_text() {
    let error = Solver::new(1, 32, &opposed(32, 12.0)).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("undetermined: give more text"), "{error}");
}
