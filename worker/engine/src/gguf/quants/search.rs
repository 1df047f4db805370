//! The searches that all block formats share: the scale, or scale and minimum, that fit a group of weights best.
//!
//! A group `x` with weights `w` is approximated by `s q + m` with integer codes `q`. For fixed codes the weighted squared
//! error is a quadratic form in `(s, m)` whose coefficients are a few sums over the group; for a fixed `(s, m)` the best
//! codes are the nearest ones. Both searches try codes of several candidate scales, solve each for its best `(s, m)`, and
//! then alternate the two steps from the best candidate (Lloyd's algorithm, 1957/1982), which can only lower the error.
//!
//! All numbers are kept in FP32 arrays of fixed length and summed in lanes, which compilers turn into vector code without
//! changing a result between machines.

/// Partial sums; two registers of four on the oldest x86-64.
const LANES: usize = 8;
/// Alternations after the best candidate; more change nothing that can be measured.
const ALTERNATIONS: usize = 3;
/// A group whose values differ by less is constant: FP16 scales cannot resolve it.
const NO_RANGE: f32 = 1e-12;

/// Nearest integer, ties to even, for `|v| < 2^22`: adding 1.5 * 2^23 leaves no bits for the fraction.
#[inline]
fn nearest(v: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (v + SHIFT) - SHIFT
}

/// `v` in `low..=high`, rounded. Written as two selections, which are one instruction each.
#[inline]
pub(super) fn code(v: f32, low: f32, high: f32) -> f32 {
    let v = if v > low { v } else { low };
    nearest(if v < high { v } else { high })
}

/// Sum of `f(i)` over `0..N` for three terms at once.
#[inline]
fn sums<const N: usize>(f: impl Fn(usize) -> [f32; 3]) -> [f32; 3] {
    let mut lanes = [[0.0f32; LANES]; 3];
    for start in (0..N).step_by(LANES) {
        for lane in 0..LANES {
            let terms = f(start + lane);
            for (sum, term) in lanes.iter_mut().zip(terms) {
                sum[lane] += term;
            }
        }
    }
    lanes.map(|lane| lane.iter().sum())
}

/// `sqrt(mean x^2)` of a group.
pub(super) fn rms<const N: usize>(x: &[f32; N]) -> f32 {
    let [square, ..] = sums::<N>(|i| [x[i] * x[i], 0.0, 0.0]);
    (square / N as f32).sqrt()
}

/// The value of the largest magnitude.
pub(super) fn peak<const N: usize>(x: &[f32; N]) -> f32 {
    x.iter().fold(0.0, |peak: f32, v| if v.abs() > peak.abs() { *v } else { peak })
}

/// What an error of each element costs, up to a common factor.
///
/// With the importance of the columns (the mean of the squares of their inputs) it is `importance * sqrt(sigma^2 + x^2)`,
/// else `rms + |x|`: of two elements the larger one matters more, but none is free. Those are the weights that the k-quants
/// of ggml were published with. `sigma` belongs to the block or row that the format asks for.
pub(super) fn weights<const N: usize>(x: &[f32; N], importance: Option<&[f32; N]>, sigma: f32) -> [f32; N] {
    let mut w = [1.0; N];
    match importance {
        // Columns that saw no input at all say nothing: they are weighed as if nothing were known.
        Some(importance) if sigma > 0.0 && importance.iter().any(|v| *v > 0.0) => {
            let scale = 1.0 / sigma;
            for i in 0..N {
                let relative = x[i] * scale;
                w[i] = importance[i] * (1.0 + relative * relative).sqrt();
            }
        }
        _ => {
            let rms = rms(x);
            if rms > 0.0 {
                let scale = 1.0 / rms;
                for i in 0..N {
                    w[i] = 1.0 + x[i].abs() * scale;
                }
            }
        }
    }
    w
}

/// The weighted squared error of values `y`, term by term: exact where [`Codes::error`], the small difference of large sums,
/// has lost digits.
pub(super) fn residual<const N: usize>(x: &[f32; N], w: &[f32; N], y: impl Fn(f32) -> f32) -> f32 {
    let [sum, ..] = sums::<N>(|i| {
        let off = x[i] - y(x[i]);
        [w[i] * off * off, 0.0, 0.0]
    });
    sum
}

/// Sums over a group that do not depend on its codes. Values are taken relative to `origin`, which keeps the digits that
/// the error is the small rest of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    origin: f32,
    range: f32,
    weight: f32,
    first: f32,
    second: f32,
}

/// Sums of `w q`, `w q^2` and `w q x` over a group, `x` relative to the group's origin.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Codes {
    pub(super) first: f32,
    pub(super) second: f32,
    pub(super) cross: f32,
}

impl Codes {
    /// The best scale when the minimum is zero.
    pub(super) fn scale(self) -> f32 {
        if self.second > 0.0 { self.cross / self.second } else { 0.0 }
    }

    /// How much of `sum w x^2` the codes explain with [`Self::scale`]: what is left is the error.
    pub(super) fn gain(self) -> f32 {
        self.scale() * self.cross
    }

    /// The weighted squared error of `scale q`, less `sum w x^2`.
    pub(super) fn error(self, scale: f32) -> f32 {
        scale * (scale * self.second - 2.0 * self.cross)
    }
}

/// A scale and minimum (the value of code 0) with their codes' sums and the weighted squared error.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fit {
    pub(super) scale: f32,
    pub(super) min: f32,
    pub(super) codes: Codes,
    pub(super) error: f32,
}

