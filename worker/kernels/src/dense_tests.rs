use super::*;

/// Reproducible values in -1..1.
fn noise(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect()
}

fn as_f32(values: &[f64]) -> Vec<f32> {
    values.iter().map(|v| *v as f32).collect()
}

/// `X^T X + damping` of `2 k` rows with columns of very different size, as activations have them.
fn spd(k: usize) -> Vec<f64> {
    let mut x = noise(2 * k * k, 5);
    for row in x.chunks_exact_mut(k) {
        for (j, v) in row.iter_mut().enumerate() {
            *v *= if j % 97 == 3 { 300.0 } else { 1.0 };
        }
    }
    let mut h = vec![0.0; k * k];
    for row in x.chunks_exact(k) {
        for i in 0..k {
            for j in 0..k {
                h[i * k + j] += row[i] * row[j];
            }
        }
    }
    let damping = 0.01 * (0..k).map(|i| h[i * k + i]).sum::<f64>() / k as f64;
    for i in 0..k {
        h[i * k + i] += damping;
    }
    h
}

fn inverse_factor(isa: Isa, threads: usize, k: usize, h: &[f64]) -> Vec<f64> {
    let mut u = h.to_vec();
    let mut pool = pool(threads);
    upper_factor(isa, &mut pool, k, &mut u).unwrap();
    invert_upper(isa, &mut pool, k, &mut u);
    u
}

#[test]
fn a_subtracted_product_is_that_of_plain_loops_and_leaves_the_rest() {
    let shapes = [(1, 1, 1), (7, 5, 3), (33, 17, 64), (12, 32, 256), (100, 70, 300), (13, 800, 513), (200, 3, 128)];
    for isa in Isa::available() {
        for (m, n, p) in shapes {
            let (lda, ldb, ldc) = (p + 3, n + 1, n + 5);
            let (a, b) = (as_f32(&noise(m * lda, 1)), as_f32(&noise(p * ldb, 2)));
            let before = as_f32(&noise(m * ldc, 3));
            let found = |threads: usize| {
                let mut c = before.clone();
                let (a, b) = (View::rows(&a[..], lda), View::rows(&b[..], ldb));
                let how = (Update::Subtract, Region::All);
                product(isa, &mut pool(threads), [m, n, p], a, b, how, &mut c, ldc);
                c
            };
            let c = found(2);
            assert_eq!(c, found(1), "{isa:?}: the result depends on the threads");
            for i in 0..m {
                for j in 0..ldc {
                    let (now, old) = (f64::from(c[i * ldc + j]), f64::from(before[i * ldc + j]));
                    let terms = (0..p).map(|l| f64::from(a[i * lda + l]) * f64::from(b[l * ldb + j.min(n - 1)]));
                    let expected = if j < n { old - terms.sum::<f64>() } else { old };
                    // FP32 sums of p terms below one: far below p / 2^24, their errors being of either sign.
                    let budget = if j < n { (p as f64 + 1.0) / 16_777_216.0 } else { 0.0 };
                    assert!((now - expected).abs() <= budget, "{isa:?} {m}x{n}x{p} [{i}, {j}]: {now} {expected}");
                }
            }
        }
    }
}

#[test]
fn the_detected_instruction_set_is_behind_the_public_product() {
    let mut c = [1.0, 2.0, 3.0, 4.0];
    subtract_product(2, &mut c, 2, &[1.0, 2.0], 1, &[10.0, 20.0], 2, 2, 2, 1);
    assert_eq!(c, [-9.0, -18.0, -17.0, -36.0]);
}

/// `U H U^T = 1`: the definition of U without an inverse.
#[test]
fn the_factor_of_the_inverse_turns_h_into_the_identity() {
    for k in [1, 2, 7, 33, 64, 65, 200] {
        let h = spd(k);
        for isa in Isa::available() {
            let u = inverse_factor(isa, 2, k, &h);
            assert_eq!(u, inverse_factor(isa, 1, k, &h), "{isa:?}: the result depends on the threads");
            let mut uh = vec![0.0; k * k];
            for i in 0..k {
                for l in i..k {
                    for j in 0..k {
                        uh[i * k + j] += u[i * k + l] * h[l * k + j];
                    }
                }
            }
            for i in 0..k {
                assert!(u[i * k + i] > 0.0 && u[i * k..][..i].iter().all(|v| *v == 0.0), "{isa:?}: upper");
                for j in 0..k {
                    let found: f64 = (j..k).map(|l| uh[i * k + l] * u[j * k + l]).sum();
                    let expected = f64::from(u8::from(i == j));
                    assert!((found - expected).abs() < 1e-10, "{isa:?} k {k} [{i}, {j}]: {found}");
                }
            }
        }
    }
}

/// The same with triple loops: Cholesky, inverse, Cholesky of the inverse, as GPTQ writes it.
#[test]
fn the_factor_is_the_published_one() {
    let k = 96;
    let h = spd(k);
    let lower = |h: &[f64]| {
        let mut l = vec![0.0; k * k];
        for i in 0..k {
            for j in 0..=i {
                let rest = h[i * k + j] - (0..j).map(|x| l[i * k + x] * l[j * k + x]).sum::<f64>();
                l[i * k + j] = if i == j { rest.sqrt() } else { rest / l[j * k + j] };
            }
        }
        l
    };
    let l = lower(&h);
    let mut inverse = vec![0.0; k * k];
    for column in 0..k {
        // L L^T x = e.
        let mut x = vec![0.0; k];
        for i in 0..k {
            let rest = f64::from(u8::from(i == column)) - (0..i).map(|j| l[i * k + j] * x[j]).sum::<f64>();
            x[i] = rest / l[i * k + i];
        }
        for i in (0..k).rev() {
            x[i] = (x[i] - (i + 1..k).map(|j| l[j * k + i] * x[j]).sum::<f64>()) / l[i * k + i];
        }
        for i in 0..k {
            inverse[i * k + column] = x[i];
        }
    }
    let expected = lower(&inverse);
    let mut found = h;
    inverse_cholesky_upper(2, k, &mut found).unwrap();
    let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    for i in 0..k {
        for j in 0..k {
            let error = (found[i * k + j] - expected[j * k + i]).abs();
            assert!(error < 1e-10 * largest, "[{i}, {j}]: {error}");
        }
    }
}

#[test]
fn a_matrix_that_is_not_positive_definite_is_refused_with_its_column() {
    for k in [3, 150] {
        for bad in [0, 1, k - 1] {
            for value in [-1.0, 0.0, f64::NAN, f64::INFINITY] {
                let mut h = vec![0.0; k * k];
                for i in 0..k {
                    h[i * k + i] = if i == bad { value } else { 2.0 };
                }
                assert_eq!(inverse_cholesky_upper(1, k, &mut h), Err(bad), "{k} {value}");
            }
        }
    }
}
