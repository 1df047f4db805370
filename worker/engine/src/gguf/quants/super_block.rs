//! The second level of the K formats: the 6-bit scales and minima of eight groups in units of one FP16 pair.
//!
//! ```text
//! search per group -> (s, m) -> choose d, dmin -> integer scales and minima -> codes
//!                                    ^                                          |
//!                                    +--------- best d, dmin for the codes -----+
//! ```
//!
//! Rounding a group's scale changes which minimum is best for it, and its codes. So a scale is rounded together with its
//! minimum, by the error that the pair causes, and codes are always those nearest under the stored numbers.

use half::f16;

use super::search::{Codes, Fit, Group, code, weights};
use crate::checkpoint::ggml::SUPER_BLOCK;

/// Elements of a group.
pub(super) const GROUP: usize = 32;
/// Groups of a block.
pub(super) const GROUPS: usize = SUPER_BLOCK / GROUP;
/// The largest 6-bit number.
const TOP: f32 = 63.0;
/// Rounds of codes and scales after the first.
const ROUNDS: usize = 2;

/// A block in parts, before its bits are packed. Element `i` of group `g` is `d scales[g] q - dmin mins[g]`.
pub(super) struct Affine {
    pub(super) d: f16,
    pub(super) dmin: f16,
    pub(super) scales: [u8; GROUPS],
    pub(super) mins: [u8; GROUPS],
    pub(super) codes: [u8; SUPER_BLOCK],
}

/// The integers of a block, and the codes' sums under them.
#[derive(Clone, Copy)]
struct Trial {
    d: f16,
    dmin: f16,
    scales: [f32; GROUPS],
    mins: [f32; GROUPS],
    codes: [Codes; GROUPS],
    error: f32,
}

struct Problem<'a> {
    x: &'a [[f32; GROUP]; GROUPS],
    w: [[f32; GROUP]; GROUPS],
    groups: [Group; GROUPS],
    top: f32,
}

/// Quantizes a block to codes `0..=top`.
pub(super) fn affine(x: &[f32; SUPER_BLOCK], importance: Option<&[f32; SUPER_BLOCK]>, top: f32) -> Affine {
    let x: &[[f32; GROUP]; GROUPS] = bytemuck::cast_ref(x);
    let importance: Option<&[[f32; GROUP]; GROUPS]> = importance.map(bytemuck::cast_ref);
    let sigma = (2.0 * x.as_flattened().iter().map(|v| v * v).sum::<f32>() / SUPER_BLOCK as f32).sqrt();
    let w: [[f32; GROUP]; GROUPS] = std::array::from_fn(|g| weights(&x[g], importance.map(|i| &i[g]), sigma));
    let groups = std::array::from_fn(|g| Group::new(&x[g], &w[g], true));
    let problem = Problem { x, w, groups, top };
    let fits = std::array::from_fn(|g| problem.groups[g].affine(&x[g], &problem.w[g], top, 0.0));

    let (searched, plain) = (problem.first(&fits), problem.plain());
    let mut best = if plain.error < searched.error { plain } else { searched };
    for _ in 0..ROUNDS {
        match problem.next(&best) {
            Some(next) if next.error < best.error => best = next,
            _ => break,
        }
    }
    problem.finish(&best)
}

