//! Every quantizer against the plain definition of its format, written without regard to speed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

use half::f16;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rstest::rstest;

use super::*;
use crate::checkpoint::ggml::dequantize_row;

/// Columns of a test row: four super-blocks.
const COLS: usize = 1024;

/// Standard normal numbers by Box and Muller.
fn gaussian(rng: &mut ChaCha8Rng) -> f32 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    ((-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
}

/// Rows as weights are: `tail` 0 is Gaussian; above, the cube of a Gaussian is mixed in.
fn row(seed: u64, tail: f32) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..COLS)
        .map(|_| {
            let g = gaussian(&mut rng);
            0.02 * (g + tail * g * g * g)
        })
        .collect()
}

fn ours(dtype: SourceDtype, x: &[f32], importance: Option<&[f32]>) -> Vec<f32> {
    let mut bytes = vec![0; dtype.row_bytes(x.len()).unwrap()];
    quantize_row(dtype, x, importance, &mut bytes).unwrap();
    let mut y = vec![0.0; x.len()];
    dequantize_row(dtype, &bytes, &mut y).unwrap();
    y
}

fn half(v: f32) -> f32 {
    f16::from_f32(v).to_f32()
}

/// Rounds to the grid `d q`, `q` in `low..=high`.
fn grid(v: f32, d: f32, low: f32, high: f32) -> f32 {
    if d == 0.0 { 0.0 } else { d * (v / d).round().clamp(low, high) }
}

fn peak(x: &[f32]) -> f32 {
    x.iter().copied().fold(0.0, |peak: f32, v| if v.abs() > peak.abs() { v } else { peak })
}

/// Round to nearest with the format's definition: the range of each group sets its scale.
fn plain(dtype: SourceDtype, x: &[f32]) -> Vec<f32> {
    x.chunks(dtype.block_elements()).flat_map(|block| plain_block(dtype, block)).collect()
}

fn plain_block(dtype: SourceDtype, x: &[f32]) -> Vec<f32> {
    let (low, high) = x.iter().fold((x[0], x[0]), |(low, high), v| (low.min(*v), high.max(*v)));
    let affine = |top: f32| {
        let (d, m) = (half((high - low) / top), half(low));
        x.iter().map(|v| grid(v - m, d, 0.0, top) + m).collect()
    };
    let symmetric = |top: f32| {
        let d = half(peak(x) / -top);
        x.iter().map(|v| grid(*v, d, -top, top - 1.0)).collect()
    };
    match dtype {
        SourceDtype::F32 => x.to_vec(),
        SourceDtype::F16 => x.iter().map(|v| half(*v)).collect(),
        SourceDtype::Bf16 => x.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect(),
        SourceDtype::Q8_0 => {
            let d = half(peak(x).abs() / 127.0);
            x.iter().map(|v| grid(*v, d, -127.0, 127.0)).collect()
        }
        SourceDtype::Q4_0 => symmetric(8.0),
        SourceDtype::Q5_0 => symmetric(16.0),
        SourceDtype::Q4_1 => affine(15.0),
        SourceDtype::Q5_1 => affine(31.0),
        SourceDtype::Q4_K => plain_affine(x, 15.0),
        SourceDtype::Q5_K => plain_affine(x, 31.0),
        SourceDtype::Q6_K => {
            let scales: Vec<f32> = x.chunks(16).map(|group| peak(group) / -32.0).collect();
            let d = half(peak(&scales) / -128.0);
            let group = |(group, scale): (&[f32], &f32)| {
                let scale = grid(*scale, d, -128.0, 127.0);
                group.iter().map(|v| grid(*v, scale, -32.0, 31.0)).collect::<Vec<_>>()
            };
            x.chunks(16).zip(&scales).flat_map(group).collect()
        }
    }
}

fn plain_affine(x: &[f32], top: f32) -> Vec<f32> {
    let range = |group: &[f32]| group.iter().fold((0.0f32, 0.0f32), |(low, high), v| (low.min(*v), high.max(*v)));
    let ranges: Vec<(f32, f32)> = x.chunks(32).map(range).collect();
    let d = half(ranges.iter().fold(0.0f32, |most, (low, high)| most.max((high - low) / top)) / 63.0);
    let dmin = half(ranges.iter().fold(0.0f32, |most, (low, _)| most.max(-low)) / 63.0);
    let group = |(group, (low, high)): (&[f32], &(f32, f32))| {
        let (scale, min) = (grid((high - low) / top, d, 0.0, 63.0), grid(-low, dmin, 0.0, 63.0));
        group.iter().map(|v| grid(v + min, scale, 0.0, top) - min).collect::<Vec<_>>()
    };
    x.chunks(32).zip(&ranges).flat_map(group).collect()
}

fn rmse(x: &[f32], y: &[f32]) -> f64 {
    let square: f64 = x.iter().zip(y).map(|(x, y)| f64::from(x - y).powi(2)).sum();
    (square / x.len() as f64).sqrt()
}

