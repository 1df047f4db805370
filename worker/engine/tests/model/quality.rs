//! What each format costs in quality: perplexity on WikiText-2, by the definitions of its golden figures.
//!
//! The text is not ours to carry: it is read from `../shared/text` beside the repository, or from the directory that
//! `MODELPROFILE_SHARED` names. Where it is absent, the limits between formats are held on a text of our own.
//! `modelprofile-worker evaluate` prints these figures for any text and format.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use modelprofile_engine::{
    WeightFormat,
    artifact::Store,
    evaluate::{Evaluator, Score},
    model::ProfileWeights,
    text::Text,
};
use modelprofile_kernels::{
    GroupedActivations, KvFormat,
    cpu::{Cpu, CpuOptions, Isa},
};

use crate::support;

const GOLDEN_CHARACTERS: usize = 100_000;
const WINDOW: usize = 512;

/// How much of the text is computed.
struct Extent {
    /// Windows that BF16 is held to the golden figure on.
    windows: usize,
    /// transformers, BF16, no BOS, on the first windows of the first 100,000 characters of WikiText-2's validation text: tokens
    /// 1..511 of each window scored. `tests/golden/perplexity.py` prints them.
    golden: f64,
    /// The first of these windows, which the formats are compared on.
    compared: usize,
    /// The first of those, which the file's own blocks are compared on: exact, they differ so little that few tell.
    exact: usize,
}

impl Extent {
    /// All of the text; without AVX-512, where it takes most of ten minutes on two cores, a part that takes two: both sides
    /// score the same tokens, so the limits hold on any part.
    fn of_this_machine() -> Self {
        match Isa::detect() {
            Isa::Avx512 => Self { windows: 50, golden: 20.1496, compared: 20, exact: 20 },
            Isa::Avx2 | Isa::Scalar => Self { windows: 10, golden: 20.1850, compared: 5, exact: 3 },
        }
    }
}

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

/// What the tests look at, computed once: they share the reference.
struct Measured {
    /// BF16 and the formats of [`LIMITS`], on the first windows.
    formats: Vec<Score>,
    /// The 4-bit format with 16-bit activations, on the first of these windows. BF16 has no activations in groups, so that its
    /// scores above are this one's reference too.
    exact: Score,
    /// BF16 on the windows of the golden figure that follow; `None` without its text.
    rest: Option<Score>,
}

fn measured() -> &'static Measured {
    static MEASURED: OnceLock<Measured> = OnceLock::new();
    MEASURED.get_or_init(|| {
        let wikitext = wikitext();
        let text = wikitext.as_ref().map_or_else(
            || include_str!("../data/own-text.txt").to_owned(),
            |text| text.chars().take(GOLDEN_CHARACTERS).collect(),
        );
        let tokens = Text::load(&support::smollm2()).unwrap().tokenizer.encode(&text, false).unwrap();
        let Extent { windows, compared, exact, .. } = Extent::of_this_machine();
        let tokens = &tokens[..tokens.len().min(windows * WINDOW)];
        let (first, rest) = tokens.split_at(tokens.len().min(compared * WINDOW));
        let formats: Vec<WeightFormat> = [WeightFormat::Bf16].into_iter().chain(LIMITS.map(|(f, _)| f)).collect();
        Measured {
            formats: score(GroupedActivations::Int8, &formats, first),
            exact: score(GroupedActivations::Bf16, &[WeightFormat::Q4_1], &first[..first.len().min(exact * WINDOW)])
                .remove(0),
            rest: wikitext.map(|_| score(GroupedActivations::Int8, &[WeightFormat::Bf16], rest).remove(0)),
        }
    })
}

fn score(activations: GroupedActivations, formats: &[WeightFormat], tokens: &[u32]) -> Vec<Score> {
    let checkpoint = support::smollm2();
    let cpu = Cpu::new(CpuOptions { threads: 2, isa: None, grouped_activations: activations }).unwrap();
    let mut evaluator = Evaluator::new(cpu, checkpoint.config(), KvFormat::Bf16, WINDOW.min(tokens.len())).unwrap();
    let store = Store::new(&support::cache());
    let weights: Vec<_> = formats
        .iter()
        .map(|format| {
            let artifact = store.prepare(&checkpoint, *format, &mut |_| {}).unwrap();
            ProfileWeights::load(evaluator.backend(), checkpoint.config(), &artifact).unwrap()
        })
        .collect();
    evaluator.score(&weights.iter().collect::<Vec<_>>(), tokens, &mut |_, _| {}).unwrap()
}

#[test]
fn bf16_perplexity_is_within_half_a_percent_of_transformers() {
    let Some(rest) = &measured().rest else {
        eprintln!("not checked against transformers: ../shared/text/wikitext-2-valid.txt is not there");
        return;
    };
    let first = &measured().formats[0];
    let Extent { windows, golden, .. } = Extent::of_this_machine();
    assert_eq!(first.tokens + rest.tokens, windows * (WINDOW - 1));
    let found = ((first.nll + rest.nll) / (first.tokens + rest.tokens) as f64).exp();
    println!("BF16: perplexity {found:.4} in {windows} windows, golden {golden}");
    assert!((found / golden - 1.0).abs() < 0.005, "perplexity {found}, not {golden}");
}

#[test]
fn every_format_stays_within_its_limit_of_bf16() {
    let Measured { formats, exact, .. } = measured();
    let base = &formats[0];
    // The windows' second halves are what is known token by token, so that a part of the windows has a reference too.
    let same = |score: &Score| Score { half: score.half[..exact.half.len()].to_vec(), ..Score::default() };
    let (part, rounded) = (same(base), same(&formats[3]));
    let rows = LIMITS.iter().zip(&formats[1..]).map(|((format, limit), score)| {
        assert!(score.half != base.half, "{} was compared with itself", format.canonical());
        (format.canonical(), score.perplexity(), base.perplexity(), *limit)
    });
    let exactly = (
        format!("{} with 16-bit activations, second halves", WeightFormat::Q4_1.canonical()),
        exact.half_perplexity().value,
        part.half_perplexity().value,
        EXACT_LIMIT,
    );
    for (name, found, reference, limit) in rows.chain([exactly]) {
        let increase = (found / reference - 1.0) * 100.0;
        println!("{name}: perplexity {found:.4}, {increase:+.2} % of BF16's {reference:.4} (limit {limit} %)");
        assert!(increase < limit, "{name}: {increase:.2} % is above {limit} %");
    }
    assert!(exact.half != part.half, "the exact format was compared with itself");
    for ((format, _), score) in LIMITS.iter().zip(&formats[1..]) {
        println!("{}: mean KL {:.5}", format.canonical(), score.mean_divergence());
        assert!(score.mean_divergence() > 0.0, "{} was compared with itself", format.canonical());
    }
    assert!(exact.half != rounded.half, "16-bit activations gave what INT8 ones do");
}
