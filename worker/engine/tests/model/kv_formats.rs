//! The KV cache's formats on the real model: what each costs, and that an engine generates with it.

use modelprofile_engine::{
    ProfileSpec, WeightFormat, artifact::Store, calibrate::kv_scales, evaluate::Evaluator, model::ProfileWeights,
    serve::EngineConfig,
};
use modelprofile_kernels::KvFormat;

use crate::support;

/// Text of 200 tokens and more.
const TEXT: &str = include_str!("../data/own-text.txt");
const TOKENS: usize = 200;

/// Formats by precision, with the largest root mean square error of their logits, relative to the logits. The reference is
/// FP16: the finest, and computed in FP32. Budgets are about twice what this model shows.
const FORMATS: [(KvFormat, f64); 3] = [(KvFormat::Bf16, 0.02), (KvFormat::Fp8E4m3, 0.1), (KvFormat::Fp8E5m2, 0.2)];

fn tokens() -> Vec<u32> {
    let text = modelprofile_engine::text::Text::load(&support::smollm2()).unwrap();
    text.tokenizer.encode(TEXT, false).unwrap()
}

fn logits(format: KvFormat, tokens: &[u32]) -> Vec<f32> {
    let checkpoint = support::smollm2();
    let config = checkpoint.config();
    let (mut cpu, layout) = (support::cpu(), config.kv_layout(format));
    let scales = kv_scales(&mut cpu, &checkpoint, &support::cache(), &layout, tokens, &mut |_| {}).unwrap();
    let mut evaluator = Evaluator::with_scales(cpu, config, layout, &scales, TOKENS).unwrap();
    let artifact = Store::new(&support::cache()).prepare(&checkpoint, WeightFormat::Bf16, &mut |_| {}).unwrap();
    let weights = ProfileWeights::load(evaluator.backend(), config, &artifact).unwrap();
    evaluator.logits(&weights, &tokens[..TOKENS]).unwrap()
}

#[test]
fn logits_stay_near_those_of_the_finest_cache() {
    let tokens = tokens();
    let expected = logits(KvFormat::Fp16, &tokens);
    let size: f64 = expected.iter().map(|x| f64::from(*x).powi(2)).sum();
    let mut errors = Vec::new();
    for (format, budget) in FORMATS {
        let found = logits(format, &tokens);
        let error: f64 = found.iter().zip(&expected).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let error = (error / size).sqrt();
        println!("{format:?}: relative error {error:.5}, budget {budget}");
        assert!(error > 0.0 && error < budget, "{format:?}: {error}");
        errors.push(error);
    }
    assert!(errors.is_sorted(), "fewer bits are further away: {errors:?}");
}

#[test]
fn an_engine_generates_with_every_format_and_switches() {
    let tokens = tokens();
    let prompt = &tokens[..40];
    let text = |kv: KvFormat| {
        let profile = |name, weights| ProfileSpec { kv, ..support::profile(name, weights) };
        let profiles = vec![profile("quality", WeightFormat::Fp8), profile("density", WeightFormat::Q4_1)];
        let config = EngineConfig { calibration: tokens.clone(), ..support::config(profiles, 400) };
        let engine = support::engine(&support::smollm2(), &config);
        let found = support::generate(&engine, prompt, 24);
        let switched = modelprofile_engine::serve::Engine::switch(&engine, "density").blocking_recv().unwrap();
        assert_eq!(switched.outcome, modelprofile_engine::serve::SwitchEnd::Completed, "{switched:?}");
        assert_eq!(support::generate(&engine, &tokens[..50], 8).len(), 8);
        found
    };
    let expected = text(KvFormat::Fp16);
    for (format, _) in FORMATS {
        let found = text(format);
        // Near ties may flip late; a cache that is read wrongly differs from the start.
        assert_eq!(found[..4], expected[..4], "{format:?}");
    }
}
