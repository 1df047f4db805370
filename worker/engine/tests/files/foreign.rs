//! Checkpoints that other tools quantized (tests/data/foreign): read as those tools read them.

use std::{collections::BTreeMap, path::Path};

use modelprofile_engine::{
    WeightFormat, artifact::Store, checkpoint::Checkpoint, evaluate::Evaluator, model::ProfileWeights,
};
use modelprofile_kernels::{
    GroupedActivations, KvFormat,
    cpu::{Cpu, CpuOptions},
};
use rstest::rstest;
use serde::Deserialize;

/// Root mean square of the error over that of the tool's logits, computed in BF16 from the same weights.
const BF16_BUDGET: f32 = 0.03;
/// The same with the tool's codes as they are, and embedding and output layer in our 8-bit groups. Zero points that are off
/// by one give 1.1 on `gptq-symmetric`.
const CODES_BUDGET: f32 = 0.06;

#[derive(Deserialize)]
struct Golden {
    prompt: Vec<u32>,
    logits: BTreeMap<usize, Vec<f32>>,
}

/// The largest relative error of the golden positions.
fn error(checkpoint: &Checkpoint, format: WeightFormat, golden: &Golden) -> f32 {
    let cache = tempfile::tempdir().unwrap();
    let artifact = Store::new(cache.path()).prepare(checkpoint, format, &mut |_| {}).unwrap();
    let cpu = Cpu::new(CpuOptions { threads: 1, isa: None, grouped_activations: GroupedActivations::Bf16 }).unwrap();
    let config = checkpoint.config();
    let mut evaluator = Evaluator::new(cpu, config, KvFormat::Bf16, golden.prompt.len()).unwrap();
    let weights = ProfileWeights::load(evaluator.backend(), config, &artifact).unwrap();
    let found = evaluator.logits(&weights, &golden.prompt).unwrap();
    let rms = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
    assert!(!golden.logits.is_empty());
    golden
        .logits
        .iter()
        .map(|(at, expected)| {
            let found = &found[at * config.vocab..(at + 1) * config.vocab];
            rms(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / rms(&mut expected.iter().copied())
        })
        .fold(0.0, f32::max)
}

#[rstest]
#[case::gptqmodel("gptq-symmetric", true)]
#[case::gptqmodel_with_act_order("gptq-act-order", false)]
#[case::autoawq("awq-gemm", true)]
#[case::llm_compressor_gptq("compressed-tensors-gptq", true)]
#[case::llm_compressor_awq("compressed-tensors-awq", true)]
fn logits_are_those_of_the_tool_that_quantized(#[case] name: &str, #[case] codes: bool) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/foreign").join(name);
    let golden: Golden =
        serde_json::from_str(&std::fs::read_to_string(directory.join("golden.json")).unwrap()).unwrap();
    let checkpoint = Checkpoint::open(&directory).unwrap();
    let quantization = checkpoint.quantization().unwrap();

    let dequantized = error(&checkpoint, WeightFormat::Bf16, &golden);
    assert!(dequantized <= BF16_BUDGET, "{name} in BF16: an error of {dequantized}, the budget is {BF16_BUDGET}");
    if codes {
        let format = quantization.format().unwrap();
        let taken = error(&checkpoint, format, &golden);
        assert!(
            taken <= CODES_BUDGET,
            "{name} as {}: an error of {taken}, the budget is {CODES_BUDGET}",
            format.canonical()
        );
    }
}
