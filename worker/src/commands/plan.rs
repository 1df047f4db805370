//! `quantize --plan`: what quantizing will take in time and memory, here and for models of 8 and 70 billion weights.

use modelprofile_engine::{
    Architecture, ModelConfig, RopeScaling,
    quantize::{
        DEFAULT_CALIBRATION_TOKENS, Recipe,
        plan::{Plan, Speeds},
    },
};

/// Tokens of a calibration sequence.
const SEQUENCE: usize = 512;

/// Prints a table with a line for each recipe and each of: the model at hand, Llama-3.1-8B, Llama-3.3-70B.
pub(super) fn print(name: &str, config: &ModelConfig, recipes: &[Recipe], tokens: Option<usize>, speeds: &Speeds) {
    let tokens = tokens.unwrap_or(DEFAULT_CALIBRATION_TOKENS);
    println!(
        "this machine: {:.2} TFLOP/s BF16 products, {:.2} TFLOP/s FP32 products; {tokens} calibration tokens",
        speeds.forward / 1e12,
        speeds.gram / 1e12
    );
    println!(
        "{:<24} {:<28} {:>11} {:>9} {:>9} {:>9} {:>10} {:>10}",
        "model", "format and method", "calibration", "search", "rounding", "in all", "memory", "disk"
    );
    let known = [("Llama-3.1-8B", llama(32, 4096, 14_336, 32)), ("Llama-3.3-70B", llama(80, 8192, 28_672, 64))];
    for (name, config) in [(name, config)].into_iter().chain(known.iter().map(|(name, config)| (*name, config))) {
        for recipe in recipes {
            let plan = Plan::of(config, *recipe, tokens, SEQUENCE, speeds);
            println!(
                "{name:<24} {:<28} {:>11} {:>9} {:>9} {:>9} {:>10} {:>10}",
                recipe.canonical(),
                time(plan.calibration_seconds),
                time(plan.search_seconds),
                time(plan.rounding_seconds),
                time(plan.seconds()),
                size(plan.peak_bytes),
                size(plan.disk_bytes),
            );
        }
    }
}

/// The shape of a Llama 3 model.
fn llama(layers: usize, hidden: usize, intermediate: usize, heads: usize) -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        layers,
        hidden,
        intermediate,
        heads,
        kv_heads: 8,
        head_dim: 128,
        vocab: 128_256,
        max_positions: 131_072,
        rms_epsilon: 1e-5,
        rope_theta: 500_000.0,
        rope_scaling: RopeScaling::None,
        sliding_window: None,
        tied_embeddings: false,
        qkv_bias: false,
        qk_norm: false,
        bos_token: None,
        eos_tokens: Vec::new(),
    }
}

/// Seconds, minutes or hours, whichever a person would say.
fn time(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => format!("{s:.0} s"),
        s if s < 6000.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

fn size(bytes: u64) -> String {
    match bytes as f64 {
        b if b < 1e9 => format!("{:.0} MB", b / 1e6),
        b => format!("{:.1} GB", b / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_read_as_people_say_them() {
        assert_eq!([3.2, 150.0, 7200.0].map(time), ["3 s", "2 min", "2.0 h"]);
        assert_eq!([250_000_000, 4_300_000_000].map(size), ["250 MB", "4.3 GB"]);
    }
}
