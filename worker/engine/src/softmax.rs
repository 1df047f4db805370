//! Sums over the logits of a vocabulary, in lanes, so that they vectorize.

/// Lanes of a sum.
const LANES: usize = 16;

/// `e^x` for `x <= 0`, relative error below 1e-6 near zero: `2^(x log2 e)`, the fraction by a polynomial. Free of branches
/// and calls, so that a loop over the vocabulary vectorizes.
#[inline]
pub(crate) fn exp(x: f32) -> f32 {
    let t = (x * std::f32::consts::LOG2_E).max(-126.0);
    // Adding 1.5 x 2^23 rounds to the nearest integer, which then stands in the low bits.
    let shifted = t + 12_582_912.0;
    let f = (t - (shifted - 12_582_912.0)) * std::f32::consts::LN_2;
    let p = 1.0 + f * (1.0 + f * (0.5 + f * (1.0 / 6.0 + f * (1.0 / 24.0 + f * (1.0 / 120.0 + f * (1.0 / 720.0))))));
    p * f32::from_bits(((shifted.to_bits() as i32).wrapping_sub(0x4b40_0000).wrapping_add(127) << 23) as u32)
}

/// The largest value; NaN is passed over.
pub(crate) fn max(values: &[f32]) -> f32 {
    let mut best = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (best, value) in best.iter_mut().zip(chunk) {
            *best = if *value > *best { *value } else { *best };
        }
    }
    best.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| a.max(*b))
}

/// `ln(sum(e^x))`.
pub(crate) fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = max(logits);
    f64::from(max) + sum(logits.len(), |i| exp(logits[i] - max)).ln()
}

/// KL(p || q) in nats, of two rows of logits with their [`log_sum_exp`].
pub(crate) fn divergence(p: &[f32], p_normalizer: f64, q: &[f32], q_normalizer: f64) -> f64 {
    let count = p.len().min(q.len());
    let (p, q, normalizer) = (&p[..count], &q[..count], p_normalizer as f32);
    // sum p (ln p - ln q): the normalizers are constants, since the probabilities add up to one.
    sum(count, |i| exp(p[i] - normalizer) * (p[i] - q[i])) - (p_normalizer - q_normalizer)
}

/// A sum of FP32 terms in lanes, whose partial sums are added in FP64.
#[inline]
fn sum(count: usize, term: impl Fn(usize) -> f32) -> f64 {
    let mut total = 0.0;
    for start in (0..count).step_by(LANES * 64) {
        let mut lanes = [0.0f32; LANES];
        let end = count.min(start + LANES * 64);
        let whole = (end - start) / LANES * LANES;
        for block in (start..start + whole).step_by(LANES) {
            for (lane, sum) in lanes.iter_mut().enumerate() {
                *sum += term(block + lane);
            }
        }
        total += lanes.iter().copied().map(f64::from).sum::<f64>();
        total += (start + whole..end).map(|i| f64::from(term(i))).sum::<f64>();
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(seed: u32) -> Vec<f32> {
        (0..5003u32).map(|i| ((i * 7919 + seed) % 3001) as f32 / 150.0 - 10.0).collect()
    }

    #[test]
    fn exp_is_within_its_error() {
        for i in 0..=2700 {
            let x = -(i as f32) / 100.0;
            let expected = f64::from(x).exp();
            assert!((f64::from(exp(x)) - expected).abs() / expected < 3e-6, "{x}");
        }
    }

    #[test]
    fn sums_are_those_in_double_precision() {
        let (p, q) = (logits(1), logits(77));
        let plain = |l: &[f32]| l.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
        assert!((log_sum_exp(&p) - plain(&p)).abs() < 1e-6);
        let (zp, zq) = (plain(&p), plain(&q));
        let pairs = p.iter().zip(&q).map(|(p, q)| (f64::from(*p) - zp, f64::from(*q) - zq));
        let expected: f64 = pairs.map(|(p, q)| p.exp() * (p - q)).sum();
        assert!((divergence(&p, zp, &q, zq) - expected).abs() < 1e-5 * expected.max(1.0));
        assert!(divergence(&p, zp, &p, zp).abs() < 1e-12);
        assert!((max(&p) - p.iter().copied().fold(f32::MIN, f32::max)).abs() < f32::EPSILON);
    }
}
