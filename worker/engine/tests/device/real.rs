//! SmolLM2 on the device: the first greedy tokens are the CPU's, in both profiles of a ladder.

use modelprofile_engine::{
    WeightFormat,
    serve::{Engine, EngineConfig, SwitchEnd},
};

use crate::{
    device::{alone, engine, reference},
    support,
};

/// "Gravity is" of the golden values: its first tokens are far ahead of the others.
const PROMPT: [u32; 5] = [504, 3575, 282, 4649, 314];
const TOKENS: usize = 3;

#[test]
fn the_first_tokens_of_both_profiles_are_the_cpus() {
    let _alone = alone();
    let checkpoint = support::smollm2();
    let ladder = vec![support::profile("quality", WeightFormat::Fp8), support::profile("density", WeightFormat::Q4_1)];
    let config = EngineConfig {
        max_context_tokens: Some(64),
        max_batched_tokens: 8,
        max_running: 2,
        ..support::config(ladder, 400)
    };
    let texts = [engine(&checkpoint, &config), reference(&checkpoint, &config)].map(|engine| {
        let quality = support::generate(&engine, &PROMPT, TOKENS);
        assert_eq!(engine.switch("density").blocking_recv().unwrap().outcome, SwitchEnd::Completed);
        [quality, support::generate(&engine, &PROMPT, TOKENS)]
    });
    assert_eq!(texts[0], texts[1]);
}
