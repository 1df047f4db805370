//! `Q6_K`: 6-bit signed codes, sixteen groups of 16 with an 8-bit signed scale each.

use half::f16;

use super::{
    search::{Codes, code, encode_symmetric, peak, symmetric, weights},
    super_block::inverse,
};
use crate::checkpoint::ggml::{BlockQ6K, SUPER_BLOCK};

const GROUP: usize = 16;
const GROUPS: usize = SUPER_BLOCK / GROUP;
/// Codes are `-HALF..HALF`.
const HALF: f32 = 32.0;
/// Rounds of codes and scales after the first.
const ROUNDS: usize = 2;

type Groups = [[f32; GROUP]; GROUPS];

/// Scales under one unit, and the codes' sums under them.
#[derive(Clone, Copy)]
struct Trial {
    d: f16,
    scales: [f32; GROUPS],
    codes: [Codes; GROUPS],
    /// The weighted squared error less `sum w x^2`.
    error: f32,
}

/// One block; `importance` belongs to its columns.
pub(super) fn quantize(x: &[f32; SUPER_BLOCK], importance: Option<&[f32; SUPER_BLOCK]>) -> BlockQ6K {
    let sigma = (x.iter().map(|v| v * v).sum::<f32>() / SUPER_BLOCK as f32).sqrt();
    let x: &Groups = bytemuck::cast_ref(x);
    let importance: Option<&Groups> = importance.map(bytemuck::cast_ref);
    let w: Groups = std::array::from_fn(|g| weights(&x[g], importance.map(|i| &i[g]), sigma));
    let codes = std::array::from_fn(|g| symmetric(&x[g], &w[g], HALF));

    let searched = encode(x, &w, first_unit(&codes), codes.map(Codes::scale));
    // The format's definition: each group's peak sets its scale. The search ends no worse than this.
    let plain = x.map(|group| peak(&group) / -HALF);
    let plain = encode(x, &w, f16::from_f32(peak(&plain) / -128.0), plain);
    let mut best = if plain.error < searched.error { plain } else { searched };
    for _ in 0..ROUNDS {
        // The unit that is best for the codes: the minimum of `sum w (d sc q - x)^2`.
        let (mut cross, mut second) = (0.0f64, 0.0f64);
        for (codes, scale) in best.codes.iter().zip(best.scales) {
            cross += f64::from(scale * codes.cross);
            second += f64::from(scale * scale * codes.second);
        }
        if second <= 0.0 {
            break;
        }
        let next = encode(x, &w, f16::from_f64(cross / second), best.codes.map(Codes::scale));
        if next.error >= best.error {
            break;
        }
        best = next;
    }
    pack(x, &best)
}

/// The unit of the scales: candidates that put the largest at or near either end of the 8 bits.
fn first_unit(codes: &[Codes; GROUPS]) -> f16 {
    let largest = peak(&codes.map(Codes::scale));
    let mut best = (f16::ZERO, 0.0);
    for step in 0..8i8 {
        for end in [-128.5 + 0.5 * f32::from(step), 127.5 - 0.5 * f32::from(step)] {
            let unit = f16::from_f32(largest / end);
            let error = codes.iter().map(|c| c.error(unit.to_f32() * scale(c.scale(), unit.to_f32()))).sum();
            if error < best.1 {
                best = (unit, error);
            }
        }
    }
    best.0
}

/// The scales rounded under a unit, and the codes that are nearest then. A group's error is a parabola in its scale: the
/// integer nearest to the best scale is the best one.
fn encode(x: &Groups, w: &Groups, d: f16, scales: [f32; GROUPS]) -> Trial {
    let unit = d.to_f32();
    let scales = scales.map(|value| scale(value, unit));
    let codes = std::array::from_fn(|g| encode_symmetric(&x[g], &w[g], inverse(unit * scales[g]), HALF));
    let error = codes.iter().zip(scales).map(|(codes, scale)| codes.error(unit * scale)).sum();
    Trial { d, scales, codes, error }
}

fn scale(value: f32, unit: f32) -> f32 {
    if unit == 0.0 { 0.0 } else { code(value / unit, -128.0, 127.0) }
}

/// Bits in place: within a half of 128, quarter `q` of 32 elements takes nibble `q / 2` of byte `(q % 2) * 32 + l` and
/// bits `2q` of `qh[l]`.
fn pack(x: &Groups, trial: &Trial) -> BlockQ6K {
    let (mut ql, mut qh) = ([0; SUPER_BLOCK / 2], [0; SUPER_BLOCK / 4]);
    for (i, x) in x.as_flattened().iter().enumerate() {
        let inverse = inverse(trial.d.to_f32() * trial.scales[i / GROUP]);
        let q = (code(x * inverse, -HALF, HALF - 1.0) + HALF) as u8;
        let (half, quarter, l) = (i / 128, i % 128 / 32, i % 32);
        ql[half * 64 + quarter % 2 * 32 + l] |= (q & 15) << (quarter / 2 * 4);
        qh[half * 32 + l] |= q >> 4 << (quarter * 2);
    }
    BlockQ6K { ql, qh, scales: trial.scales.map(|v| v as i8), d: trial.d.into() }
}
