//! Rotary scaling in words that other tools know.
//!
//! A GGUF file of Llama 3 stores the divisors of the frequencies that its scaling resulted in; transformers wants the
//! scaling's own numbers. All published models have one of two sets of them.

use crate::{ModelConfig, RopeScaling, model::rope};

/// Factors of Llama 3.1 (8) and of the small models of Llama 3.2 (32). The other numbers are the same in all of them.
const FACTORS: [f32; 2] = [8.0, 32.0];
/// Relative difference that FP32 arithmetic in another order explains.
const TOLERANCE: f32 = 1e-4;

/// The scaling of a model, [`RopeScaling::Llama3`] where that explains the divisors of a GGUF file.
pub fn named(config: &ModelConfig) -> RopeScaling {
    let RopeScaling::Factors(stored) = &config.rope_scaling else { return config.rope_scaling.clone() };
    let with = |rope_scaling| rope::inverse_frequencies(&ModelConfig { rope_scaling, ..config.clone() });
    let plain = with(RopeScaling::None);
    let explains = |scaling: &RopeScaling| {
        let scaled = with(scaling.clone());
        let divisors = plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled);
        stored.len() == plain.len() && divisors.zip(stored).all(|(d, s)| (d - s).abs() <= TOLERANCE * s)
    };
    FACTORS
        .map(|factor| RopeScaling::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 8192,
        })
        .into_iter()
        .find(explains)
        .unwrap_or_else(|| config.rope_scaling.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::testing::tiny_config;

    /// Divisors as llama.cpp's converter computes them for Llama 3.2 (head size 64, base 500,000), at the ends of the
    /// ramp by hand: frequency 0 turns 1304 times in 8192 positions and is kept, the last 0.004 times and is divided.
    fn factors(factor: f32) -> (ModelConfig, Vec<f32>) {
        let config = ModelConfig { head_dim: 64, rope_theta: 500_000.0, ..tiny_config() };
        let factors = (0..32).map(|i| {
            let wavelength = 2.0 * std::f32::consts::PI * 500_000f32.powf(i as f32 / 32.0);
            let (low, high) = (8192.0 / 1.0, 8192.0 / 4.0);
            if wavelength < high {
                1.0
            } else if wavelength > low {
                factor
            } else {
                let smooth = (8192.0 / wavelength - 1.0) / 3.0;
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        });
        let factors: Vec<f32> = factors.collect();
        assert_eq!((factors[0], factors[31]), (1.0, factor));
        (config, factors)
    }

    #[test]
    fn both_published_scalings_are_recovered_from_their_divisors() {
        for expected in [8.0, 32.0] {
            let (config, factors) = factors(expected);
            let named = named(&ModelConfig { rope_scaling: RopeScaling::Factors(factors), ..config });
            assert!(matches!(named, RopeScaling::Llama3 { factor, .. } if factor == expected), "{named:?}");
        }
    }

    #[test]
    fn other_divisors_stay_what_they_are() {
        let (config, mut factors) = factors(8.0);
        factors[20] *= 1.01;
        let scaling = RopeScaling::Factors(factors);
        assert_eq!(named(&ModelConfig { rope_scaling: scaling.clone(), ..config }), scaling);
    }
}
