//! Rotary frequencies (RoFormer, Su et al. 2021) with the scalings that long-context checkpoints declare.

use std::f64::consts::TAU;

use crate::{ModelConfig, RopeScaling};

/// `theta^(-2i/d)` for `i` in `0..d/2`, `d` the head size, scaled as the checkpoint says.
pub fn inverse_frequencies(config: &ModelConfig) -> Vec<f32> {
    let d = config.head_dim as f64;
    (0..config.head_dim / 2)
        .map(|i| {
            let frequency = f64::from(config.rope_theta).powf(-2.0 * i as f64 / d);
            scaled(frequency, i, &config.rope_scaling) as f32
        })
        .collect()
}

/// What each frequency is divided by where the scaling differs between frequencies; `None` where it does not. This is how
/// GGUF files store Llama 3's scaling.
pub(crate) fn divisors(config: &ModelConfig) -> Option<Vec<f32>> {
    match &config.rope_scaling {
        RopeScaling::None | RopeScaling::Linear { .. } => None,
        RopeScaling::Factors(factors) => Some(factors.clone()),
        scaling @ RopeScaling::Llama3 { .. } => {
            let d = config.head_dim as f64;
            let divisor = |i: usize| {
                let frequency = f64::from(config.rope_theta).powf(-2.0 * i as f64 / d);
                (frequency / scaled(frequency, i, scaling)) as f32
            };
            Some((0..config.head_dim / 2).map(divisor).collect())
        }
    }
}

fn scaled(frequency: f64, index: usize, scaling: &RopeScaling) -> f64 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / f64::from(*factor),
        RopeScaling::Factors(factors) => frequency / factors.get(index).copied().map_or(1.0, f64::from),
        // "Llama 3" scaling as Meta's reference code defines it: by wavelength, with a linear ramp in between.
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            let (factor, low, high) = (f64::from(*factor), f64::from(*low_freq_factor), f64::from(*high_freq_factor));
            let turns = f64::from(*original_max_positions) * frequency / TAU;
            let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            frequency * (keep + (1.0 - keep) / factor)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA3: RopeScaling =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 8192 };

    #[test]
    fn llama3_keeps_short_wavelengths_and_divides_long_ones() {
        assert!((scaled(1.0, 0, &LLAMA3) - 1.0).abs() < 1e-12);
        let long = TAU / 100_000.0;
        assert!((scaled(long, 0, &LLAMA3) - long / 8.0).abs() < 1e-12);
    }

    #[test]
    fn llama3_ramp_is_continuous_at_both_ends() {
        for turns in [1.0, 4.0] {
            let at = |t: f64| scaled(t * TAU / 8192.0, 0, &LLAMA3);
            assert!((at(turns - 1e-9) - at(turns + 1e-9)).abs() < 1e-10);
        }
    }
}
