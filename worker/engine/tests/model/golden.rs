//! The engine against values that transformers computed in FP32 (tests/data/smollm2-golden.json says how).

use modelprofile_engine::{WeightFormat, artifact::Store, evaluate::Evaluator, model::ProfileWeights};
use modelprofile_kernels::KvFormat;
use serde::Deserialize;

use crate::support;

#[derive(Deserialize)]
struct Golden {
    prompts: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    prompt_ids: Vec<u32>,
    top20: Vec<(u32, f32)>,
    greedy_ids: Vec<u32>,
    greedy_top1_minus_top2: Vec<f32>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../data/smollm2-golden.json")).unwrap()
}

/// A gap between the two best logits below which BF16 rounding may choose the other.
const NEAR_TIE: f32 = 0.25;

#[test]
fn bf16_logits_are_within_a_quarter_of_transformers() {
    let checkpoint = support::smollm2();
    let artifact = Store::new(&support::cache()).prepare(&checkpoint, WeightFormat::Bf16, &mut |_| {}).unwrap();
    let mut evaluator = Evaluator::new(support::cpu(), checkpoint.config(), KvFormat::Bf16, 512).unwrap();
    let weights = ProfileWeights::load(evaluator.backend(), checkpoint.config(), &artifact).unwrap();
    for prompt in golden().prompts {
        let logits = evaluator.logits(&weights, &prompt.prompt_ids).unwrap();
        let last = &logits[logits.len() - checkpoint.config().vocab..];
        for (token, expected) in prompt.top20 {
            let found = last[token as usize];
            assert!((found - expected).abs() <= 0.25, "{}: token {token} is {found}, not {expected}", prompt.name);
        }
    }
}

#[test]
fn bf16_greedy_text_equals_transformers_but_for_near_ties() {
    let checkpoint = support::smollm2();
    let engine =
        support::engine(&checkpoint, &support::config(vec![support::profile("bf16", WeightFormat::Bf16)], 600));
    let mut equal = 0;
    for prompt in golden().prompts {
        let found = support::generate(&engine, &prompt.prompt_ids, prompt.greedy_ids.len());
        match found.iter().zip(&prompt.greedy_ids).position(|(a, b)| a != b) {
            None => equal += 1,
            Some(at) => {
                let gap = prompt.greedy_top1_minus_top2[at];
                assert!(gap < NEAR_TIE, "{}: differs at step {at}, where the gap is {gap}", prompt.name);
            }
        }
    }
    assert!(equal >= 2, "only {equal} of 3 texts are equal");
}