/// The weighted squared error that the searches lower, by its definition: `rms + |x|` of the group, or
/// `importance sqrt(sigma^2 + x^2)`, `sigma` the root of the mean square of the row (of the block in K formats, twice that
/// mean in those with a minimum). Formats that follow their definition count every error alike.
fn costs(dtype: SourceDtype, x: &[f32], y: &[f32], importance: Option<&[f32]>) -> Vec<f64> {
    let mean_square = |x: &[f32]| x.iter().map(|v| f64::from(v * v)).sum::<f64>() / x.len() as f64;
    let group = if dtype == SourceDtype::Q6_K { 16 } else { 32 };
    let (block, factor) = match dtype {
        SourceDtype::Q4_K | SourceDtype::Q5_K => (256, 2.0),
        SourceDtype::Q6_K => (256, 1.0),
        _ => (x.len(), 1.0),
    };
    let cost = |(i, (x_i, y_i)): (usize, (&f32, &f32))| {
        let (square, error) = (f64::from(x_i * x_i), f64::from(x_i - y_i).powi(2));
        let weight = match importance {
            Some(importance) => {
                let block = &x[i / block * block..(i / block + 1) * block];
                f64::from(importance[i]) * (factor * mean_square(block) + square).sqrt()
            }
            None if matches!(dtype, SourceDtype::Q8_0 | SourceDtype::Q4_0 | SourceDtype::Q4_1) => 1.0,
            None => mean_square(&x[i / group * group..(i / group + 1) * group]).sqrt() + square.sqrt(),
        };
        weight * error
    };
    x.iter().zip(y).enumerate().map(cost).collect()
}

const BLOCKED: [SourceDtype; 8] = [
    SourceDtype::Q8_0,
    SourceDtype::Q4_0,
    SourceDtype::Q4_1,
    SourceDtype::Q5_0,
    SourceDtype::Q5_1,
    SourceDtype::Q4_K,
    SourceDtype::Q5_K,
    SourceDtype::Q6_K,
];

/// Importances as calibrations give them: most columns alike, a few a hundred times as strong.
fn importance(seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..COLS).map(|_| if rng.random_bool(0.03) { 100.0 } else { gaussian(&mut rng).abs() + 0.01 }).collect()
}

#[test]
fn no_block_is_worse_than_rounding_to_nearest() {
    for dtype in BLOCKED {
        let n = dtype.block_elements();
        for seed in 0..40 {
            let (x, imp) = (row(seed, if seed % 2 == 0 { 0.0 } else { 0.4 }), importance(seed));
            for imp in [None, Some(imp.as_slice())] {
                let ours = costs(dtype, &x, &ours(dtype, &x, imp), imp);
                let plain = costs(dtype, &x, &plain(dtype, &x), imp);
                for (block, (ours, plain)) in ours.chunks(n).zip(plain.chunks(n)).enumerate() {
                    let (ours, plain): (f64, f64) = (ours.iter().sum(), plain.iter().sum());
                    // Errors are compared in FP32 as the small difference of sums.
                    assert!(ours <= plain * 1.001, "{} seed {seed} block {block}: {ours} {plain}", dtype.name());
                }
            }
        }
    }
}

/// Values that a format holds exactly come back bit for bit.
#[test]
fn exact_grids_are_reproduced() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for dtype in BLOCKED {
        for _ in 0..50 {
            let x: Vec<f32> = (0..COLS / dtype.block_elements()).flat_map(|_| exact_block(dtype, &mut rng)).collect();
            for imp in [None, Some(importance(3))] {
                let y = ours(dtype, &x, imp.as_deref());
                let same = x.iter().zip(&y).filter(|(x, y)| (**x - **y).abs() <= 0.0).count();
                assert_eq!(same, COLS, "{} {}", dtype.name(), imp.is_some());
            }
        }
    }
}

/// A block whose groups use both ends of the codes and whose largest scale uses all its bits.
fn exact_block(dtype: SourceDtype, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let (d, m) = (half(rng.random_range(0.001..0.01)), half(rng.random_range(-0.05..0.05)));
    let codes = |rng: &mut ChaCha8Rng, n: usize, low: i32, high: i32| -> Vec<f32> {
        let mut codes: Vec<f32> = (0..n).map(|_| rng.random_range(low..=high) as f32).collect();
        (codes[3], codes[n - 2]) = (low as f32, high as f32);
        codes
    };
    let plain = |codes: Vec<f32>, m: f32| codes.into_iter().map(|q| d * q + m).collect();
    match dtype {
        SourceDtype::Q8_0 => plain(codes(rng, 32, -127, 127), 0.0),
        SourceDtype::Q4_0 => plain(codes(rng, 32, -8, 7), 0.0),
        SourceDtype::Q5_0 => plain(codes(rng, 32, -16, 15), 0.0),
        SourceDtype::Q4_1 => plain(codes(rng, 32, 0, 15), m),
        SourceDtype::Q5_1 => plain(codes(rng, 32, 0, 31), m),
        SourceDtype::Q6_K => (0..16)
            .flat_map(|g| {
                let scale = if g == 5 { -128.0 } else { rng.random_range(20..=127) as f32 };
                codes(rng, 16, -32, 31).into_iter().map(move |q| d * scale * q)
            })
            .collect(),
        _ => (0..8)
            .flat_map(|g| {
                let top = if dtype == SourceDtype::Q4_K { 15 } else { 31 };
                let scale = if g == 2 { 63.0 } else { rng.random_range(20..=63) as f32 };
                let min = if g == 6 { 63.0 } else { rng.random_range(0..=63) as f32 };
                codes(rng, 32, 0, top).into_iter().map(move |q| d * scale * q - 2.0 * d * min)
            })
            .collect(),
    }
}

