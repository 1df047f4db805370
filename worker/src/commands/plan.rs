//! `quantize --plan`: what quantizing will take in time and memory, here and for models of 8 and 70 billion weights.

use modelprofile_engine::{
    Architecture, ModelConfig, RopeScaling, WeightFormat,
    quantize::{
        DEFAULT_CALIBRATION_TOKENS, Recipe,
        plan::{Plan, Speeds},
    },
};

/// Tokens of a calibration sequence.
const SEQUENCE: usize = 512;

/// The text that quality is measured on.
pub(super) struct Measured {
    /// How many windows it is cut into.
    pub(super) windows: usize,
    /// Tokens of each.
    pub(super) window: usize,
}

/// Prints a table with a line for each recipe, and for the reference that it is measured against, and each of: the model at
/// hand, Llama-3.1-8B, Llama-3.3-70B.
pub(super) fn print(
    name: &str,
    config: &ModelConfig,
    recipes: &[Recipe],
    tokens: Option<usize>,
    measured: Option<&Measured>,
    speeds: &Speeds,
) {
    let tokens = tokens.unwrap_or(DEFAULT_CALIBRATION_TOKENS);
    println!(
        "this machine: {:.2} TFLOP/s BF16 products, {:.2} TFLOP/s FP32 products; {tokens} calibration tokens",
        speeds.forward / 1e12,
        speeds.gram / 1e12
    );
    println!(
        "{:<24} {:<28} {:>11} {:>9} {:>9} {:>9} {:>9} {:>10} {:>10}",
        "model", "format and method", "calibration", "search", "rounding", "measuring", "in all", "memory", "disk"
    );
    let known = [("Llama-3.1-8B", llama(32, 4096, 14_336, 32)), ("Llama-3.3-70B", llama(80, 8192, 28_672, 64))];
    for (name, config) in [(name, config)].into_iter().chain(known.iter().map(|(name, config)| (*name, config))) {
        for (title, plan) in plans(config, recipes, tokens, measured, speeds) {
            println!(
                "{name:<24} {title:<28} {:>11} {:>9} {:>9} {:>9} {:>9} {:>10} {:>10}",
                time(plan.calibration_seconds),
                time(plan.search_seconds),
                time(plan.rounding_seconds),
                time(plan.measuring_seconds),
                time(plan.seconds()),
                size(plan.peak_bytes),
                size(plan.disk_bytes),
            );
        }
    }
    if measured.is_some() {
        println!(
            "Quality is measured against the BF16 reference: built once for all formats, and removed at the end unless it was \
             there before. --no-measure leaves both out."
        );
    }
}

/// The plan of each recipe by its name; first that of the reference, where something is measured against it and it is none
/// of the recipes.
fn plans(
    config: &ModelConfig,
    recipes: &[Recipe],
    tokens: usize,
    measured: Option<&Measured>,
    speeds: &Speeds,
) -> Vec<(String, Plan)> {
    let reference = Recipe::from(WeightFormat::Bf16);
    let of = |recipe: Recipe| Plan::of(config, recipe, tokens, SEQUENCE, speeds);
    let mut plans = Vec::new();
    if measured.is_some() && !recipes.contains(&reference) {
        plans.push((format!("{}, the reference", reference.canonical()), of(reference)));
    }
    for recipe in recipes {
        let plan = match measured {
            None => of(*recipe),
            Some(Measured { windows, window }) => of(*recipe).with_measuring(config, *windows, *window, speeds),
        };
        plans.push((recipe.canonical(), plan));
    }
    plans
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
    fn a_measured_plan_has_the_reference_on_disk_once_and_no_other_has() {
        let (config, speeds) = (
            llama(32, 4096, 14_336, 32),
            Speeds { forward: 1e11, gram: 1e11, factor: 1e-9, rounding: 1e8, building: 1e8 },
        );
        let recipes = [WeightFormat::Fp8, WeightFormat::Int8].map(Recipe::from);
        let measured = Measured { windows: 6, window: 512 };
        let plans = |recipes: &[Recipe], measured| plans(&config, recipes, 1024, measured, &speeds);
        let titles = |plans: &[(String, Plan)]| plans.iter().map(|(title, _)| title.clone()).collect::<Vec<_>>();
        let with = plans(&recipes, Some(&measured));
        assert_eq!(titles(&with), ["bf16, the reference", "fp8-e4m3-row", "int8-row"]);
        // Two files of 8.03e9 weights in 16 bits.
        assert!((with[0].1.disk_bytes as f64 / 32.1e9 - 1.0).abs() < 0.01, "{:?}", with[0].1);
        assert!(with[0].1.measuring_seconds == 0.0 && with[1].1.measuring_seconds > 0.0);
        let without = plans(&recipes, None);
        assert_eq!(titles(&without), ["fp8-e4m3-row", "int8-row"]);
        assert!(without[0].1.measuring_seconds == 0.0);
        let own = plans(&[WeightFormat::Bf16.into()], Some(&measured));
        assert_eq!(titles(&own), ["bf16"]);
    }

    #[test]
    fn times_and_sizes_read_as_people_say_them() {
        assert_eq!([3.2, 150.0, 7200.0].map(time), ["3 s", "2 min", "2.0 h"]);
        assert_eq!([250_000_000, 4_300_000_000].map(size), ["250 MB", "4.3 GB"]);
    }
}