impl Problem<'_> {
    /// Units and integers from the searched scales and minima.
    fn first(&self, fits: &[Fit; GROUPS]) -> Trial {
        let codes = fits.map(|fit| fit.codes);
        let unit = |targets: [f32; GROUPS], cost: &dyn Fn(f32) -> f32| {
            let largest = targets.into_iter().fold(0.0, f32::max);
            // Units that clip the largest by a little, up to ones that leave its upper codes unused.
            let candidates = (0..14i8).map(|i| f16::from_f32(largest / (TOP + 1.0 - 0.5 * f32::from(i))));
            let mut best = (f16::ZERO, f32::INFINITY);
            for unit in candidates {
                let cost = cost(unit.to_f32());
                if cost < best.1 {
                    best = (unit, cost);
                }
            }
            best.0
        };
        let d = unit(fits.map(|fit| fit.scale), &|d| {
            let error = |(group, fit): (&Group, &Fit)| {
                let scale = d * integer(fit.scale, d);
                group.error(fit.codes, scale, group.min_for(fit.codes, scale, 0.0))
            };
            self.groups.iter().zip(fits).map(error).sum()
        });
        let scales = fits.map(|fit| integer(fit.scale, d.to_f32()));
        let targets: [f32; GROUPS] =
            std::array::from_fn(|g| -self.groups[g].min_for(codes[g], d.to_f32() * scales[g], 0.0));
        let dmin = unit(targets, &|dmin| {
            let error = |(group, target): (&Group, &f32)| {
                let off = dmin * integer(*target, dmin) - target;
                group.weight() * off * off
            };
            self.groups.iter().zip(&targets).map(error).sum()
        });
        self.encode(d, dmin, &scales, &codes)
    }

    /// The format's definition: each group's scale and minimum from its range. The search ends no worse than this.
    fn plain(&self) -> Trial {
        let ranges = self.groups.map(|group| (group.range() / self.top, -group.low()));
        let unit = |of: fn(&(f32, f32)) -> f32| f16::from_f32(ranges.iter().map(of).fold(0.0, f32::max) / TOP);
        let (d, dmin) = (unit(|range| range.0), unit(|range| range.1));
        let scales = ranges.map(|range| integer(range.0, d.to_f32()));
        let mins = ranges.map(|range| integer(range.1, dmin.to_f32()));
        self.nearest(d, dmin, scales, mins)
    }

    /// The best units for the codes of a trial, then integers and codes for those units. `None` when no unit is left.
    fn next(&self, trial: &Trial) -> Option<Trial> {
        // Normal equations of `sum w (d sc q - dmin mn - x)^2`.
        let (mut a11, mut a12, mut a22, mut b1, mut b2) = (0.0f64, 0.0, 0.0, 0.0, 0.0);
        for (g, group) in self.groups.iter().enumerate() {
            let (sc, mn, codes) = (f64::from(trial.scales[g]), f64::from(trial.mins[g]), trial.codes[g]);
            a11 += sc * sc * f64::from(codes.second);
            a12 -= sc * mn * f64::from(codes.first);
            a22 += mn * mn * f64::from(group.weight());
            b1 += sc * f64::from(group.cross(codes));
            b2 -= mn * f64::from(group.first());
        }
        let det = a11 * a22 - a12 * a12;
        let (d, dmin) = if det > 1e-9 * a11 * a22 && a22 > 0.0 {
            ((b1 * a22 - b2 * a12) / det, (b2 * a11 - b1 * a12) / det)
        } else if a11 > 0.0 {
            (b1 / a11, 0.0)
        } else {
            return None;
        };
        let (d, dmin) = (f16::from_f64(d), f16::from_f64(dmin.max(0.0)));
        (d > f16::ZERO).then(|| self.encode(d, dmin, &trial.scales, &trial.codes))
    }

    /// Integers near `scales` that fit `codes` best under the units, and the codes that are nearest then.
    fn encode(&self, d: f16, dmin: f16, scales: &[f32; GROUPS], codes: &[Codes; GROUPS]) -> Trial {
        let (unit, unit_min) = (d.to_f32(), dmin.to_f32());
        let (mut chosen, mut mins) = ([0.0; GROUPS], [0.0; GROUPS]);
        for (g, group) in self.groups.iter().enumerate() {
            let mut best = f32::INFINITY;
            for step in [0.0, -1.0, 1.0] {
                let scale = (scales[g] + step).clamp(0.0, TOP);
                let min = integer(-group.min_for(codes[g], unit * scale, 0.0), unit_min);
                let error = group.error(codes[g], unit * scale, -unit_min * min);
                if error < best {
                    (best, chosen[g], mins[g]) = (error, scale, min);
                }
            }
        }
        self.nearest(d, dmin, chosen, mins)
    }

    /// The codes nearest under the stored numbers.
    fn nearest(&self, d: f16, dmin: f16, scales: [f32; GROUPS], mins: [f32; GROUPS]) -> Trial {
        let mut trial = Trial { d, dmin, scales, mins, codes: [Codes::default(); GROUPS], error: 0.0 };
        for (g, group) in self.groups.iter().enumerate() {
            let (scale, min) = (d.to_f32() * scales[g], -dmin.to_f32() * mins[g]);
            trial.codes[g] = group.encode(&self.x[g], &self.w[g], inverse(scale), min, self.top);
            trial.error += group.error(trial.codes[g], scale, min);
        }
        trial
    }

    fn finish(&self, trial: &Trial) -> Affine {
        let mut codes = [[0; GROUP]; GROUPS];
        for (g, codes) in codes.iter_mut().enumerate() {
            let inverse = inverse(trial.d.to_f32() * trial.scales[g]);
            let min = -trial.dmin.to_f32() * trial.mins[g];
            for (q, x) in codes.iter_mut().zip(&self.x[g]) {
                *q = code((x - min) * inverse, 0.0, self.top) as u8;
            }
        }
        Affine {
            d: trial.d,
            dmin: trial.dmin,
            scales: trial.scales.map(|v| v as u8),
            mins: trial.mins.map(|v| v as u8),
            codes: bytemuck::cast(codes),
        }
    }
}

/// `value / unit` as a 6-bit integer.
fn integer(value: f32, unit: f32) -> f32 {
    if unit > 0.0 { code(value / unit, 0.0, TOP) } else { 0.0 }
}

/// `1 / scale`; zero, which makes every code zero, for a scale of zero.
pub(super) fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// The 12 bytes of eight 6-bit scales and eight 6-bit minima: the first four whole in the low bits of bytes 0-3 and 4-7; of
/// the last four the low nibbles in bytes 8-11 and the high two bits above those of the first four.
pub(super) fn pack_scales(scales: [u8; GROUPS], mins: [u8; GROUPS]) -> [u8; 12] {
    std::array::from_fn(|i| match i {
        0..4 => scales[i] | scales[i + 4] >> 4 << 6,
        4..8 => mins[i - 4] | mins[i] >> 4 << 6,
        _ => (scales[i - 4] & 15) | (mins[i - 4] & 15) << 4,
    })
}
