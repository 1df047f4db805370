//! What each format costs in quality: perplexity on WikiText-2, by the definitions of its golden figures.
//!
//! The text is not ours to carry: it is read from `../shared/text` beside the repository, or from the directory that
//! `MODELPROFILE_SHARED` names. Where it is absent, the limits between formats are held on a text of our own.
//! `modelprofile-worker evaluate` prints these figures for any text and format.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

mod support;

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use modelprofile_engine::{
    WeightFormat,
    artifact::Store,
    checkpoint::Checkpoint,
    evaluate::{Evaluator, Score},
    model::ProfileWeights,
    text::Text,
};
use modelprofile_kernels::{
    GroupedActivations, KvFormat,
    cpu::{Cpu, CpuOptions},
};

/// transformers, BF16, first 100,000 characters of WikiText-2's validation text in 50 windows of 512: tokens 1..511 of each
/// window scored, no BOS.
const GOLDEN: f64 = 20.1496;
const GOLDEN_CHARACTERS: usize = 100_000;
const WINDOW: usize = 512;
/// Characters that the formats are compared on: enough that their order does not depend on the piece of text.
const COMPARED_CHARACTERS: usize = 40_000;

/// Largest increase over BF16 in percent, with INT8 activations for the 4-bit format.
const LIMITS: [(WeightFormat, f64); 3] =
    [(WeightFormat::Fp8, 4.0), (WeightFormat::Int8, 4.0), (WeightFormat::Q4_1, 3.0)];
/// The same for the file's own 4-bit blocks, kept exactly, with 16-bit activations.
const EXACT_LIMIT: f64 = 1.0;

fn wikitext() -> Option<String> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let shared = std::env::var_os("MODELPROFILE_SHARED").map_or_else(beside, PathBuf::from);
    std::fs::read_to_string(shared.join("text/wikitext-2-valid.txt")).ok()
}

/// One evaluation at a time: two would halve each other's cores.
static ALONE: Mutex<()> = Mutex::new(());

fn score(checkpoint: &Checkpoint, activations: GroupedActivations, formats: &[WeightFormat], text: &str) -> Vec<Score> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let tokens = Text::load(checkpoint).unwrap().tokenizer.encode(text, false).unwrap();
    let cpu = Cpu::new(CpuOptions { threads: 2, isa: None, grouped_activations: activations }).unwrap();
    let mut evaluator = Evaluator::new(cpu, checkpoint.config(), KvFormat::Bf16, WINDOW.min(tokens.len())).unwrap();
    let store = Store::new(&support::cache());
    let weights: Vec<_> = formats
        .iter()
        .map(|format| {
            let artifact = store.prepare(checkpoint, *format, &mut |_| {}).unwrap();
            ProfileWeights::load(evaluator.backend(), checkpoint.config(), &artifact).unwrap()
        })
        .collect();
    evaluator.score(&weights.iter().collect::<Vec<_>>(), &tokens, &mut |_, _| {}).unwrap()
}

fn first(text: &str, characters: usize) -> String {
    text.chars().take(characters).collect()
}

#[test]
fn bf16_perplexity_is_within_half_a_percent_of_transformers() {
    let Some(text) = wikitext() else {
        eprintln!("not checked against transformers: ../shared/text/wikitext-2-valid.txt is not there");
        return;
    };
    let text = first(&text, GOLDEN_CHARACTERS);
    let scores = score(&support::smollm2(), GroupedActivations::Int8, &[WeightFormat::Bf16], &text);
    let found = scores[0].perplexity();
    println!("BF16: perplexity {found:.4}, golden {GOLDEN}");
    assert!((found / GOLDEN - 1.0).abs() < 0.005, "perplexity {found}, not {GOLDEN}");
}

#[test]
fn every_format_stays_within_its_limit_of_bf16() {
    let text = wikitext()
        .map_or_else(|| include_str!("data/own-text.txt").to_owned(), |text| first(&text, COMPARED_CHARACTERS));
    let checkpoint = support::smollm2();
    let formats: Vec<WeightFormat> = [WeightFormat::Bf16].into_iter().chain(LIMITS.map(|(f, _)| f)).collect();
    let scores = score(&checkpoint, GroupedActivations::Int8, &formats, &text);
    let exact = score(&checkpoint, GroupedActivations::Bf16, &[WeightFormat::Bf16, WeightFormat::Q4_1], &text);
    let found = LIMITS.iter().zip(&scores[1..]).map(|((format, limit), score)| (*format, *limit, &scores[0], score));
    for (format, limit, base, score) in found.chain([(WeightFormat::Q4_1, EXACT_LIMIT, &exact[0], &exact[1])]) {
        let increase = (score.perplexity() / base.perplexity() - 1.0) * 100.0;
        println!(
            "{}: perplexity {:.4}, {increase:+.2} % of BF16's {:.4} (limit {limit} %), mean KL {:.5}",
            format.canonical(),
            score.perplexity(),
            base.perplexity(),
            score.mean_divergence()
        );
        assert!(increase < limit, "{}: {increase:.2} % is above {limit} %", format.canonical());
        assert!(score.mean_divergence() > 0.0, "{} was compared with itself", format.canonical());
    }
}