impl Group {
    /// A group for [`Self::affine`]. `zero` puts zero into its range: for formats whose minimum is never positive.
    pub(super) fn new<const N: usize>(x: &[f32; N], w: &[f32; N], zero: bool) -> Self {
        let (mut low, mut high) = if zero { (0.0f32, 0.0f32) } else { (x[0], x[0]) };
        for &v in x {
            low = low.min(v);
            high = high.max(v);
        }
        let [weight, first, second] = sums::<N>(|i| {
            let v = x[i] - low;
            [w[i], w[i] * v, w[i] * v * v]
        });
        Self { origin: low, range: high - low, weight, first, second }
    }

    /// Largest less smallest value.
    pub(super) fn range(&self) -> f32 {
        self.range
    }

    /// The smallest value, or zero where the format puts zero into the range.
    pub(super) fn low(&self) -> f32 {
        self.origin
    }

    /// Total weight.
    pub(super) fn weight(&self) -> f32 {
        self.weight
    }

    /// `sum w x`, absolute.
    pub(super) fn first(&self) -> f32 {
        self.first + self.origin * self.weight
    }

    /// `sum w q x`, absolute.
    pub(super) fn cross(&self, codes: Codes) -> f32 {
        codes.cross + self.origin * codes.first
    }

    /// The weighted squared error of `scale q + min`.
    pub(super) fn error(&self, codes: Codes, scale: f32, min: f32) -> f32 {
        let m = min - self.origin;
        self.second - 2.0 * (scale * codes.cross + m * self.first)
            + scale * (scale * codes.second + 2.0 * m * codes.first)
            + m * m * self.weight
    }

    /// The best minimum for a given scale, at most `most`.
    pub(super) fn min_for(&self, codes: Codes, scale: f32, most: f32) -> f32 {
        if self.weight > 0.0 { (self.origin + (self.first - scale * codes.first) / self.weight).min(most) } else { 0.0 }
    }

    /// The best scale and minimum for given codes; `None` when the codes do not determine a positive scale.
    fn solve(&self, codes: Codes, most: f32) -> Option<Fit> {
        let det = self.weight * codes.second - codes.first * codes.first;
        if det.is_nan() || det <= 0.0 {
            return None;
        }
        let mut scale = (self.weight * codes.cross - self.first * codes.first) / det;
        let mut min = self.origin + (self.first * codes.second - codes.first * codes.cross) / det;
        if min > most {
            min = most;
            scale = (codes.cross - (min - self.origin) * codes.first) / codes.second;
        }
        (scale > 0.0).then(|| Fit { scale, min, codes, error: self.error(codes, scale, min) })
    }

    /// Sums of the codes `0..=top` nearest to `(x - min) / scale`.
    #[inline]
    pub(super) fn encode<const N: usize>(&self, x: &[f32; N], w: &[f32; N], inverse: f32, min: f32, top: f32) -> Codes {
        let origin = self.origin;
        let [first, second, cross] = sums::<N>(|i| {
            let q = code((x[i] - min) * inverse, 0.0, top);
            let wq = w[i] * q;
            [wq, wq * q, wq * (x[i] - origin)]
        });
        Codes { first, second, cross }
    }

    /// The best `scale q + min` with `q` in `0..=top` and `min <= most`.
    pub(super) fn affine<const N: usize>(&self, x: &[f32; N], w: &[f32; N], top: f32, most: f32) -> Fit {
        let constant = Fit { scale: 0.0, min: self.min_for(Codes::default(), 0.0, most), ..Fit::default() };
        let mut best = Fit { error: self.error(Codes::default(), 0.0, constant.min), ..constant };
        if !(self.range > NO_RANGE && self.weight > 0.0) {
            return best;
        }
        // From a grid that is a step too wide to one whose outer codes clip.
        for step in -10..=12i8 {
            let inverse = (top + 0.1 * f32::from(step)) / self.range;
            let codes = self.encode(x, w, inverse, self.origin, top);
            if let Some(fit) = self.solve(codes, most).filter(|fit| fit.error < best.error) {
                best = fit;
            }
        }
        for _ in 0..ALTERNATIONS {
            if best.scale == 0.0 {
                break;
            }
            let codes = self.encode(x, w, 1.0 / best.scale, best.min, top);
            match self.solve(codes, most).filter(|fit| fit.error < best.error) {
                Some(fit) => best = fit,
                None => break,
            }
        }
        best
    }
}

/// Codes of the best `scale q` with `q` in `-half..half`; the scale is [`Codes::scale`]. It may be negative: the range has
/// one code more below zero.
pub(super) fn symmetric<const N: usize>(x: &[f32; N], w: &[f32; N], half: f32) -> Codes {
    let peak = peak(x);
    let mut best = Codes::default();
    if peak.abs() <= NO_RANGE {
        return best;
    }
    let better = |inverse: f32, best: &mut Codes| {
        let codes = encode_symmetric(x, w, inverse, half);
        let found = codes.gain() > best.gain();
        if found {
            *best = codes;
        }
        found
    };
    for step in -5..=5i8 {
        let beyond = 0.2 * f32::from(step);
        // The peak on the side that has a code more, then on the other.
        better(-(half + beyond) / peak, &mut best);
        better((half - 1.0 + beyond) / peak, &mut best);
    }
    for _ in 0..ALTERNATIONS {
        if best.scale() == 0.0 || !better(1.0 / best.scale(), &mut best) {
            break;
        }
    }
    best
}

/// Sums of the codes `-half..half` nearest to `x / scale`.
#[inline]
pub(super) fn encode_symmetric<const N: usize>(x: &[f32; N], w: &[f32; N], inverse: f32, half: f32) -> Codes {
    let [first, second, cross] = sums::<N>(|i| {
        let q = code(x[i] * inverse, -half, half - 1.0);
        let wq = w[i] * q;
        [wq, wq * q, wq * x[i]]
    });
    Codes { first, second, cross }
}