/// Root of the mean square error relative to that of the weights, measured over 64 rows: Gaussian, and with heavy tails.
/// With importance equal for all columns in the second pair.
#[rstest]
#[case(SourceDtype::Q8_0, [0.0054, 0.0081], [0.0049, 0.0077])]
#[case(SourceDtype::Q4_0, [0.0865, 0.127], [0.0822, 0.1245])]
#[case(SourceDtype::Q4_1, [0.0787, 0.1027], [0.0705, 0.0930])]
#[case(SourceDtype::Q5_0, [0.0405, 0.0624], [0.0405, 0.0625])]
#[case(SourceDtype::Q5_1, [0.0341, 0.0450], [0.0340, 0.0450])]
#[case(SourceDtype::Q4_K, [0.0711, 0.0940], [0.0708, 0.0936])]
#[case(SourceDtype::Q5_K, [0.0350, 0.0463], [0.0348, 0.0462])]
#[case(SourceDtype::Q6_K, [0.0171, 0.0244], [0.0171, 0.0244])]
fn errors_stay_within_what_was_measured(#[case] dtype: SourceDtype, #[case] without: [f64; 2], #[case] with: [f64; 2]) {
    let even = vec![1.0; COLS];
    for (limits, imp) in [(without, None), (with, Some(even.as_slice()))] {
        for (limit, tail) in limits.into_iter().zip([0.0, 0.3]) {
            let (mut error, mut all) = (0.0, 0.0);
            for seed in 0..64 {
                let x = row(seed, tail);
                error += rmse(&x, &ours(dtype, &x, imp)).powi(2);
                all += rmse(&x, &[0.0; COLS]).powi(2);
            }
            let error = (error / all).sqrt();
            println!("{} tail {tail} importance {}: {error:.5}", dtype.name(), imp.is_some());
            assert!(error < limit, "{} tail {tail} importance {}: {error:.5}", dtype.name(), imp.is_some());
        }
    }
}

#[test]
fn blocks_without_range_and_extreme_ones_are_sound() {
    let mut outlier = row(1, 0.0);
    outlier[77] = -60_000.0;
    let tiny: Vec<f32> = row(2, 0.0).iter().map(|v| v * 1e-30).collect();
    let large: Vec<f32> = row(3, 0.0).iter().map(|v| v * 5e5).collect();
    let none = vec![0.0; COLS];
    for dtype in BLOCKED {
        for imp in [None, Some(importance(4)), Some(none.clone())] {
            let imp = imp.as_deref();
            assert_eq!(ours(dtype, &none, imp), none, "{} of zeros", dtype.name());
            assert!(ours(dtype, &tiny, imp).iter().all(|y| y.abs() < 1e-6), "{} of tiny", dtype.name());
            for x in [&outlier, &large] {
                let peak = peak(x).abs();
                let y = ours(dtype, x, imp);
                let bound = 0.15 * peak;
                assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() <= bound), "{} {peak}", dtype.name());
            }
            for constant in [0.5f32, -0.5] {
                let y = ours(dtype, &[constant; COLS], imp);
                assert!(y.iter().all(|y| (y - constant).abs() < 0.02), "{} of {constant}: {}", dtype.name(), y[0]);
            }
        }
    }
}

#[test]
fn plain_numbers_are_rounded_to_nearest() {
    let x = row(9, 0.3);
    for dtype in [SourceDtype::F32, SourceDtype::F16, SourceDtype::Bf16] {
        assert_eq!(ours(dtype, &x, None), plain(dtype, &x), "{}", dtype.name());
    }
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    for dtype in BLOCKED {
        let (n, bytes) = (dtype.block_elements(), dtype.block_bytes());
        let x = vec![0.1; n];
        assert_eq!(quantize_row(dtype, &x, Some(&x), &mut vec![0; bytes]), Some(()));
        assert_eq!(quantize_row(dtype, &x[1..], None, &mut vec![0; bytes]), None);
        assert_eq!(quantize_row(dtype, &x, None, &mut vec![0; bytes - 1]), None);
        assert_eq!(quantize_row(dtype, &x, Some(&x[1..]), &mut vec![0; bytes]), None);
    }
}
