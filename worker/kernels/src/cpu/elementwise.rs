//! Norms, rotation and the gated activation, row by row. Portable code, compiled for each instruction set.

use super::isa::per_isa;

/// `e^x` for `x <= 88`, relative error below 2e-7: `2^(x log2 e)` with the fraction by a polynomial of degree 6
/// (Taylor of `2^f` on [-1/2, 1/2]). Branch-free, so that loops over it vectorize. Negative infinity gives 0.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let t = (x * std::f32::consts::LOG2_E).max(-127.0);
    // Adding 1.5 x 2^23 rounds to the nearest integer, which then stands in the low bits.
    let shifted = t + 12_582_912.0;
    let f = (t - (shifted - 12_582_912.0)) * std::f32::consts::LN_2;
    let p = 1.0 + f * (1.0 + f * (0.5 + f * (1.0 / 6.0 + f * (1.0 / 24.0 + f * (1.0 / 120.0 + f * (1.0 / 720.0))))));
    let power = f32::from_bits(((shifted.to_bits() as i32).wrapping_sub(0x4b40_0000).wrapping_add(127) << 23) as u32);
    p * power
}

/// `x * sigmoid(x)` (SiLU).
#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp((-x).min(88.0)))
}

per_isa! {
    /// `out = x / sqrt(mean(x^2) + epsilon) * gain` (RMSNorm, Zhang and Sennrich 2019).
    ///
    /// # Safety
    /// The instruction set is available.
    pub(super) unsafe fn rms_norm(x: &[f32], gain: &[f32], epsilon: f32, out: &mut [f32]) = rms_norm_row;
}

per_isa! {
    /// `out[i] = silu(x[i]) * x[width + i]`.
    ///
    /// # Safety
    /// The instruction set is available.
    pub(super) unsafe fn gated_silu(x: &[f32], out: &mut [f32]) = gated_silu_row;
}

#[inline(always)]
fn rms_norm_row(x: &[f32], gain: &[f32], epsilon: f32, out: &mut [f32]) {
    let factor = rms_factor(x, epsilon);
    for ((o, x), g) in out.iter_mut().zip(x).zip(gain) {
        *o = x * factor * g;
    }
}

/// [`rms_norm`] in place, of one head.
#[inline(always)]
pub(super) fn rms_norm_inplace(x: &mut [f32], gain: &[f32], epsilon: f32) {
    let factor = rms_factor(x, epsilon);
    for (x, g) in x.iter_mut().zip(gain) {
        *x *= factor * g;
    }
}

#[inline(always)]
fn rms_factor(x: &[f32], epsilon: f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let chunks = x.chunks_exact(16);
    let mut sum: f32 = chunks.remainder().iter().map(|v| v * v).sum();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += v * v;
        }
    }
    sum += lanes.iter().sum::<f32>();
    1.0 / (sum / x.len() as f32 + epsilon).sqrt()
}

/// Rotates one head by `(cos, sin)` of each pair: `(x[i], x[i + half])`.
#[inline(always)]
pub(super) fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (a, b) = head.split_at_mut(cos.len());
    for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

#[inline(always)]
fn gated_silu_row(x: &[f32], out: &mut [f32]) {
    let (gate, up) = x.split_at(out.len());
    for ((o, g), u) in out.iter_mut().zip(gate).zip(up) {
        *o = silu(*g) * u;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_its_error() {
        for i in -8700..=8800 {
            let x = i as f32 / 100.0;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            // The product x log2 e carries the rounding of x's magnitude.
            assert!(error < 2e-7 + 1e-7 * f64::from(x.abs()), "{x}: {error}");
        }
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
        assert!((exp(0.0) - 1.0).abs() < f32::EPSILON);
    }

    #[test]
    fn silu_has_its_limits() {
        assert!(silu(-100.0).abs() < 1e-30);
        assert!((silu(50.0) - 50.0).abs() < 1e-4);
        assert!((silu(1.0) - 0.731_058_6).abs() < 1e-6);
    }

    #[test]
    fn rotation_keeps_length_and_position_zero_changes_nothing() {
        let mut head = [3.0, 0.0, 4.0, 1.0];
        rotate(&mut head, &[1.0, 1.0], &[0.0, 0.0]);
        assert_eq!(head, [3.0, 0.0, 4.0, 1.0]);
        rotate(&mut head, &[0.6, 0.0], &[0.8, 1.0]);
        assert!((head[0] * head[0] + head[2] * head[2] - 25.0).abs() < 1e-4);
        assert!((head[1] + 1.0).abs() < 1e-6 && head[3].abs() < 1e-6);
    }
}
