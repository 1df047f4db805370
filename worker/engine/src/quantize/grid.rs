//! What a method rounds to, and the choice of a group's grid.

use half::f16;
use modelprofile_kernels::rtn::{self, Grid};

use super::Recipe;
use crate::{EngineError, Result, WeightFormat, ZeroPoint};

/// Storage that GPTQ and AWQ round to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// INT8, one scale per row.
    Rows8,
    /// Groups with a scale and a minimum.
    Groups {
        /// Of a code.
        bits: u8,
        /// Inputs of a group.
        group: usize,
        /// Where its points lie.
        grid: Grid,
    },
}

impl Target {
    /// The storage of a recipe.
    ///
    /// # Errors
    /// [`EngineError::Config`] for formats that are not made of integer codes.
    pub(super) fn of(recipe: Recipe) -> Result<Self> {
        match recipe.format {
            WeightFormat::Int8 => Ok(Self::Rows8),
            WeightFormat::Int4 { group, .. } => {
                Ok(Self::Groups { bits: 4, group: usize::from(group), grid: grid(recipe.zero_point()) })
            }
            other => Err(EngineError::Config(format!("{} has no integer codes to search", other.canonical()))),
        }
    }

    /// Inputs of a group; `None` for whole rows.
    pub(super) fn group(self) -> Option<usize> {
        match self {
            Self::Rows8 => None,
            Self::Groups { group, .. } => Some(group),
        }
    }
}

/// The kernels' name of a zero point.
pub(super) fn grid(zero: ZeroPoint) -> Grid {
    match zero {
        ZeroPoint::Symmetric => Grid::Symmetric,
        ZeroPoint::Integer => Grid::Integer,
        ZeroPoint::Minimum => Grid::Minimum,
    }
}

/// Parts of a group's range that are tried as the range of its grid.
const SHRINK: [f32; 12] = [1.0, 0.975, 0.95, 0.925, 0.9, 0.875, 0.85, 0.825, 0.8, 0.775, 0.75, 0.7];

/// Scale and minimum of a group with the least `sum importance * (w - rounded w)^2` over shrunken ranges: cutting off a few
/// extremes makes every other step smaller.
pub(super) fn grid_of(grid: Grid, bits: u8, values: &[f32], importance: &[f32]) -> (f16, f16) {
    let mut best = (f32::INFINITY, (f16::ZERO, f16::ZERO));
    let mut shrunk = vec![0.0; values.len()];
    for factor in SHRINK {
        for (s, v) in shrunk.iter_mut().zip(values) {
            *s = v * factor;
        }
        let (step, min) = rtn::group_grid(grid, bits, &shrunk);
        let error: f32 = values
            .iter()
            .zip(importance)
            .map(|(v, weight)| {
                let code = rtn::code(*v, step, min, rtn::top_code(bits));
                let off = v - (step.to_f32() * f32::from(code) + min.to_f32());
                weight * off * off
            })
            .sum();
        if error < best.0 {
            best = (error, (step, min));
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(values: &[f32], importance: &[f32], (step, min): (f16, f16)) -> f32 {
        let off = |v: f32| v - (step.to_f32() * f32::from(rtn::code(v, step, min, 15.0)) + min.to_f32());
        values.iter().zip(importance).map(|(v, w)| w * off(*v) * off(*v)).sum()
    }

    #[test]
    fn the_searched_grid_is_never_worse_than_the_plain_one() {
        for seed in 0..20u32 {
            let noise = |i: u32| ((i + 100 * seed).wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0;
            let values: Vec<f32> = (0..32).map(noise).collect();
            let importance: Vec<f32> = (40..72).map(|i| noise(i).abs()).collect();
            for grid in [Grid::Symmetric, Grid::Integer, Grid::Minimum] {
                let found = error(&values, &importance, grid_of(grid, 4, &values, &importance));
                let plain = error(&values, &importance, rtn::group_grid(grid, 4, &values));
                assert!(found <= plain, "{grid:?}: {found} against {plain}");
            }
        }
    }

    #[test]
    fn an_outlier_that_no_input_reads_does_not_stretch_the_grid() {
        // Sixteen values on a grid, and one beyond them that a range of 0.7 or 0.75 leaves out.
        let cases = [(Grid::Symmetric, -8, -0.8f32), (Grid::Integer, 0, 1.4), (Grid::Minimum, 0, 1.4)];
        for (grid, first, outlier) in cases {
            let mut values: Vec<f32> = (first..first + 16).map(|j| j as f32 * 0.07).collect();
            values.push(outlier);
            let mut importance = vec![1.0; 17];
            importance[16] = 0.0;
            let found = error(&values, &importance, grid_of(grid, 4, &values, &importance));
            let plain = error(&values, &importance, rtn::group_grid(grid, 4, &values));
            assert!(found < 0.01 * plain, "{grid:?}: {found} against {plain}");
        }
    }
}
